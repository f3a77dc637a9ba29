//! The inputs that fuzzing kept, through the functions that were fuzzed (`fuzz/`).

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../../fuzz/src/inputs/mod.rs"]
mod inputs;
#[path = "../../fuzz/src/requests.rs"]
mod requests;

use std::time::{Duration, Instant};

use qbridge_tests::repository;

/// Longest for one input: cargo fuzz, on a machine of its own, complains after 10 seconds.
const LONGEST: Duration = Duration::from_secs(30);

fn replay(target: &str, run: fn(&[u8])) {
    let corpus = repository().join("fuzz/corpus").join(target);
    let mut inputs = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        let input = std::fs::read(&path).unwrap();
        let started = Instant::now();
        run(&input);
        assert!(started.elapsed() < LONGEST, "{}", path.display());
        inputs += 1;
    }
    assert!(inputs > 5, "{inputs} inputs of {target}");
}

#[test]
fn pictures() {
    replay("image", inputs::image);
}

#[test]
fn conversations() {
    replay("chat_messages", inputs::chat_messages);
}

#[test]
fn templates() {
    replay("chat_template", inputs::chat_template);
}

#[test]
fn calls() {
    replay("calls", inputs::calls);
}

#[test]
fn bodies() {
    replay("chat_body", requests::chat_body);
}

#[test]
fn data_uris() {
    replay("data_uri", requests::data_uri);
}
