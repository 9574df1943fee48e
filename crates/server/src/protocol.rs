//! What OpenAI's routes have in common: settings of sampling, reasons of ending, usage, log-probabilities.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

use bayan_generate::openai::{logit_bias, logprob, token_text};
use bayan_generate::text::Tokenizer;
use bayan_generate::{FinishReason, Grammar, Job, SampleSettings, TokenScore, Usage};
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::Fields;
use crate::limits::Limits;
use crate::worker::About;

/// Most stop texts of a request, and the longest one in bytes.
const MOST_STOPS: usize = 16;
const LONGEST_STOP: usize = 1024;

/// What a request wants of each of its answers.
pub(crate) struct Wanted {
    pub(crate) settings: SampleSettings,
    pub(crate) bias: Vec<(u32, f32)>,
    pub(crate) stop: Vec<String>,
    pub(crate) stop_ids: Vec<u32>,
    pub(crate) max_tokens: Option<usize>,
    /// Answers to each prompt.
    pub(crate) n: usize,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    /// What the text of each answer must match.
    pub(crate) grammar: Option<Grammar>,
    /// The adapter that the request names as its model.
    pub(crate) adapter: Option<String>,
}

impl Wanted {
    /// Takes the fields that chat and completions share.
    pub(crate) fn read(fields: &mut Fields, about: &About, limits: &Limits) -> Result<Wanted, ApiError> {
        let defaults = &about.defaults;
        let preset = defaults.settings;
        let penalty = fields.number("repetition_penalty", 0.01, 100.0)?;
        let bias = match fields.object("logit_bias")? {
            Some(map) => logit_bias(&map, about.vocabulary)?,
            None => defaults.bias.clone(),
        };
        let settings = SampleSettings {
            temperature: fields.number("temperature", 0.0, 100.0)?.unwrap_or(preset.temperature),
            top_p: fields.number("top_p", 0.0, 1.0)?.unwrap_or(preset.top_p),
            // -1 is "all" for some servers.
            top_k: fields.integer("top_k", -1, i64::from(u32::MAX))?.map_or(preset.top_k, |k| k.max(0) as u32),
            min_p: fields.number("min_p", 0.0, 1.0)?.unwrap_or(preset.min_p),
            repeat_penalty: fields.number("repeat_penalty", 0.01, 100.0)?.or(penalty).unwrap_or(preset.repeat_penalty),
            presence_penalty: fields.number("presence_penalty", -100.0, 100.0)?.unwrap_or(preset.presence_penalty),
            frequency_penalty: fields.number("frequency_penalty", -100.0, 100.0)?.unwrap_or(preset.frequency_penalty),
            biased: false,
            seed: fields
                .integer("seed", i64::MIN, i64::MAX)?
                .map(|seed| seed as u64)
                .or(about.seed)
                .unwrap_or_else(random),
        };
        let stop = fields.texts("stop")?;
        if stop.len() > MOST_STOPS || stop.iter().any(|text| text.is_empty() || text.len() > LONGEST_STOP) {
            let message = format!("`stop`: expected at most {MOST_STOPS} texts of 1 to {LONGEST_STOP} bytes");
            return Err(ApiError::field("stop", message));
        }
        let stop = if stop.is_empty() { defaults.stop.clone() } else { stop };
        let ignore_eos = fields.flag("ignore_eos")?.unwrap_or(defaults.ignore_eos);
        let stream = fields.flag("stream")?.unwrap_or(false);
        let stream_options = fields.object("stream_options")?.map(|map| Value::Object(map).to_string());
        let include_usage = match stream_options {
            None => false,
            Some(_) if !stream => {
                return Err(ApiError::field("stream_options", "`stream_options` is only for `stream`: true"));
            }
            Some(text) => {
                let mut options = Fields::parse(text.as_bytes())?;
                let usage = options.flag("include_usage")?.unwrap_or(false);
                options.refuse("include_obfuscation", |value| value == &Value::Bool(false))?;
                if let Some(name) = options.ignored().first() {
                    return Err(ApiError::field("stream_options", format!("`stream_options`: `{name}` is not known")));
                }
                usage
            }
        };
        let n = fields.integer("n", 1, 8)?.unwrap_or(1) as usize;
        let most = limits.max_tokens.unwrap_or(usize::MAX);
        let mut max_tokens = None;
        for name in ["max_tokens", "max_completion_tokens"] {
            if let Some(count) = fields.integer(name, 0, i64::from(u32::MAX))? {
                if count as usize > most {
                    return Err(ApiError::field(
                        name,
                        format!("`{name}`: at most {most} are allowed here, got {count}"),
                    ));
                }
                max_tokens = Some(count as usize);
            }
        }
        let max_tokens = max_tokens.or(defaults.max_tokens.map(|count| count.min(most))).or(limits.max_tokens);
        let stop_ids = if ignore_eos { Vec::new() } else { about.text.stop.clone() };
        Ok(Wanted {
            settings,
            bias,
            stop,
            stop_ids,
            max_tokens,
            n,
            stream,
            include_usage,
            grammar: None,
            adapter: None,
        })
    }

    /// Refuses more than one answer.
    pub(crate) fn require_one_answer(&self) -> Result<(), ApiError> {
        if self.n == 1 { Ok(()) } else { Err(ApiError::field("n", "`n`: expected 1")) }
    }

