//! What a task is: where its rows are, how a row becomes a question, and what is counted.

use crate::data::{Fields, Read, Source};

/// Whose rules a task follows. They decide how prompts are put together, encoded and scored; see [`crate::prompt`] and
/// [`crate::encode`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// lm-evaluation-harness 0.4.13.
    LmEval,
    /// lighteval 0.13.0.
    Lighteval,
    /// lighteval 0.3 to 0.7, as the first Open Arabic LLM Leaderboard ran it.
    OallV1,
    /// AceGPT's own harness, which reads the answer in generated text.
    AceGpt,
}

impl Protocol {
    /// Its name in front of tasks.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::LmEval => "lm-eval",
            Protocol::Lighteval => "lighteval",
            Protocol::OallV1 => "oall-v1",
            Protocol::AceGpt => "acegpt",
        }
    }

    /// The version of the harness whose rules these are.
    pub fn version(self) -> &'static str {
        match self {
            Protocol::LmEval => "lm-evaluation-harness 0.4.13",
            Protocol::Lighteval => "lighteval 0.13.0",
            Protocol::OallV1 => "lighteval 0.3 to 0.7",
            Protocol::AceGpt => "AceGPT 061a656",
        }
    }
}

/// A row as a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The prompt of this question alone, with its instruction.
    pub text: String,
    /// The instruction that `text` begins with, for rules that take it out again.
    pub instruction: Option<String>,
    /// The continuations that are scored; for generated answers, the answers that are counted.
    pub choices: Vec<String>,
    /// The number of the right choice; `None` if the row's answer is none of them, which then never counts.
    pub gold: Option<usize>,
    /// The answer as it is printed in an example before another question, and what texts are compared with.
    pub answer: String,
    /// What is scored after each choice, where the choices stand in the prompt: `text` then ends in the right choice.
    pub ending: Option<String>,
}

impl Question {
    /// A question whose answer is printed as its choice.
    pub fn new(text: String, choices: Vec<String>, gold: usize) -> Question {
        let answer = choices.get(gold).cloned().unwrap_or_default();
        Question { text, instruction: None, choices, gold: Some(gold), answer, ending: None }
    }

    /// A question that is answered in a text, which is compared with `reference`.
    pub fn open(text: String, reference: String) -> Question {
        Question { text, instruction: None, choices: Vec::new(), gold: None, answer: reference, ending: None }
    }

    /// With an instruction at the beginning of the text.
    pub fn with_instruction(self, instruction: impl Into<String>) -> Question {
        Question { instruction: Some(instruction.into()), ..self }
    }
}

/// Makes a row a question.
pub type Rule = fn(&Fields<'_>) -> Read<Question>;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Metric {
    /// The choice with the largest log-likelihood is right.
    Acc,
    /// The same, with log-likelihoods divided by the number of code points of the choice.
    AccNorm,
    /// F1 over all choices together, which is the accuracy; lm-evaluation-harness has no standard error for it.
    F1,
    /// The answer in the generated text is right.
    Accuracy,
    /// BLEU, from 0 to 100.
    Bleu,
    /// chrF2, from 0 to 100.
    Chrf,
    /// Edits for 100 words: fewer are better.
    Ter,
    /// Words in common.
    Rouge1,
    /// Pairs of words in common.
    Rouge2,
    /// The longest common subsequence of words.
    RougeL,
    /// The same for each line.
    RougeLsum,
}

impl Metric {
    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Acc => "acc",
            Metric::AccNorm => "acc_norm",
            Metric::F1 => "f1",
            Metric::Accuracy => "accuracy",
            Metric::Bleu => "bleu",
            Metric::Chrf => "chrf",
            Metric::Ter => "ter",
            Metric::Rouge1 => "rouge1",
            Metric::Rouge2 => "rouge2",
            Metric::RougeL => "rougeL",
            Metric::RougeLsum => "rougeLsum",
        }
    }

    /// The metric of a name in results.
    pub fn by_name(name: &str) -> Option<Metric> {
        const ALL: [Metric; 11] = [
            Metric::Acc,
            Metric::AccNorm,
            Metric::F1,
            Metric::Accuracy,
            Metric::Bleu,
            Metric::Chrf,
            Metric::Ter,
            Metric::Rouge1,
            Metric::Rouge2,
            Metric::RougeL,
            Metric::RougeLsum,
        ];
        ALL.into_iter().find(|metric| metric.name() == name)
    }

    /// Whether texts are compared with references: scores of many are not the means of the scores of each.
    pub fn compares_texts(self) -> bool {
        !matches!(self, Metric::Acc | Metric::AccNorm | Metric::F1 | Metric::Accuracy)
    }

    /// Whether larger scores are better.
    pub fn higher_is_better(self) -> bool {
        self != Metric::Ter
    }

    /// What is printed for a score: percent.
    pub fn percent(self, score: f64) -> f64 {
        match self {
            Metric::Bleu | Metric::Chrf | Metric::Ter => score,
            _ => 100.0 * score,
        }
    }
}

