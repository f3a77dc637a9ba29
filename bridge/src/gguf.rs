//! Reads a GGUF file's header: what a bundle needs to know of its language model
//! before the weights are loaded, and whether the file is whole.
//!
//! Format: `docs/gguf.md` of ggml. The file is not trusted: every length is
//! checked against the bytes that are left before anything is allocated, and
//! arrays are stepped over, never kept.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use crate::{Error, Result, llama};

/// Longest key or tensor name.
const MAX_NAME: u64 = 65_535;
/// Longest text value that is kept; real chat templates are below 100 kB.
const MAX_TEXT: u64 = 16 << 20;
/// Most dimensions of a tensor (`GGML_MAX_DIMS`).
const MAX_DIMS: u32 = 4;

/// Key under which a GGUF says of which `model_type` of transformers it was made, on
/// the graph of another: an OPT is `mpt` to llama.cpp, as any MPT is.
pub(crate) const MODEL_TYPE: &str = "qbridge.model_type";

/// The architecture of T5 and Flan-T5.
const T5: &str = "t5";

/// `GGML_TYPE_F16`
const F16: u32 = 1;

/// Rows that a product reads at a time of a matrix that is laid out anew for it (`ggml-cpu/repack.cpp`).
const REPACKED_ROWS: u64 = 8;

/// Ends of the keys that hold sizes, behind the architecture's name.
const SIZES: [&str; 10] = [
    ".embedding_length",
    ".context_length",
    ".vocab_size",
    ".block_count",
    ".decoder_block_count",
    ".feed_forward_length",
    ".attention.head_count",
    ".attention.head_count_kv",
    ".attention.key_length",
    ".attention.value_length",
];

/// What the header of a GGUF language model says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GgufInfo {
    /// `general.architecture`, such as `llama`.
    pub architecture: String,
    /// `general.name`.
    pub name: Option<String>,
    /// `general.license`.
    pub license: Option<String>,
    /// Width of a token's embedding (`{architecture}.embedding_length`).
    pub n_embd: usize,
    /// Tokens in the vocabulary.
    pub n_vocab: usize,
    /// Longest context the model was trained for (`{architecture}.context_length`).
    pub n_ctx_train: usize,
    /// Transformer blocks (`{architecture}.block_count`), of a decoder beside an encoder its own.
    pub n_layers: usize,
    /// Attention heads, and those of keys and values (`{architecture}.attention.head_count`, `_kv`).
    pub n_heads: usize,
    /// As many as `n_heads` where the file does not say, or says it for each layer.
    pub n_heads_kv: usize,
    /// Width of a head's keys and of its values (`{architecture}.attention.key_length`, `value_length`).
    pub head_width: (usize, usize),
    /// Width of the MLP's hidden layer (`{architecture}.feed_forward_length`); 0 where the file does not say.
    pub n_ff: usize,
    /// Bytes of the matrices whose rows the machine's product can read eight at a time, by the number of their
    /// `ggml_type`.
    pub matrix_bytes: BTreeMap<u32, u64>,
    /// `tokenizer.chat_template`, a Jinja template.
    pub chat_template: Option<String>,
    /// Tokenizer family (`tokenizer.ggml.model`), such as `llama` or `gpt2`.
    pub tokenizer: Option<String>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<i32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<i32>,
    /// `general.file_type`: the number of llama.cpp's `llama_ftype`.
    pub file_type: Option<u32>,
    /// [`MODEL_TYPE`]: what `qbridge convert` made the file of, where another
    /// architecture's graph computes it.
    pub model_type: Option<String>,
    /// Whether its activations are scaled (`ffn.act.scales`), by which a
    /// converted OPT's GELU becomes its ReLU.
    pub has_activation_scales: bool,
    /// Whether a feed-forward's way back (`ffn_down`) is stored in f16: llama.cpp rounds
    /// what it reads to f16 too.
    pub has_f16_ffn_down: bool,
    /// Parts that the model is split into (`split.count`), 1 for a single file.
    pub n_parts: usize,
    /// Bytes of the file.
    pub file_size: u64,
}

