//! The GGUF language model: its weights and its vocabulary, without a context.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::{LlamaModelParams, LlamaSplitMode};
use llama_cpp_2::token::LlamaToken;

use crate::constraint::{Constraint, Format, Grammars};
pub use crate::gguf::GgufInfo;
use crate::{Error, Result, llama};

/// How the weights are loaded.
#[derive(Debug, Clone)]
pub struct LanguageModelOptions {
    /// Layers kept on a GPU, where llama.cpp was built for one; `None` is all of them.
    pub n_gpu_layers: Option<u32>,
    /// How several GPUs share the model.
    pub split_mode: SplitMode,
    /// The GPU that holds it where [`SplitMode::None`] leaves it to one.
    pub main_gpu: u16,
    /// Map the file into memory instead of reading it.
    pub mmap: bool,
}

/// How several GPUs share a language model (`llama_split_mode`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SplitMode {
    /// Each holds some of the layers and their KV cache.
    #[default]
    Layer,
    /// Each holds rows of every matrix.
    Row,
    /// One holds all of it.
    None,
}

impl From<SplitMode> for LlamaSplitMode {
    fn from(mode: SplitMode) -> Self {
        match mode {
            SplitMode::Layer => LlamaSplitMode::Layer,
            SplitMode::Row => LlamaSplitMode::Row,
            SplitMode::None => LlamaSplitMode::None,
        }
    }
}

impl Default for LanguageModelOptions {
    fn default() -> Self {
        LanguageModelOptions {
            n_gpu_layers: None,
            split_mode: SplitMode::default(),
            main_gpu: 0,
            mmap: true,
        }
    }
}

/// A loaded language model. Shared by reference between the threads that tokenize
/// and the engine that computes.
pub struct LanguageModel {
    path: PathBuf,
    info: GgufInfo,
    raw: LlamaModel,
    n_embd: usize,
    n_vocab: usize,
    n_ctx_train: usize,
    has_tokenizer: bool,
    decoder_start: Option<i32>,
    end_of_generation: Vec<i32>,
    strips_leading_space: bool,
    special_token_texts: Vec<String>,
    /// Made for the first answer that needs it.
    grammars: OnceLock<Grammars>,
}

impl LanguageModel {
    /// Loads the GGUF at `path` with the default options, for a split model its
    /// first part.
    ///
    /// # Errors
    /// As [`LanguageModel::load_with`].
    pub fn load(path: &Path) -> Result<LanguageModel> {
        LanguageModel::load_with(path, &LanguageModelOptions::default())
    }

