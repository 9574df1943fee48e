//! Which modules get an adapter: PEFT's rules for `target_modules`, `layers_to_transform`, `rank_pattern` and
//! `alpha_pattern`.
//!
//! The patterns are Python regular expressions. They run in an engine with look-ahead, which published adapters use,
//! and with a limit on backtracking. Rejected: a linear-time engine, because it cannot run expressions that PEFT
//! accepts.

use fancy_regex::{Regex, RegexBuilder};
use serde_json::Value;

use super::error::AdapterError;

const MAX_PATTERNS: usize = 1024;
const MAX_PATTERN_BYTES: usize = 16 << 10;
const BACKTRACK_LIMIT: usize = 100_000;
const SIMPLIFY: &str = "write a simpler expression, or a list of module names";

/// The modules that get an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetModules {
    /// Module names or the ends of such names, for example `q_proj`.
    Names(Vec<String>),
    /// A regular expression that the whole module name must match.
    Regex(String),
    /// All linear layers except the output head.
    AllLinear,
}

impl TargetModules {
    /// Parses a list, a regular expression or `"all-linear"`.
    ///
    /// # Errors
    /// Any other value, and an expression that does not compile.
    pub fn from_json(field: &str, value: &Value) -> Result<Self, AdapterError> {
        let remedy = "give module names such as [\"q_proj\", \"v_proj\"], one regular expression, or \"all-linear\"";
        let bad = |got: &Value| {
            AdapterError::config(field, "a list of names, a regular expression or \"all-linear\"", got, remedy)
        };
        match value {
            Value::String(text) if text.eq_ignore_ascii_case("all-linear") => Ok(Self::AllLinear),
            Value::String(text) if text.is_empty() => Err(bad(value)),
            Value::String(text) => Matcher::compile(field, &full(text)).map(|_| Self::Regex(text.clone())),
            Value::Array(list) if list.len() <= 100_000 => {
                let names: Option<Vec<String>> =
                    list.iter().map(|v| v.as_str().filter(|s| !s.is_empty()).map(str::to_owned)).collect();
                names.map(Self::Names).ok_or_else(|| bad(value))
            }
            other => Err(bad(other)),
        }
    }

    /// The value as PEFT writes it; names are sorted.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Names(names) => {
                let mut names = names.clone();
                names.sort();
                names.dedup();
                Value::from(names)
            }
            Self::Regex(text) => Value::from(text.as_str()),
            Self::AllLinear => Value::from("all-linear"),
        }
    }
}

/// [`TargetModules`] with its expression compiled.
#[derive(Debug)]
pub(crate) struct Matcher {
    field: &'static str,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Names(Vec<String>),
    Regex(Regex),
    AllLinear,
}

fn full(pattern: &str) -> String {
    format!(r"\A(?:{pattern})\z")
}

impl Matcher {
    pub(crate) fn new(field: &'static str, targets: &TargetModules) -> Result<Self, AdapterError> {
        let kind = match targets {
            TargetModules::Names(names) => Kind::Names(names.clone()),
            TargetModules::Regex(text) => Kind::Regex(Self::compile(field, &full(text))?),
            TargetModules::AllLinear => Kind::AllLinear,
        };
        Ok(Self { field, kind })
    }

    fn compile(field: &str, pattern: &str) -> Result<Regex, AdapterError> {
        if pattern.len() > MAX_PATTERN_BYTES {
            return Err(AdapterError::config(
                field,
                format!("at most {MAX_PATTERN_BYTES} bytes"),
                format!("{} bytes", pattern.len()),
                SIMPLIFY,
            ));
        }
        RegexBuilder::new(pattern)
            .backtrack_limit(BACKTRACK_LIMIT)
            .delegate_size_limit(1 << 20)
            .build()
            .map_err(|error| AdapterError::config(field, "a regular expression", error, SIMPLIFY))
    }

    /// Whether `module` is a target, and whether by its full name (PEFT then ignores `layers_to_transform`).
    pub(crate) fn finds(&self, module: &str) -> Result<Found, AdapterError> {
        let found = match &self.kind {
            Kind::Names(names) if names.iter().any(|name| name == module) => Found::Exactly,
            Kind::Names(names) => Found::by(
                names.iter().any(|name| module.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'))),
            ),
            Kind::Regex(regex) => Found::by(run(self.field, regex, module)?),
            Kind::AllLinear => Found::by(!is_output_head(module)),
        };
        Ok(found)
    }
}

/// How a module is selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    No,
    ByPattern,
    Exactly,
}

impl Found {
    fn by(found: bool) -> Self {
        if found { Self::ByPattern } else { Self::No }
    }
}

/// Whether a module is the output head, which `all-linear` excludes.
pub(crate) fn is_output_head(module: &str) -> bool {
    module.rsplit('.').next() == Some("lm_head")
}

/// The layer number in a module name, by PEFT's rule: the last component that is a number, except the first two
/// components and the last.
pub fn layer_of(module: &str) -> Option<usize> {
    let parts: Vec<&str> = module.split('.').collect();
    let last = parts.len().checked_sub(1)?;
    (2..last).rev().find_map(|at| parts[at].parse().ok().filter(|_| parts[at].bytes().all(|b| b.is_ascii_digit())))
}

/// `rank_pattern` or `alpha_pattern`: the first pattern that matches the end of a module name applies.
#[derive(Debug)]
pub(crate) struct Patterns<T> {
    field: &'static str,
    keys: Vec<(Regex, T)>,
}

impl<T: Copy> Patterns<T> {
    pub(crate) fn new(field: &'static str, pairs: &[(String, T)]) -> Result<Self, AdapterError> {
        if pairs.len() > MAX_PATTERNS {
            return Err(AdapterError::config(field, format!("at most {MAX_PATTERNS} patterns"), pairs.len(), SIMPLIFY));
        }
        let compiled = pairs
            .iter()
            .map(|(key, value)| Ok((Matcher::compile(field, &format!(r"\A(?:.*\.)?(?:{key})\z"))?, *value)));
        Ok(Self { field, keys: compiled.collect::<Result<_, AdapterError>>()? })
    }

    pub(crate) fn get(&self, module: &str) -> Result<Option<T>, AdapterError> {
        for (regex, value) in &self.keys {
            if run(self.field, regex, module)? {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }
}

fn run(field: &str, regex: &Regex, module: &str) -> Result<bool, AdapterError> {
    regex.is_match(module).map_err(|error| {
        AdapterError::config(field, "an expression that can be matched in bounded time", error, SIMPLIFY)
    })
}
