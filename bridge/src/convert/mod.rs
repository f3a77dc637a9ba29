//! From published checkpoints to bundles.
//!
//! A conversion is planned first: every header is read and everything that does
//! not fit together refused, before a byte is written. It then runs one tensor
//! at a time, part by part, and can be interrupted and run again.

mod checkpoint;
mod language_model;
pub mod llm;
mod lora;
mod pair;
mod source;
mod staging;
mod towers;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use prompts::Layout;
use qformer::checkpoint::{Weight, WeightType, write_weights};
use qformer::wordpiece::TOKENIZER_DIR;

pub use self::checkpoint::is_vision_side;
use self::checkpoint::{QFORMER_PART, Source};
use self::language_model::LlmSource;
pub use self::llm::LlmQuant;
use self::pair::check_pair;
pub use self::source::{TensorInfo, TensorSource};
use self::staging::Staging;
pub use self::towers::without_language_model;
use crate::bundle::{self, Bundle, FileEntry, Files, MANIFEST_FILE, Manifest, check_fit};
use crate::{Error, Result};

/// The files of a checkpoint directory that a conversion reads where they are
/// there, beside the weights.
pub const CHECKPOINT_FILES: [&str; 17] = [
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "qformer_tokenizer/tokenizer.json",
    "qformer_tokenizer/vocab.txt",
    "qformer_tokenizer/tokenizer_config.json",
];

const CREATED_BY: &str = concat!("qbridge ", env!("CARGO_PKG_VERSION"));

/// Choices in making a bundle.
#[derive(Debug, Clone, Default)]
pub struct ConvertOptions {
    /// Name of the model; the output directory's name where none is given.
    pub name: Option<String>,
    /// Prompt layout; the family's own where none is given.
    pub layout: Option<Layout>,
    /// Licence of each part, by part name.
    pub licenses: BTreeMap<String, String>,
    /// Element type of vision, Q-Former and projection; as they are stored
    /// where none is given.
    pub vision: Option<WeightType>,
    /// What the language model is quantized to. Where none is given a GGUF stays as it is, and
    /// weights become [`LlmQuant::Q4KM`].
    pub llm_quant: Option<LlmQuant>,
    /// Where the checkpoint was fetched from, if it was.
    pub origin: Option<Origin>,
    /// Side of the pictures that the model shall read, in pixels; the
    /// checkpoint's own where none is given. The ViT's positions are
    /// interpolated.
    pub image_size: Option<usize>,
    /// BERT's tokenizer, for a Q-Former that reads text from `.pth` files.
    pub qformer_tokenizer: Option<PathBuf>,
}

/// A model of a hub, as the bundle's manifest names it.
#[derive(Debug, Clone)]
pub struct Origin {
    /// `OWNER/NAME`
    pub model: String,
    /// The commit that was fetched, in hex.
    pub revision: String,
}

/// A conversion that can be run: its parts fit together.
pub struct Conversion {
    source: Source,
    /// None where heads read the query embeddings.
    llm: Option<LlmSource>,
    manifest: Manifest,
    vision: Option<WeightType>,
    out: PathBuf,
    bytes: u64,
}

