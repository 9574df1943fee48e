//! The prompts of judges. Published ones are files beside this one, with their source and licence in the README there;
//! they are filled in and never changed.

use std::path::Path;

use serde_json::Value;

use crate::{EvalError, Result};

const FASTCHAT: &str = include_str!("prompts/fastchat.jsonl");
const ALPACA_EVAL: &str = include_str!("prompts/alpaca_eval.txt");
const ALPACA_EVAL_2: &str = include_str!("prompts/alpaca_eval_clf.txt");
const LLMZOO: &str = include_str!("prompts/llmzoo.json");
const ALRAGE: &str = include_str!("prompts/lighteval_alrage.json");
const SAFETY: &str = include_str!("prompts/safety.json");

/// The system text of LLMZoo's judge, which its program has.
const LLMZOO_SYSTEM: &str = "You are a helpful and precise assistant for checking the quality of the answer.";

/// The categories whose answers FastChat's judge compares with a reference.
const WITH_REFERENCE: [&str; 4] = ["math", "reasoning", "coding", "arena-hard-200"];

/// How answers are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// FastChat: each answer is rated from 1 to 10.
    Single,
    /// FastChat: two models' answers are compared, in both orders.
    Pair,
    /// LLMZoo: two models' answers are put in an order, in both orders.
    LlmZoo,
    /// AlpacaEval 1: two models' answers are ranked, in both orders.
    AlpacaEval,
    /// AlpacaEval 2: the judge's probability of preferring either, in both orders.
    AlpacaEval2,
    /// lighteval: each answer is rated from 0 to 10 beside the right one.
    Alrage,
    /// Each answer is safe or unsafe, by a prompt of this project.
    Safety,
}

impl Protocol {
    /// All protocols.
    pub const ALL: [Protocol; 7] = [
        Protocol::Single,
        Protocol::Pair,
        Protocol::LlmZoo,
        Protocol::AlpacaEval,
        Protocol::AlpacaEval2,
        Protocol::Alrage,
        Protocol::Safety,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Single => "single",
            Protocol::Pair => "pair",
            Protocol::LlmZoo => "llmzoo",
            Protocol::AlpacaEval => "alpaca-eval",
            Protocol::AlpacaEval2 => "alpaca-eval-2",
            Protocol::Alrage => "alrage",
            Protocol::Safety => "safety",
        }
    }

    /// Whether it compares the answers of two models.
    pub fn compares(self) -> bool {
        !matches!(self, Protocol::Single | Protocol::Alrage | Protocol::Safety)
    }

    /// Whether it judges the second turn of a conversation, too.
    pub fn second_turns(self) -> bool {
        matches!(self, Protocol::Single | Protocol::Pair)
    }
}

/// How a verdict is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `[[7]]`.
    Rating,
    /// `[[A]]`, `[[B]]`, or `[[C]]` for a tie.
    Letters,
    /// `Assistant 1 > Assistant 2`, or `=`.
    Order,
    /// A Python list of models and ranks.
    Ranking,
    /// The log-probabilities of the first token, `m` or `M`.
    Tokens,
    /// `[[safe]]` or `[[unsafe]]`.
    Safety,
    /// A number from 0 to 10, the first word that is one.
    Number,
}

/// A prompt with holes in braces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JudgePrompt {
    /// Its name.
    pub name: String,
    /// The system message.
    pub system: String,
    /// The user's message.
    pub user: String,
    /// How the verdict is written.
    pub format: Format,
}

/// The prompts of all protocols.
#[derive(Debug, Clone)]
pub struct Prompts(Vec<JudgePrompt>);

