//! What is written of each picture.

use serde::{Deserialize, Serialize};

/// What is written of one picture. Its fields, in this order, are the JSON lines.
#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    /// The picture's name.
    pub image: String,
    /// The texts that fit.
    pub texts: Vec<Text>,
    /// Those that do not.
    pub dropped: Vec<Text>,
    /// Why there are none.
    pub error: Option<String>,
}

/// A text with its scores.
#[derive(Debug, Serialize, Deserialize)]
pub struct Text {
    /// As it is in the table, or as it was written.
    pub text: String,
    /// Where it came from.
    pub source: Source,
    /// The largest cosine of the picture's features and its own (ITC).
    pub similarity: f64,
    /// That it is the picture's (ITM).
    pub probability: f64,
}

/// Where a text came from.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The table.
    Web,
    /// The captioner.
    Synthetic,
}

impl Row {
    /// The row of a picture that was read.
    pub fn read(image: String, texts: Vec<Text>, dropped: Vec<Text>) -> Row {
        Row {
            image,
            texts,
            dropped,
            error: None,
        }
    }

    /// The row of one that was not.
    pub fn failed(image: String, error: String) -> Row {
        Row {
            image,
            texts: Vec::new(),
            dropped: Vec::new(),
            error: Some(error),
        }
    }
}
