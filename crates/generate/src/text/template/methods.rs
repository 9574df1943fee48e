//! Python's methods of strings, lists and dicts for templates. minijinja-contrib has nearly all; this module adds those
//! whose white space must agree with Python, and a size check before those that can produce much text from little.

use super::budget::charge;
use minijinja::value::{ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

pub(crate) fn call(state: &State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args);
    };
    charge(text.len())?;
    match (method, args) {
        ("strip", []) => Ok(Value::from(strip(text))),
        ("lstrip", []) => Ok(Value::from(text.trim_start_matches(is_space))),
        ("rstrip", []) => Ok(Value::from(text.trim_end_matches(is_space))),
        ("strip" | "lstrip" | "rstrip", [none]) if none.is_none() => call(state, value, method, &[]),
        ("removeprefix", _) => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        ("removesuffix", _) => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        ("replace", _) => {
            let (old, new, _count): (&str, &str, Option<i64>) = from_args(args)?;
            charge_replace(text, old, new)?;
            minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
        }
        ("join", [list]) => {
            charge_join(text, list)?;
            minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
        }
        // The width in a format string can request any number of spaces.
        ("format", _) => {
            Err(Error::new(ErrorKind::UnknownMethod, "str.format is not available in chat templates; use ~ instead"))
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// Python's `str.strip()`.
pub(crate) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `str.isspace` of Python: Unicode's White_Space and the four information separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

pub(crate) fn charge_replace(text: &str, old: &str, new: &str) -> Result<(), Error> {
    let count = if old.is_empty() { text.chars().count() + 1 } else { text.matches(old).count() };
    charge(count.saturating_mul(new.len()).saturating_add(text.len()))
}

pub(crate) fn charge_join(separator: &str, list: &Value) -> Result<(), Error> {
    if list.kind() == ValueKind::String {
        let text = list.as_str().unwrap_or_default();
        return charge(text.len().saturating_mul(1 + separator.len()));
    }
    for item in list.try_iter()? {
        let bytes = if let Some(text) = item.as_str() { text.len() } else { 32 };
        charge(bytes.saturating_add(separator.len()))?;
    }
    Ok(())
}
