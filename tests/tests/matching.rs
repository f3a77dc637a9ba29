//! `qbridge match`, `embed` and `caption` with the heads of BLIP-2's first stage, through the built
//! program, against `tests/golden/make_stage1.py`; and what such bundles are refused.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use candle_core::{Device, Tensor};
use qbridge_tests::hub::{Hub, MODEL, files_of};
use qbridge_tests::{golden, one_line_error, qbridge, stdout};
use serde_json::Value;
use tempfile::TempDir;

const TOLERANCE: f32 = 1e-4;

fn stage1(name: &str) -> PathBuf {
    golden(&format!("stage1/{name}"))
}

fn golden_json() -> Value {
    serde_json::from_slice(&std::fs::read(stage1("golden.json")).unwrap()).unwrap()
}

fn picture(name: &str) -> PathBuf {
    golden(&format!("llm/pictures/{name}.png"))
}

fn reference(tensor: &str) -> Tensor {
    let path = stage1("checkpoint.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()[tensor].clone()
}

fn converted(sources: &[PathBuf], args: &[&str]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("bundle");
    let mut convert = qbridge(["convert", "--vision", "f32"]);
    convert.args(sources).args(args).arg("--out").arg(&out);
    stdout(&mut convert);
    (dir, out)
}

fn matching() -> (TempDir, PathBuf) {
    converted(&[stage1("checkpoint")], &[])
}

fn tokenizer() -> String {
    let path = golden("instructblip/checkpoint/qformer_tokenizer");
    path.to_str().unwrap().to_owned()
}

fn captioning() -> (TempDir, PathBuf) {
    let sources = [stage1("lavis.pth"), golden("lavis/eva_vit_g.pth")];
    converted(&sources, &["--qformer-tokenizer", &tokenizer()])
}

fn lines(text: &str) -> Vec<Value> {
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().unwrap()
}

#[track_caller]
fn near(found: &Value, expected: f32) {
    let found = found.as_f64().unwrap() as f32;
    assert!((found - expected).abs() < TOLERANCE, "{found} {expected}");
}

#[test]
fn texts_are_scored_as_transformers_scores_them() {
    let (_dir, bundle) = matching();
    let golden = golden_json();
    let texts: Vec<&String> = golden["texts"].as_object().unwrap().keys().collect();
    let similarities = reference("contrastive").to_vec2::<f32>().unwrap();
    let logits = reference("match_logits").to_vec2::<f32>().unwrap();
    for (i, name) in golden["pictures"].as_array().unwrap().iter().enumerate() {
        let mut run = qbridge(["match", "--json"]);
        run.arg(&bundle).arg(picture(name.as_str().unwrap()));
        let found = lines(&stdout(run.args(&texts)));
        assert_eq!(found.len(), texts.len());
        for (j, found) in found.iter().enumerate() {
            assert_eq!(found["text"], **texts[j]);
            near(&found["similarity"], similarities[4 * i][j]);
            // The pairs of the reference: four texts for each picture.
            if j / 4 == i {
                let [no, yes] = logits[j][..] else { panic!() };
                near(&found["probability"], 1.0 / (1.0 + (no - yes).exp()));
            }
        }
    }
    let table = stdout(qbridge(["match"]).arg(&bundle).args([
        picture("face").to_str().unwrap(),
        "a face",
        "two boxes on a table",
    ]));
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[0], "similarity  probability  text");
    assert!(rows[2].ends_with("  two boxes on a table"), "{table}");
}

#[test]
fn texts_may_come_on_standard_input() {
    let (dir, bundle) = matching();
    let list = dir.path().join("texts.txt");
    std::fs::write(&list, "a face\nblue\n").unwrap();
    let run = |image: &Path| {
        let mut run = qbridge(["match", "--json"]);
        run.arg(&bundle).arg(image).arg("-");
        run.stdin(Stdio::from(std::fs::File::open(&list).unwrap()));
        run
    };
    let found = lines(&stdout(&mut run(&picture("face"))));
    assert_eq!((found.len(), &found[1]["text"]), (2, &Value::from("blue")));
    let error = one_line_error(&mut run(Path::new("-")));
    assert!(error.contains("the picture or the texts"), "{error}");
}

