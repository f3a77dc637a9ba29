//! `.pth` files of LAVIS and MiniGPT-4 through `qbridge convert`, against
//! transformers' outputs (`tests/golden/make_lavis.py`).

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{Device, Tensor};
use qbridge_tests::{golden, one_line_error, qbridge, stdout};
use qformer::checkpoint::Checkpoint;
use serde_json::Value;
use tempfile::TempDir;

/// What the project promises of every stage, in f32 on a CPU.
const TOLERANCE: f32 = 1e-4;

fn lavis(name: &str) -> PathBuf {
    golden(&format!("lavis/{name}"))
}

fn convert(sources: &[&str], llm: &Path, out: &Path) -> Command {
    let mut command = qbridge(["convert", "--vision", "f32"]);
    command.args(sources.iter().map(|source| lavis(source)));
    command.arg("--llm").arg(llm).arg("--out").arg(out);
    command
}

/// A converted model in a directory of its own.
fn converted(sources: &[&str], llm: &Path, args: &[&str]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model");
    stdout(convert(sources, llm, &out).args(args));
    (dir, out)
}

fn golden_answers() -> Value {
    serde_json::from_slice(&std::fs::read(lavis("golden.json")).unwrap()).unwrap()
}

#[track_caller]
fn assert_close(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let difference = (found - expected).unwrap().abs().unwrap();
    let difference: f32 = difference.max_all().unwrap().to_scalar().unwrap();
    assert!(difference < TOLERANCE, "{what}: {difference}");
    println!("{what}: {difference:e}");
}

/// Encodes pictures with the converted model and compares each stage.
#[track_caller]
fn equals_the_reference(name: &str, sources: &[&str], llm: &Path, args: &[&str]) {
    let (dir, bundle) = converted(sources, llm, args);
    let expected =
        candle_core::safetensors::load(lavis(&format!("{name}.safetensors")), &Device::Cpu)
            .unwrap();
    let pictures = golden_answers()["pictures"].clone();
    for index in 0..2 {
        let picture = pictures[index].as_str().unwrap();
        let out = dir.path().join("encoded.safetensors");
        stdout(
            qbridge(["encode"])
                .arg(&bundle)
                .arg(golden(&format!("llm/pictures/{picture}.png")))
                .arg("--out")
                .arg(&out),
        );
        let found = candle_core::safetensors::load(&out, &Device::Cpu).unwrap();
        for stage in ["vision", "queries", "soft_prompt"] {
            // The ViT's output is kept for the first picture alone.
            if index < expected[stage].dim(0).unwrap() {
                let expected = expected[stage].narrow(0, index, 1).unwrap();
                assert_close(&format!("{name} {stage}"), &found[stage], &expected);
            }
        }
    }
}

#[test]
fn eva_and_a_q_former_equal_the_reference() {
    let sources = ["blip2_pretrained_opt.pth", "eva_vit_g.pth"];
    equals_the_reference("opt", &sources, &lavis("opt.gguf"), &[]);
    let turned = ["eva_vit_g.pth", "blip2_pretrained_opt.pth"];
    equals_the_reference(
        "opt_24",
        &turned,
        &lavis("opt.gguf"),
        &["--image-size", "24"],
    );
}

#[test]
fn clip_and_a_q_former_equal_the_reference() {
    let sources = ["blip2_pretrained_opt_vitL.pth", "clip_vit_L.pth"];
    equals_the_reference("opt_vitL", &sources, &lavis("opt.gguf"), &[]);
    let args = ["--image-size", "24"];
    equals_the_reference("opt_vitL_24", &sources, &lavis("opt.gguf"), &args);
}

#[test]
fn a_finetuned_model_with_its_own_tower_equals_the_reference() {
    let sources = ["blip2_caption_opt.pth"];
    equals_the_reference("caption", &sources, &lavis("opt.gguf"), &[]);
}

const MINIGPT4: [&str; 3] = ["minigpt4.pth", "blip2_pretrained_opt.pth", "eva_vit_g.pth"];
const MINIGPT4_LLAMA2: [&str; 2] = ["minigpt4_llama2.pth", "eva_vit_g.pth"];

#[test]
fn minigpt4_with_and_without_a_q_former_equals_the_reference() {
    let llm = golden("llm/llm.gguf");
    equals_the_reference("minigpt4", &MINIGPT4, &llm, &[]);
    equals_the_reference("minigpt4_llama2", &MINIGPT4_LLAMA2, &llm, &[]);
}

#[test]
fn minigpt4_answers_as_the_reference_does() {
    for (name, sources) in [
        ("minigpt4", &MINIGPT4[..]),
        ("minigpt4_llama2", &MINIGPT4_LLAMA2),
    ] {
        let (_dir, bundle) = converted(sources, &golden("llm/llm.gguf"), &[]);
        assert_answers(name, &bundle, 20);
    }
}

