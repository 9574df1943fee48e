//! The fields of one row, as the rules of tasks read them.

use bayan_train::data::Row;
use bayan_train::{BadRow, Place};
use serde_json::Value;

use super::python;

/// What is wrong with a field: its name, and what was expected and found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The field, or empty for the whole row.
    pub field: String,
    /// What was expected, and what was found.
    pub problem: String,
}

/// The result of a rule.
pub type Read<T> = std::result::Result<T, Problem>;

/// One row. Names of columns are those of the published data; `--columns` maps them to others.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a> {
    row: &'a Row,
    columns: &'a [(String, String)],
    order: Option<&'a [usize]>,
}

fn wrong<T>(field: &str, problem: impl Into<String>) -> Read<T> {
    Err(Problem { field: field.into(), problem: problem.into() })
}

impl<'a> Fields<'a> {
    /// The fields of a row, with `columns` from published names to the file's.
    pub fn new(row: &'a Row, columns: &'a [(String, String)]) -> Fields<'a> {
        Fields { row, columns, order: None }
    }

    /// With the order that the harness shuffled this row's choices into.
    pub fn with_order(self, order: &'a [usize]) -> Fields<'a> {
        Fields { order: Some(order), ..self }
    }

    /// Choices in the order that the harness shuffled them into; as they are, if it shuffled none.
    pub fn ordered(&self, choices: Vec<String>) -> Vec<String> {
        match self.order.filter(|order| order.len() == choices.len()) {
            Some(order) => order.iter().filter_map(|&at| choices.get(at).cloned()).collect(),
            None => choices,
        }
    }

    /// The row's place.
    pub fn place(&self) -> &Place {
        &self.row.place
    }

    /// The error for a problem of this row.
    pub fn bad(&self, problem: Problem) -> BadRow {
        BadRow { place: self.row.place.clone(), field: problem.field, problem: problem.problem }
    }

    /// All names and values in the file's order, under their published names.
    pub fn all(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let published = |theirs: &'a str| {
            self.columns.iter().find(|(_, column)| column == theirs).map_or(theirs, |(ours, _)| ours.as_str())
        };
        self.row.fields.iter().map(move |(name, value)| (published(name), value))
    }

    /// A field of any kind, if the file has the column.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        let column = self.columns.iter().find(|(ours, _)| ours == name).map_or(name, |(_, theirs)| theirs.as_str());
        self.row.fields.get(column)
    }

    fn value(&self, name: &str) -> Read<&'a Value> {
        match self.get(name) {
            Some(value) => Ok(value),
            None => {
                let names: Vec<&str> = self.all().map(|(name, _)| name).take(20).collect();
                wrong(name, format!("expected this column, found {}", names.join(", ")))
            }
        }
    }

    /// A text that must not be missing or blank; numbers are printed.
    ///
    /// # Errors
    /// The column is missing, or its cell is empty or no text.
    pub fn text(&self, name: &str) -> Read<String> {
        match self.optional(name)? {
            Some(text) if !python::strip(&text).is_empty() => Ok(text),
            _ => wrong(name, "expected a text, got an empty cell"),
        }
    }

    /// A text whose cell may be empty.
    ///
    /// # Errors
    /// The column is missing, or its cell is no text.
    pub fn optional(&self, name: &str) -> Read<Option<String>> {
        match self.value(name)? {
            Value::Null => Ok(None),
            value => match python::text(value) {
                Some(text) => Ok(Some(text).filter(|text| !text.is_empty())),
                None => wrong(name, "expected a text, got a list or an object"),
            },
        }
    }

    /// The cell as Python prints it, also an empty one.
    ///
    /// # Errors
    /// The column is missing, or its cell is a list or an object.
    pub fn printed(&self, name: &str) -> Read<String> {
        match python::text(self.value(name)?) {
            Some(text) => Ok(text),
            None => wrong(name, "expected a text, got a list or an object"),
        }
    }

    /// A whole number; in csv files its digits.
    ///
    /// # Errors
    /// The column is missing, or its cell is no whole number from 0 on.
    pub fn index(&self, name: &str) -> Read<usize> {
        let value = self.value(name)?;
        let number = match value {
            Value::Number(number) => number
                .as_u64()
                .or_else(|| number.as_f64().filter(|n| n.fract() == 0.0 && (0.0..1e9).contains(n)).map(|n| n as u64)),
            Value::String(text) => python::strip(text).parse().ok(),
            _ => None,
        };
        match number.and_then(|number| usize::try_from(number).ok()) {
            Some(number) => Ok(number),
            None => wrong(name, format!("expected a whole number from 0 on, got {value}")),
        }
    }

    /// A number.
    ///
    /// # Errors
    /// The column is missing, or its cell is no number.
    pub fn number(&self, name: &str) -> Read<f64> {
        let value = self.value(name)?;
        let number = match value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => python::strip(text).parse().ok().filter(|n: &f64| n.is_finite()),
            _ => None,
        };
        number.map_or_else(|| wrong(name, format!("expected a number, got {value}")), Ok)
    }

    /// Yes or no; in csv files `True` or `False`.
    ///
    /// # Errors
    /// The column is missing, or its cell is neither.
    pub fn flag(&self, name: &str) -> Read<bool> {
        match self.value(name)? {
            Value::Bool(flag) => Ok(*flag),
            Value::String(text) if text.eq_ignore_ascii_case("true") => Ok(true),
            Value::String(text) if text.eq_ignore_ascii_case("false") => Ok(false),
            value => wrong(name, format!("expected true or false, got {value}")),
        }
    }

    /// A list of texts: a list of JSON, or in csv files a list of JSON or Python in a cell.
    ///
    /// # Errors
    /// The column is missing, or its cell is no list of texts that are not blank.
    pub fn list(&self, name: &str) -> Read<Vec<String>> {
        let value = self.value(name)?;
        let texts = match value {
            Value::Array(values) => values.iter().map(python::text).collect(),
            Value::String(text) => match serde_json::from_str(text) {
                Ok(texts) => Some(texts),
                Err(_) => Some(python::list(text).or_else(|problem| wrong(name, problem))?),
            },
            _ => None,
        };
        match texts {
            Some(texts) if texts.iter().all(|text| !python::strip(text).is_empty()) && !texts.is_empty() => Ok(texts),
            _ => wrong(name, "expected a list of texts that are not empty"),
        }
    }

    /// The position of a text among those that it may be.
    ///
    /// # Errors
    /// The column is missing, or its cell is none of them.
    pub fn one_of(&self, name: &str, known: &[&str]) -> Read<usize> {
        let text = self.printed(name)?;
        match known.iter().position(|known| *known == text) {
            Some(index) => Ok(index),
            None => wrong(name, format!("expected one of {}, got {text:?}", known.join(", "))),
        }
    }

    /// Fails unless the position is that of one of `count` choices.
    ///
    /// # Errors
    /// The position is larger.
    pub fn within(&self, name: &str, index: usize, count: usize) -> Read<usize> {
        if index < count {
            Ok(index)
        } else {
            wrong(name, format!("expected one of {count} choices, got number {index}"))
        }
    }

    /// The list of texts under a key of an object.
    ///
    /// # Errors
    /// There is no such field, or it is no list of texts.
    pub fn inner_list(&self, name: &str, key: &str) -> Read<Vec<String>> {
        let found = self.inner(name, key)?;
        let texts: Option<Vec<String>> =
            found.as_array().and_then(|values| values.iter().map(|v| v.as_str().map(str::to_owned)).collect());
        texts.map_or_else(|| wrong(name, format!("expected a list of texts under `{key}`")), Ok)
    }

    /// The text under a key of an object.
    ///
    /// # Errors
    /// There is no such field, or it is no text.
    pub fn inner_text(&self, name: &str, key: &str) -> Read<String> {
        match self.inner(name, key)?.as_str() {
            Some(text) => Ok(text.to_owned()),
            None => wrong(name, format!("expected a text under `{key}`")),
        }
    }

    /// The value under a key of an object; in csv files a cell holds the object as JSON.
    fn inner(&self, name: &str, key: &str) -> Read<Value> {
        let value = self.value(name)?;
        let parsed;
        let object = match value {
            Value::String(text) => {
                parsed = serde_json::from_str(text).unwrap_or(Value::Null);
                &parsed
            }
            other => other,
        };
        match object.get(key) {
            Some(found) => Ok(found.clone()),
            None => wrong(name, format!("expected an object with `{key}`")),
        }
    }
}
