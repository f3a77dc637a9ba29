//! Pages of other origins that may use the server from a browser, and those that must not.

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{HOST, RETRY_AFTER};
use axum::http::uri::Authority;
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use reqwest::Url;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::{App, Error};

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

/// Lets requests pass that mean this machine. A page may have a name that leads to 127.0.0.1 (DNS rebinding), and what
/// its scripts send then comes from the user's own browser, of the same origin; but under that name.
pub(crate) async fn check_host<B: Send + Sync + 'static>(
    State(app): State<Arc<App<B>>>,
    request: Request,
    next: Next,
) -> Response {
    match is_called(&request, &app.options.hosts) {
        true => next.run(request).await,
        false => Error::UnknownHost.into_response(),
    }
}

/// Whether a request means this machine or one of `names`. What browsers send has a host; what has none is older than
/// they are.
fn is_called(request: &Request, names: &[String]) -> bool {
    let header = request.headers().get(HOST).map(HeaderValue::to_str);
    if header.as_ref().is_some_and(|host| host.is_err()) {
        return false;
    }
    let hosts = [request.uri().host(), header.and_then(Result::ok)];
    hosts
        .into_iter()
        .flatten()
        .all(|host| is_local(host) || names.iter().any(|name| is(host, name)))
}

/// The host without its port.
fn host_of(host: &str) -> Option<String> {
    let authority: Authority = host.parse().ok()?;
    let host = authority.host().trim_matches(['[', ']']);
    Some(host.trim_end_matches('.').to_ascii_lowercase())
}

fn is(host: &str, name: &str) -> bool {
    host_of(host).is_some_and(|host| host.eq_ignore_ascii_case(name))
}

/// An address needs no name to lead to it, so it is none that somebody made up.
fn is_local(host: &str) -> bool {
    host_of(host).is_some_and(|host| {
        host == "localhost" || host.ends_with(".localhost") || host.parse::<IpAddr>().is_ok()
    })
}