/// Greedy answers equal the golden ones, of which there are `n` at least.
fn assert_answers(name: &str, bundle: &Path, n: usize) {
    let golden_answers = golden_answers();
    let cases = golden_answers[name].as_array().unwrap();
    assert!(cases.len() >= n);
    for case in cases {
        let text = stdout(
            qbridge(["ask", "--json", "--cache-type", "f32"])
                .args(["--temperature", "0", "--repetition-penalty", "1"])
                .args([
                    "--max-tokens",
                    &golden_answers["max_new_tokens"].to_string(),
                ])
                .arg(bundle)
                .arg(golden(&format!(
                    "llm/pictures/{}.png",
                    case["picture"].as_str().unwrap()
                )))
                .arg(case["question"].as_str().unwrap()),
        );
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(answer["token_ids"], case["answer_ids"], "{name} {case}");
        assert_eq!(
            answer["usage"]["prompt_tokens"], case["prompt_rows"],
            "{case}"
        );
    }
}

/// The Llama of `llm/` alone, as transformers saves it.
fn llama() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let from = golden("llm/checkpoint");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(from.join(file), dir.path().join(file)).unwrap();
    }
    let config: Value =
        serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    let config = config["text_config"].to_string();
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    let tensors =
        candle_core::safetensors::load(from.join("model.safetensors"), &Device::Cpu).unwrap();
    let tensors = tensors.into_iter().filter_map(|(name, tensor)| {
        let name = name.strip_prefix("language_model.")?.to_owned();
        Some((name, tensor))
    });
    let path = dir.path().join("model.safetensors");
    candle_core::safetensors::save(&tensors.collect(), path).unwrap();
    dir
}

const MINIGPT_V2: [&str; 2] = ["minigpt_v2.pth", "eva_vit_g.pth"];

#[test]
fn minigpt_v2_s_lora_is_merged() {
    let llama = llama();
    let args = ["--llm-quant", "f32", "--image-size", "24"];
    equals_the_reference("minigpt_v2", &MINIGPT_V2, llama.path(), &args);
    let (_dir, bundle) = converted(&MINIGPT_V2, llama.path(), &args);
    assert_answers("minigpt_v2", &bundle, 20);
}

#[test]
fn minigpt_v2_reads_pictures_of_448_pixels() {
    let (_dir, bundle) = converted(&MINIGPT_V2, llama().path(), &[]);
    let manifest = std::fs::read_to_string(bundle.join("bundle.toml")).unwrap();
    assert!(manifest.contains("image_size = 448"), "{manifest}");
    assert!(manifest.contains("num_query_tokens = 3136"), "{manifest}");
}

#[test]
fn a_lora_goes_only_with_weights_that_it_fits() {
    refused(
        &MINIGPT_V2,
        "opt.gguf",
        &["MiniGPT-v2", "LoRA", "directory"],
    );
    let llama = llama();
    let path = llama.path().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let name = "model.layers.1.self_attn.v_proj.weight";
    let narrow = tensors[name].narrow(0, 0, 32).unwrap();
    tensors.insert(name.to_owned(), narrow.contiguous().unwrap());
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model");
    let error = one_line_error(&mut convert(&MINIGPT_V2, llama.path(), &out));
    assert!(
        error.contains(name) && error.contains("[64, 128]") && error.contains("[32, 128]"),
        "{error}"
    );
}

const INSTRUCT: [&str; 2] = ["instruct_blip_vicuna.pth", "eva_vit_g.pth"];

/// The golden tokenizer, as BERT's own files have it.
fn bert() -> PathBuf {
    golden("instructblip/checkpoint/qformer_tokenizer")
}

