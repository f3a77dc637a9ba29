//! What stands around the commands: settings in a file, completions, manual pages, `qbridge doctor` and `qbridge bench`.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Stdio};

use qbridge_tests::{
    Server, chat, demo_bundle, golden, one_line_error, qbridge, qbridge_path, repository, stdout,
};
use serde_json::Value;

fn json(command: &mut Command) -> Value {
    serde_json::from_str(&stdout(command)).unwrap()
}

/// What bash offers behind these words, the last of which is being typed.
fn offered(script: &Path, words: &[&str]) -> Vec<String> {
    let last = words[words.len() - 1];
    let before = words[words.len() - 2];
    let program = format!(
        "source '{}'; COMP_WORDS=({}); COMP_CWORD={}; _qbridge qbridge {last} {before}; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script.display(),
        words.join(" "),
        words.len() - 1,
    );
    let text = stdout(Command::new("bash").args(["--norc", "-c", &program]));
    text.lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_and_flags() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("qbridge");
    std::fs::write(&script, stdout(&mut qbridge(["completion", "bash"]))).unwrap();
    assert_eq!(offered(&script, &["qbridge", "cap"]), ["caption"]);
    let flags = offered(&script, &["qbridge", "caption", "--res"]);
    assert_eq!(flags, ["--resume"]);
    let types = offered(&script, &["qbridge", "ask", "--cache-type", "q"]);
    assert_eq!(types, ["q8_0"]);
}

#[test]
fn every_shell_has_a_script() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = stdout(&mut qbridge(["completion", shell]));
        assert!(script.contains("allow-remote-images"), "{shell}");
    }
    let output = qbridge(["completion", "csh"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn manual_pages_say_what_the_help_says() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("man/man1");
    let printed = stdout(qbridge(["man", "--out"]).arg(&out));
    let help = stdout(&mut qbridge(["caption", "--help"]));
    let flags = help
        .split_whitespace()
        .filter(|word| word.starts_with("--"));
    let examples = help.lines().skip_while(|line| *line != "Examples:").skip(1);
    let has_groff = Command::new("groff").arg("--version").output().is_ok();
    for path in printed.lines() {
        let page = std::fs::read_to_string(path).unwrap();
        assert!(page.contains("\n.TH qbridge"), "{path}: {page}");
        if has_groff {
            let rendered = Command::new("groff")
                .args(["-man", "-Tutf8", "-ww", "-P-c", path])
                .output()
                .unwrap();
            let warnings = String::from_utf8_lossy(&rendered.stderr);
            assert!(warnings.is_empty(), "{path}: {warnings}");
        }
    }
    let page = std::fs::read_to_string(out.join("qbridge-caption.1")).unwrap();
    // What roff reads otherwise is written with escapes.
    let page = page.replace("\\-", "-").replace("\\*(Aq", "'");
    for flag in flags {
        let flag = flag.trim_matches(|c: char| !c.is_alphanumeric() && c != '-');
        assert!(page.contains(flag), "{flag}");
    }
    for example in examples.filter(|line| !line.is_empty()) {
        assert!(page.contains(example.trim()), "{example}");
    }
    assert!(out.join("qbridge.1").exists());
}

#[test]
fn the_command_line_wins_over_the_environment_and_that_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let users = dir.path().join("qbridge/config.toml");
    std::fs::create_dir(users.parent().unwrap()).unwrap();
    let other = dir.path().join("other.toml");
    std::fs::write(&users, "threads = 3\n[doctor]\nslots = 5\nmemory = 3\n").unwrap();
    std::fs::write(&other, "[doctor]\nslots = 7\n").unwrap();
    let doctor = |args: &[&str], env: &[(&str, &str)]| {
        let mut command = qbridge(["doctor", "--json"]);
        let found = json(
            command
                .args(args)
                .arg(demo_bundle())
                .env_remove("QBRIDGE_CONFIG")
                .env("XDG_CONFIG_HOME", dir.path())
                .envs(env.iter().copied()),
        );
        let settings = &found["bundle"]["settings"];
        let number = |value: &Value| value.as_u64().unwrap();
        (number(&settings["slots"]), number(&settings["threads"]))
    };
    assert_eq!(doctor(&[], &[]), (5, 3));
    assert_eq!(doctor(&[], &[("QBRIDGE_THREADS", "2")]), (5, 2));
    let args = ["--threads", "1", "--slots", "6"];
    assert_eq!(doctor(&args, &[("QBRIDGE_THREADS", "2")]), (6, 1));
    // Another file takes the place of the user's own.
    let other = other.to_str().unwrap();
    assert_eq!(doctor(&["--config", other, "--threads", "1"], &[]), (7, 1));
    assert_eq!(
        doctor(&["--threads", "1"], &[("QBRIDGE_CONFIG", other)]),
        (7, 1)
    );
}

