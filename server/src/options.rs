//! Limits of the server, each with its default.

use std::time::Duration;

/// Most bytes of a request's body.
pub const MAX_BODY_BYTES: usize = 32 << 20;
/// Most bytes of an image, decoded from base64: OpenAI's limit.
pub const MAX_IMAGE_BYTES: usize = 20 << 20;
/// Most images in a request.
pub const MAX_IMAGES: usize = 16;
/// Most requests that are read, wait or generate at once.
pub const MAX_REQUESTS: usize = 64;
/// Longest time from a request's first byte to the end of its answer.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest time that running requests get to end when the server stops.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(30);

/// How to serve.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Names that requests may use for the model besides its own.
    pub aliases: Vec<String>,
    /// Most bytes of a request's body; 413 beyond.
    pub max_body_bytes: usize,
    /// Most bytes of an image, decoded from base64; 413 beyond.
    pub max_image_bytes: usize,
    /// Most images in a request; 400 beyond.
    pub max_images: usize,
    /// Most requests at once, those that wait for the model included. The rest is answered 503 before its body is read,
    /// so this times `max_body_bytes` bounds the memory that requests hold.
    pub max_requests: usize,
    /// Longest time from a request's first byte to the end of its answer.
    pub request_timeout: Duration,
    /// Longest time that running requests get to end when the server stops.
    pub shutdown_grace: Duration,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            aliases: Vec::new(),
            max_body_bytes: MAX_BODY_BYTES,
            max_image_bytes: MAX_IMAGE_BYTES,
            max_images: MAX_IMAGES,
            max_requests: MAX_REQUESTS,
            request_timeout: REQUEST_TIMEOUT,
            shutdown_grace: SHUTDOWN_GRACE,
        }
    }
}
