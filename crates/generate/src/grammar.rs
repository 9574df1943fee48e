//! Grammars: JSON schemas, regular expressions and Lark grammars that an answer must match.
//!
//! A grammar is compiled once for a request by llguidance, and then computes for every token of the answer which tokens
//! may follow; the engine bans all others. Rejected: checking whole answers and trying again, because a small model may
//! never match, and forcing text without the model, because its tokens would not be those of the tokenizer.

use std::fmt;
use std::sync::Arc;

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::text::Tokenizer;

/// Longer texts of a grammar are refused. A JSON schema is measured as compact JSON.
const LARGEST_SOURCE_BYTES: usize = 256 << 10;

/// Brackets of a regular expression or a Lark grammar may be nested this deep.
const DEEPEST_BRACKETS: usize = 100;

/// Lines of a Lark grammar: each may define a symbol, and a chain of thousands takes minutes to compile.
const MOST_LINES: usize = 500;

/// Longer tokens are left out of constrained answers; texts of any length consist of shorter ones.
const LONGEST_TOKEN_BYTES: usize = 512;

/// The bytes of a vocabulary, all tokens together; more than any in use.
const LARGEST_VOCABULARY_BYTES: usize = 4 << 20;

/// White space between two parts of a JSON document: one space, or a new line and its indent. A weak model would
/// otherwise fill its answer with spaces until the token limit cuts it.
const WHITE_SPACE: &str = r"(\x20|\x0A\x20{0,12})";

/// Compiling follows the nesting of a grammar by recursion.
#[cfg(not(target_arch = "wasm32"))]
const STACK_BYTES: usize = 64 << 20;

/// What the text of an answer must match.
#[derive(Debug, Clone, PartialEq)]
pub enum Constraint {
    /// A JSON document that this JSON schema allows.
    JsonSchema(Value),
    /// A JSON object.
    JsonObject,
    /// A regular expression in the syntax of the `regex` crate, for the whole text.
    Regex(String),
    /// A grammar in llguidance's variant of Lark.
    Lark(String),
}

impl Constraint {
    /// A JSON schema as it stands behind `%json` in a Lark grammar, with the same bounds as an answer's.
    ///
    /// # Errors
    /// The schema is too large, or no object.
    pub fn schema_in_lark(schema: &Value) -> Result<String, GrammarError> {
        let wrong = |problem| GrammarError::Source { what: "the JSON schema", problem };
        schema_source(schema).map(|schema| schema.to_string()).map_err(wrong)
    }

    /// The constraint of OpenAI's `response_format`; `None` for the type `text`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_response_format(format: &Value) -> Result<Option<Constraint>, String> {
        let schema = |holder: &Value| match holder.get("schema") {
            Some(schema @ (Value::Object(_) | Value::Bool(_))) => Ok(Some(schema.clone())),
            None | Some(Value::Null) => Ok(None),
            Some(_) => Err("`schema`: expected an object with a JSON schema".to_string()),
        };
        match format.get("type").and_then(Value::as_str) {
            Some("text") => Ok(None),
            // llama.cpp takes a schema here too.
            Some("json_object") => Ok(Some(schema(format)?.map_or(Constraint::JsonObject, Constraint::JsonSchema))),
            Some("json_schema") => {
                let holder = format.get("json_schema").filter(|holder| holder.is_object());
                let found = schema(holder.ok_or("`json_schema`: expected an object with `schema`")?)?;
                found.map(Constraint::JsonSchema).map(Some).ok_or_else(|| "`json_schema.schema` is missing".into())
            }
            _ => Err("`type`: expected text, json_object or json_schema".into()),
        }
    }
}

/// Why a constraint cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// The schema, expression or grammar is wrong, or has a part that is not supported.
    #[error("{what} cannot be used: {problem}")]
    Source {
        /// What the constraint is.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The tokenizer does not decode token by token, or its vocabulary is larger than any in use.
    #[error("answers of this model cannot be constrained: {0}")]
    Tokenizer(String),
}

/// Compiles constraints for one tokenizer.
pub struct Grammars {
    factory: ParserFactory,
    /// The id that stands for the end of an answer: the first one beyond the vocabulary.
    end: u32,
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").field("vocabulary", &self.end).finish_non_exhaustive()
    }
}

