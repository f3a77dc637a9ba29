//! The demo's first-stage heads at work: bundles of trained weights answer what they should of the demo's pictures, all of
//! the style that was never trained on.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use qbridge_tests::{demo_bundle, qbridge, repository, stdout};
use serde_json::Value;

fn heads() -> PathBuf {
    demo_bundle().with_file_name("qbridge-demo-heads")
}

fn picture(name: &str) -> PathBuf {
    repository().join("demo/pictures").join(name)
}

const PICTURES: [(&str, &str); 8] = [
    ("balloons.png", "three balloons"),
    ("banana.png", "a banana"),
    ("bicycle.png", "a bicycle"),
    ("dog.png", "a dog"),
    ("lion-umbrella.png", "a lion and an umbrella"),
    ("penguin.png", "a penguin"),
    ("rocket-pizza.png", "a rocket and a pizza"),
    ("sunflower.png", "a sunflower"),
];

/// Of each text, in their order, the similarity and the probability of a match.
fn scores(name: &str, texts: &[&str]) -> Vec<(f64, f64)> {
    let mut command = qbridge(["match", "--json"]);
    let text = stdout(command.arg(heads()).arg(picture(name)).args(texts));
    let line = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap();
        let score = |key: &str| value[key].as_f64().unwrap();
        (score("similarity"), score("probability"))
    };
    text.lines().map(line).collect()
}

#[test]
fn each_picture_is_most_like_its_own_caption() {
    let texts = PICTURES.map(|(_, text)| text);
    for (right, (name, _)) in PICTURES.iter().enumerate() {
        let scores = scores(name, &texts);
        let numbers = 0..scores.len();
        let best = numbers.max_by(|&a, &b| scores[a].0.total_cmp(&scores[b].0));
        assert_eq!(best, Some(right), "{name}: {scores:?}");
    }
}

/// All but the balloons, which neither head knows in this style.
fn known() -> impl Iterator<Item = (&'static str, &'static str)> {
    PICTURES
        .into_iter()
        .filter(|(name, _)| *name != "balloons.png")
}

#[test]
fn the_matching_head_tells_captions_from_those_of_other_pictures() {
    let texts = PICTURES.map(|(_, text)| text);
    for (name, right) in known() {
        let scores = scores(name, &texts);
        let fits = scores.iter().map(|(_, probability)| *probability > 0.5);
        let expected = texts.map(|text| text == right);
        assert_eq!(Vec::from_iter(fits), expected, "{name}: {scores:?}");
    }
}

#[test]
fn the_matching_head_counts() {
    let scores = scores("dog.png", &["a dog", "two dogs", "three dogs"]);
    let fits = scores.iter().map(|(_, probability)| *probability > 0.5);
    assert_eq!(Vec::from_iter(fits), [true, false, false], "{scores:?}");
}

#[test]
fn the_q_former_captions_by_itself() {
    let (names, expected): (Vec<_>, Vec<_>) = known().unzip();
    let mut command = qbridge(["caption", "--quiet"]);
    command.arg(heads()).args(names.into_iter().map(picture));
    let text = stdout(&mut command);
    let captions = text.lines().filter_map(|line| {
        let value: Value = serde_json::from_str(line).unwrap();
        value["caption"].as_str().map(str::to_owned)
    });
    assert_eq!(Vec::from_iter(captions), expected);
}

#[test]
fn pictures_are_found_by_their_text() {
    let dir = tempfile::tempdir().unwrap();
    let index = dir.path().join("demo.index");
    let mut command = qbridge(["index"]);
    command
        .arg(heads())
        .arg(picture(""))
        .arg("--out")
        .arg(&index);
    stdout(&mut command);
    for (name, text) in PICTURES {
        let mut command = qbridge(["search", "--json", "--top", "1"]);
        let found = stdout(command.arg(&index).arg(text));
        let found: Value = serde_json::from_str(&found).unwrap();
        assert!(
            found["image"].as_str().unwrap().ends_with(name),
            "{text}: {found}"
        );
    }
}
