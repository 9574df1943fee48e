//! Chat completions of a server: answers to the turns of conversations, and verdicts of a judge.

use bayan_evaluate::judged::answers::{Answerer, Reply, Turn};
use bayan_evaluate::judged::judge::Judge;
use bayan_evaluate::judged::sets::Limit;
use bayan_evaluate::{EvalError, Result};
use bayan_generate::TextPipeline;
use serde_json::{Map, Value, json};

use super::http::Endpoint;

/// A server's chat completions.
pub struct Chat {
    endpoint: Endpoint,
    together: usize,
}

impl Chat {
    /// The server at `url`, which gets `together` requests at a time.
    pub fn new(url: &str, key: Option<String>, together: usize) -> Chat {
        Chat { endpoint: Endpoint::new(url, "chat/completions", key), together: together.max(1) }
    }

    /// The first choice of each answer, in the order of the bodies.
    fn choices(&self, bodies: &[Value]) -> Result<Vec<Value>> {
        let mut found = Vec::with_capacity(bodies.len());
        for part in bodies.chunks(self.together) {
            let answers: Vec<Result<Value>> = std::thread::scope(|scope| {
                let started: Vec<_> = part.iter().map(|body| scope.spawn(|| self.endpoint.post(body))).collect();
                let ended = started.into_iter().map(|thread| {
                    thread.join().unwrap_or_else(|_| Err(self.endpoint.unexpected("an answer", "a failed thread")))
                });
                ended.collect()
            });
            for answer in answers {
                let answer = answer?;
                match answer["choices"].get(0) {
                    Some(choice) => found.push(choice.clone()),
                    None => return Err(self.endpoint.unexpected("a choice", answer.to_string())),
                }
            }
        }
        Ok(found)
    }
}

impl Judge for Chat {
    fn ask(&mut self, bodies: &[Value]) -> Result<Vec<Value>> {
        self.choices(bodies)
    }
}

/// A model behind a server, whose tokenizer and template are here: they say how long a prompt is.
pub struct ChatModel {
    /// The server.
    pub chat: Chat,
    /// The model's name in requests.
    pub name: String,
    /// Its tokenizer and template.
    pub text: TextPipeline,
}

impl Answerer for ChatModel {
    fn answer(&mut self, turns: &[Turn]) -> Result<Vec<Reply>> {
        let mut bodies = Vec::with_capacity(turns.len());
        for turn in turns {
            let own = self.text.template.as_ref().filter(|template| !template.is_guessed());
            if turn.plain.is_some() && own.is_none() {
                let expected = "a checkpoint with a chat template, because a server is asked in chats";
                return Err(EvalError::Unexpected {
                    what: turn.name.clone(),
                    expected: expected.into(),
                    got: "one without".into(),
                    remedy: "run the set in this process, without --server".into(),
                });
            }
            let tokens = match turn.limit {
                Limit::New(tokens) => tokens,
                Limit::Whole(tokens) => {
                    let template = self.text.template()?;
                    let prompt = template.prompt(&turn.messages, Map::new(), &self.text.tokenizer)?;
                    tokens.saturating_sub(prompt.len()).max(1)
                }
            };
            let mut body = json!({"model": self.name, "messages": turn.messages, "max_tokens": tokens,
                "temperature": turn.temperature, "seed": turn.seed});
            if turn.temperature > 0.0 {
                body["top_p"] = json!(1);
                body["top_k"] = json!(turn.sampling().top_k);
            }
            bodies.push(body);
        }
        let text = |choice: Value| match choice["message"]["content"].as_str() {
            Some(text) => {
                let finish = choice["finish_reason"].as_str().unwrap_or("stop").to_owned();
                Ok(Reply { text: text.to_owned(), finish })
            }
            None => Err(self.chat.endpoint.unexpected("a text in each choice", choice.to_string())),
        };
        self.chat.choices(&bodies)?.into_iter().map(text).collect()
    }
}
