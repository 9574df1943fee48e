//! The JSON options of calls.

use bayan_generate::openai::{RequestError, Tools, logit_bias};
use bayan_generate::text::{GenerationDefaults, Tokenizer};
use bayan_generate::{Constraint, Generation, Grammar, SampleSettings};
use bayan_gpu::Disable;
use bayan_models::CacheFormat;
use bayan_weights::{Checkpoint, Policy, Stored, format_by_name};
use serde::Deserialize;
use serde_json::{Map, Value};

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
    /// The most threads on the CPU.
    pub(crate) threads: Option<usize>,
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
    /// As OpenAI's `response_format`, and so on.
    response_format: Option<Value>,
    logit_bias: Option<Map<String, Value>>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
    tools: Option<Value>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    /// Further variables of the chat template.
    template_variables: Option<Map<String, Value>>,
}

/// The most likely tokens that an answer may report at each place.
const MOST_TOP_LOGPROBS: usize = 20;

impl Sampling {
    /// The functions that the answer may call.
    pub(crate) fn tools(&self) -> Result<Tools, EngineError> {
        let parallel = self.parallel_tool_calls.unwrap_or(true);
        Ok(Tools::read(self.tools.as_ref(), self.tool_choice.as_ref(), parallel)?.strict())
    }

    /// Further variables of the chat template.
    pub(crate) fn template_variables(&self) -> Map<String, Value> {
        self.template_variables.clone().unwrap_or_default()
    }

    /// The grammar of `responseFormat`.
    pub(crate) fn grammar(&self, tokenizer: &Tokenizer) -> Result<Option<Grammar>, EngineError> {
        let wrong = |reason: String| RequestError::new("response_format", format!("`response_format`: {reason}"));
        let Some(format) = &self.response_format else { return Ok(None) };
        let Some(constraint) = Constraint::from_response_format(format).map_err(wrong)? else { return Ok(None) };
        let compiled = tokenizer.grammars().and_then(|grammars| grammars.compile(&constraint));
        Ok(Some(compiled.map_err(|error| RequestError::grammar("response_format", &error))?))
    }

    /// How many of the most likely tokens are reported at each place, if log-probabilities are.
    fn scores(&self) -> Result<Option<usize>, EngineError> {
        let top = self.top_logprobs.unwrap_or(0);
        match self.logprobs.unwrap_or(false) {
            _ if top > MOST_TOP_LOGPROBS => {
                let message = format!("`top_logprobs`: expected at most {MOST_TOP_LOGPROBS}, got {top}");
                Err(RequestError::new("top_logprobs", message).into())
            }
            false if top > 0 => Err(RequestError::new("top_logprobs", "`top_logprobs` needs `logprobs`: true").into()),
            wanted => Ok(wanted.then_some(top)),
        }
    }

    /// Missing values are taken from the checkpoint, then from the engine's defaults.
    pub(crate) fn generation(
        self,
        defaults: &GenerationDefaults,
        vocabulary: usize,
        grammar: Option<Grammar>,
    ) -> Result<Generation, EngineError> {
        let bias = self.logit_bias.as_ref().map(|map| logit_bias(map, vocabulary)).transpose()?.unwrap_or_default();
        let scores = self.scores()?;
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
            biased: !bias.is_empty(),
            ..engine
        };
        let max_tokens = self.max_tokens.or(defaults.max_new_tokens.map(|n| n as usize));
        Ok(Generation {
            settings,
            bias,
            max_tokens,
            stop: self.stop.unwrap_or_default(),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            grammar,
            scores,
        })
    }
}
