//! The JSON options of calls.

use bayan_generate::text::{GenerationDefaults, Tokenizer};
use bayan_generate::{Constraint, Generation, SampleSettings};
use bayan_gpu::Disable;
use bayan_models::CacheFormat;
use bayan_weights::{Checkpoint, Policy, Stored, format_by_name};
use serde::Deserialize;
use serde_json::Value;

use crate::error::{Code, EngineError};

/// Options of `create` and of the op suite.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct CreateOptions {
    /// `auto`, `gpu` or `cpu`.
    device: Option<String>,
    /// `high-performance` or `low-power`.
    power_preference: Option<String>,
    /// Features to disable: `f16`, `subgroups`, `dot`.
    disable: Vec<String>,
    /// Pretend that bindings may not be larger than this.
    pub(crate) max_binding_bytes: Option<u64>,
}

/// The device that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The GPU, or the CPU where there is none.
    Any,
    Gpu,
    Cpu,
}

impl CreateOptions {
    pub(crate) fn device(&self) -> Result<Wanted, EngineError> {
        match self.device.as_deref() {
            None | Some("auto") => Ok(Wanted::Any),
            Some("gpu") => Ok(Wanted::Gpu),
            Some("cpu") => Ok(Wanted::Cpu),
            Some(other) => {
                Err(EngineError::new(Code::Internal, format!("device: expected auto, gpu or cpu, got {other}")))
            }
        }
    }

    pub(crate) fn low_power(&self) -> Result<bool, EngineError> {
        match self.power_preference.as_deref() {
            None | Some("high-performance") => Ok(false),
            Some("low-power") => Ok(true),
            Some(other) => Err(EngineError::new(
                Code::Internal,
                format!("powerPreference: expected high-performance or low-power, got {other}"),
            )),
        }
    }

    pub(crate) fn disable(&self) -> Result<Disable, EngineError> {
        Disable::parse(&self.disable.join(","))
            .map_err(|reason| EngineError::new(Code::Internal, format!("disable: {reason}")))
    }
}

/// Options of `open`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct OpenOptions {
    /// `auto`, `stored`, `f16`, `q8`, `q4`, or the engine's name of a format.
    format: Option<String>,
    pub(crate) context_length: Option<usize>,
    /// `f32`, `f16`, `q8_0` or `q4_0`.
    cache: Option<String>,
    /// Name or text of a chat template.
    pub(crate) template: Option<String>,
    /// Tokens of a prompt in one submission, instead of adapting to the measured time.
    pub(crate) prefill_chunk: Option<usize>,
    /// Measure kernel variants on this model's matrices first, and use the fastest.
    pub(crate) autotune: bool,
}

impl OpenOptions {
    pub(crate) fn cache(&self) -> Result<CacheFormat, EngineError> {
        match self.cache.as_deref() {
            None => Ok(CacheFormat::F16),
            Some(name) => CacheFormat::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| {
                EngineError::new(Code::Internal, format!("cache: expected f32, f16, q8_0 or q4_0, got {name}"))
            }),
        }
    }

    /// The formats in which dense weights are loaded; `None`: as stored.
    pub(crate) fn policy(&self, checkpoint: &Checkpoint) -> Result<Option<Policy>, EngineError> {
        policy(self.format.as_deref(), checkpoint)
    }
}

/// The formats in which dense weights are loaded, by the page's name of a format; `None`: as stored.
pub(crate) fn policy(format: Option<&str>, checkpoint: &Checkpoint) -> Result<Option<Policy>, EngineError> {
    let name = match format.unwrap_or("auto") {
        "auto" if checkpoint.tensors().iter().any(|t| matches!(t.stored, Stored::Planes(_) | Stored::Foreign(_))) => {
            return Ok(None);
        }
        "stored" => return Ok(None),
        "auto" | "q4" => "q4_0",
        "q8" => "q8_0",
        other => other,
    };
    let unknown = || {
        EngineError::new(
            Code::Internal,
            format!("format: expected auto, stored, f16, q8, q4 or a format's name, got {name}"),
        )
    };
    Ok(Some(Policy::for_format(format_by_name(name).ok_or_else(unknown)?)))
}

/// The page's `Sampling`; `null` and missing mean the same.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct Sampling {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    max_tokens: Option<usize>,
    seed: Option<u64>,
    stop: Option<Vec<String>>,
    ignore_eos: Option<bool>,
    /// As OpenAI's `response_format`.
    response_format: Option<Value>,
}

impl Sampling {
    /// Missing values are taken from the checkpoint, then from the engine's defaults.
    pub(crate) fn generation(
        self,
        defaults: &GenerationDefaults,
        tokenizer: &Tokenizer,
    ) -> Result<Generation, EngineError> {
        let engine = SampleSettings::default();
        let advised =
            if defaults.do_sample == Some(true) { defaults.temperature.unwrap_or(1.0) } else { engine.temperature };
        let settings = SampleSettings {
            temperature: self.temperature.unwrap_or(advised),
            top_k: self.top_k.or(defaults.top_k).unwrap_or(engine.top_k),
            top_p: self.top_p.or(defaults.top_p).unwrap_or(engine.top_p),
            min_p: self.min_p.or(defaults.min_p).unwrap_or(engine.min_p),
            repeat_penalty: self.repetition_penalty.or(defaults.repetition_penalty).unwrap_or(engine.repeat_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(engine.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(engine.frequency_penalty),
            seed: self.seed.unwrap_or_else(|| (js_sys::Math::random() * (1u64 << 53) as f64) as u64),
            ..engine
        };
        let max_tokens = self.max_tokens.or(defaults.max_new_tokens.map(|n| n as usize));
        let wrong = |reason: String| EngineError::new(Code::Internal, format!("sampling: responseFormat: {reason}"));
        let constraint = match &self.response_format {
            Some(format) => Constraint::from_response_format(format).map_err(wrong)?,
            None => None,
        };
        let compile = |constraint| tokenizer.grammars()?.compile(&constraint);
        let grammar = constraint.map(compile).transpose().map_err(|error| wrong(error.to_string()))?;
        Ok(Generation {
            settings,
            bias: Vec::new(),
            max_tokens,
            stop: self.stop.unwrap_or_default(),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            grammar,
        })
    }
}
