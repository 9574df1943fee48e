//! Converts GGUF metadata to a `config.json`.
//!
//! This module handles what architectures have in common; the files of [`super::arch`] add the rest. They also restore
//! what llama.cpp's converter drops because its code has it built in (Gemma's query scales, window patterns). Missing
//! keys stay missing, so that the architecture's defaults apply.

use super::arch::Arch;
use super::header::{Header, Value as Meta};
use crate::error::WeightsError;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Facts from the tensors that the metadata lacks.
#[derive(Clone, Debug, Default)]
pub(super) struct Hints<'a> {
    pub vocab_size: usize,
    /// The names of all tensors.
    pub names: BTreeSet<&'a str>,
    /// The divisors of the rotary frequencies, if the file has any.
    pub rope_factors: Option<Vec<f32>>,
    /// Phi-3's divisors for short and long contexts.
    pub long_rope: Option<(Vec<f32>, Vec<f32>)>,
}

/// Converts the metadata of one architecture.
pub(super) struct Reader<'a> {
    pub file: &'a str,
    pub header: &'a Header,
    arch: &'a Arch,
    hints: &'a Hints<'a>,
    /// The configuration so far, by Hugging Face's keys.
    pub out: Map<String, Value>,
}

/// The configuration of the model in `file`.
pub(super) fn config(file: &str, header: &Header, arch: &Arch, hints: &Hints<'_>) -> Result<Value, WeightsError> {
    let mut reader = Reader { file, header, arch, hints, out: Map::new() };
    reader.set("model_type", json!(arch.model_types[0]));
    reader.common()?;
    (arch.config)(&mut reader)?;
    reader.rope()?;
    reader.special_ids();
    Ok(Value::Object(reader.out))
}

