//! `qbridge caption` where inputs are odd, or files beside them cannot be written: one row for each, and none is lost.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]
#![cfg(unix)]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use qbridge_tests::{caption, golden, one_line_error, qbridge, stdout, tiny_bundle};
use serde_json::Value;

/// A copy of a picture.
fn put(path: impl AsRef<Path>) {
    let path = path.as_ref();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::copy(golden("llm/pictures/face.png"), path).unwrap();
}

fn rows(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}")))
        .collect()
}

/// The rows of a run in which something failed.
fn failed(command: &mut Command) -> Vec<Value> {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    rows(&output)
}

fn error(row: &Value) -> &str {
    row["error"].as_str().unwrap_or_default()
}

#[cfg(target_os = "linux")]
#[test]
fn a_pattern_finds_names_that_are_not_utf_8() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    for name in [&b"a.png"[..], b"caf\xe9.png", b"caf\xe8.png"] {
        put(dir.path().join("g").join(std::ffi::OsStr::from_bytes(name)));
    }
    let output = caption(dir.path(), ["g/*.png"]).output().unwrap();
    assert!(output.status.success());
    let rows = rows(&output);
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|row| row["caption"].is_string()));
    let names: Vec<&str> = rows
        .iter()
        .map(|row| row["image"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["g/a.png", r"g/caf\xE8.png", r"g/caf\xE9.png"]);
}

#[test]
fn a_file_beside_a_picture_that_cannot_be_written_is_told_in_its_row() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("p/{}.png", "c".repeat(251));
    for name in ["p/a.png", "p/b.png", &long, "p/d.png"] {
        put(dir.path().join(name));
    }
    std::fs::create_dir(dir.path().join("p/b.png.xmp")).unwrap();
    let args = ["p", "--sidecar", "xmp", "--overwrite"];
    let rows = failed(&mut caption(dir.path(), args));
    assert_eq!(rows.len(), 4);
    assert!(rows.iter().all(|row| row["caption"].is_string()));
    let is_told = rows.iter().map(|row| !error(row).is_empty());
    assert_eq!(is_told.collect::<Vec<_>>(), [false, true, true, false]);
    for name in ["p/a.png.xmp", "p/d.png.xmp"] {
        assert!(dir.path().join(name).is_file());
    }
    // A run that goes on behind such a row does so.
    let args = ["p", "--sidecar", "xmp", "--out", "a.jsonl", "--resume"];
    failed(&mut caption(dir.path(), args));
    let text = std::fs::read_to_string(dir.path().join("a.jsonl")).unwrap();
    let rows: Vec<&str> = text.split_inclusive('\n').collect();
    assert_eq!(rows.len(), 4);
    std::fs::write(dir.path().join("a.jsonl"), rows[..3].concat()).unwrap();
    failed(&mut caption(dir.path(), args));
    let again = std::fs::read_to_string(dir.path().join("a.jsonl")).unwrap();
    assert_eq!(again.lines().count(), 4);
}

#[test]
fn two_pictures_do_not_share_a_file_beside_them() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.jpg", "a.png", "b.png"] {
        put(dir.path().join("p").join(name));
    }
    std::fs::write(dir.path().join("p/b.txt.new"), "mine").unwrap();
    let rows = failed(&mut caption(dir.path(), ["p", "--sidecar", "txt"]));
    let beside = |name: &str| std::fs::read_to_string(dir.path().join("p").join(name)).unwrap();
    assert_eq!(
        beside("a.txt").trim_end(),
        rows[0]["caption"].as_str().unwrap()
    );
    assert!(error(&rows[1]).contains("a.txt is that of another picture"));
    assert!(rows[1]["caption"].is_null() && rows[2]["error"].is_null());
    assert_eq!(beside("b.txt.new"), "mine");
    assert_eq!(std::fs::read_dir(dir.path().join("p")).unwrap().count(), 6);
}

