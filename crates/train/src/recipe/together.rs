//! Checks of fields that belong together.

use super::{Method, Recipe, SaveDtype};
use crate::error::{Result, TrainError};

impl Recipe {
    /// Checks combinations of values.
    ///
    /// # Errors
    /// The first field that does not fit another one.
    pub(super) fn validate_together(&self) -> Result<()> {
        let clash = |field: &str, expected: &str, got: &str, remedy: &str| {
            Err(TrainError::recipe(field, expected, got, remedy))
        };
        if self.epochs.is_some() && self.max_steps.is_some() {
            return clash("epochs", "either epochs or max_steps", "both", "leave one out");
        }
        if self.warmup_steps.is_some() && self.warmup_ratio.is_some() {
            return clash("warmup_steps", "either warmup_steps or warmup_ratio", "both", "leave one out");
        }
        if let (Some(warmup), Some(steps)) = (self.warmup_steps, self.max_steps)
            && warmup > steps
        {
            return clash(
                "warmup_steps",
                &format!("at most max_steps, {steps}"),
                &warmup.to_string(),
                "shorten the warm-up",
            );
        }
        let evaluates = self.val_split > 0.0 || self.valid_data.is_some();
        if self.early_stopping_patience == Some(0) {
            return clash(
                "early_stopping_patience",
                "a whole number from 1 on",
                "0",
                "leave the field out for no early stopping",
            );
        }
        if self.early_stopping_patience.is_some() && self.eval_every.is_none() {
            return clash("early_stopping_patience", "eval_every beside it", "none", "set eval_every, for example 50");
        }
        if self.keep_best && self.eval_every.is_none() {
            return clash("keep_best", "eval_every beside it", "none", "set eval_every, for example 50");
        }
        if self.eval.is_some() != self.eval_data.is_some() {
            let (field, other) = if self.eval.is_some() { ("eval", "eval_data") } else { ("eval_data", "eval") };
            let remedy = "name the benchmarks with eval and the folder of their data with eval_data";
            return clash(field, &format!("{other} beside it"), "none", remedy);
        }
        if self.eval_limit.is_some() && self.eval.is_none() {
            return clash("eval_limit", "eval beside it", "none", "name the benchmarks with eval");
        }
        if self.eval_every.is_some()
            && self.eval.is_none()
            && !evaluates
            && self.data.as_deref().is_some_and(|d| !std::path::Path::new(d).is_dir())
        {
            return clash(
                "eval_every",
                "data to evaluate on",
                "none",
                "set val_split (for example 0.05) or valid_data",
            );
        }
        if self.from_scratch && !self.full {
            return clash(
                "from_scratch",
                "full = true beside it",
                "false",
                "an adapter on random weights learns nothing; set full",
            );
        }
        if self.save_dtype != SaveDtype::Float32 && !self.full {
            return clash(
                "save_dtype",
                "full = true beside it",
                "false",
                "adapters are written in f32, as they were trained; leave the field out",
            );
        }
        if self.full && self.method == Method::Dpo {
            return clash(
                "method",
                "sft with full = true",
                "dpo",
                "DPO needs the base as its reference; train an adapter",
            );
        }
        // NEFTune and packing are refused together with DPO: no setting is silently ignored.
        if self.neftune_noise_alpha.is_some_and(|noise| noise > 0.0) && self.method == Method::Dpo {
            return clash("neftune_noise_alpha", "none with method dpo", "noise", "leave the field out");
        }
        if self.full {
            self.validate_full()?;
        }
        if self.packing && self.method == Method::Dpo {
            return clash("packing", "false with method dpo", "true", "pairs are not packed");
        }
        Ok(())
    }
}
