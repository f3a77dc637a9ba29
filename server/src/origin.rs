//! Pages of other origins that may use the server from a browser.

use std::str::FromStr;
use std::time::Duration;

use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderName, HeaderValue, Method};
use reqwest::Url;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// Longest time that a browser may remember what is allowed.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// An origin as browsers write it (`https://example.com:8443`), or `*` for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorsOrigin(HeaderValue);

impl FromStr for CorsOrigin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = "expected an origin such as https://example.com, or *";
        if text == "*" {
            return Ok(CorsOrigin(HeaderValue::from_static("*")));
        }
        let url = Url::parse(text).map_err(|_| wanted.to_owned())?;
        // What is more than an origin never equals what a browser sends.
        let origin = url.origin().ascii_serialization();
        match origin == text && url.has_host() && !text.contains('*') {
            true => HeaderValue::from_str(&origin)
                .map(CorsOrigin)
                .map_err(|_| wanted.to_owned()),
            false => Err(wanted.to_owned()),
        }
    }
}

/// What lets pages of `origins` in; `None` where there are none, and browsers then keep all out.
pub(crate) fn layer(origins: &[CorsOrigin]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let origin = match origins.iter().any(|origin| origin.0 == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(origins.iter().map(|origin| origin.0.clone())),
    };
    let layer = CorsLayer::new()
        .allow_origin(origin)
        .allow_methods([Method::GET, Method::POST])
        // OpenAI's client sends a dozen of its own.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([HeaderName::from_static("x-request-id"), RETRY_AFTER])
        .max_age(MAX_AGE);
    Some(layer)
}
