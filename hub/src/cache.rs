//! Where files are kept, and which of them are still to be fetched.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use url::Url;

use crate::client::Client;
use crate::file::part_of;
use crate::listing::{Listing, RemoteFile};
use crate::name::{ModelName, Revision, is_commit};
use crate::tensors::{Plan, Shard};
use crate::{Error, Progress, Result, file};

/// A single file with a model's weights, and the index of its shards, in the
/// order in which they are looked for.
const LAYOUTS: [(&str, &str); 2] = [
    (SAFETENSORS, "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
];
const SAFETENSORS: &str = "model.safetensors";
/// Most bytes of a file that holds no weights.
const MAX_SMALL: u64 = 256 << 20;

/// A directory with what was fetched.
#[derive(Debug)]
pub struct Cache {
    root: PathBuf,
}

/// A model at one commit: its list of files, and those that hold no weights.
/// The model's directory is locked while it is alive.
pub struct Snapshot<'a> {
    client: Option<&'a Client>,
    model: ModelName,
    revision: Revision,
    listing: Listing,
    dir: PathBuf,
    small: Vec<String>,
    _lock: File,
}

/// Which tensors are fetched.
#[derive(Clone, Copy)]
pub enum Tensors<'a> {
    /// All of them.
    All,
    /// Some, into a directory of their own.
    Only {
        /// What they are called, in that directory's name.
        label: &'a str,
        /// Whether the tensor of a name is one of them.
        is_wanted: &'a dyn Fn(&str) -> bool,
    },
}

/// Weights that are known and perhaps not all here.
pub struct Weights<'a> {
    snapshot: &'a Snapshot<'a>,
    dir: PathBuf,
    /// To be fetched whole.
    files: Vec<RemoteFile>,
    /// To be fetched in part.
    plan: Option<Plan>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Cache {
    /// Files are kept in `root`, which is made when it is needed.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Looks up what `revision` of `model` is, and fetches its files of the
    /// names `small`, where it has them. Without a client, all that is from
    /// what was fetched before. Waits while another process fetches the model.
    ///
    /// # Errors
    /// There is no such model or revision, it may not be read, the hub fails
    /// more often than is tried, or something is missing and there is no client.
    pub fn snapshot<'a>(
        &self,
        client: Option<&'a Client>,
        model: &ModelName,
        revision: &Revision,
        small: &[&str],
    ) -> Result<Snapshot<'a>> {
        let home = self.root.join(model.owner()).join(model.name());
        let offline = |missing: &str| Error::Offline {
            model: model.to_string(),
            revision: revision.as_str().to_owned(),
            missing: vec![missing.to_owned()],
        };
        if client.is_none() && !home.is_dir() {
            return Err(offline("any of its files"));
        }
        std::fs::create_dir_all(&home).map_err(Error::io(&home))?;
        let lock = lock(&home, model)?;
        let listing = match (kept_listing(&home, client, revision), client) {
            (Some(listing), _) => listing,
            (None, None) => return Err(offline("the list of its files")),
            (None, Some(client)) => {
                let listing = Listing::fetch(client, model, revision)?;
                keep_listing(&home, revision, &listing)?;
                listing
            }
        };
        let dir = home.join(&listing.commit);
        std::fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
        let mut snapshot = Snapshot {
            client,
            model: model.clone(),
            revision: revision.clone(),
            listing,
            dir,
            small: Vec::new(),
            _lock: lock,
        };
        snapshot.fetch_small(small)?;
        Ok(snapshot)
    }
}

