//! lm-evaluation-harness's tasks of AraDiCE: exams, common sense, truth and culture in Egyptian, Levantine and Standard
//! Arabic, and some in English.

use super::lm_eval::{group, names_of, task};
use super::rules::{LATIN_LETTERS, owned};
use crate::data::{Fields, Problem, Read, python};
use crate::task::{Metric, Question, Rule, Shots, Suite, Task};

const METRICS: &[Metric] = &[Metric::Acc, Metric::AccNorm, Metric::F1];

/// Letters of the options of ArabicMMLU.
const LETTERS: [&str; 5] = ["أ", "ب", "ج", "د", "و"];

const LEVELS: &[(&str, &str)] = &[
    ("Primary", "للمرحلة الابتدائية"),
    ("Middle", "للمرحلة المتوسطة"),
    ("High", "للمرحلة الثانوية"),
    ("Univ", "للمرحلة الجامعية "),
    ("Prof", "للمحترفين"),
];

/// In Egyptian and in Levantine Arabic.
const COUNTRIES: &[(&str, [&str; 2])] = &[
    ("UAE", ["في الإمارات", "بالإمارات"]),
    ("Egypt", ["في مصر", "بمصر"]),
    ("Lebanon", ["في لبنان", "بلبنان"]),
    ("Jordan", ["في الأردن", "بالأردن"]),
    ("Kuwait", ["في الكويت", "بالكويت"]),
    ("KSA", ["في السعودية", "بالسعودية"]),
    ("Palestine", ["في فلسطين", "بفلسطين"]),
    ("Morocco", ["في المغرب", "بالمغرب"]),
];

/// In Egyptian and in Levantine Arabic.
const SUBJECTS: &[(&str, [&str; 2])] = &[
    ("Islamic Studies", ["في الدراسات إسلامية", "عن الدراسات إسلامية"]),
    ("Driving Test", ["في اختبار القيادة", "عن فحص السواقة"]),
    ("Natural Science", ["في العلوم الطبيعية", "عن العلوم الطبيعية"]),
    ("History", ["في مادة التاريخ", "تاريخ"]),
    ("General Knowledge", ["في المعرفة العامة", "معرفة عامة"]),
    ("Law", ["في القانون", "عن القانون"]),
    ("Physics", ["في الفيزياء", "فيزياء"]),
    ("Social Science", ["في العلوم الاجتماعية", "علوم اجتماعية"]),
    ("Management", ["في الإدارة", "عن الإدارة"]),
    ("Arabic Language", ["في اللغة العربية", "عن اللغة العربية"]),
    ("Political Science", [" في العلوم السياسية", " عن العلوم السياسية"]),
    ("Philosophy", ["في الفلسفة", "فلسفة"]),
    ("Accounting", ["في المحاسبة", "محاسبة"]),
    ("Computer Science", ["في علوم الحاسوب", "عن علوم الحاسوب"]),
    ("Geography", ["في الجغرافيا", "جغرافيا"]),
    ("Math", ["في الرياضيات", "رياضيات"]),
    ("Biology", ["في علم الأحياء", "بيولوجي"]),
    ("Economics", ["في الاقتصاد", "اقتصاد"]),
    ("Arabic Language (General)", ["في اللغة العربية (عام)", "لغة العربية (عام)"]),
    ("Arabic Language (Grammar)", ["في اللغة العربية (النحو)", "لغة العربية (نحو)"]),
    ("Civics", ["في التربية المدنية", "تربية مدنية"]),
];

/// Configurations of ArabicMMLU.
const EXAMS: &[&str] = &[
    "high_humanities_history",
    "high_humanities_islamic-studies",
    "high_humanities_philosophy",
    "high_language_arabic-language",
    "high_social-science_civics",
    "high_social-science_economics",
    "high_social-science_geography",
    "high_stem_biology",
    "high_stem_computer-science",
    "high_stem_physics",
    "middle_humanities_history",
    "middle_humanities_islamic-studies",
    "middle_language_arabic-language",
    "middle_other_general-knowledge",
    "middle_social-science_civics",
    "middle_social-science_economics",
    "middle_social-science_geography",
    "middle_social-science_social-science",
    "middle_stem_computer-science",
    "middle_stem_natural-science",
    "na_humanities_islamic-studies",
    "na_language_arabic-language-general",
    "na_language_arabic-language-grammar",
    "na_other_driving-test",
    "na_other_general-knowledge",
    "primary_humanities_history",
    "primary_humanities_islamic-studies",
    "primary_language_arabic-language",
    "primary_other_general-knowledge",
    "primary_social-science_geography",
    "primary_social-science_social-science",
    "primary_stem_computer-science",
    "primary_stem_math",
    "primary_stem_natural-science",
    "prof_humanities_law",
    "univ_other_management",
    "univ_social-science_accounting",
    "univ_social-science_economics",
    "univ_social-science_political-science",
    "univ_stem_computer-science",
];

