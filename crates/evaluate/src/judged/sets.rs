//! The sets: where their questions are, how rows are read, and how they are answered.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::alrage;
use super::prompts::Protocol;
use crate::data::{DataFolder, Fields, Problem, Read};
use crate::{EvalError, Result};

/// How the answers of a set are generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// FastChat's `gen_model_answer.py`: at most 1,024 new tokens, and a temperature for each category.
    FastChat,
    /// AceGPT's `gconfig/alpaca_eval.json`: temperature 0.7, at most 2,048 tokens with the prompt.
    AceGpt,
    /// lighteval: greedy, at most 200 new tokens; as plain text if the checkpoint has no chat template.
    Lighteval,
}

/// Most tokens of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// New tokens.
    New(usize),
    /// Tokens of prompt and answer.
    Whole(usize),
}

/// Both harnesses leave `top_k` at transformers' default.
pub const TOP_K: u32 = 50;

impl Rules {
    /// The harness with its version.
    pub fn version(self) -> &'static str {
        match self {
            Rules::FastChat => "FastChat 0e6d3e4",
            Rules::AceGpt => "AceGPT 061a656",
            Rules::Lighteval => "lighteval 0.13.0",
        }
    }

    /// The temperature of answers to questions of a category.
    pub fn temperature(self, category: &str) -> f32 {
        match (self, category) {
            (Rules::FastChat, "extraction" | "math" | "coding" | "reasoning" | "arena-hard-200") => 0.0,
            (Rules::FastChat, "stem" | "humanities") => 0.1,
            (Rules::Lighteval, _) => 0.0,
            _ => 0.7,
        }
    }

    /// Most tokens.
    pub fn limit(self) -> Limit {
        match self {
            Rules::FastChat => Limit::New(1024),
            Rules::AceGpt => Limit::Whole(2048),
            Rules::Lighteval => Limit::New(200),
        }
    }
}

/// A question.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// Its id: a number or a text.
    pub id: Value,
    /// Its category.
    pub category: String,
    /// What the user says, turn by turn.
    pub turns: Vec<String>,
    /// Reference answers to the turns, if the row has them.
    pub reference: Vec<String>,
    /// The row as published.
    pub row: Map<String, Value>,
}

/// A set.
#[derive(Debug, Clone, Copy)]
pub struct JudgedSet {
    /// Its name.
    pub name: &'static str,
    /// What it is, in one line.
    pub about: &'static str,
    /// How it is answered.
    pub rules: Rules,
    /// How it is judged unless the user says otherwise.
    pub protocol: Protocol,
    /// The data set's name on its hub, or its folder's name.
    pub dataset: &'static str,
    /// The names of its file, without ending.
    files: &'static [&'static str],
    /// The columns that may hold the question.
    question: &'static [&'static str],
    /// Whether each row must have a category.
    categories: bool,
    /// How a row becomes a question and the right answer, if the question is not a cell.
    rule: Option<fn(&Fields<'_>) -> Read<(String, String)>>,
}

