//! Scores and their steps beside those of the official scorers, which `tests/golden/make_eval.py` asked.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use eval::{Answers, Dataset, Task, caption, score, textvqa, vqa};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden/eval")
        .join(path)
}

fn read<T: serde::de::DeserializeOwned>(path: &str) -> T {
    serde_json::from_str(&std::fs::read_to_string(golden(path)).unwrap()).unwrap()
}

#[test]
fn scores_are_the_official_scorers() {
    let expected: BTreeMap<String, BTreeMap<String, f64>> = read("scores.json");
    assert_eq!(expected.len(), Task::answered().count());
    for task in Task::answered() {
        let dir = golden(task.name());
        let dataset = Dataset::read(task, &task.find(&dir, None).unwrap(), None).unwrap();
        let path = dir.join("answers.json");
        let answers = Answers::read(&path).unwrap();
        let answers = answers.aligned(&dataset, &path).unwrap();
        let report = score(&dataset, &answers, 0);
        let expected = &expected[task.name()];
        let names: Vec<&String> = report.metrics.iter().map(|metric| &metric.name).collect();
        assert_eq!(names.len(), expected.len(), "{}: {names:?}", task.name());
        for metric in &report.metrics {
            let value = metric.value.unwrap();
            let difference = (value - expected[&metric.name]).abs();
            assert!(
                difference < 1e-6,
                "{} {}: {} beside {}",
                task.name(),
                metric.name,
                value,
                expected[&metric.name]
            );
            if let Some((low, high)) = metric.interval {
                assert!(low <= value && value <= high, "{metric:?}");
                assert!(low < high, "{metric:?}");
            }
        }
    }
}

#[test]
fn answers_are_normalized_as_the_official_scorers_do() {
    let expected: BTreeMap<String, BTreeMap<String, String>> = read("normalized.json");
    assert!(expected["vqa"].len() > 250 && expected["textvqa"].len() > 250);
    for (answer, normalized) in &expected["vqa"] {
        assert_eq!(vqa::normalize(answer), *normalized, "{answer:?}");
    }
    for (answer, normalized) in &expected["textvqa"] {
        assert_eq!(textvqa::normalize(answer), *normalized, "{answer:?}");
    }
}

/// Where our tokens are not Stanford's: what no caption has.
const OTHER_TOKENS: [&str; 6] = [
    "isn't, (isn't) isn't. isn'tit n't 't 's 'll",
    "isn'tit",
    "&nbsp;x x&nbsp;y &copy; &eacute; &amp &foo; &#169; &lt;br&gt;",
    "&eacute;",
    "[url] [1] {1} ((a)) [[a]] :(a) (a): (a):) :-))",
    ":(a)",
];

#[test]
fn tokens_are_stanfords() {
    let expected: Vec<(String, String)> = read("tokens.json");
    assert!(expected.len() > 1000);
    let other: Vec<&str> = expected
        .iter()
        .filter(|(text, tokens)| caption::tokenize(text) != *tokens)
        .map(|(text, _)| text.as_str())
        .collect();
    let mut known = OTHER_TOKENS.to_vec();
    known.retain(|text| !other.contains(text));
    assert!(known.is_empty(), "these are Stanford's now: {known:?}");
    for text in other {
        assert!(
            OTHER_TOKENS.contains(&text),
            "{text:?} gives {:?}",
            caption::tokenize(text)
        );
    }
}
