//! ROUGE of rouge-score: F1 of words in common. Its words are runs of the letters a to z and digits, so that Arabic
//! letters count for nothing.

use std::collections::{BTreeSet, HashMap};

/// The words of a text, in small letters.
fn tokenize(text: &str) -> Vec<String> {
    let text = text.to_lowercase();
    let apart = |c: char| !matches!(c, 'a'..='z' | '0'..='9');
    text.split(apart).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

fn f1(hits: usize, answer: usize, reference: usize) -> f64 {
    if hits == 0 {
        return 0.0;
    }
    let (precision, recall) = (hits as f64 / answer as f64, hits as f64 / reference as f64);
    2.0 * precision * recall / (precision + recall)
}

/// Runs of `length` words in common.
pub fn ngrams(answer: &str, reference: &str, length: usize) -> f64 {
    let (answer, reference) = (tokenize(answer), tokenize(reference));
    let mut left: HashMap<&[String], usize> = HashMap::new();
    reference.windows(length).for_each(|run| *left.entry(run).or_default() += 1);
    let mut hits = 0;
    for run in answer.windows(length) {
        if let Some(count) = left.get_mut(run).filter(|count| **count > 0) {
            *count -= 1;
            hits += 1;
        }
    }
    let runs = |words: &[String]| words.len().saturating_sub(length - 1);
    f1(hits, runs(&answer), runs(&reference))
}

/// Lengths of the longest common subsequences of all beginnings of two lists of words.
fn table(first: &[String], second: &[String]) -> Vec<Vec<u32>> {
    let mut rows = vec![vec![0; second.len() + 1]; first.len() + 1];
    for i in 1..=first.len() {
        for j in 1..=second.len() {
            rows[i][j] =
                if first[i - 1] == second[j - 1] { rows[i - 1][j - 1] + 1 } else { rows[i - 1][j].max(rows[i][j - 1]) };
        }
    }
    rows
}

/// The longest common subsequence.
pub fn longest(answer: &str, reference: &str) -> f64 {
    let (answer, reference) = (tokenize(answer), tokenize(reference));
    let common = table(&reference, &answer)[reference.len()][answer.len()];
    f1(common as usize, answer.len(), reference.len())
}

/// The places in `reference` of one of the longest common subsequences: of several, the one that the original finds
/// from the end.
fn places(reference: &[String], answer: &[String]) -> Vec<usize> {
    let rows = table(reference, answer);
    let (mut i, mut j) = (reference.len(), answer.len());
    let mut found = Vec::new();
    while i > 0 && j > 0 {
        if reference[i - 1] == answer[j - 1] {
            (i, j) = (i - 1, j - 1);
            found.push(i);
        } else if rows[i][j - 1] > rows[i - 1][j] {
            j -= 1;
        } else {
            i -= 1;
        }
    }
    found
}

/// For each line of the reference, the union of its longest common subsequences with the lines of the answer. No word
/// counts more often than either text has it.
pub fn longest_by_line(answer: &str, reference: &str) -> f64 {
    let lines =
        |text: &str| -> Vec<Vec<String>> { text.split('\n').filter(|line| !line.is_empty()).map(tokenize).collect() };
    let (answer, reference) = (lines(answer), lines(reference));
    let count = |lines: &[Vec<String>]| {
        let mut found: HashMap<String, usize> = HashMap::new();
        lines.iter().flatten().for_each(|word| *found.entry(word.clone()).or_default() += 1);
        found
    };
    let (mut in_answer, mut in_reference) = (count(&answer), count(&reference));
    let mut hits = 0;
    for line in &reference {
        let union: BTreeSet<usize> = answer.iter().flat_map(|other| places(line, other)).collect();
        for at in union {
            let left = [&mut in_answer, &mut in_reference].map(|counts| counts.get_mut(&line[at]));
            if let [Some(answer @ 1..), Some(reference @ 1..)] = left {
                (*answer, *reference) = (*answer - 1, *reference - 1);
                hits += 1;
            }
        }
    }
    let words = |lines: &[Vec<String>]| lines.iter().map(Vec::len).sum();
    f1(hits, words(&answer), words(&reference))
}
