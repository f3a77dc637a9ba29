//! What a rendered prompt consists of.

use serde::{Deserialize, Serialize};

/// A piece of a prompt, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// Text to tokenize, without adding BOS or EOS.
    Text {
        /// The text, never empty.
        text: String,
        /// Whether texts of special tokens in it (`<|im_start|>`) become those tokens. True for text of a chat
        /// template; false for what a user wrote, where they stay plain text.
        special: bool,
    },
    /// A token that is put in by id.
    Token(SpecialToken),
    /// The soft prompt of the request's image with this index.
    Image(usize),
}

impl Segment {
    /// Plain text, not parsed for special tokens.
    pub fn text(text: impl Into<String>) -> Segment {
        Segment::Text {
            text: text.into(),
            special: false,
        }
    }

    /// Text of a template, parsed for special tokens.
    pub fn special(text: impl Into<String>) -> Segment {
        Segment::Text {
            text: text.into(),
            special: true,
        }
    }
}

/// A token that layouts name by its purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpecialToken {
    /// Begin of sequence, as the language model's vocabulary defines it.
    #[default]
    Bos,
    /// End of sequence, likewise.
    Eos,
}

/// Collects segments; adjacent text of one kind becomes one segment, so that it is tokenized in one piece.
#[derive(Debug, Default)]
pub(crate) struct Segments(Vec<Segment>);

impl Segments {
    pub(crate) fn push_text(&mut self, new: &str, is_special: bool) {
        if new.is_empty() {
            return;
        }
        match self.0.last_mut() {
            Some(Segment::Text { text, special }) if *special == is_special => text.push_str(new),
            _ => self.0.push(Segment::Text {
                text: new.to_owned(),
                special: is_special,
            }),
        }
    }

    pub(crate) fn push(&mut self, segment: Segment) {
        match segment {
            Segment::Text { text, special } => self.push_text(&text, special),
            other => self.0.push(other),
        }
    }

    /// The text directly before the next segment, where there is any.
    pub(crate) fn last_char(&self) -> Option<char> {
        match self.0.last() {
            Some(Segment::Text { text, .. }) => text.chars().next_back(),
            _ => None,
        }
    }

    pub(crate) fn into_vec(self) -> Vec<Segment> {
        self.0
    }
}
