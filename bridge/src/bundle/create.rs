//! Putting a bundle together from a checkpoint directory and a GGUF.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use prompts::Layout;
use qformer::checkpoint::Checkpoint;
use qformer::config::Blip2Config;
use sha2::{Digest, Sha256};

use super::manifest::{FORMAT, MANIFEST_FILE};
use super::{
    Bundle, FileEntry, Files, GenerationDefaults, Manifest, Source, check_fit, hex, sha256_file,
};
use crate::image_encoder::read_preprocessing;
use crate::language_model::GgufInfo;
use crate::{Error, Result};

/// Choices in making a bundle.
#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    /// Name of the model; the output directory's name where none is given.
    pub name: Option<String>,
    /// Prompt layout; the family's own where none is given.
    pub layout: Option<Layout>,
    /// Licence of each part, by part name.
    pub licenses: BTreeMap<String, String>,
}

/// Makes the bundle `out` from a checkpoint in Hugging Face's
/// `Blip2ForConditionalGeneration` layout and a GGUF language model.
///
/// Tensors keep their names and dtypes. The directory appears under its name
/// only once it is whole. `progress` is told the bytes written or read since
/// it was last called.
///
/// # Errors
/// `out` exists, an input cannot be read, or the parts do not fit together
/// (found before anything is written).
pub fn create(
    checkpoint_dir: &Path,
    llm: &Path,
    out: &Path,
    options: CreateOptions,
    progress: &dyn Fn(u64),
) -> Result<Bundle> {
    if out.exists() {
        return Err(Error::Exists {
            path: out.to_owned(),
        });
    }
    let config = Blip2Config::read(checkpoint_dir)?;
    let preprocessing = read_preprocessing(checkpoint_dir, &config)?;
    let checkpoint = Checkpoint::open(checkpoint_dir)?;
    let info = GgufInfo::read(llm)?;
    let layout = match options.layout {
        Some(layout) => layout,
        None => Layout::blip2(config.text_config.eos_token_ids()),
    };
    let file_entry = |name: &str| FileEntry {
        path: name.to_owned(),
        bytes: 0,
        sha256: String::new(),
    };
    let mut manifest = Manifest {
        format: FORMAT,
        name: options.name.unwrap_or_else(|| base_name(out)),
        family: "blip-2".to_owned(),
        num_query_tokens: config.num_query_tokens,
        vision: config.vision_config,
        qformer: config.qformer_config,
        preprocessing,
        prompt: layout,
        generation: GenerationDefaults::default(),
        source: Source {
            checkpoint: base_name(checkpoint_dir),
            llm: base_name(llm),
            created_by: concat!("qbridge ", env!("CARGO_PKG_VERSION")).to_owned(),
        },
        licenses: options.licenses,
        files: Files {
            vision: file_entry("vision.safetensors"),
            qformer: file_entry("qformer.safetensors"),
            projection: file_entry("projection.safetensors"),
            llm: file_entry("llm.gguf"),
        },
    };
    check_fit(&manifest, &checkpoint, &info, llm)?;

    let staging = Staging::new(out)?;
    let part = |entry: &mut FileEntry, prefixes: &[&str]| -> Result<()> {
        let path = staging.dir.join(&entry.path);
        checkpoint.write_subset(prefixes, &path)?;
        entry.bytes = std::fs::metadata(&path).map_err(Error::io(&path))?.len();
        entry.sha256 = sha256_file(&path, progress)?;
        Ok(())
    };
    part(&mut manifest.files.vision, &["vision_model."])?;
    part(&mut manifest.files.qformer, &["query_tokens", "qformer."])?;
    part(&mut manifest.files.projection, &["language_projection."])?;
    let entry = &mut manifest.files.llm;
    (entry.bytes, entry.sha256) = copy_hashed(llm, &staging.dir.join(&entry.path), progress)?;

    let path = staging.dir.join(MANIFEST_FILE);
    let text = manifest.to_toml().map_err(|error| Error::Manifest {
        path: path.clone(),
        reason: error.to_string(),
    })?;
    std::fs::write(&path, text).map_err(Error::io(&path))?;
    // Opening it runs every check that a user of the bundle will meet.
    Bundle::open(&staging.dir)?;
    staging.publish(out)?;
    Bundle::open(out)
}

/// A directory beside the target, removed unless it is published.
struct Staging {
    dir: PathBuf,
    published: bool,
}

impl Staging {
    fn new(out: &Path) -> Result<Self> {
        let dir = out.with_file_name(format!(
            ".{}.partial-{}",
            base_name(out),
            std::process::id()
        ));
        std::fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
        Ok(Self {
            dir,
            published: false,
        })
    }

    fn publish(mut self, out: &Path) -> Result<()> {
        std::fs::rename(&self.dir, out).map_err(Error::io(out))?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.published {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// Copies a file, giving its size and SHA-256.
fn copy_hashed(from: &Path, to: &Path, progress: &dyn Fn(u64)) -> Result<(u64, String)> {
    let mut source = File::open(from).map_err(Error::io(from))?;
    let mut target = File::create(to).map_err(Error::io(to))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let n = source.read(&mut buffer).map_err(Error::io(from))?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        target.write_all(&buffer[..n]).map_err(Error::io(to))?;
        bytes += n as u64;
        progress(n as u64);
    }
    target.sync_all().map_err(Error::io(to))?;
    Ok((bytes, hex(&hasher.finalize())))
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
