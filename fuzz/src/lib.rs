//! What each fuzz target does with an input. `tests/tests/fuzz_corpus.rs` does the same with the kept corpus.

pub mod inputs;
#[cfg(feature = "server")]
pub mod requests;