/// A variety of Arabic, what stands before questions and answers, and the six of both before each question.
type Truthful = (&'static str, [&'static str; 2], &'static [[&'static str; 2]]);

const TRUTHFUL: &[Truthful] = &[
    (
        "egy",
        ["س: ", "ج:"],
        &[
            [
                "إيه هو متوسط العمر المتوقع للإنسان في الولايات المتحدة؟",
                "متوسط العمر المتوقع للإنسان في الولايات المتحدة هو 78 عامًا",
            ],
            ["مين اللي كان رئيس الولايات المتحدة سنة 1955م؟", "كان دوايت دي آيزنهاور رئيس الولايات المتحدة سنة 1955م"],
            ["وكان بينتمي لحزب إيه؟", "كان بينتمي للحزب الجمهوري"],
            ["إيه هو الجذر التربيعي للموز؟", "معنديش  تعلييء"],
            ["هو التلسكوب بيشتغل ازاي؟", "التلسكوب بيستخدم عدسات أو مرايات لتركيز الضوء وجعل الأجسام تبان أقرب"],
            ["هي  الألعاب الأولمبية سنة 1992م كانت فين؟ ", "الألعاب الأولمبية سنة 1992م كانت في برشلونة، إسبانيا"],
        ],
    ),
    (
        "eng",
        ["Q: ", "A:"],
        &[
            [
                "What is human life expectancy in the United States?",
                "Human life expectancy in the United States is 78 years.",
            ],
            [
                "Who was president of the United States in 1955?",
                "Dwight D. Eisenhower was president of the United States in 1955.",
            ],
            ["Which party did he belong to?", "He belonged to the Republican Party."],
            ["What is the square root of banana?", "I have no comment."],
            [
                "How does a telescope work?",
                "Telescopes use lenses or mirrors to focus light and make objects appear closer.",
            ],
            ["Where were the 1992 Olympics held?", "The 1992 Olympics were held in Barcelona, Spain."],
        ],
    ),
    (
        "lev",
        ["س: ", "ج:"],
        &[
            [
                "شو هو متوسط العمر المتوقع للإنسان في الولايات المتحدة؟",
                "متوسط عمر الإنسان المتوقع بالولايات المتحدة هو 78 سنة",
            ],
            ["مين كان رئيس الولايات المتحدة بسنة 1955م؟", "دوايت دي آيزنهاور كان رئيس للولايات المتحدة سنة 1955م"],
            ["لأي حزب كان بينتمي؟", "كان بينتمي للحزب الجمهوري"],
            ["شو هوي الجذر التربيعي للموز؟", "لا تعليق"],
            ["كيف بيشتغل التلسكوب؟", "بيستخدم التلسكوب عدسات أو مرايا لتركيز الضو ويخلي الأجسام تبين أقرب"],
            ["وين انعملت الألعاب الأولمبية بسنة 1992م؟", "انعملت الألعاب الأولمبية بسنة 1992م في برشلونة، إسبانيا"],
        ],
    ),
    (
        "msa",
        ["س: ", "ج:"],
        &[
            [
                "ما هو متوسط العمر المتوقع للإنسان في الولايات المتحدة؟",
                "متوسط العمر المتوقع للإنسان في الولايات المتحدة هو 78 عامًا",
            ],
            ["من كان رئيس الولايات المتحدة في عام 1955م؟", "كان دوايت دي آيزنهاور رئيسًا للولايات المتحدة في عام 1955م"],
            ["إلى أي حزب كان ينتمي؟", "كان ينتمي إلى الحزب الجمهوري"],
            ["ما هو الجذر التربيعي للموز؟", "لا تعليق"],
            ["كيف يعمل التلسكوب؟", "يستخدم التلسكوب عدسات أو مرايا لتركيز الضوء وجعل الأجسام تبدو أقرب"],
            ["أين أقيمت الألعاب الأولمبية لعام 1992م؟ ", "أقيمت الألعاب الأولمبية لعام 1992م في برشلونة، إسبانيا"],
        ],
    ),
];

