//! What is written of each question, and of how all were asked.

use bridge::event::{FinishReason, Usage};
use eval::Id;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// How lines begin.
pub const BEGINNINGS: [&str; 2] = [r#"{"settings":{"#, r#"{"id":"#];

/// One line of the answers. The first says how they came about; those of several files may follow each other.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "neither settings nor an answer")]
pub enum Line {
    /// How the questions were asked, as [`super::settings::Settings`] writes it.
    Settings {
        /// Name and value of each setting.
        settings: Map<String, Value>,
    },
    /// An answer.
    Row(Row),
}

/// What is written of one question. Its fields, in this order, are the JSON lines.
#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    /// Of the question, or of the picture where there is none.
    pub id: Id,
    /// File name of the picture.
    pub image: String,
    /// The question, where there is one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub question: String,
    /// The answer, or caption; none where it failed.
    pub answer: Option<String>,
    /// Why there is no answer.
    pub error: Option<String>,
    /// Why the answer ended.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<FinishReason>,
    /// Rows and tokens.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}
