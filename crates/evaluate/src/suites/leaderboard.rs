//! `arabic_leaderboard_complete` and `_light` of lm-evaluation-harness: the first Open Arabic LLM Leaderboard's tasks,
//! scored by that harness; and the same tasks as the leaderboard ran them itself, with lighteval 0.3 to 0.7.

use super::lm_eval::{BOTH, group, task};
use super::{names, rules};
use crate::task::{Combine, Group, Metric, Protocol, Rule, Shots, Shuffle, Suite, Task};

/// The tasks on `OALL/AlGhafa-Arabic-LLM-Benchmark-Translated`: lm-evaluation-harness's name, lighteval's name, which is
/// the configuration's, and the rule of each.
const TRANSLATED: [(&str, &str, Rule, Rule); 11] = [
    ("arc_challenge", "arc_challenge_okapi_ar", rules::alghafa_texts, rules::alghafa_texts),
    ("arc_easy", "arc_easy_ar", rules::alghafa_texts, rules::alghafa_texts),
    ("boolq", "boolq_ar", |row| rules::boolq(row, WIDE), |row| rules::boolq(row, NARROW)),
    ("copa", "copa_ext_ar", rules::copa, rules::copa),
    ("hellaswag", "hellaswag_okapi_ar", |row| rules::hellaswag(row, WIDE), |row| rules::hellaswag(row, NARROW)),
    ("mmlu", "mmlu_okapi_ar", rules::alghafa_texts, rules::alghafa_texts),
    ("openbook_qa", "openbook_qa_ext_ar", rules::alghafa_texts, rules::alghafa_texts),
    ("piqa", "piqa_ar", rules::alghafa_texts, rules::alghafa_texts),
    ("race", "race_ar", rules::alghafa_texts, rules::alghafa_texts),
    ("sciq", "sciq_ar", |row| rules::sciq(row, false), |row| rules::sciq(row, true)),
    ("toxigen", "toxigen_ar", |row| rules::toxigen(row, WIDE), |row| rules::toxigen(row, NARROW)),
];

/// The indents of lm-evaluation-harness's and of lighteval's Python files, which are part of the prompts.
const WIDE: &str = "        ";
pub(super) const NARROW: &str = "    ";

/// How lm-evaluation-harness shuffles sciq: it reads the examples when it makes the task, before the questions.
const SCIQ_OF_LM_EVAL: Shuffle = Shuffle { seed: 0, choices: 4, examples_first: true };

/// How lighteval shuffles sciq. Its versions 0.3 to 0.7 set this seed only after they have read the rows, so that every
/// run of theirs had another order.
pub(super) const SCIQ_OF_LIGHTEVAL: Shuffle = Shuffle { seed: 1234, choices: 4, examples_first: false };

/// The data sets of the whole leaderboard, and of its tenth.
struct Sets {
    acva: &'static str,
    native: &'static str,
    translated: &'static str,
    exams: &'static str,
    mmlu: &'static str,
    ending: &'static str,
}

const COMPLETE: Sets = Sets {
    acva: "OALL/ACVA",
    native: "OALL/AlGhafa-Arabic-LLM-Benchmark-Native",
    translated: "OALL/AlGhafa-Arabic-LLM-Benchmark-Translated",
    exams: "OALL/Arabic_EXAMS",
    mmlu: "OALL/Arabic_MMLU",
    ending: "",
};

const LIGHT: Sets = Sets {
    acva: "arcee-globe/ACVA-10percent",
    native: "arcee-globe/AlGhafa-Arabic-LLM-Benchmark-Native-10percent",
    translated: "arcee-globe/AlGhafa-Arabic-LLM-Benchmark-Translated-10percent",
    exams: "arcee-globe/Arabic_EXAMS-10percent",
    mmlu: "arcee-globe/Arabic_MMLU-10percent",
    ending: "_light",
};

/// The suites of this file.
pub(super) fn suites() -> Vec<Suite> {
    vec![lm_eval(&COMPLETE), lm_eval(&LIGHT), oall_v1()]
}

