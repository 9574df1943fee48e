//! Prompts: the examples and the question, put together as each harness does.

use crate::data::python;
use crate::task::{Frame, Protocol, Question, Task};

/// The text before the continuations of a question.
pub fn prompt(task: &Task, examples: &[Question], question: &Question) -> String {
    match task.protocol {
        Protocol::LmEval => {
            framed(if examples.is_empty() { &task.zero } else { &task.few }, task, examples, &question.text)
        }
        // AceGPT's harness strips the question, and not its examples.
        Protocol::AceGpt => {
            let frame = if examples.is_empty() { &task.zero } else { &task.few };
            framed(frame, task, examples, python::strip(&question.text))
        }
        Protocol::Lighteval => lighteval(examples, question),
        Protocol::OallV1 => oall_v1(examples, question),
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

/// lighteval 0.13: instruction, examples and question with two line breaks between them. The instruction is taken out
/// of each question, which is then stripped.
fn lighteval(examples: &[Question], question: &Question) -> String {
    let bare = |question: &Question| match &question.instruction {
        Some(instruction) => match question.text.strip_prefix(instruction.as_str()) {
            Some(rest) => python::strip(rest).to_owned(),
            None => question.text.clone(),
        },
        None => question.text.clone(),
    };
    let mut parts: Vec<String> = question.instruction.iter().cloned().collect();
    parts.extend(examples.iter().map(|example| format!("{} {}", bare(example), python::strip(&example.answer))));
    parts.push(bare(question));
    parts.join("\n\n")
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

    #[test]
    fn lighteval_strips_what_follows_its_instruction() {
        let asked = question("تعليمات\n    سؤال؟\n    ", Some("تعليمات"));
        assert_eq!(lighteval(&[], &asked), "تعليمات\n\nسؤال؟");
        assert_eq!(lighteval(std::slice::from_ref(&asked), &asked), "تعليمات\n\nسؤال؟ ب\n\nسؤال؟");
        assert_eq!(lighteval(&[], &question("سؤال؟", Some(""))), "\n\nسؤال؟");
        assert_eq!(lighteval(&[], &question("سؤال؟ ", None)), "سؤال؟ ");
    }

    #[test]
    fn the_first_leaderboard_puts_nothing_before_answers() {
        let asked = question("تعليمات\n\nسؤال؟:", Some("تعليمات\n\n"));
        assert_eq!(oall_v1(&[], &asked), asked.text);
        assert_eq!(oall_v1(std::slice::from_ref(&asked), &asked), "تعليمات\n\nسؤال؟:ب\n\nسؤال؟:");
    }
}
