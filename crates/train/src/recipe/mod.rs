//! A recipe: every setting of a training run, with the same name in a file and as a flag.
//!
//! Names are those of mlx_lm.lora, PEFT and transformers; aliases from these programs are accepted, and an unknown name
//! is refused with the nearest known one. Rejected: ignoring unknown names, because a misspelt `learning_rate` costs a
//! night of training.

mod parse;
#[cfg(test)]
mod tests;
mod together;

use std::collections::BTreeMap;

use bayan_models::{AdapterConfig, TargetModules};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Result, TrainError};
use crate::order::steps_per_epoch;
use crate::schedule::{Schedule, Scheduler};

pub use parse::{ALIASES, PRESETS, parse_assignment, parse_toml, parse_yaml, preset};

/// The training method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Supervised fine-tuning on the answers.
    #[default]
    Sft,
    /// Direct preference optimization on pairs of a better and a worse answer.
    Dpo,
}

/// How the losses of micro-batches are combined into one step's loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossNormalization {
    /// Summed loss / trained tokens of all micro-batches, as in transformers since 4.46.
    #[default]
    TokenMean,
    /// The mean of the micro-batches' means.
    MeanOfMeans,
}

/// The number type of the checkpoint that `full` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SaveDtype {
    /// f32, as trained.
    #[default]
    Float32,
    /// Rounded to bfloat16, half the size.
    Bfloat16,
}

impl SaveDtype {
    /// The name in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            SaveDtype::Float32 => "float32",
            SaveDtype::Bfloat16 => "bfloat16",
        }
    }
}

/// Where the trained part of an assistant's turn ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TurnEnd {
    /// After everything that the template adds: the end-of-turn token and perhaps a line break.
    #[default]
    Template,
    /// After the end-of-turn token, as in axolotl.
    Token,
}

