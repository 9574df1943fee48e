//! adapter_config.json: which fields are supported, which are rejected, and how the file is written.
//!
//! A field either changes what this program computes, or changes nothing, or must have its default value. Unknown
//! fields are treated like the third kind. Rejected: ignoring unknown fields, as most readers do, because the adapter
//! would load and give wrong answers.

use serde_json::{Map, Value, json};

use std::collections::BTreeMap;

use super::AdapterModule;
use super::error::AdapterError;
use super::patterns::{Found, Matcher, Patterns, TargetModules, layer_of};

/// The version of PEFT whose files are written.
pub const PEFT_VERSION: &str = "0.21.2";

const MAX_RANK: usize = 1 << 16;

/// The supported part of adapter_config.json.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// Name or path of the base model, for information.
    pub base_model_name_or_path: Option<String>,
    /// Rank of modules that match no pattern in `rank_pattern`.
    pub r: usize,
    /// Numerator of the scale of modules that match no pattern in `alpha_pattern`.
    pub lora_alpha: f64,
    /// Dropout of A's input while training; 0..1.
    pub lora_dropout: f64,
    /// Scale = alpha / √r instead of alpha / r.
    pub use_rslora: bool,
    /// DoRA: rows of the merged weight have trained lengths.
    pub use_dora: bool,
    /// Modules whose tensors are trained and saved whole, by the end of their names.
    pub modules_to_save: Vec<String>,
    /// Tokens whose rows are trained, by the end of the module's name.
    pub trainable_token_indices: Vec<(String, Vec<usize>)>,
    /// Whether a changed embedding also changes the output head that is tied to it.
    pub ensure_weight_tying: bool,
    /// The modules that get an adapter.
    pub target_modules: TargetModules,
    /// Modules that get none, although they are in `target_modules`.
    pub exclude_modules: Option<TargetModules>,
    /// The layers that get an adapter; `None`: all.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Ranks of modules by pattern; the first match wins.
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas of modules by pattern; the first match wins.
    pub alpha_pattern: Vec<(String, f64)>,
}

impl AdapterConfig {
    /// A configuration with these values, and PEFT's defaults otherwise.
    pub fn new(r: usize, lora_alpha: f64, target_modules: TargetModules) -> Self {
        Self {
            base_model_name_or_path: None,
            r,
            lora_alpha,
            lora_dropout: 0.0,
            use_rslora: false,
            use_dora: false,
            modules_to_save: vec![],
            trainable_token_indices: vec![],
            ensure_weight_tying: false,
            target_modules,
            exclude_modules: None,
            layers_to_transform: None,
            rank_pattern: vec![],
            alpha_pattern: vec![],
        }
    }

    /// The configuration that gives exactly these modules their ranks and scales, by their names.
    pub(super) fn for_modules(&self, modules: &BTreeMap<String, AdapterModule>) -> Self {
        let alpha_of = |m: &AdapterModule| {
            let rank = m.rank as f64;
            f64::from(m.scale) * if self.use_rslora { rank.sqrt() } else { rank }
        };
        let Some(first) = modules.values().next() else { return self.clone() };
        let (r, lora_alpha) = (first.rank, alpha_of(first));
        let escaped = |name: &String| name.replace('.', "\\.");
        Self {
            r,
            lora_alpha,
            target_modules: TargetModules::Names(modules.keys().cloned().collect()),
            exclude_modules: None,
            layers_to_transform: None,
            rank_pattern: modules
                .iter()
                .filter(|(_, m)| m.rank != r)
                .map(|(name, m)| (escaped(name), m.rank))
                .collect(),
            alpha_pattern: modules
                .iter()
                .map(|(name, m)| (escaped(name), alpha_of(m)))
                .filter(|(_, alpha)| (alpha - lora_alpha).abs() > 1e-6 * lora_alpha.abs())
                .collect(),
            ..self.clone()
        }
    }

