//! Marks that travel through a chat template around what users wrote, so that its output can be taken apart again.
//!
//! A mark is a private-use character, a random number, a kind, an index and a closing character. It holds no letters and no
//! whitespace, so the usual filters (`trim`, `upper`, `title`) leave it alone; whitespace at the ends of a text stays
//! outside its marks, so that a template trims it as it would trim the plain text. The number is drawn anew for every
//! render and never occurs in what users wrote, so nobody can forge a mark.

use crate::segment::{Segment, Segments};
use std::hash::{BuildHasher, Hasher, RandomState};

const OPEN: char = '\u{F0000}';
const TEXT_BEGINS: char = '\u{F0001}';
const TEXT_ENDS: char = '\u{F0002}';
const IMAGE: char = '\u{F0003}';
const CLOSE: char = '\u{F0004}';

/// Draws marks for one render and reads them back.
pub(crate) struct Marks {
    prefix: String,
}

/// A template's output taken apart.
#[derive(Debug)]
pub(crate) struct Unmarked {
    pub(crate) segments: Vec<Segment>,
    /// How often each marked text occurs.
    pub(crate) texts: Vec<usize>,
    /// How often each marked image occurs.
    pub(crate) images: Vec<usize>,
}

/// A mark is missing its partner, stands inside another, or was damaged.
#[derive(Debug)]
pub(crate) struct Damaged;

impl Marks {
    /// Marks that occur in none of `texts`.
    pub(crate) fn avoiding(texts: &[&str]) -> Marks {
        loop {
            let nonce = RandomState::new().build_hasher().finish();
            let marks = Marks {
                prefix: format!("{OPEN}{nonce:020}"),
            };
            if !texts.iter().any(|text| text.contains(&marks.prefix)) {
                return marks;
            }
        }
    }

    /// `text` in marks, the whitespace at its ends outside of them.
    pub(crate) fn text(&self, index: usize, text: &str) -> String {
        let core = text.trim();
        let prefix = &self.prefix;
        let before = &text[..text.len() - text.trim_start().len()];
        let after = &text[text.trim_end().len()..];
        format!(
            "{before}{prefix}{TEXT_BEGINS}{index}{CLOSE}{core}{prefix}{TEXT_ENDS}{index}{CLOSE}{after}"
        )
    }

    /// The mark of an image.
    pub(crate) fn image(&self, index: usize) -> String {
        format!("{}{IMAGE}{index}{CLOSE}", self.prefix)
    }

    /// Takes `output` apart; `texts` and `images` are how many of each were marked.
    pub(crate) fn unmark(
        &self,
        output: &str,
        texts: usize,
        images: usize,
    ) -> Result<Unmarked, Damaged> {
        let mut segments = Segments::default();
        let mut unmarked = Unmarked {
            segments: Vec::new(),
            texts: vec![0; texts],
            images: vec![0; images],
        };
        let mut inside: Option<usize> = None;
        let mut pieces = output.split(self.prefix.as_str());
        segments.push_text(pieces.next().unwrap_or_default(), true);
        for piece in pieces {
            let (mark, text) = piece.split_once(CLOSE).ok_or(Damaged)?;
            let mut mark = mark.chars();
            let kind = mark.next().ok_or(Damaged)?;
            let index: usize = mark.as_str().parse().map_err(|_| Damaged)?;
            match (kind, inside) {
                (TEXT_BEGINS, None) => {
                    *unmarked.texts.get_mut(index).ok_or(Damaged)? += 1;
                    inside = Some(index);
                }
                (TEXT_ENDS, Some(begun)) if begun == index => inside = None,
                (IMAGE, None) => {
                    *unmarked.images.get_mut(index).ok_or(Damaged)? += 1;
                    segments.push(Segment::Image(index));
                }
                _ => return Err(Damaged),
            }
            segments.push_text(text, inside.is_none());
        }
        if inside.is_some() {
            return Err(Damaged);
        }
        unmarked.segments = segments.into_vec();
        Ok(unmarked)
    }

    /// `message` without marks, for errors in the template's own words.
    pub(crate) fn erase(&self, message: &str) -> String {
        let mut pieces = message.split(self.prefix.as_str());
        let mut plain = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            plain.push_str(piece.split_once(CLOSE).map_or(piece, |(_, text)| text));
        }
        plain
    }
}