/// How the answer is found in a generated text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extract {
    /// All of A, B, C and D in the first line, each once and sorted.
    Letters,
    /// The first `نعم` or `لا` in the first line.
    YesNo,
    /// The whole text without white space around it.
    All,
}

/// How an item is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The log-likelihood of each choice.
    Choices,
    /// Greedy text of at most this many tokens.
    Generate {
        /// Most new tokens.
        tokens: usize,
        /// Texts that end the answer and are not part of it.
        stop: &'static [&'static str],
        /// What counts as the answer.
        extract: Extract,
    },
}

/// Examples before a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shots {
    /// The first rows of the split, at most this many.
    First(usize),
    /// The first rows that differ from the question's: the questions' own split has the examples.
    FirstOthers,
    /// Drawn at random for each question, with Python's generator, from the questions' own split. The question may be
    /// among them, as it is in lm-evaluation-harness where a task names no split for examples.
    Random,
    /// Drawn at random for each question from the split for examples: one more than asked for, of which the question
    /// itself is left out.
    RandomOthers,
    /// The task has no examples.
    None,
    /// The harness puts no examples before the question, however many are asked for.
    Never,
}

/// Choices whose order the harness draws at random, row after row, with Python's global generator. Nothing else of the
/// harness draws from it between its seed and these rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shuffle {
    /// The seed of a run.
    pub seed: u64,
    /// Number of choices of a row.
    pub choices: usize,
    /// Whether the rows with examples are shuffled before the questions, with or without examples in the prompt; else
    /// they are shuffled after the questions.
    pub examples_first: bool,
}

/// What is printed around a question.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frame {
    /// Before the examples and the question.
    pub before: String,
    /// After the question, and after the question of each example.
    pub after: String,
}

/// A task.
#[derive(Debug, Clone)]
pub struct Task {
    /// Its name in its harness.
    pub name: String,
    /// Whose rules it follows.
    pub protocol: Protocol,
    /// Its rows.
    pub source: Source,
    /// How a row becomes a question.
    pub rule: Rule,
    /// What is around a question with examples.
    pub few: Frame,
    /// What is around a question without examples.
    pub zero: Frame,
    /// Text between a question and its answer.
    pub delimiter: &'static str,
    /// How items are answered.
    pub kind: Kind,
    /// What is counted; the first is shown first.
    pub metrics: &'static [Metric],
    /// The examples.
    pub shots: Shots,
    /// Number of examples when the user sets none.
    pub default_shots: usize,
    /// How the choices are shuffled.
    pub shuffle: Option<Shuffle>,
}

impl Task {
    /// The name with its protocol, unique among all tasks.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.protocol.name(), self.name)
    }

    /// lm-evaluation-harness's name of what it does with answers before it counts them.
    pub fn filter(&self) -> &'static str {
        match self.kind {
            Kind::Generate { extract: Extract::All, .. } => "STRIP_ANSWER",
            _ => "none",
        }
    }
}

/// How a group's score follows from those of its tasks.
#[derive(Debug, Clone, PartialEq)]
pub enum Combine {
    /// Mean over items.
    BySize,
    /// Mean over tasks.
    Mean,
    /// Mean over named categories, of means over subjects, of means over tasks: AceGPT's score of MMLU.
    Nested(Vec<(&'static str, Vec<Vec<&'static str>>)>),
    /// Mean F1 of the answers yes and no over all items: AceGPT's score of ACVA.
    PooledF1,
}

/// Tasks with a common score.
#[derive(Debug, Clone)]
pub struct Group {
    /// Its name in its harness.
    pub name: String,
    /// Whose rules it follows.
    pub protocol: Protocol,
    /// The names of its tasks.
    pub tasks: Vec<String>,
    /// How its score follows from theirs.
    pub combine: Combine,
    /// The metrics that have a score.
    pub metrics: &'static [Metric],
}

impl Group {
    /// The name with its protocol.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.protocol.name(), self.name)
    }
}

/// Tasks that were published together.
#[derive(Debug, Clone)]
pub struct Suite {
    /// What it is, in one line.
    pub about: &'static str,
    /// Its tasks.
    pub tasks: Vec<Task>,
    /// Its groups; the first has the suite's name.
    pub groups: Vec<Group>,
}
