//! Names to addresses, each of them checked on the way to the connection.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use reqwest::dns::{Name, Resolve};

/// Addresses that are on their way.
pub type Resolving = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// Where addresses come from.
pub trait Resolver: Send + Sync + 'static {
    /// All addresses of a host.
    fn resolve(&self, host: &str) -> Resolving;
}

/// The system's own resolver.
#[derive(Debug, Clone, Copy)]
pub struct SystemResolver;

impl Resolver for SystemResolver {
    fn resolve(&self, host: &str) -> Resolving {
        let host = host.to_owned();
        Box::pin(async move {
            let addresses = tokio::net::lookup_host((host, 0)).await?;
            Ok(addresses.map(|address| address.ip()).collect())
        })
    }
}

/// What the HTTP client asks for the addresses that it then connects to. Since the check is here, there is no second look-up
/// that could answer otherwise (DNS rebinding), and every new connection, a redirect's too, passes it.
pub(super) struct CheckedResolver {
    pub(super) resolver: Arc<dyn Resolver>,
    pub(super) allowed: fn(IpAddr) -> bool,
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> reqwest::dns::Resolving {
        let addresses = self.resolver.resolve(name.as_str());
        let allowed = self.allowed;
        Box::pin(async move {
            let addresses = addresses.await?;
            // One that is not public among public ones is a trick, not an oversight.
            if let Some(address) = addresses.iter().find(|&&address| !allowed(address)) {
                return Err(format!("{address} is not public").into());
            }
            // Port 0 is replaced by the URL's.
            let addresses = addresses.into_iter().map(|ip| SocketAddr::new(ip, 0));
            Ok(Box::new(addresses) as reqwest::dns::Addrs)
        })
    }
}
