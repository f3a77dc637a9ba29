//! Pictures within a request: data URIs.

use std::sync::Arc;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::{Error, Result};

/// Base64 with or without its padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The bytes of a data URI's picture, at most `limit`; `rest` is what stands behind `data:`. The media type it declares is
/// not looked at: what a picture is, its own bytes say.
///
/// # Errors
/// It is not base64, empty, or larger: a refusal of the field `param`.
pub fn decode(rest: &str, limit: usize, param: &str) -> Result<Arc<[u8]>> {
    let (kind, data) = rest
        .split_once(',')
        .ok_or_else(|| Error::invalid_image(param, "the data: URI has no comma before its data"))?;
    let is_base64 = kind
        .rsplit(';')
        .next()
        .is_some_and(|last| last.trim().eq_ignore_ascii_case("base64"));
    if !is_base64 {
        return Err(Error::invalid_image(
            param,
            "the data: URI must be base64 (data:image/png;base64,...)",
        ));
    }
    // Some encoders break lines.
    let unbroken: String;
    let data = if data.bytes().any(|byte| byte.is_ascii_whitespace()) {
        unbroken = data.split_ascii_whitespace().collect();
        &unbroken
    } else {
        data
    };
    // Known before decoding, to the last group.
    if data.len() / 4 * 3 > limit.saturating_add(3) {
        return Err(Error::image_too_large(param, limit));
    }
    let bytes = BASE64
        .decode(data)
        .map_err(|_| Error::invalid_image(param, "the data: URI is not valid base64"))?;
    match bytes.len() {
        0 => Err(Error::invalid_image(param, "the data: URI holds no bytes")),
        length if length > limit => Err(Error::image_too_large(param, limit)),
        _ => Ok(bytes.into()),
    }
}
