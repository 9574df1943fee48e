//! Asking a judge, and its verdicts in a file: one line for each judged turn, in FastChat's layout with a few more
//! fields, so that FastChat's `show_result.py` reads it, too.
//!
//! Lines are written as verdicts come. A run that was killed, or whose judge did not answer, asks only for what is
//! missing, and ends with the same file.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::prompts::{Format, Protocol};
use super::requests::Unit;
use super::verdict;
use crate::{EvalError, Result, samples};

/// A verdict.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgment {
    /// The question's id.
    pub id: Value,
    /// Its category.
    pub category: String,
    /// The turn, from 1.
    pub turn: usize,
    /// A rating from 1 to 10; 1 for safe and 0 for unsafe; a tenth of a number from 0 to 10; or 1 for a win over the
    /// baseline and 0 for a loss. `None` if the verdict could not be read; lighteval's rule counts 0 then.
    pub value: Option<f64>,
    /// Why it could not be read.
    pub failure: Option<String>,
}

/// What sends requests.
pub trait Judge {
    /// The choices of the replies to these bodies of chat completions, in their order.
    ///
    /// # Errors
    /// The judge cannot be reached, or refuses.
    fn ask(&mut self, bodies: &[Value]) -> Result<Vec<Value>>;
}

/// How a judge is asked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The protocol.
    pub protocol: Protocol,
    /// The name of the judge in requests.
    pub model: String,
    /// Number of units that are asked for together.
    pub together: usize,
    /// Ask again where the verdict could not be read.
    pub retry_failed: bool,
}

/// Asks about all units that the file has no verdicts of, and returns all verdicts. `on_units` is called with the
/// number of judged units after each request.
///
/// # Errors
/// The judge fails; the file has verdicts on other answers or of another judge; or it cannot be written.
pub fn run(
    path: &Path,
    units: &[Unit],
    settings: &Settings,
    judge: &mut dyn Judge,
    on_units: &mut dyn FnMut(usize),
) -> Result<Vec<Judgment>> {
    let mut lines = known(path, units, settings)?;
    on_units(lines.len());
    let open: Vec<usize> = (0..units.len()).filter(|at| !lines.contains_key(at)).collect();
    for part in open.chunks(settings.together.max(1)) {
        let asked: Vec<usize> = part.iter().copied().filter(|&at| !units[at].same).collect();
        let bodies: Vec<Value> = asked.iter().flat_map(|&at| units[at].bodies(&settings.model)).collect();
        let mut choices = if bodies.is_empty() { Vec::new() } else { judge.ask(&bodies)? }.into_iter();
        let mut new = Vec::new();
        for &at in part {
            let unit = &units[at];
            let own: Vec<Value> =
                if unit.same { Vec::new() } else { choices.by_ref().take(unit.games.len()).collect() };
            let line = line(unit, &settings.model, &own);
            new.push(line.to_string());
            lines.insert(at, line);
        }
        samples::append(path, &new)?;
        on_units(part.len());
    }
    // In the order of the questions, whatever was asked again.
    let text: String = lines.values().map(|line| format!("{line}\n")).collect();
    replace(path, &text)?;
    lines.values().map(|line| read_line(line).ok_or_else(|| not_ours(path))).collect()
}

fn replace(path: &Path, text: &str) -> Result<()> {
    let partial = path.with_extension("jsonl.partial");
    std::fs::write(&partial, text).map_err(|error| EvalError::io("write", &partial, error))?;
    std::fs::rename(&partial, path).map_err(|error| EvalError::io("rename", &partial, error))
}

fn not_ours(path: &Path) -> EvalError {
    let remedy = "name another file with --out, or remove this one";
    EvalError::unexpected(path.display().to_string(), "verdicts on these answers by this judge", "others", remedy)
}

/// The lines that the file has already, by the number of their unit.
fn known(path: &Path, units: &[Unit], settings: &Settings) -> Result<BTreeMap<usize, Value>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(EvalError::io("read", path, error)),
    };
    // A kill may have left half a line.
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let mut found = BTreeMap::new();
    for text in String::from_utf8_lossy(&bytes[..whole]).lines() {
        let line: Value = serde_json::from_str(text).map_err(|_| not_ours(path))?;
        let at = units.iter().position(|unit| line["question_id"] == unit.id && line["turn"] == unit.turn);
        let at = at.ok_or_else(|| not_ours(path))?;
        if !belongs(&line, &units[at], &settings.model) {
            return Err(not_ours(path));
        }
        let judgment = read_line(&line).ok_or_else(|| not_ours(path))?;
        if judgment.failure.is_none() || !settings.retry_failed {
            found.insert(at, line);
        }
    }
    let kept: String = found.values().map(|line| format!("{line}\n")).collect();
    replace(path, &kept)?;
    Ok(found)
}

/// Whether a line is a verdict of this judge on this unit.
fn belongs(line: &Value, unit: &Unit, judge: &str) -> bool {
    let asked = if unit.games.len() == 1 { vec!["user_prompt"] } else { vec!["g1_user_prompt", "g2_user_prompt"] };
    line["judge"] == json!([judge, unit.prompt])
        && asked.iter().zip(&unit.games).all(|(name, game)| line[*name] == game.user.as_str())
}

