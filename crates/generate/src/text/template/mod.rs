//! Chat templates: from a conversation to the prompt text that the model was trained on.
//!
//! The checkpoint's Jinja template is rendered by minijinja in an environment that behaves like transformers'
//! (whitespace rules, `raise_exception`, `strftime_now`, `tojson`, Python's string methods). Rejected: recognizing
//! templates and reimplementing them, because that fails on the first unknown one. A template is a program from an
//! untrusted file, so it runs with limits on instructions, recursion, and the bytes it may produce.

mod adapt;
mod budget;
mod builtin;
mod environment;
mod metered;
mod methods;
mod python;
mod strftime;

use super::error::{Result, TextError};
use super::tokenizer::{GuardedText, Tokenizer};
pub use adapt::{Adapted, join_parts};
pub use builtin::{BUILTIN_TEMPLATES, builtin_template, guess_builtin};
use environment::{Raised, environment, without_generation_tags};
use minijinja::value::Value as Jinja;
use minijinja::{Environment, ErrorKind};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
pub use strftime::LocalTime;

/// A longer template source is refused; the longest in use have about 20 KB.
const MAX_SOURCE_BYTES: usize = 1 << 20;

/// Limits of one rendering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RenderLimits {
    /// Instructions of the template engine. A message takes some hundreds.
    pub fuel: u64,
    /// Nested calls (macros).
    pub recursion: usize,
    /// Bytes of the rendered text.
    pub output_bytes: usize,
    /// Bytes of all strings and lists created, including the output.
    pub working_bytes: usize,
}

impl Default for RenderLimits {
    fn default() -> Self {
        Self { fuel: 5_000_000, recursion: 250, output_bytes: 16 << 20, working_bytes: 256 << 20 }
    }
}

/// A conversation and the other variables of a template.
#[derive(Debug, Clone, Default)]
pub struct ChatInput {
    /// The messages: objects with `role` and `content`, and any other fields that the template reads (`tool_calls`,
    /// `reasoning_content`, …).
    pub messages: Vec<Value>,
    /// Tools as JSON schemas.
    pub tools: Option<Vec<Value>>,
    /// Documents for retrieval.
    pub documents: Option<Vec<Value>>,
    /// Append the opening of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Further variables, such as `enable_thinking`. They override all others of the same name.
    pub kwargs: serde_json::Map<String, Value>,
    /// The time of `strftime_now`. `None`: the clock, in UTC; in a browser, which has no clock here, an error if the
    /// template asks.
    pub now: Option<LocalTime>,
}

impl ChatInput {
    /// A conversation of these messages, with the generation prompt.
    pub fn new(messages: Vec<Value>) -> Self {
        Self { messages, add_generation_prompt: true, ..Default::default() }
    }

    /// A conversation of (role, content) pairs, with the generation prompt.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self::new(
            pairs.into_iter().map(|(role, content)| serde_json::json!({"role": role, "content": content})).collect(),
        )
    }
}

/// A compiled chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    /// The source with `{% generation %}` tags replaced; it is compiled for each rendering, which costs less than
    /// encoding the result.
    program: String,
    variables: BTreeMap<String, String>,
    limits: RenderLimits,
    guessed: bool,
}

