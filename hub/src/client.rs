//! Requests to a hub: redirects, refusals, and what is tried again.

use std::io::Read;
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use ureq::http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, ETAG, IF_RANGE, LOCATION, RANGE, RETRY_AFTER,
};
use ureq::http::{HeaderMap, HeaderName};
use ureq::{Body, BodyReader};
use url::Url;

use crate::name::{Endpoint, ModelName, Token};
use crate::{Error, Progress, Result};

/// Longest listing.
const MAX_JSON: u64 = 64 << 20;
const MAX_REDIRECTS: usize = 5;
/// Longest wait between two attempts; a hub that asks for more is told to the
/// user.
const MAX_WAIT: Duration = Duration::from_secs(120);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Without a byte.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes that an attempt must bring for the count of failures to begin anew.
const WORTH_GOING_ON: u64 = 16 << 10;

/// How to reach a hub.
pub struct ClientOptions {
    /// The hub, or a mirror of it.
    pub endpoint: Endpoint,
    /// Sent to the endpoint alone, never to where it redirects.
    pub token: Option<Token>,
    /// Failures in a row after which it is given up.
    pub retries: u32,
    /// Wait after the first of them; it doubles with each.
    pub backoff: Duration,
}

impl ClientOptions {
    /// Five retries within half a minute, and no token.
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            token: None,
            retries: 5,
            backoff: Duration::from_secs(1),
        }
    }
}

/// A hub that can be reached.
pub struct Client {
    agent: ureq::Agent,
    options: ClientOptions,
}

/// Why an attempt failed.
pub(crate) enum Failure {
    /// Worth another attempt, perhaps after a wait that the hub asks for.
    Temporary(String, Option<Duration>),
    /// The range asked for is not there.
    NoSuchRange,
    Final(Error),
}

impl Failure {
    pub fn temporary(reason: impl Into<String>) -> Self {
        Failure::Temporary(reason.into(), None)
    }
}

/// A file of the hub that is being sent.
pub(crate) struct Incoming {
    /// Offset in the file of the first byte to be read.
    pub start: u64,
    /// The hub's mark of this very content.
    pub etag: Option<String>,
    reader: BodyReader<'static>,
}

impl Incoming {
    /// Bytes read into `buffer`, 0 at the end.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Failure> {
        self.reader
            .read(buffer)
            .map_err(|error| Failure::temporary(format!("the connection broke: {error}")))
    }
}

/// How far a file has come; bytes that have to be fetched twice count once.
pub(crate) struct Arrived<'a> {
    bytes: u64,
    progress: Progress<'a>,
}

impl<'a> Arrived<'a> {
    pub fn new(progress: Progress<'a>) -> Self {
        Self { bytes: 0, progress }
    }

    /// `bytes` are here by now.
    pub fn reach(&mut self, bytes: u64) {
        if bytes > self.bytes {
            (self.progress)(bytes - self.bytes);
            self.bytes = bytes;
        }
    }
}