impl Snapshot<'_> {
    /// Where the files without weights are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The commit that the revision was at when it was looked up, in hex.
    pub fn commit(&self) -> &str {
        &self.listing.commit
    }

    fn fetch_small(&mut self, names: &[&str]) -> Result<()> {
        let mut missing = Vec::new();
        for name in names.iter().copied().chain(LAYOUTS.map(|(_, index)| index)) {
            let Some(file) = self.listing.file(name)? else {
                continue;
            };
            if file.size > MAX_SMALL {
                return Err(self.wrong(format!(
                    "{name} of {} bytes is not what it is named after",
                    file.size
                )));
            }
            if !self.is_here(&file) {
                missing.push(file);
            }
            self.small.push(name.to_owned());
        }
        self.fetch(&missing, &|_| ())
    }

    /// Which weights the tensors are in, and what of them is still to be
    /// fetched. Of `pytorch_model.bin`, and from a hub that sends no parts of
    /// files, all tensors are.
    ///
    /// # Errors
    /// There are none, a header cannot be read or is none, or something is
    /// missing and there is no client.
    pub fn weights(&self, tensors: Tensors) -> Result<Weights<'_>> {
        let (weights, index) = self.weight_files()?;
        let whole = |files: Vec<RemoteFile>| Weights {
            snapshot: self,
            dir: self.dir.clone(),
            files,
            plan: None,
        };
        let missing: Vec<RemoteFile> = weights
            .iter()
            .filter(|file| !self.is_here(file))
            .cloned()
            .collect();
        if let Tensors::Only { label, is_wanted } = tensors
            && !missing.is_empty()
        {
            if weights
                .iter()
                .all(|file| file.path.ends_with(".safetensors"))
            {
                match self.part(&weights, index.as_ref(), label, is_wanted) {
                    Err(Error::NoParts { url }) => {
                        tracing::warn!(
                            "{url}: the hub sends no parts of files, so all of the model is fetched"
                        );
                    }
                    result => return result,
                }
            } else {
                tracing::warn!(
                    "{}: pytorch_model.bin cannot be read in parts, so all of the model is fetched",
                    self.model
                );
            }
        }
        if self.client.is_none() && !missing.is_empty() {
            return Err(self.offline(&missing));
        }
        Ok(whole(missing))
    }

    fn part(
        &self,
        weights: &[RemoteFile],
        index: Option<&Index>,
        label: &str,
        is_wanted: &dyn Fn(&str) -> bool,
    ) -> Result<Weights<'_>> {
        let dir = self
            .dir
            .with_file_name(format!("{}-{label}", self.commit()));
        let out = dir.join(SAFETENSORS);
        let plan = match self.client {
            _ if out.exists() => None,
            None => return Err(self.offline(weights)),
            Some(client) => {
                let holds_some = |file: &RemoteFile| {
                    index.is_none_or(|index| {
                        let mut names = index.weight_map.iter();
                        names.any(|(tensor, shard)| *shard == file.path && is_wanted(tensor))
                    })
                };
                let shards: Vec<Shard> = weights
                    .iter()
                    .filter(|file| holds_some(file))
                    .map(|file| Shard {
                        url: self.url(client, &file.path),
                        file: file.clone(),
                    })
                    .collect();
                let origin = format!("{}@{}", self.model, self.commit());
                Some(Plan::read(
                    client,
                    &self.model,
                    &shards,
                    &origin,
                    is_wanted,
                    out,
                )?)
            }
        };
        Ok(Weights {
            snapshot: self,
            dir,
            files: Vec::new(),
            plan,
        })
    }

    /// The files that hold the weights, and the index that names them.
    fn weight_files(&self) -> Result<(Vec<RemoteFile>, Option<Index>)> {
        for (single, index) in LAYOUTS {
            if let Some(file) = self.listing.file(single)? {
                return Ok((vec![file], None));
            }
            if self.listing.file(index)?.is_none() {
                continue;
            }
            let path = self.dir.join(index);
            let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
            let parsed: Index = serde_json::from_str(&text)
                .map_err(|error| self.wrong(format!("{index}: {error}")))?;
            let mut names: Vec<&String> = parsed.weight_map.values().collect();
            names.sort();
            names.dedup();
            let mut files = Vec::with_capacity(names.len());
            for name in names {
                if !is_shard_name(name) {
                    return Err(self.wrong(format!(
                        "{index} names the shard {name:?}, which is no plain file name"
                    )));
                }
                let file = self.listing.file(name)?;
                files.push(file.ok_or_else(|| {
                    self.wrong(format!(
                        "{index} names {name}, which the model does not have"
                    ))
                })?);
            }
            return Ok((files, Some(parsed)));
        }
        Err(self.wrong(
            "neither model.safetensors nor pytorch_model.bin is there, whole or in shards: no checkpoint that transformers saved".to_owned(),
        ))
    }

    fn is_here(&self, file: &RemoteFile) -> bool {
        let found = std::fs::metadata(self.dir.join(&file.path));
        found.is_ok_and(|found| found.len() == file.size)
    }

    fn fetch(&self, files: &[RemoteFile], progress: Progress) -> Result<()> {
        if files.is_empty() {
            return Ok(());
        }
        let Some(client) = self.client else {
            return Err(self.offline(files));
        };
        for file in files {
            let path = self.dir.join(&file.path);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
            }
            let url = self.url(client, &file.path);
            file::fetch(client, &self.model, &url, file, &path, progress)?;
        }
        Ok(())
    }

    fn url(&self, client: &Client, path: &str) -> Url {
        let place = [
            self.model.owner(),
            self.model.name(),
            "resolve",
            self.commit(),
        ];
        client
            .endpoint()
            .join(place.into_iter().chain(path.split('/')))
    }

    fn offline(&self, missing: &[RemoteFile]) -> Error {
        Error::Offline {
            model: self.model.to_string(),
            revision: self.revision.as_str().to_owned(),
            missing: missing.iter().map(|file| file.path.clone()).collect(),
        }
    }

    fn wrong(&self, reason: String) -> Error {
        Error::Hub {
            what: format!("{}@{}", self.model, self.revision.as_str()),
            reason,
        }
    }
}

