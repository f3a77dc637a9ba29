//! LAVIS's names and Hugging Face's.
//!
//! Reference: transformers, `convert_blip_2_original_to_pytorch.py` and
//! `convert_instructblip_original_to_pytorch.py`.

use super::files::Files;
use super::{LavisModel, Projection, Purpose, TowerKind};
use crate::checkpoint::{RawTensor, Values, Weight};
use crate::config::{HeadsConfig, QFormerConfig, VisionConfig};
use crate::positions::{Align, grid, resized};
use crate::{Error, Result};

/// Where the Q-Former's layers begin in LAVIS.
pub(super) const QFORMER_LAYERS: &str = "Qformer.bert.encoder.layer.";

/// Where its embeddings do.
pub(super) const QFORMER_EMBEDDINGS: &str = "Qformer.bert.embeddings.";

/// A tensor of the head that writes captions, where there is one.
pub(super) const CAPTION_HEAD: &str = "Qformer.cls.predictions.transform.dense.weight";

pub(super) fn weights(model: &LavisModel) -> Result<Vec<Weight<'_>>> {
    let mut taken = Taken {
        files: &model.files,
        weights: Vec::new(),
    };
    match model.tower.kind {
        TowerKind::Eva => taken.eva(model.tower.prefix, &model.vision)?,
        TowerKind::Clip => taken.clip(model.tower.prefix, &model.vision)?,
    }
    taken.ln_vision(model)?;
    if let Some(config) = &model.qformer {
        taken.qformer(config, model)?;
    }
    match (&model.purpose, &model.qformer) {
        (Purpose::LanguageModel(projection), _) => taken.projection(*projection)?,
        (Purpose::Heads(heads), Some(config)) => taken.heads(heads, config)?,
        (Purpose::Heads(_), None) => {}
    }
    Ok(taken.weights)
}

struct Taken<'a> {
    files: &'a Files,
    weights: Vec<Weight<'a>>,
}