#[test]
fn what_is_wrong_with_a_file_of_settings_is_said_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("settings.toml");
    for (text, told) in [
        ("[ask]\nmax-token = 3", "max-token"),
        ("[asked]\nmax-tokens = 3", "asked"),
        ("[inspect]\nverify = 3", "verify must be true or false"),
        ("[inspect", "TOML parse error"),
    ] {
        std::fs::write(&file, text).unwrap();
        let output = qbridge(["inspect", "nowhere", "--config"])
            .arg(&file)
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(
            error.contains(file.to_str().unwrap()) && error.contains(told),
            "{text}: {error}"
        );
    }
    let missing =
        one_line_error(qbridge(["doctor", "--config", "/nowhere/settings.toml"]).arg("x"));
    assert!(missing.contains("/nowhere/settings.toml"), "{missing}");
}

#[test]
fn doctor_tells_whether_a_bundle_fits() {
    let bundle = demo_bundle();
    let found = json(qbridge(["doctor", "--json"]).arg(&bundle));
    assert_eq!(found["bundle"]["fits"], true, "{found}");
    let parts = found["bundle"]["memory"].as_object().unwrap();
    let sum: u64 = parts.values().map(|bytes| bytes.as_u64().unwrap()).sum();
    assert_eq!(found["bundle"]["total"], sum);
    assert!(
        found["machine"]["memory_total"].as_u64() > found["machine"]["memory_available"].as_u64()
    );
    assert_eq!(found["models"], Value::Null);

    let mut small = qbridge(["doctor", "--memory", "0.5"]);
    let output = small.arg(&bundle).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let flags = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("- it fits with "));
    let flags: Vec<&str> = flags.expect(&text).split(' ').collect();
    // What it proposes is so.
    stdout(small.args(flags));

    let models = json(&mut qbridge(["doctor", "--json", "--memory", "8"]));
    let models = models["models"].as_array().unwrap();
    assert_eq!(models.len(), 13);
    assert_eq!(models[0]["fits"][0]["fits"], true);
    assert_eq!(models[0]["fits"][2]["fits"], false);
    assert!(one_line_error(&mut qbridge(["doctor", "/nowhere"])).contains("/nowhere"));
}

/// Bytes that a process has had in memory at most.
#[cfg(target_os = "linux")]
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib: u64 = line
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    kib << 10
}

/// An estimate that is too small lets a machine run out of memory, one that is too large refuses what would run.
#[cfg(target_os = "linux")]
#[test]
fn what_doctor_estimates_is_what_a_server_takes() {
    let bundle = demo_bundle();
    let picture = std::fs::read(repository().join("demo/pictures/dog.png")).unwrap();
    for args in [
        &["--slots", "4", "--image-cache", "1"][..],
        &[
            "--slots",
            "1",
            "--ctx-size",
            "512",
            "--vision",
            "int8",
            "--image-cache",
            "1",
        ],
        &[
            "--slots",
            "8",
            "--ctx-size",
            "2048",
            "--cache-type",
            "f32",
            "--image-cache",
            "1",
        ],
    ] {
        let found = json(qbridge(["doctor", "--json"]).args(args).arg(&bundle));
        let estimated = found["bundle"]["total"].as_u64().unwrap();
        let server = Server::start(&bundle, args);
        let (status, _) = server.post("/chat/completions", &chat(&picture, "What is this?"));
        assert_eq!(status, 200);
        let measured = peak(server.pid());
        println!("{args:?}: estimated {estimated}, measured {measured}");
        assert!(
            (measured..measured * 3 / 2).contains(&estimated),
            "{args:?}: {estimated} bytes estimated, {measured} measured"
        );
    }
}