impl GgufInfo {
    /// Reads the header of the GGUF at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read; [`Error::Gguf`] when it is not a
    /// GGUF, ends early, or does not describe a language model.
    pub fn read(path: &Path) -> Result<GgufInfo> {
        let file = File::open(path).map_err(Error::io(path))?;
        let metadata = file.metadata().map_err(Error::io(path))?;
        if !metadata.is_file() {
            return Err(Error::Gguf {
                path: path.to_owned(),
                reason: "not a file".to_owned(),
            });
        }
        Header::new(file, metadata.len())
            .read()
            .map_err(|problem| match problem {
                Problem::Io(source) => Error::io(path)(source),
                Problem::Format(reason) => Error::Gguf {
                    path: path.to_owned(),
                    reason,
                },
            })
    }

    /// Whether the prompt goes into an encoder, and a decoder of its own answers: of such
    /// language models, T5 is the one that is known here.
    pub fn is_encoder_decoder(&self) -> bool {
        self.architecture == T5
    }

    /// Common name of [`GgufInfo::file_type`], such as `Q4_1`.
    pub fn file_type_name(&self) -> &'static str {
        // llama_ftype of llama.h.
        match self.file_type {
            Some(0) => "F32",
            Some(1) => "F16",
            Some(2) => "Q4_0",
            Some(3) => "Q4_1",
            Some(7) => "Q8_0",
            Some(8) => "Q5_0",
            Some(9) => "Q5_1",
            Some(10) => "Q2_K",
            Some(11..=13) => "Q3_K",
            Some(14) => "Q4_K_S",
            Some(15) => "Q4_K_M",
            Some(16) => "Q5_K_S",
            Some(17) => "Q5_K_M",
            Some(18) => "Q6_K",
            Some(25) => "IQ4_NL",
            Some(32) => "BF16",
            _ => "unknown",
        }
    }
}

#[derive(Debug)]
enum Problem {
    Io(std::io::Error),
    Format(String),
}

impl From<std::io::Error> for Problem {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            return ends_early();
        }
        Problem::Io(error)
    }
}

fn ends_early() -> Problem {
    Problem::Format("the file ends inside its header: it is truncated or damaged".to_owned())
}

fn format_error<T>(reason: impl Into<String>) -> Result<T, Problem> {
    Err(Problem::Format(reason.into()))
}

/// A metadata value, where it is of use.
enum Value {
    Unsigned(u64),
    Text(String),
    ArrayOf(u64),
    Other,
}

struct Header<R> {
    reader: BufReader<R>,
    size: u64,
    position: u64,
}

impl<R: Read + Seek> Header<R> {
    fn new(reader: R, size: u64) -> Self {
        Header {
            reader: BufReader::with_capacity(1 << 16, reader),
            size,
            position: 0,
        }
    }

