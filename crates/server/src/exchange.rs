//! From a conversation to its answers, for every protocol: the prompt is rendered, constraints and tools become a
//! grammar, and the text of an answer is divided into text and calls.

use std::sync::Arc;

use bayan_generate::Grammar;
use bayan_generate::openai::{Format, Piece, Reader, Tools, prompt};
use bayan_generate::text::GuardedText;
use serde_json::{Map, Value};

use crate::constraint::Constrained;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::handlers::{Answer, App, beside};
use crate::protocol::{Wanted, check_prompt, random};

/// A conversation, checked and in the form of templates.
#[derive(Debug, Default)]
pub(crate) struct Conversation {
    pub(crate) messages: Vec<Value>,
    pub(crate) tools: Tools,
    pub(crate) constraint: Option<Constrained>,
    /// Further variables of the template.
    pub(crate) kwargs: Map<String, Value>,
    /// The field that errors of the prompt name.
    pub(crate) field: &'static str,
}

/// What the engine needs, and how the text of the answer is read.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    pub(crate) prompt: Vec<u32>,
    pub(crate) grammar: Option<Grammar>,
    /// The form of tool calls, if there may be any.
    pub(crate) format: Option<Format>,
    /// Fields that have no effect.
    pub(crate) ignored: Vec<String>,
}

/// What a handler needs of a prepared conversation besides the settings of its answers.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) prompt: Vec<u32>,
    pub(crate) stop: Vec<String>,
    /// The form of tool calls, if there may be any.
    pub(crate) format: Option<Format>,
    /// The model's name in answers.
    pub(crate) model: String,
    /// Fields that have no effect.
    pub(crate) ignored: Vec<String>,
}

impl Conversation {
    /// Prepares the conversation; `wanted` gets its grammar and the adapter. What is left of `fields` has no effect.
    pub(crate) async fn ready(
        self,
        app: &Arc<App>,
        fields: Fields,
        adapter: Option<String>,
        wanted: &mut Wanted,
    ) -> Result<Ready, ApiError> {
        let mut ignored = fields.ignored();
        let prepared = self.prepare(app).await?;
        ignored.extend(prepared.ignored);
        let model = app.model_name(adapter.as_ref());
        (wanted.grammar, wanted.adapter) = (prepared.grammar, adapter);
        let stop = std::mem::take(&mut wanted.stop);
        Ok(Ready { prompt: prepared.prompt, stop, format: prepared.format, model, ignored })
    }

    /// Renders, encodes and compiles, beside other requests.
    pub(crate) async fn prepare(self, app: &Arc<App>) -> Result<Prepared, ApiError> {
        let app = app.clone();
        beside(move || self.prepared(&app)).await
    }

    /// The text of the prompt.
    pub(crate) async fn render(self, app: &Arc<App>) -> Result<String, ApiError> {
        let app = app.clone();
        beside(move || Ok(self.rendered(&app)?.0.text)).await
    }

    /// The prompt, with the form of tool calls that its template has.
    fn rendered(&self, app: &App) -> Result<(GuardedText, Format), ApiError> {
        let text = &app.about.text;
        let wrong = |error: String| ApiError::field(self.field, error);
        let template = text.template().map_err(|error| wrong(error.to_string()))?;
        let prompt = prompt(template, &text.tokenizer, self.messages.clone(), &self.tools, self.kwargs.clone());
        prompt.map_err(|error| wrong(error.to_string()))
    }

    fn prepared(self, app: &App) -> Result<Prepared, ApiError> {
        let (prompt, format) = self.rendered(app)?;
        let Conversation { tools, constraint, field, .. } = self;
        let tokenizer = &app.about.text.tokenizer;
        if constraint.is_some() && tools.offered() {
            let message = "`tools` and a constraint of the text cannot be used together; leave one out";
            return Err(ApiError::field("tools", message));
        }
        let prompt = tokenizer.encode_guarded(&prompt);
        let prompt = prompt.map_err(|error| ApiError::field(field, error.to_string()))?;
        check_prompt(&prompt, &app.about, field)?;
        let mut ignored = Vec::new();
        let grammar = match constraint {
            Some(constraint) => Some(constraint.compile(tokenizer)?),
            None => tools.grammar(format, tokenizer, &mut ignored)?,
        };
        Ok(Prepared { prompt, grammar, format: tools.offered().then_some(format), ignored })
    }
}

/// A call in an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Call {
    pub(crate) id: String,
    pub(crate) name: String,
    /// JSON of an object.
    pub(crate) arguments: String,
}

/// A whole answer, divided.
#[derive(Debug, Default)]
pub(crate) struct Spoken {
    pub(crate) text: String,
    pub(crate) calls: Vec<Call>,
}

impl Spoken {
    /// Divides an answer.
    pub(crate) fn of(answer: &Answer, format: Option<Format>) -> Spoken {
        let mut reader = Reader::new(format);
        let pieces = reader.push(&answer.text);
        let mut spoken = Spoken::default();
        for piece in pieces.into_iter().chain(reader.end()) {
            match piece {
                Piece::Text(text) => spoken.text.push_str(&text),
                Piece::Call(name) => {
                    let id = call_id(format);
                    spoken.calls.push(Call { id, name, arguments: String::new() });
                }
                Piece::Arguments(more) => {
                    if let Some(call) = spoken.calls.last_mut() {
                        call.arguments.push_str(&more);
                    }
                }
            }
        }
        spoken
    }
}

/// A new id of a call.
pub(crate) fn call_id(format: Option<Format>) -> String {
    format.unwrap_or(Format::Described).call_id(random() << 32 | random())
}
