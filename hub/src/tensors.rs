//! Some tensors of safetensors files, as one safetensors file: headers first,
//! then the ranges of what is wanted, those that touch as one.
//!
//! A hub has hashes of whole files only. What can be checked here is that the
//! commit, the content's mark (ETag), headers and lengths stay what they were.

use std::collections::{BTreeMap, HashMap};
use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Metadata, TensorInfo};
use url::Url;

use crate::client::{Arrived, Client, Failure, wrong};
use crate::file::{BUFFER, part_of};
use crate::listing::{Hash, RemoteFile};
use crate::name::ModelName;
use crate::{Error, Progress, Result};

/// The format's own limit (`safetensors`, `MAX_HEADER_SIZE`).
const MAX_HEADER: u64 = 100_000_000;
const LENGTH: u64 = size_of::<u64>() as u64;

/// A safetensors file of the hub.
pub(crate) struct Shard {
    pub url: Url,
    pub file: RemoteFile,
}

/// What is to be fetched, and the file that it makes.
pub(crate) struct Plan {
    out: PathBuf,
    header: Vec<u8>,
    runs: Vec<Run>,
}

/// Bytes of a shard that follow each other.
struct Run {
    url: Url,
    size: u64,
    start: u64,
    end: u64,
    etag: Option<String>,
}

/// Bytes read into memory or a file, in order.
struct Stretch<'a> {
    client: &'a Client,
    model: &'a ModelName,
    url: &'a Url,
    /// Of the whole file.
    size: u64,
    etag: Option<String>,
}

impl Plan {
    /// Reads the headers of `shards`, of commit `origin` (any text that tells
    /// it apart), and plans the file `out` of the tensors that `is_wanted`.
    ///
    /// # Errors
    /// [`Error::NoParts`], where the hub sends whole files alone; a header
    /// cannot be read or is none; no tensor is wanted.
    pub fn read(
        client: &Client,
        model: &ModelName,
        shards: &[Shard],
        origin: &str,
        is_wanted: &dyn Fn(&str) -> bool,
        out: PathBuf,
    ) -> Result<Self> {
        let mut tensors: BTreeMap<String, TensorInfo> = BTreeMap::new();
        let mut order: Vec<String> = Vec::new();
        let mut runs: Vec<Run> = Vec::new();
        let mut origin = origin.to_owned();
        let mut length = 0;
        for Shard { url, file } in shards {
            if let Some(Hash::Sha256(hash) | Hash::GitBlob(hash)) = &file.hash {
                origin.push_str(&format!(" {hash}"));
            }
            let (data, metadata, etag) = read_header(client, model, url, file)?;
            let mut wanted: Vec<(String, &TensorInfo)> = metadata
                .tensors()
                .into_iter()
                .filter(|(name, _)| is_wanted(name))
                .collect();
            wanted.sort_by(|(left, a), (right, b)| {
                (a.data_offsets, left).cmp(&(b.data_offsets, right))
            });
            for (name, info) in wanted {
                let (start, end) = info.data_offsets;
                let info = TensorInfo {
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                    data_offsets: (length, length + (end - start)),
                };
                length = info.data_offsets.1;
                order.push(name.clone());
                if tensors.insert(name.clone(), info).is_some() {
                    return Err(wrong(url, format!("{name} is in another shard too")));
                }
                let (start, end) = (data + start as u64, data + end as u64);
                match runs.last_mut() {
                    _ if start == end => {}
                    Some(run) if run.url == *url && run.end == start => run.end = end,
                    _ => runs.push(Run {
                        url: url.clone(),
                        size: file.size,
                        start,
                        end,
                        etag: etag.clone(),
                    }),
                }
            }
        }
        let tensors = order
            .into_iter()
            .filter_map(|name| tensors.remove_entry(&name))
            .collect();
        Ok(Self {
            header: header(&out, origin, tensors)?,
            out,
            runs,
        })
    }

    /// Bytes of tensors.
    pub fn bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.end - run.start).sum()
    }

    /// Fetches the tensors, by way of a `.part` that an interruption leaves and
    /// the next call goes on with.
    pub fn fetch(&self, client: &Client, model: &ModelName, progress: Progress) -> Result<()> {
        let path = part_of(&self.out);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io(&path))?;
        let mut left = Vec::with_capacity(self.header.len());
        Read::by_ref(&mut file)
            .take(self.header.len() as u64)
            .read_to_end(&mut left)
            .map_err(Error::io(&path))?;
        let mut have = 0;
        if left == self.header {
            let bytes = file.metadata().map_err(Error::io(&path))?.len();
            have = bytes - self.header.len() as u64;
        }
        if left != self.header || have > self.bytes() {
            have = 0;
            file.set_len(0)
                .and_then(|()| file.seek(SeekFrom::Start(0)))
                .and_then(|_| file.write_all(&self.header))
                .map_err(Error::io(&path))?;
        }
        file.seek(SeekFrom::End(0)).map_err(Error::io(&path))?;
        progress(have);
        for run in &self.runs {
            let skipped = have.min(run.end - run.start);
            have -= skipped;
            let stretch = Stretch {
                client,
                model,
                url: &run.url,
                size: run.size,
                etag: run.etag.clone(),
            };
            let range = (run.start + skipped, run.end);
            stretch.read(range, &mut file, &path, progress)?;
        }
        file.sync_all().map_err(Error::io(&path))?;
        drop(file);
        std::fs::rename(&path, &self.out).map_err(Error::io(&self.out))
    }
}

