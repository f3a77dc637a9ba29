//! The sizes of a model, as Hugging Face's `config.json` states them.
//!
//! Reference: transformers 5.23, `models/blip_2/configuration_blip_2.py` and
//! `models/instructblip/configuration_instructblip.py`.
//! A field that the file lacks gets the reference's default (the published
//! opt-2.7b config states hardly any), a field that this crate does not know
//! is ignored, and a value that it cannot honour is refused by name.

use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{Error, Result};

/// File name of the config inside a checkpoint directory.
pub const CONFIG_FILE: &str = "config.json";

/// No published model comes near it, and products of three sizes stay far
/// from the range of `usize`.
const MAX_SIZE: usize = 1 << 20;

/// Activation between the two layers of an MLP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// `x / 2 * (1 + erf(x / sqrt(2)))`, exact.
    #[default]
    #[serde(rename = "gelu")]
    Gelu,
    /// `x * sigmoid(1.702 * x)`, as CLIP has it.
    #[serde(rename = "quick_gelu")]
    QuickGelu,
}

/// `Blip2VisionConfig`: the frozen ViT. `patch_bias`, `pre_layernorm` and
/// `post_layernorm_eps` are this crate's own: Hugging Face's towers all have the
/// defaults, LAVIS's do not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    /// Width of a token.
    pub hidden_size: usize,
    /// Width of the MLP's hidden layer.
    pub intermediate_size: usize,
    /// Number of transformer blocks.
    pub num_hidden_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Side of the square input, in pixels.
    pub image_size: usize,
    /// Side of a square patch, in pixels.
    pub patch_size: usize,
    /// Activation of the MLP.
    pub hidden_act: Activation,
    /// Epsilon of every LayerNorm, `post_layernorm` too unless it has its own.
    pub layer_norm_eps: f64,
    /// Epsilon of `post_layernorm`: LAVIS gives its `ln_vision` 1e-5 above
    /// EVA's blocks of 1e-6, Hugging Face's conversion 1e-6 throughout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub post_layernorm_eps: Option<f64>,
    /// Whether the fused query, key and value layer has a bias.
    pub qkv_bias: bool,
    /// Whether the patch embedding has a bias; CLIP's has none.
    pub patch_bias: bool,
    /// Whether a LayerNorm, `pre_layernorm`, follows the embeddings, as in
    /// CLIP.
    pub pre_layernorm: bool,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 1408,
            intermediate_size: 6144,
            num_hidden_layers: 39,
            num_attention_heads: 16,
            image_size: 224,
            patch_size: 14,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-6,
            post_layernorm_eps: None,
            qkv_bias: true,
            patch_bias: true,
            pre_layernorm: false,
        }
    }
}

impl VisionConfig {
    /// Patches along one side of the picture. A rest narrower than a patch is
    /// left out, as the reference's convolution does.
    pub fn grid(&self) -> usize {
        self.image_size.checked_div(self.patch_size).unwrap_or(0)
    }

    /// Rows of the ViT's output: the class token and one for each patch.
    pub fn positions(&self) -> usize {
        self.grid() * self.grid() + 1
    }

    /// Checks that the sizes describe a model.
    ///
    /// # Errors
    /// [`Error::ConfigValue`] names the first field that does not.
    pub fn validate(&self) -> Result<()> {
        size("vision_config.hidden_size", self.hidden_size)?;
        size("vision_config.intermediate_size", self.intermediate_size)?;
        size("vision_config.num_hidden_layers", self.num_hidden_layers)?;
        size("vision_config.image_size", self.image_size)?;
        size("vision_config.patch_size", self.patch_size)?;
        heads("vision_config", self.num_attention_heads, self.hidden_size)?;
        epsilon("vision_config.layer_norm_eps", self.layer_norm_eps)?;
        if let Some(eps) = self.post_layernorm_eps {
            epsilon("vision_config.post_layernorm_eps", eps)?;
        }
        if self.patch_size > self.image_size {
            return Err(value(
                "vision_config.patch_size",
                format!(
                    "{} is larger than image_size = {}",
                    self.patch_size, self.image_size
                ),
            ));
        }
        Ok(())
    }
}

