//! `bundle.toml`: what a bundle directory holds, as data.

use std::collections::BTreeMap;
use std::path::Path;

use prompts::Layout;
use qformer::JOINED_PATCHES;
use qformer::config::{HeadsConfig, QFormerConfig, VisionConfig};
use qformer::preprocess::Preprocessing;
use serde::{Deserialize, Serialize};

use super::{BlipTexts, ClipTexts, GenerationDefaults};
use crate::{Error, Result};

/// The manifest's file name inside a bundle directory.
pub const MANIFEST_FILE: &str = "bundle.toml";

/// The manifest format that this version writes and reads.
pub const FORMAT: u32 = 1;

/// The family whose Q-Former sees the picture alone.
pub(crate) const BLIP2: &str = "blip-2";

/// The family whose Q-Former also reads the instruction.
pub(crate) const INSTRUCT_BLIP: &str = "instructblip";

/// MiniGPT-4: BLIP-2's vision side before a chat model, with or without its
/// Q-Former.
pub(crate) const MINIGPT4: &str = "minigpt4";

/// BLIP-2's first stage: heads that match pictures and texts in place of a
/// language model.
pub(crate) const BLIP2_ITM: &str = "blip2-itm";

/// CLIP: two towers that end in one space of features.
pub(crate) const CLIP: &str = "clip";

/// BLIP: a ViT, and a BERT that matches, writes captions or answers.
pub(crate) const BLIP: &str = "blip";

/// The families of vision sides that are known.
pub const FAMILIES: [&str; 6] = [BLIP2, INSTRUCT_BLIP, MINIGPT4, BLIP2_ITM, CLIP, BLIP];

/// A manifest is small; anything larger is not one.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;

/// Everything about a bundle but its weights.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this file's layout: [`FORMAT`].
    pub format: u32,
    /// Name of the model, as `/v1/models` lists it.
    pub name: String,
    /// Family of the vision side, one of [`FAMILIES`].
    pub family: String,
    /// Query embeddings of a picture, which are the rows of its soft prompt; without a
    /// Q-Former, its patches joined by four. 0, and not written, for a CLIP or a BLIP.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub num_query_tokens: usize,
    /// The frozen ViT.
    pub vision: VisionConfig,
    /// The Q-Former; some of MiniGPT-4's models have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qformer: Option<QFormerConfig>,
    /// The heads of a Q-Former of the first stage, which has no language model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<HeadsConfig>,
    /// The text side of a CLIP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<ClipTexts>,
    /// The text side of a BLIP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blip: Option<BlipTexts>,
    /// How pictures become pixels.
    pub preprocessing: Preprocessing,
    /// How text and pictures are laid out in a language model's prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<Layout>,
    /// Generation defaults.
    #[serde(default)]
    pub generation: GenerationDefaults,
    /// Where the parts came from.
    pub source: Source,
    /// Licence of each part, by part name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub licenses: BTreeMap<String, String>,
    /// The weight files.
    pub files: Files,
}

/// Where the parts of a bundle came from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Name of the checkpoint directory, or of the hub's model.
    pub checkpoint: String,
    /// The commit that the hub's model was at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Name of the GGUF file, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub llm: Option<String>,
    /// The program and version that wrote the bundle.
    pub created_by: String,
}

/// The weight files of a bundle.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// `vision_model.*`; of a CLIP or a BLIP its projection too, and open_clip's `visual.*`.
    pub vision: FileEntry,
    /// `query_tokens` and `qformer.*`, where there is a Q-Former, with its heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qformer: Option<FileEntry>,
    /// The tokenizer of a Q-Former that reads text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qformer_tokenizer: Option<FileEntry>,
    /// The text side of a CLIP or a BLIP, with its heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<FileEntry>,
    /// Its tokenizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<FileEntry>,
    /// `language_projection.*`, where there is a language model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub projection: Option<FileEntry>,
    /// The language model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub llm: Option<FileEntry>,
}

impl Files {
    /// Part names with their entries, in the order of the pipeline.
    pub fn parts(&self) -> impl Iterator<Item = (&'static str, &FileEntry)> {
        [
            ("vision", Some(&self.vision)),
            ("qformer", self.qformer.as_ref()),
            ("qformer_tokenizer", self.qformer_tokenizer.as_ref()),
            ("text", self.text.as_ref()),
            ("tokenizer", self.tokenizer.as_ref()),
            ("projection", self.projection.as_ref()),
            ("llm", self.llm.as_ref()),
        ]
        .into_iter()
        .filter_map(|(part, entry)| Some((part, entry?)))
    }
}

/// One file of a bundle.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// File name inside the bundle directory.
    pub path: String,
    /// Size in bytes, checked whenever the bundle is opened.
    pub bytes: u64,
    /// SHA-256 in lowercase hex, checked by `qbridge inspect --verify`.
    pub sha256: String,
}

