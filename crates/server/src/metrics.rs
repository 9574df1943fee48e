//! Metrics in the format that Prometheus reads. No text of a request is part of any.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::model_metrics::ModelMetrics;

/// Route and status of an answered request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: String,
    status: u16,
}

/// All metrics of a server.
pub struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter>,
    /// Requests with a slot.
    pub running: Gauge,
    /// Requests that wait for a slot.
    pub queued: Gauge,
    /// Slots of the cache.
    pub slots: Gauge,
    /// Tokens in the cache.
    pub cached: Gauge,
    /// Positions of the cache.
    pub positions: Gauge,
    /// Positions whose blocks a slot has.
    pub taken: Gauge,
    /// Bytes on the device.
    pub device_bytes: Gauge,
    /// Tokens of prompts.
    pub prompt_tokens: Counter,
    /// Those of them that were cached already.
    pub cached_prompt_tokens: Counter,
    /// New tokens.
    pub new_tokens: Counter,
    /// Tokens that speculative decoding proposed.
    pub proposed_tokens: Counter,
    /// Those of them that became part of answers.
    pub accepted_tokens: Counter,
    /// Requests whose client went away.
    pub cancelled: Counter,
    /// Times that an answer waited for room in the cache after it had begun.
    pub preemptions: Counter,
    /// Fields of requests that had no effect.
    pub ignored_fields: Counter,
    /// Times that the model was opened again after the device failed.
    pub recoveries: Counter,
    first_token: Histogram,
    next_token: Histogram,
    /// The same of each model name.
    pub(crate) models: ModelMetrics,
}

/// Bounds of histograms, in seconds.
pub(crate) const FIRST_TOKEN: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];
const NEXT_TOKEN: [f64; 11] = [0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0];

impl Metrics {
    /// All metrics, at zero, for a model of this name.
    pub fn new(model: &str) -> Metrics {
        let mut registry = Registry::with_prefix("bayan");
        let requests = Family::<Answered, Counter>::default();
        registry.register("requests", "Answered requests by route and status", requests.clone());
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let running = gauge("requests_running", "Answers that have a slot");
        let queued = gauge("requests_queued", "Answers that wait for a slot");
        let slots =
            gauge("cache_slots", "Slots of the cache: one for each running answer, and those that keep prefixes");
        let cached = gauge("cache_tokens", "Tokens whose keys and values are in the cache");
        let positions = gauge("cache_positions", "Tokens that fit the cache");
        let taken = gauge("cache_positions_taken", "Those in blocks that a slot has");
        let device_bytes = gauge("device_memory_bytes", "Bytes allocated on the device");
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let prompt_tokens = counter("prompt_tokens", "Tokens of prompts");
        let cached_prompt_tokens = counter("cached_prompt_tokens", "Tokens of prompts that were in the cache already");
        let new_tokens = counter("generated_tokens", "New tokens");
        let proposed_tokens = counter("proposed_tokens", "Tokens that speculative decoding proposed");
        let accepted_tokens = counter("accepted_tokens", "Proposed tokens that became part of answers");
        let cancelled = counter("requests_cancelled", "Answers whose client went away");
        let preemptions =
            counter("preemptions", "Times that an answer waited for room in the cache after it had begun");
        let ignored_fields = counter("ignored_fields", "Fields of requests that had no effect");
        let recoveries = counter("recoveries", "Times that the model was opened again after the device failed");
        let mut histogram = |name: &str, help: &str, bounds: &[f64]| {
            let histogram = Histogram::new(bounds.iter().copied());
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
            histogram
        };
        let first_token = histogram("time_to_first_token", "From a request to its first token", &FIRST_TOKEN);
        let next_token = histogram("time_between_tokens", "From a token to the next one", &NEXT_TOKEN);
        let models = ModelMetrics::new(&mut registry, model);
        Metrics {
            requests,
            running,
            queued,
            slots,
            cached,
            positions,
            taken,
            device_bytes,
            prompt_tokens,
            cached_prompt_tokens,
            new_tokens,
            proposed_tokens,
            accepted_tokens,
            cancelled,
            preemptions,
            ignored_fields,
            recoveries,
            first_token,
            next_token,
            models,
            registry,
        }
    }

    /// Counts an answered request.
    pub fn answered(&self, route: &str, status: u16) {
        self.requests.get_or_create(&Answered { route: route.to_string(), status }).inc();
    }

    /// Adds the time from a request to its first token, or from a token to the next.
    pub fn waited(&self, first: bool, time: Duration) {
        if first { &self.first_token } else { &self.next_token }.observe(time.as_secs_f64());
    }

    /// The text that Prometheus reads.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