/// `Blip2QFormerConfig`: the Q-Former.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct QFormerConfig {
    /// Width of a query embedding.
    pub hidden_size: usize,
    /// Width of the feed-forward's hidden layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Layers `0, n, 2n, ...` attend to the picture.
    pub cross_attention_frequency: usize,
    /// Width of the ViT's tokens. [`Blip2Config`] sets it to the vision
    /// config's `hidden_size`, as the reference does, whatever the file says.
    pub encoder_hidden_size: usize,
    /// Activation of the feed-forward.
    pub hidden_act: Activation,
    /// Epsilon of every LayerNorm.
    pub layer_norm_eps: f64,
    /// Whether the Q-Former reads an instruction beside the picture.
    /// [`Blip2Config`] sets it from the model type, whatever the file says.
    pub use_qformer_text_input: bool,
    /// Rows of the word embeddings, where it does.
    pub vocab_size: usize,
    /// Rows of the position embeddings, and so the longest text, where it does.
    pub max_position_embeddings: usize,
}

impl Default for QFormerConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            cross_attention_frequency: 2,
            encoder_hidden_size: 1408,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-12,
            use_qformer_text_input: false,
            vocab_size: 30522,
            max_position_embeddings: 512,
        }
    }
}

impl QFormerConfig {
    /// Checks that the sizes describe a model.
    ///
    /// # Errors
    /// [`Error::ConfigValue`] names the first field that does not.
    pub fn validate(&self) -> Result<()> {
        size("qformer_config.hidden_size", self.hidden_size)?;
        size("qformer_config.intermediate_size", self.intermediate_size)?;
        size("qformer_config.num_hidden_layers", self.num_hidden_layers)?;
        size(
            "qformer_config.cross_attention_frequency",
            self.cross_attention_frequency,
        )?;
        size(
            "qformer_config.encoder_hidden_size",
            self.encoder_hidden_size,
        )?;
        size("qformer_config.vocab_size", self.vocab_size)?;
        size(
            "qformer_config.max_position_embeddings",
            self.max_position_embeddings,
        )?;
        if self.hidden_act != Activation::Gelu {
            return Err(value(
                "qformer_config.hidden_act",
                "only \"gelu\" is known in a Q-Former".to_owned(),
            ));
        }
        heads("qformer_config", self.num_attention_heads, self.hidden_size)?;
        epsilon("qformer_config.layer_norm_eps", self.layer_norm_eps)
    }
}

/// What this side needs to know of the language model's config; everything
/// else is the GGUF's own business.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TextConfig {
    /// Architecture, such as `opt` (the reference's default) or `llama`.
    pub model_type: Option<String>,
    /// Width of a token, where the file states it.
    pub hidden_size: Option<usize>,
    /// Token that begins a sequence, where the file states it.
    pub bos_token_id: Option<i64>,
    /// Tokens that end an answer, where the file states them.
    pub eos_token_id: Option<TokenIds>,
}

impl TextConfig {
    /// Tokens that end an answer; ids out of range (`-1` for "none") left out.
    pub fn eos_token_ids(&self) -> Vec<i32> {
        let ids = match &self.eos_token_id {
            Some(TokenIds::One(id)) => std::slice::from_ref(id),
            Some(TokenIds::Many(ids)) => ids,
            None => &[],
        };
        ids.iter()
            .filter_map(|id| i32::try_from(*id).ok().filter(|id| *id >= 0))
            .collect()
    }
}

/// One token id or several: config files hold both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TokenIds {
    /// A number.
    One(i64),
    /// A list of numbers.
    Many(Vec<i64>),
}

