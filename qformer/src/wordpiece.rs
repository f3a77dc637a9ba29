//! Text as the token ids that a Q-Former or BLIP reads: BERT's WordPiece (Devlin et
//! al. 2019, arXiv:1810.04805), `[CLS] ... [SEP]`.
//!
//! Reference: transformers 5.23, `models/bert/tokenization_bert.py`, which is
//! the `tokenizers` library too, here without its regex engine in C and
//! without its hub client. `[DEC]` is the token that BLIP-2's pre-training
//! added to BERT's vocabulary (LAVIS, `Blip2Base.init_tokenizer`).

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokenizers::decoders::wordpiece::WordPiece as Decoder;
use tokenizers::models::wordpiece::WordPiece as Model;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{
    AddedToken, ModelWrapper, Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy,
};

use crate::config::QFormerConfig;
use crate::{Error, Result};

/// Name of the tokenizer's directory inside a checkpoint directory.
pub const TOKENIZER_DIR: &str = "qformer_tokenizer";

const TOKENIZER_FILE: &str = "tokenizer.json";
const VOCABULARY_FILE: &str = "vocab.txt";
const CONFIG_FILE: &str = "tokenizer_config.json";

/// Where texts that are too long are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Which end of a text is left out.
    pub side: Side,
    /// Tokens that are kept, `[CLS]` and `[SEP]` among them.
    pub max_length: usize,
}

impl Cut {
    /// InstructBLIP's (LAVIS, `blip2_vicuna_instruct.py`, `max_txt_len`).
    pub const INSTRUCT_BLIP: Self = Self {
        side: Side::Left,
        max_length: 128,
    };
    /// The first stage's, which was trained on no longer texts (LAVIS, `blip2_qformer.py`,
    /// `max_txt_len`).
    pub const STAGE1: Self = Self {
        side: Side::Right,
        max_length: 32,
    };
}

/// What `Blip2Processor` adds, to stand for the picture.
const IMAGE: &str = "<image>";

/// `[CLS]` and `[SEP]`.
const N_ADDED: usize = 2;

/// BERT's tokenizer with everything that it needs to read one text.
#[derive(Debug, Clone)]
pub struct WordPiece {
    tokenizer: Tokenizer,
}

/// What a model has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextSizes {
    /// Rows of the word embeddings.
    pub vocab_size: usize,
    /// Rows of the position embeddings, and so the longest text.
    pub max_position_embeddings: usize,
}

impl From<&QFormerConfig> for TextSizes {
    fn from(config: &QFormerConfig) -> Self {
        Self {
            vocab_size: config.vocab_size,
            max_position_embeddings: config.max_position_embeddings,
        }
    }
}

/// What a `tokenizer_config.json` may say that changes ids.
#[derive(Deserialize)]
#[serde(default)]
struct TokenizerConfig {
    do_lower_case: bool,
    tokenize_chinese_chars: bool,
    strip_accents: Option<bool>,
    /// Absurdly large where there is none, so a float.
    model_max_length: Option<f64>,
    truncation_side: Side,
}

/// An end of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Its beginning.
    Left,
    /// Its end.
    Right,
}

impl Default for TokenizerConfig {
    fn default() -> Self {
        Self {
            do_lower_case: true,
            tokenize_chinese_chars: true,
            strip_accents: None,
            model_max_length: None,
            truncation_side: Side::Right,
        }
    }
}

impl WordPiece {
    /// Reads `dir`, a checkpoint's `qformer_tokenizer/`: `tokenizer.json`, or
    /// `vocab.txt` alone, to which `[DEC]` is added; beside either,
    /// `tokenizer_config.json`, without which the tokenizer is InstructBLIP's
    /// (lower case, cut on the left). Texts are cut to its `model_max_length`,
    /// at most the Q-Former's positions.
    ///
    /// # Errors
    /// [`Error::NoTokenizer`] where neither is there; [`Error::Tokenizer`] for
    /// a file that holds no such tokenizer, or one that `config` has too few
    /// word embeddings for.
    pub fn open_dir(dir: &Path, config: impl Into<TextSizes>) -> Result<Self> {
        let settings = TokenizerConfig::read(&dir.join(CONFIG_FILE))?;
        let path = file_in(dir)?;
        let limit = settings.model_max_length.unwrap_or(f64::INFINITY);
        let cut = Cut {
            side: settings.truncation_side,
            // A float beyond `usize` saturates.
            max_length: limit as usize,
        };
        Self::finished(read_file(&path, &settings)?, cut, config.into()).map_err(invalid(&path))
    }