    /// Loads the GGUF at `path`, for a split model its first part.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Gguf`] when the file is missing, no GGUF, or
    /// truncated; [`Error::LanguageModel`] with llama.cpp's own words when it
    /// cannot load it, such as an unknown architecture.
    pub fn load_with(path: &Path, options: &LanguageModelOptions) -> Result<LanguageModel> {
        let info = GgufInfo::read(path)?;
        let refused = |reason: String| Error::LanguageModel {
            path: path.to_owned(),
            reason,
        };
        let backend = llama::backend();
        let params = LlamaModelParams::default()
            .with_n_gpu_layers(options.n_gpu_layers.unwrap_or(u32::MAX))
            .with_split_mode(options.split_mode.into())
            .with_main_gpu(options.main_gpu.into())
            .with_use_mmap(options.mmap);
        let _ = llama::take_error();
        let raw = LlamaModel::load_from_file(backend, path, &params)
            .map_err(|error| refused(llama::take_error().unwrap_or_else(|| error.to_string())))?;
        let decoder_start = match llama::encoder_and_decoder(&raw) {
            (false, _) => None,
            (true, false) => {
                return Err(refused(format!(
                    "{} is an encoder without a decoder, which generates nothing",
                    info.architecture
                )));
            }
            (true, true) => match llama::decoder_start(&raw) {
                Some(id) => Some(id),
                None => {
                    return Err(refused(format!(
                        "{0} is an encoder-decoder, and the file does not say where its decoder \
                         starts; write {0}.decoder_start_token_id into it (0 for T5)",
                        info.architecture
                    )));
                }
            },
        };
        let n_embd = llama::n_embd_input(&raw);
        let n_vocab = usize::try_from(raw.n_vocab()).unwrap_or(0);
        if n_embd == 0 || n_vocab == 0 {
            return Err(refused(format!(
                "embeddings of {n_embd} values and a vocabulary of {n_vocab}"
            )));
        }
        if let Some(id) = decoder_start
            && !usize::try_from(id).is_ok_and(|id| id < n_vocab)
        {
            return Err(refused(format!(
                "its decoder starts from token {id}, and its vocabulary has {n_vocab}"
            )));
        }
        let n_ctx_train = raw.n_ctx_train() as usize;
        let has_tokenizer = llama::has_tokenizer(&raw);
        let mut model = LanguageModel {
            path: path.to_owned(),
            info,
            raw,
            n_embd,
            n_vocab,
            n_ctx_train,
            has_tokenizer,
            decoder_start,
            end_of_generation: Vec::new(),
            strips_leading_space: false,
            special_token_texts: Vec::new(),
            grammars: OnceLock::new(),
        };
        model.end_of_generation = (0..i32::try_from(n_vocab).unwrap_or(i32::MAX))
            .filter(|&id| model.is_end_of_generation(id))
            .collect();
        model.special_token_texts = model.find_special_token_texts();
        model.strips_leading_space = model.find_strips_leading_space();
        Ok(model)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file's header says.
    pub fn info(&self) -> &GgufInfo {
        &self.info
    }

    /// Width of one embedding row.
    pub fn n_embd(&self) -> usize {
        self.n_embd
    }

    /// Tokens in the vocabulary; the length of a row of logits.
    pub fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    /// Bytes of its weights, as they are stored.
    pub fn weights(&self) -> u64 {
        self.raw.size()
    }

    /// Longest context the model was trained for.
    pub fn n_ctx_train(&self) -> usize {
        self.n_ctx_train
    }

    /// `general.architecture`.
    pub fn architecture(&self) -> &str {
        &self.info.architecture
    }

    /// Token ids of `text`. Nothing is put before or after it. Control tokens that
    /// appear in the text as `<|im_start|>` does become their ids only where
    /// `parse_special` is set; without it they are ordinary text.
    ///
    /// SentencePiece vocabularies put a space before the text, as their tokenizer
    /// does at the start of a string.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for a text of 2 GB or more, or a model without a
    /// tokenizer.
    pub fn tokenize(&self, text: &str, parse_special: bool) -> Result<Vec<i32>> {
        if !self.has_tokenizer {
            return Err(Error::InvalidRequest {
                reason: format!("{} has no tokenizer", self.path.display()),
            });
        }
        if text.is_empty() {
            return Ok(Vec::new());
        }
        if i32::try_from(text.len()).is_err() {
            return Err(Error::InvalidRequest {
                reason: format!("a text of {} bytes", text.len()),
            });
        }
        let tokens = self
            .raw
            .vocab()
            .tokenize(text.as_bytes(), false, parse_special);
        Ok(tokens.into_iter().map(|token| token.0).collect())
    }

    /// The bytes a token stands for; none for control tokens. They need not be
    /// whole UTF-8 characters.
    pub fn token_bytes(&self, id: i32) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.token_bytes_into(id, &mut bytes);
        bytes
    }

    /// Like [`LanguageModel::token_bytes`], appended to `bytes`.
    pub fn token_bytes_into(&self, id: i32, bytes: &mut Vec<u8>) {
        if self.has_tokenizer && self.contains(id) {
            self.raw
                .vocab()
                .token_to_piece_into(LlamaToken(id), bytes, false, None);
        }
    }

    /// Whether `id` is in the vocabulary.
    pub fn contains(&self, id: i32) -> bool {
        usize::try_from(id).is_ok_and(|id| id < self.n_vocab)
    }

    /// Whether `id` ends an answer: end of text, end of turn, and their like.
    pub fn is_end_of_generation(&self, id: i32) -> bool {
        self.has_tokenizer && self.contains(id) && self.raw.vocab().is_eog(LlamaToken(id))
    }

