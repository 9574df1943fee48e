//! Recipes from TOML, YAML, flags and presets: layers of names and values, later ones override earlier ones.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Recipe;
use crate::error::{Result, TrainError, nearest};

/// The names of the presets.
pub const PRESETS: [&str; 3] = ["barka", "quick", "dpo"];

/// Aliases of our names, from mlx_lm.lora, PEFT, transformers and axolotl.
pub const ALIASES: &[(&str, &str)] = &[
    ("fp16", "f16"),
    ("r", "rank"),
    ("lora_r", "rank"),
    ("lora_rank", "rank"),
    ("lora_alpha", "alpha"),
    ("lora_dropout", "dropout"),
    ("neftune_alpha", "neftune_noise_alpha"),
    ("lora_target_modules", "target_modules"),
    ("num_train_epochs", "epochs"),
    ("num_epochs", "epochs"),
    ("iters", "max_steps"),
    ("per_device_train_batch_size", "batch_size"),
    ("micro_batch_size", "batch_size"),
    ("grad_accumulation_steps", "gradient_accumulation_steps"),
    ("max_length", "max_seq_length"),
    ("sequence_len", "max_seq_length"),
    ("cutoff_len", "max_seq_length"),
    ("sample_packing", "packing"),
    ("lr", "learning_rate"),
    ("lr_scheduler_type", "lr_scheduler"),
    ("lr_schedule", "lr_scheduler"),
    ("warmup", "warmup_steps"),
    ("eps", "adam_epsilon"),
    ("adam_eps", "adam_epsilon"),
    ("clip_grad_norm", "max_grad_norm"),
    ("gradient_clipping", "max_grad_norm"),
    ("gradient_checkpointing", "grad_checkpoint"),
    ("val_set_size", "val_split"),
    ("eval_steps", "eval_every"),
    ("steps_per_eval", "eval_every"),
    ("save_steps", "save_every"),
    ("logging_steps", "log_every"),
    ("steps_per_report", "log_every"),
    ("save_total_limit", "keep_last"),
    ("load_best_model_at_end", "keep_best"),
    ("adapter_path", "output"),
    ("output_dir", "output"),
    ("pref_beta", "beta"),
    ("dpo_beta", "beta"),
];

/// Settings of PEFT whose kinds of adapters are read and merged, or not known at all, and not trained: the name, the
/// values that ask for plain LoRA, and what such an adapter is.
const NOT_TRAINED: &[(&str, &[&str], &str)] = &[
    ("use_dora", &["false"], "DoRA"),
    ("modules_to_save", &["[]"], "whole modules beside LoRA"),
    ("trainable_token_indices", &["[]", "{}"], "rows of single tokens"),
    ("init_lora_weights", &["true", "\"default\""], "a start other than PEFT's default"),
    ("eva_config", &["{}"], "a start by EVA"),
    ("bias", &["\"none\""], "biases"),
    ("lora_bias", &["false"], "a bias in LoRA's pairs"),
    ("exclude_modules", &["[]"], "leaving modules out by name (name those that get an adapter in target_modules)"),
    ("fan_in_fan_out", &["false"], "transposed weights (they are found without this setting)"),
    ("layer_replication", &["[]"], "replicated layers"),
];

/// The settings of a preset.
///
/// `barka`: the published run over gemma-2 (rank 128, learning rate 1e-4, cosine); the rest is from the authors'
/// committed configuration of an earlier run (dropout 0.05, 2048 tokens, 4 × 4 sequences a step, 4 epochs, no warm-up
/// or decay, a tenth for evaluation, no system messages). Its alpha is not published; here it equals the rank, a scale
/// of 1. `quick`: shows in minutes whether the model learns from the data. `dpo`: the usual values for preference pairs
/// over an adapter.
///
/// # Errors
/// There is no preset of this name.
pub fn preset(name: &str) -> Result<Map<String, Value>> {
    let value = match name {
        "barka" => json!({
            "rank": 128, "alpha": 128, "dropout": 0.05, "target_modules": "all-linear", "learning_rate": 1e-4, "lr_scheduler": "cosine",
            "batch_size": 4, "gradient_accumulation_steps": 4, "epochs": 4, "max_seq_length": 2048, "packing": false, "warmup_steps": 0,
            "weight_decay": 0.0, "val_split": 0.1, "mask_prompt": true, "turn_end": "token", "drop_system_message": true
        }),
        "quick" => json!({
            "rank": 8, "alpha": 16, "learning_rate": 2e-4, "lr_scheduler": "cosine", "warmup_steps": 5, "max_steps": 100, "batch_size": 2,
            "gradient_accumulation_steps": 1, "max_seq_length": 512
        }),
        "dpo" => json!({
            "method": "dpo", "beta": 0.1, "rank": 16, "alpha": 32, "learning_rate": 5e-6, "lr_scheduler": "linear", "warmup_ratio": 0.1, "epochs": 1,
            "batch_size": 2, "gradient_accumulation_steps": 8
        }),
        _ => {
            let near = nearest(name, PRESETS)
                .map(|n| format!("did you mean `{n}`?"))
                .unwrap_or_else(|| "leave the field out".into());
            return Err(TrainError::recipe("preset", format!("one of {}", PRESETS.join(", ")), name, near));
        }
    };
    Ok(if let Value::Object(map) = value { map } else { Map::new() })
}