    /// Reads the tokenizer in `dir`, a checkpoint directory of `Blip2ForImageTextRetrieval`, as
    /// [`WordPiece::open_dir`] reads one. Texts are cut as [`Cut::STAGE1`] says, which the
    /// reference's processor leaves to its caller, and `<image>`, which that processor puts
    /// before a text and the model takes away again, is none of its tokens.
    ///
    /// # Errors
    /// As [`WordPiece::open_dir`].
    pub fn open_stage1(dir: &Path, config: &QFormerConfig) -> Result<Self> {
        let settings = TokenizerConfig::read(&dir.join(CONFIG_FILE))?;
        let path = file_in(dir)?;
        let mut tokenizer = read_file(&path, &settings)?;
        if tokenizer.token_to_id(IMAGE).is_some() {
            tokenizer =
                without_image(&tokenizer).map_err(|error| invalid(&path)(error.to_string()))?;
        }
        Self::finished(tokenizer, Cut::STAGE1, config.into()).map_err(invalid(&path))
    }

    /// With what BERT puts around a text, and texts cut to the Q-Former's positions at most.
    fn finished(mut tokenizer: Tokenizer, cut: Cut, config: TextSizes) -> Result<Self, String> {
        let max_length = cut.max_length.min(config.max_position_embeddings);
        if max_length <= N_ADDED {
            return Err(format!(
                "texts of {max_length} tokens have no room beside [CLS] and [SEP]"
            ));
        }
        let processing = bert_processing(&tokenizer)?;
        tokenizer
            .with_post_processor(Some(processing))
            .with_padding(None)
            .with_truncation(Some(TruncationParams {
                direction: match cut.side {
                    Side::Left => TruncationDirection::Left,
                    Side::Right => TruncationDirection::Right,
                },
                max_length,
                strategy: TruncationStrategy::LongestFirst,
                stride: 0,
            }))
            .map_err(|error| error.to_string())?;
        Self::checked(tokenizer, config)
    }

    /// Reads BERT's tokenizer for a Q-Former of LAVIS, whose files have none:
    /// `path` is `bert-base-uncased`'s `vocab.txt` or `tokenizer.json`, or the
    /// directory of one. `[DEC]` is added where it is missing (LAVIS,
    /// `Blip2Base.init_tokenizer`).
    ///
    /// # Errors
    /// As [`WordPiece::open_dir`].
    pub fn open_lavis(path: &Path, cut: Cut, config: &QFormerConfig) -> Result<Self> {
        let path = match path.is_dir() {
            true => file_in(path)?,
            false => path.to_owned(),
        };
        let mut tokenizer = read_file(&path, &TokenizerConfig::default())?;
        let dec = AddedToken::from("[DEC]", true);
        tokenizer
            .add_special_tokens([dec])
            .map_err(|error| invalid(&path)(error.to_string()))?;
        Self::finished(tokenizer, cut, config.into()).map_err(invalid(&path))
    }

    /// Reads a file that [`WordPiece::save`] wrote.
    ///
    /// # Errors
    /// The file cannot be read, holds no such tokenizer, or one that `config`
    /// has too few word embeddings or positions for.
    pub fn open(path: &Path, config: impl Into<TextSizes>) -> Result<Self> {
        let mut tokenizer = read_json(path)?;
        let invalid = invalid(path);
        let processing = bert_processing(&tokenizer).map_err(&invalid)?;
        tokenizer
            .with_post_processor(Some(processing))
            .with_padding(None);
        Self::checked(tokenizer, config.into()).map_err(invalid)
    }