impl ChatTemplate {
    /// A template from its source. The tokenizer, if there is one, provides `bos_token`, `eos_token` and the other
    /// named special tokens.
    ///
    /// # Errors
    /// The source is not valid Jinja, or longer than 1 MiB.
    pub fn new(source: &str, tokenizer: Option<&Tokenizer>) -> Result<Self> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(TextError::TemplateLimit {
                what: "source is too long in bytes",
                limit: MAX_SOURCE_BYTES as u64,
            });
        }
        let variables = tokenizer.map(|t| t.named_special_tokens().clone()).unwrap_or_default();
        let program = without_generation_tags(source);
        metered::compile(&program).map_err(|e| TextError::TemplateSyntax(e.to_string()))?;
        let limits = RenderLimits::default();
        let (environment, source) = (environment(), source.to_owned());
        let mut template = Self { environment, source, program, variables, limits, guessed: false };
        template.set_limits(RenderLimits::default());
        Ok(template)
    }

    /// The checkpoint's template: chat_template.jinja, else `chat_template` of tokenizer_config.json (a string, or a
    /// list of named templates). `name` selects from a list; without it, `tool_use` if there is one and `with_tools` is
    /// set, else `default`, else the only one. `None` when the checkpoint has no template.
    ///
    /// # Errors
    /// The template does not parse, or `name` is not in the list.
    pub fn from_checkpoint(
        jinja: Option<&str>,
        tokenizer_config: Option<&Value>,
        name: Option<&str>,
        with_tools: bool,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<Option<Self>> {
        let shipped = tokenizer_config.and_then(|c| c.get("chat_template"));
        let source = match (jinja, shipped) {
            (Some(source), _) => source,
            (None, Some(Value::String(source))) => source,
            (None, Some(Value::Array(list))) => match pick(list, name, with_tools)? {
                Some(source) => source,
                None => return Ok(None),
            },
            _ => return Ok(None),
        };
        Self::new(source, tokenizer).map(Some)
    }

    /// A built-in template by name: one of [`BUILTIN_TEMPLATES`].
    ///
    /// # Errors
    /// There is no built-in template of this name.
    pub fn builtin(name: &str, tokenizer: Option<&Tokenizer>) -> Result<Self> {
        let missing = || TextError::NoSuchTemplate { name: name.to_owned(), available: BUILTIN_TEMPLATES.join(", ") };
        Self::new(builtin_template(name).ok_or_else(missing)?, tokenizer)
    }

    /// The built-in template that a vocabulary's turn tokens identify, if they identify one.
    ///
    /// # Errors
    /// None that is known: the built-in templates are valid.
    pub fn guess(tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let Some(name) = guess_builtin(tokenizer) else { return Ok(None) };
        Ok(Some(Self { guessed: true, ..Self::builtin(name, Some(tokenizer))? }))
    }

    /// Whether the checkpoint has no template, and this one was chosen by its vocabulary.
    pub fn is_guessed(&self) -> bool {
        self.guessed
    }

    /// Sets a variable such as `bos_token`.
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Replaces the default limits.
    pub fn set_limits(&mut self, limits: RenderLimits) {
        self.environment.set_fuel(Some(limits.fuel));
        self.environment.set_recursion_limit(limits.recursion);
        self.limits = limits;
    }

    /// The source, as given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt text of a conversation, as transformers' `apply_chat_template(tokenize=False)` renders it.
    ///
    /// # Errors
    /// [`TextError::TemplateRaised`] with the template's message when it refuses the conversation; another error when
    /// it fails or exceeds a limit.
    pub fn render(&self, input: &ChatInput) -> Result<String> {
        let budget = budget::Budget::new(self.limits.working_bytes);
        let text = budget
            .during(|| metered::run(&self.environment, &self.program, self.context(input)))
            .map_err(|e| self.explain(&e))?;
        match text.len() <= self.limits.output_bytes {
            true => Ok(text),
            false => {
                Err(TextError::TemplateLimit { what: "wrote too many bytes", limit: self.limits.output_bytes as u64 })
            }
        }
    }

    /// As [`ChatTemplate::render`], with every special token in a message's content guarded (except for the roles
    /// `system` and `developer`, whose text is the operator's): [`Tokenizer::encode_guarded`] keeps it as text. The
    /// text equals that of `render`, unless the template itself searches contents for special tokens.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_guarded(&self, input: &ChatInput, tokenizer: &Tokenizer) -> Result<GuardedText> {
        let special: Vec<&str> = tokenizer.special_tokens().map(|(text, _)| text).collect();
        let trusted = |m: &Value| matches!(m.get("role").and_then(Value::as_str), Some("system" | "developer"));
        let mut marked = input.clone();
        let all = serde_json::to_string(&(&input.messages, &input.tools, &input.documents, &input.kwargs))
            .unwrap_or_default();
        // A private-use character as marker: no template looks for these, and one that the conversation or the template
        // contains is not used.
        let Some(mark) = ('\u{F0000}'..='\u{FFFFD}').find(|c| !all.contains(*c) && !self.source.contains(*c)) else {
            return Err(TextError::TemplateFailed(
                "the conversation uses every character of a private-use plane".into(),
            ));
        };
        let untrusted = marked.messages.iter_mut().filter(|m| !trusted(m));
        for value in untrusted
            .filter_map(Value::as_object_mut)
            .flat_map(|m| m.iter_mut())
            .filter(|(key, _)| *key != "role")
            .map(|(_, v)| v)
        {
            mark_strings(value, &special, mark);
        }
        for list in [&mut marked.tools, &mut marked.documents].into_iter().flatten() {
            list.iter_mut().for_each(|value| mark_strings(value, &special, mark));
        }
        let rendered = self.render(&marked)?;
        let mut guarded = GuardedText { text: String::with_capacity(rendered.len()), guards: vec![] };
        for (i, stretch) in rendered.split(mark).enumerate() {
            if i > 0 {
                guarded.guards.push(guarded.text.len());
            }
            guarded.text.push_str(stretch);
        }
        Ok(guarded)
    }

    fn context(&self, input: &ChatInput) -> Jinja {
        let mut context: BTreeMap<String, Jinja> =
            self.variables.iter().map(|(name, text)| (name.clone(), Jinja::from(text.as_str()))).collect();
        context.insert("messages".into(), Jinja::from_serialize(&input.messages));
        context.insert("tools".into(), Jinja::from_serialize(&input.tools));
        context.insert("documents".into(), Jinja::from_serialize(&input.documents));
        context.insert("add_generation_prompt".into(), Jinja::from(input.add_generation_prompt));
        let now = input.now;
        context.insert(
            "strftime_now".into(),
            Jinja::from_function(move |format: &str| strftime::strftime_now(now, format)),
        );
        context.extend(input.kwargs.iter().map(|(name, value)| (name.clone(), Jinja::from_serialize(value))));
        Jinja::from(context)
    }

    fn explain(&self, error: &minijinja::Error) -> TextError {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(e) = cause {
            if let Some(raised) = e.downcast_ref::<Raised>() {
                return TextError::TemplateRaised(raised.0.clone());
            }
            if e.downcast_ref::<budget::Exceeded>().is_some() {
                return TextError::TemplateLimit {
                    what: "made too many bytes of strings and lists",
                    limit: self.limits.working_bytes as u64,
                };
            }
            match e.downcast_ref::<minijinja::Error>().map(minijinja::Error::kind) {
                Some(ErrorKind::OutOfFuel) => {
                    return TextError::TemplateLimit { what: "ran too many instructions", limit: self.limits.fuel };
                }
                Some(_) if e.to_string().contains("recursion limit exceeded") => {
                    return TextError::TemplateLimit {
                        what: "nested its calls too deeply",
                        limit: self.limits.recursion as u64,
                    };
                }
                _ => cause = e.source(),
            }
        }
        TextError::TemplateFailed(error.to_string())
    }
}

