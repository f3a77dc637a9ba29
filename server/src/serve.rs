//! A router on a port, from its first moment to its last.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum_server::accept::NoDelayAcceptor;
use axum_server::tls_rustls::RustlsAcceptor;
use axum_server::{Handle, Server};
use tokio::net::TcpListener;

use crate::models::Models;
use crate::{App, Backend, Error, Result, ServeOptions, Source, routes};

/// Time for the last spans of traces, though answers took all that there was to end.
const LEAST_FLUSH: Duration = Duration::from_secs(1);

/// Serves on `listener` until `shutdown` resolves; then lets running requests end, for [`ServeOptions::shutdown_grace`] at
/// most, which spans of traces that were not sent yet share. The models are loaded beside the server, one after the other: until that is over, `/health` is well, `/ready` is
/// not, and everything else is told to come back. Then `on_ready` is called.
///
/// `shutdown` is not asked before: there is nothing to end gently.
///
/// # Errors
/// The address is for everyone and there are no keys (see [`ServeOptions::no_auth`]), two models have one name, loading
/// one fails, or the listener does.
pub async fn serve<B: Backend>(
    models: Vec<Source<B>>,
    options: ServeOptions,
    listener: TcpListener,
    on_ready: impl FnOnce(),
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let address = listener.local_addr().map_err(Error::Listen)?;
    check_exposure(address, &options)?;
    let models = Models::new(models, &options.aliases)?;
    let app = Arc::new(App::new(models, options));
    let handle = Handle::new();
    let local = app.options.api_keys.is_none() && is_loopback(address);
    let mut listening = pin!(listen(app.clone(), listener, handle.clone(), local));
    let loader = app.clone();
    let loading = tokio::task::spawn_blocking(move || loader.models.load_all());
    tokio::select! {
        listened = &mut listening => return listened,
        loaded = loading => loaded
            .map_err(|error| Error::Setup {
                reason: format!("loading a model failed: {error}"),
            })?
            .map_err(Error::Load)?,
    }
    on_ready();
    tokio::select! {
        listened = &mut listening => return listened,
        () = shutdown => handle.graceful_shutdown(Some(app.options.shutdown_grace)),
    }
    let stopped = Instant::now();
    let listened = listening.await;
    if let Some(traces) = &app.options.traces {
        let left = app.options.shutdown_grace.saturating_sub(stopped.elapsed());
        traces.shutdown(left.max(LEAST_FLUSH)).await;
    }
    listened
}

/// Refuses to answer a whole network without keys, unless that is said to be meant: most of the servers of this kind that
/// strangers use were opened by a `0.0.0.0` that was only to let one other machine in.
fn check_exposure(address: SocketAddr, options: &ServeOptions) -> Result<()> {
    let guarded = options.api_keys.is_some() || options.no_auth;
    match guarded || is_loopback(address) {
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

fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

async fn listen<B: Backend>(
    app: Arc<App<B>>,
    listener: TcpListener,
    handle: Handle<SocketAddr>,
    local: bool,
) -> Result<()> {
    let tls = app.options.tls.clone();
    let patience = app.options.body_timeout;
    let service = routes(app, local).into_make_service();
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
fn limit<A>(mut server: Server<SocketAddr, A>, patience: Duration) -> Server<SocketAddr, A> {
    server
        .http_builder()
        .http1()
        .header_read_timeout(Some(patience));
    server
}
