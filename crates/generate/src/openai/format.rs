//! How templates write tool calls, and grammars of answers with calls in that form.

use serde_json::{Value, json};

use super::{Choice, Tool};
use crate::grammar::{Constraint, GrammarError};
use crate::text::Tokenizer;

/// The form of tool calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Qwen, SmolLM, LFM and others after Hermes: `<tool_call>\n{"name": …, "arguments": …}\n</tool_call>`.
    Hermes,
    /// Llama 3: the answer is `{"name": …, "parameters": …}`, one call.
    Llama3,
    /// Mistral: `[TOOL_CALLS][{"name": …, "arguments": …}, …]`.
    Mistral,
    /// The template knows no tools (Gemma and others): they are described in the system text, in Hermes' form.
    Described,
}

impl Format {
    /// The form that a template writes.
    pub fn of(template: &str) -> Format {
        let has = |part: &str| template.contains(part);
        if !has("tools") {
            Format::Described
        } else if has("[TOOL_CALLS]") && !has("[ARGS]") {
            Format::Mistral
        } else if has("<tool_call>") && !has("<function=") {
            Format::Hermes
        } else if has("ipython") && has("\"parameters\": ") {
            Format::Llama3
        } else {
            Format::Described
        }
    }

    /// What begins the first call.
    pub(super) fn opening(self) -> &'static str {
        match self {
            Format::Hermes | Format::Described => "<tool_call>",
            Format::Llama3 => "{\"name\": \"",
            Format::Mistral => "[TOOL_CALLS]",
        }
    }

    /// Whether calls are only at the start of an answer.
    pub(super) fn begins_answer(self) -> bool {
        self == Format::Llama3
    }

    /// What stands between a call's name and its arguments.
    pub(super) fn between(self) -> &'static str {
        match self {
            Format::Llama3 => "\", \"parameters\": ",
            _ => "\", \"arguments\": ",
        }
    }

    /// The id of a call, from a random number.
    pub fn call_id(self, random: u64) -> String {
        match self {
            // Its template takes nine letters and digits.
            Format::Mistral => format!("{:09x}", random & 0xf_ffff_ffff),
            _ => format!("call_{random:016x}"),
        }
    }

    /// The grammar of an answer.
    ///
    /// # Errors
    /// A schema is too large.
    pub(super) fn lark(
        self,
        tools: &[Tool],
        choice: &Choice,
        parallel: bool,
        tokenizer: &Tokenizer,
    ) -> Result<String, GrammarError> {
        let opening = Token::of(self.opening(), tokenizer);
        let call = |(index, tool): (usize, &Tool)| {
            let head = quoted(&format!("{{\"name\": \"{}{}", tool.name, self.between()));
            let schema = Constraint::schema_in_lark(&tool.parameters)?;
            Ok(format!("call_{index}: {head} %json {schema} \"}}\"\n"))
        };
        let mut rules = tools.iter().enumerate().map(call).collect::<Result<String, GrammarError>>()?;
        let names: Vec<String> = (0..tools.len()).map(|index| format!("call_{index}")).collect();
        rules.push_str(&format!("call: {}\n", names.join(" | ")));
        let several = parallel && !matches!(choice, Choice::Named(_));
        let repeat = |between: &str| if several { format!("({between})*") } else { String::new() };
        // The calls behind the opening.
        let rest = match self {
            Format::Hermes | Format::Described => {
                let close = Token::of("</tool_call>", tokenizer).lark;
                let next = repeat(&format!("\"\\n\" {} \"\\n\" call \"\\n\" {close}", opening.lark));
                format!("\"\\n\" call \"\\n\" {close} {next}")
            }
            Format::Llama3 => "call".into(),
            Format::Mistral => format!("\" \"? \"[\" call {} \"]\"", repeat("\", \" call")),
        };
        rules.push_str(&format!("rest: {rest}\n"));
        let calls = if self.begins_answer() { "rest".to_string() } else { format!("{} rest", opening.lark) };
        if *choice != Choice::Auto {
            return Ok(format!("start: {calls}\n{rules}"));
        }
        let stop = expression(self.opening());
        let plain = if self.begins_answer() {
            format!("PLAIN: /(?s:.+)/ & ~/{stop}(?s:.*)/\n")
        } else {
            format!("PLAIN: /(?s:.+)/ & ~/(?s:.*){stop}(?s:.*)/\n")
        };
        rules.push_str(&plain);
        // Tokens of the vocabulary's own that text may hold, such as <think>.
        let others = others(tokenizer, &["<tool_call>", "</tool_call>", self.opening()]);
        let text = match others {
            Some(others) => format!("text: (PLAIN? {others})* PLAIN?\n"),
            None => "text: PLAIN?\n".into(),
        };
        let start = match (self.begins_answer(), opening.is_token) {
            (true, _) => "start: text | rest\n".to_string(),
            (false, true) => format!("start: text ({calls})?\n"),
            // As characters, the opening ends the text before it as soon as it is there.
            (false, false) => format!("start: text | before rest\nbefore[lazy]: /(?s:.*){stop}/\n"),
        };
        Ok(format!("{start}{text}{rules}"))
    }

    /// The conversation for a template that knows no tools: they are described in a system text, calls become texts,
    /// and results become turns of the user.
    pub fn describe(messages: Vec<Value>, tools: &[Value]) -> Vec<Value> {
        let mut told: Vec<Value> = Vec::new();
        if !tools.is_empty() {
            let list: Vec<String> = tools.iter().map(|tool| tool["function"].to_string()).collect();
            let text = format!(
                "You may call functions. Each line describes one:\n{}\n\nTo call one, end your answer with its name and \
                 arguments in this form, and write nothing after it:\n<tool_call>\n{{\"name\": \"NAME\", \"arguments\": \
                 {{…}}}}\n</tool_call>",
                list.join("\n")
            );
            told.push(json!({"role": "system", "content": text}));
        }
        for mut message in messages {
            let mut text = message["content"].as_str().unwrap_or_default().to_string();
            if let Some(Value::Array(calls)) = message.as_object_mut().and_then(|map| map.remove("tool_calls")) {
                for call in calls {
                    let call = json!({"name": call["function"]["name"], "arguments": call["function"]["arguments"]});
                    let gap = if text.is_empty() { "" } else { "\n" };
                    text.push_str(&format!("{gap}<tool_call>\n{call}\n</tool_call>"));
                }
            }
            if message["role"] == "tool" {
                text = format!("<tool_response>\n{text}\n</tool_response>");
                message = json!({"role": "user", "content": ""});
            }
            let role = message["role"].clone();
            // Templates want turns that alternate.
            match told.last_mut() {
                Some(last) if last["role"] == role && (role == "user" || role == "system") => {
                    last["content"] = json!(format!("{}\n\n{text}", last["content"].as_str().unwrap_or_default()));
                }
                _ => {
                    message["content"] = json!(text);
                    told.push(message);
                }
            }
        }
        told
    }
}

