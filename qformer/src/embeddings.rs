//! Embeddings of tokens and of their places.

use candle_core::Tensor;

use crate::{Error, Result};

#[derive(Debug)]
pub(crate) struct TokenEmbeddings {
    /// `[vocab_size, width]`.
    words: Tensor,
    /// `[positions, width]`.
    positions: Tensor,
}

impl TokenEmbeddings {
    /// From `words` `[vocab_size, width]` and `positions` `[positions, width]`.
    pub fn new(words: Tensor, positions: Tensor) -> Self {
        Self { words, positions }
    }

    /// Token ids of texts, none of them empty, to `[texts, longest text, width]`, padded on the
    /// right with what means nothing.
    pub fn texts(&self, texts: &[impl AsRef<[u32]>]) -> Result<Tensor> {
        let texts = texts.iter().map(AsRef::as_ref);
        if texts.len() == 0 || texts.clone().any(<[u32]>::is_empty) {
            return Err(refused("there is none, or one without tokens".to_owned()));
        }
        let longest = texts.clone().map(<[u32]>::len).max().unwrap_or(0);
        let mut ids = vec![0; texts.len() * longest];
        for (row, text) in ids.chunks_exact_mut(longest).zip(texts) {
            row[..text.len()].copy_from_slice(text);
        }
        self.rows(&ids, longest, 0)
    }

    /// Token ids, `length` of each text, to `[texts, length, width]`; the first of each stands
    /// at `position`.
    pub fn rows(&self, ids: &[u32], length: usize, position: usize) -> Result<Tensor> {
        let (vocab_size, width) = self.words.dims2()?;
        let (n_tokens, positions) = (position + length, self.positions.dim(0)?);
        if n_tokens > positions {
            return Err(refused(format!(
                "{n_tokens} tokens, and the model has {positions} positions"
            )));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab_size) {
            return Err(refused(format!(
                "token {id}, and the model has {vocab_size} word embeddings"
            )));
        }
        let texts = ids.len() / length;
        let ids = Tensor::new(ids, self.words.device())?;
        let words = self.words.index_select(&ids, 0)?;
        let words = words.reshape((texts, length, width))?;
        Ok(words.broadcast_add(&self.positions.narrow(0, position, length)?)?)
    }
}

fn refused(reason: String) -> Error {
    Error::Text { reason }
}