/// Model types of [`Blip2Config`] whose Q-Former reads no text.
const BLIP2: &str = "blip-2";

/// Model types whose Q-Former reads the instruction; the second loads the
/// first's checkpoints.
const INSTRUCT_BLIP: [&str; 2] = ["instructblip", "instructblipvideo"];

/// The class of `transformers` that holds the heads of BLIP-2's first stage.
const IMAGE_TEXT_RETRIEVAL: &str = "Blip2ForImageTextRetrieval";

/// The heads of BLIP-2's first stage, which a Q-Former has in place of a language model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadsConfig {
    /// Width of the features that pictures and texts share.
    pub image_text_hidden_size: usize,
    /// Whether there is a head that writes captions, which Hugging Face's conversion drops.
    pub captions: bool,
}

impl HeadsConfig {
    /// Checks that the sizes describe a model.
    ///
    /// # Errors
    /// [`Error::ConfigValue`] names the first field that does not.
    pub fn validate(&self) -> Result<()> {
        size("image_text_hidden_size", self.image_text_hidden_size)
    }
}

/// `Blip2Config` or `InstructBlipConfig`: a whole checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Blip2Config {
    /// `blip-2`, `instructblip` or `instructblipvideo`; any other model is
    /// refused.
    pub model_type: String,
    /// The frozen ViT.
    #[serde(deserialize_with = "null_is_default")]
    pub vision_config: VisionConfig,
    /// The Q-Former.
    #[serde(deserialize_with = "null_is_default")]
    pub qformer_config: QFormerConfig,
    /// The language model.
    #[serde(deserialize_with = "null_is_default")]
    pub text_config: TextConfig,
    /// Learned queries, and so rows of the soft prompt.
    pub num_query_tokens: usize,
    /// Width of the features of `Blip2ForImageTextRetrieval`.
    pub image_text_hidden_size: usize,
    /// The classes that the checkpoint was saved from.
    #[serde(deserialize_with = "null_is_default")]
    pub architectures: Vec<String>,
    /// Token that stands for the picture in Hugging Face's prompts
    /// (`video_token_index` of `instructblipvideo`).
    #[serde(alias = "video_token_index")]
    pub image_token_index: Option<i64>,
}

impl Default for Blip2Config {
    fn default() -> Self {
        Self {
            model_type: BLIP2.to_owned(),
            vision_config: VisionConfig::default(),
            qformer_config: QFormerConfig::default(),
            text_config: TextConfig::default(),
            num_query_tokens: 32,
            image_text_hidden_size: 256,
            architectures: Vec::new(),
            image_token_index: None,
        }
    }
}

/// The `model_type` of `dir/config.json`, where it says one.
///
/// # Errors
/// The file is missing or is not a JSON object; each names the file.
pub fn model_type(dir: &Path) -> Result<Option<String>> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        model_type: Option<String>,
    }
    read_config(dir, |text| {
        Ok(serde_json::from_str::<File>(text)?.model_type)
    })
}

/// `dir/config.json`, by `parse`; what is wrong with it names the file.
pub(crate) fn read_config<T>(dir: &Path, parse: impl FnOnce(&str) -> Result<T>) -> Result<T> {
    let path = dir.join(CONFIG_FILE);
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    parse(&text).map_err(|error| Error::Config {
        path,
        reason: error.to_string(),
    })
}

impl Blip2Config {
    /// Reads `dir/config.json`.
    ///
    /// # Errors
    /// The file is missing, is not JSON of this shape, is of another model
    /// type, or holds a value that cannot be honoured; each names the file.
    pub fn read(dir: &Path) -> Result<Self> {
        read_config(dir, Self::from_json)
    }

