//! Captions beside people's captions, as `pycocoevalcap` scores them: Stanford's tokens without punctuation,
//! then BLEU, ROUGE-L and CIDEr.

mod bleu;
mod cider;
mod ptb;
mod rouge;

pub use bleu::{BleuStats, MAX_N, bleu};
pub use cider::cider;
pub use ptb::tokenize;
pub use rouge::rouge_l;

/// A caption of a model and those of people, all as [`tokenize`] gives them.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The model's.
    pub candidate: String,
    /// People's, at least one.
    pub references: Vec<String>,
}
