//! InstructBLIP through the built program and through a loaded bundle, against
//! transformers (`tests/golden/make_instructblip.py`).

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bridge::engine::{CacheType, FlashAttention, Sampling};
use bridge::event::Event;
use bridge::image_encoder::ImageEncoder;
use bridge::language_model::LanguageModel;
use bridge::llama::{Context, ContextOptions};
use bridge::model::{Model, ModelOptions, Prompt, Request, VisionActivity};
use candle_core::{Device, Tensor};
use qbridge_tests::{Server, golden, one_line_error, qbridge, stdout};
use qformer::checkpoint::Products;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;

fn checkpoint() -> PathBuf {
    golden("instructblip/checkpoint")
}

fn bundle_command(checkpoint: &Path, out: &Path) -> Command {
    let mut command = qbridge(["bundle"]);
    command
        .arg(checkpoint)
        .arg("--llm")
        .arg(golden("instructblip/llm.gguf"))
        .arg("--out")
        .arg(out);
    command
}

/// A bundle of the golden checkpoint in a directory of its own.
fn bundle(dir: &Path) -> PathBuf {
    let out = dir.join("tiny");
    stdout(&mut bundle_command(&checkpoint(), &out));
    out
}

fn picture(name: &str) -> PathBuf {
    golden(&format!("llm/pictures/{name}.png"))
}

struct Case {
    pictures: Vec<String>,
    instruction: String,
    n_tokens: u64,
    prompt_ids: Vec<i32>,
    answer_ids: Vec<i32>,
    first_logits: Vec<f32>,
    soft_prompt: Vec<f32>,
}

fn floats(file: &SafeTensors, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), safetensors::Dtype::F32);
    let (values, rest) = tensor.data().as_chunks();
    assert!(rest.is_empty());
    values
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect()
}

const MAX_NEW_TOKENS: usize = 16;
const N_QUERIES: usize = 6;

fn cases() -> Vec<Case> {
    let json: Value =
        serde_json::from_slice(&std::fs::read(golden("instructblip/golden.json")).unwrap())
            .unwrap();
    assert_eq!(json["max_new_tokens"], MAX_NEW_TOKENS);
    assert_eq!(json["num_query_tokens"], N_QUERIES);
    let bytes = std::fs::read(golden("instructblip/reference.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let cases = json["cases"].as_array().unwrap();
    let logits = floats(&reference, "first_logits");
    let n_vocab = logits.len() / cases.len();
    let ids = |value: &Value| serde_json::from_value(value.clone()).unwrap();
    cases
        .iter()
        .zip(logits.chunks_exact(n_vocab))
        .enumerate()
        .map(|(i, (case, first_logits))| Case {
            pictures: serde_json::from_value(case["pictures"].clone()).unwrap(),
            instruction: case["instruction"].as_str().unwrap().to_owned(),
            n_tokens: case["n_tokens"].as_u64().unwrap(),
            prompt_ids: ids(&case["prompt_ids"]),
            answer_ids: ids(&case["answer_ids"]),
            first_logits: first_logits.to_vec(),
            soft_prompt: floats(&reference, &format!("soft_prompt.{i}")),
        })
        .collect()
}

fn max_difference(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    let differences = left.iter().zip(right).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |max, x| if x > max || x.is_nan() { x } else { max })
}

#[test]
fn answers_are_transformers_token_for_token() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundle(dir.path());
    let cases = cases();
    let videos = cases.iter().filter(|case| case.pictures.len() == 4).count();
    assert!(videos >= 3);
    assert_eq!(cases.len() - videos, 20);
    for length in [0, 77, 128, 200, 260] {
        assert!(cases.iter().any(|case| case.n_tokens == length), "{length}");
    }
    for case in cases {
        let mut command = qbridge(["ask", "--json", "--cache-type", "f32"]);
        command.args(["--max-tokens", &MAX_NEW_TOKENS.to_string()]);
        if case.instruction.is_empty() {
            // Without the layout, which has a prompt of its own for no words.
            command.arg("--raw");
        }
        for frame in &case.pictures[1..] {
            command.arg("--frame").arg(picture(frame));
        }
        command
            .arg(&bundle)
            .arg(picture(&case.pictures[0]))
            .arg(&case.instruction);
        let answer: Value = serde_json::from_str(&stdout(&mut command)).unwrap();
        let name = format!("{:?} {:?}", case.pictures, case.instruction);
        assert_eq!(answer["token_ids"], json!(case.answer_ids), "{name}");
        let image_tokens = N_QUERIES * case.pictures.len();
        let usage = &answer["usage"];
        assert_eq!(usage["image_tokens"], image_tokens, "{name}");
        let prompt_tokens = image_tokens + case.prompt_ids.len();
        assert_eq!(usage["prompt_tokens"], prompt_tokens, "{name}");
    }
}

