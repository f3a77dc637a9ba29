//! `qbridge convert`: published layouts to bundles that answer as the
//! reference does, and what it refuses.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bridge::bundle::Bundle;
use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Content;
use qbridge_tests::{demo_bundle, golden, one_line_error, qbridge, stdout};
use qformer::checkpoint::Checkpoint;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

fn convert(source: &Path, llm: &Path, out: &Path) -> Command {
    let mut command = qbridge(["convert"]);
    command
        .arg(source)
        .arg("--llm")
        .arg(llm)
        .arg("--out")
        .arg(out);
    command
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Token ids of an answer, in f32.
fn answer_ids(bundle: &Path, picture: &str, prompt: &str, max_tokens: &Value) -> Value {
    let text = stdout(
        qbridge(["ask", "--raw", "--json", "--cache-type", "f32"])
            .args(["--max-tokens", &max_tokens.to_string()])
            .arg(bundle)
            .arg(golden(&format!("llm/pictures/{picture}.png")))
            .arg(prompt),
    );
    serde_json::from_str::<Value>(&text).unwrap()["token_ids"].take()
}

#[test]
fn a_converted_checkpoint_answers_as_transformers_does() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("tiny");
    stdout(
        convert(&golden("llm/checkpoint"), &golden("llm/llm.gguf"), &out).args(["--vision", "f32"]),
    );
    let golden = read_json(&golden("llm/golden.json"));
    for case in golden["cases"].as_array().unwrap().iter().step_by(4) {
        let ids = answer_ids(
            &out,
            case["picture"].as_str().unwrap(),
            case["prompt"].as_str().unwrap(),
            &golden["max_new_tokens"],
        );
        assert_eq!(ids, case["answer_ids"], "{case}");
    }
    // Nothing but the bundle is left.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_checkpoint_s_own_language_model_answers_as_transformers_does() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("tiny");
    stdout(
        qbridge(["convert", "--vision", "f32", "--llm-quant", "f32", "--out"])
            .arg(&out)
            .arg(golden("llm/checkpoint")),
    );
    let golden = read_json(&golden("llm/golden.json"));
    for case in golden["cases"].as_array().unwrap() {
        let ids = answer_ids(
            &out,
            case["picture"].as_str().unwrap(),
            case["prompt"].as_str().unwrap(),
            &golden["max_new_tokens"],
        );
        assert_eq!(ids, case["answer_ids"], "{case}");
    }
}

#[test]
fn a_language_model_from_a_directory_of_its_own_is_refused_where_it_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("tiny");
    // What is in the directory is a BLIP-2, not a language model.
    let checkpoint = golden("llm/checkpoint");
    let error = one_line_error(&mut convert(&checkpoint, &checkpoint, &out));
    assert!(error.contains("model_type \"blip-2\""), "{error}");
}

/// The language model of a bundle: the matrices' type, and every tensor in f32.
fn language_model(bundle: &Path) -> (GgmlDType, BTreeMap<String, Vec<f32>>) {
    let mut file = std::fs::File::open(bundle.join("llm.gguf")).unwrap();
    let content = Content::read(&mut file).unwrap();
    let mut read = |name: &str| content.tensor(&mut file, name, &Device::Cpu).unwrap();
    let kind = read("blk.0.attn_q.weight").dtype();
    let values = |name: &String| {
        let tensor = read(name).dequantize(&Device::Cpu).unwrap();
        let values = tensor.flatten_all().and_then(|flat| flat.to_vec1());
        (name.clone(), values.unwrap())
    };
    (kind, content.tensor_infos.keys().map(values).collect())
}

#[test]
fn a_gguf_is_quantized_anew_where_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let out = |name: &str| dir.path().join(name);
    let bundle = |llm: &Path, quant: &str, name: &str| {
        let output = convert(&golden("llm/checkpoint"), llm, &out(name))
            .args(["--llm-quant", quant])
            .env("QBRIDGE_LOG", "warn")
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        stderr
    };
    let exact = golden("llm/llm.gguf");
    let said = bundle(&exact, "q8_0", "q8");
    assert!(!said.contains("quantized already"), "{said}");
    std::fs::create_dir(out("exact")).unwrap();
    std::fs::copy(&exact, out("exact").join("llm.gguf")).unwrap();
    let (_, exact) = language_model(&out("exact"));
    let (kind, quantized) = language_model(&out("q8"));
    assert_eq!(kind, GgmlDType::Q8_0);
    assert_eq!(
        Vec::from_iter(quantized.keys()),
        Vec::from_iter(exact.keys())
    );
    for (name, exact) in &exact {
        for (exact, found) in exact.chunks(32).zip(quantized[name].chunks(32)) {
            let largest = exact.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
            for (x, y) in exact.iter().zip(found) {
                // Half a step of 127, and the scale's rounding to f16.
                assert!(
                    (x - y).abs() <= largest * (0.5 / 127.0 + 1e-3),
                    "{name}: {x} {y}"
                );
            }
        }
    }
    let manifest = Bundle::open(&out("q8")).unwrap().manifest().clone();
    assert_eq!(manifest.source.llm.unwrap(), "llm.gguf Q8_0");
    let ids = answer_ids(&out("q8"), "face", "what is this?", &8.into());
    assert!(!ids.as_array().unwrap().is_empty());

    let said = bundle(&out("q8").join("llm.gguf"), "Q4_0", "q4");
    assert!(said.contains("quantized already, as Q8_0"), "{said}");
    assert_eq!(language_model(&out("q4")).0, GgmlDType::Q4_0);
}

