//! The answers that transformers' own tests expect of the published weights
//! (`tests/models/blip_2` and `tests/models/instructblip`, run in f16 and bf16). They
//! need those weights: `QBRIDGE_WEIGHTS` names a directory that holds the
//! repositories and pictures below, as they are downloaded (`docs/models.md`).

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use qbridge_tests::{qbridge, stdout};
use serde_json::Value;
use tempfile::TempDir;

/// A woman and a dog on a beach: `hf-internal-testing/blip-test-image`.
const BEACH: &str = "demo.jpg";
/// A man who irons on a car: LAVIS's `docs/_static`.
const TAXI: &str = "Confusing-Pictures.jpg";
const CITY: &str = "Question: which city is this? Answer:";
const UNUSUAL: &str = "What is unusual about this image?";

/// What is in `QBRIDGE_WEIGHTS`; none, said aloud, where it is not there.
fn weights(name: &str) -> Option<PathBuf> {
    let dir = std::env::var_os("QBRIDGE_WEIGHTS").map(PathBuf::from);
    let path = dir.unwrap_or_default().join(name);
    if path.exists() {
        return Some(path);
    }
    println!("SKIPPED: QBRIDGE_WEIGHTS holds no {name}");
    None
}

/// A published repository as a bundle.
struct Published {
    dir: TempDir,
}

impl Published {
    fn convert(name: &str, llm_quant: &str, args: &[&str]) -> Option<Self> {
        let source = weights(name)?;
        let dir = tempfile::tempdir().unwrap();
        let mut convert = qbridge(["convert", "--vision", "f32", "--llm-quant", llm_quant]);
        convert.args(args).arg(source);
        stdout(convert.arg("--out").arg(dir.path().join("bundle")));
        Some(Self { dir })
    }

    /// The answer to a text behind the soft prompt, as JSON; none without the picture.
    fn answer(&self, picture: &str, text: &str, args: &[&str]) -> Option<Value> {
        let picture = weights(picture)?;
        let mut ask = qbridge(["ask", "--raw", "--json", "--cache-type", "f32"]);
        ask.args(args).arg(self.dir.path().join("bundle"));
        let answer = stdout(ask.arg(picture).arg(text));
        Some(serde_json::from_str(&answer).unwrap())
    }

    #[track_caller]
    fn answers(&self, picture: &str, text: &str, args: &[&str], ids: &[i32]) {
        if let Some(answer) = self.answer(picture, text, args) {
            assert_eq!(answer["token_ids"], serde_json::json!(ids), "{answer}");
        }
    }
}

const GREEDY: [&str; 2] = ["--num-beams", "1"];
const TWO_BEAMS: [&str; 2] = ["--num-beams", "2"];

#[test]
#[ignore = "SKIPPED unless QBRIDGE_WEIGHTS names a directory with Salesforce's weights: docs/models.md"]
fn blip2_opt() {
    let Some(model) = Published::convert("blip2-opt-2.7b", "f16", &[]) else {
        return;
    };
    let caption = [102, 693, 2828, 15, 5, 4105, 19, 10, 2335, 50118];
    model.answers(BEACH, "", &GREEDY, &caption);
    let city = [24, 18, 45, 10, 343, 6, 24, 18, 10, 4105, 50118];
    model.answers(BEACH, CITY, &GREEDY, &city);
    let of_beams = [102, 693, 2828, 15, 5, 4105, 19, 69, 2335, 50118];
    model.answers(BEACH, "", &TWO_BEAMS, &of_beams);
}

#[test]
#[ignore = "SKIPPED unless QBRIDGE_WEIGHTS names a directory with Salesforce's weights: docs/models.md"]
fn blip2_opt_reads_larger_pictures() {
    let larger = ["--image-size", "500"];
    if let Some(model) = Published::convert("blip2-opt-2.7b", "f16", &larger) {
        let caption = [102, 693, 8, 2335, 15, 5, 4105, 50118];
        model.answers(BEACH, "", &GREEDY, &caption);
    }
}

#[test]
#[ignore = "SKIPPED unless QBRIDGE_WEIGHTS names a directory with Salesforce's weights: docs/models.md"]
fn blip2_t5() {
    let Some(model) = Published::convert("blip2-flan-t5-xl", "f16", &[]) else {
        return;
    };
    let caption = [2335, 1556, 28, 1782, 30, 8, 2608, 1];
    model.answers(BEACH, "", &GREEDY, &caption);
    model.answers(BEACH, "", &TWO_BEAMS, &caption);
    model.answers(BEACH, CITY, &GREEDY, &[3, 7, 152, 67, 839, 1]);
}

#[test]
#[ignore = "SKIPPED unless QBRIDGE_WEIGHTS names a directory with Salesforce's weights: docs/models.md"]
fn instructblip_vicuna() {
    let Some(model) = Published::convert("instructblip-vicuna-7b", "f16", &[]) else {
        return;
    };
    // "The unusual aspect of this image is that a man is ironing clothes on the back of
    // a yellow SUV while driving on a busy city street."
    let answer = [
        450, 22910, 9565, 310, 445, 1967, 338, 393, 263, 767, 338, 13977, 292, 22095, 373, 278,
        1250, 310, 263, 13328, 20134, 29963, 1550, 19500, 373, 263, 19587, 4272, 11952, 29889,
    ];
    let thirty = ["--num-beams", "1", "--max-tokens", "30"];
    model.answers(TAXI, UNUSUAL, &thirty, &answer);
}

#[test]
#[ignore = "SKIPPED unless QBRIDGE_WEIGHTS names a directory with Salesforce's weights: docs/models.md"]
fn instructblip_t5() {
    let name = "instructblip-flan-t5-xl";
    let Some(model) = Published::convert(name, "bf16", &[]) else {
        return;
    };
    let published = [
        "--num-beams",
        "5",
        "--repetition-penalty",
        "1.5",
        "--min-tokens",
        "1",
    ];
    if let Some(answer) = model.answer(TAXI, UNUSUAL, &published) {
        // Half a hundred tokens on, the reference's bf16 has a say in it.
        let text = answer["text"].as_str().unwrap();
        let begin = "The unusual image depicts a man ironing clothes";
        assert!(text.starts_with(begin), "{text}");
    }
    drop(model);
    if let Some(model) = Published::convert(name, "bf16", &["--image-size", "500"]) {
        let answer = [
            37, 1023, 753, 3, 9, 2335, 3823, 30, 8, 2608, 28, 3, 9, 1782, 5, 1,
        ];
        model.answers(BEACH, "What's in the image?", &GREEDY, &answer);
    }
}

/// `Blip2ForImageTextRetrieval`'s scores in `tests/models/blip_2`, which computes them in f16.
#[test]
#[ignore = "SKIPPED unless QBRIDGE_WEIGHTS names a directory with Salesforce's weights: docs/models.md"]
fn blip2_itm() {
    let (Some(source), Some(picture)) = (weights("blip2-itm-vit-g"), weights(BEACH)) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("bundle");
    let mut convert = qbridge(["convert", "--vision", "f32"]);
    stdout(convert.arg(source).arg("--out").arg(&bundle));
    let mut matched = qbridge(["match", "--json"]);
    matched.arg(bundle).arg(picture);
    let matched = stdout(matched.arg("A woman and her dog sitting in a beach"));
    let matched: Value = serde_json::from_str(&matched).unwrap();
    for (score, expected) in [("similarity", 0.4406), ("probability", 0.9762)] {
        let difference = matched[score].as_f64().unwrap() - expected;
        assert!(difference.abs() < 1e-2, "{matched}");
    }
}