#[test]
fn soft_prompts_and_first_logits_equal_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundle(dir.path());
    let model = Arc::new(LanguageModel::load(&bundle.join("llm.gguf")).unwrap());
    let options = ContextOptions {
        n_ctx: 2048,
        n_batch: 2048,
        n_ubatch: 512,
        n_seq_max: 1,
        cache_type: CacheType::F32,
        flash_attention: FlashAttention::Auto,
        threads: 2,
    };
    let mut context =
        Context::new(model.clone(), &options, Arc::new(AtomicBool::new(false))).unwrap();
    let (mut worst_row, mut worst_logit) = (0f32, 0f32);
    // From the bundle, and from the directory that transformers saved.
    for path in [bundle, checkpoint()] {
        let encoder = ImageEncoder::open(&path, Products::default(), &Device::Cpu).unwrap();
        for case in cases() {
            let pixels: Vec<Tensor> = case
                .pictures
                .iter()
                .map(|name| {
                    encoder
                        .pixels(&std::fs::read(picture(name)).unwrap())
                        .unwrap()
                })
                .collect();
            let pixels = Tensor::stack(&pixels, 0).unwrap();
            let instructions = vec![case.instruction.as_str(); case.pictures.len()];
            let encoding = encoder.forward(&pixels, &instructions).unwrap();
            let soft_prompt = encoding.soft_prompt.flatten_all().unwrap();
            let soft_prompt: Vec<f32> = soft_prompt.to_vec1().unwrap();
            let difference = max_difference(&soft_prompt, &case.soft_prompt);
            assert!(difference < 1e-4, "{:?}: {difference}", case.instruction);
            worst_row = worst_row.max(difference);

            context.remove(0);
            context.clear();
            let mut position = 0;
            for row in soft_prompt.chunks(model.n_embd()) {
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
            let logits = context.logits(last.unwrap()).unwrap();
            let difference = max_difference(logits, &case.first_logits);
            assert!(difference < 1e-3, "{:?}: {difference}", case.instruction);
            worst_logit = worst_logit.max(difference);
        }
    }
    println!("soft prompts {worst_row:.1e}, first logits {worst_logit:.1e}");
}

#[test]
fn the_prompt_begins_with_the_token_that_the_reference_begins_with() {
    // `</s>`, not the vocabulary's own BOS, which is `<s>` in any Vicuna.
    let model = LanguageModel::load(&golden("instructblip/llm.gguf")).unwrap();
    assert_eq!((model.bos(), model.eos()), (Some(1), Some(2)));
    for case in cases() {
        let mut ids = vec![2];
        ids.extend(model.tokenize(&case.instruction, false).unwrap());
        assert_eq!(ids, case.prompt_ids, "{:?}", case.instruction);
    }
}

fn open(bundle: &Path, slots: usize, for_throughput: bool) -> Model {
    let options = ModelOptions {
        slots,
        for_throughput,
        threads: Some(2),
        cache_type: CacheType::F32,
        ..ModelOptions::default()
    };
    Model::open(bundle, &options).unwrap()
}

fn submit(model: &Model, case: &Case) -> Receiver<Event> {
    let images = case.pictures.iter();
    model
        .submit(Request {
            images: images
                .map(|name| std::fs::read(picture(name)).unwrap().into())
                .collect(),
            max_tokens: Some(MAX_NEW_TOKENS),
            ..Request::new(Prompt::Raw(case.instruction.clone()), Sampling::default())
        })
        .unwrap()
}

