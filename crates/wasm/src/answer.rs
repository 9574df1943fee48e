//! Answers: from a prompt and its settings to pieces of text, tool calls and log-probabilities for JavaScript.

use std::ops::ControlFlow;

use bayan_generate::openai::{Format, Reader, RequestError, Tools, chat_logprob, deltas, messages, prompt};
use bayan_generate::text::Tokenizer;
use bayan_generate::{Answer, FinishReason, GenerateError, Generation, Model, TokenScore, Usage};
use js_sys::Function;
use serde_json::{Map, Value, json};
use wasm_bindgen::JsValue;

use crate::error::EngineError;
use crate::options::Sampling;
use crate::session::{self, is_aborted, put_back, take_model};

/// The input of a generation.
pub(crate) enum Prompt {
    /// `Message[]` as JSON.
    Chat(String),
    /// Text without a template.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
}

/// Answers a prompt; the report of its end as JSON.
pub(crate) async fn answer(prompt: Prompt, sampling: &str, on_token: Function) -> Result<JsValue, EngineError> {
    let sampling: Sampling = serde_json::from_str(sampling).map_err(|e| EngineError::options("sampling", &e))?;
    let mut model = take_model()?;
    let with_ids = matches!(prompt, Prompt::Ids(_));
    let result = run(&mut model, prompt, sampling, &on_token).await;
    let (used, length) = (model.engine.cached_tokens(), model.engine.context());
    put_back(model);
    let (answer, called) = result?;
    if answer.usage.finish == FinishReason::GrammarFault {
        let message = "the grammar of the answer failed; use a simpler schema";
        return Err(RequestError::new("response_format", message).into());
    }
    if answer.usage.finish == FinishReason::Stopped || is_aborted() {
        return Err(EngineError::aborted());
    }
    let mut report = report(&answer.usage, used, length);
    if called && answer.usage.finish == FinishReason::Stop {
        report["finishReason"] = json!("tool_calls");
    }
    if with_ids {
        report["ids"] = json!(answer.ids);
    }
    Ok(report.to_string().into())
}

/// A prompt's ids, what is generated, and how calls of tools are read from the answer's text.
struct Prepared {
    ids: Vec<u32>,
    generation: Generation,
    tools: Tools,
    format: Option<Format>,
}

fn prepare(model: &Model, input: Prompt, sampling: Sampling) -> Result<Prepared, EngineError> {
    let tokenizer = &model.tokenizer;
    let tools = sampling.tools()?;
    let mut grammar = sampling.grammar(tokenizer)?;
    if grammar.is_some() && tools.offered() {
        let message = "`tools` and `response_format` cannot be used together; leave one out";
        return Err(RequestError::new("tools", message).into());
    }
    let (ids, format) = match input {
        Prompt::Chat(list) => {
            let list: Value = serde_json::from_str(&list).map_err(|e| EngineError::options("messages", &e))?;
            let list = messages(Some(&list))?;
            let (text, format) =
                prompt(model.chat_template()?, tokenizer, list, &tools, sampling.template_variables())?;
            if let Some(calls) = tools.grammar(format, tokenizer, &mut Vec::new())? {
                grammar = Some(calls);
            }
            (tokenizer.encode_guarded(&text)?, tools.offered().then_some(format))
        }
        _ if tools.offered() => {
            return Err(RequestError::new("tools", "`tools` need a conversation; use chat").into());
        }
        Prompt::Text(text) => (tokenizer.encode_prompt(&text)?, None),
        Prompt::Ids(ids) => (ids, None),
    };
    let vocabulary = model.engine.decoder().sizes().vocab_size;
    let generation = sampling.generation(&model.defaults, vocabulary, grammar)?;
    Ok(Prepared { ids, generation, tools, format })
}

/// Passes an answer to JavaScript while it comes.
struct Listener<'a> {
    on_token: &'a Function,
    reader: Reader,
    format: Option<Format>,
}

