//! The built program on the tiny golden checkpoint: what transformers answered
//! is what `qbridge bundle` and `qbridge ask` answer.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use qbridge_tests::{demo_bundle, golden, one_line_error, qbridge, repository, stdout};
use serde_json::Value;

/// The command that makes a bundle of the golden checkpoint.
fn bundle_command(out: &Path) -> Command {
    let mut command = qbridge(["bundle"]);
    command
        .arg(golden("llm/checkpoint"))
        .arg("--llm")
        .arg(golden("llm/llm.gguf"))
        .arg("--out")
        .arg(out);
    command
}

/// A bundle of the golden checkpoint in a directory of its own.
fn bundle(dir: &Path) -> PathBuf {
    let out = dir.join("tiny");
    let printed = stdout(&mut bundle_command(&out));
    assert_eq!(printed.trim_end(), out.to_str().unwrap());
    out
}

fn picture(name: &str) -> PathBuf {
    golden(&format!("llm/pictures/{name}.png"))
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Steps that split every prompt, and layers where they are anyway, change no answer.
#[test]
fn sizes_of_steps_change_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundle(dir.path());
    let golden = read_json(&golden("llm/golden.json"));
    for case in &golden["cases"].as_array().unwrap()[..4] {
        for sizes in [["--batch-size", "7"], ["--ubatch-size", "3"]] {
            let text = stdout(
                qbridge(["ask", "--raw", "--json", "--cache-type", "f32"])
                    .args(["--flash-attention", "off", "--gpu-layers", "0"])
                    .args(["--split-mode", "none"])
                    .args(sizes)
                    .args(["--max-tokens", &golden["max_new_tokens"].to_string()])
                    .arg(&bundle)
                    .arg(picture(case["picture"].as_str().unwrap()))
                    .arg(case["prompt"].as_str().unwrap()),
            );
            let answer: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(answer["token_ids"], case["answer_ids"], "{sizes:?} {case}");
        }
    }
}

#[test]
fn answers_are_transformers_token_for_token() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundle(dir.path());
    let golden = read_json(&golden("llm/golden.json"));
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 20);
    for case in cases {
        let text = stdout(
            qbridge(["ask", "--raw", "--json", "--cache-type", "f32"])
                .args(["--max-tokens", &golden["max_new_tokens"].to_string()])
                .arg(&bundle)
                .arg(picture(case["picture"].as_str().unwrap()))
                .arg(case["prompt"].as_str().unwrap()),
        );
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(answer["token_ids"], case["answer_ids"], "{case}");
        let prompt_rows = case["prompt_ids"].as_array().unwrap().len() as u64
            + golden["num_query_tokens"].as_u64().unwrap();
        assert_eq!(answer["usage"]["prompt_tokens"], prompt_rows, "{case}");
        assert_eq!(
            answer["usage"]["image_tokens"], golden["num_query_tokens"],
            "{case}"
        );
    }
}

#[test]
fn beams_are_transformers_token_for_token() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundle(dir.path());
    let prompts = read_json(&golden("llm/golden.json"));
    let prompts = prompts["cases"].as_array().unwrap();
    let beams = read_json(&golden("llm/beams.json"));
    let settings = beams["settings"].as_array().unwrap();
    // Five beams that favour short answers, then long ones, then none repeated.
    for (i, case) in [8, 11, 13]
        .into_iter()
        .zip(beams["cases"].as_array().unwrap())
    {
        let prompt = prompts
            .iter()
            .find(|known| known["prompt_ids"] == case["prompt_ids"])
            .unwrap();
        let mut command = qbridge(["ask", "--raw", "--json", "--cache-type", "f32"]);
        command.args(["--max-tokens", &beams["max_new_tokens"].to_string()]);
        for (name, flag) in [
            ("num_beams", "--num-beams"),
            ("length_penalty", "--length-penalty"),
            ("repetition_penalty", "--repetition-penalty"),
        ] {
            if let Some(value) = settings[i].get(name) {
                command.args([flag, &value.to_string()]);
            }
        }
        let text = stdout(
            command
                .arg(&bundle)
                .arg(picture(case["picture"].as_str().unwrap()))
                .arg(prompt["prompt"].as_str().unwrap()),
        );
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(answer["token_ids"], case["answers"][i], "{}", settings[i]);
    }
}

