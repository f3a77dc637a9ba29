//! Tar shards, as WebDataset writes them.

use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use qformer::image::ImageLimits;
use tar::{Archive, Entry};

use super::{Picture, Visitor, buffered, display, is_picture_name, offer, unreadable};

/// Tells of the pictures in a tar file; those that are not wanted are not read.
pub(super) fn walk(path: &Path, visitor: &mut dyn Visitor) -> ControlFlow<()> {
    let name = display(path);
    let mut archive = match File::open(path) {
        Ok(file) => Archive::new(file),
        Err(error) => return unreadable(visitor, &name, error),
    };
    match archive.entries_with_seek() {
        Ok(entries) => walk_entries(&name, entries, visitor),
        Err(error) => unreadable(visitor, &name, error),
    }
}

/// As [`walk`], of a tar file in gzip's form.
pub(super) fn walk_gz(path: &Path, visitor: &mut dyn Visitor) -> ControlFlow<()> {
    let name = display(path);
    let mut archive = match File::open(path) {
        Ok(file) => Archive::new(buffered(MultiGzDecoder::new(buffered(file)))),
        Err(error) => return unreadable(visitor, &name, error),
    };
    match archive.entries() {
        Ok(entries) => walk_entries(&name, entries, visitor),
        Err(error) => unreadable(visitor, &name, error),
    }
}

fn walk_entries<'a, R: Read + 'a>(
    archive: &str,
    entries: impl Iterator<Item = io::Result<Entry<'a, R>>>,
    visitor: &mut dyn Visitor,
) -> ControlFlow<()> {
    let mut found = false;
    for entry in entries {
        let mut entry = match entry {
            Ok(entry) => entry,
            Err(error) => return unreadable(visitor, archive, error),
        };
        let member = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if !entry.header().entry_type().is_file() || !is_picture_name(Path::new(&member)) {
            continue;
        }
        found = true;
        let name = format!("{archive}/{member}");
        offer(visitor, &name, Some(key(&member)), || {
            read(&mut entry).unwrap_or_else(|error| Picture::Unreadable(format!("{name}: {error}")))
        })?;
    }
    match found {
        true => ControlFlow::Continue(()),
        false => unreadable(visitor, archive, "no pictures in this archive"),
    }
}

fn read(entry: &mut Entry<'_, impl Read>) -> io::Result<Picture> {
    let limit = ImageLimits::default().max_bytes as u64;
    let length = entry.size();
    if length > limit {
        let reason = format!("over {limit} bytes, the limit for a picture file");
        return Err(io::Error::other(reason));
    }
    let mut bytes = Vec::new();
    match entry.read_to_end(&mut bytes)? as u64 == length {
        true => Ok(Picture::Bytes(bytes.into())),
        false => Err(io::Error::other("the archive ends within it")),
    }
}

/// WebDataset's key: the path up to the first dot of the file's name, `a/b` of `a/b.left.jpg`.
fn key(member: &str) -> &str {
    let name = member.rfind('/').map_or(0, |slash| slash + 1);
    match member[name..].find('.') {
        Some(dot) => &member[..name + dot],
        None => member,
    }
}