    /// Reads adapter_config.json.
    ///
    /// # Errors
    /// A malformed field, or an unsupported field that does not have its default; the error names it.
    pub fn parse(config: &Value) -> Result<Self, AdapterError> {
        let Value::Object(map) = config else {
            return Err(AdapterError::config(
                "(the file)",
                "a JSON object",
                kind(config),
                "save the adapter again with PEFT",
            ));
        };
        for (field, value) in map {
            check_field(field, value)?;
        }
        let read = Reader(map);
        if map.get("peft_type").and_then(Value::as_str) != Some("LORA") {
            let got = map.get("peft_type").unwrap_or(&Value::Null);
            return Err(AdapterError::config("peft_type", "\"LORA\"", got, "other kinds of adapters are not read"));
        }
        let targets = map.get("target_modules").unwrap_or(&Value::Null);
        let excluded = map.get("exclude_modules").filter(|v| !is_off(v));
        let layers = read.layers()?;
        let parsed = Self {
            base_model_name_or_path: map.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned),
            r: read.rank("r", map.get("r").unwrap_or(&json!(8)))?,
            lora_alpha: read.alpha("lora_alpha", map.get("lora_alpha").unwrap_or(&json!(8)))?,
            lora_dropout: read.dropout()?,
            use_rslora: read.flag("use_rslora")?,
            use_dora: read.flag("use_dora")?,
            modules_to_save: read.names("modules_to_save")?,
            trainable_token_indices: read.token_indices()?,
            ensure_weight_tying: read.flag("ensure_weight_tying")?,
            target_modules: TargetModules::from_json("target_modules", targets)?,
            exclude_modules: excluded.map(|v| TargetModules::from_json("exclude_modules", v)).transpose()?,
            layers_to_transform: layers,
            rank_pattern: read.pattern("rank_pattern", Reader::rank)?,
            alpha_pattern: read.pattern("alpha_pattern", Reader::alpha)?,
        };
        parsed.rules()?;
        Ok(parsed)
    }

    /// The configuration with its patterns compiled, for queries about modules.
    ///
    /// # Errors
    /// A pattern that does not compile.
    pub fn rules(&self) -> Result<Rules, AdapterError> {
        Ok(Rules {
            targets: Matcher::new("target_modules", &self.target_modules)?,
            excluded: self.exclude_modules.as_ref().map(|e| Matcher::new("exclude_modules", e)).transpose()?,
            layers: self.layers_to_transform.clone(),
            ranks: Patterns::new("rank_pattern", &self.rank_pattern)?,
            alphas: Patterns::new("alpha_pattern", &self.alpha_pattern)?,
            r: self.r,
            alpha: self.lora_alpha,
            use_rslora: self.use_rslora,
        })
    }

    /// The file as PEFT writes it: all fields, sorted by name.
    pub fn to_json(&self) -> Value {
        let ranks: Map<String, Value> = self.rank_pattern.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        let alphas: Map<String, Value> = self.alpha_pattern.iter().map(|(k, v)| (k.clone(), number(*v))).collect();
        json!({
            "alora_invocation_tokens": null,
            "alpha_pattern": alphas,
            "arrow_config": null,
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model_name_or_path,
            "bias": "none",
            "corda_config": null,
            "ensure_weight_tying": self.ensure_weight_tying,
            "eva_config": null,
            "exclude_modules": self.exclude_modules.as_ref().map(TargetModules::to_json),
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "kasa_config": null,
            "layer_replication": null,
            "layers_pattern": null,
            "layers_to_transform": self.layers_to_transform,
            "loftq_config": {},
            "lora_alpha": number(self.lora_alpha),
            "lora_bias": false,
            "lora_dropout": self.lora_dropout,
            "lora_ga_config": null,
            "megatron_config": null,
            "megatron_core": "megatron.core",
            "modules_to_save": if self.modules_to_save.is_empty() { Value::Null } else { json!(self.modules_to_save) },
            "monteclora_config": null,
            "peft_type": "LORA",
            "peft_version": PEFT_VERSION,
            "qalora_group_size": 16,
            "r": self.r,
            "rank_pattern": ranks,
            "revision": null,
            "target_modules": self.target_modules.to_json(),
            "target_parameters": null,
            "task_type": "CAUSAL_LM",
            "trainable_token_indices": self.token_indices_json(),
            "use_bdlora": null,
            "use_dora": self.use_dora,
            "use_qalora": false,
            "use_rslora": self.use_rslora,
            "velora_config": null,
        })
    }
}

impl AdapterConfig {
    /// The tokens whose rows of this module are trained.
    pub(super) fn token_ids(&self, module: &str) -> &[usize] {
        let names = |pattern: &str| module == pattern || module.ends_with(&format!(".{pattern}"));
        self.trainable_token_indices.iter().find(|(pattern, _)| names(pattern)).map_or(&[], |(_, ids)| ids)
    }