#[test]
fn a_bundle_answers_as_its_checkpoint_says() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = dir.path().join("checkpoint");
    std::fs::create_dir(&checkpoint).unwrap();
    for entry in std::fs::read_dir(golden("llm/checkpoint")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, checkpoint.join(path.file_name().unwrap())).unwrap();
    }
    std::fs::write(
        checkpoint.join("generation_config.json"),
        r#"{"num_beams": 5, "length_penalty": -1.0, "max_new_tokens": 24, "eos_token_id": 7}"#,
    )
    .unwrap();
    let out = dir.path().join("bundle");
    let mut command = qbridge(["bundle"]);
    command
        .arg(&checkpoint)
        .arg("--llm")
        .arg(golden("llm/llm.gguf"));
    stdout(command.arg("--out").arg(&out));
    let prompts = read_json(&golden("llm/golden.json"));
    let prompts = prompts["cases"].as_array().unwrap();
    let beams = read_json(&golden("llm/beams.json"));
    let setting = &beams["settings"][8];
    assert_eq!(
        (&setting["num_beams"], &setting["length_penalty"]),
        (&Value::from(5), &Value::from(-1.0))
    );
    let case = &beams["cases"][0];
    let prompt = prompts
        .iter()
        .find(|known| known["prompt_ids"] == case["prompt_ids"])
        .unwrap();
    let ask = |flags: &[&str]| -> Value {
        let text = stdout(
            qbridge(["ask", "--raw", "--json", "--cache-type", "f32"])
                .args(flags)
                .arg(&out)
                .arg(picture(case["picture"].as_str().unwrap()))
                .arg(prompt["prompt"].as_str().unwrap()),
        );
        serde_json::from_str(&text).unwrap()
    };
    assert_eq!(ask(&[])["token_ids"], case["answers"][8]);
    // A request's own word goes before the bundle's.
    let three = ask(&["--num-beams", "3", "--length-penalty", "2"]);
    assert_eq!(three["token_ids"], case["answers"][7]);
    let sampled = ask(&["--temperature", "0.5", "--seed", "1", "--max-tokens", "5"]);
    assert!(sampled["token_ids"].as_array().unwrap().len() <= 5);
}

#[test]
fn the_demo_names_most_of_its_pictures() {
    let names = ["dog", "penguin", "banana", "bicycle", "sunflower"];
    let answers = stdout(
        qbridge(["caption", "--prompt", "What is this?"])
            .arg(demo_bundle())
            .args(names.map(|name| repository().join(format!("demo/pictures/{name}.png")))),
    );
    let right = answers
        .lines()
        .zip(names)
        .filter(|(line, name)| {
            let answer: Value = serde_json::from_str(line).unwrap();
            answer["caption"] == format!("a {name}")
        })
        .count();
    assert!(right >= 3, "{right} of {}: {answers}", names.len());
}

#[test]
fn captions_do_not_depend_on_what_runs_beside_them() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundle(dir.path());
    let caption = |slots: &str| -> Vec<Value> {
        let lines = stdout(
            qbridge([
                "caption",
                "--cache-type",
                "f32",
                "--slots",
                slots,
                "--max-tokens",
                "24",
            ])
            .arg(&bundle)
            .args(
                [
                    "ramp", "boxes", "circle", "face", "stripes", "ramp", "boxes", "face",
                ]
                .map(picture),
            ),
        );
        let captions = lines.lines().map(|line| {
            let mut caption: Value = serde_json::from_str(line).unwrap();
            // What was computed for another is there only once the other has begun.
            let usage = caption["usage"].as_object_mut().unwrap();
            usage.remove("cached_tokens").unwrap();
            caption
        });
        captions.collect()
    };
    let together = caption("8");
    assert_eq!(together.len(), 8);
    assert_eq!(together, caption("1"));
    let texts: std::collections::HashSet<String> = together
        .iter()
        .map(|caption| caption["caption"].to_string())
        .collect();
    assert_eq!(
        texts.len(),
        5,
        "each picture has an answer of its own: {texts:?}"
    );
}

#[test]
fn a_picture_that_fails_leaves_the_others_their_captions() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundle(dir.path());
    let output = qbridge(["caption", "--max-tokens", "4"])
        .arg(&bundle)
        .args([
            picture("ramp"),
            dir.path().join("absent.png"),
            picture("face"),
        ])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let lines: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[0]["caption"].is_string() && lines[2]["caption"].is_string());
    assert!(lines[1]["error"].as_str().unwrap().contains("absent.png"));
}

