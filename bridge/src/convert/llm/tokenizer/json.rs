//! Reads the JSON files of a Hugging Face tokenizer: `tokenizer.json`, or `vocab.json` with
//! `merges.txt`, and beside either `tokenizer_config.json`, `special_tokens_map.json` and
//! `added_tokens.json`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use base64::Engine;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use super::{Algorithm, MAX_TOKENS, Model, SpecialIds, Token, TokenKind, byte_token, damaged};
use crate::{Error, Result};

/// A token beside the model's own.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct AddedToken {
    #[serde(default)]
    pub id: usize,
    pub content: String,
    #[serde(default)]
    pub special: bool,
}

/// `tokenizer.json`.
#[derive(Deserialize)]
pub(super) struct TokenizerJson {
    #[serde(skip)]
    path: PathBuf,
    #[serde(default)]
    pub added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Json,
    #[serde(default)]
    pre_tokenizer: Json,
    model: JsonModel,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum JsonModel {
    #[serde(rename = "BPE")]
    Bpe {
        vocab: HashMap<String, usize>,
        merges: Vec<Merge>,
        #[serde(default)]
        byte_fallback: bool,
        unk_token: Option<String>,
    },
    Unigram {
        vocab: Vec<(String, f32)>,
        unk_id: Option<usize>,
        #[serde(default)]
        byte_fallback: bool,
    },
    #[serde(other)]
    Other,
}

/// `"a b"` before tokenizers 0.20, `["a", "b"]` since.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Line(String),
    Pair(String, String),
}

/// Reads `tokenizer.json` where there is one.
pub(super) fn read(dir: &Path) -> Result<Option<TokenizerJson>> {
    let path = dir.join("tokenizer.json");
    let Some(mut json) = read_json::<TokenizerJson>(&path)? else {
        return Ok(None);
    };
    json.path = path;
    Ok(Some(json))
}

impl TokenizerJson {
    pub fn into_model(self) -> Result<(Model, Vec<AddedToken>)> {
        let path = self.path.clone();
        let refuse = |reason: &str| Err(damaged(&path, reason));
        let normalizers = flatten(&self.normalizer, "normalizers");
        let pre_tokenizers = flatten(&self.pre_tokenizer, "pretokenizers");
        let is = |step: &Json, kind: &str| step["type"] == kind;
        let model = match self.model {
            JsonModel::Bpe {
                vocab,
                merges,
                byte_fallback,
                unk_token,
            } => {
                let merges: Vec<(String, String)> = merges
                    .into_iter()
                    .map(Merge::split)
                    .collect::<Option<_>>()
                    .ok_or_else(|| damaged(&path, "a merge is not two pieces"))?;
                let special = SpecialIds {
                    unk: unk_token.and_then(|text| vocab.get(&text).copied()),
                    ..SpecialIds::default()
                };
                if pre_tokenizers.iter().any(|step| is(step, "ByteLevel")) {
                    let [step] = pre_tokenizers[..] else {
                        return refuse(NOT_GPT2);
                    };
                    if step["add_prefix_space"] == true
                        || step["use_regex"] == false
                        || !normalizers.is_empty()
                    {
                        return refuse(NOT_GPT2);
                    }
                    byte_level(&path, vocab, merges, special)?
                } else if byte_fallback {
                    let prepends = |step: &&Json| {
                        is(step, "Prepend")
                            || is(step, "Metaspace")
                                && step["prepend_scheme"] != "never"
                                && step["add_prefix_space"] != false
                    };
                    let add_space_prefix = normalizers.iter().chain(&pre_tokenizers).any(prepends);
                    {
                        let added = &self.added_tokens;
                        sentencepiece_bpe(&path, vocab, &merges, added, special, add_space_prefix)?
                    }
                } else {
                    return refuse(
                        "a BPE that is neither GPT-2's nor SentencePiece's with byte fallback: give a GGUF instead",
                    );
                }
            }
            JsonModel::Unigram {
                vocab,
                unk_id,
                byte_fallback,
            } => {
                if byte_fallback {
                    return refuse(
                        "a unigram model with byte fallback, which llama.cpp does not have: give a GGUF instead",
                    );
                }
                let charsmap = normalizers
                    .iter()
                    .find_map(|step| step["precompiled_charsmap"].as_str());
                let charsmap = match charsmap {
                    Some(text) => {
                        base64::prelude::BASE64_STANDARD
                            .decode(text)
                            .map_err(|error| {
                                damaged(&path, format!("precompiled_charsmap: {error}"))
                            })?
                    }
                    None => Vec::new(),
                };
                let tokens = vocab.into_iter().enumerate().map(|(id, (text, score))| {
                    let kind = if Some(id) == unk_id {
                        TokenKind::Unknown
                    } else {
                        TokenKind::Normal
                    };
                    Some(Token { text, score, kind })
                });
                Model {
                    tokens: tokens.collect(),
                    algorithm: Algorithm::Unigram {
                        remove_extra_whitespaces: true,
                        charsmap,
                    },
                    add_space_prefix: true,
                    special: SpecialIds {
                        unk: unk_id,
                        ..SpecialIds::default()
                    },
                    path,
                }
            }
            JsonModel::Other => {
                return refuse("the tokenizer is neither BPE nor unigram: give a GGUF instead");
            }
        };
        Ok((model, self.added_tokens))
    }
}

