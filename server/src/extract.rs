//! Reading a body, with failures in the API's own shape.

use std::error::Error as _;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::LengthLimitError;

use crate::{Error, Result};

/// The whole body, which must call itself JSON and have at most `limit` bytes.
pub(crate) async fn json_body(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes> {
    if !is_json(headers) {
        return Err(Error::ContentType);
    }
    let announced = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(Error::BodyTooLarge { limit });
    }
    to_bytes(body, limit).await.map_err(|error| {
        match error
            .source()
            .is_some_and(|source| source.is::<LengthLimitError>())
        {
            true => Error::BodyTooLarge { limit },
            false => Error::BodyLost,
        }
    })
}

/// `application/json`, or another type in the syntax of JSON (`application/problem+json`).
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
    else {
        return false;
    };
    let essence = value
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}