impl Conversion {
    /// Plans the bundle `out` of the checkpoint `sources` and a language model:
    /// the GGUF `llm`, or what becomes one: the
    /// directory `llm`, or the checkpoint's own. A checkpoint of BLIP-2's first
    /// stage, a CLIP and a BLIP take none. Reads headers alone and writes nothing.
    ///
    /// # Errors
    /// `out` exists, an input cannot be read, or the parts do not fit together.
    pub fn plan(
        sources: &[PathBuf],
        llm: Option<&Path>,
        out: &Path,
        options: ConvertOptions,
    ) -> Result<Self> {
        if out.exists() {
            return Err(Error::Exists {
                path: out.to_owned(),
            });
        }
        let tokenizer = options.qformer_tokenizer.as_deref();
        let mut source = Source::open(sources, options.image_size, tokenizer)?;
        if let Some(origin) = &options.origin {
            source.name.clone_from(&origin.model);
        }
        let llm = match towers::name_of(&source) {
            Some(what) => {
                check_no_llm(&source.name, what, llm, &options)?;
                None
            }
            None => Some(LlmSource::open(llm, options.llm_quant, &source)?),
        };
        let info = llm.as_ref().map(|llm| llm.info(&source)).transpose()?;
        let (info, llm_bytes) = info.unzip();
        let info = info.as_ref().zip(llm.as_ref().map(LlmSource::path));
        if let Some((info, path)) = info {
            check_pair(&source, info, path)?;
        }
        let file = |path: &str| FileEntry {
            path: path.to_owned(),
            bytes: 0,
            sha256: String::new(),
        };
        let manifest = Manifest {
            format: bundle::FORMAT,
            name: options.name.unwrap_or_else(|| base_name(out)),
            family: source.family.to_owned(),
            num_query_tokens: source.num_query_tokens,
            vision: source.vision.clone(),
            qformer: source.qformer.clone(),
            preprocessing: source.preprocessing.clone(),
            heads: source.heads.clone(),
            clip: source.clip.clone(),
            blip: source.blip.clone(),
            prompt: options.layout.or_else(|| source.layout.clone()),
            generation: source.generation.clone(),
            source: bundle::Source {
                checkpoint: source.name.clone(),
                revision: options.origin.map(|origin| origin.revision),
                llm: llm.as_ref().map(|llm| llm.name(&source)),
                created_by: CREATED_BY.to_owned(),
            },
            licenses: options.licenses,
            files: Files {
                vision: file("vision.safetensors"),
                qformer: source
                    .qformer
                    .is_some()
                    .then(|| file("qformer.safetensors")),
                qformer_tokenizer: source
                    .qformer_tokenizer
                    .as_ref()
                    .map(|_| file("qformer_tokenizer.json")),
                text: source
                    .text_tokenizer
                    .as_ref()
                    .map(|_| file("text.safetensors")),
                tokenizer: source
                    .text_tokenizer
                    .as_ref()
                    .map(|_| file("tokenizer.json")),
                projection: llm.as_ref().map(|_| file("projection.safetensors")),
                llm: llm.as_ref().map(|_| file("llm.gguf")),
            },
        };
        let weights = source.weights()?;
        let find = |name: &str| {
            weights
                .iter()
                .find(|weight| weight.name == name)
                .map(|weight| (weight.shape.clone(), weight.path.clone()))
                .ok_or_else(|| {
                    Error::Vision(qformer::Error::MissingTensor {
                        files: source.name.clone(),
                        tensor: name.to_owned(),
                    })
                })
        };
        if find("visual.ln_post.weight").is_err() {
            find("vision_model.post_layernorm.weight")?;
        }
        check_fit(&manifest, &find, info)?;
        // Weights are told as they are written, the language model as it is
        // read, and everything again as it is hashed.
        let weight_bytes: u64 = weights
            .iter()
            .map(|weight| weight.size(options.vision))
            .sum();
        let llm_bytes = llm_bytes.unwrap_or(0) + info.map_or(0, |(info, _)| info.file_size);
        let bytes = 2 * weight_bytes + llm_bytes;
        drop(weights);
        Ok(Self {
            source,
            llm,
            manifest,
            vision: options.vision,
            out: out.to_owned(),
            bytes,
        })
    }