impl Manifest {
    /// Reads and checks `dir/bundle.toml`.
    ///
    /// # Errors
    /// The file is missing, is not TOML of this shape, or names a format,
    /// family or path that cannot be honoured.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST_FILE);
        let size = match std::fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NotABundle {
                    dir: dir.to_owned(),
                });
            }
            Err(source) => return Err(Error::Io { path, source }),
        };
        let invalid = |reason: String| Error::Manifest {
            path: path.clone(),
            reason,
        };
        if size > MAX_MANIFEST_BYTES {
            return Err(invalid(format!(
                "{size} bytes is too large for a manifest (limit {MAX_MANIFEST_BYTES})"
            )));
        }
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let manifest: Self =
            toml::from_str(&text).map_err(|error| invalid(error.to_string().trim().to_owned()))?;
        manifest.check().map_err(invalid)?;
        Ok(manifest)
    }

    /// Width of the rows that the projection reads.
    pub fn query_width(&self) -> usize {
        match &self.qformer {
            Some(qformer) => qformer.hidden_size,
            None => JOINED_PATCHES * self.vision.hidden_size,
        }
    }

    /// Whether a language model answers; others compare pictures and texts, or write captions by
    /// themselves.
    pub fn has_language_model(&self) -> bool {
        ![BLIP2_ITM, CLIP, BLIP].contains(&self.family.as_str())
    }

    /// The manifest as TOML.
    ///
    /// # Errors
    /// A value has no TOML form.
    pub(crate) fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(self)
    }

    fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!(
                "format = {}, and this version of qbridge reads format {FORMAT}",
                self.format
            ));
        }
        if !FAMILIES.contains(&self.family.as_str()) {
            return Err(format!(
                "family = {:?} is not known (known: {FAMILIES:?})",
                self.family
            ));
        }
        if self.qformer.is_some() != self.files.qformer.is_some() {
            return Err("a Q-Former needs both the table qformer and files.qformer".to_owned());
        }
        let has_heads = self.family == BLIP2_ITM;
        let has_llm = self.has_language_model();
        self.check_texts()?;
        let reads_text = has_heads || self.family == INSTRUCT_BLIP;
        if self.heads.is_some() != has_heads {
            return Err(format!(
                "the table heads belongs to the family {BLIP2_ITM:?}, and this one is {:?}",
                self.family
            ));
        }
        for (field, is_there) in [
            ("prompt", self.prompt.is_some()),
            ("files.projection", self.files.projection.is_some()),
            ("files.llm", self.files.llm.is_some()),
        ] {
            if is_there != has_llm {
                let family = &self.family;
                return Err(match has_llm {
                    false => format!(
                        "{field} does not go with family = {family:?}, which has no language model"
                    ),
                    true => format!("{field} is missing, which the family {family:?} has"),
                });
            }
        }
        match &self.qformer {
            None if ![MINIGPT4, CLIP, BLIP].contains(&self.family.as_str()) => {
                return Err(format!("the family {:?} has a Q-Former", self.family));
            }
            Some(qformer) if qformer.use_qformer_text_input != reads_text => {
                return Err(format!(
                    "qformer.use_qformer_text_input = {} does not go with family = {:?}",
                    qformer.use_qformer_text_input, self.family
                ));
            }
            _ => {}
        }
        if self.files.qformer_tokenizer.is_some() != reads_text {
            return Err(if reads_text {
                "files.qformer_tokenizer is missing, through which this family's Q-Former reads text; \
                 make the bundle again"
                    .to_owned()
            } else {
                format!(
                    "files.qformer_tokenizer does not go with family = {:?}, whose Q-Former reads no text",
                    self.family
                )
            });
        }
        self.generation.check()?;
        for (part, entry) in self.files.parts() {
            let path = Path::new(&entry.path);
            if path.file_name().is_none_or(|name| name != path.as_os_str()) {
                return Err(format!(
                    "files.{part}.path = {:?} must be a file name inside the bundle",
                    entry.path
                ));
            }
        }
        Ok(())
    }

    /// Whether the tables and files of a CLIP's or a BLIP's text side are there, and only there.
    fn check_texts(&self) -> Result<(), String> {
        let family = self.family.as_str();
        let has_texts = [CLIP, BLIP].contains(&family);
        for (field, is_there, belongs) in [
            ("clip", self.clip.is_some(), family == CLIP),
            ("blip", self.blip.is_some(), family == BLIP),
            ("files.text", self.files.text.is_some(), has_texts),
            ("files.tokenizer", self.files.tokenizer.is_some(), has_texts),
            ("qformer", self.qformer.is_some() && has_texts, false),
            (
                "num_query_tokens",
                self.num_query_tokens > 0 && has_texts,
                false,
            ),
        ] {
            match (is_there, belongs) {
                (true, false) => {
                    return Err(format!("{field} does not go with family = {family:?}"));
                }
                (false, true) => {
                    return Err(format!(
                        "{field} is missing, which the family {family:?} has"
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}