const NOT_GPT2: &str = "its pre-tokenizer is not GPT-2's: give a GGUF instead";

impl Merge {
    fn split(self) -> Option<(String, String)> {
        match self {
            Merge::Pair(left, right) => Some((left, right)),
            Merge::Line(line) => {
                let (left, right) = line.split_once(' ')?;
                Some((left.to_owned(), right.to_owned()))
            }
        }
    }
}

/// The steps of a normalizer or pre-tokenizer, which may be a sequence of them.
fn flatten<'a>(step: &'a Json, list: &str) -> Vec<&'a Json> {
    match step[list].as_array() {
        Some(steps) => steps.iter().flat_map(|step| flatten(step, list)).collect(),
        None if step.is_object() => vec![step],
        None => Vec::new(),
    }
}

/// Tokens by id.
fn by_id(
    path: &Path,
    vocab: HashMap<String, usize>,
    token: impl Fn(String) -> Token,
) -> Result<Vec<Option<Token>>> {
    let n = vocab.values().max().map_or(0, |&id| id.saturating_add(1));
    if n > MAX_TOKENS {
        return Err(damaged(path, format!("a token has id {}", n - 1)));
    }
    let mut tokens = vec![None; n];
    for (text, id) in vocab {
        if let Some(Token { text: other, .. }) = &tokens[id] {
            let reason = format!("{text:?} and {other:?} both have id {id}");
            return Err(damaged(path, reason));
        }
        tokens[id] = Some(token(text));
    }
    Ok(tokens)
}

fn byte_level(
    path: &Path,
    vocab: HashMap<String, usize>,
    merges: Vec<(String, String)>,
    special: SpecialIds,
) -> Result<Model> {
    let token = |text| Token {
        text,
        score: 0.0,
        kind: TokenKind::Normal,
    };
    let merges = merges.into_iter().map(|(left, right)| left + " " + &right);
    Ok(Model {
        path: path.to_owned(),
        tokens: by_id(path, vocab, token)?,
        algorithm: Algorithm::ByteLevel {
            merges: merges.collect(),
        },
        add_space_prefix: false,
        special,
    })
}

/// A SentencePiece BPE from the merges that tokenizers made of its scores: of all ways to
/// cut a piece in two, ordered by the piece's score.
fn sentencepiece_bpe(
    path: &Path,
    vocab: HashMap<String, usize>,
    merges: &[(String, String)],
    added: &[AddedToken],
    special: SpecialIds,
    add_space_prefix: bool,
) -> Result<Model> {
    let mut scores: HashMap<String, f32> = HashMap::new();
    for (left, right) in merges {
        let next = -(scores.len() as f32);
        scores.entry(left.clone() + right).or_insert(next);
    }
    // llama.cpp merges any two neighbours that make a piece: with fewer merges than that it
    // would tokenize otherwise than the file says.
    let known: HashSet<(&str, &str)> = merges.iter().map(|(l, r)| (&**l, &**r)).collect();
    let special_texts: HashSet<&str> = added.iter().map(|token| &*token.content).collect();
    let unknown_cut = vocab
        .keys()
        .filter(|piece| !special_texts.contains(piece.as_str()))
        .flat_map(|piece| {
            let inner = piece.char_indices().skip(1);
            inner.map(|(at, _)| piece.split_at(at))
        })
        .find(|cut| vocab.contains_key(cut.0) && vocab.contains_key(cut.1) && !known.contains(cut));
    if let Some((left, right)) = unknown_cut {
        return Err(damaged(
            path,
            format!(
                "{left:?} and {right:?} make a piece but are not merged, as SentencePiece would: put the model's tokenizer.model into the directory, or give a GGUF instead"
            ),
        ));
    }
    let bytes: Vec<String> = (0..=255).map(byte_token).collect();
    let token = |text: String| Token {
        score: scores.get(&text).copied().unwrap_or(0.0),
        kind: if bytes.contains(&text) {
            TokenKind::Byte
        } else {
            TokenKind::Normal
        },
        text,
    };
    let mut tokens = by_id(path, vocab, token)?;
    if let Some(Some(token)) = special.unk.and_then(|id| tokens.get_mut(id)) {
        token.kind = TokenKind::Unknown;
    }
    Ok(Model {
        path: path.to_owned(),
        tokens,
        algorithm: Algorithm::SentencePiece,
        add_space_prefix,
        special,
    })
}

