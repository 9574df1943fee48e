//! Refuses conversations with tool calls or tool results that the template does not render: the model would learn an
//! empty answer, or an answer to a result that it does not see.

use bayan_generate::text::TextError;
use serde_json::Value;

use super::spans::Render;
use crate::data::role;

/// Checks that the rendering shows every tool call's name and every tool's result.
///
/// # Errors
/// The first that it does not show.
pub(super) fn check_messages(messages: &[Value], render: Render<'_>) -> Result<(), TextError> {
    for at in 0..messages.len() {
        let calls = messages[at].get("tool_calls").and_then(Value::as_array).map_or(0, Vec::len);
        for call in 0..calls {
            let shown = shows(messages, render, |marked, marker| {
                let call = &mut marked[at]["tool_calls"][call];
                let function = if call.get("function").is_some() { &mut call["function"] } else { call };
                function["name"] = marker.into();
            });
            if !shown {
                return Err(left_out(at, "the tool call"));
            }
        }
        let text = messages[at].get("content").and_then(Value::as_str).unwrap_or_default();
        if role(&messages[at]) == "tool"
            && !text.trim().is_empty()
            && !shows(messages, render, |marked, marker| marked[at]["content"] = marker.into())
        {
            return Err(left_out(at, "the tool's result"));
        }
    }
    Ok(())
}

/// Whether the rendering changes with what `set` replaces by a marker. A rendering that fails with the marker is
/// taken as one that reads it.
fn shows(messages: &[Value], render: Render<'_>, set: impl FnOnce(&mut [Value], &str)) -> bool {
    let marker = "\u{F8F4}tool\u{F8F5}";
    let mut marked = messages.to_vec();
    set(&mut marked, marker);
    // Templates that write JSON escape the marker; they still write its letters.
    render(&marked, false).map_or(true, |text| text.contains(marker) || text.contains("\\uf8f4tool"))
}

fn left_out(message: usize, what: &str) -> TextError {
    TextError::TemplateFailed(format!(
        "message {message}: {what} does not appear in what the template renders, and training would teach an empty \
         or baseless answer. Use a model whose template renders tool calls, or write the call as text in `content`"
    ))
}
