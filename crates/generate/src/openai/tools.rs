//! The functions that a request offers, and the grammar of answers that may call them.
//!
//! A grammar makes every call well formed, also in the mode `auto`, so that the reader of calls knows exactly what may
//! come. Rejected: searching free text for calls, as other servers do, because a call that the model writes wrongly is
//! then either lost or an error of the server.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{Format, RequestError, kind};
use crate::grammar::{Constraint, Grammar};
use crate::text::Tokenizer;

/// Most functions of a request.
const MOST_TOOLS: usize = 128;

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// As templates read it: `{"type": "function", "function": {…}}`.
    pub definition: Value,
    /// The JSON schema of the arguments: an object.
    pub parameters: Value,
    /// The field of the request that holds the schema.
    pub place: String,
    /// Whether a schema that cannot be used is an error. Otherwise any object may be the arguments.
    strict: bool,
}

/// Whether functions are called.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Choice {
    /// No function is offered.
    None,
    /// The model decides.
    #[default]
    Auto,
    /// At least one call.
    Required,
    /// One call of this function.
    Named(String),
}

/// The functions of a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tools {
    /// The functions.
    pub list: Vec<Tool>,
    /// Whether they are called.
    pub choice: Choice,
    /// Whether an answer may have several calls.
    pub parallel: bool,
}

impl Tool {
    /// A function. `place` is its field in the request, and `schema` the name of the field of its parameters.
    ///
    /// # Errors
    /// A field of it is malformed.
    pub fn new(place: &str, schema: &str, function: &Map<String, Value>) -> Result<Tool, RequestError> {
        let wrong = |what: String| RequestError::new(place, format!("`{place}`: {what}"));
        let fits = |name: &&str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
            !name.is_empty() && name.len() <= 64 && name.chars().all(plain)
        };
        let name = function.get("name").and_then(Value::as_str).filter(fits);
        let name = name.ok_or_else(|| wrong("`name`: expected 1 to 64 letters, digits, `_`, `-` or `.`".into()))?;
        let description = match function.get("description") {
            None | Some(Value::Null) => Value::Null,
            Some(Value::String(text)) => json!(text),
            Some(other) => return Err(wrong(format!("`description`: expected a string, got {}", kind(other)))),
        };
        let mut parameters = match function.get(schema) {
            None | Some(Value::Null) => json!({"type": "object", "properties": {}}),
            Some(Value::Object(map)) => Value::Object(map.clone()),
            Some(other) => return Err(wrong(format!("`{schema}`: expected an object, got {}", kind(other)))),
        };
        if parameters["type"].is_null() {
            parameters["type"] = json!("object");
        }
        if parameters["type"] != "object" {
            return Err(wrong(format!("`{schema}.type`: expected object, got {}", parameters["type"])));
        }
        let mut definition = json!({"name": name, "parameters": parameters});
        if !description.is_null() {
            definition["description"] = description;
        }
        Ok(Tool {
            name: name.to_string(),
            definition: json!({"type": "function", "function": definition}),
            parameters,
            place: format!("{place}.{schema}"),
            strict: function.get("strict") == Some(&Value::Bool(true)),
        })
    }
}

impl Tools {
    /// The fields `tools` and `tool_choice` of OpenAI's chat completions; `parallel` is `parallel_tool_calls`.
    ///
    /// # Errors
    /// A field is malformed, or the choice does not fit the functions.
    pub fn read(list: Option<&Value>, choice: Option<&Value>, parallel: bool) -> Result<Tools, RequestError> {
        let list = tool_list(list, |place, tool| match tool.get("function") {
            Some(Value::Object(function)) if tool.get("type").is_none_or(|kind| kind == "function") => {
                Tool::new(&format!("{place}.function"), "parameters", function)
            }
            _ => Err(RequestError::new(place, format!("`{place}`: expected `type`: function and `function`"))),
        })?;
        let choice = match choice {
            Some(Value::Object(map)) => match map.get("function").and_then(|function| function["name"].as_str()) {
                Some(name) if map.get("type").is_none_or(|kind| kind == "function") => Choice::Named(name.into()),
                _ => return Err(wrong_choice()),
            },
            other => plain_choice(other)?,
        };
        Tools { list, choice, parallel }.checked()
    }