impl Stretch<'_> {
    /// Bytes `start..end` to `sink`, whose path is for messages. Returns the
    /// content's mark.
    fn read(
        mut self,
        (start, end): (u64, u64),
        sink: &mut dyn Write,
        path: &Path,
        progress: Progress,
    ) -> Result<Option<String>> {
        let mut place = start;
        let mut arrived = Arrived::new(progress);
        self.client.persist(self.url, &mut arrived, |arrived| {
            if place == end {
                return Ok(());
            }
            let mut incoming = self.client.file(
                self.model,
                self.url,
                self.size,
                (place, end),
                self.etag.as_deref(),
            )?;
            let etag = incoming.etag.take();
            let is_other = self.etag.is_some() && etag.is_some() && self.etag != etag;
            if incoming.start != place || is_other {
                return Err(Failure::Final(match self.etag {
                    None => Error::NoParts {
                        url: self.url.to_string(),
                    },
                    Some(_) => wrong(
                        self.url,
                        "the file changed while it was read; run the command again",
                    ),
                }));
            }
            self.etag = etag.or(self.etag.take());
            let mut buffer = vec![0; BUFFER];
            while place < end {
                let n = incoming.read(&mut buffer)?;
                if n == 0 {
                    let missing = end - place;
                    return Err(Failure::temporary(format!(
                        "it ended {missing} bytes early"
                    )));
                }
                let n = n.min((end - place) as usize);
                sink.write_all(&buffer[..n])
                    .map_err(|source| Failure::Final(Error::io(path)(source)))?;
                place += n as u64;
                arrived.reach(place - start);
            }
            Ok(())
        })?;
        Ok(self.etag)
    }
}

/// Where a shard's data begins, what is in it, and the content's mark.
fn read_header(
    client: &Client,
    model: &ModelName,
    url: &Url,
    file: &RemoteFile,
) -> Result<(u64, Metadata, Option<String>)> {
    let read = |range, etag| {
        let stretch = Stretch {
            client,
            model,
            url,
            size: file.size,
            etag,
        };
        let mut bytes = Vec::new();
        let etag = stretch.read(range, &mut bytes, Path::new(&file.path), &|_| ())?;
        Ok::<_, Error>((bytes, etag))
    };
    let no_header = |length| {
        wrong(
            url,
            format!(
                "no safetensors file: {} bytes, of them a header of {length}",
                file.size
            ),
        )
    };
    if file.size <= LENGTH {
        return Err(no_header(0));
    }
    let (bytes, etag) = read((0, LENGTH), None)?;
    let length = bytes
        .try_into()
        .map_or(0, |bytes: [u8; LENGTH as usize]| u64::from_le_bytes(bytes));
    if length == 0 || length > MAX_HEADER || length >= file.size - LENGTH {
        return Err(no_header(length));
    }
    let start = LENGTH + length;
    let (bytes, etag) = read((LENGTH, start), etag)?;
    let metadata: Metadata = serde_json::from_slice(&bytes)
        .map_err(|error| wrong(url, format!("its safetensors header: {error}")))?;
    if start + metadata.data_len() as u64 != file.size {
        return Err(wrong(
            url,
            format!(
                "its safetensors header tells of {} bytes of tensors, and {} follow it",
                metadata.data_len(),
                file.size - start
            ),
        ));
    }
    Ok((start, metadata, etag))
}

/// The beginning of a safetensors file, padded as the format wants it.
fn header(out: &Path, origin: String, tensors: Vec<(String, TensorInfo)>) -> Result<Vec<u8>> {
    let invalid = |reason: String| Error::Hub {
        what: out.display().to_string(),
        reason,
    };
    if tensors.is_empty() {
        return Err(invalid(
            "none of the tensors that it is to hold is in the model".to_owned(),
        ));
    }
    let origin = HashMap::from([("origin".to_owned(), origin)]);
    let metadata =
        Metadata::new(Some(origin), tensors).map_err(|error| invalid(error.to_string()))?;
    let mut text = serde_json::to_vec(&metadata).map_err(|error| invalid(error.to_string()))?;
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text);
    Ok(header)
}
