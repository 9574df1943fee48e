//! Fields that constrain the text of an answer: OpenAI's `response_format`, and the names that other servers have.

use bayan_generate::openai::{RequestError, kind};
use bayan_generate::text::Tokenizer;
use bayan_generate::{Constraint, Grammar};
use serde_json::Value;

use crate::error::ApiError;
use crate::fields::Fields;

/// A constraint, and the field that asked for it.
#[derive(Debug)]
pub(crate) struct Constrained {
    field: String,
    constraint: Constraint,
}

/// Most texts of `guided_choice`.
const MOST_CHOICES: usize = 1000;

impl Constrained {
    /// Takes the fields; at most one of them may ask for something.
    pub(crate) fn read(fields: &mut Fields) -> Result<Option<Constrained>, ApiError> {
        let mut found: Vec<Constrained> = Vec::new();
        let mut add = |field: &str, constraint: Result<Option<Constraint>, String>| -> Result<(), ApiError> {
            let wrong = |problem: String| ApiError::field(field, format!("`{field}`: {problem}"));
            let constraint = constraint.map_err(wrong)?;
            found.extend(constraint.map(|constraint| Constrained { field: field.to_string(), constraint }));
            Ok(())
        };
        if let Some(format) = fields.take("response_format") {
            add("response_format", Constraint::from_response_format(&format))?;
        }
        for (names, read) in READERS {
            for name in *names {
                if let Some(value) = fields.take(name) {
                    add(name, read(&value))?;
                }
            }
        }
        for (name, value) in fields.object("structured_outputs")?.unwrap_or_default() {
            let field = format!("structured_outputs.{name}");
            let guided = format!("guided_{name}");
            let reader = READERS.iter().find(|(names, _)| names.contains(&guided.as_str()));
            match (name.as_str(), reader) {
                _ if value.is_null() => {}
                ("json_object", _) => add(&field, Ok((value == Value::Bool(true)).then_some(Constraint::JsonObject)))?,
                (_, Some((_, read))) => add(&field, read(&value))?,
                _ => add(&field, Err("is not supported; leave it out".into()))?,
            }
        }
        if let [first, second, ..] = found.as_slice() {
            let message = format!("`{}` and `{}` cannot both constrain an answer", first.field, second.field);
            return Err(ApiError::field(&second.field, message));
        }
        Ok(found.pop())
    }

    /// The constraint of a field in the form of `response_format`.
    pub(crate) fn of_format(field: &str, format: &Value) -> Result<Option<Constrained>, ApiError> {
        let constraint = Constraint::from_response_format(format);
        let constraint = constraint.map_err(|problem| ApiError::field(field, format!("`{field}`: {problem}")))?;
        Ok(constraint.map(|constraint| Constrained { field: field.to_string(), constraint }))
    }

    /// Compiles the constraint.
    pub(crate) fn compile(&self, tokenizer: &Tokenizer) -> Result<Grammar, ApiError> {
        let compiled = tokenizer.grammars().and_then(|grammars| grammars.compile(&self.constraint));
        compiled.map_err(|error| RequestError::grammar(&self.field, &error).into())
    }
}

type Read = fn(&Value) -> Result<Option<Constraint>, String>;

/// Names of fields, and how they are read. `structured_outputs` has the same names without `guided_`.
const READERS: &[(&[&str], Read)] = &[
    (&["json_schema", "guided_json"], |value| match value {
        Value::String(text) => {
            let schema = serde_json::from_str(text).map_err(|error| format!("expected a JSON schema: {error}"))?;
            Ok(Some(Constraint::JsonSchema(schema)))
        }
        Value::Object(_) => Ok(Some(Constraint::JsonSchema(value.clone()))),
        other => Err(format!("expected an object with a JSON schema, got {}", kind(other))),
    }),
    (&["regex", "guided_regex"], |value| text(value).map(|text| Some(Constraint::Regex(text)))),
    (&["grammar", "guided_grammar"], |value| {
        let text = text(value)?;
        if text.contains("::=") {
            return Err("expected a grammar in Lark's form (`start: …`), got one with `::=`".into());
        }
        Ok(Some(Constraint::Lark(text)))
    }),
    (&["guided_choice"], |value| {
        let list = value.as_array().filter(|list| !list.is_empty() && list.len() <= MOST_CHOICES);
        let list = list.ok_or_else(|| format!("expected a list of 1 to {MOST_CHOICES} texts"))?;
        let text = |value: &Value| value.as_str().map(|text| Value::from(text).to_string());
        let texts: Option<Vec<String>> = list.iter().map(text).collect();
        // Lark's texts are quoted as JSON's.
        let texts = texts.ok_or("expected a list of texts")?;
        Ok(Some(Constraint::Lark(format!("start: {}", texts.join(" | ")))))
    }),
];

fn text(value: &Value) -> Result<String, String> {
    value.as_str().map(str::to_string).ok_or_else(|| format!("expected a string, got {}", kind(value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Map, json};

    fn read(body: Map<String, Value>) -> Result<Option<Constrained>, ApiError> {
        Constrained::read(&mut Fields::parse(Value::Object(body).to_string().as_bytes()).unwrap())
    }

    #[test]
    fn each_name_of_a_constraint_is_read() {
        let schema = json!({"type": "integer"});
        let lark = Constraint::Lark("start: \"a\" | \"\\\"\"".into());
        let cases = [
            (json!({}), None),
            (json!({"response_format": {"type": "text"}}), None),
            (json!({"response_format": null, "regex": null}), None),
            (json!({"response_format": {"type": "json_object"}}), Some(Constraint::JsonObject)),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}),
                Some(Constraint::JsonSchema(schema.clone())),
            ),
            (json!({"json_schema": schema}), Some(Constraint::JsonSchema(schema.clone()))),
            (json!({"guided_json": "{\"type\": \"integer\"}"}), Some(Constraint::JsonSchema(schema.clone()))),
            (json!({"structured_outputs": {"json": schema}}), Some(Constraint::JsonSchema(schema.clone()))),
            (json!({"structured_outputs": {"json_object": true, "regex": null}}), Some(Constraint::JsonObject)),
            (json!({"structured_outputs": {"choice": ["a", "\""]}}), Some(lark.clone())),
            (json!({"guided_choice": ["a", "\""]}), Some(lark)),
            (json!({"regex": "a+"}), Some(Constraint::Regex("a+".into()))),
            (json!({"grammar": "start: \"a\""}), Some(Constraint::Lark("start: \"a\"".into()))),
        ];
        for (body, expected) in cases {
            let found = read(body.as_object().unwrap().clone()).unwrap().map(|found| found.constraint);
            assert_eq!(found, expected, "{body}");
        }
    }

    #[test]
    fn wrong_constraints_name_their_field() {
        for (body, field) in [
            (json!({"response_format": "json"}), "response_format"),
            (json!({"response_format": {"type": "yaml"}}), "response_format"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format"),
            (json!({"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}}), "response_format"),
            (json!({"regex": 3}), "regex"),
            (json!({"grammar": "root ::= \"a\""}), "grammar"),
            (json!({"guided_json": "{"}), "guided_json"),
            (json!({"guided_choice": []}), "guided_choice"),
            (json!({"guided_choice": [1]}), "guided_choice"),
            (json!({"structured_outputs": {"structural_tag": "x"}}), "structured_outputs.structural_tag"),
            (json!({"regex": "a", "response_format": {"type": "json_object"}}), "regex"),
        ] {
            let error = read(body.as_object().unwrap().clone()).unwrap_err();
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(field)), "{body}: {error:?}");
        }
    }
}