impl Weights<'_> {
    /// Bytes that are to be fetched, those of interrupted fetches included.
    pub fn bytes(&self) -> u64 {
        let files: u64 = self.files.iter().map(|file| file.size).sum();
        files + self.plan.as_ref().map_or(0, Plan::bytes)
    }

    /// Fetches what is not here; the directory with the whole checkpoint.
    ///
    /// # Errors
    /// The disk has no room, the hub breaks off more often than is tried or
    /// sends something else than it lists, or a file cannot be written.
    pub fn fetch(&self, progress: Progress) -> Result<PathBuf> {
        let home = &self.snapshot.dir;
        let free = fs4::available_space(home).map_err(Error::io(home))?;
        let needed = self.bytes().saturating_sub(self.bytes_of_parts());
        if needed > free {
            return Err(Error::NoRoom {
                dir: home.clone(),
                needed,
                free,
            });
        }
        self.snapshot.fetch(&self.files, progress)?;
        if self.dir != self.snapshot.dir {
            self.copy_small()?;
        }
        if let (Some(plan), Some(client)) = (&self.plan, self.snapshot.client) {
            plan.fetch(client, &self.snapshot.model, progress)?;
        }
        Ok(self.dir.clone())
    }

    /// Bytes that interrupted fetches have left.
    fn bytes_of_parts(&self) -> u64 {
        let names = self.files.iter().map(|file| file.path.as_str());
        let plan = self.plan.iter().map(|_| SAFETENSORS);
        let parts = names.chain(plan).map(|name| part_of(&self.dir.join(name)));
        let sizes = parts.filter_map(|part| Some(std::fs::metadata(part).ok()?.len()));
        sizes.sum()
    }

    /// Puts the files without weights beside some of the tensors.
    fn copy_small(&self) -> Result<()> {
        for name in &self.snapshot.small {
            let (from, to) = (self.snapshot.dir.join(name), self.dir.join(name));
            let size = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.len());
            if LAYOUTS.iter().any(|(_, index)| index == name) || size(&from).ok() == size(&to).ok()
            {
                continue;
            }
            let parent = to.parent().unwrap_or(&self.dir);
            std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
            std::fs::copy(&from, &to).map_err(Error::io(&to))?;
        }
        Ok(())
    }
}

/// Locks a model's directory; waits where another process has it.
fn lock(home: &Path, model: &ModelName) -> Result<File> {
    let path = home.join("lock");
    let lock = File::create(&path).map_err(Error::io(&path))?;
    match lock.try_lock() {
        Ok(()) => return Ok(lock),
        Err(TryLockError::Error(source)) => return Err(Error::io(&path)(source)),
        Err(TryLockError::WouldBlock) => {
            tracing::warn!("{model}: waiting for another process that fetches it");
        }
    }
    lock.lock().map_err(Error::io(&path))?;
    Ok(lock)
}

fn listing_path(home: &Path, commit: &str) -> PathBuf {
    home.join(format!("{commit}.json"))
}

fn ref_path(home: &Path, revision: &Revision) -> PathBuf {
    home.join("refs")
        .join(revision.as_str().replace('/', "%2F"))
}

/// The list of files of a commit that cannot have moved: the revision is a
/// commit itself, or nobody can be asked.
fn kept_listing(home: &Path, client: Option<&Client>, revision: &Revision) -> Option<Listing> {
    let commit = if revision.is_commit() {
        revision.as_str().to_owned()
    } else if client.is_none() {
        let commit = std::fs::read_to_string(ref_path(home, revision)).ok()?;
        is_commit(&commit).then_some(commit)?
    } else {
        return None;
    };
    let bytes = std::fs::read(listing_path(home, &commit)).ok()?;
    serde_json::from_slice(&bytes)
        .ok()
        .filter(|listing: &Listing| listing.commit == commit)
}

fn keep_listing(home: &Path, revision: &Revision, listing: &Listing) -> Result<()> {
    let path = listing_path(home, &listing.commit);
    let text = serde_json::to_vec(listing).map_err(|error| Error::Hub {
        what: path.display().to_string(),
        reason: error.to_string(),
    })?;
    write_at_once(&path, &text)?;
    if !revision.is_commit() {
        write_at_once(&ref_path(home, revision), listing.commit.as_bytes())?;
    }
    Ok(())
}

/// Writes a file whole or not at all.
fn write_at_once(path: &Path, bytes: &[u8]) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new(""));
    std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
    let mut file = tempfile::NamedTempFile::new_in(parent).map_err(Error::io(parent))?;
    file.write_all(bytes).map_err(Error::io(path))?;
    file.persist(path)
        .map_err(|error| Error::io(path)(error.error))?;
    Ok(())
}

/// Whether a name that the hub tells may be a file's: one plain component.
fn is_shard_name(name: &str) -> bool {
    !name.starts_with('.')
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && LAYOUTS.iter().any(|(single, _)| {
            let ending = Path::new(single).extension();
            Path::new(name).extension() == ending
        })
}

#[cfg(test)]
mod tests {
    use super::is_shard_name;

    #[test]
    fn names_of_shards() {
        for name in [
            "model-00001-of-00002.safetensors",
            "pytorch_model-00001-of-00004.bin",
        ] {
            assert!(is_shard_name(name), "{name}");
        }
        for name in [
            "../model.safetensors",
            "/etc/model.safetensors",
            "a/b.safetensors",
            "a\\b.safetensors",
            "C:x.safetensors",
            "..",
            ".safetensors",
            "",
            "config.json",
            "model.safetensors.part",
        ] {
            assert!(!is_shard_name(name), "{name}");
        }
    }
}
