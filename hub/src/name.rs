//! What a user may call a model, a revision and a hub. Each becomes part of
//! addresses and of file names, so nothing else gets through.

use std::fmt;
use std::str::FromStr;

use url::Url;

use crate::{Error, Result};

fn invalid(what: impl Into<String>) -> Error {
    Error::Invalid { what: what.into() }
}

fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// A model of a hub, as `OWNER/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelName {
    owner: String,
    name: String,
}

impl ModelName {
    /// The first half.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// The second half.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for ModelName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once('/') {
            Some((owner, name)) if is_plain(owner) && is_plain(name) => Ok(Self {
                owner: owner.to_owned(),
                name: name.to_owned(),
            }),
            _ => Err(invalid(
                "a model of the hub is named OWNER/NAME, such as Salesforce/blip2-opt-2.7b",
            )),
        }
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

/// A branch, a tag or a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision(String);

impl Revision {
    /// As it was typed.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it names its content, and so never moves.
    pub(crate) fn is_commit(&self) -> bool {
        is_commit(&self.0)
    }
}

/// Whether a text is a whole commit hash.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40
        && text
            .bytes()
            .all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}

impl FromStr for Revision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.split('/').all(is_plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(invalid("a revision is a branch, a tag or a commit"))
        }
    }
}

/// The root of a hub's addresses, such as `https://huggingface.co`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(Url);

impl Endpoint {
    /// The address of a path below the endpoint; each part is one name.
    pub(crate) fn join<'a>(&self, parts: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.0.clone();
        // An http address always has a path.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        url
    }

    pub(crate) fn is_origin_of(&self, url: &Url) -> bool {
        self.0.origin() == url.origin()
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let url = Url::parse(text).map_err(|error| invalid(format!("no address: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(invalid(
                "the address of a hub begins with https:// or http://",
            ));
        }
        let is_bare = url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none();
        if !is_bare {
            return Err(invalid(
                "the address of a hub has no user, query or fragment; HF_TOKEN holds the token",
            ));
        }
        Ok(Self(url))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

/// What shows the hub who asks. It has no `Debug` or `Display`, so that it
/// cannot be logged by accident.
#[derive(Clone)]
pub struct Token(ureq::http::HeaderValue);

impl Token {
    /// The environment variable that it is read from.
    pub const VARIABLE: &str = "HF_TOKEN";

    /// The token in the environment, where there is one.
    ///
    /// # Errors
    /// It holds characters that no header may have.
    pub fn from_environment() -> Result<Option<Self>> {
        match std::env::var(Self::VARIABLE) {
            Ok(token) if !token.trim().is_empty() => Self::new(token.trim()).map(Some),
            Ok(_) | Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => Err(Self::unusable()),
        }
    }

    /// A token as the hub gives it.
    ///
    /// # Errors
    /// It holds characters that no header may have.
    pub fn new(token: &str) -> Result<Self> {
        let mut value = ureq::http::HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| Self::unusable())?;
        value.set_sensitive(true);
        Ok(Self(value))
    }

    fn unusable() -> Error {
        invalid("HF_TOKEN holds characters that no token has")
    }

    pub(crate) fn header(&self) -> ureq::http::HeaderValue {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_and_revisions() {
        for name in ["Salesforce/blip2-opt-2.7b", "a/b"] {
            assert_eq!(name.parse::<ModelName>().unwrap().to_string(), name);
        }
        for name in [
            "blip2", "a/b/c", "../b", "a/..", "a/", "/b", "a/b?c", "a\\b/c", "a/b c", "",
        ] {
            assert!(name.parse::<ModelName>().is_err(), "{name}");
        }
        for revision in ["main", "refs/pr/1", "v1.0"] {
            revision.parse::<Revision>().unwrap();
        }
        for revision in ["", "../x", "a//b", "a/../b", "a?b", "a b", "/a", "a%2f"] {
            assert!(revision.parse::<Revision>().is_err(), "{revision}");
        }
    }

    #[test]
    fn endpoints() {
        for (endpoint, address) in [
            (
                "https://huggingface.co",
                "https://huggingface.co/api/refs%2Fpr%2F1",
            ),
            (
                "http://mirror:81/hf/",
                "http://mirror:81/hf/api/refs%2Fpr%2F1",
            ),
        ] {
            let endpoint: Endpoint = endpoint.parse().unwrap();
            assert_eq!(endpoint.join(["api", "refs/pr/1"]).as_str(), address);
        }
        for endpoint in [
            "",
            "huggingface.co",
            "ftp://x",
            "https://user:pw@x",
            "https://x/?a=b",
        ] {
            assert!(endpoint.parse::<Endpoint>().is_err(), "{endpoint}");
        }
        let endpoint: Endpoint = "https://hub".parse().unwrap();
        for (url, is_origin) in [
            ("https://hub/a", true),
            ("https://hub:443/a", true),
            ("http://hub/a", false),
            ("https://hub:444/a", false),
            ("https://cdn.hub/a", false),
        ] {
            assert_eq!(
                endpoint.is_origin_of(&url.parse().unwrap()),
                is_origin,
                "{url}"
            );
        }
    }
}
