//! What models count themselves, as metrics: read when somebody asks.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::backend::Activity;

/// Each metric: whether it only grows, its name, what it says, and where it is.
type Entry = (bool, &'static str, &'static str, fn(&Activity) -> u64);

const METRICS: [Entry; 18] = [
    (false, "requests_running", "Requests that generate", |of| {
        of.engine.active as u64
    }),
    (
        false,
        "requests_waiting",
        "Requests that wait for a slot",
        |of| of.engine.waiting as u64,
    ),
    (
        true,
        "engine_steps",
        "Batches that the language model computed",
        |of| of.engine.steps,
    ),
    (
        true,
        "engine_prompt_rows",
        "Rows of prompts that it computed",
        |of| of.engine.prompt_rows,
    ),
    (
        true,
        "engine_reused_rows",
        "Rows of prompts that were in the KV cache already",
        |of| of.engine.reused_rows,
    ),
    (
        false,
        "engine_kept_sequences",
        "Finished sequences that are kept in the KV cache",
        |of| of.engine.kept_sequences,
    ),
    (
        true,
        "engine_sampled_tokens",
        "Tokens that it chose, those of all beams",
        |of| of.engine.sampled_tokens,
    ),
    (
        true,
        "engine_guessed_tokens",
        "Tokens that were guessed ahead of it",
        |of| of.engine.guessed_tokens,
    ),
    (
        true,
        "engine_right_guesses",
        "Guessed tokens that it then chose",
        |of| of.engine.right_guesses,
    ),
    (true, "vision_batches", "Forward passes of the ViT", |of| {
        of.vision.batches
    }),
    (
        true,
        "vision_pictures",
        "Pictures that went through the ViT",
        |of| of.vision.pictures,
    ),
    (
        true,
        "vision_readings",
        "Pictures that went through the Q-Former",
        |of| of.vision.readings,
    ),
    (
        true,
        "vision_cache_hits",
        "Pictures that had been seen before",
        |of| of.vision.cache_hits,
    ),
    (true, "vision_cache_misses", "Pictures that had not", |of| {
        of.vision.cache_misses
    }),
    (
        true,
        "vision_cache_evictions",
        "Pictures dropped for others",
        |of| of.vision.cache_evictions,
    ),
    (true, "texts", "Texts whose features were computed", |of| {
        of.texts
    }),
    (
        true,
        "pairs",
        "Pairs of a picture and a text that a matching head read",
        |of| of.pairs,
    ),
    (
        false,
        "vision_cache_bytes",
        "Bytes kept of pictures",
        |of| of.vision.cache_bytes,
    ),
];

/// The activity of models by their names.
#[derive(Debug)]
pub(crate) struct Activities(pub(crate) Vec<(String, Activity)>);

impl Collector for Activities {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        for (grows, name, help, value) in METRICS {
            let kind = if grows {
                MetricType::Counter
            } else {
                MetricType::Gauge
            };
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (model, activity) in &self.0 {
                let labels = [("model", model.as_str())];
                let value = value(activity);
                let one = family.encode_family(&labels)?;
                match grows {
                    true => ConstCounter::new(value).encode(one)?,
                    false => {
                        ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(one)?
                    }
                }
            }
        }
        Ok(())
    }
}
