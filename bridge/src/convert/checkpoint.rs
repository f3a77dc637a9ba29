//! What is converted: the vision side of a checkpoint, in whichever layout.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use prompts::Layout;
use qformer::WordPiece;
use qformer::checkpoint::{Checkpoint, Weight};
use qformer::config::{Blip2Config, HeadsConfig, QFormerConfig, VisionConfig};
use qformer::lavis::{LavisModel, LowRank, Projection, Purpose};
use qformer::positions::{Align, resized};
use qformer::preprocess::Preprocessing;
use qformer::stage1::CaptionOptions;
use qformer::wordpiece::Cut;

use super::towers;
use crate::bundle::{
    BLIP2, BLIP2_ITM, BlipTexts, ClipTexts, GENERATION_CONFIG, GenerationDefaults, INSTRUCT_BLIP,
    MINIGPT4, TextTokenizer,
};
use crate::image_encoder::{read_preprocessing, read_qformer_tokenizer};
use crate::{Error, Result};

const POSITIONS: &str = "vision_model.embeddings.position_embedding";

/// A tensor of the head that writes captions, where there is one.
const CAPTION_HEAD: &str = "cls.predictions.transform.dense.weight";

/// What is in a bundle's `qformer.safetensors`, by the beginnings of names: the Q-Former, and of
/// the first stage its tables of embeddings and its heads.
pub(super) const QFORMER_PART: [&str; 7] = [
    "query_tokens",
    "qformer.",
    "embeddings.",
    "vision_projection.",
    "text_projection.",
    "itm_head.",
    "cls.",
];

/// Whether a tensor of a Hugging Face checkpoint belongs to vision, Q-Former or
/// projection, by its name.
pub fn is_vision_side(tensor: &str) -> bool {
    [
        "vision_model.",
        "query_tokens",
        "qformer.",
        "language_projection.",
    ]
    .iter()
    .any(|prefix| tensor.starts_with(prefix))
}

/// Everything that a checkpoint says of its model, but for the language
/// model's weights.
pub(super) struct Source {
    pub name: String,
    pub family: &'static str,
    pub num_query_tokens: usize,
    pub vision: VisionConfig,
    pub qformer: Option<QFormerConfig>,
    /// Of a Q-Former that reads text.
    pub qformer_tokenizer: Option<WordPiece>,
    /// Of a Q-Former of the first stage, which has no language model.
    pub heads: Option<HeadsConfig>,
    /// The text side of a CLIP.
    pub clip: Option<ClipTexts>,
    /// That of a BLIP.
    pub blip: Option<BlipTexts>,
    /// The tokenizer of either.
    pub text_tokenizer: Option<TextTokenizer>,
    pub preprocessing: Preprocessing,
    /// The family's own; none without a language model.
    pub layout: Option<Layout>,
    /// What a request gets where it says nothing.
    pub generation: GenerationDefaults,
    /// What the language model's configuration calls its architecture.
    pub llm_type: Option<String>,
    /// The files and directories that were given.
    pub paths: Vec<PathBuf>,
    pub tensors: Tensors,
}

pub(super) enum Tensors {
    HuggingFace(Checkpoint),
    Lavis(Box<LavisModel>),
}

impl Source {
    /// Reads the headers of a checkpoint: a directory that transformers saved,
    /// or `.pth` files. `image_size` is the side of the pictures it shall read,
    /// the checkpoint's own where none is given, and `qformer_tokenizer` the
    /// tokenizer that LAVIS's files lack.
    ///
    /// # Errors
    /// It is none, or of a kind that is not known.
    pub fn open(
        paths: &[PathBuf],
        image_size: Option<usize>,
        qformer_tokenizer: Option<&Path>,
    ) -> Result<Self> {
        let dir = paths.iter().find(|path| path.is_dir());
        match (paths, dir) {
            ([dir], Some(_)) => match qformer_tokenizer {
                None => Self::hugging_face(dir, image_size),
                Some(tokenizer) => Err(Error::Convert {
                    path: tokenizer.to_owned(),
                    reason: format!(
                        "a tokenizer for the Q-Former goes with .pth files of LAVIS; {} has its own or needs none",
                        dir.display()
                    ),
                }),
            },
            (_, Some(dir)) => Err(Error::Convert {
                path: dir.clone(),
                reason: "a directory is a checkpoint of its own; give it alone".to_owned(),
            }),
            (_, None) => Self::lavis(paths, image_size, qformer_tokenizer),
        }
    }

