//! A bundle: one directory that is one model.
//!
//! `bundle.toml` says what is inside; `vision.safetensors`,
//! `qformer.safetensors` and `projection.safetensors` keep the checkpoint's
//! tensor names; a GGUF is the language model. A model of BLIP-2's first stage
//! has heads in `qformer.safetensors` instead of the last two; a CLIP or a BLIP has
//! `vision.safetensors` and `text.safetensors`. Whatever does not
//! fit together is refused when the bundle is opened, before weights are read.

mod generation;
mod manifest;
mod texts;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

pub(crate) use generation::GENERATION_CONFIG;
pub use generation::GenerationDefaults;
pub(crate) use manifest::{BLIP, BLIP2, BLIP2_ITM, CLIP, FORMAT, INSTRUCT_BLIP, MINIGPT4};
pub use manifest::{FAMILIES, FileEntry, Files, MANIFEST_FILE, Manifest, Source};
use prompts::Layout;
use qformer::checkpoint::Checkpoint;
use qformer::{JOINED_PATCHES, WordPiece};
use sha2::{Digest, Sha256};
pub use texts::{BlipTexts, ClipTexts, TextTokenizer};

use crate::language_model::GgufInfo;
use crate::{Error, Result};

/// An opened bundle: its manifest read, its parts found to fit together.
#[derive(Debug)]
pub struct Bundle {
    dir: PathBuf,
    manifest: Manifest,
    checkpoint: Checkpoint,
    qformer_tokenizer: Option<WordPiece>,
    text_tokenizer: Option<TextTokenizer>,
    llm: Option<GgufInfo>,
}

