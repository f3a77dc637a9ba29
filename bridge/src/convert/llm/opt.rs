//! OPT, on llama.cpp's graph of MPT: the same pre-LayerNorm blocks with learned positions
//! and biases, but for two things that go into the weights.
//!
//! - OPT looks position `p` up in row `p + 2` of its table: the first two rows are left
//!   out.
//! - OPT's feed-forward is a ReLU, the graph's a GELU followed by a division by a vector
//!   (AWQ's `ffn.act.scales`): rows of `fc1` are multiplied with gains and divided by them
//!   after the GELU. See [`ReluGains`].

use std::cell::OnceCell;
use std::rc::Rc;

use serde::Deserialize;

use super::quant::Role;
use super::tensor::{Content, OutputTensor, Part, ReluGains, Scale};
use super::{
    Graph, LlmParts, Metadata, config_error, positive, read_config, same_content, vocabulary_rows,
};
use crate::Result;
use crate::gguf::MODEL_TYPE;

/// Rows of the position table before that of position 0.
const POSITION_OFFSET: usize = 2;
/// PyTorch's default, which OPT does not change.
const LAYER_NORM_EPS: f32 = 1e-5;

/// `OPTConfig` of transformers, with its defaults.
#[derive(Deserialize)]
#[serde(default)]
struct Config {
    hidden_size: usize,
    num_hidden_layers: usize,
    ffn_dim: usize,
    max_position_embeddings: usize,
    do_layer_norm_before: bool,
    word_embed_proj_dim: Option<usize>,
    num_attention_heads: usize,
    activation_function: String,
    enable_bias: bool,
    layer_norm_elementwise_affine: bool,
    tie_word_embeddings: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            hidden_size: 768,
            num_hidden_layers: 12,
            ffn_dim: 3072,
            max_position_embeddings: 2048,
            do_layer_norm_before: true,
            word_embed_proj_dim: None,
            num_attention_heads: 12,
            activation_function: "relu".to_owned(),
            enable_bias: true,
            layer_norm_elementwise_affine: true,
            tie_word_embeddings: true,
        }
    }
}

impl Config {
    /// Why llama.cpp's graph does not compute this model.
    fn problem(&self) -> Option<String> {
        let n_embd = self.hidden_size;
        let width = self.word_embed_proj_dim.unwrap_or(n_embd);
        Some(if !self.do_layer_norm_before || width != n_embd {
            format!(
                "do_layer_norm_before is {} and word_embed_proj_dim {width} beside hidden_size {n_embd}: opt-350m's shape has no graph in llama.cpp; every other size of OPT does",
                self.do_layer_norm_before
            )
        } else if self.activation_function != "relu" {
            format!(
                "activation_function {:?} is not OPT's relu: give a GGUF instead",
                self.activation_function
            )
        } else if !self.enable_bias || !self.layer_norm_elementwise_affine {
            "without biases and LayerNorm weights it is not an OPT that is known here: give a GGUF instead".to_owned()
        } else if !n_embd.is_multiple_of(self.num_attention_heads) {
            format!(
                "hidden_size {n_embd} is no multiple of num_attention_heads {}",
                self.num_attention_heads
            )
        } else {
            return None;
        })
    }
}

