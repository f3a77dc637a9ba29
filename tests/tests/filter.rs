//! `qbridge filter` and `qbridge bootstrap`, through the built program: tables keep their rows as they were, and texts have
//! the scores of `qbridge match`.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use qbridge_tests::{golden, one_line_error, qbridge, run_killed, stdout};
use serde_json::{Value, json};

const PICTURES: [&str; 5] = ["ramp", "boxes", "circle", "face", "stripes"];
const TEXTS: [&str; 5] = [
    "a red circle",
    "two boxes",
    "a face",
    "a, \"b\" c",
    "stripes, blue",
];

/// A bundle that matches and writes captions, made once.
fn bundle() -> &'static Path {
    static BUNDLE: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("bundle");
        let mut convert = qbridge(["convert", "--vision", "f32", "--qformer-tokenizer"]);
        convert.arg(golden("instructblip/checkpoint/qformer_tokenizer"));
        convert.args([golden("stage1/lavis.pth"), golden("lavis/eva_vit_g.pth")]);
        stdout(convert.arg("--out").arg(&out));
        (dir, out)
    });
    &BUNDLE.1
}

fn picture(name: &str) -> PathBuf {
    golden(&format!("llm/pictures/{name}.png"))
}

fn lines(text: &str) -> Vec<Value> {
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().unwrap()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// What `qbridge match` says of a picture and each of the texts.
fn matched(picture: &Path, texts: &[&str]) -> Vec<(f64, f64)> {
    let mut run = qbridge(["match", "--json"]);
    let found = lines(&stdout(run.arg(bundle()).arg(picture).args(texts)));
    let of = |found: &Value, name: &str| found[name].as_f64().unwrap();
    found
        .iter()
        .map(|found| (of(found, "similarity"), of(found, "probability")))
        .collect()
}

fn run_in(dir: &Path, command: &str, args: &[&str]) -> Command {
    let mut run = qbridge([command, "--quiet"]);
    run.current_dir(dir).arg(bundle()).args(args);
    run
}

fn filter(dir: &Path, args: &[&str]) -> Command {
    let mut run = run_in(dir, "filter", args);
    run.args(["--text-column", "caption"]);
    run
}

/// The pictures beside texts as JSON lines and as CSV, in `dir`, with a field of each row's own.
fn tables(dir: &Path) -> Vec<String> {
    let mut rows = Vec::new();
    let mut csv = "id,image,caption,note\r\n".to_owned();
    for (i, (name, text)) in PICTURES.iter().zip(TEXTS).enumerate() {
        let to = format!("{name}.png");
        std::fs::copy(picture(name), dir.join(&to)).unwrap();
        let text_json = json!(text);
        rows.push(format!(
            "{{\"id\": {i},  \"image\":\"{to}\", \"caption\": {text_json}, \"more\": [1.50, null]}}"
        ));
        let quoted = text.replace('"', "\"\"");
        write!(csv, "{i},{to},\"{quoted}\",\"line\nbreak\"\r\n").unwrap();
    }
    std::fs::write(dir.join("pairs.jsonl"), rows.join("\n") + "\n").unwrap();
    std::fs::write(dir.join("pairs.csv"), csv).unwrap();
    rows
}

/// A threshold that keeps some of the scores, and which it keeps.
fn threshold(scores: &[f64]) -> (String, Vec<usize>) {
    let mut sorted = scores.to_vec();
    sorted.sort_by(f64::total_cmp);
    let between = (sorted[1] + sorted[2]) / 2.0;
    let kept = (0..scores.len())
        .filter(|&i| scores[i] >= between)
        .collect();
    (format!("{between}"), kept)
}

fn pair_scores() -> Vec<(f64, f64)> {
    let pairs = PICTURES.iter().zip(TEXTS);
    pairs
        .map(|(name, text)| matched(&picture(name), &[text])[0])
        .collect()
}

#[test]
fn rows_that_fit_are_kept_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let rows = tables(dir);
    let scores = pair_scores();
    let probabilities: Vec<f64> = scores.iter().map(|(_, probability)| *probability).collect();
    let similarities: Vec<f64> = scores.iter().map(|(similarity, _)| *similarity).collect();
    for (flag, scores) in [("--min-itm", &probabilities), ("--min-itc", &similarities)] {
        let (least, kept) = threshold(scores);
        assert_eq!(kept.len(), 3);
        let found = stdout(&mut filter(dir, &["pairs.jsonl", flag, &least]));
        let found: Vec<&str> = found.lines().collect();
        let expected: Vec<&str> = kept.iter().map(|&i| rows[i].as_str()).collect();
        assert_eq!(found, expected, "letter for letter");

        let csv = stdout(&mut filter(dir, &["pairs.csv", flag, &least]));
        let mut reader = csv::Reader::from_reader(csv.as_bytes());
        assert_eq!(
            reader.headers().unwrap(),
            vec!["id", "image", "caption", "note"]
        );
        for (record, &i) in reader.records().zip(&kept) {
            let expected = [
                &*i.to_string(),
                &format!("{}.png", PICTURES[i]),
                TEXTS[i],
                "line\nbreak",
            ];
            assert_eq!(record.unwrap(), expected[..]);
        }
        assert_eq!(csv.matches("\"line").count(), 3);
    }
    // Both: the lesser of each decides.
    let (itm, by_itm) = threshold(&probabilities);
    let (itc, by_itc) = threshold(&similarities);
    let found = stdout(&mut filter(
        dir,
        &["pairs.jsonl", "--min-itm", &itm, "--min-itc", &itc],
    ));
    let both: Vec<&str> = (by_itm.iter().filter(|i| by_itc.contains(i)))
        .map(|&i| rows[i].as_str())
        .collect();
    assert_eq!(found.lines().collect::<Vec<_>>(), both);
}