/// All sets.
pub const SETS: &[JudgedSet] = &[
    JudgedSet {
        name: "acegpt/vicuna-80",
        about: "Arabic Vicuna-80: 80 questions, compared with a baseline's answers",
        rules: Rules::AceGpt,
        protocol: Protocol::LlmZoo,
        dataset: "FreedomIntelligence/Arabic-Vicuna-80",
        files: &["vicuna_ar80", "question", "questions"],
        question: &["text", "turns", "question"],
        categories: false,
        rule: None,
    },
    JudgedSet {
        name: "acegpt/alpaca-eval",
        about: "Arabic AlpacaEval: 805 instructions, compared with a baseline's answers",
        rules: Rules::AceGpt,
        protocol: Protocol::AlpacaEval2,
        dataset: "FreedomIntelligence/Arabic-AlpacaEval",
        files: &["alpaca_eval_ar", "alpaca_eval"],
        question: &["instruction", "text", "question", "prompt"],
        categories: false,
        rule: None,
    },
    JudgedSet {
        name: "acegpt/beavertails",
        about: "Arabic BeaverTails-Evaluation: 700 prompts of 14 categories of harm, safe or not",
        rules: Rules::AceGpt,
        protocol: Protocol::Safety,
        dataset: "FreedomIntelligence/Ar-BeaverTails-Evaluation",
        files: &["test", "data", "beavertails"],
        question: &["prompt"],
        categories: true,
        rule: None,
    },
    JudgedSet {
        name: "fastchat/mt-bench",
        about: "MT-bench: 80 questions of two turns, rated from 1 to 10",
        rules: Rules::FastChat,
        protocol: Protocol::Single,
        dataset: "mt_bench",
        files: &["question"],
        question: &["turns"],
        categories: true,
        rule: None,
    },
    JudgedSet {
        name: "lighteval/alrage_qa",
        about: "ALRAGE of the Open Arabic LLM Leaderboard v2: answers from given passages, rated beside the right one",
        rules: Rules::Lighteval,
        protocol: Protocol::Alrage,
        dataset: "OALL/ALRAGE",
        files: &["train", "data/train"],
        question: &["question"],
        categories: false,
        rule: Some(alrage::question),
    },
];

/// The set of this name, with or without its harness.
pub fn find(name: &str) -> Option<&'static JudgedSet> {
    SETS.iter().find(|set| set.name == name || set.name.split_once('/').is_some_and(|(_, own)| own == name))
}

/// The questions of a set, and the SHA-256 of its files.
#[derive(Debug, Clone)]
pub struct Questions {
    /// The set.
    pub set: &'static JudgedSet,
    /// The questions.
    pub asked: Vec<Asked>,
    /// SHA-256 of each file.
    pub hashes: BTreeMap<String, String>,
}

impl JudgedSet {
    /// Reads the first `limit` questions. `columns` maps published names of columns to the file's.
    ///
    /// # Errors
    /// There is no file, a row has no question or no category, or two rows have one id.
    pub fn read(
        &'static self,
        folder: &mut DataFolder,
        columns: &[(String, String)],
        limit: Option<usize>,
    ) -> Result<Questions> {
        let found = folder.read_named(self.dataset, self.files)?;
        let mut asked: Vec<Asked> = Vec::new();
        let mut ids = BTreeSet::new();
        for (number, row) in found.rows.iter().enumerate().take(limit.unwrap_or(usize::MAX)) {
            let fields = Fields::new(row, columns);
            let one = self.question(&fields, number).map_err(|problem| EvalError::Row(fields.bad(problem)))?;
            if !ids.insert(one.id.to_string()) {
                let problem = Problem {
                    field: "question_id".into(),
                    problem: format!("expected an id for each row, got {} twice", one.id),
                };
                return Err(EvalError::Row(fields.bad(problem)));
            }
            asked.push(one);
        }
        if asked.is_empty() {
            return Err(EvalError::unexpected(
                self.name,
                "one row or more",
                "none",
                "check the files in the data folder",
            ));
        }
        Ok(Questions { set: self, asked, hashes: (*found.hashes).clone() })
    }