impl Grammars {
    /// Reads the vocabulary. This takes up to a second for a large one; [`Tokenizer::grammars`] keeps the result.
    ///
    /// # Errors
    /// The tokenizer does not decode token by token, or its vocabulary is larger than any in use.
    pub fn new(tokenizer: &Tokenizer) -> Result<Grammars, GrammarError> {
        if !tokenizer.decodes_each_token() {
            let problem = "its tokenizer does not decode token by token";
            return Err(GrammarError::Tokenizer(problem.into()));
        }
        let end = tokenizer.largest_id().map_or(0, |id| id + 1);
        let mut words: Vec<Vec<u8>> = (0..end).map(|id| word(tokenizer, id)).collect();
        words.push(special("<end of the answer>"));
        let bytes: usize = words.iter().map(Vec::len).sum();
        if bytes > LARGEST_VOCABULARY_BYTES {
            let problem = format!("expected tokens of {LARGEST_VOCABULARY_BYTES} bytes in all, got {bytes}");
            return Err(GrammarError::Tokenizer(problem));
        }
        let trie = TokTrie::from(&TokRxInfo::new(end + 1, end), &words);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices);
        let mut factory = factory.map_err(|error| GrammarError::Tokenizer(error.to_string()))?;
        factory.quiet();
        // Otherwise messages would contain the answer.
        *factory.limits_mut() = ParserLimits { verbose_errors: false, ..ParserLimits::default() };
        Ok(Grammars { factory, end })
    }

    /// Compiles a constraint.
    ///
    /// # Errors
    /// It is wrong, too large, or has a part that is not supported.
    pub fn compile(&self, constraint: &Constraint) -> Result<Grammar, GrammarError> {
        let what = match constraint {
            Constraint::JsonSchema(_) | Constraint::JsonObject => "the JSON schema",
            Constraint::Regex(_) => "the regular expression",
            Constraint::Lark(_) => "the grammar",
        };
        let wrong = |problem: String| GrammarError::Source { what, problem };
        let grammar = source(constraint).map_err(wrong)?;
        let matcher = guarded(|| self.factory.create_parser(grammar).map(|parser| Matcher::new(Ok(parser))));
        let mut matcher = matcher.map_err(wrong)?;
        if let Some(warning) = matcher.grammar_warnings().first() {
            return Err(wrong(warning.clone()));
        }
        Ok(Grammar { matcher, end: self.end })
    }
}

/// Compiles with a deep stack; a panic of the compiler is an error of the grammar.
#[cfg(not(target_arch = "wasm32"))]
fn guarded<E: fmt::Display>(work: impl FnOnce() -> Result<Matcher, E> + Send) -> Result<Matcher, String> {
    std::thread::scope(|scope| {
        let run = move || work().map_err(|error| error.to_string());
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, run);
        let joined = thread.map_err(|error| error.to_string())?.join();
        joined.unwrap_or_else(|_| Err("the compiler of grammars failed on it".into()))
    })
}

/// Compiles; in a browser a page has one stack, and a fault of the compiler ends the engine.
#[cfg(target_arch = "wasm32")]
fn guarded<E: fmt::Display>(work: impl FnOnce() -> Result<Matcher, E>) -> Result<Matcher, String> {
    work().map_err(|error| error.to_string())
}

/// The bytes of a token in a grammar; none if it cannot be part of a constrained text.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = match tokenizer.token_bytes(id) {
        Some(bytes) => bytes,
        None => tokenizer.token(id).map(|token| special(&token)).unwrap_or_default(),
    };
    let is_text = tokenizer.token_bytes(id).is_some();
    // llguidance marks control tokens with this byte, which UTF-8 never has.
    let fits = bytes.len() <= LONGEST_TOKEN_BYTES && !(is_text && bytes.contains(&TokTrie::SPECIAL_TOKEN_MARKER));
    if fits { bytes } else { Vec::new() }
}

