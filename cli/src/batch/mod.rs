//! What commands share that work through many pictures, each of which becomes a row: nothing is lost, nothing
//! stops for one of them.
//!
//! - `answers`: reads a model's answers, and tells failures of one picture from failures of all
//! - `done`: what an earlier run has done
//! - `file`: a file of whole rows that a later run goes on with
//! - `lines`: rows as JSON lines
//! - `progress`: how far it is, and what it did
//! - `settings`: what all rows of one output were asked with
//! - `shard`: one of several parts of the work
//! - `stop`: being stopped, and how to go on

mod answers;
mod done;
mod file;
pub mod lines;
mod progress;
mod settings;
mod shard;
mod stop;

pub use answers::{Answers, Choice, Failure, LOOK_AHEAD, collect, context, read_image, tell};
pub use done::Done;
pub use file::{Existing, RowFile, has_content};
pub use progress::{Progress, Tally, set_total};
pub use settings::{Settings, check_settings, read_back};
pub use shard::{NameHash, hash};
pub use stop::{how_to_go_on, watch_signals};
