//! `qbridge index`, `search` and retrieval in `eval`, through the built program, against `tests/golden/make_retrieval.py`.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use qbridge_tests::{golden, one_line_error, qbridge, repository, run_killed, stdout};
use serde_json::Value;

/// An index holds features in 16 bits.
const STORED: f64 = 2e-4;

const TOLERANCE: f64 = 1e-4;

/// A bundle of `golden/stage1`, made once: `checkpoint`, or `lavis`, which also writes captions.
fn bundle(name: &str) -> PathBuf {
    static BUNDLES: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
        let dir = tempfile::tempdir().unwrap();
        let convert = |name: &str, sources: &[PathBuf]| {
            let mut convert = qbridge(["convert", "--vision", "f32"]);
            convert
                .args(sources)
                .arg("--out")
                .arg(dir.path().join(name));
            if name == "lavis" {
                convert.arg("--qformer-tokenizer");
                convert.arg(golden("instructblip/checkpoint/qformer_tokenizer"));
            }
            stdout(&mut convert);
        };
        convert("checkpoint", &[golden("stage1/checkpoint")]);
        let lavis = [golden("stage1/lavis.pth"), golden("lavis/eva_vit_g.pth")];
        convert("lavis", &lavis);
        dir
    });
    BUNDLES.path().join(name)
}

fn reference() -> Value {
    let path = golden("retrieval/golden.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn names() -> Vec<String> {
    let reference = reference();
    let names = reference["names"].as_array().unwrap();
    names
        .iter()
        .map(|name| name.as_str().unwrap().to_owned())
        .collect()
}

/// The pictures of the reference, in `dir/pictures`.
fn pictures(dir: &Path) -> PathBuf {
    let to = dir.join("pictures");
    std::fs::create_dir(&to).unwrap();
    for name in names() {
        let llm = golden(&format!("llm/pictures/{name}"));
        let demo = repository().join(format!("demo/pictures/{name}"));
        let from = if llm.exists() { llm } else { demo };
        std::fs::copy(from, to.join(name)).unwrap();
    }
    to
}

fn texts() -> Vec<String> {
    let reference = reference();
    let texts = reference["plain"]["texts"].as_array().unwrap();
    texts
        .iter()
        .map(|text| text.as_str().unwrap().to_owned())
        .collect()
}

/// A score of picture `i` and text `j`.
fn score(of: &Value, i: usize, j: usize) -> f64 {
    of[i][j].as_f64().unwrap()
}

fn run_in<'a>(dir: &Path, args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = qbridge(args);
    command.current_dir(dir);
    command
}

fn index(dir: &Path, args: &[&str]) -> Command {
    let mut command = run_in(dir, ["index", "--quiet"]);
    command.arg(bundle("checkpoint")).args(args);
    command
}

fn lines(text: &str) -> Vec<Value> {
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().unwrap()
}

/// The place of a picture that was found.
fn place(found: &Value) -> usize {
    let image = found["image"].as_str().unwrap();
    let name = image.rsplit('/').next().unwrap();
    names().iter().position(|other| other == name).unwrap()
}

#[track_caller]
fn near(found: &Value, expected: f64, tolerance: f64) {
    let found = found.as_f64().unwrap();
    assert!((found - expected).abs() < tolerance, "{found} {expected}");
}

