//! Metrics of each model name: the model itself and its adapters. The names of unloaded adapters leave, so that their
//! number is bounded by that of the loaded ones.

use std::time::Duration;

use bayan_generate::Usage;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::metrics::FIRST_TOKEN;

/// A model name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Named {
    model: String,
}

/// The metrics of all model names.
pub(crate) struct ModelMetrics {
    /// The model without an adapter.
    base: String,
    queued: Family<Named, Gauge>,
    running: Family<Named, Gauge>,
    answers: Family<Named, Counter>,
    prompt_tokens: Family<Named, Counter>,
    cached_prompt_tokens: Family<Named, Counter>,
    new_tokens: Family<Named, Counter>,
    first_token: Family<Named, Histogram, fn() -> Histogram>,
}

impl ModelMetrics {
    /// All metrics, at zero, for a model of this name.
    pub(crate) fn new(registry: &mut Registry, base: &str) -> ModelMetrics {
        let mut gauge = |name: &str, help: &str| {
            let gauge = Family::<Named, Gauge>::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let queued = gauge("model_requests_queued", "Answers of a model name that wait for a slot");
        let running = gauge("model_requests_running", "Answers of a model name that have a slot");
        let mut counter = |name: &str, help: &str| {
            let counter = Family::<Named, Counter>::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let answers = counter("model_answers", "Answers of a model name that ended");
        let prompt_tokens = counter("model_prompt_tokens", "Tokens of prompts of a model name");
        let cached_prompt_tokens =
            counter("model_cached_prompt_tokens", "Tokens of prompts of a model name that were in the cache already");
        let new_tokens = counter("model_generated_tokens", "New tokens of a model name");
        let histogram: fn() -> Histogram = || Histogram::new(FIRST_TOKEN.iter().copied());
        let first_token = Family::new_with_constructor(histogram);
        registry.register_with_unit(
            "model_time_to_first_token",
            "From a request of a model name to its first token",
            Unit::Seconds,
            first_token.clone(),
        );
        let base = base.to_string();
        let metrics = ModelMetrics {
            base,
            queued,
            running,
            answers,
            prompt_tokens,
            cached_prompt_tokens,
            new_tokens,
            first_token,
        };
        metrics.loaded(None);
        metrics
    }

    fn named(&self, adapter: Option<&str>) -> Named {
        Named { model: adapter.unwrap_or(&self.base).to_string() }
    }

    /// Shows an adapter, or with `None` the model, before its first answer.
    pub(crate) fn loaded(&self, adapter: Option<&str>) {
        let named = self.named(adapter);
        drop(self.queued.get_or_create(&named));
        drop(self.running.get_or_create(&named));
        for counter in [&self.answers, &self.prompt_tokens, &self.cached_prompt_tokens, &self.new_tokens] {
            drop(counter.get_or_create(&named));
        }
    }

    /// Leaves an adapter out that was unloaded.
    pub(crate) fn unloaded(&self, adapter: &str) {
        let named = self.named(Some(adapter));
        self.queued.remove(&named);
        self.running.remove(&named);
        self.first_token.remove(&named);
        for counter in [&self.answers, &self.prompt_tokens, &self.cached_prompt_tokens, &self.new_tokens] {
            counter.remove(&named);
        }
    }

    /// Answers joined the queue, or left it.
    pub(crate) fn queue(&self, adapter: Option<&str>, change: i64) {
        add(&self.queued, &self.named(adapter), change);
    }

    /// Answers got a slot, or left it.
    pub(crate) fn run(&self, adapter: Option<&str>, change: i64) {
        add(&self.running, &self.named(adapter), change);
    }

    /// An answer got its first token.
    pub(crate) fn first_token(&self, adapter: Option<&str>, time: Duration) {
        let named = self.named(adapter);
        if self.queued.get(&named).is_some() {
            self.first_token.get_or_create(&named).observe(time.as_secs_f64());
        }
    }

    /// An answer ended.
    pub(crate) fn ended(&self, adapter: Option<&str>, usage: &Usage) {
        let named = self.named(adapter);
        let counts = [
            (&self.answers, 1),
            (&self.prompt_tokens, usage.prompt_tokens),
            (&self.cached_prompt_tokens, usage.cached_tokens),
            (&self.new_tokens, usage.generated_tokens),
        ];
        for (counter, count) in counts {
            if let Some(counter) = counter.get(&named) {
                counter.inc_by(count as u64);
            }
        }
    }
}

/// Changes a gauge, unless the adapter was unloaded in the meantime.
fn add(gauges: &Family<Named, Gauge>, named: &Named, change: i64) {
    if let Some(gauge) = gauges.get(named) {
        gauge.inc_by(change);
    }
}
