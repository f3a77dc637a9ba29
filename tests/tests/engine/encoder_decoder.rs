//! A tiny T5 against transformers (tests/golden/make_t5.py): prompts through the
//! encoder, several requests in flight, beams.

use super::*;

pub struct T5Case {
    pub parts: Vec<PromptPart>,
    /// One for each setting.
    pub answers: Vec<Vec<i32>>,
    /// With each kind of [`GELUS`].
    pub first_logits: Vec<Vec<f32>>,
}

/// Tanh GELU from a table in f16, as llama.cpp computes it on a CPU; tanh GELU; and
/// the exact one, which BLIP-2 and InstructBLIP use.
const GELUS: [&str; 3] = ["table", "tanh", "erf"];

fn t5() -> Arc<LanguageModel> {
    static MODEL: OnceLock<Arc<LanguageModel>> = OnceLock::new();
    MODEL
        .get_or_init(|| Arc::new(LanguageModel::load(&golden("t5/t5.gguf")).unwrap()))
        .clone()
}

fn t5_settings() -> Vec<Sampling> {
    let settings = json("t5/golden.json")["settings"].clone();
    settings.as_array().unwrap().iter().map(setting).collect()
}

pub fn t5_cases() -> Vec<T5Case> {
    let bytes = std::fs::read(golden("t5/reference.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let soft_prompts = rows(&reference, "soft_prompt");
    let first_logits = GELUS.map(|kind| rows(&reference, &format!("first_logits_{kind}")));
    let golden = json("t5/golden.json");
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 20);
    cases
        .iter()
        .enumerate()
        .map(|(i, case)| {
            let soft = &soft_prompts[case["soft_prompt"].as_u64().unwrap() as usize];
            T5Case {
                parts: vec![
                    PromptPart::Embeddings(soft.clone().into()),
                    PromptPart::Tokens(ids(&case["encoder_ids"])),
                ],
                answers: case["answers"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(ids)
                    .collect(),
                first_logits: first_logits.iter().map(|rows| rows[i].clone()).collect(),
            }
        })
        .collect()
}

pub fn t5_engine(slots: usize) -> Engine {
    t5_workers(slots, 1)
}

fn t5_workers(slots: usize, workers: usize) -> Engine {
    let options = EngineOptions {
        slots,
        queue: 100,
        workers: Some(workers),
        ..options()
    };
    Engine::start(t5(), options).unwrap()
}

fn t5_submit(engine: &Engine, case: &T5Case, sampling: Sampling) -> Receiver<Event> {
    submit(engine, case.parts.clone(), |sequence| {
        sequence.sampling = sampling;
        sequence.max_tokens = Some(16);
    })
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

#[test]
fn first_logits_differ_by_the_gelu_alone() {
    let options = ContextOptions {
        n_ctx: 64,
        n_batch: 64,
        n_ubatch: 64,
        n_seq_max: 1,
        cache_type: CacheType::F32,
        flash_attention: FlashAttention::Auto,
        threads: 2,
    };
    let mut context = Context::new(t5(), &options, Arc::new(AtomicBool::new(false))).unwrap();
    let mut off = [0.0f32; GELUS.len()];
    for case in t5_cases() {
        context.remove(0);
        context.clear();
        let mut position = 0;
        for part in &case.parts {
            match part {
                PromptPart::Tokens(ids) => {
                    for &id in ids {
                        context.add_token(0, position, id, true).unwrap();
                        position += 1;
                    }
                }
                PromptPart::Embeddings(values) => {
                    for row in values.chunks(t5().n_embd()) {
                        context.add_embedding(0, position, row, true).unwrap();
                        position += 1;
                    }
                }
            }
        }
        context.encode().unwrap();
        context.clear();
        let start = t5().decoder_start().unwrap();
        let row = context.add_token(0, 0, start, true).unwrap();
        context.process().unwrap();
        let logits = context.logits(row).unwrap();
        for (off, expected) in off.iter_mut().zip(&case.first_logits) {
            *off = off.max(largest_difference(logits, expected));
        }
    }
    println!("logits are off by {off:?} from those with {GELUS:?} GELU");
    let explained = json("t5/golden.json")["largest_difference_to_tanh"].clone();
    let [table, erf] = ["table", "erf"].map(|kind| explained[kind].as_f64().unwrap() as f32);
    assert!(off[0] < 1e-3, "off by {}", off[0]);
    // The rounding to f16 explains all of the difference to tanh.
    assert!(off[1] < table + 1e-3, "off by {}", off[1]);
    assert!(off[2] < table + erf + 1e-3, "off by {}", off[2]);
}

#[test]
fn every_setting_answers_as_transformers_does() {
    let engine = t5_engine(5);
    for (i, sampling) in t5_settings().into_iter().enumerate() {
        for (n, case) in t5_cases().iter().enumerate() {
            let answer = read(t5_submit(&engine, case, sampling)).unwrap();
            assert_eq!(answer.ids, case.answers[i], "pair {n}, {sampling:?}");
            let usage = answer.summary.usage;
            let PromptPart::Tokens(text) = &case.parts[1] else {
                panic!("text after the soft prompt");
            };
            assert_eq!(
                (usage.prompt_tokens, usage.image_tokens),
                (8 + text.len(), 8)
            );
        }
    }
}

#[test]
fn requests_in_flight_each_get_their_own_answer() {
    let (cases, settings) = (t5_cases(), t5_settings());
    for workers in [1, 2] {
        // Greedy ones and beams of three and five, over sequences for some of them.
        let engine = t5_workers(11, workers);
        let mut expected = Vec::new();
        let mut receivers = Vec::new();
        for case in &cases {
            for (sampling, answer) in settings.iter().zip(&case.answers) {
                expected.push(answer);
                receivers.push(t5_submit(&engine, case, *sampling));
            }
        }
        let mut at_once = 0;
        for (receiver, expected) in receivers.into_iter().zip(expected) {
            at_once = at_once.max(engine.activity().active);
            assert_eq!(read(receiver).unwrap().ids, *expected);
        }
        assert!(at_once > 1, "nothing ran beside another");
    }
}

#[test]
fn the_text_is_that_of_the_vocabulary() {
    let engine = t5_engine(1);
    let case = &t5_cases()[0];
    let answer = read(t5_submit(&engine, case, Sampling::default())).unwrap();
    let bytes: Vec<u8> = answer
        .ids
        .iter()
        .flat_map(|&id| t5().token_bytes(id))
        .collect();
    let whole = String::from_utf8(bytes).unwrap();
    assert_eq!(answer.text, whole.strip_prefix(' ').unwrap_or(&whole));
    assert!(!answer.text.contains("</s>"));
}

#[test]
fn a_longer_encoder_input_than_the_context_is_refused_with_both_numbers() {
    let engine = t5_engine(1);
    assert_eq!(engine.max_prompt_rows(), 128);
    let prompt = |n: i32| vec![PromptPart::Tokens((0..n).map(|i| 3 + i % 200).collect())];
    let (events, _receiver) = channel(4);
    let error = engine
        .submit(Sequence::new(prompt(129), events))
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::ContextLengthExceeded {
                n_prompt_tokens: 129,
                n_ctx: 128
            }
        ),
        "{error}"
    );
    // As long as the context is fine, whatever a step of others may hold.
    let narrow = Engine::start(
        t5(),
        EngineOptions {
            n_batch: 16,
            n_ubatch: 8,
            ..options()
        },
    )
    .unwrap();
    let answer = ask(&narrow, prompt(128), |sequence| {
        sequence.ignore_eos = true;
        sequence.max_tokens = None;
    });
    assert_eq!(answer.ids.len(), 127, "the context without the start token");
}

#[test]
fn cancelling_frees_the_sequences() {
    let engine = t5_engine(3);
    let endless = submit(&engine, t5_cases()[0].parts.clone(), |sequence| {
        sequence.sampling.num_beams = 3;
        sequence.ignore_eos = true;
        sequence.max_tokens = None;
    });
    wait_until("it runs", || engine.activity().sampled_tokens > 6);
    assert_eq!(engine.activity().sequences, 3);
    drop(endless);
    wait_until("it is gone", || engine.activity().sequences == 0);
    let case = &t5_cases()[1];
    let answer = read(t5_submit(&engine, case, Sampling::default())).unwrap();
    assert_eq!(answer.ids, case.answers[0]);
}

#[test]
fn contexts_refuse_what_llama_cpp_would_abort_on() {
    let options = ContextOptions {
        n_ctx: 64,
        n_batch: 64,
        n_ubatch: 8,
        n_seq_max: 1,
        cache_type: CacheType::F32,
        flash_attention: FlashAttention::On,
        threads: 1,
    };
    let make = |model, options: &ContextOptions| {
        Context::new(model, options, Arc::new(AtomicBool::new(false)))
    };
    let mut context = make(t5(), &options).unwrap();
    context.add_token(0, 0, 0, true).unwrap();
    context.process().expect_err("nothing is encoded yet");
    context.clear();
    for position in 0..9 {
        context.add_token(0, position, 5, true).unwrap();
    }
    context
        .encode()
        .expect_err("nine rows in ubatches of eight");
    let mut decoder_only = make(model(), &options).unwrap();
    decoder_only.add_token(0, 0, 5, true).unwrap();
    decoder_only.encode().expect_err("there is no encoder");
    let q8_0 = ContextOptions {
        cache_type: CacheType::Q8_0,
        ..options
    };
    let error = make(t5(), &q8_0).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("q8_0"), "{error}");
}