#[test]
fn pictures_are_found_in_the_order_of_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    pictures(dir);
    stdout(&mut index(dir, &["pictures", "--out", "a.index"]));
    assert!(!dir.join("a.index.partial").exists());
    let (reference, texts, n) = (reference(), texts(), names().len());
    let similarity = &reference["plain"]["similarity"];
    let probability = &reference["plain"]["probability"];
    let search = |args: &[&str]| {
        let mut search = run_in(dir, ["search", "a.index", "--json", "--top", "13"]);
        lines(&stdout(search.args(args).args(&texts)))
    };
    for args in [&[][..], &["--exact"]] {
        let found = search(args);
        assert_eq!(found.len(), n * texts.len());
        for (j, found) in found.chunks(n).enumerate() {
            let scores = found
                .iter()
                .map(|found| found["similarity"].as_f64().unwrap());
            assert!(scores.is_sorted_by(|a, b| a >= b), "{found:?}");
            for found in found {
                assert_eq!(found["text"], texts[j]);
                near(
                    &found["similarity"],
                    score(similarity, place(found), j),
                    STORED,
                );
                assert!(found["probability"].is_null());
            }
        }
    }
    // All of them are read again, and in the order of the matching head.
    let found = search(&["--rerank", "13"]);
    for (j, found) in found.chunks(n).enumerate() {
        let of = |found: &Value| found["probability"].as_f64().unwrap();
        assert!(found.is_sorted_by(|a, b| of(a) >= of(b)));
        for found in found {
            near(
                &found["probability"],
                score(probability, place(found), j),
                TOLERANCE,
            );
        }
    }
    // Only the first four: the others stay behind them by their similarity.
    let found = search(&["--rerank", "4"]);
    for (j, found) in found.chunks(n).enumerate() {
        assert!(
            found[..4]
                .iter()
                .all(|found| found["probability"].is_number())
        );
        let rest = found[4..].iter();
        let rest: Vec<f64> = rest
            .map(|found| score(similarity, place(found), j))
            .collect();
        let first = found[..4]
            .iter()
            .map(|found| score(similarity, place(found), j));
        let least = first.fold(f64::INFINITY, f64::min);
        assert!(rest.iter().all(|rest| *rest < least + 2.0 * STORED));
    }
}

#[test]
fn a_picture_finds_itself_first() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    pictures(dir);
    stdout(&mut index(dir, &["pictures", "--out", "a.index"]));
    for name in ["dog.png", "face.png"] {
        let image = format!("pictures/{name}");
        let mut search = run_in(dir, ["search", "a.index", "--json", "-n", "3", "--image"]);
        let found = lines(&stdout(search.arg(&image)));
        assert_eq!(found.len(), 3);
        assert_eq!(
            (&found[0]["image"], &found[0]["query_image"]),
            (&Value::from(&*image), &Value::from(&*image))
        );
        near(&found[0]["similarity"], 1.0, STORED);
        assert!(found[1]["similarity"].as_f64() < found[0]["similarity"].as_f64());
    }
    let table = stdout(&mut run_in(
        dir,
        ["search", "a.index", "a dog", "--top", "2", "--rerank", "2"],
    ));
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!((rows.len(), rows[0]), (3, "similarity  probability  image"));
    let list = dir.join("texts.txt");
    std::fs::write(&list, "a dog\na cat\n").unwrap();
    let mut search = run_in(dir, ["search", "a.index", "-", "--json", "-n", "1"]);
    search.stdin(Stdio::from(std::fs::File::open(list).unwrap()));
    assert_eq!(lines(&stdout(&mut search)).len(), 2);
}

#[test]
fn what_is_added_is_as_if_it_had_been_there() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let pictures = pictures(dir);
    stdout(&mut index(dir, &["pictures", "--out", "whole.index"]));
    stdout(&mut index(
        dir,
        &["pictures/dog.png", "pictures/face.png", "--out", "a.index"],
    ));
    // Nothing is replaced unasked.
    let error = one_line_error(&mut index(dir, &["pictures", "--out", "a.index"]));
    assert!(error.contains("a.index exists already"), "{error}");
    let dog = std::fs::read(pictures.join("dog.png")).unwrap();
    std::fs::write(pictures.join("broken.png"), &dog[..dog.len() / 2]).unwrap();
    let mut add = index(dir, &["pictures", "--out", "a.index", "--add", "--json"]);
    let output = add.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "a broken picture is told");
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.contains("pictures/broken.png"), "{told}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    let n = names().len();
    assert_eq!(summary["pictures"], n);
    assert_eq!(
        (&summary["indexed"], &summary["skipped"]),
        (&Value::from(n - 2), &Value::from(2))
    );
    assert_eq!(summary["errors"], 1);
    let search = |index: &str| {
        let mut search = run_in(dir, ["search", index, "--json", "--top", "13"]);
        lines(&stdout(search.args(texts())))
    };
    assert_eq!(search("a.index"), search("whole.index"));
    // Once more: nothing is new but what is broken.
    let output = index(dir, &["pictures", "--out", "a.index", "--add", "--json"]).output();
    let summary: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    assert_eq!(
        (&summary["indexed"], &summary["pictures"]),
        (&Value::from(0), &Value::from(n))
    );
}