/// The fields of a TOML recipe.
///
/// # Errors
/// The text is not TOML; the error names the place.
pub fn parse_toml(text: &str) -> Result<Map<String, Value>> {
    toml::from_str(text).map_err(|error| {
        TrainError::recipe("(the file)", "TOML", error.to_string().trim(), "write name = value on each line")
    })
}

/// The fields of a YAML recipe.
///
/// # Errors
/// The text is not YAML, or not a mapping of names to values.
pub fn parse_yaml(text: &str) -> Result<Map<String, Value>> {
    let parsed: Option<Map<String, Value>> = serde_yaml_ng::from_str(text)
        .map_err(|error| TrainError::recipe("(the file)", "YAML", error, "write name: value on each line"))?;
    Ok(parsed.unwrap_or_default())
}

/// Parses one `name=value` from a command line. A value that is valid JSON is read as JSON, any other as text.
///
/// # Errors
/// The text has no `=`.
pub fn parse_assignment(text: &str) -> Result<(String, Value)> {
    let Some((name, value)) = text.split_once('=') else {
        return Err(TrainError::recipe("(a flag)", "name=value", text, "write for example rank=16"));
    };
    let (name, value) = (name.trim().replace('-', "_"), value.trim());
    let read = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
    Ok((name, read))
}

impl Recipe {
    /// Merges layers into a recipe, later ones over earlier ones, all over the preset that the last layer with a
    /// `preset` names. Fields that exclude each other (`epochs` and `max_steps`, `warmup_steps` and `warmup_ratio`)
    /// replace each other between layers.
    ///
    /// # Errors
    /// An unknown name (the error suggests the nearest), a value of a wrong type, or an error of [`Recipe::validate`].
    pub fn resolve(layers: impl IntoIterator<Item = Map<String, Value>>) -> Result<Self> {
        let layers = layers.into_iter().map(canonical).collect::<Result<Vec<_>>>()?;
        let named = layers.iter().rev().find_map(|layer| layer.get("preset"));
        let mut merged = match named {
            Some(Value::String(name)) => preset(name)?,
            Some(other) => {
                return Err(TrainError::recipe(
                    "preset",
                    "a name",
                    other,
                    format!("the presets are {}", PRESETS.join(", ")),
                ));
            }
            None => Map::new(),
        };
        for layer in layers {
            for (one, other) in [("epochs", "max_steps"), ("warmup_steps", "warmup_ratio")] {
                for (one, other) in [(one, other), (other, one)] {
                    if layer.contains_key(one) && !layer.contains_key(other) {
                        merged.remove(other);
                    }
                }
            }
            merged.extend(layer);
        }
        let recipe = read(merged)?;
        recipe.validate()?;
        Ok(recipe)
    }

    /// A recipe from the text of a `.toml`, `.yaml` or `.yml` file, with further layers (flags) over it.
    ///
    /// # Errors
    /// As [`Recipe::resolve`], or another file extension.
    pub fn from_file(name: &str, text: &str, over: Map<String, Value>) -> Result<Self> {
        let fields = match name.rsplit('.').next() {
            Some("toml") => parse_toml(text)?,
            Some("yaml" | "yml") => parse_yaml(text)?,
            _ => {
                return Err(TrainError::recipe(
                    "(the file)",
                    "a name that ends in .toml, .yaml or .yml",
                    name,
                    "rename it",
                ));
            }
        };
        Self::resolve([fields, over])
    }

    /// The recipe as TOML, for the run's directory.
    pub fn to_toml(&self) -> String {
        let Value::Object(fields) = serde_json::to_value(self).unwrap_or_default() else { return String::new() };
        let set: Map<String, Value> = fields.into_iter().filter(|(_, v)| !v.is_null()).collect();
        toml::to_string(&set).unwrap_or_default()
    }
}