#[test]
fn a_damaged_gguf_is_not_quantized() {
    let dir = tempfile::tempdir().unwrap();
    let damaged = dir.path().join("damaged.gguf");
    let mut bytes = std::fs::read(golden("llm/llm.gguf")).unwrap();
    // In the middle are matrices, and these bits are no numbers.
    let middle = bytes.len() / 2 / 4 * 4;
    bytes[middle..middle + 64].fill(0xff);
    std::fs::write(&damaged, bytes).unwrap();
    let out = dir.path().join("out");
    let output = convert(&golden("llm/checkpoint"), &damaged, &out)
        .args(["--llm-quant", "Q8_0"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    let expected = "damaged.gguf: cannot be quantized as Q8_0: ";
    assert!(error.contains(expected), "{error}");
    assert!(!out.exists());
}

#[test]
fn weights_get_the_type_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let source = Checkpoint::open(golden("llm/checkpoint")).unwrap();
    for (args, dtype) in [
        (&[][..], Dtype::F16),
        (&["--vision", "bf16"], Dtype::BF16),
        (&["--vision", "f32"], Dtype::F32),
    ] {
        let out = dir.path().join(format!("{dtype:?}"));
        stdout(convert(&golden("llm/checkpoint"), &golden("llm/llm.gguf"), &out).args(args));
        let bundle = Bundle::open(&out).unwrap();
        let names = bundle.checkpoint().names();
        assert!(
            names.eq(source
                .names()
                .filter(|name| !name.starts_with("language_model.")))
        );
        for tensor in bundle.checkpoint().iter() {
            assert_eq!(tensor.dtype, dtype, "{}", tensor.name);
        }
    }
}

/// Soft prompt of a picture, with products of the kind `--vision` takes.
fn soft_prompt(bundle: &Path, picture: &Path, products: &str) -> Vec<f32> {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("encoded.safetensors");
    stdout(
        qbridge(["encode", "--vision", products])
            .args([bundle, picture])
            .arg("--out")
            .arg(&out),
    );
    let tensors = candle_core::safetensors::load(&out, &candle_core::Device::Cpu).unwrap();
    let soft_prompt = tensors["soft_prompt"].flatten_all().unwrap();
    soft_prompt.to_vec1().unwrap()
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    product(a, b) / (product(a, a) * product(b, b)).sqrt()
}

#[test]
fn eight_bits_take_a_quarter_of_f32_and_point_the_same_way() {
    let dir = tempfile::tempdir().unwrap();
    let made = |name: &str| {
        let out = dir.path().join(name);
        let (checkpoint, llm) = (golden("llm/checkpoint"), golden("llm/llm.gguf"));
        stdout(convert(&checkpoint, &llm, &out).args(["--vision", name]));
        let size = std::fs::metadata(out.join("vision.safetensors"))
            .unwrap()
            .len();
        (size as f32, out)
    };
    let (full_size, full) = made("f32");
    let (small_size, small) = made("int8");
    assert!(small_size < 0.4 * full_size, "{small_size} {full_size}");
    let picture = golden("llm/pictures/boxes.png");
    let expected = soft_prompt(&full, &picture, "f32");
    let (stored, exact) = (
        soft_prompt(&small, &picture, "auto"),
        soft_prompt(&small, &picture, "f32"),
    );
    let loaded = soft_prompt(&full, &picture, "int8");
    for found in [&stored, &exact, &loaded] {
        let cosine = cosine(found, &expected);
        println!("cosine {cosine}");
        assert!(cosine > 0.999 && *found != expected, "{cosine}");
    }
    // Products in 8 bits are not those of the same weights in f32.
    assert_ne!(stored, exact);
}

#[test]
fn the_demos_soft_prompts_survive_products_in_8_bits() {
    let bundle = demo_bundle();
    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/pictures");
    for name in ["dog.png", "banana.png", "lion-umbrella.png"] {
        let encoded = |products| soft_prompt(&bundle, &pictures.join(name), products);
        let cosine = cosine(&encoded("int8"), &encoded("f32"));
        println!("{name}: cosine {cosine}");
        assert!(cosine > 0.999, "{name}: {cosine}");
    }
}

/// The golden checkpoint with a projection so large that writing it takes a
/// while: zeros that take no room on disk.
fn slow_checkpoint(dir: &Path) -> PathBuf {
    let source = dir.join("slow");
    std::fs::create_dir(&source).unwrap();
    for name in ["config.json", "preprocessor_config.json"] {
        std::fs::copy(golden("llm/checkpoint").join(name), source.join(name)).unwrap();
    }
    let bytes = std::fs::read(golden("llm/checkpoint/model.safetensors")).unwrap();
    let (header, _) = SafeTensors::read_metadata(&bytes).unwrap();
    let (header, data) = bytes[8..].split_at(header);
    let mut header: Value = serde_json::from_slice(header).unwrap();
    let rows = 100_000_000;
    header["language_projection.zeros"] = serde_json::json!({
        "dtype": "F32", "shape": [rows], "data_offsets": [data.len(), data.len() + 4 * rows],
    });
    let header = header.to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    let path = source.join("model.safetensors");
    std::fs::write(&path, &file).unwrap();
    let file_size = (file.len() + 4 * rows) as u64;
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(file_size).unwrap();
    source
}

#[test]
fn a_killed_conversion_leaves_no_bundle_and_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let source = slow_checkpoint(dir.path());
    let out = dir.path().join("tiny");
    let mut running = convert(&source, &golden("llm/llm.gguf"), &out)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let staging = dir.path().join(".tiny.partial");
    let started = Instant::now();
    while !staging.join("projection.safetensors").exists() {
        assert!(started.elapsed() < Duration::from_secs(60));
        assert!(running.try_wait().unwrap().is_none(), "it ended too early");
        std::thread::sleep(Duration::from_millis(1));
    }
    let beside = one_line_error(&mut convert(&source, &golden("llm/llm.gguf"), &out));
    assert!(beside.contains("another conversion"), "{beside}");
    running.kill().unwrap();
    running.wait().unwrap();
    assert!(!out.exists());
    for unfinished in [&out, &staging] {
        let error = one_line_error(qbridge(["inspect"]).arg(unfinished));
        assert!(
            error.contains("not a bundle") || error.contains("bundle.toml"),
            "{error}"
        );
    }
    let written = |path: PathBuf| std::fs::metadata(path).unwrap().modified().unwrap();
    let vision = written(staging.join("vision.safetensors"));

    stdout(&mut convert(&source, &golden("llm/llm.gguf"), &out));
    assert_eq!(
        vision,
        written(out.join("vision.safetensors")),
        "made again"
    );
    assert!(!staging.exists());
    stdout(qbridge(["inspect", "--verify"]).arg(&out));
}