#[test]
fn killed_runs_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let from = pictures(dir);
    let many = dir.join("many");
    std::fs::create_dir(&many).unwrap();
    let n = 120;
    for (i, name) in names().iter().cycle().take(n).enumerate() {
        let bytes = std::fs::read(from.join(name)).unwrap();
        let length = if i % 20 == 19 {
            bytes.len() / 2
        } else {
            bytes.len()
        };
        std::fs::write(many.join(format!("{i:03}-{name}")), &bytes[..length]).unwrap();
    }
    let args = ["many", "--out", "a.index", "--add", "--json"];
    let output = run_killed(|| index(dir, &args), &dir.join("a.index.partial"), n, 4);
    assert_eq!(output.status.code(), Some(1), "broken pictures are told");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["pictures"], n * 19 / 20);
    assert_eq!(summary["errors"], n / 20);
    assert!(!dir.join("a.index.partial").exists());
    let mut search = run_in(dir, ["search", "a.index", "a dog", "--json", "-n", "120"]);
    let found = lines(&stdout(&mut search));
    let mut images: Vec<&str> = found
        .iter()
        .map(|found| found["image"].as_str().unwrap())
        .collect();
    images.sort_unstable();
    images.dedup();
    assert_eq!(images.len(), n * 19 / 20, "each once");
}

#[test]
fn pictures_of_archives_are_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let inputs = ["shard.tar", "datasets.parquet"].map(|name| golden(&format!("caption/{name}")));
    let mut run = index(dir, &["--out", "a.index"]);
    stdout(run.args(&inputs));
    let mut search = run_in(
        dir,
        ["search", "a.index", "a face", "--json", "--rerank", "10"],
    );
    let found = lines(&stdout(&mut search));
    assert_eq!(found.len(), 10);
    assert!(found.iter().all(|found| found["probability"].is_number()));
    assert!(found.iter().any(|found| {
        found["image"]
            .as_str()
            .unwrap()
            .ends_with("datasets.parquet#3")
    }));
    assert!(found.iter().any(|found| {
        found["image"]
            .as_str()
            .unwrap()
            .ends_with("shard.tar/sample/face.png")
    }));

    // A picture that is gone is told, and the others are there.
    pictures(dir);
    stdout(&mut index(dir, &["pictures", "--out", "b.index"]));
    std::fs::remove_file(dir.join("pictures/dog.png")).unwrap();
    let mut search = run_in(
        dir,
        [
            "search", "b.index", "a face", "--json", "--rerank", "13", "-n", "13",
        ],
    );
    let output = search.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let found = lines(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(found.len(), 13);
    assert_eq!(found[12]["image"], "pictures/dog.png");
    assert!(
        found[12]["error"]
            .as_str()
            .unwrap()
            .contains("No such file"),
        "{}",
        found[12]
    );
}

#[test]
fn an_index_belongs_to_its_bundle_and_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    pictures(dir);
    stdout(&mut index(dir, &["pictures/dog.png", "--out", "a.index"]));
    let other = bundle("lavis");
    let mut add_other = run_in(dir, ["index", "--quiet"]);
    add_other
        .arg(&other)
        .args(["pictures", "--out", "a.index", "--add"]);
    let error = one_line_error(&mut add_other);
    assert!(error.contains("made by the bundle"), "{error}");
    let mut search = run_in(dir, ["search", "a.index", "a dog", "--bundle"]);
    let error = one_line_error(search.arg(&other));
    assert!(error.contains("made by the bundle"), "{error}");
    let mut none = index(dir, &["absent", "--out", "none.index"]);
    let output = none.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(!dir.join("none.index").exists());

    let whole = std::fs::read(dir.join("a.index")).unwrap();
    let refused = |bytes: &[u8]| {
        std::fs::write(dir.join("bad.index"), bytes).unwrap();
        one_line_error(&mut run_in(dir, ["search", "bad.index", "a dog"]))
    };
    for at in (0..whole.len()).step_by(whole.len() / 40) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        let error = refused(&bytes);
        assert!(error.contains("bad.index: "), "{error}");
    }
    for length in [0, 1, 31, 32, whole.len() / 2, whole.len() - 1] {
        let error = refused(&whole[..length]);
        assert!(error.contains("no index of pictures"), "{error}");
    }
    let error = one_line_error(&mut run_in(dir, ["search", "absent.index", "a dog"]));
    assert!(error.contains("absent.index"), "{error}");
}

