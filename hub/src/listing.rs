//! What a model holds at one commit.

use serde::{Deserialize, Serialize};

use crate::client::{Client, wrong};
use crate::name::{ModelName, Revision, is_commit};
use crate::{Error, Result};

/// A model's files, as `/api/models/OWNER/NAME/revision/REVISION?blobs=true`
/// tells them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Listing {
    /// The commit that the revision was at.
    #[serde(rename = "sha")]
    pub commit: String,
    siblings: Vec<Sibling>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Lfs {
    size: u64,
    sha256: String,
}

/// A file of the hub.
#[derive(Debug, Clone)]
pub(crate) struct RemoteFile {
    /// Inside the repository; a name that was asked for, so it can be trusted.
    pub path: String,
    pub size: u64,
    pub hash: Option<Hash>,
}

/// What tells that a file is the right one, in lowercase hex.
#[derive(Debug, Clone)]
pub(crate) enum Hash {
    /// Of a large file's content.
    Sha256(String),
    /// Git's name of a small one: SHA-1 over a header and the content.
    GitBlob(String),
}

impl Listing {
    pub fn fetch(client: &Client, model: &ModelName, revision: &Revision) -> Result<Self> {
        let mut url = client.endpoint().join([
            "api",
            "models",
            model.owner(),
            model.name(),
            "revision",
            revision.as_str(),
        ]);
        url.set_query(Some("blobs=true"));
        let listing: Self = client.json(model, &url)?;
        if !is_commit(&listing.commit) {
            return Err(wrong(&url, "it tells no commit (sha)"));
        }
        if revision.is_commit() && listing.commit != revision.as_str() {
            return Err(wrong(
                &url,
                format!("it answers with commit {}", listing.commit),
            ));
        }
        Ok(listing)
    }

    /// The file `path`, where the model has it.
    ///
    /// # Errors
    /// The hub does not tell its size.
    pub fn file(&self, path: &str) -> Result<Option<RemoteFile>> {
        let Some(found) = self.siblings.iter().find(|file| file.rfilename == path) else {
            return Ok(None);
        };
        let size = found.lfs.as_ref().map(|lfs| lfs.size).or(found.size);
        let Some(size) = size else {
            return Err(Error::Hub {
                what: path.to_owned(),
                reason: "the hub does not tell its size".to_owned(),
            });
        };
        let hash = match (&found.lfs, &found.blob_id) {
            (Some(lfs), _) => Some(Hash::Sha256(lfs.sha256.to_ascii_lowercase())),
            (None, Some(id)) => Some(Hash::GitBlob(id.to_ascii_lowercase())),
            (None, None) => None,
        };
        Ok(Some(RemoteFile {
            path: path.to_owned(),
            size,
            hash,
        }))
    }
}
