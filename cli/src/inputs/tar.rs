//! Tar shards, as WebDataset writes them.

use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use qformer::image::ImageLimits;
use tar::{Archive, Entry, EntryType};

use super::{Picture, Visitor, buffered, display, is_picture_name, offer, text, unreadable};
use crate::batch::{NameHash, hash};
use crate::input::open;

/// Tells of the pictures in a tar file; those that are not wanted are not read. A link is the file that it leads to.
pub(super) fn walk(path: &Path, visitor: &mut dyn Visitor) -> ControlFlow<()> {
    let name = display(path);
    let mut archive = match open(path) {
        Ok(file) => Archive::new(file),
        Err(error) => return unreadable(visitor, &name, error),
    };
    match archive.entries_with_seek() {
        Ok(entries) => walk_entries(&name, entries, &mut Members::of(Some(path)), visitor),
        Err(error) => unreadable(visitor, &name, error),
    }
}

/// As [`walk`], of a tar file in gzip's form. What a link leads to cannot be gone back to in it, which is told.
pub(super) fn walk_gz(path: &Path, visitor: &mut dyn Visitor) -> ControlFlow<()> {
    let name = display(path);
    let mut archive = match open(path) {
        Ok(file) => Archive::new(buffered(MultiGzDecoder::new(buffered(file)))),
        Err(error) => return unreadable(visitor, &name, error),
    };
    match archive.entries() {
        Ok(entries) => walk_entries(&name, entries, &mut Members::of(None), visitor),
        Err(error) => unreadable(visitor, &name, error),
    }
}

fn walk_entries<'a, R: Read + 'a>(
    archive: &str,
    entries: impl Iterator<Item = io::Result<Entry<'a, R>>>,
    members: &mut Members,
    visitor: &mut dyn Visitor,
) -> ControlFlow<()> {
    let mut found = false;
    for entry in entries {
        let mut entry = match entry {
            Ok(entry) => entry,
            Err(error) => return unreadable(visitor, archive, error),
        };
        let member = text(&entry.path_bytes());
        let place = members.add(&entry);
        if entry.header().entry_type().is_dir() || !is_picture_name(Path::new(&member)) {
            continue;
        }
        found = true;
        let name = format!("{archive}/{member}");
        offer(visitor, &name, Some(key(&member)), || {
            let picture = match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                    let length = entry.size();
                    read(&mut entry, length)
                }
                EntryType::Link | EntryType::Symlink => members.read(place, &entry),
                _ => Err(io::Error::other("this is no file")),
            };
            picture.unwrap_or_else(|error| Picture::Unreadable(format!("{name}: {error}")))
        })?;
    }
    match found {
        true => ControlFlow::Continue(()),
        false => unreadable(visitor, archive, "no pictures in this archive"),
    }
}

fn read(reader: &mut impl Read, length: u64) -> io::Result<Picture> {
    let limit = ImageLimits::default().max_bytes as u64;
    if length > limit {
        let reason = format!("over {limit} bytes, the limit for a picture file");
        return Err(io::Error::other(reason));
    }
    let mut bytes = Vec::new();
    match reader.take(length).read_to_end(&mut bytes)? as u64 == length {
        true => Ok(Picture::Bytes(bytes.into())),
        false => Err(io::Error::other("the archive ends within it")),
    }
}

/// Where the bytes of a member begin, and how many they are.
#[derive(Debug, Clone, Copy)]
struct Place {
    start: u64,
    length: u64,
}

/// The files of an archive so far, some 40 bytes each, for the links that lead to them.
struct Members<'a> {
    /// The archive, where it can be read from any place.
    archive: Option<&'a Path>,
    places: HashMap<NameHash, Place>,
}

impl Members<'_> {
    fn of(archive: Option<&Path>) -> Members<'_> {
        Members {
            archive,
            places: HashMap::new(),
        }
    }

    /// Remembers where a member is, or what it leads to.
    fn add(&mut self, entry: &Entry<'_, impl Read>) -> Option<Place> {
        self.archive?;
        let own = entry.path_bytes();
        let target = entry.link_name_bytes();
        let place = match (entry.header().entry_type(), target) {
            (EntryType::Regular | EntryType::Continuous, _) => Some(Place {
                start: entry.raw_file_position(),
                length: entry.size(),
            }),
            (EntryType::Link, Some(target)) => self.place(normal(b"", &target)),
            (EntryType::Symlink, Some(target)) if !target.starts_with(b"/") => {
                let name = own.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
                self.place(normal(&own[..name], &target))
            }
            _ => None,
        };
        if let (Some(name), Some(place)) = (normal(b"", &own), place) {
            self.places.insert(name, place);
        }
        place
    }

    fn place(&self, name: Option<NameHash>) -> Option<Place> {
        self.places.get(&name?).copied()
    }

    /// Reads what a link leads to.
    fn read(&self, place: Option<Place>, link: &Entry<'_, impl Read>) -> io::Result<Picture> {
        let target = link.link_name_bytes().unwrap_or_default();
        let target = text(&target);
        let Some(archive) = self.archive else {
            return Err(io::Error::other(format!(
                "this is a link to {target}, and links are followed in archives that are not compressed alone"
            )));
        };
        let Some(place) = place else {
            return Err(io::Error::other(format!(
                "this is a link to {target}, and no file before it in the archive is called so"
            )));
        };
        let mut file = open(archive)?;
        file.seek(SeekFrom::Start(place.start))?;
        read(&mut file, place.length)
    }
}

/// A name in an archive, from the directory `at`, however it is written; none where it leads out of it.
fn normal(at: &[u8], name: &[u8]) -> Option<NameHash> {
    let is_slash = |byte: &u8| *byte == b'/';
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in at.split(is_slash).chain(name.split(is_slash)) {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(hash(parts.join(&b'/')))
}

/// WebDataset's key: the path up to the first dot of the file's name, `a/b` of `a/b.left.jpg`.
fn key(member: &str) -> &str {
    let name = member.rfind('/').map_or(0, |slash| slash + 1);
    match member[name..].find('.') {
        Some(dot) => &member[..name + dot],
        None => member,
    }
}