    /// All tokens that end an answer, ascending.
    pub fn end_of_generation(&self) -> &[i32] {
        &self.end_of_generation
    }

    /// Whether the prompt goes into an encoder, and a decoder of its own answers (T5).
    pub fn is_encoder_decoder(&self) -> bool {
        self.decoder_start.is_some()
    }

    /// Whether requests can share the KV cells of equal beginnings. A sliding window
    /// and a recurrent state forget them, and an encoder reads its input whole.
    pub fn shares_prefixes(&self) -> bool {
        !self.is_encoder_decoder() && llama::keeps_every_row(&self.raw)
    }

    /// The token that the decoder of an encoder-decoder starts from.
    pub fn decoder_start(&self) -> Option<i32> {
        self.decoder_start
    }

    /// The token that begins a text, where the model has one. For OPT that is `</s>`
    /// (2).
    pub fn bos(&self) -> Option<i32> {
        self.named(self.info.bos, self.raw.vocab().bos())
    }

    /// The token that ends a text, where the model has one.
    pub fn eos(&self) -> Option<i32> {
        self.named(self.info.eos, self.raw.vocab().eos())
    }

    /// For a GPT-2 vocabulary that names no token llama.cpp takes id 11, whatever that
    /// is there.
    fn named(&self, in_header: Option<i32>, token: LlamaToken) -> Option<i32> {
        let is_guess = in_header.is_none() && self.info.tokenizer.as_deref() == Some("gpt2");
        Some(token.0).filter(|&id| !is_guess && self.contains(id))
    }

    /// Whether the model wants [`LanguageModel::bos`] at the start of a text
    /// (`tokenizer.ggml.add_bos_token`).
    pub fn adds_bos(&self) -> bool {
        self.raw.vocab().should_add_bos()
    }

    /// How a token is written in a chat template, such as `<|im_end|>`.
    pub fn token_text(&self, id: i32) -> Option<String> {
        if !self.has_tokenizer || !self.contains(id) {
            return None;
        }
        let vocab = self.raw.vocab();
        vocab
            .text(LlamaToken(id))
            .map(|text| text.to_string_lossy().into_owned())
    }

    /// How [`LanguageModel::bos`] is written, or nothing.
    pub fn bos_text(&self) -> String {
        self.bos()
            .and_then(|id| self.token_text(id))
            .unwrap_or_default()
    }

    /// How [`LanguageModel::eos`] is written, or nothing.
    pub fn eos_text(&self) -> String {
        self.eos()
            .and_then(|id| self.token_text(id))
            .unwrap_or_default()
    }

    /// How the control tokens are written: the texts that must not be parsed out
    /// of a user's words.
    pub fn special_token_texts(&self) -> &[String] {
        &self.special_token_texts
    }

    /// The model's own chat template (Jinja).
    pub fn chat_template(&self) -> Option<&str> {
        self.info.chat_template.as_deref()
    }

    /// Whether decoding a whole answer drops one space at its start, as
    /// SentencePiece tokenizers do: "▁Paris" decodes to "Paris".
    pub fn strips_leading_space(&self) -> bool {
        self.strips_leading_space
    }

    /// What holds an answer to a form. The first call takes some tens of
    /// milliseconds, others what the schema takes.
    ///
    /// # Errors
    /// [`Error::Schema`] for a schema that is too large, is none, or asks for what
    /// the grammar cannot say, [`Error::ToolSchema`] for such a one of a function;
    /// [`Error::InvalidRequest`] for a model whose vocabulary
    /// has no end.
    pub fn constraint(&self, format: &Format) -> Result<Constraint> {
        if let Some(grammars) = self.grammars.get() {
            return grammars.constraint(format, self);
        }
        let grammars = Grammars::new(self)?;
        let grammars = self.grammars.get_or_init(|| grammars);
        grammars.constraint(format, self)
    }

