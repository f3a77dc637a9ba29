//! The examples that `--help` shows, run as they stand there. Commands are found by asking the program, so a new one is
//! tested by having examples, and fails without.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use qbridge_tests::{demo_bundle, golden, qbridge, qbridge_path, repository, stdout};

/// No example takes longer, on a machine that has other work too.
const LONGEST: Duration = Duration::from_secs(120);

/// Examples that are not run: what they contain, and why.
const NOT_RUN: [(&str, &str); 4] = [
    ("qbridge pull ", "network: a model of the hub"),
    ("convert Salesforce/", "network: a model of the hub"),
    (
        "qbridge eval ",
        "the benchmarks' pictures: `eval.rs` asks about small ones",
    ),
    (
        "flan-t5-xl/",
        "published weights: no small T5 in LAVIS's files is at hand",
    ),
];

/// What stands in an example, and what is run for it here.
const REPLACED: [(&str, &str); 5] = [
    // The network.
    ("curl -s https://example.com/cat.png", "cat cat.png"),
    // Loopback and a free port.
    ("--host 0.0.0.0 --port 9000", "--port 0"),
    // The small models' own vocabulary, in place of BERT's.
    ("vocab.txt", "qformer_tokenizer"),
    ("/srv/bundles/", ""),
    ("~/", "$HOME/"),
];

/// Settings that keep the runs short, and servers apart: they are no part of what the examples show.
const SETTINGS: &str = "
[ask]
max-tokens = 8
[caption]
max-tokens = 8
[serve]
port = 0
[bench]
repeat = 1
rows = 64
warm-up = 0
tokens = 8
slots = 2
";