    /// Checks that the choice fits the list.
    ///
    /// # Errors
    /// A name is there twice, or the choice names no function of the list.
    pub fn checked(self) -> Result<Tools, RequestError> {
        let mut names = BTreeSet::new();
        if let Some(tool) = self.list.iter().find(|tool| !names.insert(tool.name.as_str())) {
            return Err(RequestError::new("tools", format!("`tools`: the name `{}` is there twice", tool.name)));
        }
        match &self.choice {
            Choice::Named(name) if !names.contains(name.as_str()) => {
                Err(RequestError::new("tool_choice", format!("`tool_choice`: `tools` has no function `{name}`")))
            }
            Choice::Required if self.list.is_empty() => {
                Err(RequestError::new("tool_choice", "`tool_choice`: required needs `tools`"))
            }
            _ => Ok(self),
        }
    }

    /// Whether an answer with this number of calls ends with the reason `tool_calls`. A call that the client named
    /// itself ends as any answer.
    pub fn ends_with_calls(&self, calls: usize) -> bool {
        calls > 0 && !matches!(self.choice, Choice::Named(_))
    }

    /// The same functions, each of them strict: a schema that cannot be used is an error.
    pub fn strict(mut self) -> Tools {
        self.list.iter_mut().for_each(|tool| tool.strict = true);
        self
    }

    /// Whether an answer may hold calls.
    pub fn offered(&self) -> bool {
        self.choice != Choice::None && !self.list.is_empty()
    }

    /// The functions as templates read them.
    pub fn definitions(&self) -> Vec<Value> {
        if self.offered() { self.list.iter().map(|tool| tool.definition.clone()).collect() } else { Vec::new() }
    }

    /// The grammar of answers. A schema with a part that is not supported is replaced by any object, and added to
    /// `ignored`, unless its function is strict. `None`: no function is offered.
    ///
    /// # Errors
    /// A schema is too large, or a strict one cannot be used.
    pub fn grammar(
        &self,
        format: Format,
        tokenizer: &Tokenizer,
        ignored: &mut Vec<String>,
    ) -> Result<Option<Grammar>, RequestError> {
        if !self.offered() {
            return Ok(None);
        }
        let grammars = tokenizer.grammars().map_err(|error| RequestError::grammar("tools", &error))?;
        let mut list = self.list.clone();
        if let Choice::Named(name) = &self.choice {
            list.retain(|tool| &tool.name == name);
        }
        for tool in &mut list {
            match grammars.compile(&Constraint::JsonSchema(tool.parameters.clone())) {
                Ok(_) => {}
                Err(_) if !tool.strict => {
                    ignored.push(tool.place.clone());
                    tool.parameters = json!({"type": "object"});
                }
                Err(error) => return Err(RequestError::grammar(&tool.place, &error)),
            }
        }
        let lark = format
            .lark(&list, &self.choice, self.parallel, tokenizer)
            .map_err(|error| RequestError::grammar("tools", &error))?;
        grammars.compile(&Constraint::Lark(lark)).map(Some).map_err(|error| RequestError::grammar("tools", &error))
    }
}

/// The list `tools`, each read by `read`, which gets its place.
///
/// # Errors
/// It is no list, is too long, or `read` fails.
pub fn tool_list<E: From<RequestError>>(
    list: Option<&Value>,
    read: impl Fn(&str, &Map<String, Value>) -> Result<Tool, E>,
) -> Result<Vec<Tool>, E> {
    let list = match list {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() <= MOST_TOOLS => list,
        Some(_) => {
            let message = format!("`tools`: expected a list of at most {MOST_TOOLS} functions");
            return Err(RequestError::new("tools", message).into());
        }
    };
    let entry = |(index, tool): (usize, &Value)| {
        let place = format!("tools[{index}]");
        match tool {
            Value::Object(map) => read(&place, map),
            other => {
                Err(RequestError::new(&place, format!("`{place}`: expected an object, got {}", kind(other))).into())
            }
        }
    };
    list.iter().enumerate().map(entry).collect()
}

/// A choice that names no function.
///
/// # Errors
/// It is none of the known words.
pub fn plain_choice(value: Option<&Value>) -> Result<Choice, RequestError> {
    match value.filter(|value| !value.is_null()).map(|value| value.as_str().unwrap_or("")) {
        None | Some("auto") => Ok(Choice::Auto),
        Some("none") => Ok(Choice::None),
        Some("required") => Ok(Choice::Required),
        Some(_) => Err(wrong_choice()),
    }
}

fn wrong_choice() -> RequestError {
    RequestError::new("tool_choice", "`tool_choice`: expected none, auto, required, or an object that names a function")
}