    fn hugging_face(dir: &Path, image_size: Option<usize>) -> Result<Self> {
        if let Some(source) = towers::open(dir, image_size)? {
            return Ok(source);
        }
        let mut config = Blip2Config::read(dir)?;
        let tensors = Checkpoint::open(dir)?;
        let llm_type = config.text_config.model_type.as_deref();
        let heads = config.is_retrieval().then(|| HeadsConfig {
            image_text_hidden_size: config.image_text_hidden_size,
            captions: tensors.contains(CAPTION_HEAD),
        });
        let reads_text = config.qformer_config.use_qformer_text_input;
        let (family, layout) = match (reads_text, llm_type) {
            _ if heads.is_some() => (BLIP2_ITM, None),
            (false, Some("t5")) => (BLIP2, Some(Layout::preset("blip2-t5")?)),
            (false, _) => {
                let layout = Layout::blip2(config.text_config.eos_token_ids());
                (BLIP2, Some(layout))
            }
            (true, Some("t5")) => (INSTRUCT_BLIP, Some(Layout::preset("instructblip-t5")?)),
            // Their configs name wrong tokens of begin and end: the
            // vocabulary's own end of sequence is both.
            (true, _) => (INSTRUCT_BLIP, Some(Layout::preset("instructblip")?)),
        };
        let qformer_tokenizer = read_qformer_tokenizer(dir, &config)?;
        let mut preprocessing = read_preprocessing(dir, &config)?;
        if let Some(size) = image_size {
            config.vision_config.image_size = size;
            config.vision_config.validate()?;
            preprocessing.size = size;
        }
        Ok(Self {
            name: super::base_name(dir),
            family,
            num_query_tokens: config.num_query_tokens,
            preprocessing,
            layout,
            qformer_tokenizer,
            generation: match heads {
                Some(_) if !dir.join(GENERATION_CONFIG).is_file() => lavis_caption_generation(),
                _ => GenerationDefaults::from_checkpoint(dir)?,
            },
            llm_type: config.text_config.model_type,
            heads,
            clip: None,
            blip: None,
            text_tokenizer: None,
            vision: config.vision_config,
            qformer: Some(config.qformer_config),
            paths: vec![dir.to_owned()],
            tensors: Tensors::HuggingFace(tensors),
        })
    }

    fn lavis(
        paths: &[PathBuf],
        image_size: Option<usize>,
        qformer_tokenizer: Option<&Path>,
    ) -> Result<Self> {
        let mut model = LavisModel::open(paths)?;
        if let Some(size) = image_size {
            model.set_image_size(size)?;
        }
        let names: Vec<String> = paths.iter().map(|path| super::base_name(path)).collect();
        let name = names.join(" + ");
        let qformer_tokenizer = read_lavis_tokenizer(&model, &name, qformer_tokenizer)?;
        let reads_text = qformer_tokenizer.is_some();
        let (family, layout, llm_type) = match model.purpose() {
            Purpose::Heads(_) => (BLIP2_ITM, None, None),
            Purpose::LanguageModel(projection) => {
                let (family, layout, llm_type) = match projection {
                    Projection::Llama if model.has_lora() => (MINIGPT4, "minigpt-v2", "llama"),
                    Projection::Llama if model.qformer().is_some() => {
                        (MINIGPT4, "minigpt4", "llama")
                    }
                    Projection::Llama => (MINIGPT4, "minigpt4-llama2", "llama"),
                    Projection::T5 if reads_text => (INSTRUCT_BLIP, "instructblip-t5", "t5"),
                    Projection::Llm if reads_text => (INSTRUCT_BLIP, "instructblip", "llama"),
                    Projection::Opt => (BLIP2, "blip2-opt", "opt"),
                    Projection::T5 => (BLIP2, "blip2-t5", "t5"),
                    Projection::Llm => (BLIP2, "blip2", "llama"),
                };
                (family, Some(Layout::preset(layout)?), Some(llm_type))
            }
        };
        let generation = match (model.purpose(), reads_text) {
            (Purpose::Heads(_), _) => lavis_caption_generation(),
            (Purpose::LanguageModel(Projection::Llama), _) => minigpt4_generation(),
            (Purpose::LanguageModel(_), true) => lavis_instruct_generation(),
            (Purpose::LanguageModel(_), false) => lavis_generation(),
        };
        let heads = match model.purpose() {
            Purpose::Heads(heads) => Some(heads.clone()),
            Purpose::LanguageModel(_) => None,
        };
        Ok(Self {
            name,
            family,
            num_query_tokens: model.num_query_tokens(),
            vision: model.vision().clone(),
            qformer: model.qformer().cloned(),
            qformer_tokenizer,
            heads,
            clip: None,
            blip: None,
            text_tokenizer: None,
            preprocessing: Preprocessing::clip(model.vision().image_size),
            layout,
            generation,
            llm_type: llm_type.map(str::to_owned),
            paths: paths.to_vec(),
            tensors: Tensors::Lavis(Box::new(model)),
        })
    }