#[test]
fn encode_writes_the_references_soft_prompt_from_checkpoint_and_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let reference = std::fs::read(golden("llm/reference.safetensors")).unwrap();
    let reference = safetensors::SafeTensors::deserialize(&reference).unwrap();
    let expected = floats(&reference.tensor("soft_prompt").unwrap());
    let pictures = read_json(&golden("llm/golden.json"))["pictures"].clone();
    let pictures = pictures.as_array().unwrap();
    let rows = expected.len() / pictures.len();
    for model in [golden("llm/checkpoint"), bundle(dir.path())] {
        for (name, expected) in pictures.iter().zip(expected.chunks(rows)) {
            let out = dir.path().join("x.safetensors");
            stdout(
                qbridge(["encode"])
                    .arg(&model)
                    .arg(picture(name.as_str().unwrap()))
                    .arg("--out")
                    .arg(&out),
            );
            let file = std::fs::read(&out).unwrap();
            let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
            let mut names = tensors.names();
            names.sort();
            assert_eq!(names, ["pixels", "queries", "soft_prompt", "vision"]);
            let found = floats(&tensors.tensor("soft_prompt").unwrap());
            assert_eq!(found.len(), expected.len());
            let difference = found
                .iter()
                .zip(expected)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            assert!(difference <= 1e-4, "{name}: {difference}");
        }
    }
}

fn floats(tensor: &safetensors::tensor::TensorView<'_>) -> Vec<f32> {
    assert_eq!(tensor.dtype(), safetensors::Dtype::F32);
    tensor
        .data()
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect()
}

#[test]
fn encode_times_each_repetition() {
    let lines = stdout(
        qbridge(["encode", "--repeat", "3", "--timings"])
            .arg(golden("llm/checkpoint"))
            .arg(picture("ramp")),
    );
    let seconds: Vec<f64> = lines
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["seconds"]
                .as_f64()
                .unwrap()
        })
        .collect();
    assert_eq!(seconds.len(), 3);
    assert!(seconds.iter().all(|seconds| *seconds > 0.0));
}

#[test]
fn encode_takes_several_batches_and_writes_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("picture.safetensors");
    let lines = stdout(
        qbridge(["encode", "--batch", "1,1,3", "--repeat", "2", "--timings"])
            .arg("--out")
            .arg(&out)
            .arg(golden("llm/checkpoint"))
            .arg(picture("ramp")),
    );
    let batches: Vec<u64> = lines
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["batch"]
                .as_u64()
                .unwrap()
        })
        .collect();
    assert_eq!(batches, [1, 1, 1, 1, 3, 3]);
    let bytes = std::fs::read(&out).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for name in ["pixels", "vision", "queries", "soft_prompt"] {
        assert_eq!(tensors.tensor(name).unwrap().shape()[0], 3, "{name}");
    }
}

#[test]
fn the_same_seed_gives_the_same_answer_and_another_seed_another() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundle(dir.path());
    let ask = |seed: &str| {
        stdout(
            qbridge(["ask", "--raw", "--temperature", "1.5", "--seed", seed])
                .args(["--max-tokens", "24"])
                .arg(&bundle)
                .arg(picture("face"))
                .arg("what"),
        )
    };
    assert_eq!(ask("1"), ask("1"));
    assert_ne!(ask("1"), ask("2"));
}

#[test]
fn every_cache_type_answers() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundle(dir.path());
    for cache_type in ["f16", "f32", "q8_0"] {
        let text = stdout(
            qbridge([
                "ask",
                "--raw",
                "--max-tokens",
                "4",
                "--cache-type",
                cache_type,
            ])
            .arg(&bundle)
            .arg(picture("face"))
            .arg("what"),
        );
        assert!(!text.trim().is_empty(), "{cache_type}");
    }
}

#[test]
fn a_bundle_knows_when_its_files_were_changed() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundle(dir.path());
    stdout(qbridge(["inspect", "--verify"]).arg(&bundle));

    let path = bundle.join("vision.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let error = one_line_error_after_output(qbridge(["inspect", "--verify"]).arg(&bundle));
    assert!(
        error.contains("vision.safetensors") && error.contains("sha256"),
        "{error}"
    );

    bytes.pop();
    std::fs::write(&path, &bytes).unwrap();
    let error = one_line_error(qbridge(["inspect"]).arg(&bundle));
    assert!(error.contains("vision.safetensors"), "{error}");
    assert!(error.contains(&bytes.len().to_string()), "{error}");
}

/// As [`one_line_error`], where what went before the failure was printed.
fn one_line_error_after_output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_bundle_is_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let out = bundle(dir.path());
    let error = one_line_error(&mut bundle_command(&out));
    assert!(error.contains("exists already"), "{error}");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "no partial directory is left: {left:?}");
}