fn special(name: &str) -> Vec<u8> {
    [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat()
}

/// The constraint as llguidance reads it.
fn source(constraint: &Constraint) -> Result<TopLevelGrammar, String> {
    let any_object = json!({"type": "object"});
    Ok(match constraint {
        Constraint::JsonSchema(schema) => TopLevelGrammar::from_json_schema(schema_source(schema)?),
        Constraint::JsonObject => TopLevelGrammar::from_json_schema(schema_source(&any_object)?),
        Constraint::Regex(expression) => {
            check_text(expression)?;
            TopLevelGrammar::from_regex(expression)
        }
        Constraint::Lark(grammar) => {
            check_text(grammar)?;
            let lines = grammar.lines().count();
            if lines > MOST_LINES {
                return Err(format!("expected at most {MOST_LINES} lines, got {lines}"));
            }
            TopLevelGrammar::from_lark(grammar.clone())
        }
    })
}

fn schema_source(schema: &Value) -> Result<Value, String> {
    let map = match schema {
        Value::Object(map) => map.clone(),
        Value::Bool(true) => serde_json::Map::new(),
        Value::Bool(false) => return Err("`false` allows no document".into()),
        _ => return Err("expected an object".into()),
    };
    // It would turn checks off.
    if map.contains_key("x-guidance") {
        return Err("`x-guidance` is not allowed; leave it out".into());
    }
    let bytes = schema.to_string().len();
    if bytes > LARGEST_SOURCE_BYTES {
        return Err(format!("expected at most {LARGEST_SOURCE_BYTES} bytes, got {bytes}"));
    }
    let mut whole = Value::Object(map);
    let root = whole.clone();
    apart(&mut whole, &root);
    let Value::Object(mut map) = whole else { return Err("expected an object".into()) };
    map.insert("x-guidance".into(), json!({"whitespace_pattern": WHITE_SPACE}));
    Ok(Value::Object(map))
}

/// Makes `oneOf` into `anyOf` where no document can fit two of the schemas, because they are told apart by the constant
/// of a property that all require. Other uses are left for the compiler to judge.
fn apart(schema: &mut Value, root: &Value) {
    match schema {
        Value::Array(list) => list.iter_mut().for_each(|inner| apart(inner, root)),
        Value::Object(map) => {
            map.values_mut().for_each(|inner| apart(inner, root));
            let disjoint = map.get("oneOf").and_then(Value::as_array).is_some_and(|list| are_apart(list, root));
            if disjoint
                && !map.contains_key("anyOf")
                && let Some(list) = map.remove("oneOf")
            {
                map.insert("anyOf".into(), list);
            }
        }
        _ => {}
    }
}

fn are_apart(list: &[Value], root: &Value) -> bool {
    let resolve = |schema: &'_ Value| -> Value {
        let pointer = schema.get("$ref").and_then(Value::as_str).and_then(|text| text.strip_prefix('#'));
        pointer.and_then(|pointer| root.pointer(pointer)).unwrap_or(schema).clone()
    };
    let schemas: Vec<Value> = list.iter().map(resolve).collect();
    let required = |schema: &Value, name: &str| {
        schema["type"] == "object"
            && schema["required"].as_array().is_some_and(|names| names.iter().any(|required| required == name))
    };
    let values = |schema: &Value, name: &str| -> Option<Vec<Value>> {
        let property = schema["properties"].get(name).filter(|_| required(schema, name))?;
        property.get("const").map(|value| vec![value.clone()]).or_else(|| property["enum"].as_array().cloned())
    };
    let names =
        schemas.first().and_then(|first| first["properties"].as_object()).into_iter().flat_map(|map| map.keys());
    names.into_iter().any(|name| {
        let mut seen: Vec<Value> = Vec::new();
        schemas.iter().all(|schema| {
            let own = values(schema, name).unwrap_or_default();
            let new = !own.is_empty() && own.iter().all(|value| !seen.contains(value));
            seen.extend(own);
            new
        })
    })
}

fn check_text(text: &str) -> Result<(), String> {
    if text.len() > LARGEST_SOURCE_BYTES {
        return Err(format!("expected at most {LARGEST_SOURCE_BYTES} bytes, got {}", text.len()));
    }
    let (mut depth, mut deepest) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    if deepest > DEEPEST_BRACKETS {
        return Err(format!("expected at most {DEEPEST_BRACKETS} brackets inside of each other, got {deepest}"));
    }
    Ok(())
}

/// A compiled constraint at a position of an answer. A clone starts at the same position and goes on by itself.
pub struct Grammar {
    matcher: Matcher,
    end: u32,
}

impl Clone for Grammar {
    fn clone(&self) -> Grammar {
        Grammar { matcher: self.matcher.deep_clone(), end: self.end }
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").finish_non_exhaustive()
    }
}

/// The tokens that may follow.
#[derive(Debug)]
pub struct Allowed {
    tokens: SimpleVob,
    end: u32,
}

impl Allowed {
    /// Whether this token may follow.
    pub fn token(&self, id: u32) -> bool {
        id < self.end && self.tokens.is_allowed(id)
    }

    /// Whether the answer may end here.
    pub fn end(&self) -> bool {
        self.tokens.is_allowed(self.end)
    }
}

impl Grammar {
    /// The tokens that may follow.
    ///
    /// # Errors
    /// The grammar is too ambiguous to go on.
    pub fn allowed(&mut self) -> Result<Allowed, String> {
        let tokens = self.matcher.compute_mask_or_eos().map_err(|error| error.to_string())?;
        Ok(Allowed { tokens, end: self.end })
    }

    /// Takes the next token. Returns whether the text is complete, so that nothing may follow.
    ///
    /// # Errors
    /// The token is not allowed, or the grammar is too ambiguous to go on.
    pub fn take(&mut self, id: u32) -> Result<bool, String> {
        self.matcher.consume_token(id).map_err(|error| error.to_string())?;
        Ok(self.matcher.is_stopped())
    }

    /// Whether the text may end here.
    pub fn may_end(&mut self) -> bool {
        self.matcher.is_accepting().unwrap_or(false)
    }
}
