//! From answers to the questions that a judge is asked.

use serde_json::{Value, json};

use super::answers::Answered;
use super::prompts::{Format, JudgePrompt, Prompts, Protocol, fill};
use crate::{EvalError, Result};

/// One request to a judge.
#[derive(Debug, Clone, PartialEq)]
pub struct Game {
    /// The system message.
    pub system: String,
    /// The user's message.
    pub user: String,
}

/// What is judged together: an answer, or two models' answers in both orders.
#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    /// The question's id.
    pub id: Value,
    /// Its category.
    pub category: String,
    /// The turn, from 1.
    pub turn: usize,
    /// The models: that whose answers are judged, then the baseline.
    pub models: Vec<String>,
    /// The prompt's name.
    pub prompt: String,
    /// How the verdict is written.
    pub format: Format,
    /// One request, or two: the baseline's answer second, then first.
    pub games: Vec<Game>,
    /// Whether both answers are the same text, which AlpacaEval counts as a tie without asking.
    pub same: bool,
}

impl Unit {
    /// The bodies of its requests to `model`, with the settings of the protocol.
    pub fn bodies(&self, model: &str) -> Vec<Value> {
        let body = |game: &Game| {
            let messages = json!([{"role": "system", "content": game.system}, {"role": "user", "content": game.user}]);
            let mut body = json!({"model": model, "messages": messages, "temperature": 0});
            match self.format {
                Format::Rating | Format::Letters | Format::Safety => body["max_tokens"] = json!(2048),
                Format::Ranking => body["max_tokens"] = json!(100),
                Format::Tokens => {
                    body["max_tokens"] = json!(1);
                    body["temperature"] = json!(1);
                    body["logprobs"] = json!(true);
                    body["top_logprobs"] = json!(5);
                }
                // What lighteval's judge draws with.
                Format::Number => {
                    body["temperature"] = json!(0.8);
                    body["top_p"] = json!(0.95);
                }
                Format::Order => {}
            }
            body
        };
        self.games.iter().map(body).collect()
    }
}

/// What a protocol asks about these answers. `baseline` has the answers to compare with, in the same order.
///
/// # Errors
/// A question that is judged with a reference has none, the protocol judges one turn and the questions have two, or a
/// baseline is missing, or given to a protocol that has no use for one.
pub fn units(
    protocol: Protocol,
    prompts: &Prompts,
    answers: &[Answered],
    baseline: Option<&[Answered]>,
) -> Result<Vec<Unit>> {
    match (protocol.compares(), baseline) {
        (true, None) => {
            let expected = format!("answers to compare with, for the protocol {}", protocol.name());
            return Err(EvalError::unexpected(
                "--baseline",
                expected,
                "none",
                "name another run, or a file of answers",
            ));
        }
        (false, Some(_)) => {
            let expected = format!("none, because the protocol {} judges each answer by itself", protocol.name());
            return Err(EvalError::unexpected(
                "--baseline",
                expected,
                "one",
                "leave it out, or choose --protocol pair",
            ));
        }
        _ => {}
    }
    let mut units = Vec::new();
    let two_turns = answers.iter().find(|one| one.asked.turns.len() > 1);
    if let Some(one) = two_turns.filter(|_| !protocol.second_turns()) {
        let what = format!("question {}", one.asked.id);
        let expected = format!("one turn, which is what the protocol {} judges", protocol.name());
        return Err(EvalError::unexpected(what, expected, "two", "choose --protocol single or pair"));
    }
    // All first turns, then all second ones.
    for turn in 0..2 {
        for (at, own) in answers.iter().enumerate().filter(|(_, own)| turn < own.asked.turns.len()) {
            let prompt = prompts.choose(protocol, &own.asked.category, turn)?;
            let other = baseline.map(|baseline| &baseline[at]);
            let games = match other {
                None => vec![game(prompt, own, None, turn)?],
                Some(other) => vec![game(prompt, own, Some(other), turn)?, game(prompt, other, Some(own), turn)?],
            };
            units.push(Unit {
                id: own.asked.id.clone(),
                category: own.asked.category.clone(),
                turn: turn + 1,
                models: std::iter::once(own).chain(other).map(|one| one.model.clone()).collect(),
                prompt: prompt.name.clone(),
                format: prompt.format,
                games,
                same: other.is_some_and(|other| {
                    matches!(prompt.format, Format::Ranking | Format::Tokens) && other.answers[0] == own.answers[0]
                }),
            });
        }
    }
    Ok(units)
}

fn game(prompt: &JudgePrompt, first: &Answered, second: Option<&Answered>, turn: usize) -> Result<Game> {
    let asked = &first.asked;
    let needed =
        if prompt.user.contains("{ref_answer_2}") { 2 } else { usize::from(prompt.user.contains("{ref_answer_1}")) };
    if asked.reference.len() < needed {
        return Err(EvalError::unexpected(
            format!("question {} ({})", asked.id, asked.category),
            format!("{needed} reference answers, which its judge compares with"),
            asked.reference.len().to_string(),
            "name FastChat's reference_answer file with --references",
        ));
    }
    let text = |texts: &[String], at: usize| texts.get(at).cloned().unwrap_or_default();
    let other = |at: usize| second.map_or_else(String::new, |other| text(&other.answers, at));
    let values = [
        ("question", text(&asked.turns, 0)),
        ("question_1", text(&asked.turns, 0)),
        ("question_2", text(&asked.turns, 1)),
        ("instruction", text(&asked.turns, 0)),
        ("category", asked.category.clone()),
        ("ref_answer_1", text(&asked.reference, 0)),
        ("ref_answer_2", text(&asked.reference, 1)),
        ("answer", text(&first.answers, 0)),
        ("answer_1", text(&first.answers, 0)),
        ("answer_2", text(&first.answers, 1)),
        ("answer_a", text(&first.answers, turn)),
        ("answer_b", other(turn)),
        ("answer_a_1", text(&first.answers, 0)),
        ("answer_a_2", text(&first.answers, 1)),
        ("answer_b_1", other(0)),
        ("answer_b_2", other(1)),
        ("output_1", text(&first.answers, 0)),
        ("output_2", other(0)),
    ];
    let values: Vec<(&str, &str)> = values.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Ok(Game { system: prompt.system.clone(), user: fill(&prompt.user, &values) })
}

/// Puts reference answers from a file in FastChat's `model_answer` layout into answers whose rows have none.
///
/// # Errors
/// The file cannot be read.
pub fn add_references(path: &std::path::Path, answers: &mut [Answered]) -> Result<()> {
    let open: Vec<usize> = (0..answers.len()).filter(|&at| answers[at].asked.reference.is_empty()).collect();
    for at in open {
        // Only some categories have references: the others stay without.
        if let Ok(found) = super::answers::baseline(path, &answers[at..=at]) {
            answers[at].asked.reference.clone_from(&found[0].answers);
        }
    }
    Ok(())
}
