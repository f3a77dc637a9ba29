//! `qbridge pull` from a hub of the test's own: the bundles that it makes, and
//! what it says. What a hub may do wrong is in `hub.rs`.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use qbridge_tests::hub::{Files, Hub, MODEL, Reply, files_of};
use qbridge_tests::{golden, one_line_error, qbridge, stdout};
use serde_json::Value;

/// `qbridge pull` into `dir/out`, with its cache in `dir`.
fn pull(endpoint: &str, dir: &Path, out: &str) -> Command {
    let mut command = qbridge(["pull", MODEL, "--endpoint", endpoint]);
    command
        .arg("--cache")
        .arg(dir.join("cache"))
        .arg("--out")
        .arg(dir.join(out))
        .env_remove("HF_TOKEN")
        .env_remove("HF_HUB_OFFLINE")
        .env("NO_PROXY", "127.0.0.1");
    command
}

/// Token ids of the first golden answer, and those that a bundle gives.
fn first_answer(bundle: &Path) -> [Value; 2] {
    let golden_answers = std::fs::read(golden("llm/golden.json")).unwrap();
    let mut golden_answers: Value = serde_json::from_slice(&golden_answers).unwrap();
    let case = golden_answers["cases"][0].take();
    let picture = format!("llm/pictures/{}.png", case["picture"].as_str().unwrap());
    let text = stdout(
        qbridge(["ask", "--raw", "--json", "--cache-type", "f32"])
            .args([
                "--max-tokens",
                &golden_answers["max_new_tokens"].to_string(),
            ])
            .arg(bundle)
            .arg(golden(&picture))
            .arg(case["prompt"].as_str().unwrap()),
    );
    let answer: Value = serde_json::from_str(&text).unwrap();
    [case["answer_ids"].clone(), answer["token_ids"].clone()]
}

/// The files of a bundle but for the manifest, which names their origin.
fn parts(bundle: &Path) -> Files {
    let mut files = files_of(bundle);
    assert!(files.remove("bundle.toml").is_some());
    files
}

fn bytes_sent(hub: &Hub) -> usize {
    let sizes = hub.asked("/blob/").into_iter().map(|request| {
        let (start, end) = request.range(usize::MAX).unwrap_or((0, usize::MAX));
        end - start
    });
    sizes.fold(0, usize::saturating_add)
}

#[test]
fn a_model_of_the_hub_becomes_a_bundle_that_answers_as_transformers_does() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::of(&files_of(&golden("llm/checkpoint")));
    let whole = dir.path().join("whole");
    let printed = stdout(pull(&hub.endpoint, dir.path(), "whole").args([
        "--vision",
        "f32",
        "--llm-quant",
        "f32",
    ]));
    assert_eq!(Path::new(printed.trim()), whole);
    let [expected, found] = first_answer(&whole);
    assert_eq!(expected, found);
    let commit = hub.push(&files_of(&golden("llm/checkpoint")));
    let manifest = std::fs::read_to_string(whole.join("bundle.toml")).unwrap();
    for line in [
        format!("checkpoint = \"{MODEL}\""),
        format!("revision = \"{commit}\""),
        format!("llm = \"{MODEL} F32\""),
    ] {
        assert!(manifest.contains(&line), "{line} is not in: {manifest}");
    }

    // Without a connection, in another precision.
    let before = hub.asked("").len();
    stdout(pull(&hub.endpoint, dir.path(), "again").args(["--offline", "--llm-quant", "Q8_0"]));
    assert_eq!(hub.asked("").len(), before);
    let mut other = pull(&hub.endpoint, dir.path(), "other");
    let error = one_line_error(other.env("HF_HUB_OFFLINE", "1").args(["--revision", "v2"]));
    assert!(
        error.contains("owner/model@v2: offline, and not fetched before"),
        "{error}"
    );
}

/// A checkpoint pulled by ranges, pulled whole and converted from its
/// directory makes the same files.
fn same_bundle_each_way(checkpoint: &str, llm: &str) {
    let dir = tempfile::tempdir().unwrap();
    let files = files_of(&golden(checkpoint));
    let weights = files["model.safetensors"].len();
    let hub = Hub::of(&files);
    let out = |name: &str| dir.path().join(name);
    stdout(
        pull(&hub.endpoint, dir.path(), "part")
            .arg("--llm")
            .arg(golden(llm)),
    );
    let sent = bytes_sent(&hub);
    assert!(sent < weights, "{sent} of {weights} bytes");
    // Whole, it is in the cache from then on.
    stdout(pull(&hub.endpoint, dir.path(), "own").args(["--llm-quant", "f32"]));
    let before = hub.asked("/blob/").len();
    stdout(
        pull(&hub.endpoint, dir.path(), "whole")
            .arg("--llm")
            .arg(golden(llm)),
    );
    assert_eq!(hub.asked("/blob/").len(), before);
    let convert = |out: &Path| {
        let mut command = qbridge(["convert"]);
        command.arg(golden(checkpoint)).arg("--out").arg(out);
        command
    };
    stdout(convert(&out("local")).arg("--llm").arg(golden(llm)));
    let local = parts(&out("local"));
    assert!(local == parts(&out("part")));
    assert!(local == parts(&out("whole")));
    assert_eq!(
        std::fs::read(out("part").join("bundle.toml")).unwrap(),
        std::fs::read(out("whole").join("bundle.toml"))
            .map(|text| String::from_utf8(text)
                .unwrap()
                .replace("\"whole\"", "\"part\""))
            .unwrap()
            .into_bytes(),
    );
    stdout(convert(&out("local-own")).args(["--llm-quant", "f32"]));
    // All but the name in the GGUF.
    let (mut own, mut local) = (parts(&out("own")), parts(&out("local-own")));
    let tail = |file: &mut Vec<u8>| file.split_off(file.len() / 2);
    let [left, right] =
        [&mut own, &mut local].map(|files| tail(files.get_mut("llm.gguf").unwrap()));
    assert!(left[left.len() - 4096..] == right[right.len() - 4096..]);
    own.remove("llm.gguf");
    local.remove("llm.gguf");
    assert!(own == local);
}