    fn token_indices_json(&self) -> Value {
        match self.trainable_token_indices.as_slice() {
            [] => Value::Null,
            all => all.iter().map(|(module, ids)| (module.clone(), json!(ids))).collect::<Map<_, _>>().into(),
        }
    }
}

/// A number as Python prints it: whole numbers without a fraction.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

/// A configuration with its patterns compiled.
#[derive(Debug)]
pub struct Rules {
    targets: Matcher,
    excluded: Option<Matcher>,
    layers: Option<Vec<usize>>,
    ranks: Patterns<usize>,
    alphas: Patterns<f64>,
    r: usize,
    alpha: f64,
    use_rslora: bool,
}

impl Rules {
    /// Whether the module (`model.layers.0.self_attn.q_proj`) gets an adapter.
    ///
    /// # Errors
    /// A regular expression that exceeds its backtracking limit.
    pub fn is_target(&self, module: &str) -> Result<bool, AdapterError> {
        if let Some(excluded) = &self.excluded
            && excluded.finds(module)? != Found::No
        {
            return Ok(false);
        }
        let found = self.targets.finds(module)?;
        Ok(match (&self.layers, found) {
            (_, Found::No) => false,
            (None, _) | (_, Found::Exactly) => true,
            (Some(layers), Found::ByPattern) => layer_of(module).is_some_and(|layer| layers.contains(&layer)),
        })
    }

    /// The module's rank.
    ///
    /// # Errors
    /// As [`Rules::is_target`].
    pub fn rank(&self, module: &str) -> Result<usize, AdapterError> {
        Ok(self.ranks.get(module)?.unwrap_or(self.r))
    }

    /// The module's scale: alpha / r, or alpha / √r with rsLoRA.
    ///
    /// # Errors
    /// As [`Rules::is_target`].
    pub fn scale(&self, module: &str) -> Result<f32, AdapterError> {
        let rank = self.rank(module)? as f64;
        let alpha = self.alphas.get(module)?.unwrap_or(self.alpha);
        Ok((alpha / if self.use_rslora { rank.sqrt() } else { rank }) as f32)
    }
}

const MERGE: &str = "merge it into its base with PEFT (merge_and_unload) and open the merged model, or train the adapter again without it";

/// Fields that are supported, or have no influence on the computation.
const READ: &[&str] = &[
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
];

/// Initialisations that leave the base weights as they are. EVA chooses A (and the ranks, which `rank_pattern` then
/// holds) from activations; once trained, its files are those of plain LoRA.
const UNCHANGED_BASE: &[&str] = &["gaussian", "orthogonal", "eva"];

fn check_field(field: &str, value: &Value) -> Result<(), AdapterError> {
    let refuse = |expected: &str| Err(AdapterError::config(field, expected, value, MERGE));
    match field {
        _ if READ.contains(&field) => match (field, value) {
            ("layers_pattern", Value::String(text)) if text == "layers" => Ok(()),
            ("layers_pattern", Value::Array(list)) if list.iter().all(|v| v == "layers") => Ok(()),
            ("layers_pattern", Value::Null) => Ok(()),
            ("layers_pattern", _) => refuse("null or \"layers\""),
            _ => Ok(()),
        },
        "bias" => {
            if value == "none" || value.is_null() {
                Ok(())
            } else {
                refuse("\"none\"")
            }
        }
        "task_type" => match value.as_str() {
            None if value.is_null() => Ok(()),
            Some("CAUSAL_LM") => Ok(()),
            _ => refuse("\"CAUSAL_LM\""),
        },
        // The other initialisations (pissa, olora, loftq, corda, lora_ga) change the base weights to which the adapter
        // belongs.
        "init_lora_weights" => match value {
            Value::Bool(_) | Value::Null => Ok(()),
            Value::String(how) if UNCHANGED_BASE.contains(&how.as_str()) => Ok(()),
            _ => {
                refuse("true, false, \"gaussian\", \"orthogonal\" or \"eva\", which leave the base weights as they are")
            }
        },
        _ if is_off(value) => Ok(()),
        _ => refuse("its default, because this program does not honour it"),
    }
}

