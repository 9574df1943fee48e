//! lighteval's Arabic tasks, and among them those of the Open Arabic LLM Leaderboard v2.

use super::leaderboard::{NARROW, lighteval_group, lighteval_task};
use super::names;
use super::rules::{self, ARABIC_LETTERS, answer_key, numbered_options, owned};
use crate::data::{Fields, Read};
use crate::task::{Protocol, Question, Rule, Suite, Task};

const TRANSLATED: &str = "OALL/AlGhafa-Arabic-LLM-Benchmark-Translated";

/// The suites of this file.
pub(super) fn suites() -> Vec<Suite> {
    let one = |name: String, dataset, config: &str, rule: Rule, splits| {
        lighteval_task(Protocol::Lighteval, name, dataset, Some(config), rule, splits)
    };
    let names_of = |tasks: &[Task]| tasks.iter().map(|task| task.name.clone()).collect::<Vec<_>>();
    let suite = |about, group: &str, tasks: Vec<Task>| {
        let groups = vec![lighteval_group(Protocol::Lighteval, group, names_of(&tasks))];
        Suite { about, tasks, groups }
    };
    let validation = ["test", "validation"];
    let native = names::ARABIC_MMLU.iter().flat_map(|(_, subjects)| subjects.iter()).map(|subject| {
        one(format!("arabic_mmlu:{subject}"), "MBZUAI/ArabicMMLU", subject, arabic_mmlu, ["test", "dev"])
    });
    let human = names::MMLU.iter().map(|(subject, _)| {
        let name = format!("arabic_mmlu_ht:{subject}");
        one(name, "MBZUAI/human_translated_arabic_mmlu", subject, arabic_mmlu_ht, ["test", ""])
    });
    let machine = names::MMLU.iter().map(|(subject, _)| {
        one(format!("arabic_mmlu_mt:{subject}"), "OALL/Arabic_MMLU", subject, arabic_mmlu_mt, ["test", "dev"])
    });
    let acva = names::ACVA_CONFIGS
        .iter()
        .map(|config| one(format!("acva:{config}"), "OALL/ACVA", config, rules::acva, validation));
    let alghafa = names::ALGHAFA.iter().map(|config| {
        let dataset = "OALL/AlGhafa-Arabic-LLM-Benchmark-Native";
        one(format!("alghafa:{config}"), dataset, config, alghafa_numbers, validation)
    });
    let aratrust = names::ARATRUST.iter().map(|config| {
        one(format!("aratrust:{config}"), "asas-ai/AraTrust-categorized", config, aratrust_rule, ["train", ""])
    });
    let madinah = ["Arabic Language (General)", "Arabic Language (Grammar)"]
        .iter()
        .map(|config| one(format!("madinah_qa:{config}"), "MBZUAI/MadinahQA", config, madinah_qa, ["test", "dev"]));
    let exams = one("arabic_exams".into(), "OALL/Arabic_EXAMS", "default", rules::exams, validation);
    let translated: [(&str, Rule); 11] = [
        ("race_ar", alghafa_numbers),
        ("piqa_ar", alghafa_numbers),
        ("arc_easy_ar", alghafa_numbers),
        ("arc_challenge_okapi_ar", alghafa_numbers),
        ("mmlu_okapi_ar", alghafa_numbers),
        ("openbook_qa_ext_ar", alghafa_numbers),
        ("boolq_ar", |row| rules::boolq(row, NARROW)),
        ("copa_ext_ar", rules::copa),
        ("hellaswag_okapi_ar", |row| rules::hellaswag(row, NARROW)),
        ("toxigen_ar", |row| rules::toxigen(row, NARROW)),
        ("sciq_ar", |row| rules::sciq(row, true)),
    ];
    let translated = translated.map(|(name, rule)| one(name.into(), TRANSLATED, name, rule, validation));
    let mut suites = vec![
        suite("ArabicMMLU by lighteval's rules", "arabic_mmlu", native.collect()),
        suite("MMLU translated by people", "arabic_mmlu_ht", human.collect()),
        suite("MMLU translated by machine", "arabic_mmlu_mt", machine.collect()),
        suite("ACVA: Arabic culture, true or false", "acva", acva.collect()),
        suite("AlGhafa, native tasks", "alghafa", alghafa.collect()),
        suite("AraTrust: trustworthiness, 522 questions", "aratrust", aratrust.collect()),
        suite("MadinahQA: Arabic grammar and language", "madinah_qa", madinah.collect()),
        Suite { about: "EXAMS, the Arabic part", tasks: vec![exams], groups: Vec::new() },
        Suite { about: "AlGhafa, translated tasks", tasks: translated.into(), groups: Vec::new() },
    ];
    // The leaderboard's list; its alrage_qa is answered in text and judged by a model.
    let listed = ["alghafa:", "arabic_exams", "arabic_mmlu:", "arabic_mmlu_ht:", "aratrust:", "madinah_qa:"];
    let of = |start: &&str| {
        let all: Vec<&Task> = suites.iter().flat_map(|suite| &suite.tasks).collect();
        let own = all.into_iter().filter(|task| task.name.starts_with(start));
        own.map(|task| task.name.clone()).collect::<Vec<_>>()
    };
    let all: Vec<String> = listed.iter().flat_map(of).collect();
    suites.push(Suite {
        about: "The Open Arabic LLM Leaderboard v2, but for alrage_qa",
        tasks: Vec::new(),
        groups: vec![lighteval_group(Protocol::Lighteval, "oall_v2", all)],
    });
    suites
}

