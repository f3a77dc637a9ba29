//! One file, whole: resumed where the connection broke, and checked against the
//! hub's hash before it gets its name.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha1::Sha1;
use sha2::{Digest, Sha256};
use url::Url;

use crate::client::{Arrived, Client, Failure, wrong};
use crate::listing::{Hash, RemoteFile};
use crate::name::ModelName;
use crate::{Error, Progress, Result};

/// Bytes that are read at once.
pub(crate) const BUFFER: usize = 256 << 10;

/// Fetches `file` to `path`, by way of `path` with `.part` behind it, which an
/// interruption leaves and the next call goes on with. `progress` is told the
/// bytes that are there already, too.
pub(crate) fn fetch(
    client: &Client,
    model: &ModelName,
    url: &Url,
    file: &RemoteFile,
    path: &Path,
    progress: Progress,
) -> Result<()> {
    let mut part = Part::open(path, file)?;
    let mut arrived = Arrived::new(progress);
    let mut etag: Option<String> = None;
    // Whether all of it is from one answer.
    let mut is_of_one_piece = false;
    client.persist(url, &mut arrived, |arrived| {
        arrived.reach(part.have);
        if part.have < file.size {
            let range = (part.have, file.size);
            let incoming = client.file(model, url, file.size, range, etag.as_deref());
            if let Err(Failure::NoSuchRange) = incoming {
                part.restart()?;
            }
            let mut incoming = incoming?;
            if incoming.start < part.have {
                part.restart()?;
            }
            is_of_one_piece = part.have == 0;
            etag = incoming.etag.take();
            let mut buffer = vec![0; BUFFER];
            loop {
                let n = incoming.read(&mut buffer)?;
                if n == 0 {
                    break;
                }
                if n as u64 > file.size - part.have {
                    part.restart()?;
                    let reason = format!("it sent more than the {} bytes that it lists", file.size);
                    return Err(Failure::Final(wrong(url, reason)));
                }
                part.append(&buffer[..n])?;
                arrived.reach(part.have);
            }
            if part.have < file.size {
                return Err(Failure::temporary(format!(
                    "it sent {} of {} bytes",
                    part.have, file.size
                )));
            }
        }
        part.check(url, file, is_of_one_piece)
    })?;
    part.publish(path)
}

/// A file that is not whole yet.
struct Part {
    path: PathBuf,
    file: File,
    have: u64,
    hasher: Hasher,
    hash: Option<Hash>,
    size: u64,
}

impl Part {
    /// Takes up what an earlier run left, unless nothing could tell whether it
    /// is of this very file.
    fn open(path: &Path, remote: &RemoteFile) -> Result<Self> {
        let path = part_of(path);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io(&path))?;
        let left = file.metadata().map_err(Error::io(&path))?.len();
        let mut hasher = Hasher::new(remote.hash.as_ref(), remote.size);
        let mut have = 0;
        if left > remote.size || (left > 0 && remote.hash.is_none()) {
            file.set_len(0).map_err(Error::io(&path))?;
        } else {
            let mut buffer = vec![0; BUFFER];
            while have < left {
                let most = buffer.len().min((left - have) as usize);
                let n = file.read(&mut buffer[..most]).map_err(Error::io(&path))?;
                if n == 0 {
                    break;
                }
                hasher.update(&buffer[..n]);
                have += n as u64;
            }
        }
        Ok(Self {
            path,
            file,
            have,
            hasher,
            hash: remote.hash.clone(),
            size: remote.size,
        })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_all(bytes).map_err(self.failed())?;
        self.hasher.update(bytes);
        self.have += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> Result<(), Failure> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .map_err(self.failed())?;
        self.have = 0;
        self.hasher = Hasher::new(self.hash.as_ref(), self.size);
        Ok(())
    }

    /// Compares the hash of the whole file, which begins anew where it differs.
    fn check(
        &mut self,
        url: &Url,
        file: &RemoteFile,
        is_of_one_piece: bool,
    ) -> Result<(), Failure> {
        let hasher = std::mem::replace(&mut self.hasher, Hasher::None);
        let reason = match (hasher.finish(), &file.hash) {
            (Some(found), Some(Hash::Sha256(listed) | Hash::GitBlob(listed)))
                if found != *listed =>
            {
                format!("what it sent has the hash {found}, and it lists {listed}")
            }
            _ => return Ok(()),
        };
        self.restart()?;
        Err(if is_of_one_piece {
            Failure::Final(wrong(url, reason))
        } else {
            Failure::temporary(reason)
        })
    }

    fn publish(self, path: &Path) -> Result<()> {
        self.file.sync_all().map_err(Error::io(&self.path))?;
        drop(self.file);
        std::fs::rename(&self.path, path).map_err(Error::io(path))
    }

    fn failed(&self) -> impl FnOnce(std::io::Error) -> Failure + use<> {
        let tie = Error::io(&self.path);
        move |source| Failure::Final(tie(source))
    }
}

enum Hasher {
    Sha256(Sha256),
    Sha1(Sha1),
    None,
}

impl Hasher {
    fn new(hash: Option<&Hash>, size: u64) -> Self {
        match hash {
            Some(Hash::Sha256(_)) => Hasher::Sha256(Sha256::new()),
            Some(Hash::GitBlob(_)) => Hasher::Sha1(Sha1::new_with_prefix(format!("blob {size}\0"))),
            None => Hasher::None,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha1(hasher) => hasher.update(bytes),
            Hasher::None => {}
        }
    }

    fn finish(self) -> Option<String> {
        match self {
            Hasher::Sha256(hasher) => Some(hex(&hasher.finalize())),
            Hasher::Sha1(hasher) => Some(hex(&hasher.finalize())),
            Hasher::None => None,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where a file lies until it is whole.
pub(crate) fn part_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    name.into()
}