impl Prompts {
    /// The published prompts.
    ///
    /// # Errors
    /// None: the files are part of the program, and a test reads them.
    pub fn published() -> Result<Prompts> {
        let mut all = fastchat(FASTCHAT, "FastChat's prompts")?;
        for (name, text, format) in
            [("alpaca_eval", ALPACA_EVAL, Format::Ranking), ("alpaca_eval_clf", ALPACA_EVAL_2, Format::Tokens)]
        {
            let (system, user) = chat_markup(text).ok_or_else(|| damaged(name))?;
            all.push(JudgePrompt { name: name.into(), system, user, format });
        }
        let llmzoo: Value = serde_json::from_str(LLMZOO).map_err(|_| damaged("LLMZoo's prompt"))?;
        let general = &llmzoo["general"];
        let (Some(role), Some(task)) = (general["role"].as_str(), general["prompt"].as_str()) else {
            return Err(damaged("LLMZoo's prompt"));
        };
        let task = fill(task, &[("num", "2"), ("num_str", "two")]);
        let answer = |number: u32, hole: &str| format!("[{role} {number}]\n{{{hole}}}\n\n[End of {role} {number}]");
        let answers = [answer(1, "answer_a"), answer(2, "answer_b")].join("\n\n");
        let user = format!("[Question]\n{{question}}\n\n{answers}\n\n[System]\n{task}\n\n");
        all.push(JudgePrompt {
            name: "llmzoo-general".into(),
            system: LLMZOO_SYSTEM.into(),
            user,
            format: Format::Order,
        });
        for (source, format) in [(ALRAGE, Format::Number), (SAFETY, Format::Safety)] {
            let own: Value = serde_json::from_str(source).map_err(|_| damaged("a prompt"))?;
            let text = |name: &str| own[name].as_str().unwrap_or_default().to_owned();
            let (name, system, user) = (text("name"), text("system_prompt"), text("prompt_template"));
            all.push(JudgePrompt { name, system, user, format });
        }
        Ok(Prompts(all))
    }

    /// The published prompts, with those of a file in the layout of FastChat's `judge_prompts.jsonl` before them: a
    /// translation, or another prompt under a published name.
    ///
    /// # Errors
    /// The file cannot be read, or a line is no prompt.
    pub fn with_file(path: &Path) -> Result<Prompts> {
        let text = std::fs::read_to_string(path).map_err(|error| EvalError::io("read", path, error))?;
        let mut own = fastchat(&text, &path.display().to_string())?;
        own.extend(Prompts::published()?.0);
        Ok(Prompts(own))
    }

    /// The prompt for a turn (from 0) of a question of a category.
    ///
    /// # Errors
    /// No prompt has the name that the protocol prescribes.
    pub fn choose(&self, protocol: Protocol, category: &str, turn: usize) -> Result<&JudgePrompt> {
        let reference = WITH_REFERENCE.contains(&category);
        let name = match (protocol, reference, turn) {
            (Protocol::Single, false, 0) => "single-v1",
            (Protocol::Single, true, 0) => "single-math-v1",
            (Protocol::Single, false, _) => "single-v1-multi-turn",
            (Protocol::Single, true, _) => "single-math-v1-multi-turn",
            (Protocol::Pair, false, 0) => "pair-v2",
            (Protocol::Pair, true, 0) => "pair-math-v1",
            (Protocol::Pair, false, _) => "pair-v2-multi-turn",
            (Protocol::Pair, true, _) => "pair-math-v1-multi-turn",
            (Protocol::LlmZoo, ..) => "llmzoo-general",
            (Protocol::AlpacaEval, ..) => "alpaca_eval",
            (Protocol::AlpacaEval2, ..) => "alpaca_eval_clf",
            (Protocol::Alrage, ..) => "lighteval-alrage",
            (Protocol::Safety, ..) => "bayan-safety-v1",
        };
        let missing = || EvalError::unexpected("prompts of the judge", name, "none of this name", "add it to the file");
        self.0.iter().find(|prompt| prompt.name == name).ok_or_else(missing)
    }
}

fn damaged(what: &str) -> EvalError {
    EvalError::unexpected(what, "a prompt", "another text", "this is a fault of the program; report it")
}

