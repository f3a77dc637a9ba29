//! Where pictures come from: files, directories, patterns, lists, tar shards, Parquet files and URLs, one after the other
//! and none of them held in memory.

mod directory;
pub mod feed;
mod load;
pub mod parquet;
mod pattern;
mod tar;

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use load::Loader;

use pattern::Expansion;

/// Ends of the names of pictures, as directories and archives are searched for them. A file that is named itself may be
/// called anything.
const PICTURE_EXTENSIONS: [&str; 8] = ["bmp", "gif", "jpeg", "jpg", "png", "tif", "tiff", "webp"];

/// A picture that was found.
#[derive(Debug, Clone)]
pub struct Item {
    /// What it is called in the output: its path or URL, `ARCHIVE/MEMBER`, or `FILE.parquet#ROW`.
    pub name: String,
    /// What WebDataset calls it, where it is a tar shard's.
    pub key: Option<String>,
    /// Its text, where it is a row of a table that has one.
    pub text: Option<String>,
    /// Where its bytes are.
    pub picture: Picture,
}

/// Where a picture's bytes are.
#[derive(Debug, Clone)]
pub enum Picture {
    /// In a file of its own.
    File(PathBuf),
    /// Here.
    Bytes(Arc<[u8]>),
    /// At an http or https URL.
    Url(String),
    /// Nowhere, and why.
    Unreadable(String),
}

/// Who is told of pictures as they are found.
pub trait Visitor {
    /// Whether the next picture's bytes are wanted. Each picture is asked for once, in an order that depends on the inputs
    /// alone.
    fn wants(&mut self, name: &str) -> bool;
    /// Takes a picture that was wanted; `Break` ends the walk.
    fn take(&mut self, item: Item) -> ControlFlow<()>;
}

/// What the command line names.
#[derive(Debug, Clone)]
pub struct Inputs {
    inputs: Vec<OsString>,
    separator: u8,
    image_column: Option<String>,
}

impl Inputs {
    /// The inputs as typed. `is_null_ended` is of the entries of a list on standard input, `image_column` of Parquet
    /// files.
    pub fn new(inputs: &[OsString], is_null_ended: bool, image_column: Option<&str>) -> Inputs {
        Inputs {
            inputs: inputs.to_vec(),
            separator: if is_null_ended { 0 } else { b'\n' },
            image_column: image_column.map(str::to_owned),
        }
    }

    fn list(&self, list: &mut dyn BufRead, visitor: &mut dyn Visitor) -> ControlFlow<()> {
        loop {
            let mut entry = Vec::new();
            match list.read_until(self.separator, &mut entry) {
                Ok(0) => return ControlFlow::Continue(()),
                Ok(_) => {}
                Err(error) => {
                    unreadable(visitor, "-", error)?;
                    return ControlFlow::Continue(());
                }
            }
            if entry.last() == Some(&self.separator) {
                entry.pop();
            }
            if self.separator == b'\n' && entry.last() == Some(&b'\r') {
                entry.pop();
            }
            if !entry.is_empty() {
                self.input(&os_string(entry), visitor)?;
            }
        }
    }

    fn input(&self, input: &OsStr, visitor: &mut dyn Visitor) -> ControlFlow<()> {
        if let Some(url) = url(input) {
            return offer(visitor, url, None, || Picture::Url(url.to_owned()));
        }
        let path = Path::new(input);
        let pattern = input.to_str().filter(|text| text.contains(['*', '?', '[']));
        match (path.metadata(), pattern) {
            (Err(error), Some(pattern)) if error.kind() == ErrorKind::NotFound => {
                self.pattern(pattern, visitor)
            }
            (Err(error), _) => unreadable(visitor, &display(path), error),
            (Ok(metadata), _) => self.path(path, metadata.is_dir(), visitor),
        }
    }