    /// Writes everything as one file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_vec(&self.tokenizer)?;
        std::fs::write(path, json).map_err(Error::io(path))
    }

    /// The ids of `[CLS] text [SEP]`, cut to the tokenizer's limit; two for an
    /// empty text.
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

    /// The text of ids as the reference decodes them: pieces joined to words, special tokens
    /// left out, spaces before punctuation taken away.
    ///
    /// # Errors
    /// The library refuses the ids.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let text = self.tokenizer.decode(ids, true);
        text.map_err(|error| Error::Text {
            reason: error.to_string(),
        })
    }

    /// The id of a token of the vocabulary, such as `[DEC]`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// Rows of word embeddings that the ids need.
    pub fn vocab_size(&self) -> usize {
        vocab_size(&self.tokenizer)
    }

    fn checked(mut tokenizer: Tokenizer, config: TextSizes) -> Result<Self, String> {
        tokenizer.with_decoder(Some(Decoder::default()));
        let ModelWrapper::WordPiece(model) = tokenizer.get_model() else {
            return Err("it holds no WordPiece vocabulary, which is what is read here".to_owned());
        };
        let unknown = &model.unk_token;
        if tokenizer.token_to_id(unknown).is_none() {
            return Err(format!("its vocabulary lacks {unknown}"));
        }
        let (tokens, rows) = (vocab_size(&tokenizer), config.vocab_size);
        if tokens > rows {
            return Err(format!(
                "it has {tokens} tokens, and the model {rows} word embeddings (vocab_size): \
                 take the tokenizer that was saved with these weights"
            ));
        }
        let positions = config.max_position_embeddings;
        match tokenizer.get_truncation() {
            Some(truncation) if (N_ADDED + 1..=positions).contains(&truncation.max_length) => {
                Ok(Self { tokenizer })
            }
            Some(truncation) => Err(format!(
                "texts are cut to {} tokens, and the model has {positions} positions",
                truncation.max_length
            )),
            None => Err("it does not say where texts are cut".to_owned()),
        }
    }
}

impl TokenizerConfig {
    fn read(path: &Path) -> Result<Self> {
        match std::fs::read(path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|error| invalid(path)(error.to_string()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self {
                truncation_side: Side::Left,
                ..Self::default()
            }),
            Err(error) => Err(Error::io(path)(error)),
        }
    }
}

/// The tokenizer's file in a directory.
fn file_in(dir: &Path) -> Result<PathBuf> {
    let files = [TOKENIZER_FILE, VOCABULARY_FILE].map(|file| dir.join(file));
    let found = files.into_iter().find(|file| file.is_file());
    found.ok_or_else(|| Error::NoTokenizer {
        dir: dir.to_owned(),
    })
}

/// A vocabulary of one token a line where the name ends so, else JSON.
fn read_file(path: &Path, settings: &TokenizerConfig) -> Result<Tokenizer> {
    match path.extension().is_some_and(|extension| extension == "txt") {
        true => read_vocabulary(path, settings),
        false => read_json(path),
    }
}

/// The tokenizer but for [`IMAGE`], which the library has no way to take out.
fn without_image(tokenizer: &Tokenizer) -> Result<Tokenizer, serde_json::Error> {
    let mut json = serde_json::to_value(tokenizer)?;
    if let Some(added) = json["added_tokens"].as_array_mut() {
        added.retain(|token| token["content"] != IMAGE);
    }
    serde_json::from_value(json)
}

fn read_json(path: &Path) -> Result<Tokenizer> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    Tokenizer::from_bytes(bytes).map_err(|error| invalid(path)(error.to_string()))
}

/// BERT's tokenizer over a vocabulary of one token a line.
fn read_vocabulary(path: &Path, settings: &TokenizerConfig) -> Result<Tokenizer> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let build = || -> tokenizers::Result<Tokenizer> {
        let vocabulary = Model::read_bytes(&bytes)?;
        let model = Model::builder().vocab(vocabulary).build()?;
        let mut tokenizer = Tokenizer::new(model);
        tokenizer
            .with_normalizer(Some(BertNormalizer::new(
                true,
                settings.tokenize_chinese_chars,
                settings.strip_accents,
                settings.do_lower_case,
            )))?
            .with_pre_tokenizer(Some(BertPreTokenizer));
        let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"];
        tokenizer.add_special_tokens(special.map(|token| AddedToken::from(token, true)))?;
        Ok(tokenizer)
    };
    build().map_err(|error| invalid(path)(error.to_string()))
}

fn bert_processing(tokenizer: &Tokenizer) -> Result<BertProcessing, String> {
    let token = |token: &str| match tokenizer.token_to_id(token) {
        Some(id) => Ok((token.to_owned(), id)),
        None => Err(format!("its vocabulary lacks {token}")),
    };
    Ok(BertProcessing::new(token("[SEP]")?, token("[CLS]")?))
}

fn vocab_size(tokenizer: &Tokenizer) -> usize {
    let ids = tokenizer.get_vocab(true).into_values();
    ids.max().map_or(0, |id| id as usize + 1)
}

fn invalid(path: &Path) -> impl Fn(String) -> Error {
    move |reason| Error::Tokenizer {
        path: path.to_owned(),
        reason,
    }
}
