//! Each published layout from its files to answers: a small random checkpoint
//! goes through `qbridge convert`, the bundle is loaded, and every stage is
//! compared with transformers (`tests/golden/make_layouts.py`).

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bridge::engine::{CacheType, FlashAttention, Sampling};
use bridge::event::Event;
use bridge::image_encoder::ImageEncoder;
use bridge::language_model::LanguageModel;
use bridge::llama::{Context, ContextOptions};
use bridge::model::{Model, ModelOptions, Prompt, Request};
use candle_core::{Device, Tensor};
use prompts::{Message, Part, Role};
use qbridge_tests::golden_model::max_difference;
use qbridge_tests::{golden, qbridge, saved, stdout};
use qformer::checkpoint::Products;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::mpsc::Receiver;

/// What the project promises of vision, query embeddings and soft prompt.
const STAGE_TOLERANCE: f32 = 1e-4;
/// And of the first logits, with the GELU that llama.cpp computes.
const LOGIT_TOLERANCE: f32 = 1e-3;

/// Texts for each picture.
const PER_PICTURE: usize = 4;

/// A layout's golden files, and the bundle that was made of its checkpoint.
struct Layout {
    name: &'static str,
    golden: Value,
    reference: std::collections::HashMap<String, Tensor>,
    bundle: PathBuf,
    _dir: TempDir,
}

impl Layout {
    /// Of a directory that transformers saved.
    fn hugging_face(name: &'static str, tokenizer: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = saved(dir.path(), name, tokenizer);
        Self::converted(name, dir, &[checkpoint], None)
    }

    /// Of `.pth` files around a Vicuna.
    fn minigpt4(name: &'static str, others: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let llm = saved(dir.path(), "vicuna-v0", "sentencepiece");
        let mut sources = vec![golden(&format!("layouts/{name}/pretrained.pth"))];
        sources.extend(others.iter().map(|file| golden(&format!("lavis/{file}"))));
        Self::converted(name, dir, &sources, Some(&llm))
    }

    fn converted(name: &'static str, dir: TempDir, from: &[PathBuf], llm: Option<&Path>) -> Self {
        let bundle = dir.path().join("bundle");
        let mut convert = qbridge(["convert", "--vision", "f32", "--llm-quant", "f32"]);
        convert.args(from).arg("--out").arg(&bundle);
        if let Some(llm) = llm {
            convert.arg("--llm").arg(llm);
        }
        stdout(&mut convert);
        let text = std::fs::read(golden(&format!("layouts/{name}.json"))).unwrap();
        let path = golden(&format!("layouts/{name}.safetensors"));
        Self {
            name,
            golden: serde_json::from_slice(&text).unwrap(),
            reference: candle_core::safetensors::load(path, &Device::Cpu).unwrap(),
            bundle,
            _dir: dir,
        }
    }