fn answer_ids(mut events: Receiver<Event>) -> Vec<i32> {
    let mut ids = Vec::new();
    loop {
        match events.blocking_recv().unwrap() {
            Event::Token { id, .. } => ids.push(id),
            Event::Done(_) => return ids,
            Event::Error(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_picture_asked_about_again_does_not_go_through_the_vit_again() {
    let dir = tempfile::tempdir().unwrap();
    let model = open(&bundle(dir.path()), 1, false);
    for (asked, case) in (1..).zip(cases()) {
        assert_eq!(answer_ids(submit(&model, &case)), case.answer_ids);
        let activity = model.vision_activity();
        // Five pictures in all, four questions about each, then the videos.
        let pictures = u64::div_ceil(asked, 4);
        assert_eq!(activity.pictures, u64::min(pictures, 5));
        let videos = u64::saturating_sub(asked, 20);
        assert_eq!(activity.readings, asked + 3 * videos);
    }
}

#[test]
fn answers_do_not_depend_on_what_runs_beside_them() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundle(dir.path());
    for (for_throughput, workers) in [(false, 1), (true, 2)] {
        let model = open(&bundle, 8, for_throughput);
        assert_eq!(model.engine().options().workers, Some(workers));
        for _ in 0..2 {
            let running: Vec<_> = cases().iter().map(|case| submit(&model, case)).collect();
            for (events, case) in running.into_iter().zip(cases()) {
                let name = format!("{:?} {:?}", case.pictures, case.instruction);
                assert_eq!(answer_ids(events), case.answer_ids, "{name}");
            }
        }
        let VisionActivity {
            pictures, readings, ..
        } = model.vision_activity();
        let shown: usize = cases().iter().map(|case| case.pictures.len()).sum();
        assert_eq!((pictures, readings), (5, 2 * shown as u64));
    }
}

#[test]
fn encode_writes_what_the_q_former_reads_with_the_instruction() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundle(dir.path());
    let out = dir.path().join("x.safetensors");
    let case = cases()
        .into_iter()
        .find(|case| case.n_tokens == 200)
        .unwrap();
    stdout(
        qbridge(["encode", "--instruction", &case.instruction])
            .arg(&bundle)
            .arg(picture(&case.pictures[0]))
            .arg("--out")
            .arg(&out),
    );
    let bytes = std::fs::read(&out).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let soft_prompt = floats(&tensors, "soft_prompt");
    assert!(max_difference(&soft_prompt, &case.soft_prompt) < 1e-4);
}

#[test]
fn captions_are_answers_to_the_caption_prompt() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundle(dir.path());
    let flags = ["--cache-type", "f32", "--max-tokens", "8"];
    let lines = stdout(
        qbridge(["caption"])
            .args(flags)
            .arg(&bundle)
            .args(["ramp", "face"].map(picture)),
    );
    for (line, name) in lines.lines().zip(["ramp", "face"]) {
        let caption: Value = serde_json::from_str(line).unwrap();
        let answer = stdout(
            qbridge(["ask"])
                .args(flags)
                .arg(&bundle)
                .arg(picture(name))
                .arg("A short image caption."),
        );
        assert_eq!(caption["caption"], answer.trim(), "{name}");
    }
    assert_eq!(lines.lines().count(), 2);
}

#[test]
fn the_server_takes_frames_and_counts_their_rows() {
    use base64::Engine;
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundle(dir.path());
    let server = Server::start(&bundle, &["--cache-type", "f32"]);
    for case in cases() {
        if case.instruction.is_empty() {
            continue;
        }
        let image = |name: &String| {
            let bytes = std::fs::read(picture(name)).unwrap();
            let data = base64::engine::general_purpose::STANDARD.encode(bytes);
            json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{data}")}})
        };
        let mut content: Vec<Value> = case.pictures.iter().map(image).collect();
        content.push(json!({"type": "text", "text": case.instruction}));
        let (status, body) = server.post(
            "/chat/completions",
            &json!({"model": "tiny", "temperature": 0, "max_tokens": MAX_NEW_TOKENS,
                    "messages": [{"role": "user", "content": content}]}),
        );
        assert_eq!(status, 200, "{body}");
        let image_tokens = N_QUERIES * case.pictures.len();
        let usage = &body["usage"];
        assert_eq!(usage["prompt_tokens_details"]["image_tokens"], image_tokens);
        assert_eq!(usage["prompt_tokens"], image_tokens + case.prompt_ids.len());
        assert_eq!(usage["completion_tokens"], case.answer_ids.len());
    }
}

/// Copies the golden checkpoint, to be damaged.
fn copied_checkpoint(dir: &Path) -> PathBuf {
    let copy = dir.join("checkpoint");
    for (from, to) in [
        (checkpoint(), copy.clone()),
        (
            checkpoint().join("qformer_tokenizer"),
            copy.join("qformer_tokenizer"),
        ),
    ] {
        std::fs::create_dir(&to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            if entry.path().is_file() {
                std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        }
    }
    copy
}

#[test]
fn checkpoints_that_are_not_whole_are_refused_in_one_sentence() {
    type Damage = fn(&Path);
    let edit = |path: &Path, from: &str, to: &str| {
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(path, text.replacen(from, to, 1)).unwrap();
    };
    let cases: [(Damage, &[&str]); 4] = [
        (
            |dir| std::fs::remove_dir_all(dir.join("qformer_tokenizer")).unwrap(),
            &[
                "qformer_tokenizer",
                "neither tokenizer.json nor vocab.txt",
                "processor",
            ],
        ),
        (
            |dir| {
                let path = dir.join("qformer_tokenizer/tokenizer.json");
                let text = std::fs::read_to_string(&path).unwrap();
                let extra = r#"{"id": 427, "content": "[ENC]", "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": true}, "#;
                let text = text.replacen(
                    "\"added_tokens\": [",
                    &format!("\"added_tokens\": [{extra}"),
                    1,
                );
                std::fs::write(path, text).unwrap();
            },
            &["tokenizer.json", "428 tokens", "427 word embeddings"],
        ),
        (
            |dir| {
                // As a BLIP-2 checkpoint's, which has none.
                let path = dir.join("model.safetensors");
                let bytes = std::fs::read(&path).unwrap();
                let text = "qformer.embeddings.word_embeddings.weight";
                let at = bytes.windows(text.len()).position(|w| w == text.as_bytes());
                let mut bytes = bytes.clone();
                bytes[at.unwrap()] = b'x';
                std::fs::write(path, bytes).unwrap();
            },
            &[
                "holds no qformer.embeddings.word_embeddings.weight",
                "instructblip",
            ],
        ),
        (|_| (), &["[427, 32]", "[512, 32]"]),
    ];
    for (i, (damage, expected)) in cases.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let copy = copied_checkpoint(dir.path());
        damage(&copy);
        if i == 3 {
            edit(
                &copy.join("config.json"),
                "\"vocab_size\": 427",
                "\"vocab_size\": 512",
            );
        }
        let out = dir.path().join("bundle");
        let error = one_line_error(&mut bundle_command(&copy, &out));
        for part in expected {
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
        assert!(!out.exists());
    }
}

#[test]
fn bundles_that_contradict_themselves_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundle(dir.path());
    let path = bundle.join("bundle.toml");
    let whole = std::fs::read_to_string(&path).unwrap();
    let tokenizer = whole.find("[files.qformer_tokenizer]").unwrap();
    let next = whole[tokenizer + 1..].find("[files.").unwrap() + tokenizer + 1;
    let without_tokenizer = format!("{}{}", &whole[..tokenizer], &whole[next..]);
    for (text, expected) in [
        (without_tokenizer, "files.qformer_tokenizer is missing"),
        (
            whole.replace("\"instructblip\"", "\"blip-2\""),
            "family = \"blip-2\"",
        ),
        (
            whole.replace("\"instructblip\"", "\"blip-3\""),
            "\"blip-3\" is not known",
        ),
        (
            whole.replace(
                "use_qformer_text_input = true",
                "use_qformer_text_input = false",
            ),
            "use_qformer_text_input = false",
        ),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = one_line_error(qbridge(["inspect"]).arg(&bundle));
        assert!(error.contains(expected), "{error}");
    }
    std::fs::write(&path, &whole).unwrap();
    let printed = stdout(qbridge(["inspect", "--verify"]).arg(&bundle));
    assert!(printed.contains("(instructblip)"), "{printed}");
    assert!(printed.contains("qformer_tokenizer.json"), "{printed}");
}

#[test]
fn instructions_where_none_is_read_and_none_where_one_is() {
    let dir = tempfile::tempdir().unwrap();
    let encode = |model: &Path, extra: &[&str]| {
        one_line_error(
            qbridge(["encode"])
                .arg(model)
                .arg(picture("ramp"))
                .args(extra)
                .arg("--out")
                .arg(dir.path().join("x.safetensors")),
        )
    };
    let blip2 = golden("llm/checkpoint");
    let error = encode(&blip2, &["--instruction", "what is this?"]);
    assert!(error.contains("reads the picture alone"), "{error}");
    let error = encode(&checkpoint(), &[]);
    assert!(error.contains("reads an instruction"), "{error}");

    // A frame that is no picture is named, and a model of one picture says so.
    let text = dir.path().join("text.png");
    std::fs::write(&text, "no picture").unwrap();
    let bundle = bundle(dir.path());
    let mut ask = qbridge(["ask"]);
    ask.arg(&bundle).arg(picture("ramp")).arg("what?");
    let error = one_line_error(ask.arg("--frame").arg(&text));
    assert!(error.contains("text.png"), "{error}");
    let single = dir.path().join("single");
    stdout(
        qbridge(["bundle"])
            .arg(&blip2)
            .arg("--llm")
            .arg(golden("llm/llm.gguf"))
            .arg("--out")
            .arg(&single),
    );
    let mut ask = qbridge(["ask"]);
    ask.arg(&single).arg(picture("ramp")).arg("what?");
    let error = one_line_error(ask.arg("--frame").arg(picture("face")));
    assert!(error.contains("at most 1 image"), "{error}");
}
