//! The tokenizer of a Hugging Face directory as GGUF metadata.
//!
//! Three kinds are known: SentencePiece's BPE (Llama), SentencePiece's unigram model (T5)
//! and GPT-2's byte-level BPE (OPT). A SentencePiece file has its pieces' scores and is
//! read where there is one; otherwise `tokenizer.json`, or `vocab.json` and `merges.txt`.

mod charsmap;
mod json;
mod sentencepiece;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use self::json::{AddedToken, Settings};
use super::gguf::{Metadata, Value};
use super::{Json, LlmParts};
use crate::{Error, Result};

/// More rows of embeddings than tokens are padding up to here, another model's beyond.
const MAX_PADDING: usize = 1024;
/// No vocabulary has more; a larger id is damage.
const MAX_TOKENS: usize = 1 << 24;
/// Score of what must never be chosen.
const NEVER: f32 = -1e4;

/// The numbers are `llama_token_type` of `llama.h`, and SentencePiece's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenKind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

#[derive(Debug, Clone, PartialEq)]
struct Token {
    text: String,
    score: f32,
    kind: TokenKind,
}

/// How text becomes tokens.
#[derive(Debug, Clone, PartialEq)]
enum Algorithm {
    /// SentencePiece's BPE: neighbours are merged by the merged piece's score.
    SentencePiece,
    /// SentencePiece's unigram model.
    Unigram {
        remove_extra_whitespaces: bool,
        charsmap: Vec<u8>,
    },
    /// GPT-2's BPE over bytes, with its merges as `left right`.
    ByteLevel { merges: Vec<String> },
}

/// A vocabulary without added tokens, as its file has it.
#[derive(Debug, Clone, PartialEq)]
struct Model {
    path: PathBuf,
    algorithm: Algorithm,
    tokens: Vec<Option<Token>>,
    add_space_prefix: bool,
    /// BOS, EOS, unknown and padding, where the file says so.
    special: SpecialIds,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct SpecialIds {
    bos: Option<usize>,
    eos: Option<usize>,
    unk: Option<usize>,
    pad: Option<usize>,
}

/// A vocabulary with one token for each row of the embeddings.
pub(super) struct Vocabulary {
    algorithm: Algorithm,
    tokens: Vec<Token>,
    add_space_prefix: bool,
    special: SpecialIds,
    add_bos: bool,
    add_eos: bool,
    chat_template: Option<String>,
}

/// Reads the tokenizer of a model with `rows` rows of embeddings.
pub(super) fn read(parts: &LlmParts, rows: usize) -> Result<Vocabulary> {
    let dir = parts.tokenizer_dir;
    let settings = Settings::read(dir)?;
    let tokenizer_json = json::read(dir)?;
    let model_file = ["tokenizer.model", "spiece.model"]
        .map(|name| dir.join(name))
        .into_iter()
        .find(|path| path.is_file());
    let (model, added) = match (model_file, tokenizer_json) {
        (Some(path), None) => {
            let model = sentencepiece::read(&path)?;
            let added = settings.added_tokens(dir, &model)?;
            (model, added)
        }
        (Some(path), Some(json)) => (sentencepiece::read(&path)?, json.added_tokens),
        (None, Some(json)) => json.into_model()?,
        (None, None) => {
            let model = json::read_vocab_and_merges(dir)?;
            let added = settings.added_tokens(dir, &model)?;
            (model, added)
        }
    };
    Vocabulary::new(model, added, &settings, parts.config, rows)
}

impl Vocabulary {
    fn new(
        mut model: Model,
        added: Vec<AddedToken>,
        settings: &Settings,
        config: &Json,
        rows: usize,
    ) -> Result<Self> {
        if let Algorithm::Unigram { charsmap, .. } = &model.algorithm {
            charsmap::check(charsmap).map_err(|reason| {
                model.error(format!(
                    "the normalization map is damaged, {reason}: fetch the file again"
                ))
            })?;
        }
        let n_model = model.tokens.len();
        if n_model > rows {
            return Err(model.error(format!(
                "the tokenizer has {n_model} tokens, and the embeddings have {rows} rows: it is another model's tokenizer"
            )));
        }
        for token in added {
            model.add(token, rows)?;
        }
        if rows > model.tokens.len() + MAX_PADDING {
            return Err(model.error(format!(
                "the tokenizer has {} tokens, and the embeddings have {rows} rows: it is another model's tokenizer",
                model.tokens.len()
            )));
        }
        model.tokens.resize(rows, None);
        let mut special = model.special;
        let id_of = |text: &str| {
            let is = |token: &Option<Token>| token.as_ref().is_some_and(|token| token.text == text);
            model.tokens.iter().position(is)
        };
        let mut control = Vec::new();
        for (id, name) in [
            (&mut special.bos, "bos_token"),
            (&mut special.eos, "eos_token"),
            (&mut special.unk, "unk_token"),
            (&mut special.pad, "pad_token"),
        ] {
            let of_tokenizer = settings.token(name).and_then(id_of).or(*id);
            // The configuration's ids come last: InstructBLIP's name the wrong tokens.
            let configured = || {
                let id = config.get(format!("{name}_id"))?.as_u64()?;
                usize::try_from(id).ok()
            };
            *id = of_tokenizer.or_else(configured).filter(|&id| id < rows);
            control.extend(of_tokenizer);
        }
        for id in control {
            if let Some(Some(token)) = model.tokens.get_mut(id)
                && token.kind != TokenKind::Unknown
            {
                token.kind = TokenKind::Control;
            }
        }
        let unigram = matches!(model.algorithm, Algorithm::Unigram { .. });
        let sentencepiece = model.algorithm == Algorithm::SentencePiece;
        let add = |name: &str, default: bool, id: Option<usize>| {
            id.is_some() && settings.flag(name).unwrap_or(default)
        };
        let vocabulary = Vocabulary {
            add_bos: add("add_bos_token", sentencepiece, special.bos),
            add_eos: add("add_eos_token", unigram, special.eos),
            chat_template: settings.chat_template.clone(),
            special,
            add_space_prefix: model.add_space_prefix,
            tokens: model.fill_gaps()?,
            algorithm: model.algorithm,
        };
        Ok(vocabulary)
    }

