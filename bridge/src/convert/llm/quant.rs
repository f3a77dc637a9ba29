//! Which element type each tensor of a language model gets: llama.cpp's mixtures
//! (`llama_tensor_get_type_impl` of `llama-quant.cpp`), as far as these architectures
//! reach.

use std::fmt;
use std::str::FromStr;

use crate::llama;

/// Precision of a language model's weights, by the names of llama.cpp's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum LlmQuant {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q6K,
    Q5KM,
    Q5KS,
    Q4KM,
    Q4KS,
    Iq4Nl,
    Q4_0,
}

impl LlmQuant {
    /// All of them, the most exact first.
    pub const ALL: [LlmQuant; 11] = [
        LlmQuant::F32,
        LlmQuant::Bf16,
        LlmQuant::F16,
        LlmQuant::Q8_0,
        LlmQuant::Q6K,
        LlmQuant::Q5KM,
        LlmQuant::Q5KS,
        LlmQuant::Q4KM,
        LlmQuant::Q4KS,
        LlmQuant::Iq4Nl,
        LlmQuant::Q4_0,
    ];

    /// The name, such as `Q4_K_M`.
    pub fn name(self) -> &'static str {
        match self {
            LlmQuant::F32 => "F32",
            LlmQuant::F16 => "F16",
            LlmQuant::Bf16 => "BF16",
            LlmQuant::Q8_0 => "Q8_0",
            LlmQuant::Q6K => "Q6_K",
            LlmQuant::Q5KM => "Q5_K_M",
            LlmQuant::Q5KS => "Q5_K_S",
            LlmQuant::Q4KM => "Q4_K_M",
            LlmQuant::Q4KS => "Q4_K_S",
            LlmQuant::Iq4Nl => "IQ4_NL",
            LlmQuant::Q4_0 => "Q4_0",
        }
    }

    /// `general.file_type`: llama.cpp's `llama_ftype`.
    pub(in crate::convert) fn file_type(self) -> u32 {
        match self {
            LlmQuant::F32 => 0,
            LlmQuant::F16 => 1,
            LlmQuant::Q4_0 => 2,
            LlmQuant::Q8_0 => 7,
            LlmQuant::Q4KS => 14,
            LlmQuant::Q4KM => 15,
            LlmQuant::Q5KS => 16,
            LlmQuant::Q5KM => 17,
            LlmQuant::Q6K => 18,
            LlmQuant::Iq4Nl => 25,
            LlmQuant::Bf16 => 32,
        }
    }

    fn default_type(self) -> TensorType {
        match self {
            LlmQuant::F32 => TensorType::F32,
            LlmQuant::F16 => TensorType::F16,
            LlmQuant::Bf16 => TensorType::Bf16,
            LlmQuant::Q8_0 => TensorType::Q8_0,
            LlmQuant::Q6K => TensorType::Q6K,
            LlmQuant::Q5KM | LlmQuant::Q5KS => TensorType::Q5K,
            LlmQuant::Q4KM | LlmQuant::Q4KS => TensorType::Q4K,
            LlmQuant::Iq4Nl => TensorType::Iq4Nl,
            LlmQuant::Q4_0 => TensorType::Q4_0,
        }
    }

    /// The type of a matrix with `cols` columns.
    pub(super) fn tensor_type(self, role: Role, cols: usize) -> TensorType {
        let default = self.default_type();
        if role == Role::Exact {
            return TensorType::F32;
        }
        if !default.is_quantized() {
            return match (self, role) {
                (
                    LlmQuant::F16,
                    Role::FeedForwardDown {
                        wide_input: true, ..
                    },
                ) => TensorType::F32,
                _ => default,
            };
        }
        let chosen = match role {
            Role::Output if self == LlmQuant::Q8_0 || !default.divides(cols) => TensorType::Q8_0,
            Role::Output => TensorType::Q6K,
            Role::AttentionValue { layer, n_layers } => match self {
                LlmQuant::Q4KM | LlmQuant::Q5KM if use_more_bits(layer, n_layers) => {
                    TensorType::Q6K
                }
                LlmQuant::Q4KS if layer < 4 => TensorType::Q5K,
                _ => default,
            },
            Role::FeedForwardDown {
                layer, n_layers, ..
            } => match self {
                LlmQuant::Q4KM | LlmQuant::Q5KM if use_more_bits(layer, n_layers) => {
                    TensorType::Q6K
                }
                LlmQuant::Q4KS | LlmQuant::Iq4Nl if layer < n_layers / 8 => TensorType::Q5K,
                _ => default,
            },
            Role::Exact | Role::Matrix => default,
        };
        chosen.or_narrower_blocks(cols)
    }
}

impl fmt::Display for LlmQuant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for LlmQuant {
    type Err = String;

    /// In either case: `Q4_K_M` or `q4_k_m`.
    fn from_str(text: &str) -> Result<Self, String> {
        LlmQuant::ALL
            .into_iter()
            .find(|quant| quant.name().eq_ignore_ascii_case(text))
            .ok_or_else(|| {
                let names: Vec<_> = LlmQuant::ALL.iter().map(|quant| quant.name()).collect();
                format!("{text}: not a precision; there are {}", names.join(", "))
            })
    }
}

/// The first and last eighth of the layers and every third between.
fn use_more_bits(layer: usize, n_layers: usize) -> bool {
    let eighth = n_layers / 8;
    layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2
}

