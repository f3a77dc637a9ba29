//! Where a conversion finds its tensors.

use std::path::PathBuf;

use qformer::checkpoint::Checkpoint;
use safetensors::Dtype;

use crate::Result;

/// What is known of a tensor before its elements are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// The file that holds it.
    pub path: PathBuf,
}

/// Tensors by name, read piece by piece: a tensor of a large model does not fit into
/// what a conversion may use of memory.
pub trait TensorSource {
    /// The tensor's header, or `None` where there is no such tensor.
    fn info(&self, name: &str) -> Option<TensorInfo>;

    /// Fills `buffer` with the tensor's bytes from `offset` on: elements little-endian,
    /// innermost dimension contiguous.
    ///
    /// # Errors
    /// There is no such tensor, it has fewer bytes, or its file cannot be read.
    fn read(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// The files, for messages.
    fn describe(&self) -> String;
}

impl TensorSource for Checkpoint {
    fn info(&self, name: &str) -> Option<TensorInfo> {
        let raw = self.raw(name).ok()?;
        Some(TensorInfo {
            dtype: raw.dtype,
            shape: raw.shape.to_vec(),
            path: raw.path.to_owned(),
        })
    }

    fn read(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        Ok(self.raw(name)?.read_at(offset, buffer)?)
    }

    fn describe(&self) -> String {
        self.describe()
    }
}
