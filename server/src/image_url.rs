//! Pictures in requests: data URIs.

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

/// The bytes of a data URI's picture, at most `limit`. The media type it declares is not looked at: what a picture is, its
/// own bytes say.
pub(crate) fn decode(url: &str, limit: usize, param: &str) -> Result<Arc<[u8]>> {
    let Some((scheme, rest)) = url.split_once(':') else {
        return Err(invalid(param, "image_url is not a URL: send a data: URI"));
    };
    match scheme.to_ascii_lowercase().as_str() {
        "data" => {}
        "http" | "https" => {
            return Err(Error::RemoteImage {
                param: param.to_owned(),
            });
        }
        _ => return Err(invalid(param, "image_url must be a data: URI")),
    }
    let (kind, data) = rest
        .split_once(',')
        .ok_or_else(|| invalid(param, "the data: URI has no comma before its data"))?;
    let is_base64 = kind
        .rsplit(';')
        .next()
        .is_some_and(|last| last.trim().eq_ignore_ascii_case("base64"));
    if !is_base64 {
        return Err(invalid(
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
        return Err(too_large(param, limit));
    }
    let bytes = BASE64
        .decode(data)
        .map_err(|_| invalid(param, "the data: URI is not valid base64"))?;
    match bytes.len() {
        0 => Err(invalid(param, "the data: URI holds no bytes")),
        length if length > limit => Err(too_large(param, limit)),
        _ => Ok(bytes.into()),
    }
}

fn invalid(param: &str, reason: &str) -> Error {
    Error::InvalidImage {
        param: param.to_owned(),
        reason: reason.to_owned(),
    }
}

fn too_large(param: &str, limit: usize) -> Error {
    Error::ImageTooLarge {
        param: param.to_owned(),
        reason: format!("the picture has more than {limit} bytes"),
    }
}
