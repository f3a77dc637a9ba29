//! How each model family lays out text and pictures in a prompt.
//!
//! Layouts are data ([`Layout`]): a preset by name, or a table in a bundle's manifest. [`Layout::render`] turns a
//! conversation into [`Segment`]s: text, pictures' places and the few tokens that have no text. Text that a user wrote
//! is kept apart from text of the layout, so that nobody can forge a turn by typing `<|im_end|>`; see
//! [`join`] for how to tokenize the two without changing the tokens of honest text.
//!
//! This crate knows nothing of tokenizers, tensors or llama.cpp.
//!
//! ```
//! use prompts::{Layout, Message, Part, Role, Segment, SpecialToken};
//! let layout = Layout::preset("blip2-opt")?;
//! let question = Message { role: Role::User, parts: vec![Part::Image(0), Part::Text("which city is this?".into())] };
//! let segments = layout.render(&[question], None)?;
//! assert_eq!(segments, [
//!     Segment::Image(0),
//!     Segment::Token(SpecialToken::Bos),
//!     Segment::text("Question: which city is this? Answer:"),
//! ]);
//! # Ok::<(), prompts::Error>(())
//! ```

mod calls;
mod chat_template;
mod error;
mod join;
mod layout;
mod marks;
mod message;
mod segment;
mod tools;
mod turns;

pub use calls::{CallReader, Said};
pub use chat_template::{ChatTemplate, ChatTemplateLayout};
pub use error::{Error, Result};
pub use join::join;
pub use layout::{ImagePosition, Layout, PRESETS};
pub use message::{Message, Part, Role, check_images};
pub use segment::{Segment, SpecialToken};
pub use tools::{CallSyntax, Tool, ToolCall};
pub use turns::TurnsLayout;
