//! A model behind a server with OpenAI's interface: prompts are sent as token ids, so that the server's tokenizer and
//! template have no part in them, and the log-probabilities of the prompt come back with `echo`.

use std::time::Duration;

use bayan_evaluate::run::Backend;
use bayan_evaluate::{EvalError, Result};
use bayan_generate::text::Tokenizer;
use bayan_generate::{Likelihood, ScoredText, TextPipeline};
use serde_json::{Value, json};

/// Prompts of one request.
const TOGETHER: usize = 8;
/// Tries of a request that the server has no room for.
const TRIES: u32 = 5;
const LARGEST_ANSWER_BYTES: u64 = 256 << 20;

/// A server.
pub struct Remote {
    agent: ureq::Agent,
    url: String,
    model: String,
    key: Option<String>,
    text: TextPipeline,
    context: usize,
}

impl Remote {
    /// A server at `url`, which may end in `/v1`. `text` is the tokenizer of its model; texts have at most `context`
    /// tokens.
    pub fn new(url: &str, model: String, key: Option<String>, text: TextPipeline, context: usize) -> Remote {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(3600)))
            .build();
        let url = url.trim_end_matches('/').trim_end_matches("/v1").to_owned() + "/v1/completions";
        Remote { agent: ureq::Agent::from(config), url, model, key, text, context }
    }

    fn unexpected(&self, expected: &str, got: impl Into<String>) -> EvalError {
        EvalError::Unexpected {
            what: self.url.clone(),
            expected: expected.into(),
            got: got.into(),
            remedy: "check the address, the key and the server's log".into(),
        }
    }

    /// The choices of an answer, in the order of the prompts.
    fn ask(&self, mut body: Value, prompts: &[&[u32]]) -> Result<Vec<Value>> {
        body["model"] = self.model.clone().into();
        body["prompt"] = json!(prompts);
        body["temperature"] = json!(0);
        let body = body.to_string();
        for again in 1.. {
            let mut request = self.agent.post(&self.url).header("content-type", "application/json");
            if let Some(key) = &self.key {
                request = request.header("authorization", format!("Bearer {key}"));
            }
            let mut answer =
                request.send(body.as_str()).map_err(|error| self.unexpected("an answer", error.to_string()))?;
            let text = answer.body_mut().with_config().limit(LARGEST_ANSWER_BYTES).read_to_string();
            let text = text.map_err(|error| self.unexpected("an answer", error.to_string()))?;
            match answer.status().as_u16() {
                200 => return self.choices(&text, prompts.len()),
                429 | 503 if again < TRIES => std::thread::sleep(Duration::from_secs(u64::from(again))),
                status => {
                    let shown: String = text.chars().take(300).collect();
                    return Err(self.unexpected("status 200", format!("{status}: {shown}")));
                }
            }
        }
        Err(self.unexpected("an answer", "none"))
    }

    fn choices(&self, text: &str, count: usize) -> Result<Vec<Value>> {
        let answer: Value = serde_json::from_str(text).unwrap_or(Value::Null);
        let mut choices = answer["choices"].as_array().cloned().unwrap_or_default();
        choices.sort_by_key(|choice| choice["index"].as_u64());
        if choices.len() != count {
            return Err(self.unexpected(&format!("{count} choices"), choices.len().to_string()));
        }
        Ok(choices)
    }

    /// The log-likelihood of a text's end, from a choice with the log-probabilities of the prompt.
    fn likelihood(&self, text: &ScoredText, choice: &Value) -> Result<Likelihood> {
        let places = text.from..text.ids.len();
        let (numbers, top) = (&choice["logprobs"]["token_logprobs"], &choice["logprobs"]["top_logprobs"]);
        let mut found = Likelihood { sum: 0.0, greedy: true };
        for at in places {
            let Some(number) = numbers[at].as_f64() else {
                let got = format!("none for token {at} of {}", text.ids.len());
                return Err(self.unexpected("log-probabilities of the prompt (`echo` with `logprobs`)", got));
            };
            let best = top[at].as_object().into_iter().flat_map(|top| top.values()).filter_map(Value::as_f64);
            found.greedy &= best.fold(number, f64::max) <= number;
            found.sum += number;
        }
        Ok(found)
    }
}

impl Backend for Remote {
    fn tokenizer(&self) -> &Tokenizer {
        &self.text.tokenizer
    }

    fn context(&self) -> usize {
        // The server keeps a position for a new token.
        self.context.saturating_sub(2).max(1)
    }

    fn score(&mut self, items: &[Vec<ScoredText>]) -> Result<Vec<Vec<Likelihood>>> {
        let texts: Vec<&ScoredText> = items.iter().flatten().collect();
        let mut found = Vec::with_capacity(texts.len());
        for part in texts.chunks(TOGETHER) {
            let prompts: Vec<&[u32]> = part.iter().map(|text| text.ids.as_slice()).collect();
            let choices = self.ask(json!({"echo": true, "logprobs": 1, "max_tokens": 1}), &prompts)?;
            for (text, choice) in part.iter().zip(&choices) {
                found.push(self.likelihood(text, choice)?);
            }
        }
        let mut rest = found.into_iter();
        Ok(items.iter().map(|texts| rest.by_ref().take(texts.len()).collect()).collect())
    }

    fn generate(&mut self, prompts: &[Vec<u32>], tokens: usize) -> Result<Vec<String>> {
        let mut texts = Vec::with_capacity(prompts.len());
        for part in prompts.chunks(TOGETHER) {
            let ids: Vec<&[u32]> = part.iter().map(Vec::as_slice).collect();
            for choice in self.ask(json!({"max_tokens": tokens}), &ids)? {
                let Some(text) = choice["text"].as_str() else {
                    return Err(self.unexpected("a text in each choice", "none"));
                };
                texts.push(text.to_owned());
            }
        }
        Ok(texts)
    }
}
