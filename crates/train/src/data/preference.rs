//! Preference rows: a better and a worse answer to the same prompt.

use serde_json::Value;

use super::messages::{message_list, role, side};
use super::shapes::{Fields, Problem, assistant, instruction, is_there, kind, problem, required, required_text, user};
use super::{DropReason, Example, Shape};

/// Reads a preference row; `prompt` includes the row's system message if it has one.
pub(super) fn read(
    shape: Shape,
    fields: &Fields,
    mut prompt: Vec<Value>,
    tools: Option<Vec<Value>>,
) -> Result<Result<Example, DropReason>, Problem> {
    let (chosen, rejected) = match shape {
        Shape::BeaverTails => {
            prompt.push(user(required_text(fields, "prompt")?));
            let answers = [required_text(fields, "response_0")?, required_text(fields, "response_1")?];
            let better = better(fields)?;
            (vec![assistant(answers[better])], vec![assistant(answers[1 - better])])
        }
        Shape::PreferenceAlpaca => {
            prompt.push(user(&instruction(fields)?));
            (side(fields, "chosen", "assistant")?, side(fields, "rejected", "assistant")?)
        }
        Shape::PreferenceShareGpt => {
            prompt.extend(message_list("conversations", required(fields, "conversations")?)?);
            (side(fields, "chosen", "assistant")?, side(fields, "rejected", "assistant")?)
        }
        _ => {
            let (mut chosen, mut rejected) =
                (side(fields, "chosen", "assistant")?, side(fields, "rejected", "assistant")?);
            if is_there(fields, "prompt") {
                prompt.extend(side(fields, "prompt", "user")?);
                // Some data sets repeat the prompt at the start of both answers.
                strip_repeated(&prompt, &mut chosen, &mut rejected);
            } else {
                let shared = chosen.iter().zip(&rejected).take_while(|(c, r)| c == r).count();
                if shared == 0 {
                    return problem(
                        "prompt",
                        "expected a prompt, or chosen and rejected as lists of messages that begin alike",
                    );
                }
                rejected.drain(..shared);
                prompt.extend(chosen.drain(..shared));
                if chosen.is_empty() || rejected.is_empty() {
                    return Ok(Err(if chosen == rejected { DropReason::SameAnswers } else { DropReason::NoAnswer }));
                }
            }
            (chosen, rejected)
        }
    };
    Ok(Ok(Example::Preference { prompt, chosen, rejected, tools }))
}

fn strip_repeated(prompt: &[Value], chosen: &mut Vec<Value>, rejected: &mut Vec<Value>) {
    let bare: Vec<&Value> = prompt.iter().filter(|m| role(m) != "system").collect();
    let begins = |answer: &[Value]| answer.len() > bare.len() && answer.iter().zip(&bare).all(|(a, p)| a == *p);
    if !bare.is_empty() && begins(chosen) && begins(rejected) {
        chosen.drain(..bare.len());
        rejected.drain(..bare.len());
    }
}

/// Which of the two responses is better: 0 or 1, as a number or, in csv, as text.
fn better(fields: &Fields) -> Result<usize, Problem> {
    let name = if is_there(fields, "better_response_id") { "better_response_id" } else { "safer_response_id" };
    let value = required(fields, name)?;
    let number = value.as_u64().or_else(|| value.as_str()?.trim().parse().ok());
    match number {
        Some(id @ (0 | 1)) => Ok(id as usize),
        _ => problem(
            name,
            format!(
                "expected 0 or 1, got {}",
                if value.is_number() { value.to_string() } else { kind(value).to_owned() }
            ),
        ),
    }
}
