//! What matches a pattern, in the order of names. As the glob library walks, but for names that are not UTF-8, of which
//! that library takes none or panics: here a wildcard stands for what is no character too.

use std::ffi::OsStr;
use std::fs::{self, DirEntry};
use std::io;
use std::ops::ControlFlow;
use std::path::{Component, Path, PathBuf, is_separator};

use glob::{MatchOptions, Pattern, PatternError};

use super::is_hidden;

/// Names in either case match, as cameras write them.
const OPTIONS: MatchOptions = MatchOptions {
    case_sensitive: false,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

/// A pattern, directory by directory.
pub(super) struct Expansion {
    root: PathBuf,
    parts: Vec<Part>,
    /// Whether it ends with a separator.
    is_of_directories: bool,
}

/// What one name must be.
enum Part {
    Literal(Pattern),
    Wildcard(Pattern),
    /// `**`: any directories, or none.
    Directories,
}

/// Who is told of what matches, and of directories that cannot be read.
type Found<'a> = &'a mut dyn FnMut(&Path, io::Result<()>) -> ControlFlow<()>;

impl Expansion {
    /// Of a pattern as typed.
    pub(super) fn new(pattern: &str) -> Result<Expansion, PatternError> {
        // Errors are told by their places in the whole of it.
        Pattern::new(pattern)?;
        let is_root = |part: &Component| matches!(part, Component::Prefix(_) | Component::RootDir);
        let root: PathBuf = Path::new(pattern)
            .components()
            .take_while(is_root)
            .collect();
        let rest = pattern.get(root.as_os_str().len()..).unwrap_or_default();
        let names = rest.split(is_separator).filter(|name| !name.is_empty());
        let mut parts = Vec::new();
        for name in names {
            match Part::new(name)? {
                Part::Directories if matches!(parts.last(), Some(Part::Directories)) => {}
                part => parts.push(part),
            }
        }
        Ok(Expansion {
            root,
            parts,
            is_of_directories: pattern.ends_with(is_separator),
        })
    }

    /// Tells of all that matches. What is hidden matches no wildcard.
    pub(super) fn walk(&self, found: Found) -> ControlFlow<()> {
        self.expand(&self.root, &self.parts, found)
    }

    fn expand(&self, at: &Path, parts: &[Part], found: Found) -> ControlFlow<()> {
        match parts.split_first() {
            None if self.is_of_directories && !at.is_dir() => ControlFlow::Continue(()),
            None => found(at, Ok(())),
            Some((Part::Literal(name), rest)) => {
                let path = below(at, Path::new(name.as_str()));
                match path.symlink_metadata() {
                    Ok(_) => self.expand(&path, rest, found),
                    Err(_) => ControlFlow::Continue(()),
                }
            }
            Some((Part::Directories, rest)) => self.any_depth(at, parts, rest, found),
            Some((part @ Part::Wildcard(_), rest)) => {
                self.each(at, found, |child, _, found| match part.matches(child) {
                    true => self.expand(child, rest, found),
                    false => ControlFlow::Continue(()),
                })
            }
        }
    }

    /// `parts` are `**` and `rest`.
    fn any_depth(&self, at: &Path, parts: &[Part], rest: &[Part], found: Found) -> ControlFlow<()> {
        self.each(at, found, |child, is_dir, found| {
            let Some((next, behind)) = rest.split_first() else {
                // At the end, it stands for directories alone.
                if !is_dir {
                    return ControlFlow::Continue(());
                }
                found(child, Ok(()))?;
                return self.expand(child, parts, found);
            };
            if next.matches(child) {
                self.expand(child, behind, found)?;
            }
            match is_dir {
                true => self.expand(child, parts, found),
                false => ControlFlow::Continue(()),
            }
        })
    }

    /// Goes through a directory by name; `take` is told whether each child is a directory that leads no way back.
    fn each(
        &self,
        at: &Path,
        found: Found,
        mut take: impl FnMut(&Path, bool, Found) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let here = match at.as_os_str().is_empty() {
            true => Path::new("."),
            false => at,
        };
        if !here.is_dir() {
            return ControlFlow::Continue(());
        }
        let entries = fs::read_dir(here).and_then(Iterator::collect::<io::Result<Vec<DirEntry>>>);
        let mut entries = match entries {
            Ok(entries) => entries,
            Err(error) => return found(here, Err(error)),
        };
        entries.sort_by_key(DirEntry::file_name);
        for entry in entries
            .iter()
            .filter(|entry| !is_hidden(&entry.file_name()))
        {
            let child = below(at, Path::new(&entry.file_name()));
            take(&child, is_directory(entry, here), found)?;
        }
        ControlFlow::Continue(())
    }
}

impl Part {
    fn new(name: &str) -> Result<Part, PatternError> {
        Ok(match name {
            "**" => Part::Directories,
            _ if name.contains(['*', '?', '[']) => Part::Wildcard(Pattern::new(name)?),
            _ => Part::Literal(Pattern::new(name)?),
        })
    }

    fn matches(&self, path: &Path) -> bool {
        let (Part::Literal(pattern) | Part::Wildcard(pattern)) = self else {
            return false;
        };
        // Bytes that are no characters become characters that only wildcards match.
        let name = path.file_name().map(OsStr::to_string_lossy);
        name.is_some_and(|name| pattern.matches_with(&name, OPTIONS))
    }
}

/// `name` in the directory `at`. The working directory is not named.
fn below(at: &Path, name: &Path) -> PathBuf {
    match at == Path::new(".") {
        true => name.to_owned(),
        false => at.join(name),
    }
}

/// Whether an entry of the directory `at` is a directory, and no link to one that `at` is in.
fn is_directory(entry: &DirEntry, at: &Path) -> bool {
    let Ok(kind) = entry.file_type() else {
        return false;
    };
    if !kind.is_symlink() {
        return kind.is_dir();
    }
    let path = entry.path();
    let is_circle = || match (path.canonicalize(), at.canonicalize()) {
        (Ok(target), Ok(at)) => at.starts_with(target),
        _ => true,
    };
    path.is_dir() && !is_circle()
}
