//! What does not make a model is refused in one sentence that says what to use,
//! before a byte is written: through the built program, with the language models
//! that it made of the checkpoints of `tests/golden/make_layouts.py`. All are of one
//! width, so that nothing but their kind tells them apart.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use qbridge_tests::{golden, one_line_error, qbridge, saved, stdout};
use tempfile::TempDir;

fn convert(sources: &[&Path], out: &Path) -> Command {
    let mut command = qbridge(["convert"]);
    command.args(sources).arg("--out").arg(out);
    command
}

/// Bridges as they are published, and the language models inside.
struct Models {
    dir: TempDir,
    opt: PathBuf,
    t5: PathBuf,
    instructblip: PathBuf,
    vicuna_v0: PathBuf,
}

impl Models {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            opt: saved(dir.path(), "blip2_opt", "byte_level"),
            t5: saved(dir.path(), "blip2_t5", "unigram"),
            instructblip: saved(dir.path(), "instructblip_llama", "sentencepiece"),
            vicuna_v0: saved(dir.path(), "vicuna-v0", "sentencepiece"),
            dir,
        }
    }

    /// The GGUF that `convert` makes of a checkpoint's own language model, or of `llm`.
    fn gguf(&self, sources: &[&Path], llm: Option<&Path>) -> PathBuf {
        let out = tempfile::tempdir_in(self.dir.path()).unwrap().keep();
        let mut command = convert(sources, &out.join("bundle"));
        command.args(["--llm-quant", "f32"]);
        if let Some(llm) = llm {
            command.arg("--llm").arg(llm);
        }
        stdout(&mut command);
        out.join("bundle/llm.gguf")
    }

    fn vicuna_v0_gguf(&self) -> PathBuf {
        let sources = [
            "layouts/minigpt4/pretrained.pth",
            "lavis/blip2_pretrained_opt.pth",
            "lavis/eva_vit_g.pth",
        ]
        .map(golden);
        let sources = sources.each_ref().map(PathBuf::as_path);
        self.gguf(&sources, Some(&self.vicuna_v0))
    }

    fn with_llm(&self, bridge: &Path, llm: &Path) -> Command {
        let mut command = convert(&[bridge], &self.out());
        command.arg("--llm").arg(llm);
        command
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }

    /// Exit code 1, one line that holds `words`, and nothing written.
    #[track_caller]
    fn refuses(&self, mut command: Command, words: &[&str]) {
        let error = one_line_error(&mut command);
        for word in words {
            assert!(error.contains(word), "{word:?} is not in: {error}");
        }
        for left in ["bundle", ".bundle.partial"] {
            assert!(!self.dir.path().join(left).exists(), "{left}: {error}");
        }
    }

    #[track_caller]
    fn takes(&self, mut command: Command) {
        stdout(&mut command);
        std::fs::remove_dir_all(self.out()).unwrap();
    }
}

#[test]
fn a_language_model_of_another_kind() {
    let models = Models::new();
    let (opt, t5) = (&models.opt, &models.t5);
    let opt_gguf = models.gguf(&[opt], None);
    let t5_gguf = models.gguf(&[t5], None);
    let vicuna_gguf = models.vicuna_v0_gguf();
    models.refuses(
        models.with_llm(opt, &t5_gguf),
        &["architecture t5", "blip2_opt was trained for OPT"],
    );
    models.refuses(
        models.with_llm(opt, &vicuna_gguf),
        &["architecture llama", "blip2_opt was trained for OPT"],
    );
    models.refuses(
        models.with_llm(t5, &opt_gguf),
        &["architecture mpt", "blip2_t5 was trained for Flan-T5"],
    );
    models.refuses(
        models.with_llm(&models.instructblip, &t5_gguf),
        &["architecture t5", "trained for Llama or Vicuna"],
    );
    // Each in its own place.
    models.takes(models.with_llm(opt, &opt_gguf));
    models.takes(models.with_llm(t5, &t5_gguf));
}