    fn read(mut self) -> Result<GgufInfo, Problem> {
        if self.size < 4 {
            return format_error(format!("{} bytes are too few for a GGUF", self.size));
        }
        let magic: [u8; 4] = self.bytes()?;
        if &magic != b"GGUF" {
            return format_error(format!(
                "not a GGUF: it starts with {:?}, not \"GGUF\"",
                magic.escape_ascii().to_string()
            ));
        }
        let version = self.u32()?;
        if version.swap_bytes() <= 3 && version > 3 {
            return format_error("a big-endian GGUF, which this machine cannot load");
        }
        if !(2..=3).contains(&version) {
            return format_error(format!(
                "GGUF version {version}; versions 2 and 3 are known"
            ));
        }
        let n_tensors = self.u64()?;
        let n_values = self.u64()?;
        let mut info = GgufInfo {
            n_parts: 1,
            file_size: self.size,
            ..GgufInfo::default()
        };
        let mut alignment = 32;
        // Keys of an architecture carry its name, which need not come first.
        let mut sizes: BTreeMap<String, u64> = BTreeMap::new();
        let mut n_tokens = 0;
        for _ in 0..n_values {
            let key = self.text(MAX_NAME, "a key")?;
            let value = self.value()?;
            match (key.as_str(), value) {
                ("general.architecture", Value::Text(text)) => info.architecture = text,
                ("general.name", Value::Text(text)) => info.name = Some(text),
                ("general.license", Value::Text(text)) => info.license = Some(text),
                (MODEL_TYPE, Value::Text(text)) => info.model_type = Some(text),
                ("general.alignment", Value::Unsigned(n)) => alignment = n,
                ("general.file_type", Value::Unsigned(n)) => {
                    info.file_type = u32::try_from(n).ok();
                }
                ("split.count", Value::Unsigned(n)) => info.n_parts = to_usize(n)?.max(1),
                ("tokenizer.chat_template", Value::Text(text)) => info.chat_template = Some(text),
                ("tokenizer.ggml.model", Value::Text(text)) => info.tokenizer = Some(text),
                ("tokenizer.ggml.tokens", Value::ArrayOf(n)) => n_tokens = n,
                ("tokenizer.ggml.bos_token_id", Value::Unsigned(n)) => {
                    info.bos = i32::try_from(n).ok();
                }
                ("tokenizer.ggml.eos_token_id", Value::Unsigned(n)) => {
                    info.eos = i32::try_from(n).ok();
                }
                (key, Value::Unsigned(n)) if SIZES.iter().any(|size| key.ends_with(size)) => {
                    sizes.insert(key.to_owned(), n);
                }
                _ => {}
            }
        }
        if info.architecture.is_empty() {
            return format_error("it names no general.architecture, so it is not a model");
        }
        let architecture = info.architecture.clone();
        let size = |name: &str| sizes.get(&format!("{architecture}{name}")).copied();
        let Some(n_embd) = size(".embedding_length").filter(|&n| n > 0) else {
            return format_error(format!(
                "it has no {}.embedding_length, so it is not a language model",
                info.architecture
            ));
        };
        info.n_embd = to_usize(n_embd)?;
        info.n_ctx_train = to_usize(size(".context_length").unwrap_or(0))?;
        info.n_vocab = to_usize(if n_tokens > 0 {
            n_tokens
        } else {
            size(".vocab_size").unwrap_or(0)
        })?;
        let n_layers = size(".decoder_block_count").or(size(".block_count"));
        info.n_layers = to_usize(n_layers.unwrap_or(0))?;
        info.n_heads = to_usize(size(".attention.head_count").unwrap_or(0))?;
        let n_heads_kv = size(".attention.head_count_kv").map(to_usize);
        info.n_heads_kv = n_heads_kv.transpose()?.unwrap_or(info.n_heads);
        let head_width = |name| match size(name) {
            Some(width) => to_usize(width),
            None => Ok(info.n_embd.checked_div(info.n_heads).unwrap_or(0)),
        };
        info.head_width = (
            head_width(".attention.key_length")?,
            head_width(".attention.value_length")?,
        );
        info.n_ff = to_usize(size(".feed_forward_length").unwrap_or(0))?;

        let end = self.tensors_end(n_tensors, &mut info)?;
        if !alignment.is_power_of_two() {
            return format_error(format!("general.alignment is {alignment}"));
        }
        let needed = self
            .position
            .checked_next_multiple_of(alignment)
            .and_then(|start| start.checked_add(end))
            .ok_or_else(|| Problem::Format("a tensor lies beyond any file".to_owned()))?;
        // A header without tensors (the first part of a split model) ends the file.
        if end > 0 && needed > self.size {
            return format_error(format!(
                "truncated: its tensors need {needed} bytes, the file has {}",
                self.size
            ));
        }
        Ok(info)
    }

    /// Reads the tensor table; the end of the last tensor, from the start of the data.
    fn tensors_end(&mut self, n_tensors: u64, info: &mut GgufInfo) -> Result<u64, Problem> {
        let mut end = 0;
        for _ in 0..n_tensors {
            let name = self.text(MAX_NAME, "a tensor name")?;
            info.has_activation_scales |= name.ends_with(".ffn.act.scales");
            let n_dims = self.u32()?;
            if n_dims > MAX_DIMS {
                return format_error(format!("tensor {name:?} has {n_dims} dimensions"));
            }
            let mut elements = 1u64;
            let mut rows = 0;
            for _ in 0..n_dims {
                rows = self.u64()?;
                elements = elements
                    .checked_mul(rows)
                    .ok_or_else(|| Problem::Format(format!("tensor {name:?} is too large")))?;
            }
            let kind = self.u32()?;
            info.has_f16_ffn_down |= name.ends_with(".ffn_down.weight") && kind == F16;
            let offset = self.u64()?;
            let Some((block, bytes)) = llama::type_layout(kind) else {
                return format_error(format!(
                    "tensor {name:?} is of type {kind}, which this llama.cpp does not know"
                ));
            };
            let too_large = || Problem::Format(format!("tensor {name:?} is too large"));
            let length = (elements / block)
                .checked_mul(bytes)
                .ok_or_else(too_large)?;
            end = end.max(length.checked_add(offset).ok_or_else(too_large)?);
            if n_dims == 2 && rows.is_multiple_of(REPACKED_ROWS) && name.contains("blk.") {
                let total = info.matrix_bytes.entry(kind).or_default();
                *total = total.saturating_add(length);
            }
        }
        Ok(end)
    }

