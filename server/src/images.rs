//! Pictures of a request: within it, from other servers, or from the server's own disk.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;
use reqwest::Url;

use crate::fetch::Fetcher;
use crate::{Error, Result, ServeOptions, data_uri};

/// Most pictures of one request that are fetched at once.
const CONCURRENT: usize = 4;

/// Pictures of a request, in its order.
#[derive(Debug)]
pub(crate) struct Images {
    sources: Vec<Source>,
    params: Vec<String>,
    /// The field that holds them all.
    root: &'static str,
    most: usize,
}

/// Where a picture's bytes are.
#[derive(Debug)]
enum Source {
    Here(Arc<[u8]>),
    Remote(Arc<Fetcher>, Url),
}

impl Images {
    /// None yet, and room for `most`, all of them in the field `root`.
    pub(crate) fn new(root: &'static str, most: usize) -> Images {
        Images {
            sources: Vec::new(),
            params: Vec::new(),
            root,
            most,
        }
    }

    /// Takes the picture at `url`, which stands at `param`; its index. Nothing is fetched yet.
    pub(crate) fn add(
        &mut self,
        url: &str,
        param: String,
        options: &ServeOptions,
    ) -> Result<usize> {
        if self.sources.len() == self.most {
            return Err(Error::invalid(
                self.root,
                format!("must not hold more than {} pictures", self.most),
            ));
        }
        self.sources.push(source(url, &param, options)?);
        self.params.push(param);
        Ok(self.sources.len() - 1)
    }

    /// The field of the picture that the model's errors are about: certain where there is one.
    pub(crate) fn param(&self) -> String {
        match self.params.as_slice() {
            [only] => only.clone(),
            _ => self.root.to_owned(),
        }
    }

    /// The encoded picture files that came with the request.
    pub(crate) fn here(self) -> Vec<Arc<[u8]>> {
        let here = self.sources.into_iter().filter_map(|source| match source {
            Source::Here(bytes) => Some(bytes),
            Source::Remote(..) => None,
        });
        here.collect()
    }

    /// The encoded picture files; the remote ones are fetched within one deadline. Together they may have as many bytes as
    /// a body, so that what requests hold in memory stays bounded wherever their pictures are.
    pub(crate) async fn load(self, options: &ServeOptions) -> Result<Vec<Arc<[u8]>>> {
        let (each, together) = (options.max_image_bytes, options.max_body_bytes);
        let root = self.root;
        let deadline = self.sources.iter().find_map(|source| match source {
            Source::Remote(fetcher, _) => Some(fetcher.deadline()),
            Source::Here(_) => None,
        });
        let loads = self.sources.into_iter().zip(self.params);
        let mut loads = stream::iter(loads.map(|(source, param)| async move {
            match (source, deadline) {
                (Source::Remote(fetcher, url), Some(deadline)) => {
                    let bytes = fetcher.fetch(&url, each, deadline).await;
                    bytes
                        .map(Arc::from)
                        .map_err(|error| Error::from_fetch(&error, &url, &param))
                }
                (Source::Here(bytes), _) => Ok(bytes),
                (Source::Remote(..), None) => Err(Error::Internal),
            }
        }))
        .buffered(CONCURRENT);
        let mut files = Vec::new();
        let mut length = 0;
        while let Some(file) = loads.next().await {
            let file: Arc<[u8]> = file?;
            length += file.len();
            if length > together {
                return Err(Error::ImageTooLarge {
                    param: root.to_owned(),
                    reason: format!("the pictures have more than {together} bytes together"),
                });
            }
            files.push(file);
        }
        Ok(files)
    }
}

fn source(url: &str, param: &str, options: &ServeOptions) -> Result<Source> {
    let Some((scheme, rest)) = url.split_once(':') else {
        return Err(Error::invalid_image(
            param,
            "image_url is not a URL: send a data: URI",
        ));
    };
    let off = |reason| {
        Err(Error::RemoteImage {
            param: param.to_owned(),
            reason,
        })
    };
    let limit = options.max_image_bytes;
    match scheme.to_ascii_lowercase().as_str() {
        "data" => data_uri::decode(rest, limit, param).map(Source::Here),
        "http" | "https" => {
            let Some(fetcher) = &options.fetcher else {
                return off("this server does not fetch pictures");
            };
            match fetcher.check(url) {
                Ok(url) => Ok(Source::Remote(fetcher.clone(), url)),
                Err(error) => Err(Error::ImageFetch {
                    param: param.to_owned(),
                    reason: error.to_string(),
                }),
            }
        }
        "file" => match &options.media {
            Some(media) => media.read(url, limit, param).map(Source::Here),
            None => off("this server does not read files"),
        },
        _ => Err(Error::invalid_image(
            param,
            "image_url must be a data:, http: or https: URL",
        )),
    }
}