#[test]
fn blip2_by_ranges_is_what_it_is_whole() {
    same_bundle_each_way("llm/checkpoint", "llm/llm.gguf");
}

#[test]
fn instructblip_by_ranges_is_what_it_is_whole() {
    same_bundle_each_way("instructblip/checkpoint", "instructblip/llm.gguf");
}

#[test]
fn convert_takes_a_model_of_the_hub_too() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::of(&files_of(&golden("llm/checkpoint")));
    let convert = |source: &str, out: &str| {
        let mut command = qbridge(["convert", source, "--endpoint", &hub.endpoint]);
        command
            .arg("--llm")
            .arg(golden("llm/llm.gguf"))
            .arg("--cache")
            .arg(dir.path().join("cache"))
            .arg("--out")
            .arg(dir.path().join(out))
            .current_dir(dir.path());
        command
    };
    stdout(&mut convert(MODEL, "bundle"));
    let error = one_line_error(&mut convert("no/such", "other"));
    assert!(error.contains("not a file or directory here"), "{error}");
    assert!(error.contains("there is no such model"), "{error}");
    // What is there is never looked for at the hub.
    let before = hub.asked("").len();
    std::fs::create_dir_all(dir.path().join(MODEL)).unwrap();
    let error = one_line_error(&mut convert(MODEL, "other"));
    assert!(error.contains("config.json"), "{error}");
    assert_eq!(hub.asked("").len(), before);
}

#[test]
fn what_was_interrupted_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let files = files_of(&golden("llm/checkpoint"));
    // The hub stops in the middle of the weights and keeps the connection.
    let hub = Hub::start(&files, |request, before, reply| {
        if request.is_cdn && before == 1 {
            std::thread::sleep(Duration::from_secs(600));
        }
        match request.is_cdn && before == 0 {
            true => reply.cut_after(20_000),
            false => reply,
        }
    });
    let mut child = pull(&hub.endpoint, dir.path(), "out")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while hub.asked("/blob/").len() < 2 {
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let unfinished: Vec<String> = files_of(&dir.path().join("cache"))
        .into_keys()
        .filter(|name| name.contains("model.safetensors"))
        .collect();
    assert!(matches!(&unfinished[..], [one] if one.ends_with("model.safetensors.part")));
    assert!(!dir.path().join("out").exists());

    stdout(&mut pull(&hub.endpoint, dir.path(), "out"));
    let ranges: Vec<_> = hub
        .asked("/blob/")
        .iter()
        .map(|request| request.range(0).map_or(0, |(start, _)| start))
        .collect();
    assert_eq!(ranges, [0, 20_000, 20_000]);
    qbridge_tests::stdout(qbridge(["inspect", "--verify"]).arg(dir.path().join("out")));
}

#[test]
fn the_token_is_sent_and_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(
        &files_of(&golden("llm/checkpoint")),
        |request, before, reply| match request.path.contains("/api/") && before == 0 {
            true => Reply::status(500),
            false => reply,
        },
    );
    let output = pull(&hub.endpoint, dir.path(), "out")
        .env("HF_TOKEN", "hf_verysecret\n")
        .env("QBRIDGE_LOG", "trace")
        .output()
        .unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{log}");
    assert!(log.contains("trying again"), "{log}");
    assert!(!log.contains("verysecret"), "{log}");
    let asked = hub.asked("/api/");
    assert_eq!(asked[1].headers["authorization"], "Bearer hf_verysecret");
    for (name, bytes) in files_of(dir.path()) {
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("verysecret"), "{name}");
    }

    let mut command = pull(&hub.endpoint, dir.path(), "other");
    let error = one_line_error(command.env("HF_TOKEN", "hf_very\nsecret"));
    assert!(
        error.contains("HF_TOKEN holds characters that no token has"),
        "{error}"
    );
    assert!(!error.contains("secret"), "{error}");
}

#[test]
fn what_cannot_become_a_bundle_is_refused_before_its_weights_are_fetched() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = files_of(&golden("llm/checkpoint"));
    let hub = Hub::of(&files);
    let pull = |out: &str| pull(&hub.endpoint, dir.path(), out);
    std::fs::create_dir(dir.path().join("there")).unwrap();
    for (command, words) in [
        (&mut pull("there"), "exists already"),
        (
            pull("out").args(["--llm", "/not/there.gguf"]),
            "/not/there.gguf: No such file",
        ),
        (pull("out").args(["--layout", "none"]), "none"),
    ] {
        let error = one_line_error(command);
        assert!(error.contains(words), "{words:?} is not in: {error}");
    }
    assert!(hub.asked("").is_empty());
    files.insert(
        "config.json".to_owned(),
        b"{\"model_type\": \"llama\"}".to_vec(),
    );
    hub.push(&files);
    let error = one_line_error(&mut pull("out"));
    assert!(
        error.contains("model_type: \"llama\" is not known"),
        "{error}"
    );
    assert!(hub.asked("model.safetensors").is_empty());
}

#[test]
fn wrong_usage_is_told_apart() {
    for args in [
        &["pull", "blip2"][..],
        &["pull", "../blip2"],
        &["pull", "a/b/c"],
        &["pull", MODEL, "--revision", "../main"],
        &["pull", MODEL, "--endpoint", "huggingface.co"],
        &[
            "pull",
            MODEL,
            "--endpoint",
            "https://user:password@huggingface.co",
        ],
    ] {
        let output = qbridge(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
}