#[test]
fn what_was_made_from_other_inputs_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("tiny");
    let staging = dir.path().join(".tiny.partial");
    std::fs::create_dir(&staging).unwrap();
    std::fs::write(staging.join("vision.safetensors"), "old").unwrap();
    std::fs::write(
        staging.join("journal.toml"),
        "inputs = \"others\"\n[parts.\"vision.safetensors\"]\npath = \"vision.safetensors\"\nbytes = 3\n\
         sha256 = \"5b4b0a0a1e9ecb1a2ab4e0f5df2bb4eb1e4f2a5a\"\n",
    )
    .unwrap();
    stdout(&mut convert(
        &golden("llm/checkpoint"),
        &golden("llm/llm.gguf"),
        &out,
    ));
    stdout(qbridge(["inspect", "--verify"]).arg(&out));
}

#[test]
fn a_language_model_of_another_kind_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("opt");
    std::fs::create_dir(&source).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(golden("llm/checkpoint").join(name), source.join(name)).unwrap();
    }
    let mut config = read_json(&source.join("config.json"));
    config["text_config"]["model_type"] = "opt".into();
    std::fs::write(source.join("config.json"), config.to_string()).unwrap();
    let out = dir.path().join("tiny");
    let error = one_line_error(&mut convert(&source, &golden("llm/llm.gguf"), &out));
    assert!(
        error.contains("architecture llama") && error.contains("OPT"),
        "{error}"
    );
    assert!(!out.exists() && !dir.path().join(".tiny.partial").exists());
}