/// What a tensor is for, as far as its type depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Norms, biases, positions: small, kept in f32.
    Exact,
    /// The head, or token embeddings that are the head as well.
    Output,
    /// What gives attention its values: `attn_v` or the fused `attn_qkv`.
    AttentionValue { layer: usize, n_layers: usize },
    /// The feed-forward's way back.
    FeedForwardDown {
        layer: usize,
        n_layers: usize,
        /// Its input may lie beyond f16, and with weights in f16 llama.cpp's CPU backend
        /// rounds the input to f16 as well.
        wide_input: bool,
    },
    /// Any other matrix.
    Matrix,
}

/// Element type of a tensor in a GGUF; the numbers are `ggml_type` of `ggml.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum TensorType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q4K = 12,
    Q5K = 13,
    Q6K = 14,
    Iq4Nl = 20,
    Bf16 = 30,
}

impl TensorType {
    /// Elements in a block.
    fn block(self) -> usize {
        match self {
            TensorType::F32 | TensorType::F16 | TensorType::Bf16 => 1,
            TensorType::Q4_0
            | TensorType::Q5_0
            | TensorType::Q5_1
            | TensorType::Q8_0
            | TensorType::Iq4Nl => 32,
            TensorType::Q4K | TensorType::Q5K | TensorType::Q6K => 256,
        }
    }

    fn is_quantized(self) -> bool {
        self.block() > 1
    }

    fn divides(self, cols: usize) -> bool {
        cols.is_multiple_of(self.block())
    }

    /// llama.cpp's substitute where blocks do not fill a row.
    fn or_narrower_blocks(self, cols: usize) -> TensorType {
        if self.divides(cols) {
            return self;
        }
        let narrower = match self {
            TensorType::Q4K => TensorType::Q5_0,
            TensorType::Q5K => TensorType::Q5_1,
            TensorType::Q6K => TensorType::Q8_0,
            other => other,
        };
        if narrower.divides(cols) {
            narrower
        } else {
            TensorType::F16
        }
    }

    /// Bytes of a row of `cols` elements, which whole blocks must fill.
    pub fn row_bytes(self, cols: usize) -> usize {
        let (block, bytes) = llama::type_layout(self as u32).unwrap_or((1, 4));
        cols / block as usize * bytes as usize
    }

    /// The largest element that survives: scales of blocks are f16.
    pub fn max(self) -> f32 {
        match self {
            TensorType::F32 | TensorType::Bf16 => f32::MAX,
            _ => 65504.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn down(layer: usize) -> Role {
        Role::FeedForwardDown {
            layer,
            n_layers: 32,
            wide_input: true,
        }
    }

    #[test]
    fn blocks_are_those_of_ggml() {
        for kind in [
            TensorType::F32,
            TensorType::F16,
            TensorType::Bf16,
            TensorType::Q4_0,
            TensorType::Q5_0,
            TensorType::Q5_1,
            TensorType::Q8_0,
            TensorType::Q4K,
            TensorType::Q5K,
            TensorType::Q6K,
            TensorType::Iq4Nl,
        ] {
            let (block, _) = llama::type_layout(kind as u32).unwrap();
            assert_eq!(block as usize, kind.block(), "{kind:?}");
        }
    }

    #[test]
    fn q4_k_m_spends_more_on_the_outer_layers() {
        let kinds: Vec<_> = (0..32)
            .map(|layer| LlmQuant::Q4KM.tensor_type(down(layer), 4096))
            .collect();
        let six_bits: Vec<_> = (0..32)
            .filter(|&layer| kinds[layer] == TensorType::Q6K)
            .collect();
        // As `llama-quantize` leaves a Llama of 32 layers.
        assert_eq!(
            six_bits,
            [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
        );
        assert_eq!(
            LlmQuant::Q4KM.tensor_type(Role::Matrix, 4096),
            TensorType::Q4K
        );
        assert_eq!(
            LlmQuant::Q4KM.tensor_type(Role::Output, 4096),
            TensorType::Q6K
        );
    }

    #[test]
    fn rows_that_blocks_do_not_fill() {
        for (cols, expected) in [
            (256, TensorType::Q4K),
            (96, TensorType::Q5_0),
            (40, TensorType::F16),
        ] {
            assert_eq!(LlmQuant::Q4KM.tensor_type(Role::Matrix, cols), expected);
        }
        assert_eq!(
            LlmQuant::Q6K.tensor_type(Role::Output, 96),
            TensorType::Q8_0
        );
        assert_eq!(
            LlmQuant::Q4_0.tensor_type(Role::Output, 96),
            TensorType::Q8_0
        );
    }

    #[test]
    fn what_may_overflow_f16_stays_f32() {
        assert_eq!(LlmQuant::F16.tensor_type(down(0), 64), TensorType::F32);
        assert_eq!(LlmQuant::Bf16.tensor_type(down(0), 64), TensorType::Bf16);
        assert_eq!(LlmQuant::F16.tensor_type(Role::Matrix, 64), TensorType::F16);
    }

    #[test]
    fn names_read_back() {
        for quant in LlmQuant::ALL {
            assert_eq!(quant.name().to_lowercase().parse(), Ok(quant));
        }
        let error = "Q3_K".parse::<LlmQuant>().unwrap_err();
        assert!(error.contains("Q4_K_M"), "{error}");
    }
}