    /// Parses and checks the text of a `config.json`.
    ///
    /// # Errors
    /// The text is not JSON of this shape, is of another model type, or holds
    /// a value that cannot be honoured.
    pub fn from_json(text: &str) -> Result<Self> {
        let mut config: Self = serde_json::from_str(text)?;
        let reads_text = INSTRUCT_BLIP.contains(&config.model_type.as_str());
        if !reads_text && config.model_type != BLIP2 {
            return Err(value(
                "model_type",
                format!(
                    "{:?} is not known (known: {BLIP2:?}, {INSTRUCT_BLIP:?})",
                    config.model_type
                ),
            ));
        }
        config.qformer_config.use_qformer_text_input = reads_text || config.is_retrieval();
        config.qformer_config.encoder_hidden_size = config.vision_config.hidden_size;
        config.vision_config.validate()?;
        config.qformer_config.validate()?;
        size("num_query_tokens", config.num_query_tokens)?;
        size("image_text_hidden_size", config.image_text_hidden_size)?;
        Ok(config)
    }

    /// Whether this is `Blip2ForImageTextRetrieval`: a Q-Former with the heads of the first
    /// stage, and no language model.
    pub fn is_retrieval(&self) -> bool {
        let is_class = |class| class == IMAGE_TEXT_RETRIEVAL;
        self.model_type == BLIP2 && self.architectures.iter().any(is_class)
    }
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

pub(crate) fn size(field: &str, found: usize) -> Result<()> {
    if (1..=MAX_SIZE).contains(&found) {
        Ok(())
    } else {
        Err(value(
            field,
            format!("{found} is not between 1 and {MAX_SIZE}"),
        ))
    }
}

pub(crate) fn heads(config: &str, heads: usize, width: usize) -> Result<()> {
    let field = format!("{config}.num_attention_heads");
    size(&field, heads)?;
    if width.is_multiple_of(heads) {
        Ok(())
    } else {
        Err(value(
            &field,
            format!("{heads} does not divide hidden_size = {width}"),
        ))
    }
}

pub(crate) fn epsilon(field: &str, eps: f64) -> Result<()> {
    if eps > 0.0 && eps < 1.0 {
        Ok(())
    } else {
        Err(value(field, format!("{eps} is not between 0 and 1")))
    }
}

pub(crate) fn value(field: &str, reason: String) -> Error {
    Error::ConfigValue {
        field: field.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_fields_get_the_references_defaults() {
        // The fields that Salesforce/blip2-opt-2.7b states since December 2024.
        let config = Blip2Config::from_json(
            r#"{"model_type": "blip-2", "image_token_index": 50265, "torch_dtype": "float32",
                "qformer_config": {"model_type": "blip_2_qformer"},
                "vision_config": {"model_type": "blip_2_vision_model"},
                "text_config": {"model_type": "opt", "hidden_size": 2560, "eos_token_id": 50118}}"#,
        )
        .unwrap();
        assert_eq!(config.vision_config, VisionConfig::default());
        assert_eq!(config.vision_config.positions(), 257);
        assert_eq!(config.qformer_config, QFormerConfig::default());
        assert_eq!(config.num_query_tokens, 32);
        assert_eq!(config.image_token_index, Some(50265));
        assert_eq!(config.text_config.eos_token_ids(), [50118]);
        assert_eq!(
            Blip2Config::from_json("{}").unwrap(),
            Blip2Config::default()
        );
        let nulls = r#"{"vision_config": null, "qformer_config": null, "text_config": null}"#;
        assert_eq!(
            Blip2Config::from_json(nulls).unwrap(),
            Blip2Config::default()
        );
    }

    #[test]
    fn stated_fields_are_honoured() {
        let config = Blip2Config::from_json(
            r#"{"num_query_tokens": 8,
                "vision_config": {"hidden_size": 64, "num_attention_heads": 4, "layer_norm_eps": 1e-5,
                                  "image_size": 100, "patch_size": 14, "qkv_bias": false},
                "qformer_config": {"layer_norm_eps": 1e-7, "encoder_hidden_size": 9},
                "text_config": {"eos_token_id": [2, -1, 7], "bos_token_id": 1}}"#,
        )
        .unwrap();
        assert_eq!(config.vision_config.layer_norm_eps, 1e-5);
        assert_eq!(config.vision_config.grid(), 7);
        assert!(!config.vision_config.qkv_bias);
        assert_eq!(config.qformer_config.layer_norm_eps, 1e-7);
        assert_eq!(config.qformer_config.encoder_hidden_size, 64);
        assert_eq!(config.text_config.eos_token_ids(), [2, 7]);
        assert_eq!(config.text_config.bos_token_id, Some(1));
    }