    fn pattern(&self, pattern: &str, visitor: &mut dyn Visitor) -> ControlFlow<()> {
        let expansion = match Expansion::new(pattern) {
            Ok(expansion) => expansion,
            Err(error) => return unreadable(visitor, pattern, error),
        };
        let mut found = false;
        expansion.walk(&mut |path, read| {
            found = true;
            match read {
                Ok(()) => self.path(path, path.is_dir(), visitor),
                Err(error) => unreadable(visitor, &display(path), error),
            }
        })?;
        match found {
            true => ControlFlow::Continue(()),
            false => unreadable(
                visitor,
                pattern,
                "no such file, and no file matches it as a pattern",
            ),
        }
    }

    fn path(&self, path: &Path, is_dir: bool, visitor: &mut dyn Visitor) -> ControlFlow<()> {
        let name = path.file_name().map_or(String::new(), |name| {
            name.to_string_lossy().to_ascii_lowercase()
        });
        let ends = |end: &str| name.ends_with(end);
        if is_dir {
            directory::walk(path, visitor)
        } else if ends(".tar") {
            tar::walk(path, visitor)
        } else if ends(".tar.gz") || ends(".tgz") {
            tar::walk_gz(path, visitor)
        } else if ends(".parquet") {
            parquet::walk(path, self.image_column.as_deref(), visitor)
        } else {
            offer(visitor, &display(path), None, || {
                Picture::File(path.to_owned())
            })
        }
    }
}

impl feed::Walk for Inputs {
    fn can_be_walked_twice(&self) -> bool {
        !self.inputs.iter().any(|input| input == "-")
    }

    /// What cannot be read is told of as well, as a picture that has no bytes.
    fn walk(&self, visitor: &mut dyn Visitor) -> ControlFlow<()> {
        for input in &self.inputs {
            match input == "-" {
                true => self.list(&mut std::io::stdin().lock(), visitor)?,
                false => self.input(input, visitor)?,
            }
        }
        ControlFlow::Continue(())
    }
}

/// Tells of one picture.
fn offer(
    visitor: &mut dyn Visitor,
    name: &str,
    key: Option<&str>,
    picture: impl FnOnce() -> Picture,
) -> ControlFlow<()> {
    match visitor.wants(name) {
        true => visitor.take(Item {
            name: name.to_owned(),
            key: key.map(str::to_owned),
            text: None,
            picture: picture(),
        }),
        false => ControlFlow::Continue(()),
    }
}

/// Tells of something that should have been pictures.
fn unreadable(
    visitor: &mut dyn Visitor,
    name: &str,
    error: impl std::fmt::Display,
) -> ControlFlow<()> {
    offer(visitor, name, None, || {
        Picture::Unreadable(format!("{name}: {error}"))
    })
}

fn display(path: &Path) -> String {
    text(path.as_os_str().as_encoded_bytes())
}

/// A name as text. Bytes that are no characters are written as `\xE9`, so that names stay apart.
fn text(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            // A string takes all that is written to it.
            let _ = write!(text, "\\x{byte:02X}");
        }
    }
    text
}

/// An http or https URL, where it is one.
pub fn url(input: &OsStr) -> Option<&str> {
    let text = input.to_str()?;
    let (scheme, _) = text.split_once("://")?;
    ["http", "https"]
        .iter()
        .any(|known| scheme.eq_ignore_ascii_case(known))
        .then_some(text)
}

#[cfg(unix)]
fn os_string(bytes: Vec<u8>) -> OsString {
    std::os::unix::ffi::OsStringExt::from_vec(bytes)
}

#[cfg(not(unix))]
fn os_string(bytes: Vec<u8>) -> OsString {
    String::from_utf8_lossy(&bytes).into_owned().into()
}

/// Whether a file's name is one of a picture, and not hidden.
fn is_picture_name(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str);
    let is_known = |extension: &str| {
        let mut known = PICTURE_EXTENSIONS.iter();
        known.any(|known| known.eq_ignore_ascii_case(extension))
    };
    !path.file_name().is_some_and(is_hidden) && extension.is_some_and(is_known)
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

fn buffered(file: impl Read) -> BufReader<impl Read> {
    BufReader::with_capacity(1 << 16, file)
}
#[cfg(test)]
mod tests;
