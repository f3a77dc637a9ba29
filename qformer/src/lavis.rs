//! Checkpoints of LAVIS and MiniGPT-4: `.pth` files without a config, the
//! vision tower apart from the rest.
//!
//! What the files are is told by the tensors they hold, and the config by the
//! tensors' shapes and by what LAVIS fixes in its code: heads 88 wide in
//! EVA-CLIP and 64 wide in CLIP and the Q-Former, 39 and 23 blocks of the
//! towers' 40 and 24, epsilons. Each tensor is then taken by its name, and must
//! have the shape that the config says.
//!
//! Reference: LAVIS, `models/eva_vit.py`, `models/clip_vit.py`,
//! `models/blip2_models/`; MiniGPT-4, `minigpt4/models/`.

mod files;
mod lora;
mod names;

use std::collections::BTreeMap;
use std::path::PathBuf;

use self::files::Files;
pub use self::lora::LowRank;
use crate::checkpoint::Weight;
use crate::config::{Activation, HeadsConfig, QFormerConfig, VisionConfig};
use crate::positions::grid;
use crate::{JOINED_PATCHES, Result};

/// Blocks of the towers that LAVIS runs; the last of each file is left out.
const EVA_DEPTH: usize = 39;
const CLIP_DEPTH: usize = 23;
/// Widths of a head.
const EVA_HEAD: usize = 88;
const CLIP_HEAD: usize = 64;
const QFORMER_HEAD: usize = 64;
/// Pictures that MiniGPT-v2 reads.
const MINIGPT_V2_SIZE: usize = 448;
/// Of `ln_vision`, whatever the tower (`blip2.py`, `LayerNorm`).
const LN_VISION_EPS: f64 = 1e-5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TowerKind {
    Eva,
    Clip,
}

/// The vision tower: where its names begin, and what they follow.
#[derive(Debug, Clone, Copy)]
struct Tower {
    kind: TowerKind,
    prefix: &'static str,
}

/// Which language model the projection leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Projection {
    /// `opt_proj`: BLIP-2 with OPT.
    Opt,
    /// `t5_proj`: BLIP-2 or InstructBLIP with Flan-T5.
    T5,
    /// `llm_proj`: InstructBLIP with Vicuna.
    Llm,
    /// `llama_proj`: MiniGPT-4.
    Llama,
}

impl Projection {
    /// The layer's name.
    fn name(self) -> &'static str {
        match self {
            Projection::Opt => "opt_proj",
            Projection::T5 => "t5_proj",
            Projection::Llm => "llm_proj",
            Projection::Llama => "llama_proj",
        }
    }
}

/// What the model's query embeddings are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// A projection leads them to a language model.
    LanguageModel(Projection),
    /// Heads read them: the file is of the first stage (LAVIS, `blip2_qformer.py`).
    Heads(HeadsConfig),
}

/// The vision side of a model in `.pth` files.
#[derive(Debug)]
pub struct LavisModel {
    files: Files,
    tower: Tower,
    purpose: Purpose,
    vision: VisionConfig,
    qformer: Option<QFormerConfig>,
    num_query_tokens: usize,
}

impl LavisModel {
    /// Opens a model's files, given in any order. The config's `image_size` is
    /// the one of the tower's positions, or MiniGPT-v2's; another may be set
    /// with [`LavisModel::set_image_size`].
    ///
    /// # Errors
    /// A file cannot be read, one that the model needs is missing, two hold the
    /// same part, or a tensor has a shape that no such model has: the message
    /// says which file is needed or which tensor is at fault.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let files = Files::open(paths)?;
        let purpose = purpose(&files)?;
        let tower = tower(&files)?;
        let vision = match tower.kind {
            TowerKind::Eva => eva_config(&files, tower.prefix)?,
            TowerKind::Clip => clip_config(&files, tower.prefix)?,
        };
        vision.validate()?;
        let mut model = Self {
            files,
            tower,
            purpose,
            vision,
            qformer: None,
            num_query_tokens: 0,
        };
        if model.reads_patches()? {
            model.count_joined_patches()?;
        } else {
            let (config, num_query_tokens) = qformer_config(&model.files, &model.vision)?;
            config.validate()?;
            model.qformer = Some(config);
            model.num_query_tokens = num_query_tokens;
        }
        if model.has_lora() {
            model.set_image_size(MINIGPT_V2_SIZE)?;
        }
        Ok(model)
    }

    /// Reads pictures of `size` x `size` pixels: the tower's positions are
    /// interpolated.
    ///
    /// # Errors
    /// No tower reads such pictures.
    pub fn set_image_size(&mut self, size: usize) -> Result<()> {
        self.vision.image_size = size;
        self.vision.validate()?;
        if self.qformer.is_none() {
            self.count_joined_patches()?;
        }
        Ok(())
    }

    /// The vision tower.
    pub fn vision(&self) -> &VisionConfig {
        &self.vision
    }

    /// The Q-Former, where there is one.
    pub fn qformer(&self) -> Option<&QFormerConfig> {
        self.qformer.as_ref()
    }

    /// Rows of the soft prompt.
    pub fn num_query_tokens(&self) -> usize {
        self.num_query_tokens
    }

    /// What the query embeddings are for.
    pub fn purpose(&self) -> &Purpose {
        &self.purpose
    }

    /// All tensors under Hugging Face's names, in the shapes that the config
    /// says.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn weights(&self) -> Result<Vec<Weight<'_>>> {
        names::weights(self)
    }

    /// Whether a LoRA changes the language model, as in MiniGPT-v2.
    pub fn has_lora(&self) -> bool {
        self.files.containing(lora::MARK).is_some()
    }

    /// The changes of the language model, by the name of the tensor that each
    /// is added to, in Hugging Face's checkpoints of it.
    ///
    /// # Errors
    /// A half of one is missing, or their shapes do not go together.
    pub fn lora(&self) -> Result<BTreeMap<String, LowRank>> {
        lora::read(&self.files)
    }

    /// Whether the projection reads the tower's patches, joined by four, as
    /// MiniGPT-4 with LLaMA-2 does, instead of query embeddings.
    fn reads_patches(&self) -> Result<bool> {
        if self.purpose != Purpose::LanguageModel(Projection::Llama) {
            return Ok(false);
        }
        let name = format!("{}.weight", Projection::Llama.name());
        let [_, width] = self.files.dims(&name)?;
        Ok(width == JOINED_PATCHES * self.vision.hidden_size)
    }

    fn count_joined_patches(&mut self) -> Result<()> {
        let patches = self.vision.positions() - 1;
        if !patches.is_multiple_of(JOINED_PATCHES) {
            return Err(self.files.error(format!(
                "the vision tower gives {patches} patches, which are not joined to rows of {JOINED_PATCHES}"
            )));
        }
        self.num_query_tokens = patches / JOINED_PATCHES;
        Ok(())
    }
}

