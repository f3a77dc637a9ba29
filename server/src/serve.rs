//! A router on a port, from its first moment to its last.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use axum_server::accept::NoDelayAcceptor;
use axum_server::tls_rustls::RustlsAcceptor;
use axum_server::{Handle, Server};
use tokio::net::TcpListener;

use crate::{App, Backend, Error, Result, ServeOptions, routes};

/// Serves on `listener` until `shutdown` resolves; then lets running requests end, for [`ServeOptions::shutdown_grace`] at
/// most. The model comes from `load`, which runs beside the server: until it returns, `/health` is well, `/ready` is not,
/// and everything else is told to come back. `on_ready` is called when that is over.
///
/// `shutdown` is not asked before: there is nothing to end gently.
///
/// # Errors
/// The address is for everyone and there are no keys (see [`ServeOptions::no_auth`]), loading fails, or the listener does.
pub async fn serve<B: Backend>(
    load: impl FnOnce() -> bridge::Result<B> + Send + 'static,
    options: ServeOptions,
    listener: TcpListener,
    on_ready: impl FnOnce(&B),
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let address = listener.local_addr().map_err(Error::Listen)?;
    check_exposure(address, &options)?;
    let app = Arc::new(App::new(options));
    let handle = Handle::new();
    let mut listening = pin!(listen(app.clone(), listener, handle.clone()));
    let loading = async {
        let backend = tokio::task::spawn_blocking(load)
            .await
            .map_err(|error| Error::Setup {
                reason: format!("loading the model failed: {error}"),
            })?
            .map_err(Error::Load)?;
        Ok::<&B, Error>(app.backend.get_or_init(|| backend))
    };
    tokio::select! {
        listened = &mut listening => return listened,
        loaded = loading => on_ready(loaded?),
    }
    tokio::select! {
        listened = &mut listening => return listened,
        () = shutdown => handle.graceful_shutdown(Some(app.options.shutdown_grace)),
    }
    listening.await
}

/// Refuses to answer a whole network without keys, unless that is said to be meant: most of the servers of this kind that
/// strangers use were opened by a `0.0.0.0` that was only to let one other machine in.
fn check_exposure(address: SocketAddr, options: &ServeOptions) -> Result<()> {
    let guarded = options.api_keys.is_some() || options.no_auth;
    match guarded || address.ip().to_canonical().is_loopback() {
        true => Ok(()),
        false => Err(Error::Setup {
            reason: format!(
                "{} can be reached from other machines and there are no API keys: give some (--api-key-file or \
                 QBRIDGE_API_KEYS), or --no-auth to answer everyone",
                address.ip()
            ),
        }),
    }
}

async fn listen<B: Backend>(
    app: Arc<App<B>>,
    listener: TcpListener,
    handle: Handle<SocketAddr>,
) -> Result<()> {
    let tls = app.options.tls.clone();
    let patience = app.options.body_timeout;
    let service = routes(app).into_make_service();
    // Tokens are small packets that should not wait for each other.
    let server = Server::from_listener(listener)
        .handle(handle)
        .acceptor(NoDelayAcceptor::new())
        .http1_only();
    let served = match tls {
        None => limit(server, patience).serve(service).await,
        Some(tls) => {
            let server = server.map(|plain| RustlsAcceptor::new(tls.config()).acceptor(plain));
            limit(server, patience).serve(service).await
        }
    };
    served.map_err(Error::Listen)
}

/// A connection that sends no request for so long is closed.
fn limit<A>(
    mut server: Server<SocketAddr, A>,
    patience: std::time::Duration,
) -> Server<SocketAddr, A> {
    server
        .http_builder()
        .http1()
        .header_read_timeout(Some(patience));
    server
}
