//! What is written of each picture.

use std::collections::HashMap;

use bridge::event::{FinishReason, Usage};
use serde::{Deserialize, Serialize};

use crate::batch::{NameHash, hash};

/// What is written of one picture. Its fields, in this order, are the JSON lines; CSV and Parquet have those that are read back.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The picture's name.
    pub image: String,
    /// The caption, the best of several; none where the picture failed or no caption scored enough.
    pub caption: Option<String>,
    /// Why the picture has no caption, where it failed.
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

/// The rows of an earlier run, by their names, some 40 bytes each. A picture that is named twice has two rows.
#[derive(Debug, Default)]
pub struct Done {
    rows: HashMap<NameHash, u32>,
    /// Rows in all.
    pub count: u64,
    /// Those with an error among them.
    pub errors: u64,
}

impl Done {
    /// Counts a row.
    pub fn add(&mut self, row: &Row) {
        *self.rows.entry(hash(&row.image)).or_default() += 1;
        self.count += 1;
        self.errors += u64::from(row.error.is_some());
    }

    /// Whether the next picture of this name has its row.
    pub fn take(&mut self, name: &str) -> bool {
        match self.rows.get_mut(&hash(name)) {
            Some(rows) if *rows > 0 => {
                *rows -= 1;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_done_as_often_as_it_has_rows() {
        let mut done = Done::default();
        for (name, error) in [("a", None), ("b", Some("broken".to_owned())), ("a", None)] {
            done.add(&Row {
                image: name.to_owned(),
                error,
                ..Row::default()
            });
        }
        assert_eq!((done.count, done.errors), (3, 1));
        let taken = ["a", "c", "a", "a", "b", "b"].map(|name| done.take(name));
        assert_eq!(taken, [true, false, true, false, true, false]);
    }
}
