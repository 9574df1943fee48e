//! All tasks, in suites, and how tasks are selected by name.

mod acegpt;
mod aradice;
mod darija;
mod leaderboard;
mod lighteval;
mod lm_eval;
mod names;
mod rules;

use std::collections::{BTreeMap, BTreeSet};

use crate::task::{Group, Suite, Task};
use crate::{EvalError, Result};

/// Benchmarks that are named in model cards and cannot be run: their data are not public.
pub const NOT_PUBLIC: &[(&str, &str)] = &[
    ("ETEC", "ALLaM's exams of Saudi Arabia's education commission: not published"),
    ("IEN-MCQ and IEN-TF", "ALLaM's school questions of the Ien platform: not published"),
];

/// All suites.
pub fn suites() -> Vec<Suite> {
    [
        acegpt::suites(),
        lm_eval::suites(),
        darija::suites(),
        aradice::suites(),
        leaderboard::suites(),
        lighteval::suites(),
    ]
    .concat()
}

/// Selected tasks, and the groups whose tasks are all among them.
#[derive(Debug, Clone)]
pub struct Selection {
    /// The tasks, each once, in the order of the suites.
    pub tasks: Vec<Task>,
    /// The groups.
    pub groups: Vec<Group>,
}

/// Selects tasks and groups by name: a full name such as `lm-eval/arabicmmlu`, or one without its protocol if only one
/// protocol has it.
///
/// # Errors
/// A name is unknown, or several protocols have it.
pub fn select(names: &[String]) -> Result<Selection> {
    let all = suites();
    let tasks: Vec<&Task> = all.iter().flat_map(|suite| &suite.tasks).collect();
    let groups: Vec<&Group> = all.iter().flat_map(|suite| &suite.groups).collect();
    // From each full name to the full names of its tasks.
    let mut known: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for task in &tasks {
        known.insert(task.full_name(), vec![task.full_name()]);
    }
    for group in &groups {
        let own = group.tasks.iter().map(|task| format!("{}/{task}", group.protocol.name())).collect();
        known.insert(group.full_name(), own);
    }
    let mut wanted: BTreeSet<&String> = BTreeSet::new();
    for name in names {
        let ending = format!("/{name}");
        let mut found: Vec<&String> =
            if known.contains_key(name) { vec![name] } else { known.keys().filter(|k| k.ends_with(&ending)).collect() };
        if found.is_empty() {
            let (name, ending) = (name.to_lowercase(), ending.to_lowercase());
            let same = |known: &&String| {
                let known = known.to_lowercase();
                known == name || known.ends_with(&ending)
            };
            found = known.keys().filter(same).collect();
        }
        match found[..] {
            [one] => wanted.extend(known.get(one).into_iter().flatten()),
            [] => return Err(unknown(name, known.keys())),
            _ => {
                let list: Vec<&str> = found.iter().map(|name| name.as_str()).collect();
                let (expected, got) = ("a name that one harness has", list.join(", "));
                return Err(EvalError::unexpected(format!("task {name}"), expected, got, "give the whole name"));
            }
        }
    }
    let tasks: Vec<Task> = tasks.into_iter().filter(|task| wanted.contains(&task.full_name())).cloned().collect();
    let has =
        |group: &&&Group| group.tasks.iter().all(|task| wanted.contains(&format!("{}/{task}", group.protocol.name())));
    let groups = groups.iter().filter(has).map(|group| (*group).clone()).collect();
    Ok(Selection { tasks, groups })
}

fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> EvalError {
    let wanted = name.to_lowercase();
    let near: Vec<&str> =
        known.map(String::as_str).filter(|known| known.to_lowercase().contains(&wanted)).take(5).collect();
    let not_public = NOT_PUBLIC.iter().find(|(own, _)| own.to_lowercase().contains(&wanted));
    let remedy = match (not_public, near.is_empty()) {
        (Some((_, why)), _) => (*why).to_owned(),
        (None, true) => "`bayan eval list` shows all".to_owned(),
        (None, false) => format!("did you mean {}?", near.join(", ")),
    };
    EvalError::unexpected("--tasks", "names of tasks or groups", name, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_groups_name_tasks() {
        let all = suites();
        let mut seen = BTreeSet::new();
        for task in all.iter().flat_map(|suite| &suite.tasks) {
            assert!(seen.insert(task.full_name()), "{}", task.full_name());
        }
        let tasks = seen.clone();
        for group in all.iter().flat_map(|suite| &suite.groups) {
            // A task of its own may have a group's name in lighteval; none has it twice.
            assert!(seen.insert(group.full_name()), "{}", group.full_name());
            assert!(!group.tasks.is_empty(), "{}", group.full_name());
            for task in &group.tasks {
                assert!(tasks.contains(&format!("{}/{task}", group.protocol.name())), "{}: {task}", group.full_name());
            }
        }
    }

    #[test]
    fn suites_have_as_many_tasks_as_their_harnesses() {
        let count = |name: &str| select(&[name.to_owned()]).unwrap().tasks.len();
        assert_eq!(count("arabicmmlu"), 40);
        assert_eq!(count("egymmlu"), 44);
        assert_eq!(count("arab_culture"), 13);
        assert_eq!(count("darija_sentiment"), 5);
        assert_eq!((count("darija_translation"), count("darija_transliteration")), (7 + 7 + 3 + 3, 3));
        assert_eq!(count("darija_summarization"), 1);
        assert_eq!((count("aradice"), count("aradice_arabicmmlu_lev")), (40 + 40 + 4 + 6 + 4 + 4 + 4 + 4, 40));
        assert_eq!(count("arabic_leaderboard_complete"), 58 + 9 + 1 + 11);
        assert_eq!(count("arabic_leaderboard_arabic_mmlu"), 57);
        assert_eq!(count("oall_v2"), 9 + 1 + 40 + 57 + 8 + 2);
        assert_eq!(count("oall-v1/all"), 57 + 58 + 9 + 12);
        assert_eq!((count("acegpt/mmlu"), count("acegpt/exams"), count("acegpt/acva")), (57, 5, 58));
        let nested = select(&["acegpt/mmlu".into()]).unwrap().groups.remove(0);
        let crate::task::Combine::Nested(categories) = nested.combine else { panic!("a nested mean") };
        let subjects: usize = categories.iter().flat_map(|(_, subjects)| subjects).map(Vec::len).sum();
        assert_eq!((categories.len(), subjects), (4, 57));
    }

    #[test]
    fn unknown_and_ambiguous_names_are_refused() {
        let error = |name: &str| select(&[name.to_owned()]).unwrap_err().to_string();
        assert!(error("arabic_exams").contains("lighteval/arabic_exams, lm-eval/arabic_exams, oall-v1/arabic_exams"));
        assert!(error("arabicmlu").contains("bayan eval list"));
        assert!(error("etec").contains("not published"));
        assert!(error("driving").contains("arabicmmlu_driving_test"));
    }
}