/// The same of a bundle without a language model, which a server answers embeddings by.
#[cfg(target_os = "linux")]
#[test]
fn what_doctor_estimates_of_heads_is_what_a_server_takes() {
    let bundle = demo_bundle().with_file_name("qbridge-demo-heads");
    let picture = std::fs::read(repository().join("demo/pictures/dog.png")).unwrap();
    for args in [
        &["--image-cache", "1"][..],
        &["--image-cache", "1", "--vision", "int8"],
    ] {
        let found = json(qbridge(["doctor", "--json"]).args(args).arg(&bundle));
        assert_eq!(found["bundle"]["language_model"], Value::Null);
        let estimated = found["bundle"]["total"].as_u64().unwrap();
        let server = Server::start(&bundle, args);
        // Heads caption pictures, and read no text there.
        let mut body = chat(&picture, "");
        body["model"] = "qbridge-demo-heads".into();
        body["messages"][0]["content"]
            .as_array_mut()
            .unwrap()
            .truncate(1);
        let (status, answer) = server.post("/chat/completions", &body);
        assert_eq!(status, 200, "{answer}");
        let measured = peak(server.pid());
        println!("{args:?}: estimated {estimated}, measured {measured}");
        assert!(
            (measured..measured * 3 / 2).contains(&estimated),
            "{args:?}: {estimated} bytes estimated, {measured} measured"
        );
    }
}

/// Names of what `bench --json` measured.
fn stage_names(found: &Value) -> Vec<&str> {
    let stages = found["stages"].as_array().unwrap().iter();
    stages
        .map(|stage| stage["name"].as_str().unwrap())
        .collect()
}

#[test]
fn bench_measures_a_part_alone() {
    let args = ["bench", "--repeat", "1", "--warm-up", "0", "--tokens", "2"];
    for (part, expected) in [
        (
            "vision",
            &[
                "decode picture",
                "preprocess",
                "ViT",
                "Q-Former",
                "projection",
            ][..],
        ),
        (
            "language-model",
            &["prefill, 64 rows", "decode step, 1 slot"][..],
        ),
        ("captions", &["caption"][..]),
    ] {
        let found = json(
            qbridge(args)
                .args(["--slots", "1", "--rows", "64", "--only", part, "--json"])
                .arg(demo_bundle())
                .stderr(Stdio::null()),
        );
        assert_eq!(stage_names(&found), expected, "{part}");
    }
}

#[test]
fn bench_tells_where_the_time_goes() {
    for kind in ["f32", "int8"] {
        let found = json(
            qbridge(["bench", "--operations", "--json", "--repeat", "2"])
                .args(["--batch", "2", "--warm-up", "0", "--vision", kind])
                .arg(demo_bundle())
                .stderr(Stdio::null()),
        );
        assert_eq!(found["batch"], 2);
        assert_eq!(found["vision"], kind);
        let [vit, qformer] = &found["parts"].as_array().unwrap()[..] else {
            panic!("{found}");
        };
        let calls = |part: &Value, name: &str| {
            let rows = part["operations"].as_array().unwrap();
            let row = rows.iter().find(|row| row["name"] == name);
            row.and_then(|row| row["calls"].as_u64())
        };
        // The demo's ViT has ten blocks, its Q-Former two layers that attend to themselves and to the picture.
        assert_eq!(calls(vit, "MLP: fc1"), Some(10), "{vit}");
        // Those of the blocks count with the products that they come before.
        assert_eq!(calls(vit, "LayerNorm"), Some(1), "{vit}");
        assert_eq!(
            calls(qformer, "attention: keys, values"),
            Some(8),
            "{qformer}"
        );
        for part in [vit, qformer] {
            let rows = part["operations"].as_array().unwrap();
            let sum: f64 = rows.iter().map(|row| row["share"].as_f64().unwrap()).sum();
            assert!((sum - 1.0).abs() < 1e-6, "{part}");
            let products = rows.iter().filter(|row| row.get("gflops").is_some());
            assert!(products.count() >= 5, "{part}");
        }
    }
    // A checkpoint directory has no language model, and needs none here.
    let table = stdout(
        qbridge(["bench", "--operations", "--repeat", "1"])
            .arg(golden("llm/checkpoint"))
            .stderr(Stdio::null()),
    );
    for part in ["\nViT, ", "\nQ-Former, ", "\nrest "] {
        assert!(table.contains(part), "{table}");
    }
}

