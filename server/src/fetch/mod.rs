//! Pictures from other servers, for whoever may name them without being trusted.
//!
//! - `policy`: which URLs may be fetched, from the URL alone
//! - [`is_public`]: which addresses may be connected to
//! - `resolver`: names to addresses, each checked, and the checked ones are those that are connected to
//! - `error`: what went wrong, in words that tell nothing about the network this runs in
//!
//! Nothing here is taken from the environment: no proxy, no credentials, no cookies. What a picture is, its own bytes say;
//! the type that the other server declares is not looked at.

mod address;
mod error;
mod policy;
mod resolver;

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT, LOCATION};
use reqwest::redirect::Policy as RedirectPolicy;
use reqwest::{Client, Response, StatusCode, Url};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

pub use address::is_public;
pub use error::FetchError;
pub use policy::{Hosts, UrlPolicy};
pub use resolver::{Resolver, Resolving, SystemResolver};

use resolver::CheckedResolver;

/// Most redirects that are followed.
pub const MAX_REDIRECTS: usize = 3;
/// Most pictures that are fetched at once, over all requests.
pub const MAX_CONCURRENT: usize = 16;
/// Longest time for one picture, from the queue to its last byte.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// How to fetch.
#[derive(Clone)]
pub struct FetchOptions {
    /// Which URLs may be fetched.
    pub urls: UrlPolicy,
    /// Which addresses may be connected to.
    pub addresses: fn(std::net::IpAddr) -> bool,
    /// Where addresses come from.
    pub resolver: Arc<dyn Resolver>,
    /// Most fetches at once; the others wait, within their own deadline.
    pub max_concurrent: usize,
    /// Longest time for one fetch: waiting, names, redirects and body together.
    pub timeout: Duration,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self {
            urls: UrlPolicy::default(),
            addresses: is_public,
            resolver: Arc::new(SystemResolver),
            max_concurrent: MAX_CONCURRENT,
            timeout: TIMEOUT,
        }
    }
}

/// Fetches pictures. Clones share their connections and their limit.
#[derive(Clone)]
pub struct Fetcher {
    client: Client,
    urls: UrlPolicy,
    addresses: fn(std::net::IpAddr) -> bool,
    room: Arc<Semaphore>,
    timeout: Duration,
}

impl Fetcher {
    /// A fetcher with its own connections.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(options: FetchOptions) -> Result<Fetcher, FetchError> {
        let client = Client::builder()
            .tls_backend_preconfigured(crate::tls::client_config()?)
            .dns_resolver(Arc::new(CheckedResolver {
                resolver: options.resolver,
                allowed: options.addresses,
            }))
            .no_proxy()
            .redirect(RedirectPolicy::none())
            .referer(false)
            .user_agent(concat!("qbridge/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(FetchError::setup)?;
        Ok(Fetcher {
            client,
            urls: options.urls,
            addresses: options.addresses,
            room: Arc::new(Semaphore::new(options.max_concurrent)),
            timeout: options.timeout,
        })
    }

    /// When a fetch that starts now must have ended.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Parses a URL and checks it as far as that goes without the network.
    ///
    /// # Errors
    /// It is no URL, or not one that may be fetched.
    pub fn check(&self, url: &str) -> Result<Url, FetchError> {
        let url = Url::parse(url).map_err(|_| FetchError::InvalidUrl)?;
        self.urls.check(&url, self.addresses)?;
        Ok(url)
    }

    /// The bytes at `url`, at most `limit`, until `deadline`.
    ///
    /// # Errors
    /// As the variants of [`FetchError`] say. Their words are safe to send to whoever named the URL; what the network said
    /// is in the source only.
    pub async fn fetch(
        &self,
        url: &Url,
        limit: usize,
        deadline: Instant,
    ) -> Result<Vec<u8>, FetchError> {
        timeout_at(deadline, async {
            let _place = self.room.acquire().await.map_err(FetchError::setup)?;
            let response = self.follow(url.clone()).await?;
            read(response, limit).await
        })
        .await
        .map_err(|_| FetchError::Timeout)?
    }

    /// The answer at the end of the redirects, each of them checked like the first URL.
    async fn follow(&self, mut url: Url) -> Result<Response, FetchError> {
        for _ in 0..=MAX_REDIRECTS {
            self.urls.check(&url, self.addresses)?;
            let request = self.client.get(url.clone()).header(ACCEPT, "image/*");
            let response = request.send().await.map_err(FetchError::unreachable)?;
            let status = response.status();
            if !is_redirect(status) {
                return match status.is_success() {
                    true => Ok(response),
                    false => Err(FetchError::Status(status.as_u16())),
                };
            }
            let location = response.headers().get(LOCATION);
            let location = location.and_then(|location| location.to_str().ok());
            url = location
                .and_then(|location| url.join(location).ok())
                .ok_or(FetchError::Status(status.as_u16()))?;
        }
        Err(FetchError::TooManyRedirects)
    }
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetcher")
            .field("urls", &self.urls)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// The whole body. A length told in advance is believed where it is too long, and nowhere else: the bytes are counted.
async fn read(mut response: Response, limit: usize) -> Result<Vec<u8>, FetchError> {
    let too_large = || FetchError::TooLarge { limit };
    if response
        .content_length()
        .is_some_and(|length| length > limit as u64)
    {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(FetchError::broken)? {
        if chunk.len() > limit - bytes.len() {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}
