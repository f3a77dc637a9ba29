//! The sizes of a CLIP, as Hugging Face's `config.json` states them.
//!
//! Reference: transformers 5.23, `models/clip/configuration_clip.py`. Defaults, unknown fields
//! and refusals are as in [`crate::config`].

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::config::{Activation, VisionConfig, epsilon, heads, read_config, size, value};

/// `CLIPConfig`: both towers.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    /// The ViT.
    pub vision_config: VisionConfig,
    /// The text tower.
    pub text_config: ClipTextConfig,
    /// Width of the features.
    pub projection_dim: usize,
}

/// `CLIPTextConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipTextConfig {
    /// Rows of the token embeddings.
    pub vocab_size: usize,
    /// Width of a token.
    pub hidden_size: usize,
    /// Width of the MLP's hidden layer.
    pub intermediate_size: usize,
    /// Number of transformer blocks.
    pub num_hidden_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Rows of the position embeddings, and so the longest text.
    pub max_position_embeddings: usize,
    /// Activation of the MLP.
    pub hidden_act: Activation,
    /// Epsilon of every LayerNorm.
    pub layer_norm_eps: f64,
    /// The token that ends a text; 2 stands for the largest id that a text has.
    pub eos_token_id: i64,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
        }
    }
}

/// `CLIPVisionConfig`.
#[derive(Deserialize)]
#[serde(default)]
struct ClipVisionConfig {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    image_size: usize,
    patch_size: usize,
    num_channels: usize,
    hidden_act: Activation,
    layer_norm_eps: f64,
}

impl Default for ClipVisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 224,
            patch_size: 32,
            num_channels: 3,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

/// `config.json` as it is written. Files of 2022 state the towers twice, and what is in
/// `*_config_dict` is what counts.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    model_type: Option<String>,
    #[serde(default)]
    text_config: Option<ClipTextConfig>,
    #[serde(default)]
    text_config_dict: Option<ClipTextConfig>,
    #[serde(default)]
    vision_config: Option<ClipVisionConfig>,
    #[serde(default)]
    vision_config_dict: Option<ClipVisionConfig>,
    #[serde(default)]
    projection_dim: Option<usize>,
}

impl ClipConfig {
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
            && model_type != "clip"
        {
            return Err(value(
                "model_type",
                format!("{model_type:?} is not \"clip\""),
            ));
        }
        let vision = file.vision_config_dict.or(file.vision_config);
        let vision = vision.unwrap_or_default();
        if vision.num_channels != 3 {
            return Err(value(
                "vision_config.num_channels",
                format!("{}, only 3 are supported", vision.num_channels),
            ));
        }
        let text = file.text_config_dict.or(file.text_config);
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
                post_layernorm_eps: None,
                qkv_bias: true,
                patch_bias: false,
                pre_layernorm: true,
            },
            text_config: text.unwrap_or_default(),
            projection_dim: file.projection_dim.unwrap_or(512),
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
        size("projection_dim", self.projection_dim)?;
        size("text_config.vocab_size", text.vocab_size)?;
        size("text_config.hidden_size", text.hidden_size)?;
        size("text_config.intermediate_size", text.intermediate_size)?;
        size("text_config.num_hidden_layers", text.num_hidden_layers)?;
        size(
            "text_config.max_position_embeddings",
            text.max_position_embeddings,
        )?;
        heads("text_config", text.num_attention_heads, text.hidden_size)?;
        epsilon("text_config.layer_norm_eps", text.layer_norm_eps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_fields_get_the_references_defaults() {
        let config = ClipConfig::from_json(r#"{"model_type": "clip"}"#).unwrap();
        assert_eq!(config.text_config, ClipTextConfig::default());
        let vision = &config.vision_config;
        assert_eq!((vision.hidden_size, vision.patch_size), (768, 32));
        assert!(vision.pre_layernorm && !vision.patch_bias);
        assert_eq!(config.projection_dim, 512);
    }

    #[test]
    fn what_is_stated_twice_counts_as_the_second() {
        // As openai/clip-vit-large-patch14 has it.
        let config = ClipConfig::from_json(
            r#"{"projection_dim": 768,
                "text_config": {"hidden_size": 768, "eos_token_id": 2, "vocab_size": 5},
                "text_config_dict": {"hidden_size": 768, "num_attention_heads": 12},
                "vision_config": {"patch_size": 32},
                "vision_config_dict": {"hidden_size": 1024, "num_attention_heads": 16, "patch_size": 14}}"#,
        )
        .unwrap();
        assert_eq!(config.text_config.eos_token_id, 49407);
        assert_eq!(config.text_config.vocab_size, 49408);
        assert_eq!(config.vision_config.patch_size, 14);
        let none = r#"{"text_config": {"eos_token_id": 2}, "text_config_dict": null}"#;
        let config = ClipConfig::from_json(none).unwrap();
        assert_eq!(config.text_config.eos_token_id, 2);
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        for (text, expected) in [
            (r#"{"model_type": "siglip"}"#, "siglip"),
            (r#"{"vision_config": {"num_channels": 4}}"#, "num_channels"),
            (
                r#"{"text_config": {"num_attention_heads": 7}}"#,
                "7 does not divide",
            ),
            (r#"{"text_config": {"hidden_act": "relu"}}"#, "relu"),
            (r#"{"projection_dim": 0}"#, "projection_dim"),
        ] {
            let error = ClipConfig::from_json(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