    /// Refuses an answer without tokens; `field` is the name of the limit in the request.
    pub(crate) fn require_tokens(&self, field: &'static str) -> Result<(), ApiError> {
        match self.max_tokens {
            Some(0) => Err(ApiError::field(field, format!("`{field}`: expected at least 1"))),
            _ => Ok(()),
        }
    }

    /// The job of one answer; `choice` is added to the seed.
    pub(crate) fn job(&self, prompt: Vec<u32>, owner: u64, choice: usize) -> Job {
        Job {
            prompt,
            settings: SampleSettings { seed: self.settings.seed.wrapping_add(choice as u64), ..self.settings },
            bias: self.bias.clone(),
            stop: self.stop_ids.clone(),
            max_tokens: self.max_tokens.unwrap_or(usize::MAX),
            grammar: self.grammar.clone(),
            adapter: self.adapter.clone(),
            owner,
            scores: None,
            prompt_scores: None,
        }
    }
}

/// Checks that a prompt fits.
pub(crate) fn check_prompt(prompt: &[u32], about: &About, param: &str) -> Result<(), ApiError> {
    if prompt.is_empty() {
        return Err(ApiError::field(param, format!("`{param}` is empty: expected at least one token")));
    }
    if let Some(id) = prompt.iter().find(|&&id| id as usize >= about.vocabulary) {
        let message = format!("`{param}`: token {id} is outside the vocabulary of {}", about.vocabulary);
        return Err(ApiError::field(param, message));
    }
    if prompt.len() >= about.context {
        let message = format!(
            "`{param}` has {} tokens, and the context holds {}, of which at least one is for the answer; shorten it",
            prompt.len(),
            about.context
        );
        return Err(ApiError::field(param, message).with_code("context_length_exceeded"));
    }
    Ok(())
}

/// OpenAI's word for the reason of an end.
pub(crate) fn finish_reason(finish: FinishReason) -> &'static str {
    match finish {
        // An answer whose grammar failed is an error before it has a reason.
        FinishReason::Stop | FinishReason::Stopped | FinishReason::GrammarFault => "stop",
        FinishReason::Length | FinishReason::ContextFull => "length",
    }
}

/// Tokens of a whole request.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Totals {
    prompt: usize,
    cached: usize,
    generated: usize,
    accepted: usize,
    rejected: usize,
}

impl Totals {
    /// Adds an answer. The prompt counts once for all its answers.
    pub(crate) fn add(&mut self, usage: &Usage, first_choice: bool) {
        if first_choice {
            self.prompt += usage.prompt_tokens;
            self.cached += usage.cached_tokens;
        }
        self.generated += usage.generated_tokens;
        self.accepted += usage.accepted_tokens;
        self.rejected += usage.rejected_tokens;
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt + self.generated,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {
                "accepted_prediction_tokens": self.accepted,
                "rejected_prediction_tokens": self.rejected,
            },
        })
    }
}

/// The lists of `logprobs` of completions, in which the positions of tokens add up over chunks.
#[derive(Debug, Default)]
pub(crate) struct Logprobs {
    tokens: Vec<Value>,
    values: Vec<Value>,
    top: Vec<Value>,
    offsets: Vec<usize>,
    /// Characters begun so far.
    characters: usize,
    ids_as_text: bool,
}

impl Logprobs {
    /// `ids_as_text` names every token by its number.
    pub(crate) fn new(ids_as_text: bool) -> Logprobs {
        Logprobs { ids_as_text, ..Default::default() }
    }

    /// Adds a token; the first of a prompt has no score.
    pub(crate) fn push(&mut self, tokenizer: &Tokenizer, id: u32, score: Option<&TokenScore>) {
        let ids_as_text = self.ids_as_text;
        // Parts of a character would all be the same replacement character.
        let name = |id: u32| {
            let text = token_text(tokenizer, id).1.filter(|text| !text.is_empty() && !ids_as_text);
            text.unwrap_or_else(|| format!("token_id:{id}"))
        };
        self.tokens.push(json!(name(id)));
        self.offsets.push(self.characters);
        let bytes = token_text(tokenizer, id).0;
        self.characters += bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count();
        self.values.push(score.map_or(Value::Null, |score| logprob(score.logprob)));
        self.top.push(score.map_or(Value::Null, |score| {
            let mut map = Map::new();
            for &(id, value) in score.top.iter().chain([&(score.id, score.logprob)]) {
                map.entry(name(id)).or_insert_with(|| logprob(value));
            }
            Value::Object(map)
        }));
    }

    /// The lists since the last call.
    pub(crate) fn take(&mut self) -> Value {
        json!({
            "tokens": std::mem::take(&mut self.tokens),
            "token_logprobs": std::mem::take(&mut self.values),
            "top_logprobs": std::mem::take(&mut self.top),
            "text_offset": std::mem::take(&mut self.offsets),
        })
    }
}

/// A random number; the standard library takes it from the system.
pub(crate) fn random() -> u64 {
    // Exact in JSON readers that keep numbers as doubles.
    RandomState::new().build_hasher().finish() & 0xffff_ffff
}

/// A new name such as `chatcmpl-1b2c…`.
pub(crate) fn new_id(kind: &str) -> String {
    format!("{kind}-{:08x}{:08x}", random(), random())
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