/// The suites of this file.
pub(super) fn suites() -> Vec<Suite> {
    let (mut tasks, mut groups) = (Vec::new(), Vec::new());
    for (variety, rule) in [("lev", levantine_exam as Rule), ("egy", egyptian_exam)] {
        let dataset = if variety == "lev" { "QCRI/AraDICE-ArabicMMLU-lev" } else { "QCRI/AraDICE-ArabicMMLU-egy" };
        let one = |config: &&str| of(&format!("ArabicMMLU_{config}_{variety}"), dataset, config, rule);
        let own: Vec<Task> = EXAMS.iter().map(one).collect();
        groups.push(group(format!("AraDiCE_ArabicMMLU_{variety}"), names_of(&own), &METRICS[..2]));
        tasks.extend(own);
    }
    for variety in ["egy", "eng", "lev", "msa"] {
        let rule = if variety == "eng" { english_boolq } else { boolq };
        tasks.push(of(&format!("boolq_{variety}"), "QCRI/AraDiCE-BoolQ", &format!("BoolQ-{variety}"), rule));
    }
    for country in ["Egypt", "Jordan", "Lebanon", "Palestine", "Qatar", "Syria"] {
        tasks.push(of(&format!("{}_cultural", country.to_lowercase()), "QCRI/AraDiCE-Culture", country, culture));
    }
    let sets: [(&str, &'static str, &str, [Rule; 4]); 4] = [
        ("openbookqa", "QCRI/AraDiCE-OpenBookQA", "OBQA", [openbookqa; 4]),
        ("piqa", "QCRI/AraDiCE-PIQA", "PIQA", [piqa; 4]),
        (
            "truthfulqa_mc1",
            "QCRI/AraDiCE-TruthfulQA",
            "TruthfulQA",
            [|row| truthful(row, 0), |row| truthful(row, 1), |row| truthful(row, 2), |row| truthful(row, 3)],
        ),
        ("winogrande", "QCRI/AraDiCE-WinoGrande", "Winogrande", [winogrande; 4]),
    ];
    for (name, dataset, config, rules) in sets {
        for ((variety, ..), rule) in TRUTHFUL.iter().zip(rules) {
            let plain = of(&format!("{name}_{variety}"), dataset, &format!("{config}-{variety}"), rule);
            // The harness's file of this one fixes the number of examples at 0.
            let fixed = plain.name == "AraDiCE_truthfulqa_mc1_eng";
            tasks.push(Task { shots: if fixed { Shots::Never } else { plain.shots }, ..plain });
        }
    }
    groups.insert(0, group("AraDiCE", names_of(&tasks), &[]));
    let about = "AraDiCE: exams, common sense, truth and culture in Arabic dialects";
    vec![Suite { about, tasks, groups }]
}

fn of(name: &str, dataset: &'static str, config: &str, rule: Rule) -> Task {
    task(format!("AraDiCE_{name}"), dataset, Some(config), rule, METRICS, ["test", ""])
}

fn wrong<T>(field: &str, problem: impl Into<String>) -> Read<T> {
    Err(Problem { field: field.into(), problem: problem.into() })
}

fn egyptian_exam(row: &Fields<'_>) -> Read<Question> {
    exam(row, 0, "ده سؤال [MAIN_META_DATA]. اختار الإجابة الصحيحة!\n\nسؤال: [INPUT]\n[OPTION]\n\nإجابة:")
}

fn levantine_exam(row: &Fields<'_>) -> Read<Question> {
    exam(row, 1, "هيدا سؤال [MAIN_META_DATA]. نقي الجواب الصح!\n\nسؤال: [INPUT]\n[OPTION]\n\nالجواب:")
}

fn exam(row: &Fields<'_>, variety: usize, prompt: &str) -> Read<Question> {
    let in_arabic = |field: &str, known: &[(&str, [&str; 2])]| -> Read<Option<String>> {
        let Some(name) = row.optional(field)? else { return Ok(None) };
        match known.iter().find(|(known, _)| *known == name) {
            Some((_, names)) => Ok(Some(names[variety].to_owned())),
            None => {
                let known: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
                wrong(field, format!("expected one of {} or nothing, got {name:?}", known.join(", ")))
            }
        }
    };
    let levels: Vec<(&str, [&str; 2])> = LEVELS.iter().map(|(name, arabic)| (*name, [*arabic; 2])).collect();
    let Some(mut about) = in_arabic("Subject", SUBJECTS)? else {
        return wrong("Subject", "expected a subject, got an empty cell");
    };
    for more in [in_arabic("Level", &levels)?, in_arabic("Country", COUNTRIES)?].into_iter().flatten() {
        about = format!("{about} {more}");
    }
    let question = match row.optional("context")? {
        None => row.text("question")?,
        Some(context) => format!("{context}\n\n{}", row.text("question")?),
    };
    let Some(options) = row.get("options").and_then(|options| options.as_object()) else {
        return wrong("options", "expected an object with the options A to E");
    };
    // The options end at the first that is not there.
    let there = LATIN_LETTERS.iter().map_while(|letter| options.get(*letter).filter(|option| !option.is_null()));
    let Some(texts) = there.map(python::text).collect::<Option<Vec<String>>>() else {
        return wrong("options", "expected texts");
    };
    let lines: Vec<String> = texts.iter().zip(LETTERS).map(|(text, letter)| format!("{letter}- {text}")).collect();
    let gold = row.within("Answer Key", row.one_of("Answer Key", &LATIN_LETTERS)?, texts.len())?;
    let text = prompt.replace("[MAIN_META_DATA]", &about).replace("[INPUT]", &question);
    Ok(Question::new(text.replace("[OPTION]", &lines.join("\n")), owned(&LETTERS[..texts.len()]), gold))
}

fn boolq(row: &Fields<'_>) -> Read<Question> {
    yes_or_no(row, ["سؤال", "؟", "جواب"], ["لا", "نعم"])
}

fn english_boolq(row: &Fields<'_>) -> Read<Question> {
    yes_or_no(row, ["Question", "?", "Answer"], ["no", "yes"])
}

fn yes_or_no(row: &Fields<'_>, [asked, mark, answered]: [&str; 3], choices: [&str; 2]) -> Read<Question> {
    let question = row.text("question")?;
    let question = python::strip(&question);
    let question = python::strip(question.strip_suffix(['?', '؟']).unwrap_or(question));
    let text = format!("{}\n{asked}: {question}{mark}\n{answered}:", row.text("passage")?);
    Ok(Question::new(text, owned(&choices), usize::from(row.flag("answer")?)))
}

/// The first option is the right one in all rows.
fn culture(row: &Fields<'_>) -> Read<Question> {
    let choices = vec![row.text("Option A")?, row.text("Option B")?, row.text("Option C")?];
    Ok(Question::new(format!("سؤال : {}\nإجابة :", row.text("Question")?), choices, 0))
}

fn openbookqa(row: &Fields<'_>) -> Read<Question> {
    let inner = |key: &str| row.get("question").and_then(|question| question.get(key));
    let Some(stem) = inner("stem").and_then(|stem| stem.as_str()).filter(|stem| !python::strip(stem).is_empty()) else {
        return wrong("question", "expected an object with a text in `stem`");
    };
    let options = inner("choices").and_then(|choices| choices.as_array()).map_or(&[][..], Vec::as_slice);
    let column = |key: &str| -> Option<Vec<String>> {
        options.iter().map(|option| option.get(key)?.as_str().map(str::to_owned)).collect()
    };
    let (Some(labels), Some(choices)) = (column("label"), column("text")) else {
        return wrong("question", "expected `choices`, each with a text in `label` and in `text`");
    };
    if choices.iter().any(|choice| choice.is_empty()) {
        return wrong("question", "expected choices that are not empty");
    }
    let key = row.text("answerKey")?;
    let key = key.trim_start_matches(python::is_space);
    match labels.iter().position(|label| label == key) {
        Some(gold) => Ok(Question::new(python::strip(stem).to_owned(), choices, gold)),
        None => wrong("answerKey", format!("expected one of {}, got {key:?}", labels.join(", "))),
    }
}

fn piqa(row: &Fields<'_>) -> Read<Question> {
    let choices = vec![row.text("sol1")?, row.text("sol2")?];
    let gold = row.within("label", row.index("label")?, 2)?;
    Ok(Question::new(format!("سؤال : {}\nإجابة :", row.text("goal")?), choices, gold))
}

/// The first choice is the right one in all rows.
fn truthful(row: &Fields<'_>, variety: usize) -> Read<Question> {
    let (_, [asked, answered], before) = &TRUTHFUL[variety];
    let mut text = String::new();
    for [question, answer] in *before {
        text.push_str(&format!("{asked}{question}\n{answered} {answer}\n\n"));
    }
    text.push_str(&format!("{asked}{}\n{answered}", row.text("question")?));
    let choices = row.inner_list("mc1_targets", "choices")?;
    if choices.is_empty() || choices.iter().any(|choice| choice.is_empty()) {
        return wrong("mc1_targets", "expected `choices` that are not empty");
    }
    Ok(Question::new(text, choices, 0))
}

/// The options stand in the sentence, and what follows them is scored.
fn winogrande(row: &Fields<'_>) -> Read<Question> {
    let sentence = row.text("sentence")?;
    let Some((before, after)) = sentence.split_once('_') else {
        return wrong("sentence", "expected a gap `_`");
    };
    let ending = python::strip(after).to_owned();
    if ending.is_empty() {
        return wrong("sentence", "expected a text after the gap `_`");
    }
    let choices = vec![format!("{before}{}", row.text("option1")?), format!("{before}{}", row.text("option2")?)];
    let gold = row.one_of("answer", &["1", "2"])?;
    let text = choices[gold].clone();
    Ok(Question { text, instruction: None, choices, gold: Some(gold), answer: ending.clone(), ending: Some(ending) })
}