/// Whether a value is null, false, or empty.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

struct Reader<'a>(&'a Map<String, Value>);

const SAVE_AGAIN: &str = "save the adapter again with PEFT";

impl Reader<'_> {
    fn rank(&self, field: &str, value: &Value) -> Result<usize, AdapterError> {
        let rank = value.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|v| (1..=MAX_RANK).contains(v));
        rank.ok_or_else(|| AdapterError::config(field, format!("a whole number in 1..={MAX_RANK}"), value, SAVE_AGAIN))
    }

    fn alpha(&self, field: &str, value: &Value) -> Result<f64, AdapterError> {
        let alpha = value.as_f64().filter(|v| v.is_finite() && v.abs() <= 1e9);
        alpha.ok_or_else(|| AdapterError::config(field, "a finite number up to 1e9", value, SAVE_AGAIN))
    }

    fn dropout(&self) -> Result<f64, AdapterError> {
        let value = self.0.get("lora_dropout").unwrap_or(&Value::Null);
        let dropout = if value.is_null() { Some(0.0) } else { value.as_f64().filter(|v| (0.0..1.0).contains(v)) };
        dropout.ok_or_else(|| AdapterError::config("lora_dropout", "a number in 0..1", value, SAVE_AGAIN))
    }

    fn flag(&self, field: &str) -> Result<bool, AdapterError> {
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => Err(AdapterError::config(field, "true or false", other, SAVE_AGAIN)),
        }
    }

    /// A list of names; one name, null and a missing field are permitted.
    fn names(&self, field: &str) -> Result<Vec<String>, AdapterError> {
        let value = self.0.get(field).unwrap_or(&Value::Null);
        let names = match value {
            Value::Null => Some(vec![]),
            Value::String(name) => Some(vec![name.clone()]),
            Value::Array(list) => list.iter().map(|name| name.as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        names.ok_or_else(|| AdapterError::config(field, "a list of names", value, SAVE_AGAIN))
    }

    /// A list of token ids is for `embed_tokens`, as in PEFT.
    fn token_indices(&self) -> Result<Vec<(String, Vec<usize>)>, AdapterError> {
        let field = "trainable_token_indices";
        let value = self.0.get(field).unwrap_or(&Value::Null);
        let ids = |list: &Value| -> Option<Vec<usize>> {
            list.as_array()?.iter().map(|id| usize::try_from(id.as_u64()?).ok()).collect()
        };
        let all = match value {
            Value::Null => Some(vec![]),
            Value::Object(map) => map.iter().map(|(module, list)| Some((module.clone(), ids(list)?))).collect(),
            list => ids(list).map(|ids| vec![("embed_tokens".to_owned(), ids)]),
        };
        all.ok_or_else(|| AdapterError::config(field, "a list of token ids, or one for each module", value, SAVE_AGAIN))
    }

    fn layers(&self) -> Result<Option<Vec<usize>>, AdapterError> {
        let value = self.0.get("layers_to_transform").unwrap_or(&Value::Null);
        let index = |v: &Value| v.as_u64().and_then(|v| usize::try_from(v).ok());
        let layers = match value {
            Value::Null => return Ok(None),
            Value::Array(list) if list.is_empty() => return Ok(None),
            Value::Array(list) => list.iter().map(index).collect(),
            one => index(one).map(|v| vec![v]),
        };
        let layers: Vec<usize> = layers.ok_or_else(|| {
            AdapterError::config("layers_to_transform", "a layer number or a list of them", value, SAVE_AGAIN)
        })?;
        if self.0.get("target_modules").is_some_and(Value::is_string) {
            return Err(AdapterError::config(
                "layers_to_transform",
                "null when target_modules is an expression, as in PEFT",
                value,
                SAVE_AGAIN,
            ));
        }
        Ok(Some(layers))
    }

    fn pattern<T>(
        &self,
        field: &str,
        read: fn(&Self, &str, &Value) -> Result<T, AdapterError>,
    ) -> Result<Vec<(String, T)>, AdapterError> {
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(vec![]),
            Some(Value::Object(map)) => {
                map.iter().map(|(key, value)| Ok((key.clone(), read(self, field, value)?))).collect()
            }
            Some(other) => Err(AdapterError::config(field, "an object of patterns", other, SAVE_AGAIN)),
        }
    }
}
