//! chrF2 of sacrebleu: runs of 1 to 6 characters without white space, recall twice as important as precision.

use std::collections::HashMap;

use crate::data::python;

/// Characters of the longest runs that are counted.
const ORDER: usize = 6;

/// The square of the importance of recall.
const FACTOR: f64 = 4.0;

/// For each length: runs of the answer, of the reference, and those that both have. Runs of the answer count only where
/// the reference is long enough to have any.
pub fn counts(answer: &str, reference: &str) -> [u64; 3 * ORDER] {
    let bare = |text: &str| text.chars().filter(|c| !python::is_space(*c)).collect::<Vec<char>>();
    let (answer, reference) = (bare(answer), bare(reference));
    let mut found = [0; 3 * ORDER];
    for (length, counts) in (1..).zip(found.chunks_mut(3)) {
        let mut left: HashMap<&[char], u64> = HashMap::new();
        reference.windows(length).for_each(|run| *left.entry(run).or_default() += 1);
        if left.is_empty() {
            continue;
        }
        counts[1] = left.values().sum();
        for run in answer.windows(length) {
            counts[0] += 1;
            if let Some(count) = left.get_mut(run).filter(|count| **count > 0) {
                *count -= 1;
                counts[2] += 1;
            }
        }
    }
    found
}

/// From 0 to 100: of the means of precision and recall over the lengths that both texts have.
pub fn score(sums: &[f64]) -> f64 {
    let (mut precision, mut recall, mut lengths) = (0.0, 0.0, 0.0);
    for counts in sums.chunks_exact(3).filter(|counts| counts[0] > 0.0 && counts[1] > 0.0) {
        precision += counts[2] / counts[0];
        recall += counts[2] / counts[1];
        lengths += 1.0;
    }
    if precision + recall == 0.0 {
        return 0.0;
    }
    (precision, recall) = (precision / lengths, recall / lengths);
    100.0 * ((1.0 + FACTOR) * precision * recall / (FACTOR * precision + recall))
}