fn lm_eval(sets: &Sets) -> Suite {
    let ending = sets.ending;
    let validation = ["test", "validation"];
    let (mut tasks, mut groups) = (Vec::new(), Vec::new());
    let mut add = |name: String, own: Vec<Task>| {
        groups.push(group(name, own.iter().map(|task| task.name.clone()).collect(), BOTH));
        tasks.extend(own);
    };
    let acva = names::ACVA_CONFIGS.iter().map(|config| {
        let name = format!("arabic_leaderboard_acva_{config}{ending}");
        task(name, sets.acva, Some(config), rules::acva, BOTH, validation)
    });
    add(format!("arabic_leaderboard_acva{ending}"), acva.collect());
    let native = names::ALGHAFA.iter().map(|config| {
        let name = format!("arabic_leaderboard_alghafa_{config}{ending}");
        task(name, sets.native, Some(config), rules::alghafa_texts, BOTH, validation)
    });
    add(format!("arabic_leaderboard_alghafa{ending}"), native.collect());
    let exams = format!("arabic_exams{ending}");
    let exams = task(exams, sets.exams, Some("default"), rules::exams, BOTH, validation);
    add(format!("arabic_leaderboard_arabic_exams{ending}"), vec![exams]);
    for (name, config, rule, _) in TRANSLATED {
        let own = format!("arabic_mt_{name}{ending}");
        let own = task(own, sets.translated, Some(config), rule, BOTH, validation);
        let shuffle = (name == "sciq").then_some(SCIQ_OF_LM_EVAL);
        let own = Task { shuffle, ..own };
        add(format!("arabic_leaderboard_arabic_mt_{name}{ending}"), vec![own]);
    }
    // The harness's group of all tasks leaves its MMLU out.
    let all: Vec<String> = tasks.iter().map(|task| task.name.clone()).collect();
    let mmlu: Vec<Task> = names::MMLU
        .iter()
        .map(|(subject, _)| {
            let name = format!("arabic_leaderboard_arabic_mmlu_{subject}{ending}");
            task(name, sets.mmlu, Some(subject), rules::mmlu_with_subject, BOTH, ["test", "dev"])
        })
        .collect();
    let names = mmlu.iter().map(|task| task.name.clone()).collect();
    groups.push(group(format!("arabic_leaderboard_arabic_mmlu{ending}"), names, BOTH));
    tasks.extend(mmlu);
    let (name, about) = match ending {
        "" => ("arabic_leaderboard_complete", "Tasks of the Open Arabic LLM Leaderboard v1, scored as lm-eval does"),
        _ => ("arabic_leaderboard_light", "A tenth of the leaderboard's rows, scored as lm-eval does"),
    };
    groups.insert(0, group(name, all, BOTH));
    Suite { about, tasks, groups }
}

/// A task of lighteval, whose choices follow the prompt without a space and are compared by their mean for each
/// character.
pub(super) fn lighteval_task(
    protocol: Protocol,
    name: String,
    dataset: &'static str,
    config: Option<&str>,
    rule: Rule,
    splits: [&'static str; 2],
) -> Task {
    let plain = task(name, dataset, config, rule, &[Metric::AccNorm], splits);
    Task {
        protocol,
        delimiter: "",
        shots: if plain.source.shots_split.is_some() { Shots::First(usize::MAX) } else { Shots::None },
        default_shots: if protocol == Protocol::OallV1 { 5 } else { 0 },
        shuffle: (config == Some("sciq_ar")).then_some(SCIQ_OF_LIGHTEVAL),
        ..plain
    }
}

/// A group of lighteval: the mean over its tasks.
pub(super) fn lighteval_group(protocol: Protocol, name: impl Into<String>, tasks: Vec<String>) -> Group {
    Group { name: name.into(), protocol, tasks, combine: Combine::Mean, metrics: &[Metric::AccNorm] }
}

fn oall_v1() -> Suite {
    let protocol = Protocol::OallV1;
    let validation = ["test", "validation"];
    let one = |name: String, dataset, config: &str, rule, splits| {
        lighteval_task(protocol, name, dataset, Some(config), rule, splits)
    };
    let names_of = |tasks: &[Task]| tasks.iter().map(|task| task.name.clone()).collect::<Vec<_>>();
    let mmlu: Vec<Task> = names::MMLU
        .iter()
        .map(|(subject, _)| {
            let name = format!("arabic_mmlu:{subject}");
            one(name, COMPLETE.mmlu, subject, rules::mmlu_with_subject, ["test", "dev"])
        })
        .collect();
    let acva: Vec<Task> = names::ACVA_CONFIGS
        .iter()
        .map(|config| one(format!("acva:{config}"), COMPLETE.acva, config, rules::acva, validation))
        .collect();
    let alghafa: Vec<Task> = names::ALGHAFA
        .iter()
        .map(|config| one(format!("alghafa:{config}"), COMPLETE.native, config, rules::alghafa_texts, validation))
        .collect();
    let mut single = vec![one("arabic_exams".into(), COMPLETE.exams, "default", rules::exams, validation)];
    single.extend(
        TRANSLATED
            .iter()
            .map(|(_, config, _, rule)| one((*config).into(), COMPLETE.translated, config, *rule, validation)),
    );
    let mut groups = vec![
        lighteval_group(protocol, "arabic_mmlu", names_of(&mmlu)),
        lighteval_group(protocol, "acva", names_of(&acva)),
        lighteval_group(protocol, "alghafa", names_of(&alghafa)),
    ];
    let tasks: Vec<Task> = [mmlu, acva, alghafa, single].concat();
    groups.insert(0, lighteval_group(protocol, "all", names_of(&tasks)));
    Suite { about: "The Open Arabic LLM Leaderboard v1, as it ran its tasks", tasks, groups }
}