/// All settings of a run. Each field lists its aliases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// The preset that provides the defaults of the other fields.
    pub preset: Option<String>,
    /// The base model's directory.
    pub model: Option<String>,
    /// Weight format of the frozen base (QLoRA), a name of `bayan_weights::FORMATS`; the stored format when absent.
    pub quantize: Option<String>,
    /// The name or the text of a chat template that replaces the model's own.
    pub chat_template: Option<String>,
    /// The data: a file, or a directory with train and valid files.
    pub data: Option<String>,
    /// A file to evaluate on; otherwise `val_split` takes examples from the training data.
    pub valid_data: Option<String>,
    /// Directory of the adapter, checkpoints and logs (`adapter_path`, `output_dir`).
    pub output: Option<String>,

    /// sft or dpo.
    pub method: Method,
    /// DPO: β, which limits how far the model moves from its reference.
    pub beta: f64,
    /// DPO: compute the reference's log-probabilities once before training.
    pub precompute_reference: bool,
    /// Train all parameters instead of an adapter.
    pub full: bool,
    /// With `full`: start from random weights.
    pub from_scratch: bool,
    /// With `full`: the number type of the resulting checkpoint.
    pub save_dtype: SaveDtype,

    /// LoRA rank (`r`, `lora_r`).
    pub rank: usize,
    /// LoRA alpha; the scale is alpha / rank (`lora_alpha`).
    pub alpha: f64,
    /// Dropout on the input of A (`lora_dropout`).
    pub dropout: f64,
    /// Use the scale alpha / √rank.
    pub use_rslora: bool,
    /// Module names, a regular expression, or `all-linear`.
    pub target_modules: Value,
    /// Numbers of the layers that get an adapter; all when absent.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Ranks of modules by pattern.
    pub rank_pattern: Map<String, Value>,
    /// Alphas of modules by pattern.
    pub alpha_pattern: Map<String, Value>,

    /// Sequences per micro-batch (`per_device_train_batch_size`, `micro_batch_size`).
    pub batch_size: usize,
    /// Micro-batches per optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Passes over the data (`num_train_epochs`); not together with `max_steps`.
    pub epochs: Option<f64>,
    /// Optimizer steps (`iters`).
    pub max_steps: Option<u64>,
    /// Most tokens of a sequence; longer ones are truncated at the end (`sequence_len`).
    pub max_seq_length: usize,
    /// Pack several short sequences into one (`sample_packing`).
    pub packing: bool,
    /// Train on the assistant's turns only; otherwise on all tokens.
    pub mask_prompt: bool,
    /// Where the trained part of an assistant's turn ends.
    pub turn_end: TurnEnd,
    /// token_mean or mean_of_means.
    pub loss_normalization: LossNormalization,

    /// The highest learning rate (`lr`).
    pub learning_rate: f64,
    /// cosine, linear or constant (`lr_scheduler_type`).
    pub lr_scheduler: Scheduler,
    /// Steps of warm-up (`warmup`).
    pub warmup_steps: Option<u64>,
    /// Warm-up as a fraction of all steps; not together with `warmup_steps`.
    pub warmup_ratio: Option<f64>,
    /// AdamW's β₁ (or both as `betas`).
    pub adam_beta1: f64,
    /// AdamW's β₂.
    pub adam_beta2: f64,
    /// AdamW's ε (`eps`).
    pub adam_epsilon: f64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are clipped to this global norm; 0 disables clipping (`clip_grad_norm`).
    pub max_grad_norm: f64,
    /// NEFTune's α: noise on the embeddings.
    pub neftune_noise_alpha: Option<f64>,
    /// Seed of all random numbers.
    pub seed: u64,
    /// Shuffle the examples of each epoch.
    pub shuffle: bool,
    /// Recompute each layer's activations in the backward pass instead of keeping them (`gradient_checkpointing`).
    pub grad_checkpoint: bool,
    /// Saved activations in f16, f16 tiles in matrix products, and loss scaling (`fp16`); requires a device with f16.
    pub f16: bool,

    /// Fraction (below 1) or number (from 1) of examples set aside for evaluation (`val_set_size`).
    pub val_split: f64,
    /// Steps between evaluations (`eval_steps`, `steps_per_eval`).
    pub eval_every: Option<u64>,
    /// Benchmarks that are scored where the model is evaluated: names of tasks or groups, separated by commas.
    pub eval: Option<String>,
    /// The folder with the benchmarks' data.
    pub eval_data: Option<String>,
    /// Only the first items of each benchmark.
    pub eval_limit: Option<u64>,
    /// Steps between checkpoints (`save_steps`).
    pub save_every: Option<u64>,
    /// Steps between reports (`logging_steps`, `steps_per_report`).
    pub log_every: u64,
    /// Checkpoints kept beside the best one (`save_total_limit`).
    pub keep_last: usize,
    /// Keep the checkpoint with the lowest evaluation loss, and return its weights (`load_best_model_at_end`).
    pub keep_best: bool,
    /// Stop after this many evaluations without a better loss.
    pub early_stopping_patience: Option<u64>,

    /// Maps our column names to the file's.
    pub columns: BTreeMap<String, String>,
    /// Count bad rows instead of stopping.
    pub skip_bad: bool,
    /// Drop system messages.
    pub drop_system_message: bool,
    /// Most rows to read.
    pub limit: Option<u64>,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            preset: None,
            model: None,
            quantize: None,
            chat_template: None,
            data: None,
            valid_data: None,
            output: None,
            method: Method::Sft,
            beta: 0.1,
            precompute_reference: false,
            full: false,
            from_scratch: false,
            save_dtype: SaveDtype::Float32,
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            use_rslora: false,
            target_modules: Value::from("all-linear"),
            layers_to_transform: None,
            rank_pattern: Map::new(),
            alpha_pattern: Map::new(),
            batch_size: 4,
            gradient_accumulation_steps: 1,
            epochs: None,
            max_steps: None,
            max_seq_length: 2048,
            packing: false,
            mask_prompt: true,
            turn_end: TurnEnd::Template,
            loss_normalization: LossNormalization::TokenMean,
            learning_rate: 1e-4,
            lr_scheduler: Scheduler::Cosine,
            warmup_steps: None,
            warmup_ratio: None,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            neftune_noise_alpha: None,
            seed: 0,
            shuffle: true,
            grad_checkpoint: true,
            f16: false,
            val_split: 0.0,
            eval_every: None,
            eval: None,
            eval_data: None,
            eval_limit: None,
            save_every: None,
            log_every: 1,
            keep_last: 2,
            keep_best: false,
            early_stopping_patience: None,
            columns: BTreeMap::new(),
            skip_bad: false,
            drop_system_message: false,
            limit: None,
        }
    }
}

