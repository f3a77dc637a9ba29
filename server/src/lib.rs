//! OpenAI-compatible chat over a qbridge model, and features and scores over those that compare pictures and texts.
//!
//! Routes are listed in [`router`]'s source and in `docs/server.md`.
//!
//! A field that changes the output is honoured or refused with its name in `param`; see [`Backend`] for what answers, and
//! `docs/server.md` for the fields.

mod activity;
mod answer;
mod auth;
mod backend;
mod content;
pub mod data_uri;
mod error;
mod extract;
pub mod fetch;
mod fields;
mod images;
mod inputs;
mod linger;
pub mod log;
mod media;
mod metrics;
mod models;
mod openapi;
mod options;
mod origin;
mod page;
mod request;
mod response;
mod retrieval;
mod schema;
mod serve;
mod stream;
mod tables;
mod tls;
mod tokens;
mod tools;
mod traces;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::Request;
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{
    MakeRequestUuid, PropagateRequestIdLayer, RequestId, SetRequestIdLayer,
};
use tower_http::trace::TraceLayer;

pub use auth::ApiKeys;
pub use backend::{Abilities, Activity, Backend, Loaded, Retrieving, warm_up};
pub use error::{Error, Result};
pub use media::MediaDir;
pub use models::Source;
pub use options::ServeOptions;
pub use origin::CorsOrigin;
pub use request::read_chat;
pub use serve::serve;
pub use tls::Tls;
pub use traces::Traces;

use linger::{Patience, linger};
use metrics::Metrics;
use models::Models;
use openapi::Api;
use traces::RequestSpan;

/// Longest `x-request-id` that is taken from a client.
const MAX_REQUEST_ID: usize = 128;

/// What the handlers share.
struct App<B> {
    models: Models<B>,
    options: ServeOptions,
    /// One permit for each request that may hold memory.
    admission: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl<B: Backend> App<B> {
    fn new(models: Models<B>, options: ServeOptions) -> App<B> {
        App {
            models,
            admission: Arc::new(Semaphore::new(options.max_requests)),
            metrics: Arc::new(Metrics::new(options.max_requests)),
            options,
        }
    }

    /// A place among the requests that may hold memory.
    fn admit(&self) -> Result<OwnedSemaphorePermit> {
        self.admit_many(1)
    }

    /// So many places, or none.
    fn admit_many(&self, n: usize) -> Result<OwnedSemaphorePermit> {
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        let places = self.admission.clone().try_acquire_many_owned(n);
        places.map_err(|_| Error::QueueFull)
    }
}

/// The API as a service, without a port. Its models are loaded here, which blocks.
///
/// # Errors
/// The models have no names of their own, or one cannot be loaded.
pub fn router<B: Backend>(models: Vec<Source<B>>, options: ServeOptions) -> Result<Router> {
    let models = Models::new(models, &options.aliases)?;
    models.load_all().map_err(Error::Load)?;
    Ok(routes(Arc::new(App::new(models, options)), false))
}

/// The routes; `local` where only this machine reaches them and nobody shows a key.
fn routes<B: Backend>(app: Arc<App<B>>, local: bool) -> Router {
    // The outermost layer is first: the ids are there before anything is logged, and the request's is sent back with
    // what a panic is turned into.
    let layers = ServiceBuilder::new()
        .map_request(without_odd_id)
        .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid))
        .layer(from_fn_with_state(
            app.options.traces.clone(),
            traces::trace,
        ))
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(span)
                .on_failure(()),
        )
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(CatchPanicLayer::custom(|_| Error::Internal.into_response()));
    let keys = app.options.api_keys.is_some();
    let mut api = Api::new()
        .get(&openapi::MODELS, models::list::<B>)
        .get(&openapi::MODEL, models::retrieve::<B>)
        .post(&openapi::CHAT, answer::chat::<B>)
        .post(&openapi::TEXT, answer::text::<B>)
        .post(&openapi::EMBEDDINGS, retrieval::embeddings::<B>)
        .post(&openapi::RERANK, retrieval::rerank::<B>)
        .post(&openapi::SCORE, retrieval::score::<B>)
        .post(&openapi::TOKENIZE, tokens::tokenize::<B>)
        .post(&openapi::DETOKENIZE, tokens::detokenize::<B>)
        .post(&openapi::LOAD, models::load::<B>)
        .post(&openapi::UNLOAD, models::unload::<B>)
        .get(&openapi::METRICS, metrics::metrics::<B>)
        .with_document(&[&openapi::HEALTH, &openapi::READY], keys);
    api.router = api
        .router
        .method_not_allowed_fallback(|| async { Error::MethodNotAllowed })
        .fallback(|| async { Error::NotFound })
        .layer(from_fn_with_state(app.clone(), auth::authorize::<B>));
    // What is added here needs no key.
    if app.options.page {
        api.router = api.router.merge(page::routes());
    }
    let api = api
        .get(&openapi::HEALTH, models::health)
        .get(&openapi::READY, models::ready::<B>);
    let open = api
        .router
        .method_not_allowed_fallback(|| async { Error::MethodNotAllowed })
        .layer(from_fn_with_state(app.clone(), metrics::count::<B>));
    let open = match origin::layer(&app.options.cors_origins) {
        Some(cors) => open.layer(cors),
        None => open,
    };
    let open = match local {
        true => open.layer(from_fn_with_state(app.clone(), origin::check_host::<B>)),
        false => open,
    };
    // Twice as much as may be read: a body that is too long is thrown away too, unless it is far too long.
    let patience = Patience {
        bytes: app.options.max_body_bytes.saturating_mul(2),
        time: app.options.body_timeout,
    };
    open.layer(from_fn_with_state(patience, linger))
        .with_state(app)
        .layer(layers)
}

/// A request without an `x-request-id` that does not look like one: it would be sent back and logged.
fn without_odd_id(mut request: Request) -> Request {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    let odd = |id: &[u8]| id.is_empty() || id.len() > MAX_REQUEST_ID || !id.iter().all(plain);
    let headers = request.headers_mut();
    if headers
        .get("x-request-id")
        .is_some_and(|id| odd(id.as_bytes()))
    {
        headers.remove("x-request-id");
    }
    request
}

fn span(request: &Request) -> tracing::Span {
    let id = request.extensions().get::<RequestId>();
    let id = id
        .and_then(|id| id.header_value().to_str().ok())
        .unwrap_or_default();
    let trace_id = RequestSpan::of(request).trace_id();
    tracing::info_span!("request", method = %request.method(), path = request.uri().path(), id, trace_id)
}

fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