impl Reader<'_> {
    pub fn set(&mut self, key: &str, value: Value) {
        self.out.insert(key.to_owned(), value);
    }

    /// A metadata key with the architecture's prefix.
    pub fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.arch.gguf)
    }

    pub fn number(&self, key: &str) -> Option<f64> {
        self.header.number(&self.key(key))
    }

    /// A size; for a list with one value per layer, the largest.
    pub fn size(&self, key: &str) -> Option<u64> {
        match self.header.metadata.get(&self.key(key)) {
            Some(Meta::Integers(values)) => values.iter().copied().max().and_then(|most| u64::try_from(most).ok()),
            _ => self.header.integer(&self.key(key)),
        }
    }

    /// A size for each layer, if the file has a list of them.
    pub fn sizes(&self, key: &str) -> Option<&[i64]> {
        match self.header.metadata.get(&self.key(key)) {
            Some(Meta::Integers(values)) => Some(values),
            _ => None,
        }
    }

    /// True or false for each layer.
    pub fn flags(&self, key: &str) -> Option<Vec<bool>> {
        match self.header.metadata.get(&self.key(key)) {
            Some(Meta::Flags(values)) => Some(values.clone()),
            Some(Meta::Integers(values)) => Some(values.iter().map(|value| *value != 0).collect()),
            _ => None,
        }
    }

    /// The divisors of the rotary frequencies, if the file has any.
    pub fn rope_factors(&self) -> Option<&[f32]> {
        self.hints.rope_factors.as_deref()
    }

    /// Whether the file has this tensor (llama.cpp's name).
    pub fn has(&self, tensor: &str) -> bool {
        self.hints.names.contains(tensor)
    }

    fn require(&self, key: &str) -> Result<u64, WeightsError> {
        let found = self.size(key);
        found.ok_or_else(|| {
            WeightsError::malformed(
                self.file,
                format!("expected the metadata key {:?} with a whole number, found none", self.key(key)),
            )
        })
    }

    /// Copies a number to Hugging Face's key, if the file has it.
    pub fn copy(&mut self, to: &str, from: &str) {
        if let Some(size) = self.size(from) {
            self.set(to, json!(size));
        } else if let Some(number) = self.number(from) {
            self.set(to, json!(short(number)));
        }
    }

    fn common(&mut self) -> Result<(), WeightsError> {
        let (hidden, heads) = (self.require("embedding_length")?, self.require("attention.head_count")?);
        self.set("num_hidden_layers", json!(self.require("block_count")?));
        self.set("hidden_size", json!(hidden));
        self.set("intermediate_size", json!(self.require("feed_forward_length")?));
        self.set("num_attention_heads", json!(heads));
        self.set("num_key_value_heads", json!(self.size("attention.head_count_kv").unwrap_or(heads)));
        self.set("vocab_size", json!(self.hints.vocab_size));
        self.set("tie_word_embeddings", json!(!self.has("output.weight")));
        self.copy("head_dim", "attention.key_length");
        self.copy("max_position_embeddings", "context_length");
        self.copy("rms_norm_eps", "attention.layer_norm_rms_epsilon");
        self.copy("layer_norm_eps", "attention.layer_norm_epsilon");
        self.set("hidden_act", json!("silu"));
        Ok(())
    }

    pub fn head_dim(&self) -> u64 {
        let of = |key: &str| self.out.get(key).and_then(Value::as_u64).unwrap_or(0);
        self.size("attention.key_length").unwrap_or_else(|| of("hidden_size") / of("num_attention_heads").max(1))
    }

    fn rope(&mut self) -> Result<(), WeightsError> {
        self.copy("rope_theta", "rope.freq_base");
        if let Some(theta) = self.number("rope.freq_base") {
            self.set("rope_theta", json!(short(theta)));
        }
        if let (Some(rotary_dim), head) = (self.size("rope.dimension_count"), self.head_dim())
            && rotary_dim < head
        {
            self.set("partial_rotary_factor", json!(rotary_dim as f64 / head as f64));
        }
        if let Some(factors) = &self.hints.rope_factors {
            self.set("rope_scaling", json!({"rope_type": "frequency_factors", "factors": factors}));
            return Ok(());
        }
        let original = self.size("rope.scaling.original_context_length");
        if let (Some((short, long)), Some(original)) = (&self.hints.long_rope, original) {
            self.set("original_max_position_embeddings", json!(original));
            self.set(
                "rope_scaling",
                json!({"rope_type": "longrope", "type": "longrope", "short_factor": short, "long_factor": long}),
            );
            return Ok(());
        }
        let factor = self.number("rope.scaling.factor").or(self.number("rope.scale_linear")).unwrap_or(1.0);
        let stated = self.header.text(&self.key("rope.scaling.type"));
        match stated.unwrap_or(if factor == 1.0 { "none" } else { "linear" }) {
            "none" => {}
            "linear" if factor == 1.0 => {}
            "linear" => self.set("rope_scaling", json!({"rope_type": "linear", "factor": short(factor)})),
            "yarn" => {
                let scaling = self.yarn(factor, original)?;
                self.set("rope_scaling", scaling);
            }
            other => {
                return Err(WeightsError::Unsupported {
                    what: format!("{}: the rotary scaling {other:?} ({})", self.file, self.key("rope.scaling.type")),
                    remedy: "none, linear and yarn are read, and longrope with its tensors of factors; take the \
                             safetensors checkpoint of this model"
                        .to_owned(),
                });
            }
        }
        Ok(())
    }

    /// YaRN's fields; llama.cpp's names of them begin with `yarn_`.
    fn yarn(&self, factor: f64, original: Option<u64>) -> Result<Value, WeightsError> {
        let mut scaling = json!({"rope_type": "yarn", "factor": short(factor)});
        if let Some(original) = original {
            scaling["original_max_position_embeddings"] = json!(original);
        }
        for (to, from) in [("beta_fast", "rope.scaling.yarn_beta_fast"), ("beta_slow", "rope.scaling.yarn_beta_slow")] {
            if let Some(beta) = self.number(from) {
                scaling[to] = json!(short(beta));
            }
        }
        // Both are factors on YaRN's own temperature of attention.
        let attention: f64 = ["rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"]
            .iter()
            .filter_map(|key| self.number(key))
            .map(short)
            .product();
        if attention != 1.0 {
            scaling["attention_factor"] = json!(attention * (0.1 * factor.ln() + 1.0));
        }
        for (key, default) in [("rope.scaling.yarn_ext_factor", 1.0), ("rope.scaling.yarn_log_multiplier", 0.0)] {
            // llama.cpp writes -1 for "not set".
            if let Some(value) = self.number(key).filter(|value| *value != default && *value >= 0.0) {
                return Err(WeightsError::Unsupported {
                    what: format!("{}: {} = {value}", self.file, self.key(key)),
                    remedy: format!("{default} is read; take the safetensors checkpoint of this model"),
                });
            }
        }
        Ok(scaling)
    }

    fn special_ids(&mut self) {
        if let Some(bos) = self.header.integer("tokenizer.ggml.bos_token_id") {
            self.set("bos_token_id", json!(bos));
        }
        let ends = end_ids(self.header);
        match ends.as_slice() {
            [] => {}
            [one] => self.set("eos_token_id", json!(one)),
            all => self.set("eos_token_id", json!(all)),
        }
    }
}

/// The ids that end a text, a turn or a message.
pub(super) fn end_ids(header: &Header) -> Vec<u64> {
    let mut ids = Vec::new();
    for key in ["eos", "eot", "eom"] {
        let id = header.integer(&format!("tokenizer.ggml.{key}_token_id"));
        ids.extend(id.filter(|id| !ids.contains(id)));
    }
    ids
}

/// The shortest decimal that rounds to this f32: metadata floats are f32, and 1e-5 should be written as 1e-5.
pub(super) fn short(value: f64) -> f64 {
    if f64::from(value as f32) == value { (value as f32).to_string().parse().unwrap_or(value) } else { value }
}