/// A text that is one token of the vocabulary, or several.
struct Token {
    lark: String,
    is_token: bool,
}

impl Token {
    fn of(text: &str, tokenizer: &Tokenizer) -> Token {
        // Only tokens beside the text are one id in a grammar.
        match tokenizer.id(text).filter(|&id| tokenizer.token_bytes(id).is_none()) {
            Some(id) => Token { lark: format!("<[{id}]>"), is_token: true },
            None => Token { lark: quoted(text), is_token: false },
        }
    }
}

/// Added tokens that are no control tokens, as one symbol.
fn others(tokenizer: &Tokenizer, except: &[&str]) -> Option<String> {
    let other = |id: &u32| {
        let token = tokenizer.token(*id).unwrap_or_default();
        tokenizer.token_bytes(*id).is_none()
            && !token.is_empty()
            && !tokenizer.is_special(*id)
            && !except.contains(&token.as_str())
    };
    let ids = 0..=tokenizer.largest_id()?;
    let ids: Vec<String> = ids.filter(other).map(|id| id.to_string()).collect();
    (!ids.is_empty()).then(|| format!("<[{}]>", ids.join(",")))
}

/// A text as Lark quotes it.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// A regular expression for exactly this text, between slashes.
fn expression(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_ascii_alphanumeric() || "_ <>\":".contains(c) { c.to_string() } else { format!("\\{c}") })
        .collect()
}
