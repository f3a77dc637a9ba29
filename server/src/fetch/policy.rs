//! Which URLs may be fetched, as far as the URL alone says.

use std::net::IpAddr;
use std::str::FromStr;

use reqwest::Url;

use super::FetchError;

/// Which URLs may be fetched: `http` and `https`, without credentials, at the given hosts and ports.
///
/// The parsed URL that is checked is the one that is fetched, so that no second parser can read it otherwise
/// (CVE-2026-24779).
#[derive(Debug, Clone)]
pub struct UrlPolicy {
    /// Hosts that may be named.
    pub hosts: Hosts,
    /// Ports that may be named. Others are where inner services listen.
    pub ports: Vec<u16>,
}

impl Default for UrlPolicy {
    fn default() -> Self {
        Self {
            hosts: Hosts::Any,
            ports: vec![80, 443],
        }
    }
}

impl UrlPolicy {
    /// Checks a URL; `addresses` says which addresses may stand in place of a name.
    pub(super) fn check(&self, url: &Url, addresses: fn(IpAddr) -> bool) -> Result<(), FetchError> {
        let forbidden = |reason| Err(FetchError::Forbidden { reason });
        if !["http", "https"].contains(&url.scheme()) {
            return forbidden("its scheme is not http or https");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return forbidden("it has a user name or password in it");
        }
        let Some(host) = url.host_str() else {
            return forbidden("it has no host");
        };
        if !url
            .port_or_known_default()
            .is_some_and(|port| self.ports.contains(&port))
        {
            return forbidden("its port is not one that pictures are fetched from");
        }
        // The parser has turned every spelling of an address (0x7f.1, 2130706433) into the usual one.
        let literal = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = IpAddr::from_str(literal)
            && !addresses(address)
        {
            return forbidden("its address is not public");
        }
        if !self.hosts.allow(host) {
            return forbidden("its host is not among those that pictures are fetched from");
        }
        Ok(())
    }
}

/// Hosts that pictures may come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hosts {
    /// All of them.
    Any,
    /// These alone: a name, or `*.` and a name for all names below it.
    Only(Vec<String>),
}

impl Hosts {
    fn allow(&self, host: &str) -> bool {
        let Hosts::Only(names) = self else {
            return true;
        };
        let host = host.trim_end_matches('.');
        names.iter().any(|name| match name.strip_prefix("*.") {
            Some(parent) => host
                .strip_suffix(parent)
                .is_some_and(|child| child.len() > 1 && child.ends_with('.')),
            None => host == name,
        })
    }
}

impl FromIterator<String> for Hosts {
    /// `*` among the names is all hosts; no names are none.
    fn from_iter<I: IntoIterator<Item = String>>(names: I) -> Self {
        let names: Vec<String> = names
            .into_iter()
            .map(|name| name.trim().trim_end_matches('.').to_ascii_lowercase())
            .filter(|name| !name.is_empty())
            .collect();
        match names.iter().any(|name| name == "*") {
            true => Hosts::Any,
            false => Hosts::Only(names),
        }
    }
}