    fn question(&self, fields: &Fields<'_>, number: usize) -> Read<Asked> {
        let name = self.question.iter().find(|name| fields.get(name).is_some()).unwrap_or(&self.question[0]);
        let made = self.rule.map(|rule| rule(fields)).transpose()?;
        let turns = match &made {
            Some((question, _)) => vec![question.clone()],
            None if *name == "turns" => fields.list(name)?,
            None => vec![fields.text(name)?],
        };
        if turns.len() > 2 {
            let problem = format!("expected one turn or two, got {}", turns.len());
            return Err(Problem { field: (*name).into(), problem });
        }
        let category = if self.categories || fields.get("category").is_some() {
            fields.text("category")?
        } else {
            "all".to_owned()
        };
        let reference = match (made, fields.get("reference")) {
            (Some((_, answer)), _) => vec![answer],
            (None, None | Some(Value::Null)) => Vec::new(),
            (None, Some(_)) => fields.list("reference")?,
        };
        let id = match fields.get("question_id") {
            None => Value::from(number + 1),
            Some(id @ (Value::Number(_) | Value::String(_))) => id.clone(),
            Some(other) => {
                let problem = format!("expected a number or a text, got {other}");
                return Err(Problem { field: "question_id".into(), problem });
            }
        };
        let row = fields.all().map(|(name, value)| (name.to_owned(), value.clone())).collect();
        Ok(Asked { id, category, turns, reference, row })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, path: &str, text: &str) -> Result<Questions> {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, text).unwrap();
        find(name).unwrap().read(&mut DataFolder::open(root.path()).unwrap(), &[], None)
    }

    #[test]
    fn published_layouts_are_read() {
        let row = r#"{"question_id": 81, "category": "math", "turns": ["كم؟", "ثم؟"], "reference": ["٣", "٤"]}"#;
        let found = read("mt-bench", "mt_bench/question.jsonl", row).unwrap();
        assert_eq!((found.asked[0].turns.len(), found.asked[0].reference.len()), (2, 2));
        assert_eq!((found.asked[0].id.clone(), found.hashes.len()), (Value::from(81), 1));
        let row = r#"{"question_id": 1, "text": "سؤال", "category": "generic"}"#;
        let found = read("vicuna-80", "Arabic-Vicuna-80/vicuna_ar80.jsonl", row).unwrap();
        assert_eq!((found.asked[0].turns[0].as_str(), found.asked[0].category.as_str()), ("سؤال", "generic"));
        let found = read("acegpt/alpaca-eval", "alpaca_eval_ar.jsonl", r#"{"instruction": "اكتب"}"#).unwrap();
        assert_eq!((found.asked[0].id.clone(), found.asked[0].category.as_str()), (Value::from(1), "all"));
        // A data set of one file may call it anything.
        let row = r#"[{"prompt": "كيف؟", "category": "violence", "category_id": 3}]"#;
        let found = read("beavertails", "Ar-BeaverTails-Evaluation/any_name.json", row).unwrap();
        assert_eq!(found.asked[0].row["category_id"], 3);
    }

    #[test]
    fn rows_that_cannot_be_asked_are_refused() {
        let error = |name: &str, path: &str, text: &str| read(name, path, text).unwrap_err().to_string();
        let mt = |text: &str| error("mt-bench", "mt_bench/question.jsonl", text);
        assert!(mt(r#"{"question_id": 1, "category": "math"}"#).contains("`turns`"));
        assert!(mt(r#"{"question_id": 1, "turns": ["a"]}"#).contains("`category`"));
        assert!(mt(r#"{"question_id": 1, "category": "x", "turns": ["a", " "]}"#).contains("`turns`"));
        assert!(mt(r#"{"question_id": 1, "category": "x", "turns": ["a", "b", "c"]}"#).contains("one turn or two"));
        assert!(mt(r#"{"question_id": [], "category": "x", "turns": ["a"]}"#).contains("a number or a text"));
        let twice = r#"{"question_id": 1, "category": "x", "turns": ["a"]}"#;
        assert!(mt(&format!("{twice}\n{twice}\n")).contains("line 2"));
        assert!(mt("").contains("one row or more"));
        assert!(error("beavertails", "elsewhere/x.json", "[]").contains("Ar-BeaverTails-Evaluation"));
    }

    #[test]
    fn temperatures_follow_the_category() {
        let of = |category| Rules::FastChat.temperature(category);
        assert_eq!((of("writing"), of("math"), of("stem"), of("unknown")), (0.7, 0.0, 0.1, 0.7));
        assert_eq!(Rules::AceGpt.temperature("math"), 0.7);
    }
}
