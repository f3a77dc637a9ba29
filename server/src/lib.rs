//! OpenAI-compatible chat over a qbridge model.
//!
//! `POST /v1/chat/completions` (whole and streamed), `GET /v1/models`, `GET /v1/models/{id}`, `GET /health`.
//!
//! A field that changes the output is honoured or refused with its name in `param`; see [`Backend`] for what answers, and
//! `docs/server.md` for the fields.

mod backend;
mod chat;
mod content;
mod error;
mod extract;
mod fields;
mod image_url;
mod models;
mod options;
mod request;
mod response;
mod stream;

use std::future::Future;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::Request;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{
    MakeRequestUuid, PropagateRequestIdLayer, RequestId, SetRequestIdLayer,
};
use tower_http::trace::TraceLayer;

pub use backend::Backend;
pub use error::{Error, Result};
pub use options::ServeOptions;

/// What the handlers share.
struct App<B> {
    backend: B,
    options: ServeOptions,
    /// One permit for each request that may hold memory.
    admission: Arc<Semaphore>,
    /// Start of the server in Unix seconds: when its model was "created".
    started: u64,
}

/// The API as a service, without a port.
pub fn router<B: Backend>(backend: B, options: ServeOptions) -> Router {
    let app = Arc::new(App {
        backend,
        admission: Arc::new(Semaphore::new(options.max_requests)),
        options,
        started: unix_seconds(),
    });
    // The outermost layer is first: the id is there before anything is logged, and is sent back with what a panic
    // is turned into. What decides who may enter (keys, CORS) belongs between the trace and the panic guard.
    let layers = ServiceBuilder::new()
        .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid))
        .layer(TraceLayer::new_for_http().make_span_with(span))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(CatchPanicLayer::custom(|_| Error::Internal.into_response()));
    Router::new()
        .route("/health", get(models::health))
        .route("/v1/models", get(models::list::<B>))
        // A model's name may hold slashes.
        .route("/v1/models/{*id}", get(models::retrieve::<B>))
        .route("/v1/chat/completions", post(chat::completions::<B>))
        .method_not_allowed_fallback(|| async { Error::MethodNotAllowed })
        .fallback(|| async { Error::NotFound })
        .with_state(app)
        .layer(layers)
}

/// Serves `backend` on `listener` until `shutdown` resolves; then lets running requests end, for
/// [`ServeOptions::shutdown_grace`] at most.
///
/// # Errors
/// The listener fails.
pub async fn serve<B: Backend>(
    backend: B,
    options: ServeOptions,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let grace = options.shutdown_grace;
    let (stopping, stopped) = tokio::sync::oneshot::channel();
    // Tokens are small packets that should not wait for each other.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
    });
    let server =
        axum::serve(listener, router(backend, options)).with_graceful_shutdown(async move {
            shutdown.await;
            let _ = stopping.send(());
        });
    let out_of_patience = async {
        let _ = stopped.await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        served = server.into_future() => served.map_err(Error::Listen),
        () = out_of_patience => Ok(()),
    }
}

fn span(request: &Request) -> tracing::Span {
    let id = request.extensions().get::<RequestId>();
    let id = id
        .and_then(|id| id.header_value().to_str().ok())
        .unwrap_or_default();
    tracing::info_span!("request", method = %request.method(), path = request.uri().path(), id)
}

fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