impl Client {
    /// Makes no connection yet.
    pub fn new(options: ClientOptions) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // Followed here, where the token is kept from other origins.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(SILENCE_TIMEOUT))
            .timeout_per_read(Some(SILENCE_TIMEOUT))
            .user_agent(concat!("qbridge/", env!("CARGO_PKG_VERSION")))
            .build();
        Self {
            agent: ureq::Agent::new_with_config(config),
            options,
        }
    }

    /// Where it is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.options.endpoint
    }

    /// A JSON answer.
    pub(crate) fn json<T: DeserializeOwned>(&self, model: &ModelName, url: &Url) -> Result<T> {
        let bytes = self.persist(url, &mut Arrived::new(&|_| ()), |_| {
            let (_, body) = self.get(model, url, &[])?;
            let mut bytes = Vec::new();
            body.into_reader()
                .take(MAX_JSON + 1)
                .read_to_end(&mut bytes)
                .map_err(|error| Failure::temporary(format!("the connection broke: {error}")))?;
            Ok(bytes)
        })?;
        if bytes.len() as u64 > MAX_JSON {
            return Err(wrong(
                url,
                format!("a listing of more than {MAX_JSON} bytes"),
            ));
        }
        serde_json::from_slice(&bytes)
            .map_err(|error| wrong(url, format!("not what a hub answers: {error}")))
    }

    /// A file of `size` bytes from `start` to `end`. Where the hub sends no
    /// part of it, or it is no longer the content that `etag` marks, it comes
    /// from the beginning.
    pub(crate) fn file(
        &self,
        model: &ModelName,
        url: &Url,
        size: u64,
        (start, end): (u64, u64),
        etag: Option<&str>,
    ) -> Result<Incoming, Failure> {
        let is_whole = (start, end) == (0, size);
        let mut headers = vec![(ACCEPT_ENCODING, "identity".to_owned())];
        if !is_whole {
            headers.push((RANGE, format!("bytes={start}-{}", end - 1)));
            headers.extend(etag.map(|etag| (IF_RANGE, etag.to_owned())));
        }
        let (head, body) = self.get(model, url, &headers)?;
        let start = match head.status {
            206 if content_range(&head.headers) != Some((start, end, size)) => {
                return Err(Failure::temporary(
                    "it sent another part than was asked for",
                ));
            }
            206 => start,
            _ => 0,
        };
        Ok(Incoming {
            start,
            etag: strong_etag(&head.headers),
            reader: body.into_reader(),
        })
    }

    /// Calls `attempt` until it is done, fails for good, or has failed too
    /// often without bringing anything new.
    pub(crate) fn persist<T>(
        &self,
        url: &Url,
        arrived: &mut Arrived,
        mut attempt: impl FnMut(&mut Arrived) -> Result<T, Failure>,
    ) -> Result<T> {
        let mut failures = 0;
        loop {
            let before = arrived.bytes;
            let (reason, wait) = match attempt(arrived) {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::NoSuchRange) => ("it has no such part".to_owned(), None),
                Err(Failure::Temporary(reason, wait)) => (reason, wait),
            };
            if arrived.bytes - before >= WORTH_GOING_ON {
                failures = 0;
            }
            failures += 1;
            if failures > self.options.retries {
                return Err(wrong(
                    url,
                    format!(
                        "{reason}; given up after {failures} attempts: run the command again to go on from here"
                    ),
                ));
            }
            let wait = wait.unwrap_or_else(|| {
                let doubled = 1 << (failures - 1).min(16);
                self.options.backoff.saturating_mul(doubled).min(MAX_WAIT)
            });
            if wait > MAX_WAIT {
                return Err(wrong(
                    url,
                    format!(
                        "{reason}; the hub asks to come back in {} s",
                        wait.as_secs()
                    ),
                ));
            }
            tracing::warn!("{url}: {reason}; trying again in {:.0?}", wait);
            std::thread::sleep(wait);
        }
    }

    /// One request, redirects followed: the head of an answer with a body that
    /// was asked for, and the body.
    fn get(
        &self,
        model: &ModelName,
        url: &Url,
        headers: &[(HeaderName, String)],
    ) -> Result<(Head, Body), Failure> {
        let refuse = |reason: String| Failure::Final(wrong(url, reason));
        let mut place = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent.get(place.as_str());
            for (name, value) in headers {
                request = request.header(name, value);
            }
            let token = self.options.token.as_ref();
            if let Some(token) = token.filter(|_| self.options.endpoint.is_origin_of(&place)) {
                request = request.header(AUTHORIZATION, token.header());
            }
            let response = request.call().map_err(|error| match error {
                ureq::Error::BadUri(_)
                | ureq::Error::Http(_)
                | ureq::Error::Tls(_)
                | ureq::Error::Rustls(_)
                | ureq::Error::InvalidProxyUrl => refuse(error.to_string()),
                error => Failure::temporary(format!("it cannot be reached: {error}")),
            })?;
            let (parts, body) = response.into_parts();
            let head = Head {
                status: parts.status.as_u16(),
                headers: parts.headers,
            };
            match head.status {
                200 => return Ok((head, body)),
                206 if headers.iter().any(|(name, _)| name == RANGE) => return Ok((head, body)),
                301 | 302 | 303 | 307 | 308 => {
                    let target = head.text(&LOCATION).and_then(|to| place.join(to).ok());
                    place = match target {
                        Some(to) if to.scheme() == "https" || to.scheme() == place.scheme() => to,
                        _ => return Err(refuse("it redirects to nowhere safe".to_owned())),
                    };
                }
                _ => return Err(self.refusal(model, url, &head)),
            }
        }
        Err(refuse(format!("more than {MAX_REDIRECTS} redirects")))
    }

    /// What an answer without content means.
    fn refusal(&self, model: &ModelName, url: &Url, head: &Head) -> Failure {
        let code = head.text(&HeaderName::from_static("x-error-code"));
        let reason = match (head.status, code) {
            (408 | 429 | 500..=599, _) => {
                let reason = format!("it is busy or broken (status {})", head.status);
                return Failure::Temporary(reason, head.retry_after());
            }
            (416, _) => return Failure::NoSuchRange,
            (_, Some("GatedRepo")) => format!(
                "the model's terms must be accepted first: do so at {}/{model}, then set HF_TOKEN to a token of that account",
                self.options.endpoint
            ),
            (404, Some("RevisionNotFound")) => "the model has no such revision".to_owned(),
            (404, Some("EntryNotFound")) => "the model has no such file".to_owned(),
            (401 | 403, _) if self.options.token.is_some() => {
                "there is no such model, or the token in HF_TOKEN may not read it".to_owned()
            }
            (401 | 403, _) => {
                "there is no such model, or it is private or gated, and then HF_TOKEN must hold a token that may read it".to_owned()
            }
            (404, _) => "there is no such model, revision or file".to_owned(),
            _ => "an answer that a hub does not give".to_owned(),
        };
        Failure::Final(wrong(url, format!("{reason} (status {})", head.status)))
    }
}

/// Status and headers of an answer.
struct Head {
    status: u16,
    headers: HeaderMap,
}

impl Head {
    fn text(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Seconds, or a date.
    fn retry_after(&self) -> Option<Duration> {
        let value = self.text(&RETRY_AFTER)?.trim();
        if let Ok(seconds) = value.parse() {
            return Some(Duration::from_secs(seconds));
        }
        let date = httpdate::parse_http_date(value).ok()?;
        Some(date.duration_since(SystemTime::now()).unwrap_or_default())
    }
}

pub(crate) fn wrong(url: &Url, reason: impl Into<String>) -> Error {
    Error::Hub {
        what: url.to_string(),
        reason: reason.into(),
    }
}

/// Start, end and size that `bytes START-LAST/SIZE` tells.
fn content_range(headers: &HeaderMap) -> Option<(u64, u64, u64)> {
    let value = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, size) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (start, last) = range.split_once('-')?;
    let end = last.parse::<u64>().ok()?.checked_add(1)?;
    Some((start.parse().ok()?, end, size.parse().ok()?))
}

/// The mark of a content, where it is one of its bytes and not of its meaning.
fn strong_etag(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(ETAG)?.to_str().ok()?;
    value.starts_with('"').then(|| value.to_owned())
}
