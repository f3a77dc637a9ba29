//! Reads SentencePiece's model file: the few fields of `sentencepiece_model.proto` that
//! say how to tokenize.

use std::path::Path;

use super::{Algorithm, Model, SpecialIds, Token, TokenKind, damaged};
use crate::{Error, Result};

const MODEL_TYPE_UNIGRAM: u64 = 1;
const MODEL_TYPE_BPE: u64 = 2;

/// Reads `tokenizer.model` or `spiece.model`.
pub(super) fn read(path: &Path) -> Result<Model> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    parse(&bytes, path).map_err(|reason| damaged(path, reason))
}

fn parse(bytes: &[u8], path: &Path) -> Result<Model, String> {
    let mut tokens = Vec::new();
    let mut trainer = None;
    let mut normalizer = Normalizer::default();
    for field in Fields(bytes) {
        match field? {
            (1, Field::Bytes(piece)) => tokens.push(Some(read_piece(piece)?)),
            (2, Field::Bytes(spec)) => trainer = Some(Trainer::read(spec)?),
            (3, Field::Bytes(spec)) => normalizer = Normalizer::read(spec)?,
            _ => {}
        }
    }
    // It follows the pieces in the file.
    let trainer = trainer.ok_or_else(ends_early)?;
    if tokens.is_empty() {
        return Err("it has no pieces, so it is not a SentencePiece model".to_owned());
    }
    let algorithm = match trainer.model_type {
        MODEL_TYPE_BPE => Algorithm::SentencePiece,
        MODEL_TYPE_UNIGRAM if trainer.byte_fallback => {
            return Err("a unigram model with byte fallback, which llama.cpp does not have: give a GGUF instead".to_owned());
        }
        MODEL_TYPE_UNIGRAM => Algorithm::Unigram {
            remove_extra_whitespaces: normalizer.remove_extra_whitespaces,
            charsmap: normalizer.charsmap,
        },
        other => {
            return Err(format!(
                "SentencePiece model type {other}; BPE and unigram are known"
            ));
        }
    };
    let n = tokens.len();
    let id = |id: i64| usize::try_from(id).ok().filter(|&id| id < n);
    Ok(Model {
        path: path.to_owned(),
        algorithm,
        tokens,
        add_space_prefix: normalizer.add_dummy_prefix,
        special: SpecialIds {
            bos: id(trainer.bos),
            eos: id(trainer.eos),
            unk: id(trainer.unk),
            pad: id(trainer.pad),
        },
    })
}

fn read_piece(bytes: &[u8]) -> Result<Token, String> {
    let mut token = Token {
        text: String::new(),
        score: 0.0,
        kind: TokenKind::Normal,
    };
    for field in Fields(bytes) {
        match field? {
            (1, Field::Bytes(text)) => {
                token.text = String::from_utf8(text.to_vec())
                    .map_err(|_| "a piece is not UTF-8: the file is damaged".to_owned())?;
            }
            (2, Field::Fixed32(bits)) => token.score = f32::from_bits(bits),
            (3, Field::Varint(kind)) => {
                token.kind = match kind {
                    1 => TokenKind::Normal,
                    2 => TokenKind::Unknown,
                    3 => TokenKind::Control,
                    4 => TokenKind::UserDefined,
                    5 => TokenKind::Unused,
                    6 => TokenKind::Byte,
                    other => return Err(format!("a piece of type {other}: the file is damaged")),
                };
            }
            _ => {}
        }
    }
    Ok(token)
}

/// `TrainerSpec`, with the defaults of its definition.
struct Trainer {
    model_type: u64,
    byte_fallback: bool,
    unk: i64,
    bos: i64,
    eos: i64,
    pad: i64,
}

impl Trainer {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut trainer = Trainer {
            model_type: MODEL_TYPE_UNIGRAM,
            byte_fallback: false,
            unk: 0,
            bos: 1,
            eos: 2,
            pad: -1,
        };
        for field in Fields(bytes) {
            let (number, Field::Varint(value)) = field? else {
                continue;
            };
            match number {
                3 => trainer.model_type = value,
                35 => trainer.byte_fallback = value != 0,
                40 => trainer.unk = value as i64,
                41 => trainer.bos = value as i64,
                42 => trainer.eos = value as i64,
                43 => trainer.pad = value as i64,
                _ => {}
            }
        }
        Ok(trainer)
    }
}

/// `NormalizerSpec`, with the defaults of its definition.
struct Normalizer {
    charsmap: Vec<u8>,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
}

impl Default for Normalizer {
    fn default() -> Self {
        Normalizer {
            charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
        }
    }
}

impl Normalizer {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut normalizer = Normalizer::default();
        for field in Fields(bytes) {
            match field? {
                (2, Field::Bytes(map)) => normalizer.charsmap = map.to_vec(),
                (3, Field::Varint(value)) => normalizer.add_dummy_prefix = value != 0,
                (4, Field::Varint(value)) => normalizer.remove_extra_whitespaces = value != 0,
                _ => {}
            }
        }
        Ok(normalizer)
    }
}

fn ends_early() -> String {
    "not a whole SentencePiece model: it is truncated or damaged; fetch it again".to_owned()
}

/// A field of a protobuf message.
enum Field<'a> {
    Varint(u64),
    Fixed32(u32),
    Fixed64,
    Bytes(&'a [u8]),
}

/// The fields of a protobuf message, with their numbers.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Varint(self.varint()?),
            1 => self.take(8).map(|_| Field::Fixed64)?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((key >> 3, field))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field().ok_or_else(ends_early);
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(fields: &[(u8, &[u8])]) -> Vec<u8> {
        fields
            .iter()
            .flat_map(|(number, bytes)| [&[number << 3 | 2, bytes.len() as u8][..], bytes].concat())
            .collect()
    }

    fn small() -> Vec<u8> {
        let piece = |text: &str| message(&[(1, text.as_bytes())]);
        message(&[
            (1, &piece("<unk>")),
            (1, &piece("▁a")),
            (2, &[3 << 3, 2]),
            (3, &[3 << 3, 0]),
        ])
    }

    #[test]
    fn reads_pieces_and_settings() {
        let model = parse(&small(), Path::new("m")).unwrap();
        assert_eq!(model.algorithm, Algorithm::SentencePiece);
        assert!(!model.add_space_prefix);
        assert_eq!(model.tokens[1].as_ref().unwrap().text, "▁a");
        assert_eq!(model.special.unk, Some(0));
        assert_eq!(model.special.pad, None);
        assert_eq!(model.special.eos, None, "id 2 is beyond the pieces");
    }

    #[test]
    fn every_way_of_cutting_it_short_is_told() {
        let bytes = small();
        let settings = bytes.len() - 4;
        for end in 0..settings {
            let error = parse(&bytes[..end], Path::new("m")).unwrap_err();
            assert!(error.contains("truncated"), "{end}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, Path::new("m"));
        }
    }
}