/// The length of a run, known once the examples are counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunLength {
    /// Optimizer steps of one epoch.
    pub steps_per_epoch: u64,
    /// Optimizer steps of the run.
    pub total_steps: u64,
    /// The learning rates of the run.
    pub schedule: Schedule,
}

const MAX_SEQ_LENGTH: usize = 1 << 20;
const MAX_BATCH: usize = 1 << 16;

impl Recipe {
    /// Checks every value, and combinations of values.
    ///
    /// # Errors
    /// The first invalid field, with the values that it accepts.
    pub fn validate(&self) -> Result<()> {
        let whole = |field: &str, value: usize, most: usize| {
            let error =
                || TrainError::recipe(field, format!("a whole number in 1..={most}"), value, "choose another number");
            if (1..=most).contains(&value) { Ok(()) } else { Err(error()) }
        };
        let number = |field: &str, value: f64, sound: bool, expected: &str| {
            if value.is_finite() && sound {
                Ok(())
            } else {
                Err(TrainError::recipe(field, expected, value, "choose another number"))
            }
        };
        whole("rank", self.rank, 1 << 16)?;
        whole("batch_size", self.batch_size, MAX_BATCH)?;
        whole("gradient_accumulation_steps", self.gradient_accumulation_steps, MAX_BATCH)?;
        whole("keep_last", self.keep_last, MAX_BATCH)?;
        whole("log_every", self.log_every as usize, usize::MAX)?;
        if !(2..=MAX_SEQ_LENGTH).contains(&self.max_seq_length) {
            return Err(TrainError::recipe(
                "max_seq_length",
                format!("a whole number in 2..={MAX_SEQ_LENGTH}"),
                self.max_seq_length,
                "choose another number",
            ));
        }
        number("alpha", self.alpha, self.alpha > 0.0 && self.alpha <= 1e6, "a number in 0..=1e6, above 0")?;
        number("dropout", self.dropout, (0.0..1.0).contains(&self.dropout), "a number in 0..1")?;
        number(
            "learning_rate",
            self.learning_rate,
            self.learning_rate > 0.0 && self.learning_rate <= 1.0,
            "a number in 0..=1, above 0, such as 1e-4",
        )?;
        number("adam_beta1", self.adam_beta1, (0.0..1.0).contains(&self.adam_beta1), "a number in 0..1")?;
        number("adam_beta2", self.adam_beta2, (0.0..1.0).contains(&self.adam_beta2), "a number in 0..1")?;
        number(
            "adam_epsilon",
            self.adam_epsilon,
            self.adam_epsilon > 0.0 && self.adam_epsilon < 1.0,
            "a small number above 0, such as 1e-8",
        )?;
        number("weight_decay", self.weight_decay, (0.0..=1.0).contains(&self.weight_decay), "a number in 0..=1")?;
        number("max_grad_norm", self.max_grad_norm, self.max_grad_norm >= 0.0, "a number from 0 on (0: no clipping)")?;
        number("beta", self.beta, self.beta > 0.0, "a number above 0, such as 0.1")?;
        number(
            "val_split",
            self.val_split,
            self.val_split >= 0.0 && (self.val_split < 1.0 || self.val_split.fract() == 0.0),
            "a part below 1 or a whole number",
        )?;
        if let Some(noise) = self.neftune_noise_alpha {
            number("neftune_noise_alpha", noise, noise >= 0.0, "a number from 0 on, such as 5")?;
        }
        if let Some(epochs) = self.epochs {
            number("epochs", epochs, epochs > 0.0 && epochs <= 1e6, "a number above 0")?;
        }
        if let Some(ratio) = self.warmup_ratio {
            number("warmup_ratio", ratio, (0.0..=1.0).contains(&ratio), "a number in 0..=1")?;
        }
        for (field, value) in [
            ("max_steps", self.max_steps),
            ("eval_every", self.eval_every),
            ("eval_limit", self.eval_limit),
            ("save_every", self.save_every),
        ] {
            if value == Some(0) {
                return Err(TrainError::recipe(field, "a whole number from 1 on", 0, "leave the field out for none"));
            }
        }
        self.validate_together()?;
        if self.full { Ok(()) } else { self.adapter_config().map(|_| ()) }
    }