    /// All pairs of picture and text.
    fn cases(&self) -> &[Value] {
        let cases = self.golden["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 20);
        for length in [0, 200] {
            assert!(cases.iter().any(|case| case["n_tokens"] == length));
        }
        cases
    }

    /// A tensor's rows for case `i`: its own, or its picture's, where they are kept.
    fn of_case(&self, tensor: &str, i: usize) -> Option<Tensor> {
        let tensor = &self.reference[tensor];
        let n = tensor.dim(0).unwrap();
        let place = if n == self.cases().len() {
            i
        } else {
            i / PER_PICTURE
        };
        (place < n).then(|| tensor.narrow(0, place, 1).unwrap())
    }

    /// What to ask for case `i`, so that the layout makes the reference's prompt of it.
    fn prompt(&self, case: &Value) -> Prompt {
        let text = case["text"].as_str().unwrap().to_owned();
        let is_caption = text.is_empty() && !self.name.starts_with("minigpt4");
        // BLIP-2's layout puts a question around a text.
        if self.name.starts_with("blip2") || is_caption {
            return Prompt::Raw(text);
        }
        let mut parts = vec![Part::Image(0)];
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        let role = Role::User;
        Prompt::Chat(vec![Message { role, parts }])
    }

    /// Vision, query embeddings, soft prompt and first logits of all cases.
    fn stages_equal_the_reference(&self) {
        let encoder = ImageEncoder::open(&self.bundle, Products::default(), &Device::Cpu).unwrap();
        let llm = LanguageModel::load(&self.bundle.join("llm.gguf")).unwrap();
        let mut logits_of = Logits::new(Arc::new(llm));
        let stages = ["vision", "queries", "soft_prompt"];
        let mut worst = [0f32; 3];
        // With llama.cpp's GELU, and with the reference's, where they differ.
        let is_t5 = self.name.ends_with("t5");
        let kinds: &[&str] = match is_t5 {
            true => &["first_logits_table", "first_logits"],
            false => &["first_logits"],
        };
        let mut worst_logit = vec![0f32; kinds.len()];
        for (i, case) in self.cases().iter().enumerate() {
            let pixels = encoder.pixels(&picture(case)).unwrap();
            let text = case["text"].as_str().unwrap();
            let instructions = [text];
            let read = usize::from(encoder.reads_instruction());
            let encoding = encoder
                .forward(&pixels.unsqueeze(0).unwrap(), &instructions[..read])
                .unwrap();
            let found = [&encoding.vision, &encoding.queries, &encoding.soft_prompt];
            for ((stage, found), worst) in stages.iter().zip(found).zip(&mut worst) {
                let Some(expected) = self.of_case(stage, i) else {
                    continue;
                };
                let difference = max_difference(found, &expected);
                assert!(
                    difference < STAGE_TOLERANCE,
                    "{} {stage} of {text:?}: {difference}",
                    self.name
                );
                *worst = worst.max(difference);
            }
            let logits = logits_of.after(&encoding.soft_prompt, &case["prompt_ids"]);
            for (kind, worst) in kinds.iter().zip(&mut worst_logit) {
                let expected = self.of_case(kind, i).unwrap();
                *worst = worst.max(max_difference(&logits, &expected));
            }
        }
        println!(
            "{}: {stages:?} {worst:?}, {kinds:?} {worst_logit:?}",
            self.name
        );
        assert!(worst_logit[0] < LOGIT_TOLERANCE, "{worst_logit:?}");
        if is_t5 {
            // A table of f16 is how llama.cpp computes T5's GELU on a CPU; that much, and
            // no more, is between its logits and those with the exact one.
            let table = &self.golden["largest_difference_of_the_table"];
            let explained = table.as_f64().unwrap() as f32;
            assert!(
                worst_logit[1] < explained + LOGIT_TOLERANCE,
                "{worst_logit:?}"
            );
        }
    }

    /// Greedy and beam answers of all cases, through the loaded bundle.
    fn answers_equal_the_reference(&self) {
        let options = ModelOptions {
            slots: 4,
            num_beams: Some(5),
            cache_type: CacheType::F32,
            ..ModelOptions::default()
        };
        let model = Model::open(&self.bundle, &options).unwrap();
        let settings = self.golden["settings"].as_array().unwrap();
        let n_beams = settings.iter().filter(|setting| setting["num_beams"] == 5);
        assert!(n_beams.count() >= 3 && settings[0]["num_beams"] == 1);
        for (i, setting) in settings.iter().enumerate() {
            let running: Vec<Receiver<Event>> = self
                .cases()
                .iter()
                .map(|case| self.submit(&model, case, sampling(setting)))
                .collect();
            for (events, case) in running.into_iter().zip(self.cases()) {
                let what = format!("{} {setting} {case}", self.name);
                let (ids, prompt_tokens) = answer(events);
                assert_eq!(ids, token_ids(&case["answers"][i]), "{what}");
                let n_queries = self.golden["num_query_tokens"].as_u64().unwrap() as usize;
                let n_text = token_ids(&case["prompt_ids"]).len();
                assert_eq!(prompt_tokens, n_queries + n_text, "{what}");
            }
        }
    }

    fn submit(&self, model: &Model, case: &Value, sampling: Sampling) -> Receiver<Event> {
        let max_tokens = self.golden["max_new_tokens"].as_u64().unwrap();
        model
            .submit(Request {
                images: vec![picture(case).into()],
                max_tokens: Some(max_tokens as usize),
                ..Request::new(self.prompt(case), sampling)
            })
            .unwrap()
    }

    /// The first pairs through the built program, which takes the settings that the
    /// checkpoint's `generation_config.json` names from the bundle.
    fn the_program_answers_by_the_checkpoint_s_own_settings(&self) {
        for case in &self.cases()[..3] {
            let mut ask = qbridge(["ask", "--json", "--cache-type", "f32"]);
            if let Prompt::Raw(_) = self.prompt(case) {
                ask.arg("--raw");
            }
            ask.arg(&self.bundle)
                .arg(picture_path(case))
                .arg(case["text"].as_str().unwrap());
            let answer: Value = serde_json::from_str(&stdout(&mut ask)).unwrap();
            assert_eq!(answer["token_ids"], case["answers"][1], "{case}");
        }
    }
}

/// The language model alone, for the logits behind a prompt.
struct Logits {
    model: Arc<LanguageModel>,
    context: Context,
}

/// A row of a prompt.
enum Row<'a> {
    Token(i32),
    Soft(&'a [f32]),
}

impl Logits {
    fn new(model: Arc<LanguageModel>) -> Self {
        let options = ContextOptions {
            n_ctx: 1024,
            n_batch: 1024,
            n_ubatch: 1024,
            n_seq_max: 1,
            cache_type: CacheType::F32,
            flash_attention: FlashAttention::Auto,
            threads: 2,
        };
        let stop = Arc::new(AtomicBool::new(false));
        let context = Context::new(model.clone(), &options, stop).unwrap();
        Self { model, context }
    }

