//! Spans on their way to a collector, which may be slow, gone or lying: what it does not take in time is dropped and
//! counted, and no request waits for it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry::Context;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use reqwest::redirect::Policy;
use tokio::runtime::Handle;

use crate::{Error, Result};

/// Most characters of a collector's error that are logged.
const MAX_REASON: usize = 300;

/// What became of spans.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Ended, and neither exported nor given up.
    held: AtomicUsize,
    exported: AtomicU64,
    /// The queue was full.
    dropped: AtomicU64,
    /// The collector did not take them.
    failed: AtomicU64,
}

/// Tells [`Counts`] to Prometheus.
#[derive(Debug)]
pub(crate) struct SpanCounts(pub(super) Arc<Counts>);

impl Collector for SpanCounts {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let help = "Spans of traces, by what became of them";
        let mut family =
            encoder.encode_descriptor("trace_spans", help, None, MetricType::Counter)?;
        let counts = &self.0;
        for (outcome, counter) in [
            ("exported", &counts.exported),
            ("dropped", &counts.dropped),
            ("failed", &counts.failed),
        ] {
            let number = ConstCounter::new(counter.load(Ordering::Relaxed));
            number.encode(family.encode_family(&[("outcome", outcome)])?)?;
        }
        Ok(())
    }
}

/// A queue of so many spans at most, those that are being sent included.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) batches: BatchSpanProcessor,
    pub(super) counts: Arc<Counts>,
    pub(super) limit: usize,
}

impl SpanProcessor for Queue {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.batches.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        let take = |held: usize| (held < self.limit).then_some(held + 1);
        let held = &self.counts.held;
        match held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => self.batches.on_end(span),
            Err(_) => {
                self.counts.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Counts what an exporter did, and logs when it begins to fail and when it works again.
#[derive(Debug)]
pub(super) struct Counted {
    pub(super) exporter: opentelemetry_otlp::SpanExporter,
    pub(super) counts: Arc<Counts>,
    pub(super) fails: AtomicBool,
}

impl SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.exporter.export(batch).await;
        self.counts.held.fetch_sub(spans, Ordering::Relaxed);
        let outcome = match &result {
            Ok(()) => &self.counts.exported,
            Err(_) => &self.counts.failed,
        };
        outcome.fetch_add(spans as u64, Ordering::Relaxed);
        let failed_before = self.fails.swap(result.is_err(), Ordering::Relaxed);
        match &result {
            Err(error) if !failed_before => {
                let error: String = error.to_string().chars().take(MAX_REASON).collect();
                tracing::warn!(error, "the collector does not take spans");
            }
            Ok(()) if failed_before => tracing::info!("the collector takes spans again"),
            _ => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Sends on the server's runtime: the exporter's thread has none.
#[derive(Debug)]
pub(super) struct Http {
    client: reqwest::Client,
    runtime: Handle,
}

impl Http {
    /// A client that gives up after `timeout`, follows no redirects and asks no proxy.
    pub(super) fn new(timeout: Duration) -> Result<Http> {
        let failed = |error: &dyn fmt::Display| Error::Setup {
            reason: format!("traces cannot be exported: {error}"),
        };
        let tls = crate::tls::client_config().map_err(|error| failed(&error))?;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .redirect(Policy::none())
            .timeout(timeout)
            .build()
            .map_err(|error| failed(&error))?;
        Ok(Http {
            client,
            runtime: Handle::try_current().map_err(|error| failed(&error))?,
        })
    }
}

#[async_trait]
impl HttpClient for Http {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let sent = async move { client.send_bytes(request).await };
        self.runtime.spawn(sent).await?
    }
}