    /// Refuses adapter settings together with `full`.
    fn validate_full(&self) -> Result<()> {
        if let Some(format) = self.quantize.as_deref().filter(|format| *format != "f32") {
            let remedy = "leave quantize out, and quantize the result with `bayan quantize`; or train an adapter";
            return Err(TrainError::recipe(
                "quantize",
                "none with full = true: all parameters are trained in f32",
                format,
                remedy,
            ));
        }
        let (ours, default) = (
            serde_json::to_value(self).unwrap_or_default(),
            serde_json::to_value(Recipe::default()).unwrap_or_default(),
        );
        let of_adapters = [
            "rank",
            "alpha",
            "dropout",
            "use_rslora",
            "target_modules",
            "layers_to_transform",
            "rank_pattern",
            "alpha_pattern",
        ];
        match of_adapters.into_iter().find(|field| ours.get(field) != default.get(field)) {
            None => Ok(()),
            Some(field) => Err(TrainError::recipe(
                field,
                "nothing with full = true, which trains no adapter",
                &ours[field],
                "leave the field out",
            )),
        }
    }

    /// The adapter's configuration. `all-linear` is kept; [`Recipe::adapter_config_for`] expands it for a model.
    ///
    /// # Errors
    /// Patterns or targets are invalid.
    pub fn adapter_config(&self) -> Result<AdapterConfig> {
        let mut config = AdapterConfig::new(
            self.rank,
            self.alpha,
            TargetModules::from_json("target_modules", &self.target_modules)?,
        );
        config.lora_dropout = self.dropout;
        config.use_rslora = self.use_rslora;
        config.layers_to_transform = self.layers_to_transform.clone().filter(|layers| !layers.is_empty());
        config.base_model_name_or_path = self.model.clone();
        if config.layers_to_transform.is_some() && matches!(config.target_modules, TargetModules::Regex(_)) {
            let remedy = "put the layer numbers into the expression";
            return Err(TrainError::recipe(
                "layers_to_transform",
                "none when target_modules is an expression",
                "both",
                remedy,
            ));
        }
        for (key, value) in &self.rank_pattern {
            let rank = value.as_u64().filter(|r| (1..=1 << 16).contains(r));
            let rank = rank.ok_or_else(|| {
                TrainError::recipe(
                    "rank_pattern",
                    "ranks in 1..=65536",
                    format!("{key}: {value}"),
                    "write a whole number",
                )
            })?;
            config.rank_pattern.push((key.clone(), rank as usize));
        }
        for (key, value) in &self.alpha_pattern {
            let alpha = value.as_f64().filter(|a| a.is_finite() && *a > 0.0);
            let alpha = alpha.ok_or_else(|| {
                TrainError::recipe("alpha_pattern", "numbers above 0", format!("{key}: {value}"), "write a number")
            })?;
            config.alpha_pattern.push((key.clone(), alpha));
        }
        config.rules()?;
        Ok(config)
    }

