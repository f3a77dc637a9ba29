//! Flan-T5's activations go beyond f16 (65504). The golden T5 is made to by factors that
//! are powers of two and cancel out: its answers must stay what they are.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use qbridge_tests::golden_model::{Stored, write};
use qbridge_tests::{golden, qbridge, saved, stdout};
use qformer::checkpoint::Checkpoint;
use safetensors::Dtype;
use serde_json::Value;

const F16_MAX: f64 = 65504.0;

fn golden_json() -> Value {
    serde_json::from_slice(&std::fs::read(golden("layouts/blip2_t5.json")).unwrap()).unwrap()
}

/// The checkpoint with each tensor multiplied by `2 ^ exponent(name)`, in f32.
fn scaled(dir: &Path, exponent: impl Fn(&str) -> i32) -> PathBuf {
    let checkpoint = saved(dir, "blip2_t5", "unigram");
    let tensors = Checkpoint::open(&checkpoint).unwrap();
    let tensors = tensors.iter().map(|tensor| {
        let factor = 2f32.powi(exponent(tensor.name));
        let values = tensor.to_f32().unwrap();
        let bytes = values.iter().flat_map(|x| (x * factor).to_le_bytes());
        let stored = Stored {
            dtype: Dtype::F32,
            shape: tensor.shape.to_vec(),
            bytes: bytes.collect(),
        };
        (tensor.name.to_owned(), stored)
    });
    let tensors = tensors.collect();
    write(&checkpoint.join("model.safetensors"), tensors);
    checkpoint
}

/// Token ids of all pairs, greedy and with five beams, from a bundle of the checkpoint.
fn answers(checkpoint: &Path, llm_quant: &str) -> Vec<Value> {
    let bundle = checkpoint.with_extension("bundle");
    let mut convert = qbridge(["convert", "--vision", "f32", "--llm-quant", llm_quant]);
    stdout(convert.arg(checkpoint).arg("--out").arg(&bundle));
    let golden_json = golden_json();
    let mut answers = Vec::new();
    for case in golden_json["cases"].as_array().unwrap() {
        for beams in ["1", "5"] {
            let mut ask = qbridge(["ask", "--raw", "--json", "--cache-type", "f32"]);
            ask.args(["--min-tokens", if beams == "1" { "0" } else { "1" }]);
            ask.args(["--num-beams", beams]).arg(&bundle);
            let picture = case["picture"].as_str().unwrap();
            ask.arg(golden(&format!("llm/pictures/{picture}.png")));
            let text = stdout(ask.arg(case["text"].as_str().unwrap()));
            let mut answer: Value = serde_json::from_str(&text).unwrap();
            answers.push(answer["token_ids"].take());
        }
    }
    answers
}

fn expected() -> Vec<Value> {
    let golden = golden_json();
    let cases = golden["cases"].as_array().unwrap();
    let of = |case: &Value| [case["answers"][0].clone(), case["answers"][1].clone()];
    cases.iter().flat_map(of).collect()
}

#[test]
fn what_wo_reads_may_exceed_f16() {
    // wi_1's outputs are larger by this, and wo makes up for it.
    const EXPONENT: i32 = 15;
    let largest = golden_json()["largest_activation"].as_f64().unwrap();
    assert!(largest * 2f64.powi(EXPONENT) > 2.0 * F16_MAX, "{largest}");
    let dir = tempfile::tempdir().unwrap();
    let exponent = |name: &str| match name {
        name if name.ends_with("wi_1.weight") => EXPONENT,
        name if name.ends_with("wo.weight") => -EXPONENT,
        _ => 0,
    };
    let larger = scaled(dir.path(), exponent);
    assert_eq!(answers(&larger, "f32"), expected());
    // In a file of f16, llama.cpp rounds what other layers read: less is promised than
    // transformers' ids, but not another word than without the factors.
    let plain = tempfile::tempdir().unwrap();
    let plain = scaled(plain.path(), |_| 0);
    for llm_quant in ["f16", "bf16"] {
        std::fs::remove_dir_all(larger.with_extension("bundle")).unwrap();
        let of_plain = answers(&plain, llm_quant);
        assert_eq!(answers(&larger, llm_quant), of_plain, "{llm_quant}");
        std::fs::remove_dir_all(plain.with_extension("bundle")).unwrap();
    }
}

#[test]
fn hidden_states_may_exceed_f16() {
    let dir = tempfile::tempdir().unwrap();
    // Whatever is added to the residual stream, which every layer reads through a norm.
    let exponent = |name: &str| {
        let adds = ["shared.", "language_projection.", ".o.weight", ".wo.weight"];
        17 * i32::from(adds.iter().any(|part| name.contains(part)))
    };
    let larger = scaled(dir.path(), exponent);
    // It begins as the embeddings, so that these are beyond is enough.
    let checkpoint = Checkpoint::open(&larger).unwrap();
    let embeddings = checkpoint.raw("language_model.shared.weight").unwrap();
    let embeddings = embeddings.to_f32().unwrap();
    let beyond = embeddings.iter().filter(|x| f64::from(x.abs()) > F16_MAX);
    assert!(beyond.count() > embeddings.len() / 8);
    assert_eq!(answers(&larger, "f32"), expected());
}
