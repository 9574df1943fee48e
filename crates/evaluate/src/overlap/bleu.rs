//! BLEU of sacrebleu: the tokenizer `13a`, up to 4 words, exponential smoothing.

use std::collections::HashMap;

use super::words;
use crate::data::python;

/// Words of the longest runs that are counted.
const ORDER: usize = 4;

/// Numbers of words of answer and reference, then of runs of 1 to 4 words of the answer that the reference has, then of
/// all of them.
pub fn counts(answer: &str, reference: &str) -> [u64; 2 + 2 * ORDER] {
    let [answer, reference] = [answer, reference].map(|text| tokenize(python::strip_end(text)));
    let [answer, reference] = [&answer, &reference].map(|text| words(text).collect::<Vec<&str>>());
    let mut found = [0; 2 + 2 * ORDER];
    (found[0], found[1]) = (answer.len() as u64, reference.len() as u64);
    for length in 1..=ORDER {
        let mut left: HashMap<&[&str], u64> = HashMap::new();
        reference.windows(length).for_each(|run| *left.entry(run).or_default() += 1);
        for run in answer.windows(length) {
            found[1 + ORDER + length] += 1;
            if let Some(count) = left.get_mut(run).filter(|count| **count > 0) {
                *count -= 1;
                found[1 + length] += 1;
            }
        }
    }
    found
}

/// From 0 to 100.
pub fn score(sums: &[f64]) -> f64 {
    let [answer, reference, rest @ ..] = sums else { return 0.0 };
    let (right, all) = rest.split_at(rest.len() / 2);
    if right.iter().all(|count| *count == 0.0) {
        return 0.0;
    }
    let mut smoothing = 1.0;
    let mut logarithms = 0.0;
    for (right, all) in right.iter().zip(all) {
        if *all == 0.0 {
            // The answers are all shorter than this.
            return 0.0;
        }
        let precision = if *right == 0.0 {
            smoothing *= 2.0;
            100.0 / (smoothing * all)
        } else {
            100.0 * right / all
        };
        logarithms += precision.ln();
    }
    let brevity = if answer < reference { (1.0 - reference / answer).exp() } else { 1.0 };
    brevity * (logarithms / ORDER as f64).exp()
}

/// The tokenizer of the program mteval-v13a.
fn tokenize(text: &str) -> String {
    let text = text.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    let text = text.replace("&quot;", "\"").replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">");
    let apart = |c: char| matches!(c, '{'..='~' | '['..='`' | ' '..='&' | '('..='+' | ':'..='@' | '/');
    let mut found = String::from(" ");
    for c in text.chars() {
        if apart(c) {
            found.extend([' ', c, ' ']);
        } else {
            found.push(c);
        }
    }
    found.push(' ');
    let point = |c: char| c == '.' || c == ',';
    let digit = |c: char| c.is_ascii_digit();
    let found = pairs(&found, |a, b| !digit(a) && point(b), |a, b| [a, ' ', b, ' ']);
    let found = pairs(&found, |a, b| point(a) && !digit(b), |a, b| [' ', a, ' ', b]);
    pairs(&found, |a, b| digit(a) && b == '-', |a, b| [a, ' ', b, ' '])
}

/// Replaces pairs of characters from left to right; pairs do not overlap.
fn pairs(text: &str, wanted: impl Fn(char, char) -> bool, by: impl Fn(char, char) -> [char; 4]) -> String {
    let mut found = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(first) = characters.next() {
        match characters.next_if(|second| wanted(first, *second)) {
            Some(second) => found.extend(by(first, second)),
            None => found.push(first),
        }
    }
    found
}
