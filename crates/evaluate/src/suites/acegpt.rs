//! AceGPT's own benchmarks, with the prompts of its harness: greedy text, in which the answer is looked for.

use super::names;
use super::rules::{LATIN_LETTERS, letter, owned};
use crate::data::{Fields, Part, Read, Source, python};
use crate::task::{Combine, Extract, Frame, Group, Kind, Metric, Protocol, Question, Rule, Shots, Suite, Task};

const METRICS: &[Metric] = &[Metric::Accuracy];
const COLUMNS: &[&str] = &["question", "A", "B", "C", "D", "answer"];
const ANSWER: &str = "\nإجابة:";

/// What AceGPT's chat models get around a question.
const CHAT: (&str, &str) = (
    "[INST] <<SYS>>\nأنت مساعد مفيد ومحترم وصادق. أجب دائما بأكبر قدر ممكن من المساعدة بينما تكون آمنا.  يجب ألا تتضمن إجاباتك أي محتوى ضار أو غير أخلاقي أو عنصري أو جنسي أو سام أو خطير أو غير قانوني. يرجى التأكد من أن ردودك غير متحيزة اجتماعيا وإيجابية بطبيعتها.\n\nإذا كان السؤال لا معنى له أو لم يكن متماسكا من الناحية الواقعية، اشرح السبب بدلا من الإجابة على شيء غير صحيح. إذا كنت لا تعرف إجابة سؤال ما، فيرجى عدم مشاركة معلومات خاطئة.\n<</SYS>>\n\n",
    " [/INST]",
);

/// The suites of this file: for base models with five examples or none, and for chat models without.
pub(super) fn suites() -> Vec<Suite> {
    [false, true].into_iter().flat_map(|chat| [mmlu(chat), exams(chat), acva(chat)]).collect()
}

/// A benchmark's name, and that of its tasks.
fn named(name: &str, chat: bool) -> String {
    format!("{name}{}", if chat { "_chat" } else { "" })
}

struct Prompts {
    /// Before the question without examples.
    zero: String,
    /// After it.
    zero_after: String,
    /// Before the examples.
    few: String,
}

fn task(name: String, source: Source, rule: Rule, prompts: Prompts, kind: Kind, chat: bool) -> Task {
    let Prompts { zero, zero_after, few } = prompts;
    let zero = match chat {
        true => Frame { before: format!("{}{zero}", CHAT.0), after: format!("{zero_after}{}", CHAT.1) },
        false => Frame { before: zero, after: zero_after + ANSWER },
    };
    Task {
        name,
        protocol: Protocol::AceGpt,
        source,
        rule,
        few: Frame { before: few, after: ANSWER.into() },
        zero,
        delimiter: " ",
        kind,
        metrics: METRICS,
        shots: if chat { Shots::None } else { Shots::First(5) },
        default_shots: if chat { 0 } else { 5 },
        shuffle: None,
    }
}

/// The prompts of questions with letters, about a subject.
fn letter_prompts(subject: &str) -> Prompts {
    Prompts {
        zero: format!("فيما يلي أسئلة الاختيار من متعدد حول {subject}\n\n"),
        zero_after: "\nمن فضلك اختر إجابة واحدة من بين 'A، B، C، D' دون شرح.".into(),
        few: format!("فيما يلي أسئلة الاختيار من متعدد (مع الإجابات) حول {subject}\n\n"),
    }
}

fn lettered(row: &Fields<'_>) -> Read<Question> {
    let stripped = |name: &str| row.text(name).map(|text| python::strip(&text).to_owned());
    let mut text = format!("سؤال: {}", stripped("question")?);
    for letter in &LATIN_LETTERS[..4] {
        text.push_str(&format!("\n{letter}. {}", stripped(letter)?));
    }
    Ok(Question::new(text, owned(&LATIN_LETTERS[..4]), letter(row, "answer")?))
}

fn group(name: String, tasks: &[Task], combine: Combine) -> Group {
    let tasks = tasks.iter().map(|task| task.name.clone()).collect();
    Group { name, protocol: Protocol::AceGpt, tasks, combine, metrics: METRICS }
}

