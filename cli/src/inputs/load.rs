//! The bytes of pictures, from wherever they are.

use std::path::Path;
use std::sync::Arc;

use qformer::image::ImageLimits;
use server::fetch::{FetchOptions, Fetcher};

use super::Picture;
use crate::batch::{Failure, read_image};

/// Reads pictures, and fetches those at public addresses under the server's rules.
pub struct Loader {
    fetcher: Fetcher,
}

impl Loader {
    /// A loader with the server's own limits.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new() -> anyhow::Result<Loader> {
        Ok(Loader {
            fetcher: Fetcher::new(FetchOptions::default())?,
        })
    }

    /// The bytes of a picture; `check` is asked first about one that has a file of its own.
    ///
    /// # Errors
    /// It cannot be read or fetched, or the check failed.
    pub async fn load(
        &self,
        picture: Picture,
        check: impl FnOnce(&Path) -> anyhow::Result<()> + Send + 'static,
    ) -> Result<Arc<[u8]>, Failure> {
        match picture {
            Picture::Bytes(bytes) => Ok(bytes),
            Picture::Unreadable(reason) => Err(Failure::Picture(reason)),
            Picture::File(path) => read_image(path, check).await,
            Picture::Url(url) => {
                let limit = ImageLimits::default().max_bytes;
                let fetch = async {
                    let url = self.fetcher.check(&url)?;
                    let deadline = self.fetcher.deadline();
                    self.fetcher.fetch(&url, limit, deadline).await
                };
                let bytes = fetch.await;
                bytes
                    .map(Arc::from)
                    .map_err(|error| Failure::Picture(error.to_string()))
            }
        }
    }
}
