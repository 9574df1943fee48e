//! The Jinja environment in which transformers renders chat templates: `trim_blocks`, `lstrip_blocks`, loop controls,
//! `raise_exception`, `tojson`, Python's formatting of values and string methods, and `{% generation %}` blocks (which
//! mark the assistant's text for training and print their contents).

use super::budget::charge;
use super::metered::{self, json};
use super::methods::{self, charge_join, charge_replace, strip};
use super::python::{JsonStyle, dumps, str_of};
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State};

/// The cause of the error when a template calls `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Raised(pub(crate) String);

/// The environment, without any template.
pub(crate) fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_formatter(print);
    env.set_unknown_method_callback(methods::call);
    env.add_function("raise_exception", |message: &Value| -> Result<Value, Error> {
        let message = message.as_str().map_or_else(|| message.to_string(), str::to_owned);
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    env.add_filter("tojson", to_json);
    env.add_filter("trim", |text: &Value, chars: Option<&str>| -> Result<String, Error> {
        let text = python_str(text)?;
        charge(text.len())?;
        Ok(match chars {
            Some(chars) => text.trim_matches(|c| chars.contains(c)).to_owned(),
            None => strip(&text).to_owned(),
        })
    });
    env.add_filter("string", |value: &Value| -> Result<String, Error> {
        let text = python_str(value)?;
        charge(text.len())?;
        Ok(text)
    });
    env.add_filter("replace", |text: &Value, old: &str, new: &str| -> Result<String, Error> {
        let text = python_str(text)?;
        charge_replace(&text, old, new)?;
        Ok(text.replace(old, new))
    });
    env.add_filter("join", join);
    env.add_filter("indent", indent);
    // Excluded: filters that print for debugging (pprint) or take an unbounded width (format, batch, slice).
    for name in ["pprint", "format", "batch", "slice"] {
        env.remove_filter(name);
    }
    env.add_test("mostly_arabic", mostly_arabic);
    env.add_filter(metered::CHARGED, metered::charged);
    env.add_filter(metered::CHARGED_DEEP, metered::charged_deep);
    env.add_filter(metered::PLAIN, |value: Value| value);
    env
}

/// Python's `str` of a value; undefined prints nothing.
pub(crate) fn python_str(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(String::new()),
        ValueKind::String => Ok(value.as_str().unwrap_or_default().to_owned()),
        ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::Seq | ValueKind::Map => {
            json(value).map(|v| str_of(&v))
        }
        _ => Ok(value.to_string()),
    }
}

fn print(out: &mut Output, _state: &State, value: &Value) -> Result<(), Error> {
    let write = |out: &mut Output, text: &str| {
        charge(text.len())?;
        out.write_str(text).map_err(Error::from)
    };
    match value.as_str() {
        Some(text) => write(out, text),
        None => write(out, &python_str(value)?),
    }
}

fn to_json(value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, "tojson of an undefined value"));
    }
    let indent = match kwargs.get::<Option<Value>>("indent")? {
        None => None,
        Some(v) if v.is_none() => None,
        Some(v) => Some(match v.as_str() {
            Some(text) if text.len() <= 64 => text.to_owned(),
            _ => " ".repeat(usize::try_from(v.as_i64().unwrap_or(0).clamp(0, 64)).unwrap_or(0)),
        }),
    };
    let mut style = JsonStyle::default();
    if indent.is_some() {
        style.item_separator = ",".into();
    }
    style.indent = indent;
    style.ensure_ascii = kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    style.sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    if let Some(separators) = kwargs.get::<Option<Vec<String>>>("separators")? {
        let [item, key] = <[String; 2]>::try_from(separators).map_err(|s| {
            Error::new(ErrorKind::InvalidOperation, format!("tojson: expected 2 separators, got {}", s.len()))
        })?;
        (style.item_separator, style.key_separator) = (item, key);
    }
    kwargs.assert_all_used()?;
    let text = dumps(&json(value)?, &style);
    charge(text.len())?;
    Ok(text)
}

fn join(list: &Value, separator: Option<&str>) -> Result<String, Error> {
    let separator = separator.unwrap_or_default();
    if list.is_undefined() || list.is_none() {
        return Ok(String::new());
    }
    charge_join(separator, list)?;
    let items = match list.as_str() {
        Some(text) => text.chars().map(String::from).collect(),
        None => list.try_iter()?.map(|item| python_str(&item)).collect::<Result<Vec<_>, _>>()?,
    };
    Ok(items.join(separator))
}

fn indent(
    text: &Value,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let width = width.or(kwargs.get("width")?);
    let first = first.or(kwargs.get("first")?).unwrap_or(false);
    let blank = blank.or(kwargs.get("blank")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    let prefix = match &width {
        None => "    ".to_owned(),
        Some(width) if width.as_str().is_some() => width.as_str().unwrap_or_default().to_owned(),
        Some(width) => {
            let width = width
                .as_usize()
                .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "indent: expected a width of 0 or more"))?;
            charge(width)?;
            " ".repeat(width)
        }
    };
    let text = python_str(text)?;
    charge(text.matches('\n').count().saturating_add(1).saturating_mul(prefix.len()).saturating_add(text.len()))?;
    let lines = text.split('\n').enumerate().map(|(i, line)| {
        let indented = if i == 0 { first } else { blank || !line.trim().is_empty() };
        if indented { format!("{prefix}{line}") } else { line.to_owned() }
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// Whether a text has more Arabic than Latin letters: Jais's handler chooses the language of its instruction by this.
fn mostly_arabic(text: &Value) -> bool {
    let text = text.as_str().unwrap_or_default();
    let arabic = text.chars().filter(|c| matches!(c, '\u{620}'..='\u{64A}' | '\u{66E}'..='\u{6D3}')).count();
    arabic > text.chars().filter(char::is_ascii_alphabetic).count()
}

/// The source with each `{% generation %}` block replaced by an `if` that is always true, whitespace control kept. Tags
/// in comments, strings and raw blocks are unchanged.
pub(crate) fn without_generation_tags(source: &str) -> String {
    if !source.contains("generation") {
        return source.to_owned();
    }
    let mut out = String::with_capacity(source.len());
    let (mut rest, mut raw) = (source, false);
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let (tag, after) = match rest.as_bytes().get(1) {
            Some(b'#') if !raw => split_after(rest, "#}", false),
            Some(b'{') if !raw => split_after(rest, "}}", true),
            Some(b'%') => split_after(rest, "%}", !raw),
            _ => rest.split_at(1),
        };
        let word = tag
            .strip_prefix("{%")
            .and_then(|t| t.strip_suffix("%}"))
            .map(|t| t.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+'));
        raw = match word {
            Some("raw") => true,
            Some("endraw") => false,
            _ => raw,
        };
        match word {
            Some("generation") if !raw => out.push_str(&tag.replacen("generation", "if true", 1)),
            Some("endgeneration") if !raw => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Splits after the first `end`; with `quotes`, an `end` in a quoted string does not count. Without any the first part
/// is all of it.
fn split_after<'a>(text: &'a str, end: &str, quotes: bool) -> (&'a str, &'a str) {
    let bytes = text.as_bytes();
    let (mut at, mut quote) = (2, None);
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (None, _) if bytes[at..].starts_with(end.as_bytes()) => return text.split_at(at + end.len()),
            (None, q @ (b'"' | b'\'')) if quotes => quote = Some(q),
            (Some(_), b'\\') => at += 1,
            (Some(q), b) if b == q => quote = None,
            _ => {}
        }
        at += 1;
    }
    (text, "")
}