/// `qbridge eval` of captions of the reference's pictures.
fn eval(dir: &Path, args: &[&str]) -> Command {
    let mut command = run_in(
        dir,
        ["eval", "--quiet", "--json", "--task", "coco-retrieval"],
    );
    command.arg(bundle("checkpoint"));
    command.args(["--images", "pictures", "--data"]);
    command.arg(golden("retrieval")).args(args);
    command
}

#[track_caller]
fn check_recalls(results: &Value, expected: &Value) {
    let metrics = results["metrics"].as_array().unwrap();
    assert_eq!(metrics.len(), 7);
    for (metric, expected) in metrics.iter().zip(expected.as_array().unwrap()) {
        near(&metric["value"], expected.as_f64().unwrap(), 1e-9);
        let bound = |i: usize| metric["interval"][i].as_f64().unwrap();
        let value = metric["value"].as_f64().unwrap();
        assert!(bound(0) <= value && value <= bound(1), "{metric}");
    }
    assert_eq!(metrics[0]["name"], "text-to-picture recall@1");
    assert_eq!(metrics[5]["name"], "picture-to-text recall@10");
    assert_eq!(metrics[6]["name"], "mean recall");
}

#[test]
fn recalls_are_those_of_transformers_scores() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    pictures(dir);
    let reference = reference();
    let results =
        |args: &[&str]| -> Value { serde_json::from_str(&stdout(&mut eval(dir, args))).unwrap() };
    for k in ["0", "3", "5", "128"] {
        let found = results(&["--rerank", k]);
        assert_eq!(
            (&found["records"], &found["errors"]),
            (&Value::from(13), &Value::from(0))
        );
        check_recalls(&found, &reference["plain"]["recalls"][k]);
    }
    check_recalls(
        &results(&["--preset", "blip2"]),
        &reference["blip_caption"]["recalls"]["128"],
    );
    assert_ne!(
        reference["plain"]["recalls"]["0"],
        reference["plain"]["recalls"]["128"]
    );
}

#[test]
fn retrieval_goes_on_where_it_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    pictures(dir);
    let args = ["--out", "scores.jsonl", "--resume"];
    // Settings, and two rows of each picture.
    let output = run_killed(|| eval(dir, &args), &dir.join("scores.jsonl"), 26, 4);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let results: Value = serde_json::from_slice(&output.stdout).unwrap();
    check_recalls(&results, &reference()["plain"]["recalls"]["128"]);
    let text = std::fs::read_to_string(dir.join("scores.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 27);

    let error = one_line_error(&mut eval(
        dir,
        &["--out", "scores.jsonl", "--resume", "--rerank", "3"],
    ));
    assert!(error.contains("other settings"), "{error}");
    std::fs::remove_file(dir.join("pictures/dog.png")).unwrap();
    let output = eval(dir, &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let results: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&results["records"], &results["errors"]),
        (&Value::from(12), &Value::from(1))
    );
}

#[test]
fn retrieval_refuses_what_it_does_not_know() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    pictures(dir);
    for (args, told) in [
        (&["--prompt", "what is {}?"][..], "leave out --prompt"),
        (&["--choices", "yes,no"], "leave out --choices"),
        (&["--max-tokens", "3"], "leave out --max-tokens"),
        (&["--shard", "1/2"], "no parts"),
        (&["--preset", "instructblip"], "measures no retrieval"),
    ] {
        let error = one_line_error(&mut eval(dir, args));
        assert!(error.contains(told), "{error}");
    }
    let file = dir.join("captions.json");
    for (text, told) in [
        ("{}", "invalid type: map"),
        (r#"[{"image": "a.png"}]"#, "missing field `caption`"),
        (
            r#"[{"image": "a.png", "caption": []}]"#,
            "[0].caption: no captions are in it",
        ),
        ("[]", "no questions are in it"),
    ] {
        std::fs::write(&file, text).unwrap();
        let mut eval = run_in(dir, ["eval", "--task", "flickr30k", "--images", "pictures"]);
        eval.arg(bundle("checkpoint")).arg("--questions").arg(&file);
        let error = one_line_error(&mut eval);
        assert!(error.contains(told), "{error}");
    }
}
