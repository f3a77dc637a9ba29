//! From a rendered prompt to rows: text to token ids, pictures to places.

use prompts::Segment;

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

/// Tokenizes the text between the pictures.
///
/// A stretch of template and user text is tokenized as one string, as the
/// reference tokenizers do, so that merges across the seam come out the same.
/// Where a user's text spells a special token, alone or across a seam, the
/// stretch is tokenized segment by segment, the user's without special-token
/// parsing: it stays text.
pub(crate) fn tokenize(segments: &[Segment], model: &LanguageModel) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut stretch: Vec<(&str, bool)> = Vec::new();
    let mut tokens = Vec::new();
    let flush_text = |stretch: &mut Vec<(&str, bool)>, tokens: &mut Vec<i32>| {
        if !stretch.is_empty() {
            tokens.extend(tokenize_stretch(stretch, model));
            stretch.clear();
        }
    };
    for segment in segments {
        match segment {
            Segment::Text { text, special } => stretch.push((text, *special)),
            Segment::Bos => {
                flush_text(&mut stretch, &mut tokens);
                tokens.push(model.bos().ok_or(Error::NoBos)?);
            }
            Segment::Image(index) => {
                flush_text(&mut stretch, &mut tokens);
                if !tokens.is_empty() {
                    pieces.push(Piece::Tokens(std::mem::take(&mut tokens)));
                }
                pieces.push(Piece::Image(*index));
            }
        }
    }
    flush_text(&mut stretch, &mut tokens);
    if !tokens.is_empty() {
        pieces.push(Piece::Tokens(tokens));
    }
    Ok(pieces)
}

fn tokenize_stretch(stretch: &[(&str, bool)], model: &LanguageModel) -> Vec<i32> {
    let whole: String = stretch.iter().map(|(text, _)| *text).collect();
    let forged = model.special_token_texts().iter().any(|special| {
        let by_template: usize = stretch
            .iter()
            .filter(|(_, trusted)| *trusted)
            .map(|(text, _)| text.matches(special.as_str()).count())
            .sum();
        whole.matches(special.as_str()).count() != by_template
    });
    if forged {
        stretch
            .iter()
            .flat_map(|(text, trusted)| model.tokenize(text, *trusted))
            .collect()
    } else {
        let has_template = stretch.iter().any(|(_, trusted)| *trusted);
        model.tokenize(&whole, has_template)
    }
}
