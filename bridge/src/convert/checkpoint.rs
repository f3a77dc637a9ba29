//! What is converted: the vision side of a checkpoint, in whichever layout.

use std::path::{Path, PathBuf};

use prompts::Layout;
use qformer::WordPiece;
use qformer::checkpoint::{Checkpoint, Weight};
use qformer::config::{Blip2Config, QFormerConfig, VisionConfig};
use qformer::preprocess::Preprocessing;

use crate::bundle::{BLIP2, GenerationDefaults, INSTRUCT_BLIP};
use crate::image_encoder::{read_preprocessing, read_qformer_tokenizer};
use crate::{Error, Result};

/// Everything that a checkpoint says of its model, but for the language
/// model's weights.
pub(super) struct Source {
    pub name: String,
    pub family: &'static str,
    pub num_query_tokens: usize,
    pub vision: VisionConfig,
    pub qformer: QFormerConfig,
    /// Of a Q-Former that reads text.
    pub qformer_tokenizer: Option<WordPiece>,
    pub preprocessing: Preprocessing,
    /// The family's own.
    pub layout: Layout,
    /// What a request gets where it says nothing.
    pub generation: GenerationDefaults,
    /// What the language model's configuration calls its architecture.
    pub llm_type: Option<String>,
    /// The files and directories that were given.
    pub paths: Vec<PathBuf>,
    tensors: Checkpoint,
}

impl Source {
    /// Reads the headers of a checkpoint.
    ///
    /// # Errors
    /// It is none, or of a kind that is not known.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        match paths {
            [dir] if dir.is_dir() => Self::hugging_face(dir),
            [path, ..] => Err(Error::Convert {
                path: path.clone(),
                reason: "not a directory that transformers saved".to_owned(),
            }),
            [] => Err(Error::InvalidRequest {
                reason: "nothing to convert".to_owned(),
            }),
        }
    }

    fn hugging_face(dir: &Path) -> Result<Self> {
        let config = Blip2Config::read(dir)?;
        let llm_type = config.text_config.model_type.as_deref();
        let (family, layout) = match (config.qformer_config.use_qformer_text_input, llm_type) {
            (false, Some("t5")) => (BLIP2, Layout::preset("blip2-t5")?),
            (false, _) => (BLIP2, Layout::blip2(config.text_config.eos_token_ids())),
            (true, Some("t5")) => (INSTRUCT_BLIP, Layout::preset("instructblip-t5")?),
            // Their configs name wrong tokens of begin and end: the
            // vocabulary's own end of sequence is both.
            (true, _) => (INSTRUCT_BLIP, Layout::preset("instructblip")?),
        };
        Ok(Self {
            name: super::base_name(dir),
            family,
            num_query_tokens: config.num_query_tokens,
            preprocessing: read_preprocessing(dir, &config)?,
            layout,
            qformer_tokenizer: read_qformer_tokenizer(dir, &config)?,
            generation: GenerationDefaults::from_checkpoint(dir)?,
            llm_type: config.text_config.model_type,
            vision: config.vision_config,
            qformer: config.qformer_config,
            paths: vec![dir.to_owned()],
            tensors: Checkpoint::open(dir)?,
        })
    }

    /// The tensors of vision, Q-Former and projection under Hugging Face's
    /// names.
    pub fn weights(&self) -> Result<Vec<Weight<'_>>> {
        const PREFIXES: [&str; 4] = [
            "vision_model.",
            "query_tokens",
            "qformer.",
            "language_projection.",
        ];
        Ok(self
            .tensors
            .iter()
            .filter(|tensor| {
                PREFIXES
                    .iter()
                    .any(|prefix| tensor.name.starts_with(prefix))
            })
            .map(Weight::from)
            .collect())
    }
}