    /// The control token that is written so.
    pub(crate) fn control_token(&self, text: &str) -> Option<i32> {
        if !self.has_tokenizer {
            return None;
        }
        let vocab = self.raw.vocab();
        let mut tokens = vocab.tokens();
        let is_it = |id: i32| self.token_text(id).is_some_and(|of| of == text);
        let found = tokens.find(|&token| vocab.is_control(token) && is_it(token.0));
        found.map(|token| token.0)
    }

    fn find_special_token_texts(&self) -> Vec<String> {
        if !self.has_tokenizer {
            return Vec::new();
        }
        let vocab = self.raw.vocab();
        vocab
            .tokens()
            .filter(|&token| vocab.is_control(token))
            .filter_map(|token| self.token_text(token.0))
            .filter(|text| !text.is_empty())
            .collect()
    }

    /// Asks the tokenizer's own decode instead of reading its settings: it holds
    /// for every vocabulary type.
    fn find_strips_leading_space(&self) -> bool {
        if !self.has_tokenizer {
            return false;
        }
        let vocab = self.raw.vocab();
        vocab
            .tokens()
            .map(|token| (token, vocab.token_to_piece(token, false, None)))
            .find(|(_, bytes)| bytes.len() > 1 && bytes.starts_with(b" "))
            .is_some_and(|(token, bytes)| vocab.detokenize(&[token], false, false) != bytes)
    }

    pub(crate) fn raw(&self) -> &LlamaModel {
        &self.raw
    }
}

impl std::fmt::Debug for LanguageModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LanguageModel")
            .field("path", &self.path)
            .field("n_embd", &self.n_embd)
            .field("n_vocab", &self.n_vocab)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden() -> Vec<u8> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/llm/llm.gguf");
        std::fs::read(path).unwrap()
    }

    #[test]
    fn begin_and_end_are_what_the_file_names() {
        let mut bytes = golden();
        for key in ["tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"] {
            let at = bytes
                .windows(key.len())
                .position(|window| window == key.as_bytes())
                .unwrap();
            bytes[at + key.len() - 1] = b'x';
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), golden()).unwrap();
        let model = LanguageModel::load(file.path()).unwrap();
        assert_eq!((model.bos(), model.eos()), (Some(0), Some(1)));
        std::fs::write(file.path(), bytes).unwrap();
        let model = LanguageModel::load(file.path()).unwrap();
        assert_eq!((model.bos(), model.eos()), (None, None));
    }

    #[test]
    fn a_model_without_a_tokenizer_is_no_reason_to_abort() {
        fn set_text(bytes: &mut Vec<u8>, key: &str, text: &str) {
            let at = bytes
                .windows(key.len())
                .position(|window| window == key.as_bytes())
                .unwrap();
            // The value's type, its length, itself.
            let at = at + key.len() + 4;
            let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            let value = [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
            bytes.splice(at..at + 8 + length, value);
        }
        let mut bytes = golden();
        let length = bytes.len();
        set_text(&mut bytes, "tokenizer.ggml.model", "no_vocab");
        // The weights must stay aligned to 32 bytes.
        set_text(&mut bytes, "general.name", &"x".repeat(14 + 28));
        assert_eq!(bytes.len(), length + 32);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let model = LanguageModel::load(file.path()).unwrap();
        assert_eq!(model.n_vocab(), 320);
        assert!(model.end_of_generation().is_empty() && !model.is_end_of_generation(1));
        assert!(model.special_token_texts().is_empty());
        assert_eq!(
            (model.token_text(1), model.bos_text()),
            (None, String::new())
        );
        assert!(model.tokenize("a", false).is_err());
    }

    #[test]
    fn what_llama_cpp_says_reaches_the_user() {
        let mut bytes = golden();
        // An architecture of the same length that llama.cpp has never heard of, in
        // the value and in the keys.
        for at in 0..4000 {
            if bytes[at..].starts_with(b"llama") {
                bytes[at..at + 5].copy_from_slice(b"lhama");
            }
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let error = LanguageModel::load(file.path()).unwrap_err().to_string();
        assert!(error.contains("lhama"), "{error}");
        assert!(
            error.contains(&file.path().display().to_string()),
            "{error}"
        );
    }
}
