//! The bytes of picture files.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use qformer::image::{ImageLimits, MAX_BYTES, decode};

use crate::{Error, Result};

/// A picture file (PNG, JPEG, WebP, GIF, BMP, TIFF), still encoded. Clones share the bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Picture(Arc<[u8]>);

impl Picture {
    /// Reads a file. Whether it is a picture shows when it is asked about, or by [`Picture::check`].
    ///
    /// # Errors
    /// [`Error::Io`] with the path when the file cannot be read; more than 20 MiB are not read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = |source| Error::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.is_dir() {
            return Err(io(std::io::ErrorKind::IsADirectory.into()));
        }
        Self::read(file).map_err(io)
    }

    /// Reads a picture to its end, and no further than the limit of bytes.
    ///
    /// # Errors
    /// The reader fails, or has more than 20 MiB.
    pub fn read(reader: impl Read) -> std::io::Result<Self> {
        let mut bytes = Vec::new();
        reader.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > MAX_BYTES {
            return Err(std::io::Error::new(
                std::io::ErrorKind::FileTooLarge,
                format!("over {MAX_BYTES} bytes, the limit for a picture file"),
            ));
        }
        Ok(Self(bytes.into()))
    }

    /// Decodes the picture and throws the pixels away: to find, of several, the one at fault.
    ///
    /// # Errors
    /// It cannot be decoded, or is over a limit.
    pub fn check(&self) -> Result<()> {
        decode(&self.0, &ImageLimits::default())?;
        Ok(())
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> &Arc<[u8]> {
        &self.0
    }
}

impl From<Vec<u8>> for Picture {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<Arc<[u8]>> for Picture {
    fn from(bytes: Arc<[u8]>) -> Self {
        Self(bytes)
    }
}