pub(super) fn graph(parts: &LlmParts) -> Result<Graph> {
    let config: Config = read_config(parts)?;
    let (n_embd, n_ff, n_layers) = (config.hidden_size, config.ffn_dim, config.num_hidden_layers);
    let n_ctx = config.max_position_embeddings;
    positive(
        parts,
        &[
            ("hidden_size", n_embd),
            ("ffn_dim", n_ff),
            ("num_hidden_layers", n_layers),
            ("num_attention_heads", config.num_attention_heads),
            ("max_position_embeddings", n_ctx),
        ],
    )?;
    if let Some(problem) = config.problem() {
        return Err(config_error(parts, problem));
    }
    let mut metadata = Metadata::default();
    metadata.set(MODEL_TYPE, "opt");
    for (key, value) in [
        ("context_length", n_ctx),
        ("embedding_length", n_embd),
        ("block_count", n_layers),
        ("feed_forward_length", n_ff),
        ("attention.head_count", config.num_attention_heads),
    ] {
        metadata.set(
            format!("mpt.{key}"),
            u32::try_from(value).unwrap_or(u32::MAX),
        );
    }
    metadata.set("mpt.attention.layer_norm_epsilon", LAYER_NORM_EPS);

    // `facebook/opt-*` leave out what comes before `decoder`.
    let decoder = [
        format!("{}model.decoder.", parts.prefix),
        format!("{}decoder.", parts.prefix),
    ]
    .into_iter()
    .find(|decoder| {
        parts
            .tensors
            .info(&format!("{decoder}embed_tokens.weight"))
            .is_some()
    })
    .unwrap_or_else(|| format!("{}model.decoder.", parts.prefix));
    let embeddings = format!("{decoder}embed_tokens.weight");
    let head = format!("{}lm_head.weight", parts.prefix);
    let n_vocab = vocabulary_rows(parts, &embeddings, n_embd)?;
    let tied = if parts.tensors.info(&head).is_some() {
        same_content(parts.tensors, &embeddings, &head)?
    } else {
        config.tie_word_embeddings
    };

    let vector = |name: String, source: String, n: usize| {
        OutputTensor::plain(name, source, &[n], Role::Exact)
    };
    let mut tensors = vec![
        OutputTensor::plain(
            "token_embd.weight",
            &embeddings,
            &[n_vocab, n_embd],
            if tied { Role::Output } else { Role::Matrix },
        ),
        OutputTensor::of_parts(
            "position_embd.weight",
            vec![Part::slice(
                format!("{decoder}embed_positions.weight"),
                POSITION_OFFSET..POSITION_OFFSET + n_ctx,
            )],
            &[n_ctx, n_embd],
            Role::Exact,
        ),
    ];
    for layer in 0..n_layers {
        let of = |name: &str| format!("{decoder}layers.{layer}.{name}");
        let to = |name: &str| format!("blk.{layer}.{name}");
        let both = |name: &str, source: &str, rows: usize, cols: usize, role: Role| {
            [
                OutputTensor::plain(
                    to(&format!("{name}.weight")),
                    of(&format!("{source}.weight")),
                    &[rows, cols],
                    role,
                ),
                vector(
                    to(&format!("{name}.bias")),
                    of(&format!("{source}.bias")),
                    rows,
                ),
            ]
        };
        let norm = |name: &str, source: &str| {
            ["weight", "bias"].map(|leaf| {
                vector(
                    to(&format!("{name}.{leaf}")),
                    of(&format!("{source}.{leaf}")),
                    n_embd,
                )
            })
        };
        let qkv = |leaf: &str| -> Vec<Part> {
            ["q", "k", "v"]
                .map(|name| Part::whole(of(&format!("self_attn.{name}_proj.{leaf}")), n_embd))
                .into()
        };
        let gains = Rc::new(ReluGains {
            weight: of("fc1.weight"),
            bias: of("fc1.bias"),
            norm_weight: of("final_layer_norm.weight"),
            norm_bias: of("final_layer_norm.bias"),
            rows: n_ff,
            cols: n_embd,
            gains: OnceCell::new(),
        });
        tensors.extend(norm("attn_norm", "self_attn_layer_norm"));
        tensors.push(OutputTensor::of_parts(
            to("attn_qkv.weight"),
            qkv("weight"),
            &[3 * n_embd, n_embd],
            Role::AttentionValue { layer, n_layers },
        ));
        tensors.push(OutputTensor::of_parts(
            to("attn_qkv.bias"),
            qkv("bias"),
            &[3 * n_embd],
            Role::Exact,
        ));
        tensors.extend(both(
            "attn_output",
            "self_attn.out_proj",
            n_embd,
            n_embd,
            Role::Matrix,
        ));
        tensors.extend(norm("ffn_norm", "final_layer_norm"));
        tensors.extend(
            both("ffn_up", "fc1", n_ff, n_embd, Role::Matrix)
                .map(|tensor| tensor.scaled(Scale::Gains(gains.clone()))),
        );
        tensors.push(OutputTensor {
            name: to("ffn.act.scales"),
            shape: vec![n_ff],
            role: Role::Exact,
            content: Content::Gains(gains),
            scale: Scale::None,
        });
        tensors.extend(both(
            "ffn_down",
            "fc2",
            n_embd,
            n_ff,
            Role::FeedForwardDown {
                layer,
                n_layers,
                wide_input: false,
            },
        ));
    }
    for leaf in ["weight", "bias"] {
        tensors.push(vector(
            format!("output_norm.{leaf}"),
            format!("{decoder}final_layer_norm.{leaf}"),
            n_embd,
        ));
    }
    if !tied {
        tensors.push(OutputTensor::plain(
            "output.weight",
            head,
            &[n_vocab, n_embd],
            Role::Output,
        ));
    }
    Ok(Graph {
        architecture: "mpt",
        metadata,
        tensors,
        n_embd,
        n_vocab,
    })
}