impl Bundle {
    /// Opens `dir`: reads the manifest and the headers of all parts.
    ///
    /// # Errors
    /// A part is missing, has another size than the manifest says, is not
    /// what its name says, or does not fit the others: the message names
    /// both files and both numbers.
    pub fn open(dir: &Path) -> Result<Self> {
        let manifest = Manifest::read(dir)?;
        for (part, entry) in manifest.files.parts() {
            let path = dir.join(&entry.path);
            let bytes = std::fs::metadata(&path).map_err(Error::io(&path))?.len();
            if bytes != entry.bytes {
                return Err(Error::Manifest {
                    path: dir.join(MANIFEST_FILE),
                    reason: format!(
                        "files.{part} has {} bytes, and {} on disk has {bytes}: the file was cut short or replaced; make the bundle again",
                        entry.bytes,
                        path.display()
                    ),
                });
            }
        }
        let files = &manifest.files;
        let weights = [
            Some(&files.vision),
            files.qformer.as_ref(),
            files.text.as_ref(),
            files.projection.as_ref(),
        ];
        let weights: Vec<PathBuf> = weights
            .into_iter()
            .flatten()
            .map(|entry| dir.join(&entry.path))
            .collect();
        let checkpoint = Checkpoint::from_files(&weights)?;
        let llm_path = files.llm.as_ref().map(|entry| dir.join(&entry.path));
        let llm = llm_path.as_deref().map(GgufInfo::read).transpose()?;
        let find = |name: &str| {
            let tensor = checkpoint.raw(name)?;
            Ok((tensor.shape.to_vec(), tensor.path.to_owned()))
        };
        check_fit(&manifest, &find, llm.as_ref().zip(llm_path.as_deref()))?;
        let qformer_tokenizer = files
            .qformer_tokenizer
            .as_ref()
            .zip(manifest.qformer.as_ref())
            .map(|(entry, qformer)| WordPiece::open(&dir.join(&entry.path), qformer))
            .transpose()?;
        let text_tokenizer = match &files.tokenizer {
            Some(entry) => TextTokenizer::open(&manifest, &dir.join(&entry.path))?,
            None => None,
        };
        Ok(Self {
            dir: dir.to_owned(),
            manifest,
            checkpoint,
            qformer_tokenizer,
            text_tokenizer,
            llm,
        })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The tensors of vision, Q-Former and projection, read one by one as they are asked for.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The tokenizer of a Q-Former that reads text.
    pub fn qformer_tokenizer(&self) -> Option<&WordPiece> {
        self.qformer_tokenizer.as_ref()
    }

    /// The tokenizer of a CLIP or a BLIP.
    pub fn text_tokenizer(&self) -> Option<&TextTokenizer> {
        self.text_tokenizer.as_ref()
    }

    /// What the GGUF's header says, where there is a language model.
    pub fn llm(&self) -> Option<&GgufInfo> {
        self.llm.as_ref()
    }

    /// The same, for what needs one.
    ///
    /// # Errors
    /// [`Error::NoLanguageModel`].
    pub fn language_model(&self) -> Result<&GgufInfo> {
        self.llm().ok_or_else(|| self.no_language_model())
    }

    /// Path of the GGUF.
    ///
    /// # Errors
    /// [`Error::NoLanguageModel`].
    pub fn llm_path(&self) -> Result<PathBuf> {
        match &self.manifest.files.llm {
            Some(entry) => Ok(self.dir.join(&entry.path)),
            None => Err(self.no_language_model()),
        }
    }

    /// What is said to a task that needs a language model.
    pub(crate) fn no_language_model(&self) -> Error {
        Error::NoLanguageModel {
            dir: self.dir.clone(),
        }
    }

    /// Reads every file once and compares its SHA-256 with the manifest's.
    /// `progress` is told the bytes read since it was last called.
    ///
    /// # Errors
    /// A file cannot be read or has another hash.
    pub fn verify(&self, progress: &dyn Fn(u64)) -> Result<()> {
        for (part, entry) in self.manifest.files.parts() {
            let path = self.dir.join(&entry.path);
            let found = sha256_file(&path, progress)?;
            if found != entry.sha256 {
                return Err(Error::Manifest {
                    path: self.dir.join(MANIFEST_FILE),
                    reason: format!(
                        "files.{part}.sha256 is {}, and {} on disk has {found}",
                        entry.sha256,
                        path.display()
                    ),
                });
            }
        }
        Ok(())
    }
}

/// A tensor's shape and the file that holds it.
pub(crate) type Found = (Vec<usize>, PathBuf);

/// Refuses parts that do not fit together, naming both files and numbers.
/// `find` looks a tensor up by its name.
pub(crate) fn check_fit(
    manifest: &Manifest,
    find: &dyn Fn(&str) -> Result<Found>,
    llm: Option<(&GgufInfo, &Path)>,
) -> Result<()> {
    let mismatch = |what: &str, left: String, right: String| {
        Err(Error::Mismatch {
            what: what.to_owned(),
            left,
            right,
        })
    };
    if manifest.preprocessing.size != manifest.vision.image_size {
        return mismatch(
            "picture size",
            format!(
                "preprocessing makes {0} x {0} pixels",
                manifest.preprocessing.size
            ),
            format!(
                "the vision tower takes {0} x {0}",
                manifest.vision.image_size
            ),
        );
    }
    if let Some(qformer) = &manifest.qformer {
        if qformer.encoder_hidden_size != manifest.vision.hidden_size {
            return mismatch(
                "vision width",
                format!("the Q-Former reads rows of {}", qformer.encoder_hidden_size),
                format!(
                    "the vision tower gives rows of {}",
                    manifest.vision.hidden_size
                ),
            );
        }
        let name = "query_tokens";
        let (shape, path) = find(name)?;
        let expected = [1, manifest.num_query_tokens, qformer.hidden_size];
        if shape != expected {
            return mismatch(
                "query tokens",
                format!("{} holds {name} {shape:?}", path.display()),
                format!("{MANIFEST_FILE} says {expected:?}"),
            );
        }
    } else if manifest.has_language_model() {
        let rows = manifest.vision.grid() * manifest.vision.grid() / JOINED_PATCHES;
        if manifest.num_query_tokens != rows {
            return mismatch(
                "soft prompt",
                format!("{MANIFEST_FILE} says {} rows", manifest.num_query_tokens),
                format!("the vision tower's patches make {rows}"),
            );
        }
    }
    check_heads(manifest, find)?;
    texts::check(manifest, find)?;
    if let Some((llm, path)) = llm {
        check_llm(manifest, find, llm, path)?;
    }
    Ok(())
}

/// What a Q-Former that reads text has beside one that does not, and the heads that are read in
/// place of a language model.
fn check_heads(manifest: &Manifest, find: &dyn Fn(&str) -> Result<Found>) -> Result<()> {
    let Some(qformer) = &manifest.qformer else {
        return Ok(());
    };
    let (family, width) = (&manifest.family, qformer.hidden_size);
    let fits = |what: &str, name: &str, expected: [usize; 2], why: &str| {
        let wanted = format!("the family {family:?} {why}, {expected:?}");
        let left = match find(name) {
            Ok((shape, _)) if shape == expected => return Ok(()),
            Ok((shape, path)) => format!("{} holds {name} {shape:?}", path.display()),
            Err(Error::Vision(qformer::Error::MissingTensor { files, .. })) => {
                format!("{files} holds no {name}")
            }
            Err(error) => return Err(error),
        };
        Err(Error::Mismatch {
            what: what.to_owned(),
            left,
            right: wanted,
        })
    };
    if qformer.use_qformer_text_input {
        let name = match &manifest.heads {
            Some(_) => "embeddings.word_embeddings.weight",
            None => "qformer.embeddings.word_embeddings.weight",
        };
        let expected = [qformer.vocab_size, width];
        fits("word embeddings", name, expected, "reads text through them")?;
    }
    if let Some(heads) = &manifest.heads {
        let features = heads.image_text_hidden_size;
        let mut wanted = vec![
            ("vision_projection.weight", [features, width]),
            ("text_projection.weight", [features, width]),
            ("itm_head.weight", [2, width]),
        ];
        if heads.captions {
            wanted.push(("cls.predictions.transform.dense.weight", [width, width]));
        }
        for (name, expected) in wanted {
            fits("head", name, expected, "needs it")?;
        }
    }
    Ok(())
}

/// Refuses a language model that the projection or the layout does not fit.
fn check_llm(
    manifest: &Manifest,
    find: &dyn Fn(&str) -> Result<Found>,
    llm: &GgufInfo,
    llm_path: &Path,
) -> Result<()> {
    let name = "language_projection.weight";
    let (shape, path) = find(name)?;
    let expected = [llm.n_embd, manifest.query_width()];
    if shape != expected {
        return Err(Error::Mismatch {
            what: "projection".to_owned(),
            left: format!("{} holds {name} {shape:?}", path.display()),
            right: format!(
                "{} ({}) with n_embd {} and rows of {} need {expected:?}",
                llm_path.display(),
                llm.architecture,
                llm.n_embd,
                manifest.query_width()
            ),
        });
    }
    let stop_ids = manifest.prompt.iter().flat_map(Layout::stop_ids);
    for id in stop_ids {
        if usize::try_from(*id).map_or(true, |id| id >= llm.n_vocab) {
            return Err(Error::Mismatch {
                what: "vocabulary".to_owned(),
                left: format!("{MANIFEST_FILE} stops on token {id}"),
                right: format!("{} has {} tokens", llm_path.display(), llm.n_vocab),
            });
        }
    }
    Ok(())
}

/// SHA-256 of a file in lowercase hex.
pub(crate) fn sha256_file(path: &Path, progress: &dyn Fn(u64)) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(Error::io(path))?;
        if n == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..n]);
        progress(n as u64);
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