fn mmlu(chat: bool) -> Suite {
    let kind = Kind::Generate { tokens: 10, stop: &[], extract: Extract::Letters };
    let one = |(subject, arabic): &(&str, &str)| {
        let source = Source {
            dataset: "MMLUArabic",
            config: Some((*subject).into()),
            split: "test",
            shots_split: Some("dev"),
            file: None,
            columns: Some(COLUMNS),
            part: None,
        };
        let name = format!("{}:{subject}", named("mmlu", chat));
        task(name, source, lettered, letter_prompts(&arabic.replace('_', " ")), kind, chat)
    };
    let tasks: Vec<Task> = names::MMLU.iter().map(one).collect();
    let categories = names::MMLU_CATEGORIES.iter();
    let nested = categories.map(|(name, subjects)| (*name, subjects.iter().map(|tasks| tasks.to_vec()).collect()));
    let groups = vec![
        group(named("mmlu", chat), &tasks, Combine::Nested(nested.collect())),
        group(named("mmlu_overall", chat), &tasks, Combine::BySize),
    ];
    Suite { about: "AceGPT's Arabic MMLU, translated by GPT-3.5", tasks, groups }
}

/// A source of one file for all topics, which are the beginnings of ids.
fn of_topic(dataset: &'static str, file: &'static str, topic: &str) -> Source {
    Source {
        dataset,
        config: None,
        split: "test",
        shots_split: Some("dev"),
        file: Some(file),
        columns: None,
        part: Some(Part::Topic(topic.into())),
    }
}

fn exams(chat: bool) -> Suite {
    let topics = [
        ("Islamic Studies", "الدراسات الإسلامية"),
        ("Science", "العلوم"),
        ("Social", "الاجتماعيات"),
        ("Biology", "علم الأحياء"),
        ("Physics", "علم الفيزياء"),
    ];
    let kind = Kind::Generate { tokens: 10, stop: &[], extract: Extract::Letters };
    let one = |(topic, arabic): (&str, &str)| {
        let source = of_topic("EXAMS_Arabic", "exam_{split}", topic);
        task(format!("{}:{topic}", named("exams", chat)), source, lettered, letter_prompts(arabic), kind, chat)
    };
    let tasks: Vec<Task> = topics.into_iter().map(one).collect();
    let groups = vec![
        group(named("exams", chat), &tasks, Combine::Mean),
        group(named("exams_overall", chat), &tasks, Combine::BySize),
    ];
    Suite { about: "AceGPT's EXAMS, the Arabic part", tasks, groups }
}

fn acva(chat: bool) -> Suite {
    let kind = Kind::Generate { tokens: 20, stop: &[], extract: Extract::YesNo };
    let one = |(topic, arabic): &(&str, &str)| {
        let source = of_topic("ArabicCulture", "difficulty-easy-TF_{split}", topic);
        let prompts = Prompts {
            zero: "الرجاء التحكم في ما إذا كانت الجملة التالية صحيحة أم لا. إذا كانت صحيحة، فالرجاء الرد بـ 'نعم'. إذا كانت غير صحيحة، فالرجاء الرد بـ 'لا'.\n\n".into(),
            zero_after: "\n".into(),
            few: format!("فيما يلي أسئلة نعم أو لا (مع الإجابات) حول {arabic}\n\n"),
        };
        task(format!("{}:{topic}", named("acva", chat)), source, yes_no, prompts, kind, chat)
    };
    let tasks: Vec<Task> = names::ACVA.iter().map(one).collect();
    let groups = vec![
        group(named("acva", chat), &tasks, Combine::PooledF1),
        group(named("acva_average", chat), &tasks, Combine::Mean),
    ];
    Suite { about: "AceGPT's ACVA: Arabic culture, yes or no", tasks, groups }
}

fn yes_no(row: &Fields<'_>) -> Read<Question> {
    let choices = ["نعم", "لا"];
    let text = format!("سؤال: {}", python::strip(&row.text("question")?));
    Ok(Question::new(text, owned(&choices), row.one_of("answer", &choices)?))
}
