//! The messages of a conversation: read from OpenAI's form, checked, and made into what templates read.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{RequestError, kind};
use crate::text::join_parts;

/// Fields of a message that change nothing of the prompt.
const WITHOUT_EFFECT: [&str; 3] = ["refusal", "annotations", "reasoning_content"];

/// Checks that calls and their results belong together.
#[derive(Debug, Default)]
pub struct Calls {
    /// The names of the calls without a result so far, by id.
    open: BTreeMap<String, String>,
}

impl Calls {
    /// A call of the assistant, as templates read it. `place` is its field.
    ///
    /// # Errors
    /// The id is there twice.
    pub fn call(&mut self, place: &str, id: &str, name: &str, arguments: Value) -> Result<Value, RequestError> {
        if self.open.insert(id.to_string(), name.to_string()).is_some() {
            return Err(RequestError::new(place, format!("`{place}`: the id `{id}` is there twice")));
        }
        let function = json!({"name": name, "arguments": arguments});
        Ok(json!({"id": id, "type": "function", "function": function}))
    }

    /// The result of a call, as templates read it.
    ///
    /// # Errors
    /// No call before it has the id.
    pub fn result(&mut self, place: &str, id: &str, content: String) -> Result<Value, RequestError> {
        let name = self.open.remove(id).ok_or_else(|| {
            RequestError::new(
                place,
                format!("`{place}`: no call before it has the id `{id}`, or it has a result already"),
            )
        })?;
        Ok(json!({"role": "tool", "name": name, "content": content, "tool_call_id": id}))
    }

    /// Checks that no call is left without a result before a turn at `place`, or at the end.
    ///
    /// # Errors
    /// A call is.
    pub fn closed(&self, place: &str) -> Result<(), RequestError> {
        match self.open.keys().next() {
            Some(id) => Err(RequestError::new(place, format!("`{place}`: the call `{id}` has no result before it"))),
            None => Ok(()),
        }
    }
}

/// The arguments of a call: an object, or its JSON.
///
/// # Errors
/// They are something else.
pub fn arguments(place: &str, value: Option<&Value>) -> Result<Value, RequestError> {
    let parsed = match value {
        Some(Value::String(text)) if text.trim().is_empty() => Some(json!({})),
        Some(Value::String(text)) => serde_json::from_str(text).ok().filter(Value::is_object),
        Some(Value::Object(map)) => Some(Value::Object(map.clone())),
        _ => None,
    };
    parsed.ok_or_else(|| RequestError::new(place, format!("`{place}`: expected a string with a JSON object")))
}

/// The messages of chat completions as templates read them: content is a text.
///
/// # Errors
/// A message is malformed, has an unknown field, or calls and results do not belong together.
pub fn messages(value: Option<&Value>) -> Result<Vec<Value>, RequestError> {
    let Some(Value::Array(list)) = value else {
        return Err(RequestError::new("messages", "`messages`: expected a list of messages"));
    };
    if list.is_empty() {
        return Err(RequestError::new("messages", "`messages` is empty: expected at least one message"));
    }
    let mut calls = Calls::default();
    let messages = list.iter().enumerate().map(|(index, value)| message(index, value, &mut calls));
    let messages = messages.collect::<Result<Vec<Value>, RequestError>>()?;
    calls.closed("messages")?;
    Ok(messages)
}

fn message(index: usize, value: &Value, calls: &mut Calls) -> Result<Value, RequestError> {
    let place = format!("messages[{index}]");
    let wrong = |what: String| RequestError::new(&place, format!("`{place}`: {what}"));
    let Some(map) = value.as_object() else {
        return Err(wrong(format!("expected an object with `role` and `content`, got {}", kind(value))));
    };
    let role = match map.get("role").and_then(Value::as_str) {
        // OpenAI's newer name.
        Some("system" | "developer") => "system",
        Some(role @ ("user" | "assistant" | "tool")) => role,
        _ => return Err(wrong("`role`: expected system, developer, user, assistant or tool".into())),
    };
    let called = map.get("tool_calls").is_some_and(|list| list.as_array().is_some_and(|list| !list.is_empty()));
    let content = match map.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => join_parts(parts).map_err(|(part, got)| {
            wrong(format!("`content[{part}]`: only parts of type text are supported, got {got}"))
        })?,
        Some(Value::Null) | None if called && role == "assistant" => String::new(),
        Some(Value::Null) | None => return Err(wrong("`content` is missing".into())),
        Some(other) => return Err(wrong(format!("`content`: expected a string, got {}", kind(other)))),
    };
    let own: &[&str] = match role {
        "assistant" => &["tool_calls"],
        "tool" => &["tool_call_id"],
        _ => &[],
    };
    for (name, value) in map {
        let known = ["role", "content", "name"].iter().chain(own).chain(&WITHOUT_EFFECT).any(|known| known == name);
        let nothing = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        if !nothing && !known {
            return Err(wrong(format!("`{name}` is not supported here; leave it out")).with_code("unsupported"));
        }
    }
    if role == "tool" {
        let id = map.get("tool_call_id").and_then(Value::as_str);
        return calls.result(&place, id.ok_or_else(|| wrong("`tool_call_id` is missing".into()))?, content);
    }
    calls.closed(&place)?;
    let mut message = json!({"role": role, "content": content});
    if let Some(name) = map.get("name").filter(|name| name.is_string()) {
        message["name"] = name.clone();
    }
    match map.get("tool_calls") {
        Some(Value::Array(list)) if called => {
            let list = list.iter().enumerate();
            let list = list.map(|(number, call)| tool_call(&format!("{place}.tool_calls[{number}]"), call, calls));
            message["tool_calls"] = Value::Array(list.collect::<Result<Vec<Value>, RequestError>>()?);
        }
        None | Some(Value::Null | Value::Array(_)) => {}
        Some(other) => return Err(wrong(format!("`tool_calls`: expected a list, got {}", kind(other)))),
    }
    Ok(message)
}