    /// Writes the vocabulary down as llama.cpp reads it.
    pub fn describe(self, metadata: &mut Metadata) {
        let (model, pre) = match self.algorithm {
            Algorithm::SentencePiece => ("llama", "default"),
            Algorithm::Unigram { .. } => ("t5", "default"),
            Algorithm::ByteLevel { .. } => ("gpt2", "gpt-2"),
        };
        let mut set = |key: &str, value: Value| {
            metadata.set(format!("tokenizer.{key}"), value);
        };
        set("ggml.model", model.into());
        set("ggml.pre", pre.into());
        let kinds = self.tokens.iter().map(|token| token.kind as i32).collect();
        let scores = self.tokens.iter().map(|token| token.score).collect();
        let texts = self.tokens.into_iter().map(|token| token.text).collect();
        set("ggml.tokens", Value::Texts(texts));
        set("ggml.token_type", Value::I32s(kinds));
        match self.algorithm {
            Algorithm::ByteLevel { merges } => set("ggml.merges", Value::Texts(merges)),
            Algorithm::SentencePiece => set("ggml.scores", Value::F32s(scores)),
            Algorithm::Unigram {
                remove_extra_whitespaces,
                charsmap,
            } => {
                set("ggml.scores", Value::F32s(scores));
                set(
                    "ggml.remove_extra_whitespaces",
                    remove_extra_whitespaces.into(),
                );
                if !charsmap.is_empty() {
                    set("ggml.precompiled_charsmap", Value::U8s(charsmap));
                }
            }
        }
        set("ggml.add_space_prefix", self.add_space_prefix.into());
        for (key, id) in [
            ("ggml.bos_token_id", self.special.bos),
            ("ggml.eos_token_id", self.special.eos),
            ("ggml.unknown_token_id", self.special.unk),
            ("ggml.padding_token_id", self.special.pad),
        ] {
            if let Some(id) = id {
                // Below MAX_TOKENS.
                set(key, Value::U32(id as u32));
            }
        }
        set("ggml.add_bos_token", self.add_bos.into());
        set("ggml.add_eos_token", self.add_eos.into());
        if let Some(template) = self.chat_template {
            set("chat_template", Value::Text(template));
        }
    }
}

impl Model {
    fn error(&self, reason: String) -> Error {
        damaged(&self.path, reason)
    }

    /// Adds a token, or changes the kind of one that is there.
    fn add(&mut self, added: AddedToken, rows: usize) -> Result<()> {
        if added.id >= rows {
            tracing::warn!(
                "{}: token {:?} has id {}, and the embeddings have {rows} rows: left out",
                self.path.display(),
                added.content,
                added.id
            );
            return Ok(());
        }
        if added.id >= self.tokens.len() {
            self.tokens.resize(added.id + 1, None);
        }
        let kind = if added.special {
            TokenKind::Control
        } else {
            TokenKind::UserDefined
        };
        match &mut self.tokens[added.id] {
            Some(token) if token.text != added.content => {
                let reason = format!(
                    "token {} is both {:?} and {:?}: the tokenizer's files are of different models",
                    added.id, token.text, added.content
                );
                Err(self.error(reason))
            }
            Some(token) => {
                if token.kind != TokenKind::Unknown {
                    token.kind = kind;
                }
                Ok(())
            }
            free => {
                *free = Some(Token {
                    text: added.content,
                    score: 0.0,
                    kind,
                });
                Ok(())
            }
        }
    }

    /// Names for rows that no token has. llama.cpp ends the process where two tokens have
    /// the same text, or SentencePiece's BPE lacks a byte.
    fn fill_gaps(&mut self) -> Result<Vec<Token>> {
        let tokens = std::mem::take(&mut self.tokens).into_iter().enumerate();
        let tokens: Vec<Token> = tokens
            .map(|(id, token)| {
                token.unwrap_or_else(|| Token {
                    text: format!("[PAD{id}]"),
                    score: NEVER,
                    kind: TokenKind::Unused,
                })
            })
            .collect();
        let mut texts = HashSet::with_capacity(tokens.len());
        for token in &tokens {
            if token.text.is_empty() || !texts.insert(token.text.as_str()) {
                return Err(self.error(format!(
                    "two tokens are {:?}: the tokenizer is damaged",
                    token.text
                )));
            }
        }
        if self.algorithm == Algorithm::SentencePiece {
            let missing = (0..=255u8)
                .map(byte_token)
                .find(|byte| !texts.contains(byte.as_str()));
            if let Some(byte) = missing {
                return Err(self.error(format!(
                    "it has no token {byte}: llama.cpp needs a SentencePiece BPE with byte fallback; give a GGUF instead"
                )));
            }
        }
        Ok(tokens)
    }
}

/// `<0x0A>` for a line break.
fn byte_token(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}

fn damaged(path: &Path, reason: impl Into<String>) -> Error {
    Error::Convert {
        path: path.to_owned(),
        reason: reason.into(),
    }
}