impl Listener<'_> {
    /// Passes what is certain with this text; `score` is that of its last token.
    fn hear(&mut self, text: &str, score: Option<Value>, tokens: usize) -> Result<(), JsValue> {
        let before = self.reader.calls();
        let pieces = self.reader.push(text);
        self.pass(deltas(pieces, before, &mut || call_id(self.format)), score, tokens)
    }

    /// Passes what was held back.
    fn end(&mut self, tokens: usize) -> Result<(), JsValue> {
        let before = self.reader.calls();
        let rest = self.reader.end();
        self.pass(deltas(rest, before, &mut String::new), None, tokens)
    }

    fn pass(&self, deltas: Vec<Value>, score: Option<Value>, tokens: usize) -> Result<(), JsValue> {
        let text: String = deltas.iter().filter_map(|delta| delta["content"].as_str()).collect();
        let calls: Vec<&Value> = deltas.iter().filter_map(|delta| delta["tool_calls"].as_array()).flatten().collect();
        let mut more = json!({});
        if !calls.is_empty() {
            more["toolCalls"] = json!(calls);
        }
        if let Some(score) = score {
            more["logprobs"] = json!([score]);
        }
        let plain = more.as_object().is_none_or(Map::is_empty);
        if text.is_empty() && plain {
            return Ok(());
        }
        let more = if plain { JsValue::UNDEFINED } else { more.to_string().into() };
        self.on_token.call3(&JsValue::UNDEFINED, &text.into(), &(tokens as f64).into(), &more).map(drop)
    }
}

fn call_id(format: Option<Format>) -> String {
    let random = (js_sys::Math::random() * (1u64 << 53) as f64) as u64;
    format.unwrap_or(Format::Described).call_id(random)
}

fn score_json(tokenizer: &Tokenizer, score: Option<&TokenScore>) -> Option<Value> {
    score.map(|score| chat_logprob(tokenizer, score))
}

/// The answer, and whether it ends with calls.
async fn run(
    model: &mut Model,
    input: Prompt,
    sampling: Sampling,
    on_token: &Function,
) -> Result<(Answer, bool), EngineError> {
    if is_aborted() {
        return Err(EngineError::aborted());
    }
    let Prepared { ids, generation, tools, format } = prepare(model, input, sampling)?;
    let (control, tokenizer) = (model.engine.control(), model.tokenizer.clone());
    let mut listener = Listener { on_token, reader: Reader::new(format), format };
    let mut thrown = None;
    let mut on_piece = |text: &str, score: Option<&TokenScore>| {
        let passed = listener.hear(text, score_json(&tokenizer, score), control.tokens());
        if let Err(error) = passed {
            thrown = Some(error);
            return ControlFlow::Break(());
        }
        if is_aborted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let answer = model.generate_scored(&ids, &generation, &mut on_piece).await;
    if let Some(error) = thrown {
        return Err(EngineError::thrown(error));
    }
    let answer = answer.map_err(|e: GenerateError| EngineError::from(e))?;
    listener.end(control.tokens()).map_err(EngineError::thrown)?;
    Ok((answer, tools.ends_with_calls(listener.reader.calls())))
}

fn report(usage: &Usage, used: usize, length: usize) -> Value {
    let finish = match usage.finish {
        FinishReason::Length => "length",
        FinishReason::ContextFull => "context",
        FinishReason::Stop | FinishReason::Stopped | FinishReason::GrammarFault => "stop",
    };
    let rate = |tokens: usize, seconds: f64| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
    let prefill = rate(usage.prompt_tokens.saturating_sub(usage.cached_tokens), usage.prefill_seconds);
    session::set_speed(prefill, rate(usage.generated_tokens.saturating_sub(1), usage.decode_seconds));
    json!({
        "finishReason": finish,
        "usage": {
            "promptTokens": usage.prompt_tokens,
            "cachedTokens": usage.cached_tokens,
            "completionTokens": usage.generated_tokens,
            "contextUsed": used,
            "contextLength": length,
            "prefillMs": usage.prefill_seconds * 1e3,
            "decodeMs": usage.decode_seconds * 1e3,
        },
    })
}
