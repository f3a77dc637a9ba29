//! T5 and Flan-T5: llama.cpp's `t5`.

use serde::Deserialize;

use super::quant::Role;
use super::tensor::{OutputTensor, Scale};
use super::{
    Graph, LlmParts, Metadata, config_error, positive, read_config, same_content, vocabulary_rows,
};
use crate::Result;

/// `T5Config` of transformers, with its defaults.
#[derive(Deserialize)]
#[serde(default)]
struct Config {
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    num_decoder_layers: Option<usize>,
    num_heads: usize,
    n_positions: usize,
    relative_attention_num_buckets: usize,
    relative_attention_max_distance: usize,
    layer_norm_epsilon: f32,
    feed_forward_proj: String,
    decoder_start_token_id: Option<u32>,
    pad_token_id: Option<u32>,
    tie_word_embeddings: Option<bool>,
    scale_decoder_outputs: Option<bool>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_decoder_layers: None,
            num_heads: 8,
            n_positions: 512,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: "relu".to_owned(),
            decoder_start_token_id: None,
            pad_token_id: None,
            tie_word_embeddings: None,
            scale_decoder_outputs: None,
        }
    }
}

pub(super) fn graph(parts: &LlmParts) -> Result<Graph> {
    let config: Config = read_config(parts)?;
    let (n_embd, n_ff, n_head) = (config.d_model, config.d_ff, config.num_heads);
    let n_layers = config.num_layers;
    let n_decoder_layers = config.num_decoder_layers.unwrap_or(n_layers);
    let buckets = config.relative_attention_num_buckets;
    positive(
        parts,
        &[
            ("d_model", n_embd),
            ("d_kv", config.d_kv),
            ("d_ff", n_ff),
            ("num_heads", n_head),
            ("num_layers", n_layers),
            ("num_decoder_layers", n_decoder_layers),
            ("relative_attention_num_buckets", buckets),
        ],
    )?;
    let problem = if n_decoder_layers > n_layers {
        Some(format!(
            "num_decoder_layers {n_decoder_layers} is more than num_layers {n_layers}, which llama.cpp cannot run"
        ))
    } else if config.relative_attention_max_distance != 128 {
        Some(format!(
            "relative_attention_max_distance {} is not the 128 that llama.cpp computes with",
            config.relative_attention_max_distance
        ))
    } else {
        None
    };
    if let Some(problem) = problem {
        return Err(config_error(parts, problem));
    }
    let gated = match config.feed_forward_proj.as_str() {
        "gated-gelu" => true,
        "relu" => false,
        other => {
            return Err(config_error(
                parts,
                format!(
                    "feed_forward_proj {other:?}, where llama.cpp knows gated-gelu and relu: this model cannot be converted"
                ),
            ));
        }
    };

    let mut metadata = Metadata::default();
    for (key, value) in [
        ("context_length", config.n_positions),
        ("embedding_length", n_embd),
        ("feed_forward_length", n_ff),
        ("block_count", n_layers),
        ("decoder_block_count", n_decoder_layers),
        ("attention.head_count", n_head),
        ("attention.key_length", config.d_kv),
        ("attention.value_length", config.d_kv),
        ("attention.relative_buckets_count", buckets),
    ] {
        metadata.set(
            format!("t5.{key}"),
            u32::try_from(value).unwrap_or(u32::MAX),
        );
    }
    metadata.set("t5.attention.layer_norm_epsilon", config.layer_norm_epsilon);
    metadata.set(
        "t5.attention.layer_norm_rms_epsilon",
        config.layer_norm_epsilon,
    );
    let start = config
        .decoder_start_token_id
        .or(config.pad_token_id)
        .unwrap_or(0);
    metadata.set("t5.decoder_start_token_id", start);

    let prefix = parts.prefix;
    let embeddings = ["shared.weight", "encoder.embed_tokens.weight"]
        .map(|name| format!("{prefix}{name}"))
        .into_iter()
        .find(|name| parts.tensors.info(name).is_some())
        .unwrap_or_else(|| format!("{prefix}shared.weight"));
    let n_vocab = vocabulary_rows(parts, &embeddings, n_embd)?;
    let stored_head = format!("{prefix}lm_head.weight");
    let has_head = parts.tensors.info(&stored_head).is_some();
    // T5 1.0 multiplies the decoder's output by d_model^-0.5, which llama.cpp does not do:
    // the factor goes into the head. Flan-T5 has no factor, and says so by a head that is
    // not tied. transformers 5 writes down which it is, since it calls every head tied.
    let scaled = config
        .scale_decoder_outputs
        .unwrap_or(config.tie_word_embeddings != Some(false));
    let tied = !scaled && (!has_head || same_content(parts.tensors, &embeddings, &stored_head)?);

    let mut tensors = vec![OutputTensor::plain(
        "token_embd.weight",
        &embeddings,
        &[n_vocab, n_embd],
        if tied { Role::Output } else { Role::Matrix },
    )];
    let stack = Stack {
        prefix,
        n_embd,
        n_ff,
        n_head,
        inner: n_head * config.d_kv,
        buckets,
        gated,
    };
    stack.add(&mut tensors, "encoder", "enc", n_layers);
    stack.add(&mut tensors, "decoder", "dec", n_decoder_layers);
    if !tied {
        let head = OutputTensor::plain(
            "output.weight",
            if has_head { stored_head } else { embeddings },
            &[n_vocab, n_embd],
            Role::Output,
        );
        tensors.push(if scaled {
            head.scaled(Scale::Constant((n_embd as f32).powf(-0.5)))
        } else {
            head
        });
    }
    Ok(Graph {
        architecture: "t5",
        metadata,
        tensors,
        n_embd,
        n_vocab,
    })
}