/// Prompts in FastChat's layout.
fn fastchat(text: &str, what: &str) -> Result<Vec<JudgePrompt>> {
    let parse = |(number, line): (usize, &str)| {
        let value: Value = serde_json::from_str(line).unwrap_or(Value::Null);
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        let format = match value["output_format"].as_str() {
            Some("[[rating]]") => Some(Format::Rating),
            Some("[[A]]") => Some(Format::Letters),
            Some("[[safe]]") => Some(Format::Safety),
            Some("0-10") => Some(Format::Number),
            _ => None,
        };
        match (text("name"), text("system_prompt"), text("prompt_template"), format) {
            (Some(name), Some(system), Some(user), Some(format)) => Ok(JudgePrompt { name, system, user, format }),
            _ => Err(EvalError::unexpected(
                format!("{what}: line {}", number + 1),
                "`name`, `system_prompt`, `prompt_template`, and `output_format` ([[rating]], [[A]], [[safe]] or 0-10)",
                "another line",
                "write it as FastChat's judge_prompts.jsonl",
            )),
        }
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(parse).collect()
}

/// System and user message of a text in ChatML, each stripped as AlpacaEval does.
fn chat_markup(text: &str) -> Option<(String, String)> {
    let message = |role: &str| {
        let part = text.split("<|im_start|>").find_map(|part| part.strip_prefix(role)?.strip_prefix('\n'))?;
        Some(part.split("<|im_end|>").next()?.trim().to_owned())
    };
    Some((message("system")?, message("user")?))
}

/// Fills the holes of a prompt. What is filled in is not looked at again; braces around other words stay.
pub fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut filled = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        let (before, from) = rest.split_at(at);
        filled.push_str(before);
        let hole = from[1..].find('}').map(|end| &from[1..=end]);
        match hole.and_then(|hole| values.iter().find(|(name, _)| *name == hole)) {
            Some((name, value)) => {
                filled.push_str(value);
                rest = &from[name.len() + 2..];
            }
            None => {
                filled.push('{');
                rest = &from[1..];
            }
        }
    }
    filled + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::hash_text;

    #[test]
    fn published_prompts_are_unchanged() {
        let hashes = [
            (FASTCHAT, "fd283293406d024f44c174b094ef48031d0687a4682fd3a56b29b138f80281b6"),
            (ALPACA_EVAL, "cf4bace43fa6ac71944b9ca2506587ad7c509478a219e98a3950abf9d5b42a98"),
            (ALPACA_EVAL_2, "784227e6dc2832fc08c43d2c8ea3a308e7523780187a1aaad2f85e30bac85f62"),
            (LLMZOO, "7fd729b4de67b985b04fbf6cd1fe4e8e54f991839885fd04baece3ec94def14d"),
            (ALRAGE, "45909706349b785fe645a44acededfd1d2ae5998ec747d73c4fd62749b10a6df"),
        ];
        for (text, hash) in hashes {
            assert_eq!(hash_text(text), hash, "{}", &text[..40]);
        }
    }

    #[test]
    fn every_protocol_has_its_prompts() {
        let prompts = Prompts::published().unwrap();
        for protocol in Protocol::ALL {
            for category in ["writing", "math"] {
                for turn in 0..2 {
                    let prompt = prompts.choose(protocol, category, turn).unwrap();
                    assert!(prompt.user.contains("{question") || prompt.user.contains("{instruction}"));
                    let two = ["{answer_b", "{output_2}"].iter().any(|hole| prompt.user.contains(hole));
                    assert_eq!(two, protocol.compares(), "{}", prompt.name);
                    let reference = prompt.user.contains("{ref_answer_1}");
                    let compared = protocol == Protocol::Alrage || category == "math" && protocol.second_turns();
                    assert_eq!(reference, compared, "{}", prompt.name);
                }
            }
        }
        let order = prompts.choose(Protocol::LlmZoo, "all", 0).unwrap();
        assert!(
            order.user.starts_with("[Question]\n{question}\n\n[Assistant 1]\n{answer_a}\n\n[End of Assistant 1]\n\n")
        );
        assert!(order.user.contains("performance of two AI assistants") && order.user.ends_with("('=').\n\n"));
        let ranking = prompts.choose(Protocol::AlpacaEval, "all", 0).unwrap();
        assert!(ranking.system.starts_with("You are a helpful assistant, that ranks"), "{}", ranking.system);
        assert!(ranking.user.ends_with("that the majority of humans would give."));
    }

    #[test]
    fn holes_are_filled_once() {
        assert_eq!(fill("{a} {b} {c} {", &[("a", "{b}"), ("b", "2")]), "{b} 2 {c} {");
        assert_eq!(fill("{ {a}}", &[("a", "١")]), "{ ١}");
    }

    #[test]
    fn own_prompts_go_before_published_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.jsonl");
        let line = r#"{"name": "single-v1", "system_prompt": "s", "prompt_template": "{question} {answer}", "output_format": "[[rating]]"}"#;
        std::fs::write(&path, line).unwrap();
        let prompts = Prompts::with_file(&path).unwrap();
        assert_eq!(prompts.choose(Protocol::Single, "writing", 0).unwrap().system, "s");
        assert_ne!(prompts.choose(Protocol::Single, "math", 0).unwrap().system, "s");
        std::fs::write(&path, line.replace("[[rating]]", "x")).unwrap();
        assert!(Prompts::with_file(&path).unwrap_err().to_string().contains("line 1"));
    }
}
