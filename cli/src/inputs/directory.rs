//! Directories and all below them.

use std::ops::ControlFlow;
use std::path::Path;

use walkdir::WalkDir;

use super::{Picture, Visitor, display, is_hidden, is_picture_name, offer, unreadable};

/// Tells of the pictures in a directory and below, by name. Hidden files and directories are left out; links are followed,
/// unless they lead back to a directory that they are in.
pub(super) fn walk(root: &Path, visitor: &mut dyn Visitor) -> ControlFlow<()> {
    let entries = WalkDir::new(root)
        .follow_links(true)
        .sort_by_file_name()
        .into_iter()
        .filter_entry(|entry| entry.depth() == 0 || !is_hidden(entry.file_name()));
    let mut found = false;
    for entry in entries {
        match entry {
            Ok(entry) if entry.file_type().is_dir() || !is_picture_name(entry.path()) => {}
            Ok(entry) => {
                found = true;
                let path = entry.path();
                offer(visitor, &display(path), None, || {
                    Picture::File(path.to_owned())
                })?;
            }
            Err(error) if error.loop_ancestor().is_some() => {
                tracing::debug!(%error, "a link is not followed");
            }
            Err(error) => {
                let path = error.path().unwrap_or(root);
                let is_broken_link = path.is_symlink();
                // A link that leads nowhere and is not called a picture is nobody's loss.
                if !is_broken_link || is_picture_name(path) {
                    found = true;
                    let name = display(path);
                    match error.io_error() {
                        Some(error) => unreadable(visitor, &name, error)?,
                        None => unreadable(visitor, &name, &error)?,
                    }
                }
            }
        }
    }
    match found {
        true => ControlFlow::Continue(()),
        false => unreadable(visitor, &display(root), "no pictures in this directory"),
    }
}
