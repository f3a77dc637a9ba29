//! Traces for OpenTelemetry: a span for each request, its stages below it, sent to a collector by OTLP over HTTP.
//!
//! Spans say what was asked of which model and how long each stage took, by the semantic conventions for HTTP servers and
//! generative AI (1.37): never what was said, shown or shown as a key.
//!
//! - `export`: spans on their way to the collector

mod export;

use std::env;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use bridge::event::{FinishReason, Usage};
use bridge::model;
use bridge::stages::Stages;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{Span, SpanKind, Status, TraceContextExt, Tracer, TracerProvider as _};
use opentelemetry::{Array, Context, Key, KeyValue, StringValue, Value};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_otlp::{Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider,
};
use reqwest::Url;
use tower_http::request_id::RequestId;

use crate::request::Kind;
use crate::{Error, Result};
use export::{Counted, Counts, Http, Queue};

pub(crate) use export::SpanCounts;

/// Names of the environment, as OpenTelemetry has them.
const DISABLED: &str = "OTEL_SDK_DISABLED";
const EXPORTER: &str = "OTEL_TRACES_EXPORTER";
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
const PROTOCOLS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
];
const TIMEOUTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
];
const QUEUE_SIZE: &str = "OTEL_BSP_MAX_QUEUE_SIZE";

/// Longest that a collector may take for a batch, where the environment says nothing.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Spans that wait at most, where the environment says nothing.
const MAX_QUEUE_SIZE: usize = 2048;
/// What the server is called, where the environment says nothing.
const SERVICE_NAME: &str = "qbridge";

/// Methods that go by their names.
const METHODS: [Method; 7] = [
    Method::DELETE,
    Method::GET,
    Method::HEAD,
    Method::OPTIONS,
    Method::PATCH,
    Method::POST,
    Method::PUT,
];

/// Routes that are asked every few seconds by machines.
const QUIET_ROUTES: [&str; 3] = ["/health", "/ready", "/metrics"];

/// Sends spans to a collector.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
    counts: Arc<Counts>,
}

impl Traces {
    /// As the environment says, by OpenTelemetry's names; `endpoint`, to which `v1/traces` is added, wins over those of the
    /// environment. None without any, or where the environment turns them off. Call it within a tokio runtime.
    ///
    /// # Errors
    /// The endpoint is no `http` or `https` URL, or another protocol than `http/protobuf` is asked for.
    pub fn from_env(endpoint: Option<&str>) -> Result<Option<Traces>> {
        let is_off = variable(DISABLED).is_some_and(|value| value.eq_ignore_ascii_case("true"))
            || variable(EXPORTER).is_some_and(|value| value == "none");
        let endpoint = match is_off {
            true => None,
            false => self::endpoint(endpoint)?,
        };
        endpoint.map(Traces::new).transpose()
    }

    fn new(endpoint: Url) -> Result<Traces> {
        if let Some((name, _)) = first(&PROTOCOLS).filter(|(_, value)| value != "http/protobuf") {
            return Err(Error::Setup {
                reason: format!("{name}: traces are sent by http/protobuf alone"),
            });
        }
        let timeout = first(&TIMEOUTS).and_then(|(_, value)| value.parse().ok());
        let timeout = timeout.map_or(TIMEOUT, Duration::from_millis);
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(Http::new(timeout)?)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint)
            .with_timeout(timeout)
            .build()
            .map_err(|error| Error::Setup {
                reason: format!("traces cannot be exported: {error}"),
            })?;
        let counts = Arc::new(Counts::default());
        let limit = variable(QUEUE_SIZE).and_then(|size| size.parse().ok());
        let limit = limit.filter(|limit| *limit > 0).unwrap_or(MAX_QUEUE_SIZE);
        let counted = Counted {
            exporter,
            counts: counts.clone(),
            fails: AtomicBool::new(false),
        };
        let batches = BatchConfigBuilder::default().with_max_queue_size(limit);
        let provider = SdkTracerProvider::builder()
            .with_resource(resource())
            .with_span_processor(Queue {
                batches: BatchSpanProcessor::new(counted, batches.build()),
                counts: counts.clone(),
                limit,
            })
            .build();
        Ok(Traces {
            tracer: provider.tracer(SERVICE_NAME),
            provider,
            propagator: TraceContextPropagator::new(),
            counts,
        })
    }

    /// Sends what is left, for `timeout` at most; nothing is sent afterwards.
    pub(crate) async fn shutdown(&self, timeout: Duration) {
        let provider = self.provider.clone();
        // It waits for the exporter's thread.
        let sent = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(timeout));
        if !matches!(sent.await, Ok(Ok(()))) {
            tracing::warn!("the last spans were not sent");
        }
    }

    pub(crate) fn counts(&self) -> SpanCounts {
        SpanCounts(self.counts.clone())
    }

    /// A request's span, which goes on from its `traceparent`.
    fn begin(&self, request: &Request, route: Option<&str>) -> RequestSpan {
        let parent = HeaderExtractor(request.headers());
        let parent = self
            .propagator
            .extract_with_context(&Context::new(), &parent);
        let started = Started::now();
        // Names must be few, whatever strangers call their methods.
        let (method, name) = match request.method() {
            known if METHODS.contains(known) => (known.to_string(), known.as_str()),
            _ => ("_OTHER".to_owned(), "HTTP"),
        };
        let name = match route {
            Some(route) => format!("{name} {route}"),
            None => name.to_owned(),
        };
        let mut attributes = vec![KeyValue::new("http.request.method", method)];
        let id = request.extensions().get::<RequestId>();
        if let Some(id) = id.and_then(|id| id.header_value().to_str().ok()) {
            attributes.push(KeyValue::new("qbridge.request_id", id.to_owned()));
        }
        if let Some(route) = route {
            attributes.push(KeyValue::new("http.route", route.to_owned()));
        }
        let span = self
            .tracer
            .span_builder(name)
            .with_kind(SpanKind::Server)
            .with_start_time(started.wall)
            .with_attributes(attributes)
            .start_with_context(&self.tracer, &parent);
        RequestSpan(Some(Arc::new(Open {
            tracer: self.tracer.clone(),
            context: parent.with_span(span),
            started,
            stages: Mutex::default(),
        })))
    }
}