impl<'a> Taken<'a> {
    /// The tensor `from` as `name`, of the shape `shape`; LAVIS leaves out
    /// leading dimensions of one.
    fn find(&self, name: &str, from: &str, shape: &[usize]) -> Result<Weight<'a>> {
        let tensor = self.files.get(from)?;
        let bare = |shape: &[usize]| -> Vec<usize> {
            shape
                .iter()
                .copied()
                .skip_while(|size| *size == 1)
                .collect()
        };
        if bare(tensor.shape) != bare(shape) {
            return Err(Error::Shape {
                path: tensor.path.to_owned(),
                tensor: from.to_owned(),
                expected: shape.to_vec(),
                found: tensor.shape.to_vec(),
            });
        }
        Ok(Weight {
            name: name.to_owned(),
            shape: shape.to_vec(),
            path: tensor.path.to_owned(),
            values: Values::Stored(tensor),
        })
    }

    fn take(&mut self, name: &str, from: &str, shape: &[usize]) -> Result<()> {
        let weight = self.find(name, from, shape)?;
        self.weights.push(weight);
        Ok(())
    }

    /// A layer's `weight` and its `bias`, which is as long as the weight has
    /// rows.
    fn layer(&mut self, name: &str, from: &str, shape: &[usize]) -> Result<()> {
        self.take(&format!("{name}.weight"), &format!("{from}.weight"), shape)?;
        self.take(
            &format!("{name}.bias"),
            &format!("{from}.bias"),
            &shape[..1],
        )
    }

    /// The position embedding for the config's pictures, whatever size of
    /// pictures it was stored for.
    fn positions(&mut self, from: &str, config: &VisionConfig, align: Align) -> Result<()> {
        let name = "vision_model.embeddings.position_embedding";
        let stored = self.files.get(from)?;
        let rows = stored.shape.iter().rev().nth(1).copied().unwrap_or(0);
        let weight = self.find(name, from, &[1, rows, config.hidden_size])?;
        let weight = if grid(rows) == Some(config.grid()) {
            weight
        } else {
            resized(&weight, config.grid(), align)?
        };
        self.weights.push(weight);
        Ok(())
    }

    fn eva(&mut self, prefix: &str, config: &VisionConfig) -> Result<()> {
        let (width, inner, patch) = (
            config.hidden_size,
            config.intermediate_size,
            config.patch_size,
        );
        let from = |rest: &str| format!("{prefix}{rest}");
        let embeddings = "vision_model.embeddings";
        self.take(
            &format!("{embeddings}.class_embedding"),
            &from("cls_token"),
            &[1, 1, width],
        )?;
        self.positions(&from("pos_embed"), config, Align::Edges)?;
        self.layer(
            &format!("{embeddings}.patch_embedding"),
            &from("patch_embed.proj"),
            &[width, 3, patch, patch],
        )?;
        for index in 0..config.num_hidden_layers {
            let to = |rest: &str| format!("vision_model.encoder.layers.{index}.{rest}");
            let from = |rest: &str| format!("{prefix}blocks.{index}.{rest}");
            self.layer(&to("layer_norm1"), &from("norm1"), &[width])?;
            self.layer(&to("layer_norm2"), &from("norm2"), &[width])?;
            self.take(
                &to("self_attn.qkv.weight"),
                &from("attn.qkv.weight"),
                &[3 * width, width],
            )?;
            self.qkv_bias(
                &to("self_attn.qkv.bias"),
                &from("attn.q_bias"),
                &from("attn.v_bias"),
                width,
            )?;
            self.layer(
                &to("self_attn.projection"),
                &from("attn.proj"),
                &[width, width],
            )?;
            self.layer(&to("mlp.fc1"), &from("mlp.fc1"), &[inner, width])?;
            self.layer(&to("mlp.fc2"), &from("mlp.fc2"), &[width, inner])?;
        }
        Ok(())
    }

    /// Queries and values have a bias in EVA, keys have none.
    fn qkv_bias(&mut self, name: &str, query: &str, value: &str, width: usize) -> Result<()> {
        let query = self.find(name, query, &[width])?;
        let value = self.find(name, value, &[width])?;
        let mut bias = query.to_f32()?.into_owned();
        bias.resize(2 * width, 0.0);
        bias.extend(value.to_f32()?.iter());
        self.weights.push(Weight {
            shape: vec![3 * width],
            values: Values::Computed(bias),
            ..query
        });
        Ok(())
    }

    fn clip(&mut self, prefix: &str, config: &VisionConfig) -> Result<()> {
        let (width, inner, patch) = (
            config.hidden_size,
            config.intermediate_size,
            config.patch_size,
        );
        let from = |rest: &str| format!("{prefix}{rest}");
        let embeddings = "vision_model.embeddings";
        self.take(
            &format!("{embeddings}.class_embedding"),
            &from("class_embedding"),
            &[1, 1, width],
        )?;
        self.positions(&from("positional_embedding"), config, Align::Corners)?;
        self.take(
            &format!("{embeddings}.patch_embedding.weight"),
            &from("conv1.weight"),
            &[width, 3, patch, patch],
        )?;
        self.layer(
            &format!("{embeddings}.pre_layernorm"),
            &from("ln_pre"),
            &[width],
        )?;
        for index in 0..config.num_hidden_layers {
            let to = |rest: &str| format!("vision_model.encoder.layers.{index}.{rest}");
            let from = |rest: &str| format!("{prefix}transformer.resblocks.{index}.{rest}");
            self.layer(&to("layer_norm1"), &from("ln_1"), &[width])?;
            self.layer(&to("layer_norm2"), &from("ln_2"), &[width])?;
            self.take(
                &to("self_attn.qkv.weight"),
                &from("attn.in_proj_weight"),
                &[3 * width, width],
            )?;
            self.take(
                &to("self_attn.qkv.bias"),
                &from("attn.in_proj_bias"),
                &[3 * width],
            )?;
            self.layer(
                &to("self_attn.projection"),
                &from("attn.out_proj"),
                &[width, width],
            )?;
            self.layer(&to("mlp.fc1"), &from("mlp.c_fc"), &[inner, width])?;
            self.layer(&to("mlp.fc2"), &from("mlp.c_proj"), &[width, inner])?;
        }
        Ok(())
    }

    /// MiniGPT-4 without a Q-Former saves none: it was never trained there,
    /// and stays as it was made.
    fn ln_vision(&mut self, model: &LavisModel) -> Result<()> {
        let name = "vision_model.post_layernorm";
        let width = model.vision.hidden_size;
        if model.qformer.is_some() || self.files.find("ln_vision.weight")?.is_some() {
            return self.layer(name, "ln_vision", &[width]);
        }
        let path = self.files.get("llama_proj.weight")?.path;
        for (part, value) in [("weight", 1.0), ("bias", 0.0)] {
            self.weights.push(Weight {
                name: format!("{name}.{part}"),
                shape: vec![width],
                values: Values::Computed(vec![value; width]),
                path: path.to_owned(),
            });
        }
        Ok(())
    }

    fn qformer(&mut self, config: &QFormerConfig, model: &LavisModel) -> Result<()> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        self.take(
            "query_tokens",
            "query_tokens",
            &[1, model.num_query_tokens, width],
        )?;
        let embeddings = |part: &str| format!("{QFORMER_EMBEDDINGS}{part}");
        // InstructBLIP's class keeps all of them inside of the Q-Former, that of the first stage
        // the tables outside.
        let (tables, norm) = match (&model.purpose, config.use_qformer_text_input) {
            (Purpose::LanguageModel(_), true) => {
                ("qformer.embeddings", "qformer.embeddings.layernorm")
            }
            _ => ("embeddings", "qformer.layernorm"),
        };
        if config.use_qformer_text_input {
            let sizes = [
                ("word_embeddings", config.vocab_size),
                ("position_embeddings", config.max_position_embeddings),
            ];
            for (table, rows) in sizes {
                self.take(
                    &format!("{tables}.{table}.weight"),
                    &embeddings(&format!("{table}.weight")),
                    &[rows, width],
                )?;
            }
        }
        self.layer(norm, &embeddings("LayerNorm"), &[width])?;
        for index in 0..config.num_hidden_layers {
            let to = |rest: &str| format!("qformer.encoder.layer.{index}.{rest}");
            let from = |rest: &str| format!("{QFORMER_LAYERS}{index}.{rest}");
            let crosses = index.is_multiple_of(config.cross_attention_frequency);
            let attentions = [
                ("attention", width, true),
                ("crossattention", config.encoder_hidden_size, crosses),
            ];
            for (attention, keys, is_there) in attentions {
                if !is_there {
                    continue;
                }
                for (part, inputs) in [("query", width), ("key", keys), ("value", keys)] {
                    self.layer(
                        &to(&format!("{attention}.attention.{part}")),
                        &from(&format!("{attention}.self.{part}")),
                        &[width, inputs],
                    )?;
                }
                let output = format!("{attention}.output");
                self.output(&to(&output), &from(&output), &[width, width])?;
            }
            let branches: &[&str] = match config.use_qformer_text_input {
                true => &["_query", ""],
                false => &["_query"],
            };
            for branch in branches {
                let dense = format!("intermediate{branch}.dense");
                self.layer(&to(&dense), &from(&dense), &[inner, width])?;
                let output = format!("output{branch}");
                self.output(&to(&output), &from(&output), &[width, inner])?;
            }
        }
        Ok(())
    }

    /// The end of a sub-layer: `dense` and `LayerNorm`.
    fn output(&mut self, name: &str, from: &str, dense: &[usize]) -> Result<()> {
        for (part, shape) in [("dense", dense), ("LayerNorm", &dense[..1])] {
            self.layer(&format!("{name}.{part}"), &format!("{from}.{part}"), shape)?;
        }
        Ok(())
    }

    /// `temp`, by which the training divides cosines, is used by nobody after it.
    fn heads(&mut self, heads: &HeadsConfig, config: &QFormerConfig) -> Result<()> {
        let (width, features) = (config.hidden_size, heads.image_text_hidden_size);
        self.layer("vision_projection", "vision_proj", &[features, width])?;
        self.layer("text_projection", "text_proj", &[features, width])?;
        self.layer("itm_head", "itm_head", &[2, width])?;
        if !heads.captions {
            return Ok(());
        }
        let from = |rest: &str| format!("Qformer.cls.predictions.{rest}");
        let to = |rest: &str| format!("cls.predictions.{rest}");
        let n_vocab = config.vocab_size;
        self.output(&to("transform"), &from("transform"), &[width, width])?;
        let decoder = from("decoder.weight");
        let words = self
            .files
            .get(&format!("{QFORMER_EMBEDDINGS}word_embeddings.weight"))?;
        let is_apart = |tensor: RawTensor| !tensor.is_same_as(&words);
        if self.files.find(&decoder)?.is_some_and(is_apart) {
            self.take(&to("decoder.weight"), &decoder, &[n_vocab, width])?;
        }
        // `predictions.bias` stays as short as BERT's vocabulary where `[DEC]` was added.
        let own = from("decoder.bias");
        let bias = match self.files.find(&own)? {
            Some(_) => own,
            None => from("bias"),
        };
        self.take(&to("decoder.bias"), &bias, &[n_vocab])
    }

    fn projection(&mut self, projection: Projection) -> Result<()> {
        let from = projection.name();
        let [rows, columns] = self.files.dims(&format!("{from}.weight"))?;
        self.layer("language_projection", from, &[rows, columns])
    }
}