#[test]
fn scores_are_those_of_match() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    tables(dir);
    let scores = pair_scores();
    let near =
        |found: f64, expected: f64| assert!((found - expected).abs() < 1e-4, "{found} {expected}");
    let found = lines(&stdout(&mut filter(dir, &["pairs.jsonl", "--scores"])));
    assert_eq!(found.len(), 5);
    for (found, (similarity, probability)) in found.iter().zip(&scores) {
        near(found["similarity"].as_f64().unwrap(), *similarity);
        near(found["probability"].as_f64().unwrap(), *probability);
        assert_eq!(found["more"], json!([1.5, null]));
    }
    let csv = stdout(&mut filter(dir, &["pairs.csv", "--scores"]));
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    for (record, (similarity, probability)) in reader.records().zip(&scores) {
        let record = record.unwrap();
        near(record[4].parse().unwrap(), *similarity);
        near(record[5].parse().unwrap(), *probability);
    }
    // Columns that are there are not written over.
    std::fs::write(dir.join("again.csv"), &csv).unwrap();
    let error = one_line_error(&mut filter(dir, &["again.csv", "--scores"]));
    assert!(error.contains("a column similarity already"), "{error}");
}

/// The cells of every row, with the names of their columns.
fn parquet_rows(path: &Path) -> Vec<Vec<(String, Field)>> {
    let reader = SerializedFileReader::new(File::open(path).unwrap()).unwrap();
    let rows = reader.get_row_iter(None).unwrap();
    rows.map(|row| row.unwrap().into_columns()).collect()
}

fn text_of(row: &[(String, Field)], name: &str) -> Option<String> {
    let (_, field) = row.iter().find(|(column, _)| column == name).unwrap();
    match field {
        Field::Str(text) => Some(text.clone()),
        _ => None,
    }
}

#[test]
fn parquet_keeps_every_kind_of_column() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let table = golden("retrieval/pairs.parquet");
    let table = table.to_str().unwrap();
    let whole = parquet_rows(Path::new(table));
    assert_eq!((whole.len(), whole[0].len()), (5, 8));
    let mut scores = Vec::new();
    for (i, row) in whole.iter().enumerate().take(4) {
        let caption = text_of(row, "caption").unwrap();
        scores.push(matched(&picture(PICTURES[i]), &[&caption])[0].1);
    }
    let (least, kept) = threshold(&scores);
    assert!(kept.len() == 2, "of four");
    let args = [
        table,
        "--min-itm",
        &least,
        "--out",
        "kept.parquet",
        "--dropped",
        "dropped.parquet",
    ];
    let output = filter(dir, &args).output().unwrap();
    // One row has no text.
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.contains("pairs.parquet#4: this row has no text"),
        "{told}"
    );
    let of = |kept: &dyn Fn(usize) -> bool| -> Vec<Vec<(String, Field)>> {
        let rows = whole.iter().enumerate().filter(|(i, _)| kept(*i));
        rows.map(|(_, row)| row.clone()).collect()
    };
    assert_eq!(
        parquet_rows(&dir.join("kept.parquet")),
        of(&|i| kept.contains(&i))
    );
    assert_eq!(
        parquet_rows(&dir.join("dropped.parquet")),
        of(&|i| !kept.contains(&i))
    );

    let args = [
        table,
        "--min-itm",
        "0",
        "--scores",
        "--out",
        "scored.parquet",
    ];
    filter(dir, &args).output().unwrap();
    let scored = parquet_rows(&dir.join("scored.parquet"));
    assert_eq!(scored.len(), 4);
    for (found, (row, score)) in scored.iter().zip(whole.iter().zip(scores)) {
        assert_eq!(found[..8], row[..]);
        assert_eq!((&*found[8].0, &*found[9].0), ("similarity", "probability"));
        match (&found[8].1, &found[9].1) {
            (Field::Double(_), Field::Double(found)) => assert!((found - score).abs() < 1e-4),
            other => panic!("{other:?}"),
        }
    }
    let error = one_line_error(&mut filter(dir, &[table, "--min-itm", "0.1"]));
    assert!(error.contains("--out"), "{error}");
}