#[test]
fn named_pipes_are_told_and_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path().join("p/b.png"));
    for name in ["p/a.png", "c.tar", "d.tgz", "e.parquet"] {
        let made = Command::new("mkfifo").arg(dir.path().join(name)).status();
        assert!(made.unwrap().success());
    }
    let inputs = ["p", "c.tar", "*.tgz", "e.parquet", "p/a.png"];
    let rows = failed(&mut caption(dir.path(), inputs));
    let is_told = rows.iter().map(|row| error(row).contains("no file"));
    assert_eq!(
        is_told.collect::<Vec<_>>(),
        [true, false, true, true, true, true]
    );
    let error = one_line_error(
        qbridge(["ask"])
            .current_dir(dir.path())
            .arg(tiny_bundle())
            .args(["p/a.png", "what is this?"]),
    );
    assert!(error.contains("no file"), "{error}");
    // What a shell has open is read.
    let output = Command::new("bash")
        .args(["-c", "exec \"$@\" <(cat p/b.png)", "bash"])
        .arg(qbridge_tests::qbridge_path())
        .args(["caption", "--max-tokens", "6"])
        .arg(tiny_bundle())
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(output.status.success());
}

#[test]
fn files_beside_pictures_that_make_them_done_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["p/a.png", "p/b.png"] {
        put(dir.path().join(name));
    }
    std::fs::write(dir.path().join("p/a.txt"), "by hand").unwrap();
    let args = ["p", "--sidecar", "txt", "--resume"];
    for told in ["1 captioned, 1 done before", "0 captioned, 2 done before"] {
        let output = caption(dir.path(), args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains(told), "{said}");
    }
}

#[test]
fn an_output_without_rows_has_its_header() {
    let dir = tempfile::tempdir().unwrap();
    let header = "image,caption,error,score,key,captions\n";
    for mode in ["--overwrite", "--resume"] {
        let mut command = caption(dir.path(), ["-", "--out", "a.csv", mode]);
        stdout(command.stdin(Stdio::null()));
        let text = std::fs::read_to_string(dir.path().join("a.csv")).unwrap();
        assert_eq!(text, header);
    }
    let mut command = caption(dir.path(), ["-", "--format", "csv"]);
    assert_eq!(stdout(command.stdin(Stdio::null())), header);
}

#[test]
fn there_is_nothing_to_go_on_with_on_standard_output() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path().join("a.png"));
    let error = one_line_error(&mut caption(dir.path(), ["a.png", "--resume"]));
    assert!(error.contains("--resume needs --out"), "{error}");
}

#[test]
fn an_output_is_gone_on_with_as_it_was_begun() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["p/a.png", "p/b.png"] {
        put(dir.path().join(name));
    }
    for out in ["a.jsonl", "a.csv", "a.parquet"] {
        let run = |more: &[&'static str]| {
            let args = ["p", "--out", out, "--prompt", "what?"];
            caption(dir.path(), args.into_iter().chain(more.iter().copied()))
        };
        stdout(&mut run(&[]));
        let before = std::fs::read(dir.path().join(out)).unwrap();
        let error = one_line_error(&mut run(&["--resume", "--num-beams", "2"]));
        assert!(error.contains("begun with num_beams = null"), "{error}");
        let other = ["p", "--out", out, "--prompt", "why?", "--resume"];
        let error = one_line_error(&mut caption(dir.path(), other));
        assert!(error.contains("begun with prompt = \"what?\""), "{error}");
        assert_eq!(std::fs::read(dir.path().join(out)).unwrap(), before);
        let journal = dir.path().join(format!("{out}.partial"));
        assert!(!journal.exists(), "{out}: a refusal leaves nothing behind");
        stdout(&mut run(&["--resume", "--slots", "2"]));
        stdout(&mut run(&["--overwrite", "--num-beams", "2"]));
        stdout(&mut run(&["--resume", "--num-beams", "2"]));
        // Nobody knows of what has no settings.
        std::fs::remove_file(dir.path().join(format!("{out}.settings"))).unwrap();
        stdout(&mut caption(dir.path(), other));
    }
}
