//! The engine against transformers: a tiny BLIP-2 with a Llama language model
//! (tests/golden/make_llm.py), its soft prompts and its greedy answers.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

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
    values.chunks(values.len() / first).map(<[f32]>::to_vec).collect()
}

fn cases() -> Vec<Case> {
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(golden("llm/golden.json")).unwrap()).unwrap();
    let bytes = std::fs::read(golden("llm/reference.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let soft_prompts = rows(&reference, "soft_prompt");
    let first_logits = rows(&reference, "first_logits");
    let ids = |value: &serde_json::Value| -> Vec<i32> {
        value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap() as i32).collect()
    };
    let pictures = json["pictures"].as_array().unwrap();
    let cases = json["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 20);
    cases
        .iter()
        .zip(first_logits)
        .map(|(case, first_logits)| {
            let picture = pictures.iter().position(|name| *name == case["picture"]).unwrap();
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

fn submit(engine: &Engine, parts: Vec<PromptPart>, with: impl FnOnce(&mut Sequence)) -> Receiver<Event> {
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
            Event::Token { id, text: more } => {
                ids.push(id);
                text.push_str(&more);
            }
            Event::Done(summary) => {
                text.push_str(&summary.text);
                assert!(receiver.blocking_recv().is_none(), "something after the end");
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

#[test]
fn prompts_tokenize_as_in_transformers() {
    for case in cases() {
        let mut ids = vec![model().bos().unwrap()];
        ids.extend(model().tokenize(&case.prompt, false).unwrap());
        assert_eq!(ids, case.prompt_ids, "{:?}", case.prompt);
    }
}

#[test]
fn control_tokens_are_parsed_only_where_asked() {
    let model = model();
    assert_eq!(model.tokenize("</s>", true).unwrap(), [1]);
    let plain = model.tokenize("</s>", false).unwrap();
    assert!(plain.len() > 1 && !plain.contains(&1), "{plain:?}");
    let bytes: Vec<u8> = plain.iter().flat_map(|&id| model.token_bytes(id)).collect();
    assert_eq!(bytes, b"</s>");
    assert!(model.token_bytes(1).is_empty(), "a control token has no text");
    assert_eq!(model.special_token_texts(), ["<s>", "</s>", "<image>"]);
    assert!(model.is_end_of_generation(1) && !model.is_end_of_generation(20));
    assert_eq!((model.bos_text(), model.eos_text()), ("<s>".into(), "</s>".into()));
    assert!(model.token_bytes(-1).is_empty() && model.token_bytes(320).is_empty());
}

#[test]
fn first_logits_equal_transformers() {
    // The fused attention rounds more; a cache in f32 does without it by itself.
    for (flash_attention, tolerance) in
        [(FlashAttention::Auto, 1e-3), (FlashAttention::Off, 1e-3), (FlashAttention::On, 5e-2)]
    {
        let options = ContextOptions {
            n_ctx: 256,
            n_batch: 256,
            n_ubatch: 256,
            n_seq_max: 1,
            cache_type: CacheType::F32,
            flash_attention,
            threads: 2,
        };
        let mut context =
            Context::new(model(), &options, Arc::new(AtomicBool::new(false))).unwrap();
        for case in cases() {
            context.remove(0);
            context.clear();
            let n_embd = model().n_embd();
            let mut position = 0;
            for row in case.soft_prompt.chunks(n_embd) {
                context.add_embedding(0, position, row, false).unwrap();
                position += 1;
            }
            let mut last = None;
            for (i, &id) in case.prompt_ids.iter().enumerate() {
                let ends = i + 1 == case.prompt_ids.len();
                last = Some(context.add_token(0, position, id, ends).unwrap());
                position += 1;
            }
            context.process().unwrap();
            assert_eq!(context.last_position(0), Some(position - 1));
            let logits = context.logits(last.unwrap()).unwrap();
            assert_eq!(logits.len(), case.first_logits.len());
            let worst = logits
                .iter()
                .zip(&case.first_logits)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            assert!(worst < tolerance, "{flash_attention:?} {:?}: off by {worst}", case.prompt);
        }
    }
}

#[test]
fn greedy_ids_equal_transformers_generate() {
    let engine = engine(options());
    for case in cases() {
        let answer = ask(&engine, case.parts(), |_| {});
        assert_eq!(answer.ids, case.answer_ids, "{:?}", case.prompt);
        assert_eq!(answer.text, case.answer, "{:?}", case.prompt);
        let usage = answer.summary.usage;
        assert_eq!(usage.prompt_tokens, 8 + case.prompt_ids.len());
        assert_eq!(usage.image_tokens, 8);
        assert_eq!(usage.completion_tokens, case.answer_ids.len());
        let ended = case.answer_ids.last() == Some(&1);
        let expected = if ended { FinishReason::Stop } else { FinishReason::Length };
        assert_eq!(answer.summary.finish_reason, expected);
    }
}

#[test]
fn twenty_at_once_over_eight_slots_equal_the_singles() {
    for cache_type in [CacheType::F32, CacheType::F16] {
        let singles: Vec<Vec<i32>> = {
            let engine = engine(EngineOptions { cache_type, ..options() });
            cases().iter().map(|case| ask(&engine, case.parts(), |_| {}).ids).collect()
        };
        let engine = engine(EngineOptions { slots: 8, cache_type, ..options() });
        let receivers: Vec<_> =
            cases().iter().map(|case| submit(&engine, case.parts(), |_| {})).collect();
        for (receiver, single) in receivers.into_iter().zip(singles) {
            assert_eq!(read(receiver).unwrap().ids, single, "{cache_type:?}");
        }
    }
}

#[test]
fn chunked_prompts_give_the_same_answers() {
    // 16 rows a step: soft prompt and text are cut anywhere, beside others that generate.
    let engine = engine(EngineOptions { slots: 3, n_batch: 16, n_ubatch: 8, ..options() });
    let receivers: Vec<_> =
        cases().iter().map(|case| submit(&engine, case.parts(), |_| {})).collect();
    for (receiver, case) in receivers.into_iter().zip(cases()) {
        assert_eq!(read(receiver).unwrap().ids, case.answer_ids, "{:?}", case.prompt);
    }
}

#[test]
fn soft_prompts_may_stand_anywhere_in_the_prompt() {
    // Embedding rows that are the tokens' own embeddings answer as the tokens do.
    let bytes = std::fs::read(golden("llm/checkpoint/model.safetensors")).unwrap();
    let checkpoint = SafeTensors::deserialize(&bytes).unwrap();
    let embeddings = rows(&checkpoint, "language_model.model.embed_tokens.weight");
    let ids: Vec<i32> = (0..30).map(|i| (i * 37 + 11) % 300 + 3).collect();
    let soft = |range: std::ops::Range<usize>| {
        let values: Vec<f32> =
            ids[range].iter().flat_map(|&id| embeddings[id as usize].clone()).collect();
        PromptPart::Embeddings(values.into())
    };
    let tokens = |range: std::ops::Range<usize>| PromptPart::Tokens(ids[range].to_vec());
    let engine = engine(options());
    let plain = ask(&engine, vec![tokens(0..30)], |_| {}).ids;
    for parts in [
        vec![soft(0..30)],
        vec![tokens(0..12), soft(12..20), tokens(20..30)],
        vec![soft(0..3), tokens(3..4), soft(4..9), tokens(9..9), soft(9..30)],
    ] {
        assert_eq!(ask(&engine, parts, |_| {}).ids, plain);
    }
}

#[test]
fn every_cache_type_runs() {
    for cache_type in [CacheType::F32, CacheType::F16, CacheType::Q8_0] {
        let engine = engine(EngineOptions { cache_type, ..options() });
        let case = &cases()[0];
        let answer = ask(&engine, case.parts(), |_| {});
        assert_eq!(answer.ids[..4], case.answer_ids[..4], "{cache_type:?}");
    }
}

#[test]
fn dropping_the_receiver_frees_the_slot() {
    let engine = engine(options());
    let endless = submit(&engine, text_prompt(4), |sequence| {
        sequence.max_tokens = None;
        sequence.ignore_eos = true;
        let (events, _closed) = channel(1);
        // A channel of one event: it would sit in the slot forever, paused.
        drop(std::mem::replace(&mut sequence.events, events));
    });
    drop(endless);
    let case = &cases()[1];
    assert_eq!(ask(&engine, case.parts(), |_| {}).ids, case.answer_ids);

    // One that is paused, its reader alive, then gone.
    let (events, receiver) = channel(1);
    let mut sequence = Sequence::new(text_prompt(4), events);
    sequence.ignore_eos = true;
    engine.submit(sequence).unwrap();
    wait_until("it is admitted", || engine.activity().active == 1);
    let waiting = submit(&engine, case.parts(), |_| {});
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(engine.activity().waiting, 1, "the slot is held while the reader lives");
    drop(receiver);
    assert_eq!(read(waiting).unwrap().ids, case.answer_ids);
    wait_until("all slots are free", || engine.activity().active == 0);
}

#[test]
fn a_slow_reader_pauses_only_itself() {
    let engine = engine(EngineOptions { slots: 2, ..options() });
    let case = &cases()[0];
    let (events, slow) = channel(1);
    let mut sequence = Sequence::new(case.parts(), events);
    sequence.max_tokens = Some(24);
    engine.submit(sequence).unwrap();
    for case in cases() {
        assert_eq!(ask(&engine, case.parts(), |_| {}).ids, case.answer_ids);
    }
    assert_eq!(engine.activity().active, 1, "the slow one is still there");
    let late = read(slow).unwrap();
    assert_eq!((late.ids, late.text), (case.answer_ids.clone(), case.answer.clone()));
}

#[test]
fn stop_strings_end_the_answer_before_them() {
    let engine = engine(options());
    // One whose text is long enough and spans several tokens.
    let case = cases().into_iter().find(|case| case.answer.contains("Questionman")).unwrap();
    let whole = ask(&engine, case.parts(), |_| {});
    let stop = "onman";
    let answer = ask(&engine, case.parts(), |sequence| {
        sequence.stop = vec!["never in there".to_owned(), stop.to_owned()];
    });
    let expected = &whole.text[..whole.text.find(stop).unwrap()];
    assert_eq!(answer.text, expected);
    assert_eq!(answer.summary.finish_reason, FinishReason::Stop);
    assert!(answer.ids.len() < whole.ids.len());
    assert_eq!(answer.ids, whole.ids[..answer.ids.len()]);
    assert_eq!(answer.summary.usage.completion_tokens, answer.ids.len());
}

#[test]
fn stop_ids_end_the_answer() {
    let engine = engine(options());
    let case = &cases()[0];
    let stop = case.answer_ids[5];
    let at = case.answer_ids.iter().position(|&id| id == stop).unwrap();
    let answer = ask(&engine, case.parts(), |sequence| sequence.stop_ids = vec![stop]);
    assert_eq!(answer.ids, case.answer_ids[..=at], "the stop token is counted");
    assert_eq!(answer.summary.finish_reason, FinishReason::Stop);
    assert_eq!(answer.summary.usage.completion_tokens, at + 1);
    assert!(case.answer.starts_with(answer.text.trim_end_matches('\u{fffd}')));

    let ended = cases().into_iter().find(|case| case.answer_ids.last() == Some(&1)).unwrap();
    let on = ask(&engine, ended.parts(), |sequence| sequence.ignore_eos = true);
    assert_eq!(on.ids.len(), 24);
    assert_eq!(on.ids[..ended.answer_ids.len()], ended.answer_ids);
}

#[test]
fn a_prompt_beyond_the_context_is_refused_with_both_numbers() {
    let engine = engine(EngineOptions { n_ctx: 32, ..options() });
    let (events, _receiver) = channel(4);
    let error = engine.submit(Sequence::new(text_prompt(32), events)).unwrap_err();
    assert!(
        matches!(error, Error::ContextLengthExceeded { n_prompt_tokens: 32, n_ctx: 32 }),
        "{error}"
    );
    assert_eq!(error.kind(), ErrorKind::ContextLengthExceeded);
    // One row of room is one token.
    let answer = ask(&engine, text_prompt(31), |sequence| sequence.max_tokens = None);
    assert_eq!(answer.ids.len(), 1);
    // To the end of the context, in a context full to the last row, with all slots.
    let answer = ask(&engine, text_prompt(20), |sequence| {
        sequence.max_tokens = None;
        sequence.ignore_eos = true;
    });
    assert_eq!(answer.ids.len(), 12);
    assert_eq!(answer.summary.finish_reason, FinishReason::Length);
}

#[test]
fn full_slots_leave_each_other_their_room() {
    let engine = engine(EngineOptions { slots: 8, n_ctx: 128, ..options() });
    let receivers: Vec<_> = (0..16)
        .map(|i| {
            submit(&engine, text_prompt(100 + i), |sequence| {
                sequence.max_tokens = None;
                sequence.ignore_eos = true;
            })
        })
        .collect();
    for (receiver, i) in receivers.into_iter().zip(0..) {
        assert_eq!(read(receiver).unwrap().ids.len(), 28 - i);
    }
}

#[test]
fn what_cannot_be_answered_is_refused_before_any_work() {
    let engine = engine(options());
    let n_embd = model().n_embd();
    let soft = |values: Vec<f32>| vec![PromptPart::Embeddings(values.into())];
    let refused = |parts: Vec<PromptPart>, with: fn(&mut Sequence)| {
        let (events, _receiver) = channel(4);
        let mut sequence = Sequence::new(parts, events);
        with(&mut sequence);
        let error = engine.submit(sequence).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
        error.to_string()
    };
    refused(vec![], |_| {});
    refused(soft(vec![]), |_| {});
    let width = refused(soft(vec![0.0; n_embd + 1]), |_| {});
    assert!(width.contains("129") && width.contains("128"), "{width}");
    let mut nan = vec![0.0; n_embd];
    nan[7] = f32::NAN;
    refused(soft(nan), |_| {});
    let unknown = refused(vec![PromptPart::Tokens(vec![5, 320])], |_| {});
    assert!(unknown.contains("320"), "{unknown}");
    refused(vec![PromptPart::Tokens(vec![-1])], |_| {});
    refused(text_prompt(4), |sequence| sequence.max_tokens = Some(0));
    refused(text_prompt(4), |sequence| sequence.sampling.top_p = 0.0);
    let case = &cases()[0];
    assert_eq!(ask(&engine, case.parts(), |_| {}).ids, case.answer_ids);
}

#[test]
fn a_sequence_that_overflows_fails_alone() {
    let engine = engine(EngineOptions { slots: 2, ..options() });
    // Finite, but its square is not: logits that are not numbers.
    let huge = vec![PromptPart::Embeddings(vec![3e38; model().n_embd()].into())];
    let bad = submit(&engine, huge, |_| {});
    let case = &cases()[3];
    assert_eq!(ask(&engine, case.parts(), |_| {}).ids, case.answer_ids);
    if let Err(error) = read(bad) {
        assert_eq!(error.kind(), ErrorKind::Internal);
    }
    assert_eq!(ask(&engine, case.parts(), |_| {}).ids, case.answer_ids);
}

#[test]
fn a_full_queue_says_so() {
    let engine = engine(EngineOptions { queue: 2, ..options() });
    let (events, held) = channel(1);
    engine.submit(Sequence::new(text_prompt(4), events)).unwrap();
    let case = &cases()[0];
    let waiting = [submit(&engine, case.parts(), |_| {}), submit(&engine, case.parts(), |_| {})];
    let (events, _receiver) = channel(4);
    let error = engine.submit(Sequence::new(text_prompt(4), events)).unwrap_err();
    assert!(matches!(error, Error::QueueFull { limit: 2 }), "{error}");
    // One who went away while waiting leaves his place.
    let [gone, stays] = waiting;
    drop(gone);
    let next = submit(&engine, case.parts(), |_| {});
    drop(held);
    for receiver in [stays, next] {
        assert_eq!(read(receiver).unwrap().ids, case.answer_ids);
    }
}

#[test]
fn the_same_seed_gives_the_same_answer_alone_and_in_company() {
    let sampling = |seed| Sampling {
        temperature: 1.0,
        top_k: 40,
        top_p: 0.95,
        seed: Some(seed),
        ..Sampling::default()
    };
    let engine = engine(EngineOptions { slots: 4, ..options() });
    let case = &cases()[0];
    let alone = |seed| ask(&engine, case.parts(), |sequence| sequence.sampling = sampling(seed)).ids;
    let first = alone(11);
    assert_eq!(first, alone(11));
    assert_ne!(first, alone(12));
    let company: Vec<_> = [11, 12, 13, 11]
        .map(|seed| submit(&engine, case.parts(), |sequence| sequence.sampling = sampling(seed)))
        .into_iter()
        .map(|receiver| read(receiver).unwrap().ids)
        .collect();
    assert_eq!(company[0], first);
    assert_eq!(company[3], first);
}

#[test]
fn dropping_the_engine_tells_everyone() {
    let engine = engine(options());
    let running = submit(&engine, text_prompt(4), |sequence| {
        sequence.max_tokens = None;
        sequence.ignore_eos = true;
    });
    let waiting = submit(&engine, text_prompt(4), |_| {});
    drop(engine);
    // The first may have been through before; none may hang.
    let _ = read(running);
    match read(waiting) {
        Ok(answer) => assert_eq!(answer.ids.len(), 24),
        Err(error) => assert!(matches!(error, Error::Stopped), "{error}"),
    }
}

#[test]
fn timings_name_the_stages() {
    let engine = engine(options());
    let first = submit(&engine, cases()[0].parts(), |_| {});
    let second = submit(&engine, cases()[1].parts(), |sequence| {
        sequence.timings.vision = 1.5;
    });
    read(first).unwrap();
    let timings = read(second).unwrap().summary.timings;
    assert_eq!(timings.vision, 1.5, "what came before is kept");
    assert!(timings.queue > 0.0 && timings.prefill > 0.0 && timings.decode > 0.0, "{timings:?}");
}

#[test]
fn impossible_sizes_are_refused() {
    for options in [
        EngineOptions { slots: 0, ..options() },
        EngineOptions { slots: 257, ..options() },
        EngineOptions { n_ctx: 1, ..options() },
        EngineOptions { n_batch: 0, ..options() },
    ] {
        let error = Engine::start(model(), options).unwrap_err();
        assert!(matches!(error, Error::Context { .. }), "{error}");
    }
    // The model's learned length is the longest context.
    let engine = engine(EngineOptions { n_ctx: 100_000, ..options() });
    assert_eq!(engine.options().n_ctx, model().n_ctx_train());
}
