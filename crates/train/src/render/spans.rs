//! Locates the assistant's turns in a rendered conversation.
//!
//! First by prefixes: a turn is what the template adds between "everything before, with the opening of an answer" and
//! "everything up to and including the answer". This fails for templates that render a turn differently once others
//! follow (Qwen 3 removes reasoning from earlier turns); then the answer is replaced by a marker, and the text around
//! the marker locates the turn. A turn found by neither is counted and not trained.

use std::ops::Range;

use bayan_generate::text::TextError;
use serde_json::Value;

/// The located turns, ascending, and the number of turns not located.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Found {
    pub spans: Vec<Range<usize>>,
    pub missing: u64,
}

/// Renders messages, with or without the opening of an answer.
pub(super) type Render<'a> = &'a dyn Fn(&[Value], bool) -> Result<String, TextError>;

/// Locates the assistant's turns that are `wanted` (one flag for each message) in `text`, the rendering of all messages.
pub(super) fn assistant_spans(text: &str, messages: &[Value], wanted: &[bool], render: Render<'_>) -> Found {
    let mut found = Found::default();
    let mut position = 0;
    for at in (0..messages.len()).filter(|at| wanted[*at]) {
        let span = by_prefix(text, messages, at, render).or_else(|| by_marker(text, messages, at, render));
        match span.filter(|span| span.start >= position && span.start < span.end) {
            Some(span) => {
                position = span.end;
                found.spans.push(span);
            }
            None => found.missing += 1,
        }
    }
    found
}

/// The span from the opening of the answer to the end of the rendering that ends with it.
fn by_prefix(text: &str, messages: &[Value], at: usize, render: Render<'_>) -> Option<Range<usize>> {
    let before = render(&messages[..at], true).ok()?;
    let last = at + 1 == messages.len();
    let through = if last {
        text.len()
    } else {
        render(&messages[..=at], false).ok().filter(|t| text.starts_with(t.as_str()))?.len()
    };
    (text.starts_with(&before) && before.len() < through).then_some(before.len()..through)
}

/// The span between the texts around a marker that replaces the answer.
fn by_marker(text: &str, messages: &[Value], at: usize, render: Render<'_>) -> Option<Range<usize>> {
    let marker = (0..).map(|n| format!("\u{F8F0}turn{n}\u{F8F1}")).find(|marker| !text.contains(marker.as_str()))?;
    let mut marked = messages.to_vec();
    marked[at].as_object_mut()?.insert("content".into(), Value::from(marker.as_str()));
    let rendered = render(&marked, false).ok()?;
    let (head, tail) = rendered.split_once(marker.as_str())?;
    if tail.contains(marker.as_str()) || !text.starts_with(head) || !text[head.len()..].ends_with(tail) {
        return None;
    }
    // What the template adds after the answer when nothing follows.
    let alone = render(&marked[..=at], false).ok()?;
    let (_, closing) = alone.split_once(marker.as_str())?;
    let shared =
        closing.chars().zip(tail.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum::<usize>();
    // The header of the answer is not trained; what the template puts between header and answer is trained.
    let start = match (render(&messages[..at], true), render(&messages[..at], false)) {
        (Ok(open), _) if head.starts_with(&open) => open.len(),
        (Ok(open), Ok(closed)) => match open.strip_prefix(&closed).filter(|opening| !opening.is_empty()) {
            Some(opening) => head.rfind(opening).map_or(head.len(), |start| start + opening.len()),
            None => head.len(),
        },
        _ => head.len(),
    };
    Some(start..text.len() - tail.len() + shared)
}