#[test]
fn every_example_of_every_command_runs() {
    let shared = tempfile::tempdir().unwrap();
    prepare(shared.path());
    let mut unused: BTreeSet<&str> = NOT_RUN.iter().map(|(part, _)| *part).collect();
    let mut failures = Vec::new();
    let mut n_run = 0;
    for command in commands() {
        let examples = examples(&command);
        if examples.is_empty() {
            failures.push(format!("qbridge {command} --help has no examples"));
        }
        for example in examples {
            if let Some((part, _)) = NOT_RUN.iter().find(|(part, _)| example.contains(part)) {
                unused.remove(part);
                continue;
            }
            n_run += 1;
            if let Err(reason) = run(&example, shared.path()) {
                failures.push(format!("{example}\n    {reason}"));
            }
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {n_run} examples: mend them, give `prepare` what they name, or put them to NOT_RUN with the reason\n{}",
        failures.len(),
        failures.join("\n")
    );
    assert!(
        unused.is_empty(),
        "NOT_RUN names what no example has: {unused:?}"
    );
}

/// The commands that `qbridge --help` lists.
fn commands() -> Vec<String> {
    let help = stdout(&mut qbridge(["--help"]));
    let names: Vec<String> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect();
    assert!(names.len() > 10, "{help}");
    names
}

/// The lines below `Examples:`, those that end with a backslash with the next.
fn examples(command: &str) -> Vec<String> {
    let help = stdout(&mut qbridge([command, "--help"]));
    let lines = help
        .lines()
        .skip_while(|line| *line != "Examples:")
        .skip(1)
        .take_while(|line| line.starts_with("  "));
    let mut examples: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in lines {
        match examples.last_mut() {
            Some(last) if goes_on => *last = format!("{last} {}", line.trim()),
            _ => examples.push(line.trim().to_owned()),
        }
        let last = examples.last_mut().unwrap();
        goes_on = last.ends_with('\\');
        last.truncate(last.trim_end_matches('\\').trim_end().len());
    }
    examples
}

/// What the examples name.
fn prepare(dir: &Path) {
    let link = |to: PathBuf, name: &str| symlink(to, dir.join(name)).unwrap();
    let tiny = |name: &str| golden(&format!("llm/{name}"));
    link(demo_bundle(), "demo");
    let made = |command: &mut Command| drop(stdout(command.current_dir(dir)));
    made(
        qbridge(["bundle", "--out", "blip2-opt", "--llm"])
            .arg(tiny("llm.gguf"))
            .arg(tiny("checkpoint")),
    );
    made(
        qbridge(["bundle", "--out", "instructblip", "--llm"])
            .arg(golden("instructblip/llm.gguf"))
            .arg(golden("instructblip/checkpoint")),
    );
    made(qbridge(["convert", "--out", "blip2-itm"]).args([
        golden("stage1/lavis.pth"),
        golden("lavis/eva_vit_g.pth"),
        "--qformer-tokenizer".into(),
        golden("stage1/checkpoint/tokenizer.json"),
    ]));
    link(golden("stage1/lavis.pth"), "blip2_pretrained.pth");
    link(
        golden("instructblip/checkpoint/qformer_tokenizer"),
        "qformer_tokenizer",
    );
    link(golden("clip/openai"), "clip-vit-base-patch32");
    link(golden("blip/captioning"), "blip-image-captioning-base");
    for (source, name) in [
        ("clip/openai", "clip"),
        ("blip/captioning", "blip-captions"),
    ] {
        made(qbridge(["convert", "--out", name]).arg(golden(source)));
    }
    for name in ["blip2-opt-2.7b", "my-blip2", "my-bridge"] {
        link(tiny("checkpoint"), name);
    }
    for name in ["model.gguf", "model.F16.gguf", "smollm2.gguf"] {
        link(tiny("llm.gguf"), name);
    }
    link(repository().join("demo/prompt.toml"), "prompt.toml");
    link(golden("instructblip/checkpoint"), "instructblip-vicuna-7b");
    link(
        golden("instructblip/llm.gguf"),
        "vicuna-7b-v1.1.Q4_K_M.gguf",
    );
    link(golden("lavis/minigpt4.pth"), "prerained_minigpt4_7b.pth");
    link(
        golden("lavis/blip2_pretrained_opt.pth"),
        "blip2_pretrained_flant5xxl.pth",
    );
    link(golden("lavis/eva_vit_g.pth"), "eva_vit_g.pth");
    link(golden("lavis/vicuna-v0.gguf"), "vicuna-7b-v0.gguf");

    let picture = |name: &str| repository().join(format!("demo/pictures/{name}.png"));
    for (picture, names) in [
        (
            picture("penguin"),
            ["cat.png", "1.png", "3.png", "photos/a.jpg"],
        ),
        (
            picture("dog"),
            ["dog.png", "2.png", "4.png", "photos/b.jpg"],
        ),
    ] {
        for name in names {
            let to = dir.join(name);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(&picture, to).unwrap();
        }
    }
    std::fs::create_dir(dir.join("shards")).unwrap();
    let tar = Command::new("tar")
        .args(["cf", "shards/0.tar", "cat.png", "dog.png"])
        .current_dir(dir)
        .status();
    assert!(tar.unwrap().success());

    for (name, text) in [
        ("captions.txt", "a cat\na dog\n"),
        ("animals.txt", "cat\ndog\n"),
        (
            "questions.jsonl",
            "{\"image\": \"cat.png\", \"question\": \"what is this?\"}\n",
        ),
        (
            "talk.json",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}, {\"role\": \"assistant\", \"content\": \"Hi\"}]}",
        ),
        ("answer.schema.json", "{\"type\": \"boolean\"}"),
        (
            "pairs.jsonl",
            "{\"image\": \"cat.png\", \"caption\": \"a cat\"}\n{\"image\": \"dog.png\", \"caption\": \"a dog\"}\n",
        ),
        ("pairs.csv", "image,caption\ncat.png,a cat\ndog.png,a dog\n"),
    ] {
        std::fs::write(dir.join(name), text).unwrap();
    }
    made(&mut qbridge([
        "index",
        "--quiet",
        "blip2-itm",
        "photos",
        "cat.png",
        "--out",
        "photos.index",
    ]));
    std::fs::write(dir.join("serve.toml"), "bundles = ['demo']\nport = 0\n").unwrap();
    std::fs::write(dir.join("keys.txt"), "secret-of-the-tests\n").unwrap();
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(dir.join("chain.pem"), pair.cert.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), pair.signing_key.serialize_pem()).unwrap();

    std::fs::write(dir.join("settings.toml"), SETTINGS).unwrap();
    let bin = dir.join("bin");
    std::fs::create_dir(&bin).unwrap();
    symlink(
        std::path::absolute(qbridge_path()).unwrap(),
        bin.join("qbridge"),
    )
    .unwrap();
    if Command::new("jq").arg("--version").output().is_err() {
        let script = bin.join("jq");
        std::fs::write(&script, "#!/bin/sh\nexec cat\n").unwrap();
        let status = Command::new("chmod").arg("+x").arg(script).status();
        assert!(status.unwrap().success());
    }
    for path in [
        ".local/share/bash-completion/completions",
        ".zfunc",
        ".config/fish/completions",
    ] {
        std::fs::create_dir_all(dir.join(path)).unwrap();
    }
}

