//! From query embeddings to an answer: projection, soft prompts, the llama.cpp
//! engine, and bundles (one directory, one model).
//!
//! `bridge` knows nothing of HTTP or of the command line; both drive it through
//! [`model::Model`], and bundles without a language model through
//! [`matcher::Matcher`], or, for many who ask at once, [`retriever::Retriever`].

pub mod bundle;
mod cache;
pub mod constraint;
pub mod convert;
pub mod engine;
mod error;
pub mod event;
mod gguf;
pub mod image_encoder;
pub mod language_model;
pub mod llama;
pub mod matcher;
pub mod model;
pub mod plan;
pub mod projection;
mod prompt;
pub mod retriever;
pub mod stages;
mod turns;
mod vision_worker;

pub use error::{Error, ErrorKind, Result};
