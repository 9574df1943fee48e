//! The conversation of a request: `instructions`, `input`, `tools`, `text.format`.

use bayan_generate::openai::{Calls, Choice, RequestError, Tool, Tools, arguments, kind, plain_choice, tool_list};
use bayan_generate::text::join_parts;
use serde_json::{Value, json};

use crate::constraint::Constrained;
use crate::error::ApiError;
use crate::exchange::Conversation;
use crate::fields::Fields;

/// Takes the fields of the conversation.
pub(super) fn read(fields: &mut Fields) -> Result<Conversation, ApiError> {
    let list = tool_list(fields.take("tools").as_ref(), |place, tool| {
        if tool.get("type").is_none_or(|kind| kind != "function") {
            let message = format!("`{place}`: only tools of type function are supported");
            return Err(RequestError::new(place, message).with_code("unsupported"));
        }
        Tool::new(place, "parameters", tool)
    })?;
    let choice = match fields.take("tool_choice") {
        Some(Value::Object(map)) if map.get("type").is_some_and(|kind| kind == "function") => {
            let name = map.get("name").and_then(Value::as_str);
            let missing = || ApiError::field("tool_choice", "`tool_choice`: expected `name` with a function");
            Choice::Named(name.ok_or_else(missing)?.to_string())
        }
        other => plain_choice(other.as_ref())?,
    };
    let parallel = fields.flag("parallel_tool_calls")?.unwrap_or(true);
    let tools = Tools { list, choice, parallel }.checked()?;
    let constraint = constraint(fields)?;
    let kwargs = fields.object("chat_template_kwargs")?.unwrap_or_default();
    let mut messages = Vec::new();
    if let Some(text) = fields.text("instructions")? {
        messages.push(json!({"role": "system", "content": text}));
    }
    match fields.take("input") {
        Some(Value::String(text)) => messages.push(json!({"role": "user", "content": text})),
        Some(Value::Array(items)) if !items.is_empty() => {
            let mut calls = Calls::default();
            for (index, value) in items.iter().enumerate() {
                item(&format!("input[{index}]"), value, &mut calls, &mut messages)?;
            }
            calls.closed("input")?;
        }
        _ => return Err(ApiError::field("input", "`input`: expected a text, or a list of at least one item")),
    }
    Ok(Conversation { messages, tools, constraint, kwargs, field: "input" })
}

/// `text.format` has the schema beside its type; otherwise it is `response_format`.
fn constraint(fields: &mut Fields) -> Result<Option<Constrained>, ApiError> {
    if let Some(mut text) = fields.object("text")? {
        let format = text.remove("format").unwrap_or_default();
        if let Some((name, _)) = text.iter().find(|(_, value)| !value.is_null()) {
            let message = format!("`text.{name}` is not supported; leave it out");
            return Err(ApiError::field(&format!("text.{name}"), message).with_code("unsupported"));
        }
        if !format.is_null() {
            let whole = match format["type"].as_str() {
                Some("json_schema") => json!({"type": "json_schema", "json_schema": format}),
                _ => format,
            };
            return Constrained::of_format("text.format", &whole);
        }
    }
    Constrained::read(fields)
}

fn item(place: &str, value: &Value, calls: &mut Calls, messages: &mut Vec<Value>) -> Result<(), ApiError> {
    let wrong = |what: String| ApiError::field(place, format!("`{place}`: {what}"));
    let Some(map) = value.as_object() else {
        return Err(wrong(format!("expected an object, got {}", kind(value))));
    };
    let text = |name: &str| map.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let needed = |name: &str| text(name).ok_or_else(|| wrong(format!("`{name}` is missing")));
    let content = |value: Option<&Value>| match value {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) => join_parts(parts)
            .map_err(|(part, got)| wrong(format!("part {part}: only parts of text are supported, got {got}"))),
        _ => Err(wrong("expected a text, or a list of parts".into())),
    };
    match text("type").unwrap_or("message") {
        "message" => {
            calls.closed(place)?;
            let role = match text("role") {
                Some("system" | "developer") => "system",
                Some(role @ ("user" | "assistant")) => role,
                _ => return Err(wrong("`role`: expected system, developer, user or assistant".into())),
            };
            messages.push(json!({"role": role, "content": content(map.get("content"))?}));
        }
        "function_call" => {
            let (id, name) = (needed("call_id")?, needed("name")?);
            let arguments = arguments(&format!("{place}.arguments"), map.get("arguments"))?;
            let call = calls.call(place, id, name, arguments)?;
            // Calls that follow each other, and a text before them, are one turn.
            match messages.last_mut().filter(|last| last["role"] == "assistant") {
                Some(last) => match last.get_mut("tool_calls").and_then(Value::as_array_mut) {
                    Some(list) => list.push(call),
                    None => last["tool_calls"] = json!([call]),
                },
                None => messages.push(json!({"role": "assistant", "content": "", "tool_calls": [call]})),
            }
        }
        "function_call_output" => {
            let output = content(map.get("output"))?;
            messages.push(calls.result(place, needed("call_id")?, output)?);
        }
        "reasoning" => {}
        other => {
            let message = format!("items of type {other} are not supported; this server keeps no earlier responses");
            return Err(wrong(message).with_code("unsupported"));
        }
    }
    Ok(())
}
