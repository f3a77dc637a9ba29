//! The index file: what usearch wrote, then what qbridge knows of it, then 32 bytes that say where each ends.
//!
//! ```text
//! usearch's file             vectors and graph, mapped into memory as they are
//! JSON                       About, and the names of the pictures
//! QBINDEX\0                  8 bytes
//! format                     u32
//! CRC-32 of all before that  u32
//! length of usearch's file   u64
//! length of the JSON         u64
//! ```
//!
//! Numbers are little-endian. usearch finds all it needs from the beginning of its file, so the rest does not disturb it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

const MAGIC: [u8; 8] = *b"QBINDEX\0";

/// The layout that is written and read.
const FORMAT: u32 = 1;

const FOOTER_BYTES: u64 = 32;

/// Bytes that are read at once.
const CHUNK: usize = 1 << 20;

/// What an index is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Name of the bundle that made the features.
    pub bundle: String,
    /// Hash of its files.
    pub bundle_hash: String,
    /// Where it was.
    pub bundle_dir: PathBuf,
    /// Numbers of a row of features.
    pub dimensions: usize,
    /// Rows of features of a picture.
    pub rows: usize,
    /// Column of Parquet files that the pictures came from, where it was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_column: Option<String>,
}

/// What stands behind usearch's file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Contents {
    pub about: About,
    /// In the order of their rows.
    pub names: Vec<String>,
}

/// Puts `contents` behind what usearch wrote to `path`.
pub(crate) fn finish(path: &Path, contents: &Contents) -> Result<()> {
    let io = || Error::io(path);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(io())?;
    let length = file.metadata().map_err(io())?.len();
    let mut crc = crc32fast::Hasher::new();
    hash(&mut file, length, &mut crc).map_err(io())?;
    let json = serde_json::to_vec(contents).map_err(|error| io()(error.into()))?;
    crc.update(&json);
    file.seek(SeekFrom::Start(length)).map_err(io())?;
    file.write_all(&json).map_err(io())?;
    let mut footer = Vec::with_capacity(FOOTER_BYTES as usize);
    footer.extend(MAGIC);
    footer.extend(FORMAT.to_le_bytes());
    footer.extend(crc.finalize().to_le_bytes());
    footer.extend(length.to_le_bytes());
    footer.extend((json.len() as u64).to_le_bytes());
    file.write_all(&footer).map_err(io())?;
    file.sync_all().map_err(io())
}

/// Reads what stands behind usearch's file, after a look at every byte: the library trusts what it reads.
pub(crate) fn read(path: &Path) -> Result<Contents> {
    let io = || Error::io(path);
    let not_an_index = || Error::NotAnIndex {
        path: path.to_owned(),
    };
    let mut file = File::open(path).map_err(io())?;
    let metadata = file.metadata().map_err(io())?;
    if !metadata.is_file() || metadata.len() < FOOTER_BYTES {
        return Err(not_an_index());
    }
    let body = metadata.len() - FOOTER_BYTES;
    file.seek(SeekFrom::Start(body)).map_err(io())?;
    let mut footer = [0; FOOTER_BYTES as usize];
    file.read_exact(&mut footer).map_err(io())?;
    let Some(footer) = Footer::parse(&footer) else {
        return Err(not_an_index());
    };
    if footer.format != FORMAT {
        return Err(Error::Format {
            path: path.to_owned(),
            found: footer.format,
            known: FORMAT,
        });
    }
    if footer.library.checked_add(footer.json) != Some(body) {
        let reason = format!(
            "parts of {} and {} bytes, and there are {body}",
            footer.library, footer.json
        );
        return Err(Error::damaged(path, reason));
    }
    let mut crc = crc32fast::Hasher::new();
    file.rewind().map_err(io())?;
    hash(&mut file, footer.library, &mut crc).map_err(io())?;
    let mut json = Vec::new();
    file.take(footer.json)
        .read_to_end(&mut json)
        .map_err(io())?;
    crc.update(&json);
    if crc.finalize() != footer.crc {
        return Err(Error::damaged(path, "its checksum is another"));
    }
    serde_json::from_slice(&json).map_err(|error| Error::damaged(path, error.to_string()))
}

struct Footer {
    format: u32,
    crc: u32,
    library: u64,
    json: u64,
}

impl Footer {
    fn parse(bytes: &[u8; FOOTER_BYTES as usize]) -> Option<Footer> {
        let (magic, rest) = bytes.split_first_chunk()?;
        let (format, rest) = rest.split_first_chunk()?;
        let (crc, rest) = rest.split_first_chunk()?;
        let (library, rest) = rest.split_first_chunk()?;
        let (json, _) = rest.split_first_chunk()?;
        (*magic == MAGIC).then_some(Footer {
            format: u32::from_le_bytes(*format),
            crc: u32::from_le_bytes(*crc),
            library: u64::from_le_bytes(*library),
            json: u64::from_le_bytes(*json),
        })
    }
}

/// Hashes the next `length` bytes.
fn hash(file: &mut File, length: u64, crc: &mut crc32fast::Hasher) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut left = length;
    while left > 0 {
        let n = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
        file.read_exact(&mut chunk[..n])?;
        crc.update(&chunk[..n]);
        left -= n as u64;
    }
    Ok(())
}
