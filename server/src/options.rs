//! Limits of the server, each with its default.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::auth::ApiKeys;
use crate::fetch::Fetcher;
use crate::media::MediaDir;
use crate::origin::CorsOrigin;
use crate::tls::Tls;
use crate::traces::Traces;

/// Most bytes of a request's body.
pub const MAX_BODY_BYTES: usize = 32 << 20;
/// Most bytes of an image, decoded from base64: OpenAI's limit.
pub const MAX_IMAGE_BYTES: usize = 20 << 20;
/// Most images in a request.
pub const MAX_IMAGES: usize = 16;
/// Most requests that are read, wait or generate at once.
pub const MAX_REQUESTS: usize = 64;
/// Longest time for a request's head, and for its body.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest time from a request's last byte to its first token.
pub const FIRST_TOKEN_TIMEOUT: Duration = Duration::from_secs(300);
/// Longest time from a request's first byte to the end of its answer.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest time that running requests get to end when the server stops.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(30);

/// How to serve.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Other names of models, each with the name that it stands for.
    pub aliases: BTreeMap<String, String>,
    /// Keys that requests must show one of; without, everyone is answered.
    pub api_keys: Option<ApiKeys>,
    /// Answer everyone on an address that other machines reach, too.
    pub no_auth: bool,
    /// Names beside `localhost` that requests to a server on a loopback address may call it by, where there are no keys:
    /// a page whose name leads to this machine (DNS rebinding) is none of them.
    pub hosts: Vec<String>,
    /// Pages that may use the server from a browser; none by default.
    pub cors_origins: Vec<CorsOrigin>,
    /// Serve the page at `/`, which needs no key itself.
    pub page: bool,
    /// Certificate and key of `https`; plain `http` without.
    pub tls: Option<Tls>,
    /// What fetches pictures from `http` and `https` URLs; without, they are refused.
    pub fetcher: Option<Arc<Fetcher>>,
    /// The directory that `file` URLs may name files of; without, they are refused.
    pub media: Option<MediaDir>,
    /// Most bytes of a request's body, and of its pictures together; 413 beyond.
    pub max_body_bytes: usize,
    /// Most bytes of an image, decoded from base64; 413 beyond.
    pub max_image_bytes: usize,
    /// Most images in a request; 400 beyond.
    pub max_images: usize,
    /// Most requests at once, those that wait for the model included. The rest is answered 429 before its body is read,
    /// so this times `max_body_bytes` bounds the memory that requests hold.
    pub max_requests: usize,
    /// Longest time for a request's head, and for its body.
    pub body_timeout: Duration,
    /// Longest time from the model being asked to its first token: waiting for a slot, pictures, prefill.
    pub first_token_timeout: Duration,
    /// Longest time from a request's first byte to the end of its answer.
    pub request_timeout: Duration,
    /// Longest time that running requests get to end when the server stops.
    pub shutdown_grace: Duration,
    /// Where spans of requests go; nowhere without.
    pub traces: Option<Arc<Traces>>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            aliases: BTreeMap::new(),
            api_keys: None,
            no_auth: false,
            hosts: Vec::new(),
            cors_origins: Vec::new(),
            page: true,
            tls: None,
            fetcher: None,
            media: None,
            max_body_bytes: MAX_BODY_BYTES,
            max_image_bytes: MAX_IMAGE_BYTES,
            max_images: MAX_IMAGES,
            max_requests: MAX_REQUESTS,
            body_timeout: BODY_TIMEOUT,
            first_token_timeout: FIRST_TOKEN_TIMEOUT,
            request_timeout: REQUEST_TIMEOUT,
            shutdown_grace: SHUTDOWN_GRACE,
            traces: None,
        }
    }
}