    #[test]
    fn the_model_type_says_whether_the_q_former_reads_text() {
        let parse = |text| Blip2Config::from_json(text).unwrap();
        // As Salesforce/instructblip-vicuna-7b states them, its wrong ids too.
        let config = parse(
            r#"{"model_type": "instructblip", "image_token_index": 32000, "num_query_tokens": 32,
                "qformer_config": {"model_type": "instructblip_qformer", "vocab_size": 30523},
                "text_config": {"model_type": "llama", "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1}}"#,
        );
        assert!(config.qformer_config.use_qformer_text_input);
        assert_eq!(config.qformer_config.vocab_size, 30523);
        assert_eq!(config.qformer_config.max_position_embeddings, 512);
        let video = parse(r#"{"model_type": "instructblipvideo", "video_token_index": 32002}"#);
        assert!(video.qformer_config.use_qformer_text_input);
        assert_eq!(video.image_token_index, Some(32002));
        let retrieval = parse(
            r#"{"model_type": "blip-2", "architectures": ["Blip2ForImageTextRetrieval"],
                "qformer_config": {"vocab_size": 30523}}"#,
        );
        assert!(retrieval.is_retrieval() && retrieval.qformer_config.use_qformer_text_input);
        assert_eq!(retrieval.image_text_hidden_size, 256);
        // Stage 1's text input is another model's.
        let blip2 = parse(r#"{"qformer_config": {"use_qformer_text_input": true}}"#);
        assert!(!blip2.qformer_config.use_qformer_text_input);
    }

    #[test]
    fn values_that_cannot_be_honoured_are_refused_by_name() {
        let cases = [
            (
                r#"{"model_type": "blip"}"#,
                "model_type: \"blip\" is not known (known: \"blip-2\", [\"instructblip\", \"instructblipvideo\"])",
            ),
            (
                r#"{"vision_config": {"hidden_act": "gelu_new"}}"#,
                "gelu_new",
            ),
            (r#"{"qformer_config": {"hidden_act": "relu"}}"#, "relu"),
            (
                r#"{"qformer_config": {"hidden_act": "quick_gelu"}}"#,
                "qformer_config.hidden_act",
            ),
            (
                r#"{"vision_config": {"num_attention_heads": 0}}"#,
                "vision_config.num_attention_heads: 0",
            ),
            (
                r#"{"vision_config": {"num_attention_heads": 15}}"#,
                "15 does not divide hidden_size = 1408",
            ),
            (
                r#"{"qformer_config": {"cross_attention_frequency": 0}}"#,
                "qformer_config.cross_attention_frequency: 0",
            ),
            (
                r#"{"vision_config": {"patch_size": 0}}"#,
                "vision_config.patch_size: 0",
            ),
            (
                r#"{"vision_config": {"patch_size": 300}}"#,
                "larger than image_size = 224",
            ),
            (
                r#"{"vision_config": {"layer_norm_eps": -1}}"#,
                "layer_norm_eps: -1",
            ),
            (
                r#"{"vision_config": {"hidden_size": 18446744073709551615}}"#,
                "vision_config.hidden_size",
            ),
            (r#"{"num_query_tokens": 0}"#, "num_query_tokens: 0"),
            (r#"{"num_query_tokens": "#, "EOF"),
        ];
        for (text, expected) in cases {
            let error = Blip2Config::from_json(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
