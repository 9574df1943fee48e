//! The fields of a request's JSON. Each field is taken once, with the values that it may have; what is left over at the
//! end is unknown, and is reported to the client instead of being ignored in silence.

use bayan_generate::openai::kind;
use serde_json::{Map, Value};

use crate::error::ApiError;

/// The fields of a request that have not been taken yet.
pub(crate) struct Fields {
    map: Map<String, Value>,
    ignored: Vec<String>,
}

impl Fields {
    /// Parses the body of a request.
    pub(crate) fn parse(body: &[u8]) -> Result<Fields, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Fields { map, ignored: Vec::new() }),
            Ok(other) => Err(ApiError::request(format!("expected a JSON object, got {}", kind(&other)))),
            Err(error) => Err(ApiError::request(format!("the body is not valid JSON: {error}"))),
        }
    }

    /// A field's value; null is the same as no value.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name).filter(|value| !value.is_null())
    }

    /// A field's value, which stays.
    pub(crate) fn look(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Gives a field the name that another interface has for it, unless that is there too.
    pub(crate) fn rename(&mut self, name: &str, other: &str) {
        if !self.map.contains_key(other)
            && let Some(value) = self.map.shift_remove(name)
        {
            self.map.insert(other.to_string(), value);
        }
    }

    fn typed<T>(
        &mut self,
        name: &str,
        expected: &str,
        convert: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        convert(&value).map(Some).ok_or_else(|| {
            let got = match &value {
                Value::Number(_) | Value::Bool(_) => value.to_string(),
                other => kind(other).to_string(),
            };
            ApiError::field(name, format!("`{name}`: expected {expected}, got {got}"))
        })
    }

    /// A text.
    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        self.typed(name, "a string", |value| value.as_str().map(str::to_string))
    }

    /// True or false.
    pub(crate) fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        self.typed(name, "true or false", Value::as_bool)
    }

    /// A number of a range.
    pub(crate) fn number(&mut self, name: &str, least: f64, most: f64) -> Result<Option<f32>, ApiError> {
        let expected = format!("a number from {least} to {most}");
        self.typed(name, &expected, |value| {
            value.as_f64().filter(|number| (least..=most).contains(number)).map(|number| number as f32)
        })
    }

    /// A whole number of a range.
    pub(crate) fn integer(&mut self, name: &str, least: i64, most: i64) -> Result<Option<i64>, ApiError> {
        let expected = format!("a whole number from {least} to {most}");
        // Some clients write 5.0.
        let whole =
            |value: &Value| value.as_i64().or_else(|| value.as_f64().filter(|n| n.fract() == 0.0).map(|n| n as i64));
        self.typed(name, &expected, |value| whole(value).filter(|number| (least..=most).contains(number)))
    }

    /// A string, or a list of strings.
    pub(crate) fn texts(&mut self, name: &str) -> Result<Vec<String>, ApiError> {
        let list = |value: &Value| match value {
            Value::String(text) => Some(vec![text.clone()]),
            Value::Array(list) => list.iter().map(|text| text.as_str().map(str::to_string)).collect(),
            _ => None,
        };
        Ok(self.typed(name, "a string or a list of strings", list)?.unwrap_or_default())
    }

    /// An object.
    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, ApiError> {
        self.typed(name, "an object", |value| value.as_object().cloned())
    }

    /// Refuses a field that is not supported, unless its value asks for nothing.
    pub(crate) fn refuse(&mut self, name: &str, asks_nothing: impl Fn(&Value) -> bool) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !asks_nothing(&value) => {
                Err(ApiError::field(name, format!("`{name}` is not supported; leave it out")).with_code("unsupported"))
            }
            _ => Ok(()),
        }
    }

    /// Takes fields that are known and have no effect.
    pub(crate) fn without_effect(&mut self, names: &[&str]) {
        self.ignored
            .extend(names.iter().filter(|name| self.map.shift_remove(**name).is_some()).map(|name| name.to_string()));
    }

    /// The names of all fields that had no effect.
    pub(crate) fn ignored(mut self) -> Vec<String> {
        self.ignored.extend(self.map.into_iter().map(|(name, _)| name));
        self.ignored
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn every_field_is_read_refused_or_reported() {
        let mut found = fields(r#"{"a": 1, "b": null, "user": "x", "odd": {}, "tools": [], "stop": ["س", "ب"]}"#);
        assert_eq!(found.integer("a", 0, 5).unwrap(), Some(1));
        assert_eq!(found.text("b").unwrap(), None);
        assert_eq!(found.texts("stop").unwrap(), ["س", "ب"]);
        found.refuse("tools", |value| value.as_array().is_some_and(Vec::is_empty)).unwrap();
        found.without_effect(&["user", "metadata"]);
        assert_eq!(found.ignored(), ["user", "odd"]);
    }

    #[test]
    fn wrong_values_name_their_field() {
        let mut found = fields(r#"{"n": 9, "t": "hot", "s": [1], "f": 1, "tools": [1], "i": 1.5, "w": 5.0}"#);
        let error = found.integer("n", 1, 8).unwrap_err();
        assert_eq!(error.message, "`n`: expected a whole number from 1 to 8, got 9");
        assert_eq!(error.param.as_deref(), Some("n"));
        assert!(found.number("t", 0.0, 2.0).unwrap_err().message.contains("got a string"));
        assert!(found.texts("s").is_err() && found.flag("f").is_err() && found.integer("i", 0, 9).is_err());
        assert_eq!(found.integer("w", 0, 9).unwrap(), Some(5));
        assert!(found.refuse("tools", |_| false).is_err());
        assert!(Fields::parse(b"[]").is_err() && Fields::parse(b"{").is_err() && Fields::parse(b"\xff").is_err());
        assert!(Fields::parse("[".repeat(100_000).as_bytes()).is_err());
    }
}
