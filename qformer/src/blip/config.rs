//! The sizes of a BLIP, as Hugging Face's `config.json` states them.
//!
//! Reference: transformers 5.23, `models/blip/configuration_blip.py`. Defaults, unknown fields
//! and refusals are as in [`crate::config`].

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::config::{Activation, VisionConfig, epsilon, heads, read_config, size, value};
use crate::wordpiece::TextSizes;

/// `BlipConfig`: the ViT and the text models, which are of one size.
#[derive(Debug, Clone, PartialEq)]
pub struct BlipConfig {
    /// The ViT.
    pub vision_config: VisionConfig,
    /// The text encoder, the text decoder, or both.
    pub text_config: BlipTextConfig,
    /// Width of the features that are compared by their angle.
    pub image_text_hidden_size: usize,
}

/// `BlipTextConfig`: BERT with cross-attention in every layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlipTextConfig {
    /// Rows of the word embeddings, `[DEC]` and `[ENC]` included.
    pub vocab_size: usize,
    /// Width of a token.
    pub hidden_size: usize,
    /// Width of the feed-forward's hidden layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Rows of the position embeddings, and so the longest text.
    pub max_position_embeddings: usize,
    /// Activation of the feed-forward.
    pub hidden_act: Activation,
    /// Epsilon of every LayerNorm.
    pub layer_norm_eps: f64,
    /// `[DEC]`, with which the decoder begins.
    pub bos_token_id: u32,
    /// `[SEP]`, with which a text ends.
    pub sep_token_id: u32,
    /// Share of the loss, and so of a candidate answer's score, that is spread over the
    /// vocabulary.
    pub label_smoothing: f32,
    /// Whether the layers have cross-attention.
    pub is_decoder: bool,
}

impl Default for BlipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30524,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 512,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-12,
            bos_token_id: 30522,
            sep_token_id: 102,
            label_smoothing: 0.0,
            is_decoder: true,
        }
    }
}

impl From<&BlipTextConfig> for TextSizes {
    fn from(config: &BlipTextConfig) -> Self {
        Self {
            vocab_size: config.vocab_size,
            max_position_embeddings: config.max_position_embeddings,
        }
    }
}

/// `BlipVisionConfig`.
#[derive(Deserialize)]
#[serde(default)]
struct BlipVisionConfig {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    image_size: usize,
    patch_size: usize,
    hidden_act: Activation,
    layer_norm_eps: f64,
}

impl Default for BlipVisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 384,
            patch_size: 16,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-5,
        }
    }
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    model_type: Option<String>,
    #[serde(default)]
    text_config: Option<BlipTextConfig>,
    #[serde(default)]
    vision_config: Option<BlipVisionConfig>,
    #[serde(default)]
    image_text_hidden_size: Option<usize>,
}

impl BlipConfig {
    /// Reads `dir/config.json`.
    ///
    /// # Errors
    /// The file is missing, is not JSON of this shape, is of another model type, or holds a value
    /// that cannot be honoured; each names the file.
    pub fn read(dir: &Path) -> Result<Self> {
        read_config(dir, Self::from_json)
    }

    /// Parses and checks the text of a `config.json`.
    ///
    /// # Errors
    /// The text is not JSON of this shape, is of another model type, or holds a value that cannot
    /// be honoured.
    pub fn from_json(text: &str) -> Result<Self> {
        let file: File = serde_json::from_str(text)?;
        if let Some(model_type) = &file.model_type
            && model_type != "blip"
        {
            return Err(value(
                "model_type",
                format!("{model_type:?} is not \"blip\""),
            ));
        }
        let vision = file.vision_config.unwrap_or_default();
        let config = Self {
            vision_config: VisionConfig {
                hidden_size: vision.hidden_size,
                intermediate_size: vision.intermediate_size,
                num_hidden_layers: vision.num_hidden_layers,
                num_attention_heads: vision.num_attention_heads,
                image_size: vision.image_size,
                patch_size: vision.patch_size,
                hidden_act: vision.hidden_act,
                layer_norm_eps: vision.layer_norm_eps,
                ..VisionConfig::default()
            },
            text_config: file.text_config.unwrap_or_default(),
            image_text_hidden_size: file.image_text_hidden_size.unwrap_or(256),
        };
        config.validate()?;
        Ok(config)
    }

    /// Checks that the sizes describe a model.
    ///
    /// # Errors
    /// [`crate::Error::ConfigValue`] names the first field that does not.
    pub fn validate(&self) -> Result<()> {
        self.vision_config.validate()?;
        let text = &self.text_config;
        size("image_text_hidden_size", self.image_text_hidden_size)?;
        size("text_config.vocab_size", text.vocab_size)?;
        size("text_config.hidden_size", text.hidden_size)?;
        size("text_config.intermediate_size", text.intermediate_size)?;
        size("text_config.num_hidden_layers", text.num_hidden_layers)?;
        size(
            "text_config.max_position_embeddings",
            text.max_position_embeddings,
        )?;
        heads("text_config", text.num_attention_heads, text.hidden_size)?;
        epsilon("text_config.layer_norm_eps", text.layer_norm_eps)?;
        for (field, id) in [
            ("text_config.bos_token_id", text.bos_token_id),
            ("text_config.sep_token_id", text.sep_token_id),
        ] {
            if id as usize >= text.vocab_size {
                return Err(value(
                    field,
                    format!("{id} is not below vocab_size = {}", text.vocab_size),
                ));
            }
        }
        if !(0.0..1.0).contains(&text.label_smoothing) {
            return Err(value(
                "text_config.label_smoothing",
                format!("{} is not between 0 and 1", text.label_smoothing),
            ));
        }
        if !text.is_decoder {
            return Err(value(
                "text_config.is_decoder",
                "false leaves the layers without cross-attention: the picture would not be read"
                    .to_owned(),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_fields_get_the_references_defaults() {
        let config = BlipConfig::from_json(r#"{"model_type": "blip"}"#).unwrap();
        assert_eq!(config.text_config, BlipTextConfig::default());
        let vision = &config.vision_config;
        assert_eq!((vision.image_size, vision.patch_size), (384, 16));
        assert_eq!(vision.layer_norm_eps, 1e-5);
        assert!(vision.qkv_bias && vision.patch_bias && !vision.pre_layernorm);
        assert_eq!(config.image_text_hidden_size, 256);
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        for (text, expected) in [
            (r#"{"model_type": "blip-2"}"#, "blip-2"),
            (r#"{"text_config": {"is_decoder": false}}"#, "is_decoder"),
            (r#"{"text_config": {"vocab_size": 30522}}"#, "bos_token_id"),
            (
                r#"{"text_config": {"label_smoothing": 1.0}}"#,
                "label_smoothing",
            ),
            (
                r#"{"text_config": {"num_attention_heads": 5}}"#,
                "5 does not divide",
            ),
            (r#"{"vision_config": {"patch_size": 0}}"#, "patch_size"),
        ] {
            let error = BlipConfig::from_json(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
