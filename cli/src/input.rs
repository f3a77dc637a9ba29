//! Pictures from files or standard input, never more bytes than allowed.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use qformer::image::ImageLimits;

/// Reads a picture file's bytes; `-` is standard input.
///
/// # Errors
/// The file cannot be read or is over the limit of bytes.
pub fn read_image(path: &Path) -> Result<Arc<[u8]>> {
    let limit = ImageLimits::default().max_bytes as u64;
    let mut bytes = Vec::new();
    let n = if path == Path::new("-") {
        std::io::stdin()
            .lock()
            .take(limit + 1)
            .read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| {
            if file.metadata()?.is_dir() {
                return Err(std::io::Error::from(std::io::ErrorKind::IsADirectory));
            }
            file.take(limit + 1).read_to_end(&mut bytes)
        })
    }
    .with_context(|| path.display().to_string())?;
    if n as u64 > limit {
        bail!(
            "{}: over {limit} bytes, the limit for a picture file",
            path.display()
        );
    }
    Ok(bytes.into())
}