/// The text of a reply; of a reply with log-probabilities, those.
fn shown(format: Format, choice: &Value) -> Value {
    match format {
        Format::Tokens => choice["logprobs"]["content"][0].clone(),
        _ => choice["message"]["content"].clone(),
    }
}

fn line(unit: &Unit, judge: &str, choices: &[Value]) -> Value {
    let mut line = Map::new();
    line.insert("question_id".into(), unit.id.clone());
    line.insert("category".into(), unit.category.clone().into());
    line.insert("turn".into(), unit.turn.into());
    line.insert("judge".into(), json!([judge, unit.prompt]));
    let verdicts: Vec<Result<f64, String>> = match unit.same {
        true => vec![Ok(0.5); unit.games.len()],
        false => {
            let of = |number: usize| match choices.get(number) {
                Some(choice) => verdict::of_choice(unit.format, choice),
                None => Err("there is no reply".into()),
            };
            (0..unit.games.len()).map(of).collect()
        }
    };
    let failure: Vec<&str> = verdicts.iter().filter_map(|verdict| verdict.as_ref().err().map(String::as_str)).collect();
    let text = |number: usize| choices.get(number).map_or(Value::Null, |choice| shown(unit.format, choice));
    if let [game] = &unit.games[..] {
        // lighteval counts a reply without a number as 0.
        let missing = (unit.format == Format::Number).then_some(0.0);
        let value = verdicts[0].as_ref().ok().copied().or(missing);
        line.insert("model".into(), unit.models[0].clone().into());
        line.insert("user_prompt".into(), game.user.clone().into());
        line.insert("judgment".into(), text(0));
        // FastChat's mark of a verdict that could not be read.
        line.insert("score".into(), json!(value.unwrap_or(-1.0)));
        line.insert("value".into(), json!(value));
    } else {
        let own = preferences(&verdicts);
        for (number, (game, preference)) in unit.games.iter().zip(&own).enumerate() {
            line.insert(format!("model_{}", number + 1), unit.models[number].clone().into());
            line.insert(format!("g{}_user_prompt", number + 1), game.user.clone().into());
            line.insert(format!("g{}_judgment", number + 1), text(number));
            line.insert(format!("g{}_winner", number + 1), winner(*preference).into());
        }
        line.insert("preferences".into(), json!(own));
        line.insert("value".into(), json!(together(unit.format, &own)));
    }
    line.insert("failure".into(), if failure.is_empty() { Value::Null } else { failure.join("; ").into() });
    Value::Object(line)
}

/// The preference of the judged model in each game: in the second, its answer stands second.
fn preferences(verdicts: &[Result<f64, String>]) -> Vec<Option<f64>> {
    let own = |(number, verdict): (usize, &Result<f64, String>)| {
        verdict.as_ref().ok().map(|first| if number == 0 { *first } else { 1.0 - first })
    };
    verdicts.iter().enumerate().map(own).collect()
}

fn winner(preference: Option<f64>) -> &'static str {
    match preference {
        None => "error",
        Some(preference) if preference > 0.5 => "model_1",
        Some(preference) if preference < 0.5 => "model_2",
        Some(_) => "tie",
    }
}

/// The value of both games. FastChat's rule, which serves LLMZoo's orders as well: games that disagree are a tie.
/// AlpacaEval's preferences are averaged.
fn together(format: Format, preferences: &[Option<f64>]) -> Option<f64> {
    let [Some(first), Some(second)] = preferences else { return None };
    Some(match format {
        Format::Letters | Format::Order => {
            if first == second {
                *first
            } else {
                0.5
            }
        }
        _ => f64::midpoint(*first, *second),
    })
}

fn read_line(line: &Value) -> Option<Judgment> {
    let value = match &line["value"] {
        Value::Null => None,
        value => Some(value.as_f64()?),
    };
    Some(Judgment {
        id: line.get("question_id")?.clone(),
        category: line["category"].as_str()?.to_owned(),
        turn: usize::try_from(line["turn"].as_u64()?).ok()?,
        value,
        failure: line["failure"].as_str().map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_games_make_one_value() {
        let letters = |first, second| together(Format::Letters, &preferences(&[first, second]));
        assert_eq!(letters(Ok(1.0), Ok(0.0)), Some(1.0), "first in the first game, second in the other");
        assert_eq!(letters(Ok(1.0), Ok(1.0)), Some(0.5), "the judge prefers whatever is first");
        assert_eq!(letters(Ok(0.5), Ok(0.0)), Some(0.5), "a tie and a win are a tie, as in FastChat");
        assert_eq!(letters(Ok(0.0), Ok(1.0)), Some(0.0));
        assert_eq!(letters(Err("x".into()), Ok(1.0)), None);
        let tokens = together(Format::Tokens, &preferences(&[Ok(0.75), Ok(0.75)]));
        assert_eq!(tokens, Some(0.5));
        assert_eq!(["model_1", "model_2", "tie", "error"], [Some(0.9), Some(0.0), Some(0.5), None].map(winner));
    }
}