/// `n` rows as JSON lines, every twentieth with a broken picture, and one that is no JSON.
fn many(dir: &Path, n: usize) {
    tables(dir);
    let bytes = std::fs::read(picture("face")).unwrap();
    std::fs::write(dir.join("broken.png"), &bytes[..bytes.len() / 2]).unwrap();
    let mut text = String::new();
    for i in 0..n {
        let image = match i % 20 {
            19 => "broken.png".to_owned(),
            _ => format!("{}.png", PICTURES[i % 5]),
        };
        let row = json!({"image": image, "caption": TEXTS[(i / 5) % 5], "id": i});
        writeln!(
            text,
            "{}",
            if i == 7 {
                "{\"image\":".to_owned()
            } else {
                row.to_string()
            }
        )
        .unwrap();
    }
    std::fs::write(dir.join("many.jsonl"), text).unwrap();
}

#[test]
fn a_killed_filter_goes_on() {
    let n = 100;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    many(dir, n);
    let args = |out: &'static str| ["many.jsonl", "--min-itm", "0.4", "--out", out, "--json"];
    let whole = filter(dir, &args("whole.jsonl")).output().unwrap();
    assert_eq!(whole.status.code(), Some(1));
    let summary: Value = serde_json::from_slice(&whole.stdout).unwrap();
    assert_eq!(
        (&summary["rows"], &summary["errors"]),
        (&json!(n), &json!(n / 20 + 1))
    );
    let count = |name: &str| summary[name].as_u64().unwrap() as usize;
    assert_eq!(count("kept") + count("dropped") + count("errors"), n);
    assert_eq!(
        read(&dir.join("whole.jsonl")).lines().count(),
        count("kept")
    );

    let resumed = || {
        let mut run = filter(dir, &args("a.jsonl"));
        run.arg("--resume");
        run
    };
    let output = run_killed(resumed, &dir.join("a.jsonl.partial"), n, 4);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(read(&dir.join("a.jsonl")), read(&dir.join("whole.jsonl")));
    assert!(!dir.join("a.jsonl.partial").exists());
    // It is finished: nothing more is done.
    stdout(&mut resumed());
    let error = one_line_error(&mut filter(dir, &args("a.jsonl")));
    assert!(error.contains("a.jsonl exists already"), "{error}");
}

#[test]
fn other_settings_do_not_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    tables(dir);
    let settings = json!({"settings": {
        "bundle_hash": "0", "table": "pairs.jsonl", "table_bytes": 1, "image_column": null,
        "text_column": "caption", "min_itm": 0.5, "min_itc": null, "scores": false,
    }});
    std::fs::write(dir.join("a.jsonl.partial"), format!("{settings}\n")).unwrap();
    let args = ["pairs.jsonl", "--min-itm", "0.5", "--out", "a.jsonl"];
    let mut resumed = filter(dir, &args);
    let error = one_line_error(resumed.arg("--resume"));
    assert!(
        error.contains("another table, bundle, or other flags"),
        "{error}"
    );
    for (args, told) in [
        (&["pairs.txt", "--min-itm", "0.5"][..], "pairs.txt"),
        (
            &[
                "pairs.jsonl",
                "--min-itm",
                "0.5",
                "--out",
                "pairs.jsonl",
                "--overwrite",
            ],
            "the table itself",
        ),
    ] {
        let error = one_line_error(&mut filter(dir, args));
        assert!(error.contains(told), "{error}");
    }
    let mut run = run_in(
        dir,
        "filter",
        &["pairs.csv", "--text-column", "text", "--min-itm", "0.5"],
    );
    let output = run.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.contains("there is no column text among id, image, caption, note"),
        "{told}"
    );
}

fn bootstrap(dir: &Path, args: &[&str]) -> Command {
    let mut run = run_in(dir, "bootstrap", args);
    run.args(["--text-column", "caption"]);
    run
}

