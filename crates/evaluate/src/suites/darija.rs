//! lm-evaluation-harness's tasks of DarijaBench: sentiment, translations, transliterations and summaries in Moroccan
//! Arabic.
//!
//! The tasks that are answered in text count what the harness counts when their group is run, but for BERTScore, which
//! needs encoders of its own. The harness's files of single tasks name BERTScore alone, and its file of summaries
//! cannot be loaded without the group.

use super::lm_eval::{ACC, group, names_of, task};
use super::rules::{LATIN_LETTERS, owned};
use crate::data::{Fields, Part, Problem, Read, Source, python};
use crate::task::{Extract, Group, Kind, Metric, Question, Rule, Suite, Task};

const DATASET: &str = "MBZUAI-Paris/DarijaBench";

/// Texts that end an answer.
const STOP: &[&str] = &["<end_of_turn>", "<eos>", "</s>", "<|end_of_text|>", "<|eot_id|>", "<|endoftext|>"];

/// New tokens of an answer where the harness's file names no number.
const TOKENS: usize = 256;

const TRANSLATION: &[Metric] = &[Metric::Bleu, Metric::Chrf, Metric::Ter];
const SUMMARY: &[Metric] = &[Metric::Rouge1, Metric::Rouge2, Metric::RougeL, Metric::RougeLsum, Metric::Chrf];

/// The suites of this file.
pub(super) fn suites() -> Vec<Suite> {
    vec![sentiment(), translation(), transliteration(), summarization()]
}

/// The text of a message.
fn message<'a>(row: &Fields<'a>, at: usize) -> Read<&'a str> {
    let text = row.get("messages").and_then(|messages| messages.get(at)?.get("content")?.as_str());
    let problem = || Problem {
        field: "messages".into(),
        problem: format!("expected a list of messages with a text in `content` of number {}", at + 1),
    };
    text.filter(|text| !python::strip(text).is_empty()).ok_or_else(problem)
}

/// A task that is answered in text.
fn written(name: String, split: &'static str, direction: &str, tokens: usize, rule: Rule) -> Task {
    let metrics = if direction.is_empty() { SUMMARY } else { TRANSLATION };
    let plain = task(name, DATASET, None, rule, metrics, [split, ""]);
    let part = Some(direction).filter(|direction| !["", "all"].contains(direction));
    Task {
        source: Source { part: part.map(|direction| Part::Direction(direction.into())), ..plain.source },
        kind: Kind::Generate { tokens, stop: STOP, extract: Extract::All },
        ..plain
    }
}

/// A group whose tasks have scores of their own only.
fn without_score(name: String, tasks: &[Task]) -> Group {
    group(name, names_of(tasks), &[])
}

fn translation() -> Suite {
    const ALL: &[&str] = &["all", "dr_en", "dr_fr", "dr_msa", "en_dr", "fr_dr", "msa_dr"];
    let sets: [(&str, &'static str, &[&str]); 4] = [
        ("doda", "doda", ALL),
        ("flores", "flores_plus", ALL),
        ("madar", "madar", &["all", "dr_msa", "msa_dr"]),
        ("seed", "seed", &["all", "dr_en", "en_dr"]),
    ];
    let (mut tasks, mut groups) = (Vec::new(), Vec::new());
    for (set, split, directions) in sets {
        let one =
            |direction: &&str| written(format!("translation_{direction}_{set}"), split, direction, TOKENS, plain_rule);
        let own: Vec<Task> = directions.iter().map(one).collect();
        groups.push(without_score(format!("darija_translation_{set}"), &own));
        tasks.extend(own);
    }
    groups.insert(0, without_score("darija_translation".into(), &tasks));
    let about = "DarijaBench's translations between Moroccan Arabic and English, French and Standard Arabic";
    Suite { about, tasks, groups }
}

fn transliteration() -> Suite {
    let one = |direction: &str| {
        written(format!("transliteration_{direction}"), "transliteration", direction, TOKENS, plain_rule)
    };
    let tasks: Vec<Task> = ["all", "ar_dr", "dr_ar"].into_iter().map(one).collect();
    let groups = vec![without_score("darija_transliteration".into(), &tasks)];
    Suite { about: "DarijaBench's transliterations between Arabic and Latin letters", tasks, groups }
}

fn summarization() -> Suite {
    let tasks = vec![written("darija_summarization_task".into(), "marsum", "", 128, summary_rule)];
    let groups = vec![without_score("darija_summarization".into(), &tasks)];
    Suite { about: "DarijaBench's summaries in Moroccan Arabic", tasks, groups }
}

fn plain_rule(row: &Fields<'_>) -> Read<Question> {
    Ok(Question::open(message(row, 0)?.into(), message(row, 1)?.into()))
}

/// The harness asks for 30 words.
fn summary_rule(row: &Fields<'_>) -> Read<Question> {
    let text = message(row, 0)?.replace("لخص هاد المقطع", "لخص هاد المقطع في ٣٠ كلمة");
    Ok(Question::open(text, message(row, 1)?.into()))
}

fn sentiment() -> Suite {
    let splits: [(&str, &'static str, Rule); 5] = [
        ("electrom", "electro_maroc", |row| sentiment_rule(row, 2)),
        ("mac", "mac", |row| sentiment_rule(row, 3)),
        ("msac", "msac", |row| sentiment_rule(row, 2)),
        ("msda", "msda", |row| sentiment_rule(row, 3)),
        ("myc", "myc", |row| sentiment_rule(row, 2)),
    ];
    let one = |(name, split, rule): (&str, &'static str, Rule)| {
        task(format!("darija_sentiment_{name}"), "MBZUAI-Paris/DarijaBench", None, rule, ACC, [split, ""])
    };
    let tasks: Vec<Task> = splits.into_iter().map(one).collect();
    let groups = vec![group("darija_sentiment", names_of(&tasks), ACC)];
    Suite { about: "DarijaBench's sentiment in Moroccan Arabic, from five sets", tasks, groups }
}

/// The options are part of the user's message, which the harness puts letters before.
fn sentiment_rule(row: &Fields<'_>, choices: usize) -> Read<Question> {
    let feelings = ["سلبي", "ايجابي", "ماكينش إحساس"];
    let last = format!("C. {}\nThe answer should be strictly one letter of the following: A, B, C.", feelings[2]);
    let text = message(row, 0)?
        .replace(&format!("-{}", feelings[0]), &format!("A. {}", feelings[0]))
        .replace(&format!("-{}", feelings[1]), &format!("B. {}", feelings[1]))
        .replace(&format!("-{}", feelings[2]), &last);
    let answer = message(row, 1)?;
    let Some(place) = feelings.iter().position(|feeling| *feeling == answer) else {
        let problem = format!("expected one of {} as the answer, got {answer:?}", feelings.join(", "));
        return Err(Problem { field: "messages".into(), problem });
    };
    let letters = owned(&LATIN_LETTERS[..choices]);
    let gold = Some(place).filter(|place| *place < choices);
    Ok(Question { text, instruction: None, choices: letters, gold, answer: LATIN_LETTERS[place].into(), ending: None })
}
