//! From a rendered prompt to rows: text to token ids, pictures to places.

use prompts::{Segment, SpecialToken, join};

use crate::language_model::LanguageModel;
use crate::{Error, Result};

/// A prompt with its pictures still to be encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Token ids.
    Tokens(Vec<i32>),
    /// The soft prompt of the request's picture of this index.
    Image(usize),
}

/// Tokenizes the text between the pictures; adjacent tokens become one piece.
///
/// # Errors
/// The layout asks for a BOS or EOS token that the vocabulary does not have.
pub(crate) fn tokenize(segments: Vec<Segment>, model: &LanguageModel) -> Result<Vec<Piece>> {
    let mut pieces: Vec<Piece> = Vec::new();
    for segment in join(segments, model.special_token_texts()) {
        let ids = match segment {
            Segment::Text { text, special } => model.tokenize(&text, special)?,
            Segment::Token(SpecialToken::Bos) => vec![model.bos().ok_or(Error::NoBos)?],
            Segment::Token(SpecialToken::Eos) => vec![model.eos().ok_or(Error::NoEos)?],
            Segment::Image(index) => {
                pieces.push(Piece::Image(index));
                continue;
            }
        };
        match pieces.last_mut() {
            Some(Piece::Tokens(tokens)) => tokens.extend(ids),
            _ => pieces.push(Piece::Tokens(ids)),
        }
    }
    Ok(pieces)
}