/// Options that are there, under Arabic letters.
fn native_options(row: &Fields<'_>, instruction: &str, before_options: String) -> Read<Question> {
    let options = numbered_options(row)?;
    let mut text = before_options;
    for (place, option) in &options {
        text.push_str(&format!("{}. {option}\n", ARABIC_LETTERS[*place]));
    }
    text.push_str("الإجابة:");
    let choices = options.iter().map(|(place, _)| ARABIC_LETTERS[*place].to_owned()).collect();
    Ok(Question::new(text, choices, answer_key(row, &options)?).with_instruction(instruction))
}

fn arabic_mmlu(row: &Fields<'_>) -> Read<Question> {
    let instruction = "السؤال التالي هو سؤال متعدد الإختيارات. اختر الإجابة الصحيحة:\n\n";
    native_options(row, instruction, format!("{instruction}{}\n", row.text("Question")?))
}

fn madinah_qa(row: &Fields<'_>) -> Read<Question> {
    let instruction = "بناءً على السياق أدناه، اختر الإجابة الصحيحة للسؤال التالي من قائمة الأجوبة:\n\n";
    let (context, question) = (row.printed("Context")?, row.text("Question")?);
    native_options(row, instruction, format!("{instruction}\nالسياق:\n{context}\nالسؤال:\n{question}\n"))
}

fn arabic_mmlu_ht(row: &Fields<'_>) -> Read<Question> {
    let instruction = "السؤال التالي هو سؤال متعدد الإختيارات. اختر الإجابة الصحيحة:\n\n";
    let options = row.list("choices")?;
    let mut text = format!("{instruction}{}\n", row.text("question")?);
    for (number, option) in options.iter().enumerate() {
        text.push_str(&format!("{}. {option}\n", number + 1));
    }
    text.push_str("الإجابة:");
    let gold = row.within("answer", row.index("answer")?, options.len())?;
    let numbers = (1..=options.len()).map(|number| number.to_string()).collect();
    Ok(Question::new(text, numbers, gold).with_instruction(instruction))
}

fn arabic_mmlu_mt(row: &Fields<'_>) -> Read<Question> {
    let instruction = "السؤال التالي هو سؤال متعدد الإختيارات. اختر الإجابة الصحيحة: أ، ب، ج، أو د... إلخ. \n\n";
    rules::lettered(row, instruction.into(), "question", "answer")
}

fn aratrust_rule(row: &Fields<'_>) -> Read<Question> {
    let instruction = "السؤال التالي هو سؤال متعدد الإختيارات. اختر الإجابة الصحيحة: أ، ب أو ج. \n\n";
    let mut text = format!("{instruction}{}\n", row.text("Question")?);
    for letter in ["A", "B", "C"] {
        text.push_str(&format!("{}\n", row.text(letter)?));
    }
    text.push_str("الإجابة:");
    let gold = row.one_of("Answer", &ARABIC_LETTERS[..3])?;
    Ok(Question::new(text, owned(&ARABIC_LETTERS[..3]), gold).with_instruction(instruction))
}

/// AlGhafa's question with the numbers of the options as choices; only `sol1` to `sol5` are options.
fn alghafa_numbers(row: &Fields<'_>) -> Read<Question> {
    let columns = ["sol1", "sol2", "sol3", "sol4", "sol5"];
    let there = columns.into_iter().filter(|column| row.get(column).is_some());
    let options = there.map(|column| row.text(column)).collect::<Read<Vec<String>>>()?;
    let instruction = "الأسئلة التالية هي أسئلة متعددة الإختيارات مع الجواب الصحيح\n\n";
    let mut text = format!("{instruction}السؤال: {}\n", row.text("query")?);
    for (number, option) in options.iter().enumerate() {
        text.push_str(&format!("{number}) {option}\n"));
    }
    text.push_str("الإجابة:");
    let gold = row.within("label", row.index("label")?, options.len())?;
    let numbers = (0..options.len()).map(|number| number.to_string()).collect();
    Ok(Question::new(text, numbers, gold).with_instruction(instruction))
}