#[test]
fn features_are_those_of_transformers() {
    let (_dir, bundle) = matching();
    let text = "a face";
    let mut run = qbridge(["embed"]);
    run.arg(&bundle).arg(picture("ramp")).arg(picture("boxes"));
    let found = lines(&stdout(run.args(["--text", text])));
    let images = reference("image_features").to_vec3::<f32>().unwrap();
    for (found, (name, expected)) in found
        .iter()
        .zip([("ramp", &images[0]), ("boxes", &images[4])])
    {
        assert_eq!(found["image"], picture(name).to_str().unwrap());
        let rows = found["features"].as_array().unwrap();
        assert_eq!(rows.len(), expected.len());
        for (row, expected) in rows.iter().zip(expected) {
            for (value, expected) in row.as_array().unwrap().iter().zip(expected) {
                near(value, *expected);
            }
        }
    }
    let texts = reference("text_features").to_vec2::<f32>().unwrap();
    assert_eq!(found[2]["text"], text);
    let values = found[2]["features"].as_array().unwrap();
    assert_eq!(values.len(), texts[2].len());
    for (value, expected) in values.iter().zip(&texts[2]) {
        near(value, *expected);
    }
}

#[test]
fn captions_are_rows_like_any_other() {
    let (_dir, bundle) = captioning();
    let names = ["face", "boxes", "circle"];
    let caption = |args: &[&str]| {
        let mut run = qbridge(["caption", "--quiet"]);
        run.args(args).arg(&bundle).args(names.map(picture));
        lines(&stdout(&mut run))
    };
    let rows = caption(&["--scores"]);
    assert_eq!(rows.len(), 3);
    for (row, name) in rows.iter().zip(names) {
        assert_eq!(row["image"], picture(name).to_str().unwrap());
        assert!(!row["caption"].as_str().unwrap().is_empty());
        assert!(row["score"].as_f64().unwrap() < 0.0);
        let usage = &row["usage"];
        assert_eq!(usage["image_tokens"], 6);
        // LAVIS's own limits.
        let n_tokens = usage["completion_tokens"].as_u64().unwrap();
        assert!((10..=29).contains(&n_tokens), "{row}");
    }
    for row in caption(&["--max-tokens", "4", "--min-tokens", "4", "--num-beams", "1"]) {
        assert_eq!(row["usage"]["completion_tokens"], 4);
        assert_eq!(row["finish_reason"], "length");
    }
    let mut run = qbridge(["caption", "--max-tokens", "161"]);
    let error = one_line_error(run.arg(&bundle).arg(picture("face")));
    assert!(
        error.contains("161 tokens, and the Q-Former has 160 positions"),
        "{error}"
    );
    for flag in ["--prompt", "--prefix", "--temperature", "--captions"] {
        let value = if flag == "--captions" { "2" } else { "1" };
        let mut run = qbridge(["caption"]);
        run.arg(&bundle).arg(picture("face")).args([flag, value]);
        let error = one_line_error(&mut run);
        assert!(error.contains(flag), "{error}");
    }
}

#[test]
fn without_a_language_model_there_are_no_answers() {
    let (dir, bundle) = matching();
    let image = picture("face");
    let ask = |bundle: &Path| {
        let mut ask = qbridge(["ask"]);
        ask.arg(bundle).arg(&image).arg("what is this?");
        ask
    };
    let mut encode = qbridge(["encode"]);
    encode.arg(&bundle).arg(&image).arg("--out");
    encode.arg(dir.path().join("out.safetensors"));
    for mut command in [ask(&bundle), encode] {
        let error = one_line_error(&mut command);
        assert!(error.contains("no language model"), "{error}");
        assert!(error.contains("qbridge match"), "{error}");
    }
    let mut caption = qbridge(["caption"]);
    caption.arg(&bundle).arg(&image);
    let error = one_line_error(&mut caption);
    assert!(error.contains("no head that writes captions"), "{error}");

    let inspected = stdout(qbridge(["inspect", "--verify"]).arg(&bundle));
    assert!(inspected.contains("24 features"), "{inspected}");
    assert!(!inspected.contains("LLM"), "{inspected}");
}

