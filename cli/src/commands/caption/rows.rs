//! What is written of each picture.

use bridge::event::{FinishReason, Usage};
use serde::{Deserialize, Serialize};

/// What is written of one picture. Its fields, in this order, are the JSON lines; CSV and Parquet have those that are read back.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The picture's name.
    pub image: String,
    /// The caption, the best of several; none where the picture failed or no caption scored enough.
    pub caption: Option<String>,
    /// Why the picture has no caption, or no file beside it.
    pub error: Option<String>,
    /// The caption's score, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// WebDataset's key of a picture in a tar shard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// All captions, best first, where several were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captions: Option<Vec<String>>,
    /// Their scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scores: Option<Vec<f64>>,
    /// Why the caption ended.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<FinishReason>,
    /// Rows and tokens, of all captions.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

impl Row {
    /// The row of a picture that failed.
    pub fn failed(image: String, key: Option<String>, error: String) -> Row {
        Row {
            image,
            key,
            error: Some(error),
            ..Row::default()
        }
    }

    /// All captions, best first.
    pub fn captions(&self) -> &[String] {
        match &self.captions {
            Some(captions) => captions,
            None => self.caption.as_slice(),
        }
    }
}