    /// The adapter's configuration for a model with these linear layers, and the layers that get a LoRA pair, in the
    /// order given. As in PEFT, `all-linear` is expanded to the last components of the names.
    ///
    /// # Errors
    /// As [`Recipe::adapter_config`]; or no layer of the model matches a target, a layer number or a pattern.
    pub fn adapter_config_for(&self, linears: &[String]) -> Result<(AdapterConfig, Vec<String>)> {
        let mut config = self.adapter_config()?;
        let ending = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
        let known = || {
            linears
                .iter()
                .map(|name| ending(name))
                .collect::<std::collections::BTreeSet<_>>()
                .into_iter()
                .collect::<Vec<_>>()
                .join(", ")
        };
        let chosen = |config: &AdapterConfig| -> Result<Vec<String>> {
            let rules = config.rules()?;
            let pairs = linears.iter().map(|name| Ok((rules.is_target(name)?, name.clone())));
            Ok(pairs.collect::<Result<Vec<_>>>()?.into_iter().filter(|(is, _)| *is).map(|(_, name)| name).collect())
        };
        if let Some(layers) = &config.layers_to_transform {
            let there = |layer: &usize| linears.iter().any(|m| bayan_models::layer_of(m) == Some(*layer));
            if let Some(missing) = layers.iter().find(|layer| !there(layer)) {
                return Err(TrainError::recipe(
                    "layers_to_transform",
                    "layers that the model has",
                    missing,
                    "layers count from 0",
                ));
            }
        }
        let modules = chosen(&config)?;
        if modules.is_empty() {
            let remedy = format!("this model's linear layers are {}", known());
            return Err(TrainError::recipe(
                "target_modules",
                "at least one linear layer of the model",
                &self.target_modules,
                remedy,
            ));
        }
        if let TargetModules::Names(names) = &config.target_modules {
            let missing =
                names.iter().find(|name| !linears.iter().any(|l| l == *name || l.ends_with(&format!(".{name}"))));
            if let Some(missing) = missing {
                let remedy = if missing.contains("embed") || missing == "wte" {
                    "LoRA of the embedding is not trained here: leave the name out, or train with PEFT and apply the \
                     adapter with `bayan merge`"
                } else {
                    "correct the name or leave it out"
                };
                return Err(TrainError::recipe("target_modules", format!("names among {}", known()), missing, remedy));
            }
        }
        if config.target_modules == TargetModules::AllLinear {
            let endings: std::collections::BTreeSet<String> = modules.iter().map(|name| ending(name)).collect();
            config.target_modules = TargetModules::Names(endings.into_iter().collect());
        }
        Ok((config, modules))
    }

    /// The length of a run over `examples` training sequences (packs, when packing), counted as in transformers'
    /// Trainer.
    pub fn run_length(&self, examples: usize) -> RunLength {
        let steps_per_epoch = steps_per_epoch(examples, self.batch_size, self.gradient_accumulation_steps);
        let total_steps =
            self.max_steps.unwrap_or_else(|| (self.epochs.unwrap_or(1.0) * steps_per_epoch as f64).ceil() as u64);
        let warmup_steps = match (self.warmup_steps, self.warmup_ratio) {
            (Some(steps), _) => steps,
            (None, ratio) => (total_steps as f64 * ratio.unwrap_or(0.0)).ceil() as u64,
        };
        let schedule =
            Schedule { scheduler: self.lr_scheduler, learning_rate: self.learning_rate, warmup_steps, total_steps };
        RunLength { steps_per_epoch, total_steps, schedule }
    }

    /// How many of `examples` are set aside for evaluation.
    pub fn validation_count(&self, examples: usize) -> usize {
        let wanted = if self.val_split < 1.0 { (self.val_split * examples as f64).ceil() } else { self.val_split };
        (wanted as usize).min(examples.saturating_sub(1))
    }
}