#[test]
fn instructblip_equals_the_reference() {
    let expected =
        candle_core::safetensors::load(lavis("instruct.safetensors"), &Device::Cpu).unwrap();
    // BERT's vocabulary has no [DEC].
    let tokenizer: Value =
        serde_json::from_slice(&std::fs::read(bert().join("tokenizer.json")).unwrap()).unwrap();
    let mut words: Vec<(u64, &str)> = tokenizer["model"]["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(word, id)| (id.as_u64().unwrap(), word.as_str()))
        .filter(|(_, word)| *word != "[DEC]")
        .collect();
    words.sort();
    let dir = tempfile::tempdir().unwrap();
    let vocabulary = dir.path().join("vocab.txt");
    let lines: Vec<&str> = words.into_iter().map(|(_, word)| word).collect();
    std::fs::write(&vocabulary, lines.join("\n") + "\n").unwrap();

    let golden_answers = golden_answers();
    let files = [bert(), bert().join("tokenizer.json"), vocabulary];
    for (index, tokenizer) in files.iter().enumerate() {
        let args = ["--qformer-tokenizer", tokenizer.to_str().unwrap()];
        let (_dir, bundle) = converted(&INSTRUCT, &golden("llm/llm.gguf"), &args);
        for (i, instruction) in golden_answers["instructions"]
            .as_array()
            .unwrap()
            .iter()
            .enumerate()
        {
            for picture in 0..2 {
                let name = golden_answers["pictures"][picture].as_str().unwrap();
                let out = dir.path().join("encoded.safetensors");
                stdout(
                    qbridge(["encode", "--instruction", instruction.as_str().unwrap()])
                        .arg(&bundle)
                        .arg(golden(&format!("llm/pictures/{name}.png")))
                        .arg("--out")
                        .arg(&out),
                );
                let found = candle_core::safetensors::load(&out, &Device::Cpu).unwrap();
                for stage in ["queries", "soft_prompt"] {
                    let expected = expected[stage].get(i).unwrap();
                    let expected = expected.narrow(0, picture, 1).unwrap();
                    let what = format!("instruct {index} {i} {stage}");
                    assert_close(&what, &found[stage], &expected);
                }
            }
        }
    }
}

#[test]
fn instructblip_is_known_by_its_projection() {
    let args = ["--qformer-tokenizer", bert().to_str().unwrap()].map(str::to_owned);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    for (file, llm, words) in [
        (
            INSTRUCT[0],
            "vicuna-v1.1.gguf",
            ["penalize_prompt = false", "bos_token = \"eos\""],
        ),
        (
            "instruct_blip_flant5.pth",
            "t5.gguf",
            ["repetition_penalty = 1.5", "eos = true"],
        ),
    ] {
        let (_dir, bundle) = converted(&[file, INSTRUCT[1]], &lavis(llm), &args);
        let manifest = std::fs::read_to_string(bundle.join("bundle.toml")).unwrap();
        assert!(manifest.contains("family = \"instructblip\""), "{manifest}");
        for word in words {
            assert!(manifest.contains(word), "{word} is not in {manifest}");
        }
    }
    refused(
        &INSTRUCT,
        "vicuna-v1.1.gguf",
        &["--qformer-tokenizer", "bert-base-uncased"],
    );
    let dir = tempfile::tempdir().unwrap();
    let opt = ["blip2_pretrained_opt.pth", "eva_vit_g.pth"];
    let out = dir.path().join("model");
    let error = one_line_error(convert(&opt, &lavis("opt.gguf"), &out).args(&args));
    assert!(error.contains("reads no text"), "{error}");
    let error = one_line_error(
        qbridge(["convert"])
            .arg(golden("instructblip/checkpoint"))
            .args(&args)
            .arg("--out")
            .arg(&out),
    );
    assert!(error.contains("has its own or needs none"), "{error}");
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    let args = ["--qformer-tokenizer", dir.path().to_str().unwrap()];
    let llm = lavis("vicuna-v1.1.gguf");
    let error = one_line_error(convert(&INSTRUCT, &llm, &out).args(args));
    assert!(error.contains("tokenizer.json"), "{error}");
}

/// Position embeddings as they lie in a converted model.
fn positions(bundle: &Path) -> Tensor {
    let path = bundle.join("vision.safetensors");
    let mut tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let name = "vision_model.embeddings.position_embedding";
    tensors.remove(name).unwrap().squeeze(0).unwrap()
}

#[test]
fn positions_are_interpolated_as_torch_does() {
    let expected =
        candle_core::safetensors::load(lavis("interpolated.safetensors"), &Device::Cpu).unwrap();
    for (tower, sources) in [
        ("eva", ["blip2_pretrained_opt.pth", "eva_vit_g.pth"]),
        ("clip", ["blip2_pretrained_opt_vitL.pth", "clip_vit_L.pth"]),
    ] {
        for grid in [2, 3, 6, 7] {
            let size = (4 * grid).to_string();
            let (_dir, bundle) = converted(&sources, &lavis("opt.gguf"), &["--image-size", &size]);
            let name = format!("{tower}_{grid}");
            assert_close(&name, &positions(&bundle), &expected[&name]);
        }
    }
}

#[track_caller]
fn refused(sources: &[&str], llm: &str, words: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model");
    let error = one_line_error(&mut convert(sources, &lavis(llm), &out));
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{error}");
}

#[test]
fn files_that_make_no_model_are_told_what_is_missing() {
    let opt = "blip2_pretrained_opt.pth";
    refused(&[opt], "opt.gguf", &["no vision tower", "eva_vit_g.pth"]);
    refused(&["eva_vit_g.pth"], "opt.gguf", &["no Q-Former"]);
    refused(
        &["minigpt4.pth", "eva_vit_g.pth"],
        "opt.gguf",
        &["no Q-Former", "blip2_pretrained_flant5xxl.pth"],
    );
    refused(
        &[opt, "eva_vit_g.pth", "clip_vit_L.pth"],
        "opt.gguf",
        &["both hold a vision tower"],
    );
    refused(
        &["blip2_caption_opt.pth", "eva_vit_g.pth"],
        "opt.gguf",
        &["both hold a vision tower"],
    );
    refused(
        &["blip2_pretrained_opt_vitL.pth", "eva_vit_g.pth"],
        "opt.gguf",
        &["rows of 128", "rows of 176", "clip_vit_L.pth"],
    );
    refused(&[opt, opt], "opt.gguf", &["is in both"]);
    refused(&["old.pth"], "opt.gguf", &["PyTorch 1.6", "save it again"]);
}

#[test]
fn language_models_of_other_kinds_are_refused() {
    let sources = ["blip2_pretrained_opt.pth", "eva_vit_g.pth"];
    refused(&sources, "t5.gguf", &["architecture t5", "trained for OPT"]);
    refused(
        &sources,
        "vicuna-v0.gguf",
        &["architecture llama", "trained for OPT"],
    );
    refused(&sources, "mpt.gguf", &["ffn.act.scales", "trained for OPT"]);
    refused(&MINIGPT4, "t5.gguf", &["architecture t5", "Vicuna"]);
    refused(&MINIGPT4, "vicuna-v1.1.gguf", &["v1.1", "Vicuna v0"]);
    let (_dir, _bundle) = converted(&MINIGPT4, &lavis("vicuna-v0.gguf"), &[]);
    let dir = tempfile::tempdir().unwrap();
    let error = one_line_error(
        qbridge(["convert"])
            .arg(golden("instructblip/checkpoint"))
            .arg("--llm")
            .arg(lavis("vicuna-v0.gguf"))
            .arg("--out")
            .arg(dir.path().join("model")),
    );
    assert!(
        error.contains("Vicuna v0") && error.contains("trained for Vicuna v1.1"),
        "{error}"
    );
}

/// A golden file, changed.
fn tampered(name: &str, change: impl FnOnce(&mut Vec<u8>)) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = std::fs::read(lavis(name)).unwrap();
    change(&mut bytes);
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

#[test]
fn code_in_a_pickle_is_named_and_never_run() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model");
    let error = one_line_error(
        convert(&["code.pth", "eva_vit_g.pth"], &lavis("opt.gguf"), &out).current_dir(dir.path()),
    );
    assert!(
        error.contains("posix.system") && error.contains("nothing in it was run"),
        "{error}"
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_pth_that_is_cut_short_or_damaged_is_refused() {
    let whole = std::fs::read(lavis("minigpt4.pth")).unwrap();
    for part in [0, 1, 4, 100, whole.len() / 2, whole.len() - 1] {
        let (_dir, path) = tampered("minigpt4.pth", |bytes| bytes.truncate(part));
        let error = Checkpoint::from_pth(&path).unwrap_err().to_string();
        let expected = if part < 5 { "PyTorch 1.6" } else { "cut short" };
        assert!(part == 4 || error.contains(expected), "{part}: {error}");
    }
    // No single byte of the pickle or of the archive's end makes it panic.
    let ends = (0..2000).chain(whole.len() - 1500..whole.len());
    for place in ends.step_by(3) {
        let (_dir, path) = tampered("minigpt4.pth", |bytes| bytes[place] ^= 0x55);
        if let Ok(checkpoint) = Checkpoint::from_pth(&path) {
            checkpoint.iter().for_each(|tensor| drop(tensor.to_f32()));
        }
    }
}

#[test]
fn a_shared_storage_is_read_through_each_tensor_s_window() {
    let eva = Checkpoint::from_pth(&lavis("eva_vit_g.pth")).unwrap();
    let size: usize = eva
        .iter()
        .map(|tensor| tensor.shape.iter().product::<usize>() * tensor.dtype.bitsize() / 8)
        .sum();
    let file = std::fs::metadata(lavis("eva_vit_g.pth")).unwrap().len() as usize;
    assert!(size > 20 * file, "the windows overlap");
    // An optimizer's state beside the model is left out.
    let minigpt4 = Checkpoint::from_pth(&lavis("minigpt4.pth")).unwrap();
    assert!(
        minigpt4
            .names()
            .eq(["llama_proj.bias", "llama_proj.weight"])
    );
}
