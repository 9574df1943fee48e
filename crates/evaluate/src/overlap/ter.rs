//! TER of sacrebleu, after Tercom: the fewest insertions, deletions, substitutions and shifts of runs of words, found
//! greedily, for each word of the reference. Letters are made small.

use super::words;
use crate::data::python;

const MOST_SHIFTED: usize = 10;
const MOST_DISTANCE: usize = 50;
const MOST_CANDIDATES: usize = 1000;
const BEAM: usize = 25;

/// Edits, and words of the reference.
pub fn counts(answer: &str, reference: &str) -> [u64; 2] {
    let lower = |text: &str| python::strip_end(text).to_lowercase();
    let (answer, reference) = (lower(answer), lower(reference));
    let reference: Vec<&str> = words(&reference).collect();
    let answer: Vec<&str> = words(&answer).collect();
    [edits(answer, &reference) as u64, reference.len() as u64]
}

/// In percent of the words of the references; it can be above 100.
pub fn score(sums: &[f64]) -> f64 {
    match sums {
        [edits, words] if *words > 0.0 => 100.0 * (edits / words),
        [edits, _] if *edits > 0.0 => 100.0,
        _ => 0.0,
    }
}

fn edits(mut answer: Vec<&str>, reference: &[&str]) -> usize {
    if reference.is_empty() {
        return answer.len();
    }
    let (mut shifts, mut candidates) = (0, 0);
    // Shifts go on as long as they make the distance smaller.
    while let Some(shifted) = best_shift(&answer, reference, &mut candidates) {
        if candidates >= MOST_CANDIDATES {
            break;
        }
        shifts += 1;
        answer = shifted;
    }
    shifts + distance(&answer, reference).0
}

/// The answer after the shift that saves most edits; of equal ones the longest, then the earliest, then the one that
/// goes to the earliest place. `None` if no shift saves any.
fn best_shift<'a>(answer: &[&'a str], reference: &[&str], candidates: &mut usize) -> Option<Vec<&'a str>> {
    let (before, steps) = distance(answer, reference);
    let Alignment { places, wrong_reference, wrong_answer } = align(&steps);
    let mut best: Option<((i64, usize, i64, i64), Vec<&'a str>)> = None;
    'pairs: for (start, target, length) in common_runs(answer, reference) {
        let any = |wrong: &[bool], from: usize| wrong[from..from + length].contains(&true);
        // Only wrong words are shifted, only to where the reference is not met yet, and not into themselves.
        let within = (start as i64..(start + length) as i64).contains(&places[target]);
        if !any(&wrong_answer, start) || !any(&wrong_reference, target) || within {
            continue;
        }
        let mut last = None;
        for place in target..=target + length {
            // Before the word that stands for the reference's word at `place`, that is after the one before it.
            let to = match place.checked_sub(1).map(|before| places.get(before)) {
                None => 0,
                Some(Some(before)) => (before + 1) as usize,
                Some(None) => break,
            };
            if last.replace(to) == Some(to) {
                continue;
            }
            let shifted = shift(answer, start, length, to);
            let saved = before as i64 - distance(&shifted, reference).0 as i64;
            let rank = (saved, length, -(start as i64), -(to as i64));
            *candidates += 1;
            if best.as_ref().is_none_or(|(best, _)| rank > *best) {
                best = Some((rank, shifted));
            }
        }
        if *candidates >= MOST_CANDIDATES {
            break 'pairs;
        }
    }
    best.filter(|((saved, ..), _)| *saved > 0).map(|(_, shifted)| shifted)
}

/// Start in the answer, start in the reference and length of all runs of words that both have.
fn common_runs(answer: &[&str], reference: &[&str]) -> Vec<(usize, usize, usize)> {
    let mut found = Vec::new();
    for start in 0..answer.len() {
        let near = start.saturating_sub(MOST_DISTANCE)..reference.len().min(start + MOST_DISTANCE + 1);
        for target in near {
            let same = answer[start..].iter().zip(&reference[target..]).take_while(|(a, b)| a == b);
            found.extend((1..=same.take(MOST_SHIFTED).count()).map(|length| (start, target, length)));
        }
    }
    found
}

/// Moves a run of words to before the place `to`, which is counted with the run in its place.
fn shift<'a>(words: &[&'a str], start: usize, length: usize, to: usize) -> Vec<&'a str> {
    let run = &words[start..start + length];
    let end = start + length;
    if to < start {
        [&words[..to], run, &words[to..start], &words[end..]].concat()
    } else {
        // A place inside of the run means as many words after its end.
        let to = if to > end { to } else { (to + length).min(words.len()) };
        [&words[..start], &words[end..to], run, &words[to..]].concat()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Same,
    Substituted,
    Inserted,
    Deleted,
    Unknown,
}

/// The number of edits from `answer` to `reference`, and the steps. Cells far from the diagonal are left out.
fn distance(answer: &[&str], reference: &[&str]) -> (usize, Vec<Step>) {
    const FAR: usize = usize::MAX / 2;
    let width = reference.len() + 1;
    let ratio = if answer.is_empty() { 1.0 } else { reference.len() as f64 / answer.len() as f64 };
    let beam = if (BEAM as f64) < ratio / 2.0 { (ratio / 2.0 + BEAM as f64).ceil() as usize } else { BEAM };
    let mut cells = vec![(FAR, Step::Unknown); (answer.len() + 1) * width];
    for (at, cell) in cells[..width].iter_mut().enumerate() {
        *cell = (at, Step::Inserted);
    }
    for row in 1..=answer.len() {
        let middle = (row as f64 * ratio).floor() as usize;
        let end = if row == answer.len() { width } else { width.min(middle + beam) };
        for column in middle.saturating_sub(beam)..end {
            let here = row * width + column;
            let above = cells[here - width].0;
            if column == 0 {
                cells[here] = (above + 1, Step::Deleted);
                continue;
            }
            let same = answer[row - 1] == reference[column - 1];
            let diagonal = cells[here - width - 1].0;
            let options = [
                if same { (diagonal, Step::Same) } else { (diagonal + 1, Step::Substituted) },
                (above + 1, Step::Deleted),
                (cells[here - 1].0 + 1, Step::Inserted),
            ];
            for option in options {
                if cells[here].0 > option.0 {
                    cells[here] = option;
                }
            }
        }
    }
    let (mut row, mut column) = (answer.len(), reference.len());
    let mut steps = Vec::new();
    while row > 0 || column > 0 {
        let step = cells[row * width + column].1;
        match step {
            Step::Same | Step::Substituted => (row, column) = (row - 1, column - 1),
            Step::Inserted => column -= 1,
            Step::Deleted => row -= 1,
            Step::Unknown => break,
        }
        steps.push(step);
    }
    steps.reverse();
    (cells[answer.len() * width + reference.len()].0, steps)
}

/// Where the words of the reference are in the answer.
struct Alignment {
    /// For each word of the reference, the last word of the answer up to there; −1 before the first.
    places: Vec<i64>,
    wrong_reference: Vec<bool>,
    wrong_answer: Vec<bool>,
}

fn align(steps: &[Step]) -> Alignment {
    let mut found = Alignment { places: Vec::new(), wrong_reference: Vec::new(), wrong_answer: Vec::new() };
    let mut place = -1;
    for step in steps {
        let wrong = *step != Step::Same;
        // A word that is inserted on the way to the reference is one that the answer lacks.
        if *step != Step::Inserted {
            place += 1;
            found.wrong_answer.push(wrong);
        }
        if *step != Step::Deleted {
            found.places.push(place);
            found.wrong_reference.push(wrong);
        }
    }
    found
}
