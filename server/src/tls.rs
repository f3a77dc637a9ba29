//! TLS by rustls, on both sides.

use std::path::Path;
use std::sync::Arc;

use axum_server::tls_rustls::RustlsConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::fetch::FetchError;
use crate::{Error, Result};

/// A certificate and its key.
#[derive(Clone)]
pub struct Tls(RustlsConfig);

impl Tls {
    /// Reads a chain of certificates, the server's own first, and its key from PEM files.
    ///
    /// # Errors
    /// A file cannot be read, or the two do not belong together.
    pub fn from_pem_files(certificates: &Path, key: &Path) -> Result<Tls> {
        let failed = |path: &Path, error: &dyn std::fmt::Display| Error::Setup {
            reason: format!("{}: {error}", path.display()),
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificates)
            .and_then(Iterator::collect)
            .map_err(|error| failed(certificates, &error))?;
        let private_key = PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, &error))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(certificates, &error))?
            .with_no_client_auth()
            .with_single_cert(chain, private_key)
            .map_err(|error| failed(certificates, &error))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Tls(RustlsConfig::from_config(Arc::new(config))))
    }

    pub(crate) fn config(&self) -> RustlsConfig {
        self.0.clone()
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

/// Trusts Mozilla's authorities, which are compiled in: those of the machine may vouch for inner hosts, and are not needed
/// for public ones.
pub(crate) fn client_config() -> Result<ClientConfig, FetchError> {
    let roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    Ok(ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(FetchError::setup)?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
