//! From the bytes of a picture to query embeddings: preprocessing, a frozen
//! ViT and the Q-Former of BLIP-2 (Li et al. 2023, arXiv:2301.12597) on candle.
//!
//! Layers keep the names of transformers' `Blip2ForConditionalGeneration`, so
//! that its checkpoints load as they are, and compute what it computes in f32.
//! [`Stage1`] has the heads of the first stage: features, matching, captions.
//!
//! ```no_run
//! use candle_core::{DType, Device, Tensor};
//! use qformer::Encoder;
//! use qformer::checkpoint::{Checkpoint, Compute};
//! use qformer::config::Blip2Config;
//! # fn main() -> qformer::Result<()> {
//! let dir = std::path::Path::new("blip2-opt-2.7b");
//! let config = Blip2Config::read(dir)?;
//! let encoder = Encoder::load(
//!     &Checkpoint::open(dir)?,
//!     &config.vision_config,
//!     &config.qformer_config,
//!     config.num_query_tokens,
//!     &Compute::on(&Device::Cpu),
//! )?;
//! let pixels = Tensor::zeros((1, 3, 224, 224), DType::F32, &Device::Cpu)?;
//! let queries = encoder.encode(&pixels)?.queries; // [1, 32, 768]
//! # Ok(())
//! # }
//! ```

mod attention;
pub mod beam;
mod bert;
pub mod blip;
mod block;
pub mod checkpoint;
pub mod clip;
pub mod config;
mod embeddings;
mod encoder;
mod error;
mod features;
pub mod generate;
pub mod image;
mod int8;
mod kernels;
pub mod lavis;
mod linear;
pub mod mask;
pub mod model;
mod norm;
pub mod operations;
pub mod positions;
pub mod preprocess;
mod product;
mod resize;
pub mod stage1;
mod tiles;
pub mod vision;
pub mod wordpiece;
mod workers;

pub use encoder::{Encoder, Encoding, JOINED_PATCHES, joined_patches};
pub use error::{Error, Result};
pub use linear::by_candle;
pub use mask::Mask;
pub use stage1::Stage1;
pub use wordpiece::WordPiece;
