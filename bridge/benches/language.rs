//! The projection with random weights of the demo's and of BLIP-2's shapes; prefill and decoding with the demo's language
//! model.
//!
//!     cargo bench --bench language
//!     QBRIDGE_DEMO_BUNDLE="$(make -s demo-bundle | tail -n 1)" cargo bench --bench language
//!
//! Prefill and decoding run where `QBRIDGE_DEMO_BUNDLE` names the demo's bundle, or any other.
#![allow(clippy::expect_used, clippy::panic)]

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bridge::bundle::Bundle;
use bridge::engine::{Engine, EngineOptions, PromptPart, Sequence};
use bridge::event::{Event, Timings};
use bridge::language_model::LanguageModel;
use bridge::projection::Projection;
use candle_core::{Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput};
use qformer::checkpoint::Checkpoint;
use tokio::sync::mpsc::{Receiver, channel};

/// Tokens of an answer whose decoding is measured, the first of which comes of the prompt.
const TOKENS: usize = 33;

/// Answers that are decoded together.
const SLOTS: usize = 4;

fn projection(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("projection");
    let random =
        |shape: &[usize]| Tensor::randn(0f32, 0.02, shape, &Device::Cpu).expect("random numbers");
    for (name, query_width, n_embd) in [
        ("demo's, 384 to 576", 384, 576),
        ("OPT-2.7b's, 768 to 2560", 768, 2560),
        ("a 7B's, 768 to 4096", 768, 4096),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let tensors = HashMap::from([
            ("language_projection.weight", random(&[n_embd, query_width])),
            ("language_projection.bias", random(&[n_embd])),
        ]);
        candle_core::safetensors::save(&tensors, dir.path().join("model.safetensors"))
            .expect("room for the weights");
        let checkpoint = Checkpoint::open(dir.path()).expect("what was just written");
        let projection =
            Projection::load(&checkpoint, query_width, &Device::Cpu).expect("these shapes");
        for batch in [1, 16] {
            let queries = random(&[batch, 32, query_width]);
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(BenchmarkId::new(name, batch), |bencher| {
                bencher.iter(|| projection.forward(&queries).expect("rows"));
            });
        }
    }
}

fn language_model(criterion: &mut Criterion) {
    let Some(bundle) = std::env::var_os("QBRIDGE_DEMO_BUNDLE").map(PathBuf::from) else {
        eprintln!(
            "SKIPPED: prefill and decoding. They need a language model: make the demo's bundle with \
             `make demo-bundle`, and name the directory that it prints in QBRIDGE_DEMO_BUNDLE."
        );
        return;
    };
    let bundle =
        Bundle::open(&bundle).unwrap_or_else(|error| panic!("QBRIDGE_DEMO_BUNDLE: {error}"));
    let path = bundle.llm_path().expect("a language model");
    let model = Arc::new(LanguageModel::load(&path).expect("a language model"));
    let options = EngineOptions {
        slots: SLOTS,
        n_ctx: 1024,
        ..EngineOptions::default()
    };
    let engine = Engine::start(model, options).expect("an engine");

    let mut group = criterion.benchmark_group("prefill");
    group.sample_size(10);
    let n_embd = engine.model().n_embd();
    for (n_image, n_tokens) in [(0, 32), (0, 256), (32, 224)] {
        let name = match n_image {
            0 => "tokens",
            _ => "a picture's 32 rows and tokens",
        };
        let rows = n_image + n_tokens;
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(BenchmarkId::new(name, rows), |bencher| {
            bencher.iter_custom(|n| {
                let prefill = |_| {
                    let mut prompt = vec![PromptPart::Tokens(tokens(&engine, n_tokens))];
                    if n_image > 0 {
                        let soft_prompt: Arc<[f32]> = vec![0.01; n_image * n_embd].into();
                        prompt.insert(0, PromptPart::Embeddings(soft_prompt));
                    }
                    ended(submit(&engine, prompt, 1)).prefill
                };
                Duration::from_secs_f64((0..n).map(prefill).sum())
            });
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("decode step");
    group.sample_size(10);
    for n_answers in [1, SLOTS] {
        group.throughput(Throughput::Elements(n_answers as u64));
        group.bench_function(BenchmarkId::new("answers", n_answers), |bencher| {
            bencher.iter_custom(|n| {
                let step = |_| {
                    let prompt = || vec![PromptPart::Tokens(tokens(&engine, 8))];
                    let answers: Vec<_> = (0..n_answers)
                        .map(|_| submit(&engine, prompt(), TOKENS))
                        .collect();
                    let timings: Vec<Timings> = answers.into_iter().map(ended).collect();
                    // They begin and end within a step of each other.
                    let longest = timings.iter().map(|timings| timings.decode);
                    longest.fold(0.0, f64::max) / (TOKENS - 1) as f64
                };
                Duration::from_secs_f64((0..n).map(step).sum())
            });
        });
    }
    group.finish();
}

/// Tokens from all over the vocabulary.
fn tokens(engine: &Engine, n: usize) -> Vec<i32> {
    let n_vocab = engine.model().n_vocab();
    (1..=n).map(|i| (i * 7919 % n_vocab) as i32).collect()
}

fn submit(engine: &Engine, prompt: Vec<PromptPart>, n_tokens: usize) -> Receiver<Event> {
    let (events, receiver) = channel(n_tokens + 1);
    engine
        .submit(Sequence {
            max_tokens: Some(n_tokens),
            ignore_eos: true,
            cache_prompt: false,
            ..Sequence::new(prompt, events)
        })
        .expect("a place in the queue");
    receiver
}

/// Waits for the end of an answer.
fn ended(mut events: Receiver<Event>) -> Timings {
    loop {
        match events.blocking_recv() {
            Some(Event::Token { .. }) => {}
            Some(Event::Done(summary)) => return summary.timings,
            Some(Event::Error(error)) => panic!("{error}"),
            None => panic!("the engine stopped"),
        }
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    projection(&mut criterion);
    language_model(&mut criterion);
    criterion.final_summary();
}