fn tool_call(place: &str, call: &Value, calls: &mut Calls) -> Result<Value, RequestError> {
    let wrong = |what: &str| RequestError::new(place, format!("`{place}`: {what}"));
    let text = |map: &Map<String, Value>, name: &str| {
        map.get(name).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_string)
    };
    let map = call.as_object().ok_or_else(|| wrong("expected an object"))?;
    if map.get("type").is_some_and(|kind| kind != "function") {
        return Err(wrong("`type`: expected function"));
    }
    let id = text(map, "id").ok_or_else(|| wrong("`id`: expected a string that is not empty"))?;
    let function = map.get("function").and_then(Value::as_object);
    let function = function.ok_or_else(|| wrong("`function`: expected an object"))?;
    let name = text(function, "name").ok_or_else(|| wrong("`function.name`: expected a string that is not empty"))?;
    let arguments = arguments(&format!("{place}.function.arguments"), function.get("arguments"))?;
    calls.call(place, &id, &name, arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(id: &str, arguments: &str) -> Value {
        json!({"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}})
    }

    #[test]
    fn calls_and_results_become_what_templates_read() {
        let list = json!([
            {"role": "user", "content": "س"},
            {"role": "assistant", "content": null, "tool_calls": [call("a", "{\"x\": 1}"), call("b", "")]},
            {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "ب"}]},
            {"role": "tool", "tool_call_id": "a", "content": "أ"},
        ]);
        let read = messages(Some(&list)).unwrap();
        assert_eq!(read[1]["content"], "");
        assert_eq!(read[1]["tool_calls"][0]["function"]["arguments"], json!({"x": 1}));
        assert_eq!(read[1]["tool_calls"][1]["function"]["arguments"], json!({}));
        assert_eq!(read[2], json!({"role": "tool", "name": "f", "content": "ب", "tool_call_id": "b"}));
    }

    #[test]
    fn malformed_histories_name_their_place() {
        let assistant = |calls: Value| json!({"role": "assistant", "content": null, "tool_calls": calls});
        let user = json!({"role": "user", "content": "س"});
        let result = |id: &str| json!({"role": "tool", "tool_call_id": id, "content": "x"});
        let cases = [
            (json!([result("a")]), "messages[0]"),
            (json!([user, assistant(json!([call("a", "{}")]))]), "messages"),
            (json!([assistant(json!([call("a", "{}")])), user]), "messages[1]"),
            (json!([assistant(json!([call("a", "{}")])), result("b")]), "messages[1]"),
            (json!([assistant(json!([call("a", "{}")])), result("a"), result("a")]), "messages[2]"),
            (json!([assistant(json!([call("a", "{}"), call("a", "{}")]))]), "messages[0].tool_calls[1]"),
            (json!([assistant(json!([call("a", "{")]))]), "messages[0].tool_calls[0].function.arguments"),
            (json!([assistant(json!([call("a", "[1]")]))]), "messages[0].tool_calls[0].function.arguments"),
            (json!([assistant(json!([call("", "{}")]))]), "messages[0].tool_calls[0]"),
            (json!([assistant(json!([1]))]), "messages[0].tool_calls[0]"),
            (json!([assistant(json!([{"id": "a", "function": 3}]))]), "messages[0].tool_calls[0]"),
            (json!([assistant(json!("f"))]), "messages[0]"),
            (json!([{"role": "assistant", "content": null}]), "messages[0]"),
            (json!([{"role": "user", "content": "x", "tool_calls": [call("a", "{}")]}]), "messages[0]"),
            (json!([{"role": "tool", "content": "x"}]), "messages[0]"),
        ];
        for (list, place) in cases {
            let error = messages(Some(&list)).unwrap_err();
            assert_eq!(error.field, place, "{list}: {error:?}");
        }
    }
}
