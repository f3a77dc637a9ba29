//! The field's benchmarks: their published files, the prompts and settings of the papers, and scores equal
//! to those of their official scorers.
//!
//! Nothing here knows of a model: questions come out ([`Dataset`]), answers go in ([`Answers`]), and
//! [`score`] says how good they are.
//!
//! ```
//! use eval::vqa::{HumanAnswer, accuracy};
//! let human: Vec<HumanAnswer> = (0..10)
//!     .map(|i| HumanAnswer::new(if i < 3 { "two" } else { "many" }, i))
//!     .collect();
//! // Two dogs: three people said so, and one of ten is left out in turn.
//! assert_eq!(accuracy("2", &human), 0.0); // people's number words stay words
//! assert!((accuracy("many.", &human) - 1.0).abs() < 1e-9);
//! ```

mod answers;
pub mod bootstrap;
pub mod caption;
mod dataset;
mod error;
pub mod gqa;
mod json;
pub mod pope;
pub mod preset;
mod report;
pub mod retrieval;
mod table;
pub mod text;
pub mod textvqa;
pub mod vqa;

pub use answers::Answers;
pub use dataset::{Dataset, Files, Record, Reference, Task};
pub use error::{Error, Result};
pub use json::Id;
pub use report::{Metric, Report, score};
