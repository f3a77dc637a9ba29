//! A text as the token ids that CLIP reads: byte-level BPE over lower-case text, between
//! `<|startoftext|>` and `<|endoftext|>`.
//!
//! Reference: transformers 5.23, `models/clip/tokenization_clip.py`, which is the `tokenizers`
//! library too. OpenAI's own code also mends broken Unicode and HTML entities beforehand; the
//! reference does not.

use std::path::Path;

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{
    AddedToken, ModelWrapper, SplitDelimiterBehavior, Tokenizer, TruncationDirection,
    TruncationParams, TruncationStrategy,
};

use super::config::ClipTextConfig;
use crate::{Error, Result};

const TOKENIZER_FILE: &str = "tokenizer.json";
const VOCABULARY_FILE: &str = "vocab.json";
const MERGES_FILE: &str = "merges.txt";

const BEGIN: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// What a word is to CLIP (OpenAI, `clip/simple_tokenizer.py`).
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// `<|startoftext|>` and `<|endoftext|>`.
const N_ADDED: usize = 2;

/// CLIP's tokenizer with everything that it needs to read one text.
#[derive(Debug, Clone)]
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
}

impl ClipTokenizer {
    /// Reads `dir/tokenizer.json`, or `vocab.json` and `merges.txt`. Texts are cut to the text
    /// tower's positions, the end token kept.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where none of them is there, a file holds no such tokenizer, or one
    /// that `config` has too few token embeddings for.
    pub fn open_dir(dir: &Path, config: &ClipTextConfig) -> Result<Self> {
        let (json, vocabulary) = (dir.join(TOKENIZER_FILE), dir.join(VOCABULARY_FILE));
        if json.is_file() {
            let bytes = std::fs::read(&json).map_err(Error::io(&json))?;
            return Tokenizer::from_bytes(bytes)
                .map_err(|error| error.to_string())
                .and_then(|tokenizer| Self::finished(tokenizer, config))
                .map_err(invalid(&json));
        }
        if !vocabulary.is_file() {
            return Err(invalid(dir)(format!(
                "neither {TOKENIZER_FILE} nor {VOCABULARY_FILE} is here: save the checkpoint's processor beside it"
            )));
        }
        from_vocabulary(&vocabulary, &dir.join(MERGES_FILE))
            .map_err(|error| error.to_string())
            .and_then(|tokenizer| Self::finished(tokenizer, config))
            .map_err(invalid(&vocabulary))
    }

    /// Reads a file that [`ClipTokenizer::save`] wrote.
    ///
    /// # Errors
    /// As [`ClipTokenizer::open_dir`]'s.
    pub fn open(path: &Path, config: &ClipTextConfig) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        Tokenizer::from_bytes(bytes)
            .map_err(|error| error.to_string())
            .and_then(|tokenizer| Self::finished(tokenizer, config))
            .map_err(invalid(path))
    }

    /// Writes everything as one file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_vec(&self.tokenizer)?;
        std::fs::write(path, json).map_err(Error::io(path))
    }

    fn finished(mut tokenizer: Tokenizer, config: &ClipTextConfig) -> Result<Self, String> {
        if !matches!(tokenizer.get_model(), ModelWrapper::BPE(_)) {
            return Err("it holds no BPE, which CLIP reads".to_owned());
        }
        let token = |token: &str| match tokenizer.token_to_id(token) {
            Some(id) => Ok((token.to_owned(), id)),
            None => Err(format!("its vocabulary lacks {token}")),
        };
        let processing = RobertaProcessing::new(token(END)?, token(BEGIN)?)
            .trim_offsets(false)
            .add_prefix_space(false);
        let tokens = tokenizer.get_vocab(true).into_values().max();
        let tokens = tokens.map_or(0, |id| id as usize + 1);
        if tokens > config.vocab_size {
            return Err(format!(
                "it has {tokens} tokens, and CLIP {} token embeddings (text_config.vocab_size): \
                 take the tokenizer that was saved with these weights",
                config.vocab_size
            ));
        }
        if config.max_position_embeddings <= N_ADDED {
            return Err(format!(
                "texts of {} tokens have no room beside {BEGIN} and {END}",
                config.max_position_embeddings
            ));
        }
        tokenizer
            .with_post_processor(Some(processing))
            .with_padding(None)
            .with_truncation(Some(TruncationParams {
                direction: TruncationDirection::Right,
                max_length: config.max_position_embeddings,
                strategy: TruncationStrategy::LongestFirst,
                stride: 0,
            }))
            .map_err(|error| error.to_string())?;
        Ok(Self { tokenizer })
    }

    /// The ids of `<|startoftext|> text <|endoftext|>`, cut to the text tower's positions.
    ///
    /// # Errors
    /// The library refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, true);
        let encoding = encoding.map_err(|error| Error::Text {
            reason: error.to_string(),
        })?;
        Ok(encoding.get_ids().to_vec())
    }
}

/// The reference's `CLIPTokenizer` over a vocabulary and its merges.
fn from_vocabulary(vocabulary: &Path, merges: &Path) -> tokenizers::Result<Tokenizer> {
    let (vocabulary, merges) = (vocabulary.display(), merges.display());
    let model = BPE::from_file(&vocabulary.to_string(), &merges.to_string())
        .unk_token(END.to_owned())
        .end_of_word_suffix("</w>".to_owned())
        .build()?;
    let mut tokenizer = Tokenizer::new(model);
    let words = Split::new(
        SplitPattern::Regex(WORDS.to_owned()),
        SplitDelimiterBehavior::Removed,
        true,
    )?;
    let spaces = Replace::new(
        tokenizers::normalizers::replace::ReplacePattern::Regex(r"\s+".to_owned()),
        " ",
    )?;
    tokenizer
        .with_normalizer(Some(Normalizers::new(vec![
            NFC.into(),
            spaces.into(),
            Lowercase.into(),
        ])))?
        .with_pre_tokenizer(Some(PreTokenizers::new(vec![
            words.into(),
            ByteLevel::new(false, true, true).into(),
        ])));
    tokenizer.add_special_tokens([BEGIN, END].map(|token| AddedToken::from(token, true)))?;
    Ok(tokenizer)
}

fn invalid(path: &Path) -> impl Fn(String) -> Error {
    move |reason| Error::Tokenizer {
        path: path.to_owned(),
        reason,
    }
}
