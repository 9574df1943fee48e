//! A model behind a server with OpenAI's interface: prompts are sent as token ids, so that the server's tokenizer and
//! template have no part in them, and the log-probabilities of the prompt come back with `echo`.

use bayan_evaluate::Result;
use bayan_evaluate::run::{Backend, OnItem};
use bayan_generate::text::Tokenizer;
use bayan_generate::{Likelihood, ScoredText, TextPipeline};
use serde_json::{Value, json};

use super::http::Endpoint;

/// Prompts of one request.
const TOGETHER: usize = 8;

/// Texts to stop at that OpenAI's interface takes.
const MOST_STOPS: usize = 4;

/// A server.
pub struct Remote {
    endpoint: Endpoint,
    model: String,
    text: TextPipeline,
    context: usize,
}

impl Remote {
    /// A server at `url`, which may end in `/v1`. `text` is the tokenizer of its model; texts have at most `context`
    /// tokens.
    pub fn new(url: &str, model: String, key: Option<String>, text: TextPipeline, context: usize) -> Remote {
        Remote { endpoint: Endpoint::new(url, "completions", key), model, text, context }
    }

    /// The choices of an answer, in the order of the prompts.
    fn ask(&self, mut body: Value, prompts: &[&[u32]]) -> Result<Vec<Value>> {
        body["model"] = self.model.clone().into();
        body["prompt"] = json!(prompts);
        body["temperature"] = json!(0);
        self.choices(&self.endpoint.post(&body)?, prompts.len())
    }

    fn choices(&self, answer: &Value, count: usize) -> Result<Vec<Value>> {
        let mut choices = answer["choices"].as_array().cloned().unwrap_or_default();
        choices.sort_by_key(|choice| choice["index"].as_u64());
        if choices.len() != count {
            return Err(self.endpoint.unexpected(&format!("{count} choices"), choices.len().to_string()));
        }
        Ok(choices)
    }

    /// The log-likelihood of a text's end, from a choice with the log-probabilities of the prompt.
    fn likelihood(&self, text: &ScoredText, choice: &Value) -> Result<Likelihood> {
        let places = text.from..text.ids.len();
        let (numbers, top) = (&choice["logprobs"]["token_logprobs"], &choice["logprobs"]["top_logprobs"]);
        let mut found = Likelihood { sum: 0.0, greedy: true };
        for at in places {
            let Some(number) = numbers[at].as_f64().map(single) else {
                let got = format!("none for token {at} of {}", text.ids.len());
                return Err(self.endpoint.unexpected("log-probabilities of the prompt (`echo` with `logprobs`)", got));
            };
            let best =
                top[at].as_object().into_iter().flat_map(|top| top.values()).filter_map(Value::as_f64).map(single);
            found.greedy &= best.fold(number, f64::max) <= number;
            found.sum += number;
        }
        Ok(found)
    }
}

/// A log-probability in the precision in which servers compute it: JSON has its shortest digits.
fn single(number: f64) -> f64 {
    f64::from(number as f32)
}

impl Backend for Remote {
    fn tokenizer(&self) -> &Tokenizer {
        &self.text.tokenizer
    }

    fn context(&self) -> usize {
        // The server keeps a position for a new token.
        self.context.saturating_sub(2).max(1)
    }

    fn score(&mut self, items: &[Vec<ScoredText>], on_item: OnItem<'_>) -> Result<Vec<Vec<Likelihood>>> {
        let texts: Vec<&ScoredText> = items.iter().flatten().collect();
        let mut found = Vec::with_capacity(texts.len());
        // The number of texts after which each item is done.
        let ends = items.iter().scan(0, |end, texts| {
            *end += texts.len();
            Some(*end)
        });
        let mut ends = ends.peekable();
        for part in texts.chunks(TOGETHER) {
            let prompts: Vec<&[u32]> = part.iter().map(|text| text.ids.as_slice()).collect();
            let choices = self.ask(json!({"echo": true, "logprobs": 1, "max_tokens": 1}), &prompts)?;
            for (text, choice) in part.iter().zip(&choices) {
                found.push(self.likelihood(text, choice)?);
            }
            while ends.next_if(|&end| end <= found.len()).is_some() {
                on_item();
            }
        }
        let mut rest = found.into_iter();
        Ok(items.iter().map(|texts| rest.by_ref().take(texts.len()).collect()).collect())
    }

    fn generate(
        &mut self,
        prompts: &[Vec<u32>],
        tokens: usize,
        stop: &[&str],
        on_item: OnItem<'_>,
    ) -> Result<Vec<String>> {
        let mut texts = Vec::with_capacity(prompts.len());
        for part in prompts.chunks(TOGETHER) {
            let ids: Vec<&[u32]> = part.iter().map(Vec::as_slice).collect();
            let mut body = json!({"max_tokens": tokens});
            if !stop.is_empty() {
                body["stop"] = json!(&stop[..stop.len().min(MOST_STOPS)]);
            }
            for choice in self.ask(body, &ids)? {
                let Some(text) = choice["text"].as_str() else {
                    return Err(self.endpoint.unexpected("a text in each choice", "none"));
                };
                texts.push(text.to_owned());
                on_item();
            }
        }
        Ok(texts)
    }
}