/// MiniGPT-4's projection, which stands above the one of the Q-Former it
/// borrows, or the only one; or the heads of the first stage.
fn purpose(files: &Files) -> Result<Purpose> {
    use Projection::{Llama, Llm, Opt, T5};
    use Purpose::LanguageModel;
    let mut found = Vec::new();
    for projection in [Llama, Opt, T5, Llm] {
        if files
            .find(&format!("{}.weight", projection.name()))?
            .is_some()
        {
            found.push(projection);
        }
    }
    match found.as_slice() {
        [Llama, ..] => Ok(LanguageModel(Llama)),
        [one] => Ok(LanguageModel(*one)),
        [] if files.find("itm_head.weight")?.is_some() => heads_config(files).map(Purpose::Heads),
        [] if files.find("query_tokens")?.is_some() => Err(files.error(
            "a Q-Former without a projection to a language model and without the heads of the \
             first stage; give a whole file, such as blip2_pretrained_opt2.7b.pth or blip2_pretrained.pth"
                .to_owned(),
        )),
        [] => Err(files.error(
            "no Q-Former and no projection is here; beside the vision tower, give the model's own \
             file, such as blip2_pretrained_opt2.7b.pth"
                .to_owned(),
        )),
        [first, second, ..] => Err(files.error(format!(
            "{} and {} lead to different language models; give the files of one model",
            first.name(),
            second.name()
        ))),
    }
}

fn heads_config(files: &Files) -> Result<HeadsConfig> {
    let [features, _] = files.dims("vision_proj.weight")?;
    let captions = files.find(names::CAPTION_HEAD)?.is_some();
    let config = HeadsConfig {
        image_text_hidden_size: features,
        captions,
    };
    config.validate()?;
    Ok(config)
}

fn tower(files: &Files) -> Result<Tower> {
    let candidates = [
        (TowerKind::Eva, "visual_encoder.", "patch_embed.proj.weight"),
        (TowerKind::Eva, "", "patch_embed.proj.weight"),
        (TowerKind::Clip, "visual_encoder.", "conv1.weight"),
        (TowerKind::Clip, "visual.", "conv1.weight"),
        (TowerKind::Clip, "", "conv1.weight"),
    ];
    let mut found = Vec::new();
    for (kind, prefix, name) in candidates {
        if let Some(tensor) = files.find(&format!("{prefix}{name}"))? {
            found.push((Tower { kind, prefix }, tensor.path));
        }
    }
    match found.as_slice() {
        [(tower, _)] => Ok(*tower),
        [] => Err(files.error(
            "no vision tower is here; LAVIS keeps it in a file of its own: add eva_vit_g.pth, or \
             clip_vit_L.pth for a model whose name ends in vitL"
                .to_owned(),
        )),
        [(_, first), (_, second), ..] => Err(files.error(format!(
            "{} and {} both hold a vision tower; leave out the one that the model was not trained \
             with (a finetuned model brings its own)",
            first.display(),
            second.display()
        ))),
    }
}

/// Side of the picture that a tower's position embedding `name` is for.
fn image_size(files: &Files, name: &str, rows: usize, patch_size: usize) -> Result<usize> {
    match grid(rows) {
        Some(grid) if grid > 0 => Ok(grid * patch_size),
        _ => Err(files.error(format!(
            "{name} has {rows} rows, not those of a square of patches and a class token"
        ))),
    }
}