/// Resolves aliases and converts numbers written as text. A name without a value is ignored, as in axolotl's files; it
/// does not reset a preset's value, because a saved recipe could not express that.
fn canonical(layer: Map<String, Value>) -> Result<Map<String, Value>> {
    let Value::Object(defaults) = serde_json::to_value(Recipe::default()).unwrap_or_default() else { return Ok(layer) };
    let mut out = Map::new();
    for (name, value) in layer {
        let ours = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name.as_str(), |(_, ours)| ours).to_owned();
        let betas = ours == "betas" || ours == "adam_betas";
        if value.is_null() && (betas || defaults.contains_key(&ours)) {
            continue;
        }
        if betas {
            let [beta1, beta2] = value.as_array().map(Vec::as_slice).unwrap_or_default() else {
                return Err(TrainError::recipe("betas", "two numbers", &value, "write for example [0.9, 0.999]"));
            };
            out.insert("adam_beta1".into(), beta1.clone());
            out.insert("adam_beta2".into(), beta2.clone());
            continue;
        }
        let Some(default) = defaults.get(&ours) else {
            if asks_for_plain_lora(&name, &value)? {
                continue;
            }
            return Err(unknown(&name, &value, defaults.keys().map(String::as_str)));
        };
        if out.contains_key(&ours) {
            return Err(TrainError::recipe(
                &ours,
                "one value",
                format!("two, one of them as `{name}`"),
                "leave one out",
            ));
        }
        let text = value
            .as_str()
            .map(str::trim)
            .filter(|_| !default.is_string() && !default.is_boolean() && ours != "target_modules");
        let number = text
            .and_then(|text| text.parse::<f64>().ok())
            .filter(|n| n.is_finite() && NUMBERS.contains(&ours.as_str()));
        out.insert(ours, number.map_or(value, whole_or_fraction));
    }
    Ok(out)
}

/// Whether this is one of PEFT's other settings, with a value that changes nothing.
fn asks_for_plain_lora(name: &str, value: &Value) -> Result<bool> {
    let Some((_, plain, kind)) = NOT_TRAINED.iter().find(|(known, ..)| *known == name) else { return Ok(false) };
    if value.is_null() || plain.contains(&value.to_string().as_str()) {
        return Ok(true);
    }
    let remedy = format!(
        "`bayan finetune` does not train {kind}: leave the field out for plain LoRA, or train with PEFT, whose adapters \
         `bayan merge` applies where docs/training.md lists their kind"
    );
    Err(TrainError::recipe(name, format!("{}, or none", plain[0]), value, remedy))
}

/// Fields that are numbers although their default may be absent.
const NUMBERS: [&str; 27] = [
    "beta",
    "rank",
    "alpha",
    "dropout",
    "batch_size",
    "gradient_accumulation_steps",
    "epochs",
    "max_steps",
    "max_seq_length",
    "learning_rate",
    "warmup_steps",
    "warmup_ratio",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "weight_decay",
    "max_grad_norm",
    "neftune_noise_alpha",
    "seed",
    "val_split",
    "eval_every",
    "eval_limit",
    "save_every",
    "log_every",
    "keep_last",
    "early_stopping_patience",
    "limit",
];

fn whole_or_fraction(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() < 1e15 { json!(number as i64) } else { json!(number) }
}

fn unknown<'a>(name: &str, value: &Value, known: impl Iterator<Item = &'a str>) -> TrainError {
    let near = nearest(name, known.chain(ALIASES.iter().map(|(alias, _)| *alias)));
    let remedy = match near {
        Some(near) => format!("did you mean `{near}`?"),
        None if value.is_object() => "write its fields (rank, alpha, dropout, …) at the top level".to_owned(),
        None => "see the documentation of recipes for all names".to_owned(),
    };
    TrainError::recipe(name, "a known name", "an unknown one", remedy)
}

/// Reads all fields at once; if that fails, one by one, to name the invalid one.
fn read(fields: Map<String, Value>) -> Result<Recipe> {
    let error = match Recipe::deserialize(Value::Object(fields.clone())) {
        Ok(recipe) => return Ok(recipe),
        Err(error) => error,
    };
    for (name, value) in fields {
        if let Err(error) = Recipe::deserialize(json!({name.as_str(): value})) {
            let got = value.to_string();
            return Err(TrainError::recipe(&name, "a value of another kind", got, error.to_string()));
        }
    }
    Err(TrainError::recipe("(all)", "a recipe", error, "check the values"))
}
