//! API keys.

use std::fmt;

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use subtle::{Choice, ConstantTimeEq};

use crate::{App, Error, Result};

/// Keys that requests must show one of. Kept as digests: equally long, so that a comparison tells nothing by its time, and
/// never to be printed.
#[derive(Clone)]
pub struct ApiKeys(Vec<[u8; 32]>);

impl ApiKeys {
    /// Keys from the lines of a file or the items of a list; blank ones and those that begin with `#` are left out.
    ///
    /// # Errors
    /// There is none, or one that no client could send.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a str>) -> Result<ApiKeys> {
        let invalid = |reason: String| Err(Error::Setup { reason });
        let mut digests = Vec::new();
        for (index, key) in keys.into_iter().enumerate() {
            let key = key.trim();
            if key.is_empty() || key.starts_with('#') {
                continue;
            }
            if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                return invalid(format!(
                    "API key {} has a character that is not visible ASCII",
                    index + 1
                ));
            }
            digests.push(Sha256::digest(key).into());
        }
        match digests.is_empty() {
            true => invalid("there is no API key where one was announced".to_owned()),
            false => Ok(ApiKeys(digests)),
        }
    }

    /// Whether a request shows a key, as `Authorization: Bearer KEY`. Every key is compared, whichever fits.
    fn accept(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return false;
        };
        let Some((scheme, key)) = value.to_str().ok().and_then(|value| value.split_once(' '))
        else {
            return false;
        };
        let digest: [u8; 32] = Sha256::digest(key.trim()).into();
        let known = self.0.iter().fold(Choice::from(0), |known, key| {
            known | key.as_slice().ct_eq(&digest)
        });
        scheme.eq_ignore_ascii_case("bearer") && known.into()
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} API keys", self.0.len())
    }
}

/// Lets requests with a key pass. A layer around the routes themselves, so that no spelling of a path or a `Host` can go
/// around it (CVE-2026-48746).
pub(crate) async fn authorize<B: Send + Sync + 'static>(
    State(app): State<Arc<App<B>>>,
    request: Request,
    next: Next,
) -> Response {
    match &app.options.api_keys {
        Some(keys) if !keys.accept(request.headers()) => Error::Unauthorized.into_response(),
        _ => next.run(request).await,
    }
}