    /// Logits `[1, vocabulary]` of the first token of an answer. `ids` are the text's,
    /// behind the soft prompt, or in two lists, before and behind it.
    fn after(&mut self, soft_prompt: &Tensor, ids: &Value) -> Tensor {
        let context = &mut self.context;
        context.remove(0);
        context.clear();
        let (before, after) = match &ids[0] {
            Value::Array(_) => (token_ids(&ids[0]), token_ids(&ids[1])),
            _ => (Vec::new(), token_ids(ids)),
        };
        let values: Vec<f32> = soft_prompt.flatten_all().unwrap().to_vec1().unwrap();
        let rows: Vec<Row> = (before.into_iter().map(Row::Token))
            .chain(values.chunks(self.model.n_embd()).map(Row::Soft))
            .chain(after.into_iter().map(Row::Token))
            .collect();
        let start = self.model.decoder_start();
        let mut last = None;
        for (position, row) in rows.iter().enumerate() {
            // An encoder gives all its rows to the decoder.
            let output = start.is_some() || position + 1 == rows.len();
            let added = match row {
                Row::Token(id) => context.add_token(0, position, *id, output),
                Row::Soft(values) => context.add_embedding(0, position, values, output),
            };
            last = Some(added.unwrap());
        }
        if let Some(start) = start {
            context.encode().unwrap();
            context.clear();
            last = Some(context.add_token(0, 0, start, true).unwrap());
        }
        context.process().unwrap();
        let logits = context.logits(last.unwrap()).unwrap();
        Tensor::new(logits, &Device::Cpu)
            .unwrap()
            .unsqueeze(0)
            .unwrap()
    }
}

fn picture_path(case: &Value) -> PathBuf {
    let name = case["picture"].as_str().unwrap();
    golden(&format!("llm/pictures/{name}.png"))
}

fn picture(case: &Value) -> Vec<u8> {
    std::fs::read(picture_path(case)).unwrap()
}

/// The ids of a list, or of a list of lists.
fn token_ids(value: &Value) -> Vec<i32> {
    match value.as_array() {
        Some(list) => list.iter().flat_map(token_ids).collect(),
        None => vec![i32::try_from(value.as_i64().unwrap()).unwrap()],
    }
}

/// What `generate` of transformers was asked for.
fn sampling(setting: &Value) -> Sampling {
    let number = |name: &str, default| setting[name].as_f64().unwrap_or(default);
    Sampling {
        num_beams: number("num_beams", 1.0) as usize,
        length_penalty: number("length_penalty", 1.0) as f32,
        repetition_penalty: number("repetition_penalty", 1.0) as f32,
        min_tokens: number("min_new_tokens", 0.0) as usize,
        ..Sampling::default()
    }
}

/// Ids of an answer, and rows of its prompt.
fn answer(mut events: Receiver<Event>) -> (Vec<i32>, usize) {
    let mut ids = Vec::new();
    loop {
        match events.blocking_recv().unwrap() {
            Event::Token { id, .. } => ids.push(id),
            Event::Done(summary) => return (ids, summary.usage.prompt_tokens),
            Event::Error(error) => panic!("{error}"),
        }
    }
}

#[test]
fn blip2_opt() {
    let layout = Layout::hugging_face("blip2_opt", "byte_level");
    layout.stages_equal_the_reference();
    layout.answers_equal_the_reference();
    layout.the_program_answers_by_the_checkpoint_s_own_settings();
}

#[test]
fn blip2_t5() {
    let layout = Layout::hugging_face("blip2_t5", "unigram");
    layout.stages_equal_the_reference();
    layout.answers_equal_the_reference();
    layout.the_program_answers_by_the_checkpoint_s_own_settings();
}

#[test]
fn instructblip_llama() {
    let layout = Layout::hugging_face("instructblip_llama", "sentencepiece");
    layout.stages_equal_the_reference();
    layout.answers_equal_the_reference();
    layout.the_program_answers_by_the_checkpoint_s_own_settings();
}

#[test]
fn instructblip_t5() {
    let layout = Layout::hugging_face("instructblip_t5", "unigram");
    layout.stages_equal_the_reference();
    layout.answers_equal_the_reference();
    layout.the_program_answers_by_the_checkpoint_s_own_settings();
}

#[test]
fn minigpt4_with_a_q_former() {
    let others = ["blip2_pretrained_opt.pth", "eva_vit_g.pth"];
    let layout = Layout::minigpt4("minigpt4", &others);
    layout.stages_equal_the_reference();
    layout.answers_equal_the_reference();
}

#[test]
fn minigpt4_without_a_q_former() {
    let layout = Layout::minigpt4("minigpt4_llama2", &["eva_vit_g.pth"]);
    layout.stages_equal_the_reference();
    layout.answers_equal_the_reference();
}
