//! `GET /metrics`: what the server has done, for Prometheus.
//!
//! The registry belongs to the server, not to the process, so that two servers (or two tests) do not share their numbers.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bridge::event::{Timings, Usage};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::activity::Activities;
use crate::{App, Backend, Error, Result};

/// Upper ends of the histograms' buckets, in seconds.
const BUCKETS: [f64; 14] = [
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0,
];

/// A route as it is written in the router, so that clients cannot make up labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabels {
    model: String,
    stage: &'static str,
}

/// A model by its own name, whatever alias a request had.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabels {
    model: String,
}

type Histograms = Family<ModelLabels, Histogram, fn() -> Histogram>;

/// Counters and histograms of one server.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    prompt_tokens: Family<ModelLabels, Counter>,
    image_tokens: Family<ModelLabels, Counter>,
    cached_tokens: Family<ModelLabels, Counter>,
    generation_tokens: Family<ModelLabels, Counter>,
    stages: Family<StageLabels, Histogram, fn() -> Histogram>,
    first_token: Histograms,
    inter_token: Histograms,
    answers: Histograms,
}

impl ModelLabels {
    fn of(model: &str) -> ModelLabels {
        ModelLabels {
            model: model.to_owned(),
        }
    }
}

impl Metrics {
    pub(crate) fn new(max_requests: usize) -> Metrics {
        let histogram: fn() -> Histogram = || Histogram::new(BUCKETS);
        let mut metrics = Metrics {
            registry: Registry::with_prefix("qbridge"),
            requests: Family::default(),
            prompt_tokens: Family::default(),
            image_tokens: Family::default(),
            cached_tokens: Family::default(),
            generation_tokens: Family::default(),
            stages: Family::new_with_constructor(histogram),
            first_token: Family::new_with_constructor(histogram),
            inter_token: Family::new_with_constructor(histogram),
            answers: Family::new_with_constructor(histogram),
        };
        let limit: Gauge = Gauge::default();
        limit.set(count_of(max_requests));
        let registry = &mut metrics.registry;
        registry.register(
            "requests",
            "Requests answered, by route and status",
            metrics.requests.clone(),
        );
        registry.register(
            "requests_limit",
            "Most requests that are read, wait or generate at once",
            limit,
        );
        registry.register(
            "prompt_tokens",
            "Rows of prompts, pictures included",
            metrics.prompt_tokens.clone(),
        );
        registry.register(
            "image_tokens",
            "Rows of pictures in prompts",
            metrics.image_tokens.clone(),
        );
        registry.register(
            "cached_tokens",
            "Rows of prompts that were in the KV cache already",
            metrics.cached_tokens.clone(),
        );
        registry.register(
            "generation_tokens",
            "Tokens of answers",
            metrics.generation_tokens.clone(),
        );
        registry.register_with_unit(
            "time_to_first_token",
            "From a request's arrival to its first token",
            Unit::Seconds,
            metrics.first_token.clone(),
        );
        registry.register_with_unit(
            "inter_token_latency",
            "From one token of an answer to the next",
            Unit::Seconds,
            metrics.inter_token.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "From a request's arrival to the end of its answer",
            Unit::Seconds,
            metrics.answers.clone(),
        );
        registry.register_with_unit(
            "stage",
            "Time in each stage of an answer",
            Unit::Seconds,
            metrics.stages.clone(),
        );
        metrics
    }

    /// A request's first token has come.
    pub(crate) fn first_token(&self, model: &str, after: Duration) {
        let labels = ModelLabels::of(model);
        self.first_token
            .get_or_create(&labels)
            .observe(after.as_secs_f64());
    }

    /// Another one has come.
    pub(crate) fn next_token(&self, model: &str, after: Duration) {
        let labels = ModelLabels::of(model);
        self.inter_token
            .get_or_create(&labels)
            .observe(after.as_secs_f64());
    }

    /// A request's answer is complete: the numbers, and a line of the log.
    pub(crate) fn answered(&self, model: &str, usage: Usage, timings: Timings, after: Duration) {
        let labels = ModelLabels::of(model);
        for (counter, number) in [
            (&self.prompt_tokens, usage.prompt_tokens),
            (&self.image_tokens, usage.image_tokens),
            (&self.cached_tokens, usage.cached_tokens),
            (&self.generation_tokens, usage.completion_tokens),
        ] {
            counter.get_or_create(&labels).inc_by(number as u64);
        }
        self.answers
            .get_or_create(&labels)
            .observe(after.as_secs_f64());
        for (stage, seconds) in timings.stages() {
            let model = model.to_owned();
            let labels = StageLabels { model, stage };
            self.stages.get_or_create(&labels).observe(seconds);
        }
        tracing::info!(
            model,
            prompt_tokens = usage.prompt_tokens,
            image_tokens = usage.image_tokens,
            cached_tokens = usage.cached_tokens,
            completion_tokens = usage.completion_tokens,
            image_decode = timings.image_decode,
            preprocess = timings.preprocess,
            vit = timings.vit,
            qformer = timings.qformer,
            queue = timings.queue,
            prefill = timings.prefill,
            decode = timings.decode,
            total = after.as_secs_f64(),
            "answered"
        );
    }
}

/// Counts every answer, refusals too.
pub(crate) async fn count<B: Send + Sync + 'static>(
    State(app): State<Arc<App<B>>>,
    request: Request,
    next: Next,
) -> Response {
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or_else(|| "none".to_owned(), |path| path.as_str().to_owned());
    let response = next.run(request).await;
    let status = response.status().as_u16();
    let labels = RequestLabels { route, status };
    app.metrics.requests.get_or_create(&labels).inc();
    response
}

/// `GET /metrics`, in OpenMetrics' text form.
pub(crate) async fn metrics<B: Backend>(State(app): State<Arc<App<B>>>) -> Result<Response> {
    let loaded = app.models.loaded();
    let activities = loaded.map(|(name, model)| (name.to_owned(), model.activity()));
    let mut models = Registry::with_prefix("qbridge");
    models.register_collector(Box::new(Activities(activities.collect())));
    if let Some(traces) = &app.options.traces {
        models.register_collector(Box::new(traces.counts()));
    }
    let mut text = String::new();
    encode_registry(&mut text, &app.metrics.registry)
        .and_then(|()| encode_registry(&mut text, &models))
        .and_then(|()| encode_eof(&mut text))
        .map_err(|_| Error::Internal)?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(CONTENT_TYPE, kind)], text).into_response())
}

fn count_of(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
