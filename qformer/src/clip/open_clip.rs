//! Checkpoints of open_clip: its own config, and the names of OpenAI's code.
//!
//! Reference: open_clip, `src/open_clip/model.py` (`CLIPVisionCfg`, `CLIPTextCfg`) and
//! `factory.py`. A config that asks for another tower than OpenAI's is refused by name.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::config::{ClipConfig, ClipTextConfig};
use crate::checkpoint::Checkpoint;
use crate::config::{Activation, VisionConfig, value};
use crate::preprocess::{CLIP_MEAN, CLIP_STD, Fit, Preprocessing};
use crate::{Error, Result};

const CONFIG_FILE: &str = "open_clip_config.json";
const SAFETENSORS_FILE: &str = "open_clip_model.safetensors";
const TORCH_FILE: &str = "open_clip_pytorch_model.bin";

#[derive(Deserialize)]
struct File {
    model_cfg: Model,
    #[serde(default)]
    preprocess_cfg: Preprocess,
}

#[derive(Deserialize)]
struct Model {
    embed_dim: usize,
    #[serde(default)]
    quick_gelu: bool,
    vision_cfg: Vision,
    text_cfg: Text,
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct Vision {
    layers: usize,
    width: usize,
    #[serde(default = "head_width")]
    head_width: usize,
    #[serde(default = "mlp_ratio")]
    mlp_ratio: f64,
    patch_size: usize,
    #[serde(default = "image_size")]
    image_size: usize,
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct Text {
    #[serde(default = "context_length")]
    context_length: usize,
    #[serde(default = "vocab_size")]
    vocab_size: usize,
    #[serde(default = "text_width")]
    width: usize,
    #[serde(default = "text_heads")]
    heads: usize,
    #[serde(default = "text_layers")]
    layers: usize,
    #[serde(default = "mlp_ratio")]
    mlp_ratio: f64,
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Preprocess {
    mean: Option<[f32; 3]>,
    std: Option<[f32; 3]>,
    interpolation: Option<String>,
    resize_mode: Option<String>,
}

fn head_width() -> usize {
    64
}
fn mlp_ratio() -> f64 {
    4.0
}
fn image_size() -> usize {
    224
}
fn context_length() -> usize {
    77
}
fn vocab_size() -> usize {
    49408
}
fn text_width() -> usize {
    512
}
fn text_heads() -> usize {
    8
}
fn text_layers() -> usize {
    12
}

/// Whether `dir` is a checkpoint of open_clip and not one of Hugging Face's too.
pub(super) fn is_there(dir: &Path) -> bool {
    dir.join(CONFIG_FILE).is_file() && !dir.join(crate::config::CONFIG_FILE).is_file()
}

/// Opens the weights.
pub(super) fn open_checkpoint(dir: &Path) -> Result<Checkpoint> {
    let safetensors = dir.join(SAFETENSORS_FILE);
    match safetensors.is_file() {
        true => Checkpoint::from_files(&[safetensors]),
        false => Checkpoint::from_pth(&dir.join(TORCH_FILE)),
    }
}

/// Reads `dir/open_clip_config.json`.
pub(super) fn read_config(dir: &Path) -> Result<(ClipConfig, Preprocessing)> {
    let path = dir.join(CONFIG_FILE);
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    parse(&text).map_err(|error| Error::Config {
        path,
        reason: error.to_string(),
    })
}

fn parse(text: &str) -> Result<(ClipConfig, Preprocessing)> {
    let File {
        model_cfg: model,
        preprocess_cfg: preprocess,
    } = serde_json::from_str(text)?;
    only_defaults("model_cfg", &model.other, &[])?;
    let known = [("pool_type", Value::from("tok"))];
    only_defaults("model_cfg.vision_cfg", &model.vision_cfg.other, &known)?;
    let known = [("pool_type", Value::from("argmax"))];
    only_defaults("model_cfg.text_cfg", &model.text_cfg.other, &known)?;
    let hidden_act = match model.quick_gelu {
        true => Activation::QuickGelu,
        false => Activation::Gelu,
    };
    let (vision, text) = (model.vision_cfg, model.text_cfg);
    let config = ClipConfig {
        vision_config: VisionConfig {
            hidden_size: vision.width,
            intermediate_size: (vision.width as f64 * vision.mlp_ratio) as usize,
            num_hidden_layers: vision.layers,
            num_attention_heads: vision.width.checked_div(vision.head_width).unwrap_or(0),
            image_size: vision.image_size,
            patch_size: vision.patch_size,
            hidden_act,
            layer_norm_eps: 1e-5,
            post_layernorm_eps: None,
            qkv_bias: true,
            patch_bias: false,
            pre_layernorm: true,
        },
        text_config: ClipTextConfig {
            vocab_size: text.vocab_size,
            hidden_size: text.width,
            intermediate_size: (text.width as f64 * text.mlp_ratio) as usize,
            num_hidden_layers: text.layers,
            num_attention_heads: text.heads,
            max_position_embeddings: text.context_length,
            hidden_act,
            layer_norm_eps: 1e-5,
            // Its towers are read at the largest id.
            eos_token_id: 2,
        },
        projection_dim: model.embed_dim,
    };
    config.validate()?;
    let bicubic = preprocess.interpolation.as_deref().unwrap_or("bicubic");
    if bicubic != "bicubic" {
        return Err(value(
            "preprocess_cfg.interpolation",
            format!("{bicubic:?} is not supported, only \"bicubic\""),
        ));
    }
    let size = config.vision_config.image_size;
    let fit = match preprocess.resize_mode.as_deref().unwrap_or("shortest") {
        "shortest" => Fit::Crop {
            shortest_edge: size,
        },
        "squash" => Fit::Squash,
        mode => {
            return Err(value(
                "preprocess_cfg.resize_mode",
                format!("{mode:?} is not supported, only \"shortest\" and \"squash\""),
            ));
        }
    };
    let preprocessing = Preprocessing {
        fit,
        mean: preprocess.mean.unwrap_or(CLIP_MEAN),
        std: preprocess.std.unwrap_or(CLIP_STD),
        ..Preprocessing::clip(size)
    };
    Ok((config, preprocessing))
}

/// Refuses fields that change a tower, unless they say what is so anyway.
fn only_defaults(
    section: &str,
    fields: &BTreeMap<String, Value>,
    known: &[(&str, Value)],
) -> Result<()> {
    for (field, found) in fields {
        let says_nothing = matches!(found, Value::Null | Value::Bool(false));
        let is_known = known
            .iter()
            .any(|(known, value)| known == field && value == found);
        if !says_nothing && !is_known {
            return Err(value(
                &format!("{section}.{field}"),
                format!("{found} is not supported: only towers like OpenAI's are"),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_published_config() {
        // laion/CLIP-ViT-B-32-laion2B-s34B-b79K, open_clip_config.json.
        let (config, preprocessing) = parse(
            r#"{"model_cfg": {"embed_dim": 512,
                "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
                "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}},
                "preprocess_cfg": {"mean": [0.48145466, 0.4578275, 0.40821073],
                                   "std": [0.26862954, 0.26130258, 0.27577711]}}"#,
        )
        .unwrap();
        let vision = &config.vision_config;
        assert_eq!(
            (vision.num_attention_heads, vision.intermediate_size),
            (12, 3072)
        );
        assert_eq!(vision.hidden_act, Activation::Gelu);
        assert_eq!(config.text_config.intermediate_size, 2048);
        assert_eq!(preprocessing, Preprocessing::clip_cropped(224));
    }

    #[test]
    fn other_towers_are_refused_by_name() {
        let with = |vision: &str, text: &str| {
            parse(&format!(
                r#"{{"model_cfg": {{"embed_dim": 8,
                    "vision_cfg": {{"layers": 1, "width": 64, "patch_size": 32 {vision}}},
                    "text_cfg": {{"layers": 1 {text}}}}}}}"#
            ))
        };
        assert!(with("", "").is_ok());
        assert!(with(r#", "pool_type": "tok""#, r#", "embed_cls": false"#).is_ok());
        for (vision, text, expected) in [
            (
                r#", "timm_model_name": "convnext_base""#,
                "",
                "vision_cfg.timm_model_name",
            ),
            (
                r#", "global_average_pool": true"#,
                "",
                "global_average_pool",
            ),
            (
                "",
                r#", "hf_model_name": "roberta-base""#,
                "text_cfg.hf_model_name",
            ),
            ("", r#", "pool_type": "last""#, "pool_type"),
        ] {
            let error = with(vision, text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
