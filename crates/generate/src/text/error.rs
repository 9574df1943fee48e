//! Errors between text and ids. One enum, because callers show the message and seldom branch on it; the exception is
//! [`TextError::TemplateRaised`], by which the template refuses the user's conversation.

use thiserror::Error;

/// The result type of [`crate::text`].
pub type Result<T, E = TextError> = std::result::Result<T, E>;

/// An error of the tokenizer, a configuration file or a chat template.
#[derive(Debug, Error)]
pub enum TextError {
    /// A file is not what its name says.
    #[error("{file}: {problem}. {remedy}")]
    File {
        /// Which file, by its usual name.
        file: &'static str,
        /// What was expected and what was found.
        problem: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A file is no JSON, or something else than its name says.
    #[error(transparent)]
    Weights(#[from] bayan_weights::WeightsError),
    /// The tokenizer refused a text or an id sequence.
    #[error(
        "the tokenizer could not {action}: {problem}. Check that tokenizer.json is complete and belongs to this checkpoint"
    )]
    Tokenizer {
        /// encode or decode.
        action: &'static str,
        /// The tokenizer's message.
        problem: String,
    },
    /// The template is not valid Jinja.
    #[error(
        "the chat template does not parse: {0}. Fix chat_template in the checkpoint or choose a built-in template (llama2, acegpt, llama3, chatml, gemma, jais, jais-family)"
    )]
    TemplateSyntax(String),
    /// The template called `raise_exception`: it does not accept this conversation.
    #[error("the chat template refuses this conversation: {0}")]
    TemplateRaised(String),
    /// A message has content that is not text.
    #[error(
        "message {message}, part {part} of its content: expected text, got {got}. This model reads text only: leave the part out, or describe it in words"
    )]
    ContentPart {
        /// Number of the message, from 0.
        message: usize,
        /// Number of the part, from 0.
        part: usize,
        /// What it is.
        got: String,
    },
    /// The template failed while rendering.
    #[error("the chat template failed: {0}. Check the messages (role and content) and the template's arguments")]
    TemplateFailed(String),
    /// The template exceeded a limit.
    #[error(
        "the chat template {what} (limit {limit}). Shorten the conversation; if it is short, the template may never end: choose another one"
    )]
    TemplateLimit {
        /// The quantity that is too large.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// There is no template of this name.
    #[error("there is no built-in chat template {name:?}; expected one of {available}")]
    NoSuchTemplate {
        /// The name asked for.
        name: String,
        /// The names that exist.
        available: String,
    },
}

impl TextError {
    pub(crate) fn file(file: &'static str, problem: impl Into<String>, remedy: &'static str) -> Self {
        Self::File { file, problem: problem.into(), remedy }
    }
}