    /// The directory, where it is Hugging Face's.
    pub fn dir(&self) -> Option<&Path> {
        self.hugging_face_tensors()?;
        self.paths.first().map(PathBuf::as_path)
    }

    /// All tensors of a Hugging Face checkpoint, its language model's too.
    pub fn hugging_face_tensors(&self) -> Option<&Checkpoint> {
        match &self.tensors {
            Tensors::HuggingFace(checkpoint) => Some(checkpoint),
            Tensors::Lavis(_) => None,
        }
    }

    /// What a LoRA adds to the language model's tensors, by their names.
    ///
    /// # Errors
    /// It is damaged.
    pub fn lora(&self) -> Result<BTreeMap<String, LowRank>> {
        match &self.tensors {
            Tensors::HuggingFace(_) => Ok(BTreeMap::new()),
            Tensors::Lavis(model) => Ok(model.lora()?),
        }
    }

    /// The tensors of vision, Q-Former and projection under Hugging Face's
    /// names.
    ///
    /// # Errors
    /// One is missing or has a shape that does not fit.
    pub fn weights(&self) -> Result<Vec<Weight<'_>>> {
        let checkpoint = match &self.tensors {
            Tensors::HuggingFace(checkpoint) => checkpoint,
            Tensors::Lavis(model) => return Ok(model.weights()?),
        };
        if self.text_tokenizer.is_some() {
            let used = checkpoint
                .iter()
                .filter(|tensor| towers::is_used(tensor.name));
            return Ok(used.map(Weight::from).collect());
        }
        checkpoint
            .iter()
            .filter(|tensor| {
                let is_head = |prefix| tensor.name.starts_with(prefix);
                is_vision_side(tensor.name)
                    || self.heads.is_some() && QFORMER_PART.into_iter().any(is_head)
            })
            .map(|tensor| {
                let weight = Weight::from(tensor);
                if weight.name == POSITIONS && weight.shape.get(1) != Some(&self.vision.positions())
                {
                    return Ok(resized(&weight, self.vision.grid(), Align::Edges)?);
                }
                Ok(weight)
            })
            .collect()
    }
}

/// The tokenizer of a Q-Former that reads text, which LAVIS takes from BERT.
fn read_lavis_tokenizer(
    model: &LavisModel,
    name: &str,
    path: Option<&Path>,
) -> Result<Option<WordPiece>> {
    let reads_text = model
        .qformer()
        .filter(|config| config.use_qformer_text_input);
    match (reads_text, path) {
        (Some(config), Some(path)) => {
            let cut = match model.purpose() {
                Purpose::Heads(_) => Cut::STAGE1,
                Purpose::LanguageModel(_) => Cut::INSTRUCT_BLIP,
            };
            Ok(Some(WordPiece::open_lavis(path, cut, config)?))
        }
        (None, None) => Ok(None),
        (Some(_), None) => Err(Error::Convert {
            path: PathBuf::from(name),
            reason: "this model's Q-Former reads text, and LAVIS's files lack its tokenizer; give \
                     bert-base-uncased's vocab.txt or tokenizer.json with --qformer-tokenizer"
                .to_owned(),
        }),
        (None, Some(path)) => Err(Error::Convert {
            path: path.to_owned(),
            reason: format!("the Q-Former in {name} reads no text; leave its tokenizer out"),
        }),
    }
}

/// LAVIS, `blip2_vicuna_instruct.py` and `blip2_t5_instruct.py`, `generate`.
fn lavis_instruct_generation() -> GenerationDefaults {
    GenerationDefaults {
        max_tokens: 256,
        min_tokens: 1,
        penalize_prompt: false,
        num_beams: 5,
        repetition_penalty: 1.5,
        ..GenerationDefaults::default()
    }
}

/// LAVIS, `blip2_opt.py` and `blip2_t5.py`, `generate`.
fn lavis_generation() -> GenerationDefaults {
    GenerationDefaults {
        max_tokens: 30,
        min_tokens: 1,
        penalize_prompt: false,
        num_beams: 5,
        ..GenerationDefaults::default()
    }
}

/// LAVIS, `blip2_qformer.py`, `generate`.
fn lavis_caption_generation() -> GenerationDefaults {
    let options = CaptionOptions::default();
    GenerationDefaults {
        max_tokens: options.max_tokens,
        min_tokens: options.min_tokens,
        num_beams: options.num_beams,
        length_penalty: options.length_penalty,
        ..GenerationDefaults::default()
    }
}

/// MiniGPT-4, `conversation.py`, `Chat.answer_prepare`.
fn minigpt4_generation() -> GenerationDefaults {
    GenerationDefaults {
        max_tokens: 300,
        min_tokens: 1,
        penalize_prompt: false,
        temperature: 1.0,
        top_p: 0.9,
        repetition_penalty: 1.05,
        ..GenerationDefaults::default()
    }
}