/// Selects from the list form of `chat_template`.
fn pick<'a>(list: &'a [Value], name: Option<&str>, with_tools: bool) -> Result<Option<&'a str>> {
    let text = |v: &'a Value, key: &str| v.get(key).and_then(Value::as_str);
    let named = |wanted: &str| list.iter().find(|t| text(t, "name") == Some(wanted)).and_then(|t| text(t, "template"));
    if let Some(name) = name {
        let available = list
            .iter()
            .filter_map(|t| text(t, "name"))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
            .join(", ");
        return named(name).map(Some).ok_or_else(|| TextError::NoSuchTemplate { name: name.to_owned(), available });
    }
    let only = || if let [one] = list { text(one, "template") } else { None };
    Ok(with_tools.then(|| named("tool_use")).flatten().or_else(|| named("default")).or_else(only))
}

/// Inserts `mark` before every special token in every string of `value`.
fn mark_strings(value: &mut Value, special: &[&str], mark: char) {
    match value {
        Value::String(text) => {
            let found = special.iter().filter(|s| !s.is_empty()).flat_map(|s| occurrences(text, s));
            let starts: BTreeSet<usize> = found.collect();
            for at in starts.into_iter().rev() {
                text.insert(at, mark);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|v| mark_strings(v, special, mark)),
        Value::Object(map) => map.iter_mut().for_each(|(_, v)| mark_strings(v, special, mark)),
        _ => {}
    }
}

/// The positions of `pattern` in `text`, overlapping ones included.
fn occurrences(text: &str, pattern: &str) -> Vec<usize> {
    let (mut starts, mut from) = (Vec::new(), 0);
    while let Some(at) = text.get(from..).and_then(|rest| rest.find(pattern)) {
        starts.push(from + at);
        from += at + text[from + at..].chars().next().map_or(1, char::len_utf8);
    }
    starts
}