fn endpoint(given: Option<&str>) -> Result<Option<Url>> {
    let base = |base: &str| format!("{}/v1/traces", base.trim_end_matches('/'));
    let (name, url) = match given {
        Some(given) => ("--otlp-endpoint", base(given)),
        None => match (variable(TRACES_ENDPOINT), variable(ENDPOINT)) {
            (Some(whole), _) => (TRACES_ENDPOINT, whole),
            (None, Some(given)) => (ENDPOINT, base(&given)),
            (None, None) => return Ok(None),
        },
    };
    let url = Url::parse(&url).ok().filter(|url| {
        let has_user = !url.username().is_empty() || url.password().is_some();
        ["http", "https"].contains(&url.scheme()) && url.has_host() && !has_user
    });
    match url {
        Some(url) => Ok(Some(url)),
        None => Err(Error::Setup {
            reason: format!("{name} must be an http or https URL without a user in it"),
        }),
    }
}

/// A variable of the environment; an empty one is none.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn first(names: &[&'static str]) -> Option<(&'static str, String)> {
    names.iter().find_map(|&name| Some((name, variable(name)?)))
}

/// What the spans are of: `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, and the version.
fn resource() -> Resource {
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let told = Resource::builder().build();
    let name = told.get(&Key::from_static_str("service.name"));
    let is_named = name.is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    let builder = Resource::builder().with_attribute(version);
    match is_named {
        true => builder.build(),
        false => builder.with_service_name(SERVICE_NAME).build(),
    }
}

/// A moment on both clocks: the span's own times go by the one that never jumps.
#[derive(Debug, Clone, Copy)]
struct Started {
    wall: SystemTime,
    steady: Instant,
}

impl Started {
    fn now() -> Started {
        Started {
            wall: SystemTime::now(),
            steady: Instant::now(),
        }
    }

    fn wall_of(&self, moment: Instant) -> SystemTime {
        self.wall + moment.saturating_duration_since(self.steady)
    }
}

/// The span of a request, where there are traces. It ends, with the spans of its stages, when the last clone is dropped:
/// with the answer, or with the handler that did not get so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct RequestSpan(Option<Arc<Open>>);

#[derive(Debug)]
struct Open {
    tracer: SdkTracer,
    context: Context,
    started: Started,
    /// Of each prompt.
    stages: Mutex<Vec<Stages>>,
}

impl RequestSpan {
    /// Of a request on its way through the router.
    pub(crate) fn of(request: &Request) -> RequestSpan {
        let span = request.extensions().get::<RequestSpan>();
        span.cloned().unwrap_or_default()
    }

    /// The trace, in hexadecimal digits.
    pub(crate) fn trace_id(&self) -> Option<String> {
        let open = self.0.as_ref()?;
        Some(open.context.span().span_context().trace_id().to_string())
    }

    /// What is asked of which model, and whom to ask where the time goes. `asked` is the name that the request has for the
    /// model `name`.
    pub(crate) fn asks(&self, kind: Kind, asked: &str, name: &str, requests: &[model::Request]) {
        let Some(open) = &self.0 else { return };
        let operation = match kind {
            Kind::Chat => "chat",
            Kind::Text => "text_completion",
        };
        let mut attributes = vec![
            KeyValue::new("gen_ai.operation.name", operation),
            KeyValue::new("gen_ai.provider.name", SERVICE_NAME),
            KeyValue::new("gen_ai.request.model", asked.to_owned()),
            KeyValue::new("gen_ai.response.model", name.to_owned()),
        ];
        if let Some(first) = requests.first() {
            let sampling = &first.sampling;
            let number = |name, number: f32| KeyValue::new(name, f64::from(number));
            attributes.extend([
                number("gen_ai.request.temperature", sampling.temperature),
                number("gen_ai.request.top_p", sampling.top_p),
                KeyValue::new("gen_ai.request.choice.count", count(sampling.n)),
            ]);
            let longest = first.max_tokens;
            attributes
                .extend(longest.map(|n| KeyValue::new("gen_ai.request.max_tokens", count(n))));
        }
        open.context.span().set_attributes(attributes);
        let mut stages = open.stages.lock().unwrap_or_else(PoisonError::into_inner);
        stages.extend(requests.iter().map(|request| request.stages.clone()));
    }

