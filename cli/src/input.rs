//! Pictures from files or standard input, never more bytes than allowed.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use qbridge::Picture;
use qformer::image::ImageLimits;

/// Reads a picture file's bytes; `-` is standard input.
///
/// # Errors
/// The file cannot be read or is over the limit of bytes.
pub fn read_image(path: &Path) -> Result<Arc<[u8]>> {
    let limit = ImageLimits::default().max_bytes as u64;
    let mut bytes = Vec::new();
    let n = if path == Path::new("-") {
        io::stdin().lock().take(limit + 1).read_to_end(&mut bytes)
    } else {
        open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
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

/// Reads a picture file, to be asked about.
///
/// # Errors
/// As of [`open`], with the path, or more bytes than the limit.
pub fn picture(path: &Path) -> qbridge::Result<Picture> {
    let read = open(path).and_then(Picture::read);
    read.map_err(|source| qbridge::Error::Io {
        path: path.to_owned(),
        source,
    })
}

/// Where a shell, or whoever started this program, names what it has open: pipes there have somebody at their other end.
const OPEN_ALREADY: [&str; 4] = [
    "/dev/stdin",
    "/dev/fd",
    "/proc/self/fd",
    "/proc/thread-self/fd",
];

/// Opens a file. Anything else is refused before it is opened: whoever opens a named pipe waits for its other end, perhaps
/// for ever.
///
/// # Errors
/// It is no file, or cannot be opened.
pub fn open(path: &Path) -> io::Result<File> {
    let kind = path.metadata()?.file_type();
    if kind.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let is_open_already = || OPEN_ALREADY.iter().any(|place| path.starts_with(place));
    if !kind.is_file() && !is_open_already() {
        return Err(io::Error::other(
            "this is no file but a pipe or a device; - reads standard input",
        ));
    }
    File::open(path)
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_named_pipe_is_refused_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        let error = format!("{:#}", read_image(&path).unwrap_err());
        assert!(
            error.contains("a.png") && error.contains("no file"),
            "{error}"
        );
        let link = dir.path().join("b.png");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(read_image(&link).is_err());
        std::fs::write(dir.path().join("c.png"), "bytes").unwrap();
        assert_eq!(&*read_image(&dir.path().join("c.png")).unwrap(), b"bytes");
        assert!(read_image(dir.path()).is_err());
    }
}