#[test]
fn bench_measures_a_bundle_without_a_language_model() {
    let bundle = demo_bundle().with_file_name("qbridge-demo-heads");
    let bench = ["bench", "--repeat", "1", "--warm-up", "0"];
    let of_pictures = [
        "decode picture",
        "preprocess",
        "ViT",
        "features of a picture",
    ];
    let of_texts = ["features of a text", "match a text"];
    for (args, expected) in [
        (
            &[][..],
            [&of_pictures[..], &of_texts, &["caption"]].concat(),
        ),
        (&["--only", "vision"], of_pictures.to_vec()),
        (&["--only", "captions"], vec!["caption"]),
    ] {
        let found = json(
            qbridge(bench)
                .args(args)
                .arg("--json")
                .arg(&bundle)
                .stderr(Stdio::null()),
        );
        assert_eq!(stage_names(&found), expected, "{args:?}");
        for stage in found["stages"].as_array().unwrap() {
            let unit = match of_texts.contains(&stage["name"].as_str().unwrap()) {
                true => "texts",
                false => "pictures",
            };
            assert_eq!(stage["unit"], unit, "{stage}");
            assert!(stage["per_second"].as_f64().unwrap() > 0.0, "{stage}");
        }
        assert_eq!(found["subject"]["language_model"], Value::Null);
    }
    let error = one_line_error(
        qbridge(bench)
            .args(["--only", "language-model"])
            .arg(&bundle),
    );
    assert!(error.contains("has no language model"), "{error}");
}

#[test]
fn bench_asks_a_blip_that_answers() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("blip-vqa");
    stdout(
        qbridge(["convert", "--vision", "f32"])
            .arg(golden("blip/answering"))
            .arg("--out")
            .arg(&bundle),
    );
    let bench = ["bench", "--repeat", "1", "--warm-up", "0", "--json"];
    let found = json(qbridge(bench).arg(&bundle).stderr(Stdio::null()));
    let expected = ["decode picture", "preprocess", "ViT", "answer a question"];
    assert_eq!(stage_names(&found), expected);
    let answer = &found["stages"][3];
    assert_eq!(answer["unit"], "texts", "{answer}");
    assert!(answer["per_second"].as_f64().unwrap() > 0.0, "{answer}");
    let error = one_line_error(qbridge(["bench", "--only", "captions"]).arg(&bundle));
    assert!(error.contains("writes no captions"), "{error}");
}

#[test]
fn bench_measures_every_stage() {
    let args = [
        "bench",
        "--repeat",
        "2",
        "--warm-up",
        "0",
        "--tokens",
        "4",
        "--slots",
        "2",
    ];
    let found = json(
        qbridge(args)
            .args(["--rows", "64", "--json"])
            .arg(demo_bundle())
            .stderr(Stdio::null()),
    );
    assert_eq!(
        stage_names(&found),
        [
            "decode picture",
            "preprocess",
            "ViT",
            "Q-Former",
            "projection",
            "prefill, 64 rows",
            "decode step, 1 slot",
            "decode step, 2 slots",
            "caption",
            "2 captions at once",
        ]
    );
    for stage in found["stages"].as_array().unwrap() {
        assert_eq!(
            stage["seconds"]["runs"].as_array().unwrap().len(),
            2,
            "{stage}"
        );
        assert!(stage["per_second"].as_f64().unwrap() > 0.0, "{stage}");
    }
    assert_eq!(found["subject"]["bundle"], "qbridge-demo");
    assert!(found["machine"]["cores"].as_u64().unwrap() > 0);
    let error = one_line_error(
        qbridge(["bench", "--repeat", "1"])
            .arg(demo_bundle())
            .arg(qbridge_path()),
    );
    assert!(error.contains(qbridge_path().to_str().unwrap()), "{error}");
}
