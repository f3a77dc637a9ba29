//! The page at `/`: files that are part of the program, for everyone, since they hold nothing. What the page asks the
//! API for needs a key like any other request.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sha2::{Digest, Sha256};

use crate::App;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! file {
    ($name:literal, $kind:expr) => {
        (
            concat!("/page/", $name),
            $kind,
            include_str!(concat!("../page/", $name)),
        )
    };
}

/// Paths, media types and contents.
const FILES: [(&str, &str, &str); 12] = [
    ("/", HTML, include_str!("../page/index.html")),
    file!("style.css", CSS),
    file!("icon.svg", SVG),
    file!("main.js", JAVASCRIPT),
    file!("api.js", JAVASCRIPT),
    file!("chats.js", JAVASCRIPT),
    file!("composer.js", JAVASCRIPT),
    file!("conversation.js", JAVASCRIPT),
    file!("dom.js", JAVASCRIPT),
    file!("pictures.js", JAVASCRIPT),
    file!("settings.js", JAVASCRIPT),
    file!("store.js", JAVASCRIPT),
];

/// Nothing from elsewhere, nothing inline, nothing from strings, in nobody's frame. Pictures are the user's own, from the
/// browser's memory.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

const HEADERS: [(HeaderName, &str); 6] = [
    (CONTENT_SECURITY_POLICY, POLICY),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (REFERRER_POLICY, "no-referrer"),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    // Kept, and asked for each time: after an update no file is of the version before.
    (CACHE_CONTROL, "no-cache"),
];

/// The routes of the page's files.
pub(crate) fn routes<B: Send + Sync + 'static>() -> Router<Arc<App<B>>> {
    let mut router = Router::new();
    for (path, kind, content) in FILES {
        let etag = etag(content);
        let serve = move |headers: HeaderMap| {
            let response = respond(&headers, kind, content, &etag);
            async move { response }
        };
        router = router.route(path, get(serve));
    }
    router
}

fn respond(asked: &HeaderMap, kind: &'static str, content: &'static str, etag: &str) -> Response {
    let mut response = match is_known(asked, etag) {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => Bytes::from_static(content.as_bytes()).into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Ok(etag) = HeaderValue::from_str(etag) {
        headers.insert(ETAG, etag);
    }
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The content by its digest.
fn etag(content: &str) -> String {
    let digest = Sha256::digest(content);
    let hex: String = digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("\"{hex}\"")
}

/// Whether the client says that it has this content. What passes it on may have made the tag a weak one.
fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    let tags = headers.get_all(IF_NONE_MATCH).iter();
    let mut tags = tags
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim);
    tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}