    fn value(&mut self) -> Result<Value, Problem> {
        let kind = self.u32()?;
        Ok(match kind {
            0 => Value::Unsigned(u64::from(self.bytes::<1>()?[0])),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.bytes()?))),
            4 => Value::Unsigned(u64::from(self.u32()?)),
            10 => Value::Unsigned(self.u64()?),
            // Some writers store sizes as signed integers.
            5 => u64::try_from(i32::from_le_bytes(self.bytes()?))
                .map_or(Value::Other, Value::Unsigned),
            11 => u64::try_from(i64::from_le_bytes(self.bytes()?))
                .map_or(Value::Other, Value::Unsigned),
            8 => Value::Text(self.text(MAX_TEXT, "a text value")?),
            9 => Value::ArrayOf(self.skip_array()?),
            other => match scalar_size(other) {
                Some(size) => {
                    self.skip(size)?;
                    Value::Other
                }
                None => return format_error(format!("metadata of unknown type {other}")),
            },
        })
    }

    fn skip_array(&mut self) -> Result<u64, Problem> {
        let kind = self.u32()?;
        let n = self.u64()?;
        if kind == 8 {
            // Every string costs at least its length field.
            self.expect_left(n.checked_mul(8).ok_or_else(ends_early)?)?;
            for _ in 0..n {
                let length = self.u64()?;
                self.skip(length)?;
            }
        } else if let Some(size) = scalar_size(kind) {
            self.skip(n.checked_mul(size).ok_or_else(ends_early)?)?;
        } else {
            return format_error(format!("an array of type {kind}"));
        }
        Ok(n)
    }

    fn text(&mut self, longest: u64, what: &str) -> Result<String, Problem> {
        let length = self.u64()?;
        self.expect_left(length)?;
        if length > longest {
            return format_error(format!("{what} of {length} bytes"));
        }
        let mut bytes = vec![0; to_usize(length)?];
        self.reader.read_exact(&mut bytes)?;
        self.position += length;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn u32(&mut self) -> Result<u32, Problem> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, Problem> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        self.position += N as u64;
        Ok(bytes)
    }

    fn skip(&mut self, n: u64) -> Result<(), Problem> {
        self.expect_left(n)?;
        // Relative to the buffer: a vocabulary's tokens are stepped over in memory.
        self.reader
            .seek_relative(i64::try_from(n).map_err(|_| ends_early())?)?;
        self.position += n;
        Ok(())
    }

    fn expect_left(&self, n: u64) -> Result<(), Problem> {
        if n > self.size.saturating_sub(self.position) {
            return Err(ends_early());
        }
        Ok(())
    }
}

fn to_usize(n: u64) -> Result<usize, Problem> {
    usize::try_from(n).map_err(|_| Problem::Format(format!("a size of {n}")))
}

