//! The engine against transformers: a tiny BLIP-2 with a Llama language model
//! (tests/golden/make_llm.py), its soft prompts and its greedy answers.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod beams;
mod choices;
mod encoder_decoder;
mod given;
mod golden_answers;
mod lookup;
mod prefixes;
mod requests;
mod scheduling;
mod workers;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bridge::engine::{
    CacheType, Engine, EngineOptions, FlashAttention, PromptPart, Sampling, Sequence,
};
use bridge::event::{Event, FinishReason, Summary};
use bridge::language_model::LanguageModel;
use bridge::llama::{Context, ContextOptions};
use bridge::{Error, ErrorKind};
use qbridge_tests::golden;
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::{Receiver, channel};

struct Case {
    prompt: String,
    prompt_ids: Vec<i32>,
    soft_prompt: Arc<[f32]>,
    answer_ids: Vec<i32>,
    answer: String,
    first_logits: Vec<f32>,
}

impl Case {
    /// `[queries][BOS][text]`
    fn parts(&self) -> Vec<PromptPart> {
        vec![
            PromptPart::Embeddings(self.soft_prompt.clone()),
            PromptPart::Tokens(self.prompt_ids.clone()),
        ]
    }
}

fn model() -> Arc<LanguageModel> {
    static MODEL: OnceLock<Arc<LanguageModel>> = OnceLock::new();
    MODEL
        .get_or_init(|| Arc::new(LanguageModel::load(&golden("llm/llm.gguf")).unwrap()))
        .clone()
}

fn rows(file: &SafeTensors, name: &str) -> Vec<Vec<f32>> {
    let tensor = file.tensor(name).unwrap();
    let values: Vec<f32> = tensor
        .data()
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    let first = tensor.shape()[0];
    values
        .chunks(values.len() / first)
        .map(<[f32]>::to_vec)
        .collect()
}

fn json(path: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(golden(path)).unwrap()).unwrap()
}

fn ids(value: &serde_json::Value) -> Vec<i32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_i64().unwrap() as i32)
        .collect()
}

/// What `generate` of transformers was asked for.
fn setting(value: &serde_json::Value) -> Sampling {
    let number = |name: &str, default| value[name].as_f64().unwrap_or(default);
    Sampling {
        num_beams: number("num_beams", 1.0) as usize,
        length_penalty: number("length_penalty", 1.0) as f32,
        repetition_penalty: number("repetition_penalty", 1.0) as f32,
        min_tokens: number("min_new_tokens", 0.0) as usize,
        ..Sampling::default()
    }
}

fn cases() -> Vec<Case> {
    let json = json("llm/golden.json");
    let bytes = std::fs::read(golden("llm/reference.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let soft_prompts = rows(&reference, "soft_prompt");
    let first_logits = rows(&reference, "first_logits");
    let pictures = json["pictures"].as_array().unwrap();
    let cases = json["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 20);
    cases
        .iter()
        .zip(first_logits)
        .map(|(case, first_logits)| {
            let picture = pictures
                .iter()
                .position(|name| *name == case["picture"])
                .unwrap();
            Case {
                prompt: case["prompt"].as_str().unwrap().to_owned(),
                prompt_ids: ids(&case["prompt_ids"]),
                soft_prompt: soft_prompts[picture].clone().into(),
                answer_ids: ids(&case["answer_ids"]),
                answer: case["answer"].as_str().unwrap().to_owned(),
                first_logits,
            }
        })
        .collect()
}

/// Sizes for the tiny model; one sequence at a time, cache in f32.
fn options() -> EngineOptions {
    EngineOptions {
        slots: 1,
        n_ctx: 128,
        n_batch: 512,
        cache_type: CacheType::F32,
        threads: Some(2),
        ..EngineOptions::default()
    }
}

fn engine(options: EngineOptions) -> Engine {
    Engine::start(model(), options).unwrap()
}

#[derive(Debug)]
struct Answer {
    ids: Vec<i32>,
    text: String,
    summary: Summary,
}

fn submit(
    engine: &Engine,
    parts: Vec<PromptPart>,
    with: impl FnOnce(&mut Sequence),
) -> Receiver<Event> {
    let (events, receiver) = channel(1024);
    let mut sequence = Sequence::new(parts, events);
    sequence.max_tokens = Some(24);
    with(&mut sequence);
    engine.submit(sequence).unwrap();
    receiver
}

fn read(mut receiver: Receiver<Event>) -> Result<Answer, Error> {
    let (mut ids, mut text) = (Vec::new(), String::new());
    loop {
        match receiver.blocking_recv().expect("an end to the answer") {
            Event::Token { id, text: more, .. } => {
                ids.push(id);
                text.push_str(&more);
            }
            Event::Done(summary) => {
                text.push_str(&summary.text);
                assert!(
                    receiver.blocking_recv().is_none(),
                    "something after the end"
                );
                return Ok(Answer { ids, text, summary });
            }
            Event::Error(error) => return Err(error),
        }
    }
}

fn ask(engine: &Engine, parts: Vec<PromptPart>, with: impl FnOnce(&mut Sequence)) -> Answer {
    read(submit(engine, parts, with)).unwrap()
}

/// A prompt of `n` ordinary tokens.
fn text_prompt(n: i32) -> Vec<PromptPart> {
    vec![PromptPart::Tokens((0..n).map(|i| 20 + i % 40).collect())]
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
