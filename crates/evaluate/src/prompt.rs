//! Prompts: the examples and the question, put together as each harness does, as plain text or in a model's chat
//! template.

use std::rc::Rc;

use bayan_generate::text::{ChatInput, ChatTemplate};
use serde_json::{Value, json};

use crate::data::{hash_text, python};
use crate::task::{Frame, Protocol, Question, Task};
use crate::{EvalError, Result};

/// What is put around prompts.
#[derive(Debug, Clone, Default)]
pub struct Around {
    /// The model's chat template.
    pub template: Option<Rc<ChatTemplate>>,
    /// With a template: whether examples are not turns of their own, but stand in the one turn of the user. lighteval's
    /// examples always are turns.
    pub one_turn: bool,
    /// The system message, or without a template the text before all else.
    pub system: Option<String>,
}

impl Around {
    /// Refuses what the task's harness does not do.
    pub(crate) fn check(&self, task: &Task) -> Result<()> {
        let flag = match (&self.template, &self.system) {
            (Some(_), _) => "--apply-chat-template",
            (None, Some(_)) => "--system-instruction",
            (None, None) => return Ok(()),
        };
        let (expected, remedy) = match task.protocol {
            Protocol::LmEval => return Ok(()),
            Protocol::Lighteval if !self.one_turn => return Ok(()),
            Protocol::Lighteval => {
                ("examples as turns, which is what lighteval does", "leave out --fewshot-as-multiturn")
            }
            Protocol::OallV1 => (
                "plain prompts, as the first leaderboard's",
                "leave it out, or choose the task of lighteval or lm-eval",
            ),
            Protocol::AceGpt => ("AceGPT's own prompts", "leave it out, or choose its tasks for chat models (…_chat)"),
        };
        Err(EvalError::unexpected(format!("{flag} for {}", task.full_name()), expected, "it", remedy))
    }

    /// What follows the name of the rules wherever a score is shown.
    pub(crate) fn note(&self) -> &'static str {
        match (&self.template, &self.system) {
            (Some(_), Some(_)) => ", chat template, system instruction",
            (Some(_), None) => ", chat template",
            (None, Some(_)) => ", system instruction",
            (None, None) => "",
        }
    }

    /// Adds what is set to a JSON object, under lm-evaluation-harness's names.
    pub fn describe(&self, object: &mut Value) {
        if let Some(template) = &self.template {
            object["chat_template_sha"] = hash_text(template.source()).into();
            object["fewshot_as_multiturn"] = (!self.one_turn).into();
        }
        if let Some(system) = &self.system {
            object["system_instruction"] = system.as_str().into();
        }
    }
}

/// The text before the continuations of a question.
///
/// # Errors
/// The chat template refuses the conversation.
pub fn prompt(task: &Task, examples: &[Question], question: &Question, around: &Around) -> Result<String> {
    match task.protocol {
        Protocol::LmEval => lm_eval(task, examples, question, around),
        // AceGPT's harness strips the question, and not its examples.
        Protocol::AceGpt => {
            let frame = if examples.is_empty() { &task.zero } else { &task.few };
            Ok(framed(frame, task, examples, python::strip(&question.text)))
        }
        Protocol::Lighteval => lighteval(examples, question, around),
        Protocol::OallV1 => Ok(oall_v1(examples, question)),
    }
}

/// Examples with their answers, two line breaks after each, then the question.
fn framed(frame: &Frame, task: &Task, examples: &[Question], question: &str) -> String {
    let Frame { before, after } = frame;
    let mut prompt = before.clone();
    for example in examples {
        prompt.push_str(&format!("{}{after}{}{}\n\n", example.text, task.delimiter, example.answer));
    }
    prompt + question + after
}

/// Text that a harness joins from two parts with two line breaks, unless there is white space already.
fn delimited(first: &str, second: &str) -> String {
    let spaced = first.is_empty()
        || second.is_empty()
        || first.ends_with(python::is_space)
        || second.starts_with(python::is_space);
    format!("{first}{}{second}", if spaced { "" } else { "\n\n" })
}

