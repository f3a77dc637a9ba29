//! A language model with a LoRA merged into it: `W + (alpha / rank) B A`.

use std::collections::BTreeMap;
use std::path::Path;

use qformer::lavis::LowRank;
use safetensors::Dtype;

use super::{TensorInfo, TensorSource};
use crate::{Error, Result};

/// The tensors of `base`, those that the LoRA changes in f32: rounded to the
/// base's f16 again, small changes would be lost.
pub(super) struct Merged<'a> {
    base: &'a dyn TensorSource,
    changes: &'a BTreeMap<String, LowRank>,
}

impl<'a> Merged<'a> {
    /// # Errors
    /// A tensor that the LoRA changes is not in `base`, the language model at
    /// `path`, or has another shape.
    pub fn new(
        base: &'a dyn TensorSource,
        changes: &'a BTreeMap<String, LowRank>,
        path: &Path,
    ) -> Result<Self> {
        for (name, change) in changes {
            let found = base.info(name);
            let fits = found.as_ref().is_some_and(|info| {
                info.shape == change.shape()
                    && matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
            });
            if !fits {
                let found = found.map_or("no such tensor".to_owned(), |info| {
                    format!("{:?} of {:?}", info.shape, info.dtype)
                });
                return Err(Error::Convert {
                    path: path.to_owned(),
                    reason: format!(
                        "the LoRA changes {name} of shape {:?}, and here is {found}: give the language model \
                         that it was trained with (Llama-2-7b-chat for MiniGPT-v2)",
                        change.shape()
                    ),
                });
            }
        }
        Ok(Self { base, changes })
    }
}

impl TensorSource for Merged<'_> {
    fn info(&self, name: &str) -> Option<TensorInfo> {
        let mut info = self.base.info(name)?;
        if self.changes.contains_key(name) {
            info.dtype = Dtype::F32;
        }
        Some(info)
    }

    fn read(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let Some(change) = self.changes.get(name) else {
            return self.base.read(name, offset, buffer);
        };
        let stored = self.base.info(name);
        let dtype = stored.map_or(Dtype::F32, |info| info.dtype);
        // Elements that the bytes asked for lie in.
        let start = offset as usize / 4;
        let end = (offset as usize + buffer.len()).div_ceil(4);
        let width = dtype.bitsize() / 8;
        let mut bytes = vec![0; (end - start) * width];
        self.base.read(name, (start * width) as u64, &mut bytes)?;
        let mut values = qformer::checkpoint::to_f32(&bytes, dtype);
        change.add_to(start, &mut values);
        let merged: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let skipped = offset as usize - 4 * start;
        buffer.copy_from_slice(&merged[skipped..][..buffer.len()]);
        Ok(())
    }

    fn describe(&self) -> String {
        self.base.describe()
    }
}