/// Reads GPT-2's `vocab.json` and `merges.txt`.
pub(super) fn read_vocab_and_merges(dir: &Path) -> Result<Model> {
    let path = dir.join("vocab.json");
    let Some(vocab) = read_json(&path)? else {
        return Err(damaged(
            dir,
            "no tokenizer here: neither tokenizer.model, spiece.model, tokenizer.json nor vocab.json with merges.txt; fetch the checkpoint's tokenizer files",
        ));
    };
    let merges_path = dir.join("merges.txt");
    let text = std::fs::read_to_string(&merges_path).map_err(Error::io(&merges_path))?;
    let merges = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("#version"))
        .map(|line| {
            let (left, right) = line.split_once(' ')?;
            Some((left.to_owned(), right.to_owned()))
        })
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| damaged(&merges_path, "a line is not two pieces"))?;
    byte_level(&path, vocab, merges, SpecialIds::default())
}

/// What stands beside the vocabulary.
pub(super) struct Settings {
    config: Json,
    special_tokens: Json,
    pub chat_template: Option<String>,
}

impl Settings {
    pub fn read(dir: &Path) -> Result<Settings> {
        let config: Json = read_json(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
        let template_path = dir.join("chat_template.jinja");
        let chat_template = match config["chat_template"].as_str() {
            Some(template) => Some(template.to_owned()),
            None if template_path.is_file() => {
                Some(std::fs::read_to_string(&template_path).map_err(Error::io(&template_path))?)
            }
            None => None,
        };
        Ok(Settings {
            special_tokens: read_json(&dir.join("special_tokens_map.json"))?.unwrap_or_default(),
            config,
            chat_template,
        })
    }

    /// How a special token such as `bos_token` is written.
    pub fn token(&self, name: &str) -> Option<&str> {
        [&self.config, &self.special_tokens]
            .into_iter()
            .find_map(|file| token_text(&file[name]))
    }

    pub fn flag(&self, name: &str) -> Option<bool> {
        self.config[name].as_bool()
    }

    /// The added tokens of a tokenizer without `tokenizer.json`.
    pub fn added_tokens(&self, dir: &Path, model: &Model) -> Result<Vec<AddedToken>> {
        let path = dir.join("tokenizer_config.json");
        let mut added: BTreeMap<usize, AddedToken> = BTreeMap::new();
        let listed: BTreeMap<usize, AddedToken> = match &self.config["added_tokens_decoder"] {
            Json::Null => BTreeMap::new(),
            list => BTreeMap::deserialize(list)
                .map_err(|error| damaged(&path, format!("added_tokens_decoder: {error}")))?,
        };
        let named: BTreeMap<String, usize> =
            read_json(&dir.join("added_tokens.json"))?.unwrap_or_default();
        let is_special = |text: &str| self.special_texts().any(|special| special == text);
        // T5's sentinels are counted from the end, and its file of pieces lacks them.
        if matches!(model.algorithm, Algorithm::Unigram { .. }) {
            let n = self.config["extra_ids"].as_u64().unwrap_or(100).min(1000) as usize;
            for i in 0..n {
                let id = model.tokens.len() + n - 1 - i;
                let content = format!("<extra_id_{i}>");
                added.insert(
                    id,
                    AddedToken {
                        id,
                        content,
                        special: true,
                    },
                );
            }
        }
        for (content, id) in named {
            let special = is_special(&content);
            added.insert(
                id,
                AddedToken {
                    id,
                    content,
                    special,
                },
            );
        }
        for (id, token) in listed {
            added.insert(id, AddedToken { id, ..token });
        }
        Ok(added.into_values().collect())
    }

    fn special_texts(&self) -> impl Iterator<Item = &str> {
        let map = self.special_tokens.as_object();
        map.into_iter()
            .flat_map(|map| map.values())
            .flat_map(|value| match value.as_array() {
                Some(list) => list.iter().collect(),
                None => vec![value],
            })
            .filter_map(token_text)
    }
}

/// A token written as a string, or as an object with its `content`.
fn token_text(token: &Json) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

/// A JSON file, or `None` where there is none.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|error| damaged(path, error.to_string()))
}