/// lm-evaluation-harness: the task's description is part of the system message, which as plain text nothing follows.
fn lm_eval(task: &Task, examples: &[Question], question: &Question, around: &Around) -> Result<String> {
    let frame = if examples.is_empty() { &task.zero } else { &task.few };
    let system = delimited(around.system.as_deref().unwrap_or_default(), &frame.before);
    let after_system = Frame { before: String::new(), after: frame.after.clone() };
    let Some(template) = &around.template else {
        return Ok(system + &framed(&after_system, task, examples, &question.text));
    };
    let mut messages = Vec::new();
    if !system.is_empty() {
        messages.push(json!({"role": "system", "content": system}));
    }
    let asked = |question: &Question| json!({"role": "user", "content": format!("{}{}", question.text, frame.after)});
    if around.one_turn {
        let content = framed(&after_system, task, examples, &question.text);
        messages.push(json!({"role": "user", "content": content}));
    } else {
        for example in examples {
            messages.extend([asked(example), json!({"role": "assistant", "content": example.answer})]);
        }
        messages.push(asked(question));
    }
    let rendered = rendered(template, messages.clone());
    if rendered.is_err() && messages[0]["role"] == "system" {
        // The harness leaves the system message out for templates that refuse it.
        return self::rendered(template, messages.split_off(1));
    }
    rendered
}

fn rendered(template: &ChatTemplate, messages: Vec<Value>) -> Result<String> {
    Ok(template.render(&ChatInput::new(messages))?)
}

/// A question of lighteval 0.13 without its instruction, stripped then.
fn bare<'a>(text: &'a str, instruction: Option<&str>) -> &'a str {
    instruction.and_then(|instruction| text.strip_prefix(instruction)).map_or(text, python::strip)
}

/// A prompt of lighteval 0.13 as messages: the instruction stands right before the first question.
pub(crate) fn lighteval_messages(examples: &[Question], question: &Question, system: Option<&str>) -> Vec<Value> {
    let mut messages: Vec<Value> = system.iter().map(|system| json!({"role": "system", "content": system})).collect();
    let mut instruction = question.instruction.as_deref().unwrap_or_default();
    let mut asked = |question: &Question| {
        let own = bare(&question.text, question.instruction.as_deref());
        json!({"role": "user", "content": format!("{}{own}", std::mem::take(&mut instruction))})
    };
    for example in examples {
        messages.extend([asked(example), json!({"role": "assistant", "content": example.answer})]);
    }
    messages.push(asked(question));
    messages
}

/// lighteval 0.13: instruction, examples and question with two line breaks between them. The instruction is taken out
/// of each question, which is then stripped.
pub(crate) fn lighteval(examples: &[Question], question: &Question, around: &Around) -> Result<String> {
    if let Some(template) = &around.template {
        return rendered(template, lighteval_messages(examples, question, around.system.as_deref()));
    }
    let of = |question: &Question| bare(&question.text, question.instruction.as_deref()).to_owned();
    let mut parts: Vec<String> = around.system.iter().chain(&question.instruction).cloned().collect();
    parts.extend(examples.iter().map(|example| format!("{} {}", of(example), python::strip(&example.answer))));
    parts.push(of(question));
    Ok(parts.join("\n\n"))
}

/// lighteval 0.3 to 0.7: the instruction, then examples and question without it; nothing is between an example and its
/// answer.
fn oall_v1(examples: &[Question], question: &Question) -> String {
    let bare = |question: &Question| {
        let instruction = question.instruction.as_deref().unwrap_or_default();
        question.text.strip_prefix(instruction).unwrap_or(&question.text).to_owned()
    };
    let mut parts: Vec<String> = examples.iter().map(|example| bare(example) + &example.answer).collect();
    parts.push(bare(question));
    question.instruction.clone().unwrap_or_default() + &parts.join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(text: &str, instruction: Option<&str>) -> Question {
        let plain = Question::new(text.into(), vec!["أ".into(), "ب".into()], 1);
        Question { instruction: instruction.map(str::to_owned), ..plain }
    }

    fn plain(examples: &[Question], question: &Question) -> String {
        lighteval(examples, question, &Around::default()).unwrap()
    }

    #[test]
    fn lighteval_strips_what_follows_its_instruction() {
        let asked = question("تعليمات\n    سؤال؟\n    ", Some("تعليمات"));
        assert_eq!(plain(&[], &asked), "تعليمات\n\nسؤال؟");
        assert_eq!(plain(std::slice::from_ref(&asked), &asked), "تعليمات\n\nسؤال؟ ب\n\nسؤال؟");
        assert_eq!(plain(&[], &question("سؤال؟", Some(""))), "\n\nسؤال؟");
        assert_eq!(plain(&[], &question("سؤال؟ ", None)), "سؤال؟ ");
    }

    #[test]
    fn the_first_leaderboard_puts_nothing_before_answers() {
        let asked = question("تعليمات\n\nسؤال؟:", Some("تعليمات\n\n"));
        assert_eq!(oall_v1(&[], &asked), asked.text);
        assert_eq!(oall_v1(std::slice::from_ref(&asked), &asked), "تعليمات\n\nسؤال؟:ب\n\nسؤال؟:");
    }
}