#[test]
fn a_t5_that_cannot_hold_its_activations() {
    let models = Models::new();
    let gguf = models.gguf(&[&models.t5], None);
    let with_warnings = |gguf: &Path| {
        let mut command = models.with_llm(&models.t5, gguf);
        let output = command.env("QBRIDGE_LOG", "warn").output().unwrap();
        assert!(output.status.success());
        std::fs::remove_dir_all(models.out()).unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(!with_warnings(&gguf).contains("f16"));
    let quantized = |quant: &str| {
        let mut command = models.with_llm(&models.t5, &gguf);
        command.args(["--llm-quant", quant]);
        command
    };
    models.refuses(quantized("F16"), &["llm.gguf", "beyond the range of F16"]);
    models.takes(quantized("BF16"));
    // f16 in place of f32 in the table of tensors: name, two dimensions, type.
    let mut bytes = std::fs::read(&gguf).unwrap();
    let name = b"dec.blk.1.ffn_down.weight";
    let at = bytes.windows(name.len()).position(|window| window == name);
    let kind = at.unwrap() + name.len() + 4 + 2 * 8;
    assert_eq!(bytes[kind..kind + 4], [0; 4]);
    bytes[kind] = 1;
    std::fs::write(&gguf, bytes).unwrap();
    let warning = with_warnings(&gguf);
    for word in ["llm.gguf", "ffn_down", "f16", "take a file of bf16"] {
        assert!(warning.contains(word), "{word:?} is not in: {warning}");
    }
}

#[test]
fn a_vicuna_of_another_version() {
    let models = Models::new();
    let bridge = &models.instructblip;
    models.refuses(
        models.with_llm(bridge, &models.vicuna_v0_gguf()),
        &["llm.gguf", "Vicuna v0", "trained for Vicuna v1.1"],
    );
    // Before it is a GGUF, too.
    models.refuses(
        models.with_llm(bridge, &models.vicuna_v0),
        &["Vicuna v0", "trained for Vicuna v1.1"],
    );
    models.takes(models.with_llm(bridge, &models.gguf(&[bridge], None)));
}

/// A copy of a file with each `from` in it replaced by as many bytes.
fn patched(path: &Path, from: &str, to: &str) -> PathBuf {
    let mut bytes = std::fs::read(path).unwrap();
    let places: Vec<usize> = bytes
        .windows(from.len())
        .enumerate()
        .filter_map(|(at, window)| (window == from.as_bytes()).then_some(at))
        .collect();
    assert!(!places.is_empty() && from.len() == to.len());
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    let copy = path.with_file_name("patched.gguf");
    std::fs::write(&copy, bytes).unwrap();
    copy
}

#[test]
fn an_mpt_that_is_no_opt() {
    let models = Models::new();
    let gguf = models.gguf(&[&models.opt], None);
    let without_scales = patched(&gguf, "ffn.act.scales", "ffn.act.scalez");
    models.refuses(
        models.with_llm(&models.opt, &without_scales),
        &["without ffn.act.scales", "GGUF that qbridge made"],
    );
    // An MPT of OPT's width that was quantized with AWQ has those scales.
    let mpt = patched(&gguf, "qbridge.model_type", "general.some_thing");
    models.refuses(
        models.with_llm(&models.opt, &mpt),
        &["an MPT", "trained for OPT", "GGUF that qbridge made"],
    );
}

#[test]
fn shards_that_are_not_all_there() {
    let models = Models::new();
    let shard = models.opt.join("model-00002-of-00003.safetensors");
    let whole = std::fs::read(&shard).unwrap();
    let refuses = |words: &[&str]| models.refuses(convert(&[&models.opt], &models.out()), words);
    for length in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&shard, &whole[..length]).unwrap();
        refuses(&[
            "model-00002-of-00003.safetensors",
            "cut short",
            "fetch it again",
        ]);
    }
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 119408\n";
    std::fs::write(&shard, pointer).unwrap();
    refuses(&["model-00002-of-00003.safetensors", "git lfs pull"]);
    std::fs::remove_file(&shard).unwrap();
    refuses(&[
        "model.safetensors.index.json",
        "model-00002-of-00003.safetensors is missing",
    ]);
    std::fs::write(&shard, whole).unwrap();
    models.takes(convert(&[&models.opt], &models.out()));
}

#[test]
fn pth_files_without_a_q_former() {
    let models = Models::new();
    let tower = golden("lavis/eva_vit_g.pth");
    let projection = golden("layouts/minigpt4/pretrained.pth");
    let with_vicuna = |sources: &[&Path]| {
        let mut command = convert(sources, &models.out());
        command.arg("--llm").arg(&models.vicuna_v0);
        command
    };
    models.refuses(with_vicuna(&[&tower]), &["eva_vit_g.pth", "no Q-Former"]);
    models.refuses(
        with_vicuna(&[&projection, &tower]),
        &["no Q-Former", "blip2_pretrained_flant5xxl.pth"],
    );
}

#[test]
fn a_pickle_with_code_in_it() {
    let models = Models::new();
    let trap = golden("lavis/code.pth");
    // It would run: Python's own reader, which torch.load is, is caught by it.
    let python = tempfile::tempdir().unwrap();
    let status = Command::new("python3")
        .args(["-c", "import pickle, sys, zipfile; pickle.loads(zipfile.ZipFile(sys.argv[1]).read('code/data.pkl'))"])
        .arg(&trap)
        .current_dir(python.path())
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success() && python.path().join("it-was-run").exists());

    // In place of a Hugging Face checkpoint's weights.
    for entry in std::fs::read_dir(&models.opt).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().contains("safetensors") {
            std::fs::remove_file(path).unwrap();
        }
    }
    std::fs::copy(&trap, models.opt.join("pytorch_model.bin")).unwrap();
    let empty = tempfile::tempdir().unwrap();
    let mut command = convert(&[&models.opt], &models.out());
    command.current_dir(empty.path());
    models.refuses(
        command,
        &["pytorch_model.bin", "posix.system", "nothing in it was run"],
    );
    // And in place of LAVIS's.
    let mut command = convert(&[&trap, &golden("lavis/eva_vit_g.pth")], &models.out());
    command.arg("--llm").arg(&models.vicuna_v0);
    command.current_dir(empty.path());
    models.refuses(command, &["code.pth", "nothing in it was run"]);
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0);
}
