//! `alrage_qa` of the Open Arabic LLM Leaderboard v2: a question with passages, of which some may have the answer.
//!
//! The rule is lighteval's. Its judge sees the whole prompt as the question; the model sees it as lighteval shows any
//! question to a model with a chat template or without.

use serde_json::{Value, json};

use crate::data::{Fields, Problem, Read, python};

const INSTRUCTION: &str = "بناءً على السياقات المقترحة التالية، اجب عن السؤال التالي";

/// The question with its passages, and the right answer.
pub(super) fn question(row: &Fields<'_>) -> Read<(String, String)> {
    let (question, passages) = (row.text("question")?, passages(row)?.join(", "));
    let text = format!("{INSTRUCTION}\n\nالسؤال:\n{question}\n\nالسياقات المقترحة:\n{passages}\n");
    Ok((text, row.text("gold_answer")?))
}

/// The passages: a list, or a text with one in each line. Those without text do not count.
fn passages(row: &Fields<'_>) -> Read<Vec<String>> {
    let wrong = |problem: &str| Err(Problem { field: "candidates".into(), problem: problem.into() });
    let found: Vec<String> = match row.get("candidates") {
        Some(Value::Array(list)) => {
            let texts = list.iter().filter(|one| !one.is_null() && **one != json!(""));
            match texts.map(python::text).collect::<Option<Vec<String>>>() {
                Some(texts) => texts.iter().map(|text| python::strip(text).to_owned()).collect(),
                None => return wrong("expected texts in the list, got a list or an object"),
            }
        }
        _ => {
            let lines = row.text("candidates")?;
            lines.split('\n').map(python::strip).filter(|line| !line.is_empty()).map(str::to_owned).collect()
        }
    };
    if found.is_empty() { wrong("expected one passage or more, got none") } else { Ok(found) }
}

/// The prompt for a model without a chat template.
pub(super) fn plain(question: &str) -> String {
    format!("{INSTRUCTION}\n\n{}", rest(question))
}

/// The user's message for a model with a chat template.
pub(super) fn message(question: &str) -> String {
    format!("{INSTRUCTION}{}", rest(question))
}

fn rest(question: &str) -> &str {
    python::strip(question.strip_prefix(INSTRUCTION).unwrap_or(question))
}

#[cfg(test)]
mod tests {
    use bayan_generate::TextPipeline;
    use bayan_generate::text::ChatInput;
    use bayan_weights::DirectorySource;

    use super::*;
    use crate::data::DataFolder;
    use crate::judged::answers::Answered;
    use crate::judged::prompts::{Format, Prompts, Protocol};
    use crate::judged::{requests, sets, verdict};

    const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");

    #[test]
    fn questions_prompts_and_judges_are_lightevals() {
        let text = std::fs::read_to_string(format!("{FIXTURES}/evaluate/alrage.json")).unwrap();
        let reference: Value = serde_json::from_str(&text).unwrap();
        let mut folder = DataFolder::open(format!("{FIXTURES}/evaluate/data").as_ref()).unwrap();
        let found = sets::find("alrage_qa").unwrap().read(&mut folder, &[], None).unwrap();
        let source = DirectorySource::new(format!("{FIXTURES}/models/qwen2_bias")).unwrap();
        let template = bayan_gpu::block_on(TextPipeline::open(&source, None)).unwrap().template.unwrap();
        let items = reference["items"].as_array().unwrap();
        assert_eq!((found.asked.len(), items.len()), (2, 2));
        for (own, item) in found.asked.iter().zip(items) {
            assert_eq!((json!(own.turns), json!(own.reference)), (json!([item["question"]]), json!([item["gold"]])));
            assert_eq!(plain(&own.turns[0]), item["plain"]);
            let chat = ChatInput::from_pairs([("user", message(&own.turns[0]).as_str())]);
            assert_eq!(template.render(&chat).unwrap(), item["chat"]);
            let (answers, finish) = (vec![" جواب ".to_owned()], vec!["stop".to_owned()]);
            let answered = Answered { asked: own.clone(), answers, finish, model: "m".into() };
            let units = requests::units(Protocol::Alrage, &Prompts::published().unwrap(), &[answered], None).unwrap();
            let body = &units[0].bodies("judge")[0];
            assert_eq!(body["messages"], item["judge"]);
            assert_eq!((&body["temperature"], &body["top_p"]), (&json!(0.8), &json!(0.95)));
        }
        for reply in reference["replies"].as_array().unwrap() {
            let (text, value) = (reply[0].as_str().unwrap(), reply[1].as_f64().unwrap());
            let own = verdict::of_text(Format::Number, text).unwrap_or(0.0);
            assert!((own - value).abs() < 1e-9, "{text:?}: {own}, expected {value}");
        }
    }

    #[test]
    fn rows_without_passages_are_refused() {
        let read = |candidates: Value| {
            let fields = json!({"question": "س", "gold_answer": "ج", "candidates": candidates});
            let place = bayan_train::Place { file: "f".into(), number: 1, unit: "line" };
            let row = bayan_train::data::Row { place, fields: fields.as_object().unwrap().clone() };
            question(&Fields::new(&row, &[])).map_err(|problem| problem.problem)
        };
        assert!(read(json!("")).unwrap_err().contains("empty cell"));
        assert!(read(json!([""])).unwrap_err().contains("one passage or more"));
        assert!(read(json!([["a"]])).unwrap_err().contains("expected texts"));
        assert!(read(json!(["أ", null])).unwrap().0.ends_with("المقترحة:\nأ\n"));
    }
}