#[test]
fn both_texts_are_scored_and_say_where_they_are_from() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    tables(dir);
    let mut caption = qbridge(["caption", "--quiet"]);
    let captions = lines(&stdout(caption.arg(bundle()).args(PICTURES.map(picture))));
    let written = |i: usize| captions[i]["caption"].as_str().unwrap().to_owned();
    let scores: Vec<Vec<(f64, f64)>> = (0..5)
        .map(|i| matched(&picture(PICTURES[i]), &[TEXTS[i], &written(i)]))
        .collect();
    let probabilities: Vec<f64> = scores.iter().flatten().map(|(_, p)| *p).collect();
    let least = probabilities.iter().sum::<f64>() / 10.0;
    let least_text = format!("{least}");
    let rows = lines(&stdout(&mut bootstrap(
        dir,
        &["pairs.jsonl", "--min-itm", &least_text],
    )));
    assert_eq!(rows.len(), 5);
    let (mut n_kept, mut n_dropped) = (0, 0);
    for (i, row) in rows.iter().enumerate() {
        assert_eq!(row["image"], format!("{}.png", PICTURES[i]));
        assert!(row["error"].is_null());
        let expected = [
            (TEXTS[i].to_owned(), "web", scores[i][0]),
            (written(i), "synthetic", scores[i][1]),
        ];
        for (text, source, (similarity, probability)) in expected {
            let list = if probability >= least {
                "texts"
            } else {
                "dropped"
            };
            let found = row[list].as_array().unwrap();
            let found = found.iter().find(|found| found["source"] == source);
            let found = found.unwrap_or_else(|| panic!("{source} of {row}"));
            assert_eq!(found["text"], text);
            let near = |name: &str, expected: f64| {
                assert!(
                    (found[name].as_f64().unwrap() - expected).abs() < 1e-4,
                    "{found}"
                );
            };
            near("similarity", similarity);
            near("probability", probability);
            n_kept += usize::from(list == "texts");
            n_dropped += usize::from(list == "dropped");
        }
    }
    assert!(n_kept > 0 && n_dropped > 0);
}

#[test]
fn a_killed_bootstrap_goes_on() {
    let n = 60;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    many(dir, n);
    let args = [
        "many.jsonl",
        "--max-tokens",
        "4",
        "--min-tokens",
        "0",
        "--num-beams",
        "1",
        "--out",
        "a.jsonl",
        "--json",
    ];
    let run = || {
        let mut run = bootstrap(dir, &args);
        run.arg("--resume");
        run
    };
    let output = run_killed(run, &dir.join("a.jsonl"), n, 4);
    assert_eq!(output.status.code(), Some(1));
    let rows = lines(&read(&dir.join("a.jsonl")));
    assert_eq!(rows.len(), n);
    for (i, row) in rows.iter().enumerate() {
        let failed = i % 20 == 19 || i == 7;
        assert_eq!(row["error"].is_string(), failed, "{row}");
        let n_texts = ["texts", "dropped"].map(|list| row[list].as_array().unwrap().len());
        assert_eq!(n_texts.iter().sum::<usize>() > 0, !failed);
    }
}

#[test]
fn a_language_model_may_write_the_captions() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    tables(dir);
    let writer = dir.join("writer");
    let mut make = qbridge(["bundle", "--out"]);
    make.arg(&writer).arg(golden("llm/checkpoint"));
    stdout(make.arg("--llm").arg(golden("llm/llm.gguf")));
    let args = [
        "pairs.csv",
        "--captioner",
        "writer",
        "--max-tokens",
        "6",
        "--min-itm",
        "0",
    ];
    let rows = lines(&stdout(&mut bootstrap(dir, &args)));
    assert_eq!(rows.len(), 5);
    let sources = |row: &Value| {
        row["texts"]
            .as_array()
            .unwrap()
            .iter()
            .any(|text| text["source"] == "synthetic")
    };
    assert!(rows.iter().any(sources), "{rows:?}");
    // The heads alone write none.
    let matching = dir.join("matching");
    let mut convert = qbridge(["convert", "--vision", "f32"]);
    stdout(
        convert
            .arg(golden("stage1/checkpoint"))
            .arg("--out")
            .arg(&matching),
    );
    let mut run = qbridge(["bootstrap"]);
    run.current_dir(dir).arg(&matching);
    let error = one_line_error(run.args(["pairs.csv", "--text-column", "caption"]));
    assert!(error.contains("--captioner"), "{error}");
    let error = one_line_error(&mut bootstrap(dir, &["pairs.csv", "--temperature", "0.8"]));
    assert!(error.contains("no --temperature"), "{error}");
}