    /// What is compared, by which model: `field` is the one that holds it.
    pub(crate) fn retrieves(&self, field: &str, asked: &str, name: &str, stages: &Stages) {
        let Some(open) = &self.0 else { return };
        let operation = match field {
            "input" => "embeddings",
            "documents" => "rerank",
            _ => "score",
        };
        open.context.span().set_attributes([
            KeyValue::new("gen_ai.operation.name", operation),
            KeyValue::new("gen_ai.provider.name", SERVICE_NAME),
            KeyValue::new("gen_ai.request.model", asked.to_owned()),
            KeyValue::new("gen_ai.response.model", name.to_owned()),
        ]);
        let mut all = open.stages.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(stages.clone());
    }

    /// All choices are complete.
    pub(crate) fn answered(&self, usage: Usage, reasons: &[FinishReason]) {
        let Some(open) = &self.0 else { return };
        let reasons = reasons.iter().map(|reason| match reason {
            FinishReason::Stop => StringValue::from("stop"),
            FinishReason::Length => StringValue::from("length"),
        });
        open.context.span().set_attributes([
            KeyValue::new("gen_ai.usage.input_tokens", count(usage.prompt_tokens)),
            KeyValue::new("gen_ai.usage.output_tokens", count(usage.completion_tokens)),
            KeyValue::new("qbridge.usage.image_tokens", count(usage.image_tokens)),
            KeyValue::new("qbridge.usage.cached_tokens", count(usage.cached_tokens)),
            KeyValue::new(
                "gen_ai.response.finish_reasons",
                Value::Array(Array::String(reasons.collect())),
            ),
        ]);
    }

    /// The answer ends early: `kind` is the code of an error, or says that the client has left.
    pub(crate) fn breaks(&self, kind: &str) {
        let Some(open) = &self.0 else { return };
        let span = open.context.span();
        span.set_attribute(KeyValue::new("error.type", kind.to_owned()));
        span.set_status(Status::error(""));
    }

    fn has_status(&self, status: StatusCode) {
        let Some(open) = &self.0 else { return };
        let span = open.context.span();
        let code = i64::from(status.as_u16());
        span.set_attribute(KeyValue::new("http.response.status_code", code));
        // What a client did wrong is no error of the server's.
        if status.is_server_error() {
            self.breaks(status.as_str());
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let end = Instant::now();
        let span = self.context.span();
        if span.is_recording() {
            let requests = std::mem::take(&mut self.stages);
            let requests = requests
                .into_inner()
                .unwrap_or_else(PoisonError::into_inner);
            for stretch in requests.iter().flat_map(Stages::stretches) {
                // Whoever left may still be waited for elsewhere.
                if stretch.start > end {
                    continue;
                }
                let mut child = self
                    .tracer
                    .span_builder(stretch.stage.name())
                    .with_kind(SpanKind::Internal)
                    .with_start_time(self.started.wall_of(stretch.start))
                    .start_with_context(&self.tracer, &self.context);
                let ended = stretch.end.map_or(end, |ended| ended.min(end));
                child.end_with_timestamp(self.started.wall_of(ended));
            }
        }
        span.end_with_timestamp(self.started.wall_of(end));
    }
}

/// Opens a span for each request.
pub(crate) async fn trace(
    State(traces): State<Option<Arc<Traces>>>,
    mut request: Request,
    next: Next,
) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map(MatchedPath::as_str);
    let Some(traces) = traces.filter(|_| !route.is_some_and(|route| QUIET_ROUTES.contains(&route)))
    else {
        return next.run(request).await;
    };
    let span = traces.begin(&request, route);
    request.extensions_mut().insert(span.clone());
    let unanswered = Unanswered(Some(span));
    let response = next.run(request).await;
    unanswered.answered(response.status());
    response
}

/// A span without a status: its client may leave before there is one.
struct Unanswered(Option<RequestSpan>);

impl Unanswered {
    fn answered(mut self, status: StatusCode) {
        if let Some(span) = self.0.take() {
            span.has_status(status);
        }
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(span) = &self.0 {
            span.breaks(CLIENT_LEFT);
        }
    }
}

/// `error.type` of a request whose client did not wait for the end.
pub(crate) const CLIENT_LEFT: &str = "client_left";

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
