//! Llama, Llama 2 and their finetunes (Vicuna): llama.cpp's `llama`.

use serde::Deserialize;

use super::quant::Role;
use super::tensor::{OutputTensor, Part};
use super::{
    Graph, LlmParts, Metadata, config_error, positive, read_config, same_content, vocabulary_rows,
};
use crate::Result;

/// `LlamaConfig` of transformers, with its defaults.
#[derive(Deserialize)]
#[serde(default)]
struct Config {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: String,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    tie_word_embeddings: bool,
    attention_bias: bool,
    mlp_bias: bool,
    rope_theta: Option<f32>,
    rope_scaling: Option<Rope>,
    rope_parameters: Option<Rope>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            hidden_size: 4096,
            intermediate_size: 11008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            hidden_act: "silu".to_owned(),
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            attention_bias: false,
            mlp_bias: false,
            rope_theta: None,
            rope_scaling: None,
            rope_parameters: None,
        }
    }
}

/// `rope_parameters` of transformers 5; `rope_scaling` before it, without the base.
#[derive(Deserialize)]
struct Rope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f32>,
    factor: Option<f32>,
}

pub(super) fn graph(parts: &LlmParts) -> Result<Graph> {
    let config: Config = read_config(parts)?;
    let (n_embd, n_ff, n_layers) = (
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
    );
    let n_head = config.num_attention_heads;
    let n_head_kv = config.num_key_value_heads.unwrap_or(n_head);
    positive(
        parts,
        &[
            ("hidden_size", n_embd),
            ("intermediate_size", n_ff),
            ("num_hidden_layers", n_layers),
            ("num_attention_heads", n_head),
            ("num_key_value_heads", n_head_kv),
        ],
    )?;
    let head_dim = config.head_dim.unwrap_or(n_embd / n_head);
    let problem = if head_dim == 0 || !head_dim.is_multiple_of(2) {
        Some(format!("heads of {head_dim} values cannot be rotated"))
    } else if !n_head.is_multiple_of(n_head_kv) {
        Some(format!(
            "num_attention_heads {n_head} is no multiple of num_key_value_heads {n_head_kv}"
        ))
    } else if config.attention_bias || config.mlp_bias {
        Some("attention_bias and mlp_bias are not converted: give a GGUF instead".to_owned())
    } else if config.hidden_act != "silu" {
        Some(format!(
            "hidden_act {:?}, where llama.cpp computes silu: give a GGUF instead",
            config.hidden_act
        ))
    } else {
        None
    };
    if let Some(problem) = problem {
        return Err(config_error(parts, problem));
    }

    let mut metadata = Metadata::default();
    let mut size = |key: &str, value: usize| {
        metadata.set(
            format!("llama.{key}"),
            u32::try_from(value).unwrap_or(u32::MAX),
        );
    };
    size("context_length", config.max_position_embeddings);
    size("embedding_length", n_embd);
    size("block_count", n_layers);
    size("feed_forward_length", n_ff);
    size("attention.head_count", n_head);
    size("attention.head_count_kv", n_head_kv);
    size("attention.key_length", head_dim);
    size("attention.value_length", head_dim);
    size("rope.dimension_count", head_dim);
    metadata.set(
        "llama.attention.layer_norm_rms_epsilon",
        config.rms_norm_eps,
    );
    rope(parts, &config, &mut metadata)?;

    let prefix = parts.prefix;
    let embeddings = format!("{prefix}model.embed_tokens.weight");
    let head = format!("{prefix}lm_head.weight");
    let n_vocab = vocabulary_rows(parts, &embeddings, n_embd)?;
    // Two different tensors are both used, whatever the configuration says.
    let tied = if parts.tensors.info(&head).is_some() {
        same_content(parts.tensors, &embeddings, &head)?
    } else {
        config.tie_word_embeddings
    };
    let mut tensors = vec![OutputTensor::plain(
        "token_embd.weight",
        &embeddings,
        &[n_vocab, n_embd],
        if tied { Role::Output } else { Role::Matrix },
    )];
    for layer in 0..n_layers {
        let of = |name: &str| format!("{prefix}model.layers.{layer}.{name}.weight");
        let to = |name: &str| format!("blk.{layer}.{name}.weight");
        let rotated = |name: &str, heads: usize| {
            let rows = heads * head_dim;
            let part = Part {
                interleave: Some(head_dim),
                ..Part::whole(of(&format!("self_attn.{name}_proj")), rows)
            };
            OutputTensor::of_parts(
                to(&format!("attn_{name}")),
                vec![part],
                &[rows, n_embd],
                Role::Matrix,
            )
        };
        let plain = |name: &str, source: &str, shape: &[usize], role: Role| {
            OutputTensor::plain(to(name), of(source), shape, role)
        };
        tensors.extend([
            plain("attn_norm", "input_layernorm", &[n_embd], Role::Exact),
            rotated("q", n_head),
            rotated("k", n_head_kv),
            plain(
                "attn_v",
                "self_attn.v_proj",
                &[n_head_kv * head_dim, n_embd],
                Role::AttentionValue { layer, n_layers },
            ),
            plain(
                "attn_output",
                "self_attn.o_proj",
                &[n_embd, n_head * head_dim],
                Role::Matrix,
            ),
            plain(
                "ffn_norm",
                "post_attention_layernorm",
                &[n_embd],
                Role::Exact,
            ),
            plain("ffn_gate", "mlp.gate_proj", &[n_ff, n_embd], Role::Matrix),
            plain("ffn_up", "mlp.up_proj", &[n_ff, n_embd], Role::Matrix),
            plain(
                "ffn_down",
                "mlp.down_proj",
                &[n_embd, n_ff],
                Role::FeedForwardDown {
                    layer,
                    n_layers,
                    wide_input: false,
                },
            ),
        ]);
    }
    tensors.push(OutputTensor::plain(
        "output_norm.weight",
        format!("{prefix}model.norm.weight"),
        &[n_embd],
        Role::Exact,
    ));
    if !tied {
        tensors.push(OutputTensor::plain(
            "output.weight",
            head,
            &[n_vocab, n_embd],
            Role::Output,
        ));
    }
    Ok(Graph {
        architecture: "llama",
        metadata,
        tensors,
        n_embd,
        n_vocab,
    })
}

fn rope(parts: &LlmParts, config: &Config, metadata: &mut Metadata) -> Result<()> {
    let rope = config
        .rope_parameters
        .as_ref()
        .or(config.rope_scaling.as_ref());
    let base = rope
        .and_then(|rope| rope.rope_theta)
        .or(config.rope_theta)
        .unwrap_or(10_000.0);
    metadata.set("llama.rope.freq_base", base);
    match rope.map(|rope| (rope.rope_type.as_deref().unwrap_or("default"), rope.factor)) {
        None | Some(("default", _)) => {}
        Some(("linear", Some(factor))) => {
            metadata.set("llama.rope.scaling.type", "linear");
            metadata.set("llama.rope.scaling.factor", factor);
        }
        Some((kind, _)) => {
            return Err(config_error(
                parts,
                format!("rope type {kind:?} is not converted: give a GGUF of this model instead"),
            ));
        }
    }
    Ok(())
}