/// Runs an example in the shell; why it failed.
fn run(example: &str, shared: &Path) -> Result<(), String> {
    let mut line = example.to_owned();
    for (part, replacement) in REPLACED {
        line = line.replace(part, replacement);
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    // A directory of its own, so that no example finds what another has written, nor what it is to write itself.
    let own = tempfile::tempdir().unwrap();
    let out = words.windows(2).find(|pair| pair[0] == "--out");
    for entry in std::fs::read_dir(shared).unwrap() {
        let entry = entry.unwrap();
        if out.is_none_or(|pair| entry.file_name() != pair[1]) {
            symlink(entry.path(), own.path().join(entry.file_name())).unwrap();
        }
    }
    let dir = own.path();
    let error_path = dir.join("stderr");
    let mut child = Command::new("bash")
        .args(["-o", "pipefail", "-c", &line])
        .current_dir(dir)
        .env("HOME", dir)
        .env("PATH", path_with(&dir.join("bin")))
        .env("QBRIDGE_CONFIG", dir.join("settings.toml"))
        .env("QBRIDGE_LOG", "error")
        .env_remove("XDG_CONFIG_HOME")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&error_path).unwrap())
        .process_group(0)
        .spawn()
        .expect("bash starts");
    let said = || std::fs::read_to_string(&error_path).unwrap_or_default();
    let is_server = words.starts_with(&["qbridge", "serve"]);
    let status = wait(&mut child, || is_server && said().contains("serving "));
    let status = match status {
        Waited::Ended(status) if !is_server => status,
        Waited::Ready => {
            signal(&child, "TERM");
            match wait(&mut child, || false) {
                Waited::Ended(status) => status,
                _ => return Err(stopped(&mut child, "it does not end when asked to")),
            }
        }
        Waited::Ended(status) => return Err(format!("{status}: {}", said().trim())),
        Waited::TooLong => {
            return Err(stopped(&mut child, &format!("too long: {}", said().trim())));
        }
    };
    match status.success() {
        true => Ok(()),
        false => Err(format!("{status}: {}", said().trim())),
    }
}

enum Waited {
    Ended(ExitStatus),
    Ready,
    TooLong,
}

/// Waits until a process has ended or is ready.
fn wait(child: &mut Child, is_ready: impl Fn() -> bool) -> Waited {
    let started = Instant::now();
    while started.elapsed() < LONGEST {
        if let Some(status) = child.try_wait().unwrap() {
            return Waited::Ended(status);
        }
        if is_ready() {
            return Waited::Ready;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Waited::TooLong
}

/// Stops what is left of an example; `reason`, for its caller.
fn stopped(child: &mut Child, reason: &str) -> String {
    signal(child, "KILL");
    let _ = child.wait();
    reason.to_owned()
}

/// Sends a signal to an example's own process group.
fn signal(child: &Child, name: &str) {
    let _ = Command::new("kill")
        .args([&format!("-{name}"), "--", &format!("-{}", child.id())])
        .status();
}

fn path_with(bin: &Path) -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let paths = std::iter::once(bin.to_owned()).chain(std::env::split_paths(&path));
    std::env::join_paths(paths).unwrap()
}
