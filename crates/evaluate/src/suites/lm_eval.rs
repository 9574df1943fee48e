//! The multiple-choice tasks of lm-evaluation-harness whose data are Arabic from the start, or Arabic dialects.

use super::names;
use super::rules::{LATIN_LETTERS, answer_key, numbered_options, owned};
use crate::data::{Fields, Problem, Read, Source, python};
use crate::task::{Combine, Frame, Group, Kind, Metric, Protocol, Question, Rule, Shots, Suite, Task};

pub(super) const ACC: &[Metric] = &[Metric::Acc];
pub(super) const BOTH: &[Metric] = &[Metric::Acc, Metric::AccNorm];

/// A task of lm-evaluation-harness with examples from `shots_split`.
pub(super) fn task(
    name: String,
    dataset: &'static str,
    config: Option<&str>,
    rule: Rule,
    metrics: &'static [Metric],
    [split, shots_split]: [&'static str; 2],
) -> Task {
    let shots_split = Some(shots_split).filter(|split| !split.is_empty());
    Task {
        name,
        protocol: Protocol::LmEval,
        source: Source {
            dataset,
            config: config.map(str::to_owned),
            split,
            shots_split,
            file: None,
            columns: None,
            part: None,
        },
        rule,
        few: Frame::default(),
        zero: Frame::default(),
        delimiter: " ",
        kind: Kind::Choices,
        metrics,
        shots: if shots_split.is_some() { Shots::First(usize::MAX) } else { Shots::Random },
        default_shots: 0,
        shuffle: None,
    }
}

/// A group whose score is the mean over items.
pub(super) fn group(name: impl Into<String>, tasks: Vec<String>, metrics: &'static [Metric]) -> Group {
    Group { name: name.into(), protocol: Protocol::LmEval, tasks, combine: Combine::BySize, metrics }
}

pub(super) fn names_of(tasks: &[Task]) -> Vec<String> {
    tasks.iter().map(|task| task.name.clone()).collect()
}

/// The suites of this file.
pub(super) fn suites() -> Vec<Suite> {
    vec![
        arabicmmlu(),
        aexams(),
        piqa_and_copa(),
        dialect_mmlu("egymmlu", "UBC-NLP/EgyMMLU", egymmlu_rule),
        dialect_mmlu("darijammlu", "MBZUAI-Paris/DarijaMMLU", darijammlu_rule),
        hellaswag("egyhellaswag", "UBC-NLP/EgyHellaSwag", "EgyHellaSwag: endings in Egyptian Arabic"),
        hellaswag("darijahellaswag", "MBZUAI-Paris/DarijaHellaSwag", "DarijaHellaSwag: endings in Moroccan Arabic"),
        arab_culture("arab_culture", "MBZUAI/ArabCulture", arab_culture_rule),
        arab_culture("arab_culture_completion", "boda/arabic_cluture", arab_culture_completion_rule),
    ]
}

fn arabicmmlu() -> Suite {
    let (mut tasks, mut groups) = (Vec::new(), Vec::new());
    for (area, subjects) in names::ARABIC_MMLU {
        let own: Vec<Task> = subjects
            .iter()
            .map(|subject| {
                let name = format!("arabicmmlu_{}", subject.to_lowercase().replace(['(', ')'], "").replace(' ', "_"));
                task(name, "MBZUAI/ArabicMMLU", Some(subject), arabicmmlu_rule, ACC, ["test", "dev"])
            })
            .collect();
        groups.push(group(format!("arabicmmlu_{area}"), names_of(&own), ACC));
        tasks.extend(own);
    }
    groups.insert(0, group("arabicmmlu", names_of(&tasks), ACC));
    Suite { about: "ArabicMMLU: school and professional exams in Arabic, 40 subjects", tasks, groups }
}

fn arabicmmlu_rule(row: &Fields<'_>) -> Read<Question> {
    let levels = [
        ("Primary", "primary school"),
        ("Middle", "middle school"),
        ("High", "high school"),
        ("Univ", "university"),
        ("Prof", "professional"),
    ];
    let level = match row.optional("Level")? {
        None => String::new(),
        Some(level) => match levels.iter().find(|(short, _)| *short == level) {
            Some((_, long)) => format!(" for {long}"),
            None => {
                let problem = format!("expected Primary, Middle, High, Univ, Prof or nothing, got {level:?}");
                return Err(Problem { field: "Level".into(), problem });
            }
        },
    };
    let country = row.optional("Country")?.map(|country| format!(" in {country}")).unwrap_or_default();
    let question = match row.optional("Context")? {
        None => row.text("Question")?,
        Some(context) => format!("{context}\n\n{}", row.text("Question")?),
    };
    let options = numbered_options(row)?;
    let choices: Vec<String> = options.iter().map(|(place, _)| LATIN_LETTERS[*place].to_owned()).collect();
    // The printed options end at the first empty one.
    let printed = options.iter().enumerate().take_while(|(number, (place, _))| number == place);
    let lines: Vec<String> =
        printed.map(|(number, (_, option))| format!("{}. {option}", LATIN_LETTERS[number])).collect();
    let text = format!(
        "This is a {} question{level}{country}. Select the correct answer!\n\nQuestion: {question}\n{}\n\nAnswer:",
        row.printed("Subject")?,
        lines.join("\n")
    );
    Ok(Question::new(text, choices, answer_key(row, &options)?))
}

fn aexams() -> Suite {
    let subjects = [
        ("Biology", "قم بالإجابة على مايلي في مجال العلوم الحيوية\n\n"),
        ("IslamicStudies", "قم بالإجابة على مايلي في مجال العلوم الإسلامية \n\n"),
        ("Physics", "قم بالإجابة على مايلي في مجال الفيزياء \n\n"),
        ("Science", "قم بالإجابة على مايلي في مجال العلوم \n\n"),
        ("Social", "قم بالإجابة على مايلي في مجال العلوم الإجتماعية \n\n"),
    ];
    let with = |(subject, description): (&str, &str)| {
        let frame = Frame { before: description.into(), after: String::new() };
        let name = format!("aexams_{subject}");
        let plain = task(name, "Hennara/aexams", Some(subject), aexams_rule, BOTH, ["test", "dev"]);
        Task { few: frame.clone(), zero: frame, ..plain }
    };
    let tasks: Vec<Task> = subjects.into_iter().map(with).collect();
    let groups = vec![group("aexams", names_of(&tasks), BOTH)];
    Suite { about: "EXAMS, the Arabic part, in five subjects", tasks, groups }
}

fn aexams_rule(row: &Fields<'_>) -> Read<Question> {
    let mut text = python::strip(&row.text("question")?).to_owned();
    for letter in &LATIN_LETTERS[..4] {
        text.push_str(&format!("\n{letter}. {}", row.text(letter)?));
    }
    text.push_str("\nالجواب：");
    Ok(Question::new(text, owned(&LATIN_LETTERS[..4]), super::rules::letter(row, "answer")?))
}

fn piqa_and_copa() -> Suite {
    let tasks = vec![
        task("copa_ar".into(), "Hennara/copa_ar", None, |row| two_solutions(row, "query"), BOTH, ["test", ""]),
        task("piqa_ar".into(), "Hennara/pica_ar", None, |row| two_solutions(row, "goal"), BOTH, ["test", ""]),
    ];
    Suite { about: "COPA and PIQA, translated to Arabic", tasks, groups: Vec::new() }
}

fn two_solutions(row: &Fields<'_>, question: &str) -> Read<Question> {
    let gold = row.within("label", row.index("label")?, 2)?;
    let text = format!("السؤال: {}\nالجواب:", row.text(question)?);
    Ok(Question::new(text, vec![row.text("sol1")?, row.text("sol2")?], gold))
}

fn dialect_mmlu(name: &'static str, dataset: &'static str, rule: Rule) -> Suite {
    let of = |subjects: &[&str]| -> Vec<Task> {
        let one =
            |subject: &&str| task(format!("{name}_{subject}"), dataset, Some(subject), rule, ACC, ["test", "dev"]);
        subjects.iter().map(one).collect()
    };
    let (mut tasks, arabic) = (of(names::DIALECT_MMLU), of(names::DIALECT_ARABIC_MMLU));
    let mut groups = vec![
        group(format!("{name}_mmlu"), names_of(&tasks), ACC),
        group(format!("{name}_ar_mmlu"), names_of(&arabic), ACC),
    ];
    tasks.extend(arabic);
    groups.insert(0, group(name, names_of(&tasks), ACC));
    let about = match name {
        "egymmlu" => "EgyMMLU: MMLU and ArabicMMLU in Egyptian Arabic, 44 subjects",
        _ => "DarijaMMLU: MMLU and ArabicMMLU in Moroccan Arabic, 44 subjects",
    };
    Suite { about, tasks, groups }
}

fn egymmlu_rule(row: &Fields<'_>) -> Read<Question> {
    let before = format!("ده سؤال متعدد الاختيار (مع إجابته) على {}", row.printed("egy_subject")?);
    dialect_question(row, &before, "\n الجواب:")
}

fn darijammlu_rule(row: &Fields<'_>) -> Read<Question> {
    let before = format!("هادا سؤال متعدد الخيارات (مع الجواب ديالو) على {}", row.printed("subject_darija")?);
    dialect_question(row, &before, "\nالجواب:")
}

fn dialect_question(row: &Fields<'_>, before: &str, after: &str) -> Read<Question> {
    let question = match row.optional("context")? {
        None => row.text("question")?,
        Some(context) => format!("{context}\n\n{}", row.text("question")?),
    };
    let options = row.list("choices")?;
    row.within("choices", options.len() - 1, LATIN_LETTERS.len())?;
    let lines: Vec<String> =
        options.iter().zip(LATIN_LETTERS).map(|(option, letter)| format!("{letter}. {option}")).collect();
    let gold = row.within("answer", row.index("answer")?, options.len())?;
    let text = format!("{before}\n\n{question}\n{}{after}", lines.join("\n"));
    Ok(Question::new(text, owned(&LATIN_LETTERS[..options.len()]), gold))
}

fn hellaswag(name: &str, dataset: &'static str, about: &'static str) -> Suite {
    let plain = task(name.into(), dataset, None, hellaswag_rule, BOTH, ["validation", "train"]);
    let tasks = vec![Task { shots: Shots::RandomOthers, ..plain }];
    Suite { about, tasks, groups: Vec::new() }
}

fn hellaswag_rule(row: &Fields<'_>) -> Read<Question> {
    let endings = row.list("endings")?;
    let gold = row.within("label", row.index("label")?, endings.len())?;
    Ok(Question::new(format!("{}: {}", row.printed("activity_label")?, row.text("ctx")?), endings, gold))
}

fn arab_culture(name: &'static str, dataset: &'static str, rule: Rule) -> Suite {
    let (mut tasks, mut groups) = (Vec::new(), Vec::new());
    for (region, countries) in names::ARAB_CULTURE {
        let one = |country: &&str| {
            let name = format!("{name}_{}", country.to_lowercase());
            let plain = task(name, dataset, Some(country), rule, BOTH, ["test", "test"]);
            Task { delimiter: "", shots: Shots::FirstOthers, ..plain }
        };
        let own: Vec<Task> = countries.iter().map(one).collect();
        groups.push(group(format!("{name}_{region}"), names_of(&own), ACC));
        tasks.extend(own);
    }
    groups.insert(0, group(name, names_of(&tasks), ACC));
    let about = match name {
        "arab_culture" => "ArabCulture: everyday culture of 13 countries, options by letter",
        _ => "ArabCulture, options by their text",
    };
    Suite { about, tasks, groups }
}

/// lm-evaluation-harness reads three environment variables for this task, and without them asks in English, names
/// neither region nor country, and scores Latin letters. So does this rule.
fn arab_culture_rule(row: &Fields<'_>) -> Read<Question> {
    let keys = row.inner_list("options", "english_keys")?;
    let texts = row.inner_list("options", "text")?;
    row.within("options", 2, keys.len().min(texts.len()))?;
    let lines = keys.iter().zip(&texts).take(3);
    let options: String = lines.map(|(key, text)| format!("{key}. {}\n", python::strip(text))).collect();
    let text = format!(
        "\nYou are tasked with selecting the most culturally appropriate option based on the context provided below.\n\n\
         Statement: {}\n\nConsider the cultural nuances and choose the most suitable response from the options \
         provided.\n\nOptions:\n{options}\n",
        python::strip(&row.text("first_statement")?)
    );
    let answer = python::strip(&row.inner_text("answer_key", "english_answer_key")?).to_owned();
    let gold = keys.iter().position(|key| *key == answer);
    Ok(Question { text, instruction: None, choices: keys, gold, answer, ending: None })
}

fn arab_culture_completion_rule(row: &Fields<'_>) -> Read<Question> {
    let keys = row.inner_list("options", "english_keys")?;
    let texts = row.inner_list("options", "text")?;
    let text = format!(
        "\nYou are tasked with selecting the most culturally appropriate option based on the context provided below.\n\n\
         Statement: {}\n\nConsider the cultural nuances and choose the most suitable response from the options \
         provided.\n",
        python::strip(&row.text("first_statement")?)
    );
    let key = row.inner_text("answer_key", "english_answer_key")?;
    let place = keys.iter().position(|own| *own == key).and_then(|place| texts.get(place));
    let Some(answer) = place.map(|text| python::strip(text).to_owned()) else {
        let problem = format!("expected one of {}, got {key:?}", keys.join(", "));
        return Err(Problem { field: "answer_key".into(), problem });
    };
    // The harness compares the stripped text with the options as they are: an option with a space at its end is never
    // right.
    let gold = texts.iter().position(|text| *text == answer);
    Ok(Question { text, instruction: None, choices: texts, gold, answer, ending: None })
}