#[test]
fn bundles_with_a_language_model_do_not_match() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("bundle");
    let mut convert = qbridge(["bundle"]);
    convert.arg(golden("llm/checkpoint")).arg("--llm");
    convert
        .arg(golden("llm/llm.gguf"))
        .arg("--out")
        .arg(&bundle);
    stdout(&mut convert);
    let mut run = qbridge(["match"]);
    run.arg(&bundle).arg(picture("face")).arg("a face");
    let error = one_line_error(&mut run);
    assert!(error.contains("no heads"), "{error}");
}

#[test]
fn what_such_a_model_cannot_have_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("bundle");
    let refused = |mut command: Command, words: &[&str]| {
        let error = one_line_error(command.arg("--out").arg(&out));
        for word in words {
            assert!(error.contains(word), "{word} is not in: {error}");
        }
        assert!(!out.exists());
    };
    let convert = |sources: &[PathBuf], args: &[&str]| {
        let mut command = qbridge(["convert"]);
        command.args(sources).args(args);
        command
    };
    let gguf = golden("llm/llm.gguf");
    let hugging_face = [stage1("checkpoint")];
    for (flag, value) in [
        ("--llm", gguf.to_str().unwrap()),
        ("--llm-quant", "Q8_0"),
        ("--layout", "blip2"),
    ] {
        refused(
            convert(&hugging_face, &[flag, value]),
            &["first stage", flag],
        );
    }
    let tokenizer = tokenizer();
    let lavis = |file: &str, tower: &str| [stage1(file), golden(tower)];
    let with_tokenizer = ["--qformer-tokenizer", tokenizer.as_str()];
    let sources = lavis("lavis.pth", "lavis/eva_vit_g.pth");
    refused(convert(&sources, &[]), &["--qformer-tokenizer"]);
    let sources = lavis("lavis.pth", "lavis/clip_vit_L.pth");
    refused(convert(&sources, &with_tokenizer), &["176", "128"]);
    let sources = [stage1("lavis.pth")];
    refused(convert(&sources, &with_tokenizer), &["no vision tower"]);
    // A tokenizer with more words than the Q-Former has embeddings of.
    let large = dir.path().join("vocab.txt");
    let words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(str::to_owned);
    let words: Vec<String> = words
        .into_iter()
        .chain((0..500).map(|i| format!("word{i}")))
        .collect();
    std::fs::write(&large, words.join("\n")).unwrap();
    let sources = lavis("lavis.pth", "lavis/eva_vit_g.pth");
    let args = ["--qformer-tokenizer", large.to_str().unwrap()];
    refused(
        convert(&sources, &args),
        &["506 tokens", "430 word embeddings"],
    );
}

#[test]
fn a_model_of_the_hub_becomes_the_same_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::of(&files_of(&stage1("checkpoint")));
    let pulled = dir.path().join("pulled");
    let pull = |args: &[&str]| {
        let mut pull = qbridge(["pull", MODEL, "--endpoint", &hub.endpoint]);
        pull.args(["--vision", "f32"]).args(args);
        pull.arg("--cache").arg(dir.path().join("cache"));
        pull.arg("--out").arg(&pulled);
        pull.env_remove("HF_TOKEN").env("NO_PROXY", "127.0.0.1");
        pull
    };
    let error = one_line_error(&mut pull(&["--llm-quant", "Q8_0"]));
    assert!(error.contains("leave out --llm-quant"), "{error}");
    assert!(hub.asked("/blob/").is_empty());
    stdout(&mut pull(&[]));
    let (_dir, bundle) = matching();
    let (mut pulled, mut made) = (files_of(&pulled), files_of(&bundle));
    for files in [&mut pulled, &mut made] {
        assert!(files.remove("bundle.toml").is_some());
    }
    assert_eq!(pulled.len(), 3);
    assert!(pulled == made);
}
