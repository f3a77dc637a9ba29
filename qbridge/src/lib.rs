//! Questions about pictures, answered by any GGUF language model, from Rust.
//!
//! A [`Model`] is a bundle at work, as `qbridge pull`, `qbridge convert` or `make demo-bundle` make one. Clones of it
//! are the same model: requests from many tasks are computed together, [`DEFAULT_SLOTS`] at once where
//! [`ModelOptions::slots`] does not say otherwise. Any async runtime will do: who asks lays out the prompt, and
//! everything else is done on threads of the model's own.
//!
//! ```
//! use qbridge::{Model, Picture};
//!
//! # qbridge_tests::on_the_demo(async |bundle: std::path::PathBuf, pictures: std::path::PathBuf| {
//! let model = Model::open(bundle).await?;
//! let penguin = Picture::open(pictures.join("penguin.png"))?;
//!
//! println!("{}", model.caption(penguin.clone()).await?);
//! assert_eq!(model.ask(penguin, "What is this?").await?, "a penguin");
//! # Ok(()) });
//! ```
//!
//! A [`Request`] says more: several pictures among the text, earlier turns, a system text, how to choose tokens, a JSON
//! Schema. [`Model::stream`] gives the text as it comes, and dropping what it returns, or any of the futures here, stops
//! the work within one token. [`Model::rank`] tells which of some given answers is the likeliest.
//!
//! ```
//! use std::collections::HashSet;
//! use qbridge::{Format, Generation, Model, Picture, Request};
//!
//! # qbridge_tests::on_the_demo(async |bundle: std::path::PathBuf, pictures: std::path::PathBuf| {
//! # let model = Model::open(bundle).await?;
//! let dog = Picture::open(pictures.join("dog.png"))?;
//! let request = Request::new()
//!     .picture(dog)
//!     .text("What is this?")
//!     .answered("a dog")
//!     .text("Is this an animal?")
//!     .generation(Generation { max_tokens: Some(8), ..Generation::default() });
//!
//! let mut stream = model.stream(request.clone()).await?;
//! while let Some(text) = stream.next().await {
//!     print!("{}", text?);
//! }
//! let answer = stream.finish().await?;
//! assert!(answer.usage.completion_tokens <= 8);
//!
//! let ranked = model.rank(request.clone(), ["yes", "no", "a bicycle"]).await?;
//! let texts: HashSet<&str> = ranked.iter().map(|candidate| candidate.text.as_str()).collect();
//! assert_eq!(texts, HashSet::from(["yes", "no", "a bicycle"]));
//! assert!(ranked[0].logprob >= ranked[1].logprob);
//!
//! let schema = serde_json::json!({
//!     "type": "object",
//!     "properties": { "animal": { "type": "boolean" } },
//!     "required": ["animal"],
//!     "additionalProperties": false,
//! });
//! let request = request
//!     .generation(Generation::default())
//!     .format(Format::JsonSchema(schema));
//! let json: serde_json::Value = serde_json::from_str(&model.answer(request).await?.text)?;
//! assert!(json["animal"].is_boolean());
//! # Ok(()) });
//! ```
//!
//! llama.cpp's threads spin while they wait for each other, which costs many times the time where the machine is busy with
//! something else. GNU OpenMP reads its settings before `main`: start programs with `GOMP_SPINCOUNT=1000`, as the program
//! `qbridge` starts itself.
//!
//! Everything that can go wrong is an [`Error`], whose message says what to do about it; [`Error::kind`] tells apart
//! what a program answers differently.

mod generation;
mod model;
mod picture;
mod rank;
mod request;
mod stream;

pub use bridge::bundle::Manifest;
pub use bridge::constraint::Format;
pub use bridge::engine::{CacheType, FlashAttention};
pub use bridge::event::{FinishReason, Timings, Usage};
pub use bridge::language_model::{LanguageModelOptions, SplitMode};
pub use bridge::model::ModelOptions;
pub use bridge::{Error, ErrorKind, Result};
pub use generation::Generation;
pub use model::{DEFAULT_SLOTS, Model};
pub use picture::Picture;
pub use rank::{Candidate, Ranking};
pub use request::Request;
pub use stream::{Answer, AnswerStream};