    /// What `run`'s progress adds up to, nearly.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes the bundle. It appears under its name only once it is whole;
    /// after an interruption the same conversion goes on with the part that it
    /// was at. `progress` is told of bytes done since it was last called.
    ///
    /// # Errors
    /// A tensor cannot be converted, or a file cannot be read or written.
    pub fn run(mut self, progress: &dyn Fn(u64)) -> Result<Bundle> {
        let mut staging = Staging::open(&self.out, self.inputs()?)?;
        let weights = self.source.weights()?;
        let files = &mut self.manifest.files;
        let vision_part = match files.text {
            Some(_) => &towers::VISION_PART[..],
            None => &["vision_model."][..],
        };
        let parts = [
            (Some(&mut files.vision), vision_part),
            (files.qformer.as_mut(), &QFORMER_PART),
            (files.text.as_mut(), &towers::TEXT_PART),
            (files.projection.as_mut(), &["language_projection."]),
        ];
        for (entry, prefixes) in parts {
            let Some(entry) = entry else { continue };
            let part: Vec<&Weight> = weights
                .iter()
                .filter(|weight| {
                    prefixes
                        .iter()
                        .any(|prefix| weight.name.starts_with(prefix))
                })
                .collect();
            *entry = staging.part(&entry.path, progress, |path| {
                let kept = write_weights(&part, self.vision, path, progress)?;
                if !kept.is_empty() {
                    tracing::warn!("kept in f32, beyond the range of f16: {}", kept.join(", "));
                }
                Ok(())
            })?;
        }
        if let (Some(entry), Some(tokenizer)) =
            (&mut files.qformer_tokenizer, &self.source.qformer_tokenizer)
        {
            *entry = staging.part(&entry.path, progress, |path| Ok(tokenizer.save(path)?))?;
        }
        if let (Some(entry), Some(tokenizer)) = (&mut files.tokenizer, &self.source.text_tokenizer)
        {
            *entry = staging.part(&entry.path, progress, |path| tokenizer.save(path))?;
        }
        if let (Some(entry), Some(llm)) = (&mut files.llm, &self.llm) {
            *entry = staging.part(&entry.path, progress, |path| {
                llm.write(&self.source, path, progress)
            })?;
        }
        let path = staging.dir().join(MANIFEST_FILE);
        let text = self.manifest.to_toml().map_err(|error| Error::Manifest {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        std::fs::write(&path, text).map_err(Error::io(&path))?;
        // Opening it runs every check that a user of the bundle will meet.
        Bundle::open(staging.dir())?;
        staging.publish(&self.out)?;
        Bundle::open(&self.out)
    }

    /// A text that changes when what is converted does.
    fn inputs(&self) -> Result<String> {
        let mut lines = vec![
            CREATED_BY.to_owned(),
            format!("{:?} {:?}", self.vision, self.manifest.vision),
        ];
        lines.extend(self.llm.as_ref().map(|llm| llm.name(&self.source)));
        let mut files = Vec::new();
        for path in self
            .source
            .paths
            .iter()
            .map(PathBuf::as_path)
            .chain(self.llm.as_ref().map(LlmSource::path))
        {
            if path.is_dir() {
                for dir in [path.to_owned(), path.join(TOKENIZER_DIR)] {
                    if !dir.is_dir() {
                        continue;
                    }
                    let entries = std::fs::read_dir(&dir).map_err(Error::io(&dir))?;
                    for entry in entries {
                        files.push(entry.map_err(Error::io(&dir))?.path());
                    }
                }
            } else {
                files.push(path.to_owned());
            }
        }
        files.sort();
        for file in files {
            let metadata = std::fs::metadata(&file).map_err(Error::io(&file))?;
            let changed = metadata
                .modified()
                .ok()
                .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            lines.push(format!("{} {} {changed:?}", file.display(), metadata.len()));
        }
        Ok(lines.join("\n"))
    }
}

/// Refuses what concerns a language model, for a model `name` that has none: `what` it is, as
/// [`without_language_model`] says.
///
/// # Errors
/// [`Error::Convert`] says what to leave out.
pub fn check_no_llm(
    name: &str,
    what: &str,
    llm: Option<&Path>,
    options: &ConvertOptions,
) -> Result<()> {
    let given = [
        ("--llm", llm.is_some()),
        ("--llm-quant", options.llm_quant.is_some()),
        ("--layout", options.layout.is_some()),
    ];
    match given.into_iter().find(|(_, is_given)| *is_given) {
        None => Ok(()),
        Some((flag, _)) => Err(Error::Convert {
            path: PathBuf::from(name),
            reason: format!("{what}, which has no language model; leave out {flag}"),
        }),
    }
}

/// Copies a file, telling `progress` its bytes.
fn copy(from: &Path, to: &Path, progress: &dyn Fn(u64)) -> Result<()> {
    use std::io::{Read, Write};
    let mut source = std::fs::File::open(from).map_err(Error::io(from))?;
    let mut target = std::fs::File::create(to).map_err(Error::io(to))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = source.read(&mut buffer).map_err(Error::io(from))?;
        if n == 0 {
            return Ok(());
        }
        target.write_all(&buffer[..n]).map_err(Error::io(to))?;
        progress(n as u64);
    }
}

fn base_name(path: &Path) -> String {
    path.canonicalize()
        .unwrap_or_else(|_| path.to_owned())
        .file_name()
        .map_or_else(
            || "model".to_owned(),
            |name| name.to_string_lossy().into_owned(),
        )
}