/// Heads of a layer whose width is told by `name`.
fn heads(files: &Files, name: &str, width: usize, head: usize) -> Result<usize> {
    if width.is_multiple_of(head) {
        Ok(width / head)
    } else {
        Err(files.error(format!(
            "{name} is {width} wide, not a multiple of this model's heads of {head}"
        )))
    }
}

fn eva_config(files: &Files, prefix: &str) -> Result<VisionConfig> {
    let name = |rest: &str| format!("{prefix}{rest}");
    let patch = name("patch_embed.proj.weight");
    let [width, _, patch_size, _] = files.dims(&patch)?;
    let positions = name("pos_embed");
    let [_, rows, _] = files.dims(&positions)?;
    let [inner, _] = files.dims(&name("blocks.0.mlp.fc1.weight"))?;
    let blocks = files.count(&name("blocks."), ".norm1.weight")?;
    Ok(VisionConfig {
        hidden_size: width,
        intermediate_size: inner,
        num_hidden_layers: blocks.min(EVA_DEPTH),
        num_attention_heads: heads(files, &patch, width, EVA_HEAD)?,
        image_size: image_size(files, &positions, rows, patch_size)?,
        patch_size,
        layer_norm_eps: 1e-6,
        post_layernorm_eps: Some(LN_VISION_EPS),
        ..VisionConfig::default()
    })
}

fn clip_config(files: &Files, prefix: &str) -> Result<VisionConfig> {
    let name = |rest: &str| format!("{prefix}{rest}");
    let patch = name("conv1.weight");
    let [width, _, patch_size, _] = files.dims(&patch)?;
    let positions = name("positional_embedding");
    let [rows, _] = files.dims(&positions)?;
    let [inner, _] = files.dims(&name("transformer.resblocks.0.mlp.c_fc.weight"))?;
    let blocks = files.count(&name("transformer.resblocks."), ".ln_1.weight")?;
    Ok(VisionConfig {
        hidden_size: width,
        intermediate_size: inner,
        num_hidden_layers: blocks.min(CLIP_DEPTH),
        num_attention_heads: heads(files, &patch, width, CLIP_HEAD)?,
        image_size: image_size(files, &positions, rows, patch_size)?,
        patch_size,
        hidden_act: Activation::QuickGelu,
        layer_norm_eps: 1e-5,
        post_layernorm_eps: Some(LN_VISION_EPS),
        patch_bias: false,
        pre_layernorm: true,
        ..VisionConfig::default()
    })
}

/// The Q-Former's config and its number of queries.
fn qformer_config(files: &Files, vision: &VisionConfig) -> Result<(QFormerConfig, usize)> {
    if files.find("query_tokens")?.is_none() {
        return Err(files.error(
            "no Q-Former is here, and the projection reads its query embeddings; add the file that \
             holds it (for MiniGPT-4 with Vicuna, blip2_pretrained_flant5xxl.pth)"
                .to_owned(),
        ));
    }
    let [_, queries, width] = files.dims("query_tokens")?;
    let layer = names::QFORMER_LAYERS;
    let layers = files.count(layer, ".attention.self.query.weight")?;
    let [inner, _] = files.dims(&format!("{layer}0.intermediate_query.dense.weight"))?;
    let cross_attention = |index: usize| format!("{layer}{index}.crossattention.self.key.weight");
    let [_, encoder_width] = files.dims(&cross_attention(0))?;
    if encoder_width != vision.hidden_size {
        return Err(files.error(format!(
            "the Q-Former reads rows of {encoder_width}, and the vision tower gives rows of {}; \
             eva_vit_g.pth has 1408, clip_vit_L.pth 1024",
            vision.hidden_size
        )));
    }
    let mut crossing = Vec::new();
    for index in 0..layers {
        if files.find(&cross_attention(index))?.is_some() {
            crossing.push(index);
        }
    }
    let frequency = crossing.get(1).copied().unwrap_or(layers.max(1));
    if !crossing.iter().copied().eq((0..layers).step_by(frequency)) {
        return Err(files.error(format!(
            "layers {crossing:?} of the Q-Former's {layers} attend to the picture, not every n-th"
        )));
    }
    let mut config = QFormerConfig {
        hidden_size: width,
        intermediate_size: inner,
        num_hidden_layers: layers,
        num_attention_heads: heads(files, "query_tokens", width, QFORMER_HEAD)?,
        cross_attention_frequency: frequency,
        encoder_hidden_size: encoder_width,
        ..QFormerConfig::default()
    };
    // Only InstructBLIP and the first stage keep the half that reads text.
    let embeddings = |of: &str| format!("{}{of}_embeddings.weight", names::QFORMER_EMBEDDINGS);
    if files.find(&embeddings("word"))?.is_some() {
        config.use_qformer_text_input = true;
        [config.vocab_size, _] = files.dims(&embeddings("word"))?;
        [config.max_position_embeddings, _] = files.dims(&embeddings("position"))?;
    }
    Ok((config, queries))
}