/// Bytes of a fixed-size metadata value (`gguf_type` of `gguf.h`).
fn scalar_size(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn golden() -> Vec<u8> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/llm/llm.gguf");
        std::fs::read(path).unwrap()
    }

    fn read(bytes: &[u8]) -> Result<GgufInfo> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        GgufInfo::read(file.path())
    }

    fn message(bytes: &[u8]) -> String {
        match read(bytes).unwrap_err() {
            Error::Gguf { reason, .. } => reason,
            error => panic!("{error}"),
        }
    }

    /// A header with these key-value pairs, already encoded, and no tensors.
    fn with_values(values: &[(&str, u32, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(0u64.to_le_bytes());
        bytes.extend((values.len() as u64).to_le_bytes());
        for (key, kind, value) in values {
            bytes.extend((key.len() as u64).to_le_bytes());
            bytes.extend(key.as_bytes());
            bytes.extend(kind.to_le_bytes());
            bytes.extend(value);
        }
        bytes
    }

    fn text(text: &str) -> Vec<u8> {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes
    }

    #[test]
    fn the_golden_model_says_what_it_is() {
        let bytes = golden();
        let info = read(&bytes).unwrap();
        assert_eq!(info.architecture, "llama");
        assert_eq!(
            (info.n_embd, info.n_vocab, info.n_ctx_train),
            (128, 320, 256)
        );
        assert_eq!(info.tokenizer.as_deref(), Some("gpt2"));
        assert_eq!(info.file_type_name(), "F32");
        assert_eq!((info.n_parts, info.file_size), (1, bytes.len() as u64));
        assert_eq!(info.chat_template, None);
        assert_eq!((info.n_layers, info.n_heads, info.n_heads_kv), (2, 4, 2));
        assert_eq!((info.head_width, info.n_ff), ((32, 32), 128));
        assert!(!info.is_encoder_decoder());
        // Of each layer q, k, v and o, and the three of the MLP, in f32.
        let of_a_layer = 128 * (128 + 64 + 64 + 128) + 3 * 128 * 128;
        assert_eq!(info.matrix_bytes[&0], 2 * 4 * of_a_layer);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = GgufInfo::read(Path::new("/nowhere/model.gguf")).unwrap_err();
        assert!(matches!(error, Error::Io { .. }));
        assert!(error.to_string().contains("/nowhere/model.gguf"), "{error}");
        let folder = std::env::temp_dir();
        assert!(GgufInfo::read(&folder).is_err());
    }

    #[test]
    fn what_is_no_gguf_is_told_apart_from_what_is_cut() {
        assert!(message(b"").contains("too few"));
        assert!(message(b"PK\x03\x04 a zip file").contains("not a GGUF"));
        assert!(message(b"GGUF\x01\0\0\0rest of it").contains("version 1"));
        assert!(message(b"GGUF\0\0\0\x03rest of it").contains("big-endian"));
        let whole = golden();
        assert!(message(&whole[..whole.len() - 1]).contains("truncated"));
        assert!(message(&whole[..whole.len() / 2]).contains("truncated"));
        for n in [5, 30, 500, 5000] {
            assert!(
                message(&whole[..n]).contains("ends inside its header"),
                "{n}"
            );
        }
    }

    #[test]
    fn keys_may_come_before_the_architecture() {
        let bytes = with_values(&[
            ("opt.embedding_length", 4, 64u32.to_le_bytes().to_vec()),
            ("llama.embedding_length", 10, 99u64.to_le_bytes().to_vec()),
            ("llama.vocab_size", 5, 7i32.to_le_bytes().to_vec()),
            ("general.architecture", 8, text("llama")),
            ("tokenizer.chat_template", 8, text("{{ messages }}")),
        ]);
        let info = read(&bytes).unwrap();
        assert_eq!((info.n_embd, info.n_vocab), (99, 7));
        assert_eq!(info.chat_template.as_deref(), Some("{{ messages }}"));
    }

    #[test]
    fn lengths_beyond_the_file_allocate_nothing() {
        let huge = u64::MAX.to_le_bytes().to_vec();
        let mut strings = 8u32.to_le_bytes().to_vec();
        strings.extend(u64::MAX.to_le_bytes());
        let mut numbers = 10u32.to_le_bytes().to_vec();
        numbers.extend((u64::MAX / 4).to_le_bytes());
        for (kind, value) in [(8, huge), (9, strings), (9, numbers)] {
            let bytes = with_values(&[("general.name", kind, value)]);
            assert!(message(&bytes).contains("ends inside its header"));
        }
        let nested = [9u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat();
        assert!(message(&with_values(&[("a", 9, nested)])).contains("array of type 9"));
    }

    proptest! {
        #[test]
        fn damaged_headers_never_panic(
            damage in prop::collection::vec((0usize..12_000, any::<u8>()), 1..6),
            cut in prop::option::of(0usize..12_000),
        ) {
            let mut bytes = golden();
            for (at, value) in damage {
                bytes[at] = value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut);
            }
            let _ = read(&bytes);
        }
    }
}