/// What the encoder's and the decoder's blocks share.
struct Stack<'a> {
    prefix: &'a str,
    n_embd: usize,
    n_ff: usize,
    n_head: usize,
    /// Width of all heads together, which need not be that of the model.
    inner: usize,
    buckets: usize,
    gated: bool,
}

impl Stack<'_> {
    fn add(&self, tensors: &mut Vec<OutputTensor>, from: &str, to: &str, n_layers: usize) {
        let &Stack {
            prefix,
            n_embd,
            n_ff,
            inner,
            ..
        } = self;
        let is_decoder = to == "dec";
        for layer in 0..n_layers {
            let block = format!("{prefix}{from}.block.{layer}.layer");
            let mut add = |name: &str, source: String, shape: &[usize], role: Role| {
                tensors.push(OutputTensor::plain(
                    format!("{to}.blk.{layer}.{name}.weight"),
                    format!("{block}.{source}.weight"),
                    shape,
                    role,
                ));
            };
            let value = Role::AttentionValue { layer, n_layers };
            let mut attention = |name: &str, at: usize, source: &str| {
                let of = |leaf: &str| format!("{at}.{source}.{leaf}");
                add(
                    &format!("{name}_norm"),
                    format!("{at}.layer_norm"),
                    &[n_embd],
                    Role::Exact,
                );
                add(
                    &format!("{name}_q"),
                    of("q"),
                    &[inner, n_embd],
                    Role::Matrix,
                );
                add(
                    &format!("{name}_k"),
                    of("k"),
                    &[inner, n_embd],
                    Role::Matrix,
                );
                add(&format!("{name}_v"), of("v"), &[inner, n_embd], value);
                add(
                    &format!("{name}_o"),
                    of("o"),
                    &[n_embd, inner],
                    Role::Matrix,
                );
            };
            attention("attn", 0, "SelfAttention");
            if is_decoder {
                attention("cross_attn", 1, "EncDecAttention");
            }
            // Only the first block has a table, for the whole stack.
            if layer == 0 {
                add(
                    "attn_rel_b",
                    "0.SelfAttention.relative_attention_bias".to_owned(),
                    &[self.buckets, self.n_head],
                    Role::Exact,
                );
            }
            let at = if is_decoder { 2 } else { 1 };
            let dense = |leaf: &str| format!("{at}.DenseReluDense.{leaf}");
            add(
                "ffn_norm",
                format!("{at}.layer_norm"),
                &[n_embd],
                Role::Exact,
            );
            if self.gated {
                add("ffn_gate", dense("wi_0"), &[n_ff, n_embd], Role::Matrix);
                add("ffn_up", dense("wi_1"), &[n_ff, n_embd], Role::Matrix);
            } else {
                add("ffn_up", dense("wi"), &[n_ff, n_embd], Role::Matrix);
            }
            add(
                "ffn_down",
                dense("wo"),
                &[n_embd, n_ff],
                Role::FeedForwardDown {
                    layer,
                    n_layers,
                    wide_input: true,
                },
            );
        }
        tensors.push(OutputTensor::plain(
            format!("{to}.output_norm.weight"),
            format!("{prefix}{from}.final_layer_norm.weight"),
            &[n_embd],
            Role::Exact,
        ));
    }
}
