//! The table that `make bench` writes, made of raw runs that are known.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Stdio};

use qbridge_tests::{repository, stdout};
use serde_json::{Value, json};

fn python(code: &str, directory: &Path) -> String {
    let code = format!("import pathlib, sys, table; where = pathlib.Path(sys.argv[1]); {code}");
    stdout(
        Command::new("python3")
            .args(["-B", "-c", &code])
            .arg(directory)
            .env("PYTHONPATH", repository().join("tests/bench"))
            .stdin(Stdio::null()),
    )
}

fn save(directory: &Path, name: &str, result: Value) {
    let about = json!({
        "date": "2026-01-31",
        "machine": {"cpu": "a processor", "cores": 2, "memory_total": 25e9, "platform": "linux", "version": "0.1.0"},
        "versions": {"torch": "2.15.0"},
        "failed": {},
    });
    let mut result = result;
    for (key, value) in about.as_object().unwrap() {
        result[key] = value.clone();
    }
    std::fs::write(directory.join(name), result.to_string()).unwrap();
}

/// One process that encoded one picture some times, in these seconds.
fn encoded(seconds: &[f64], peak_mib: f64) -> Value {
    let runs: Vec<Value> = seconds
        .iter()
        .map(|seconds| json!({"batch": 1, "forward": seconds, "seconds": seconds + 0.5}))
        .chain([json!({"batch": 4, "forward": 8.0, "seconds": 8.5})])
        .collect();
    json!({"runs": runs, "peak_mib": peak_mib})
}

fn row(table: &str, beginning: &str) -> String {
    let row = table.lines().find(|line| line.starts_with(beginning));
    row.unwrap_or_else(|| panic!("no {beginning} in {table}"))
        .to_owned()
}

#[test]
fn ratios_are_medians_of_the_rounds_ratios() {
    let dir = tempfile::tempdir().unwrap();
    // The machine slows down threefold between the rounds: of the medians the ratio would be another.
    let rounds = json!([
        {"PyTorch f32": encoded(&[2.0, 4.0, 100.0], 400.0), "qbridge f32": encoded(&[1.0], 100.0)},
        {"PyTorch f32": encoded(&[12.0], 400.0), "qbridge f32": encoded(&[9.0], 100.0)},
        {"PyTorch f32": encoded(&[10.0], 400.0), "qbridge f32": encoded(&[4.0], 100.0)},
    ]);
    let encode = json!({
        "part": "encode", "subject": "qbridge-demo", "rounds": rounds, "cosines": {"qbridge f32": 1.0},
    });
    save(dir.path(), "encode.json", encode);
    let engine = json!({
        "part": "language model", "subject": "qbridge-demo", "rounds": [{
            "qbridge": {"prefill": 90.0, "decode": 49.0, "peak_mib": 1.0},
            "llama-bench": {"prefill": 100.0, "decode": 50.0, "peak_mib": 1.0, "build": 7},
        }],
    });
    save(dir.path(), "engine.json", engine);
    let table = python("print(table.render(where))", dir.path());
    // 1/4, 9/12 and 4/10, and medians of 1, 9, 4 and of 4, 12, 10 seconds.
    assert_eq!(
        row(&table, "| encode, demo, batch 1 "),
        "| encode, demo, batch 1 | **0.40** (4.00 s) |  | **1.00** (10.00 s) |  |  |  |"
    );
    // Of one picture.
    assert!(row(&table, "| encode, demo, batch 4 ").contains("**1.00** (2.00 s)"));
    assert!(row(&table, "| peak memory, encode, demo ").contains("**0.25** (100 MiB)"));
    assert_eq!(
        row(&table, "| decode, demo "),
        "| decode, demo | 49.0 | 50.0 | **0.98** |"
    );
    assert_eq!(
        row(&table, "| qbridge f32 by PyTorch f32, demo, batch 1 "),
        "| qbridge f32 by PyTorch f32, demo, batch 1 | 0.75 | 0.40 | yes |"
    );
    assert_eq!(
        row(&table, "| qbridge f32 by PyTorch f32, demo, batch 4 "),
        "| qbridge f32 by PyTorch f32, demo, batch 4 | 0.75 | 1.00 | **no** |"
    );
    assert!(row(&table, "a processor, 2 cores, 25 GB").contains("llama.cpp build 7"));
}

#[test]
fn the_table_stands_between_its_marks() {
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report.md");
    std::fs::copy(repository().join("docs/performance.md"), &report).unwrap();
    let code = "table.insert(where, 'first'); table.insert(where, 'second')";
    python(code, &report);
    let text = std::fs::read_to_string(&report).unwrap();
    let (before, rest) = text.split_once("<!-- make bench: begin -->").unwrap();
    let (between, after) = rest.split_once("<!-- make bench: end -->").unwrap();
    assert_eq!(between.trim(), "second");
    let original = std::fs::read_to_string(repository().join("docs/performance.md")).unwrap();
    assert!(original.starts_with(before) && original.ends_with(after));
}
