//! The tokenized data set in memory, packing, and the micro-batches that the engine trains on.
//!
//! Texts are streamed and only their tokens are kept, at five bytes each. A batch is not padded: its sequences follow
//! each other, and each token has its position and the number of its sequence, which is exactly the form of a packed
//! sequence. Rejected: padding, because it costs compute, and the kernels find sequences through a table anyway.

use std::ops::Range;

use crate::data::{DataFile, DataOptions, DataReport, Examples, Shape};
use crate::error::{BadRow, Result, TrainError};
use crate::render::{IGNORED, Renderer, Tokens};
use crate::rng::split_mix;

/// All sequences in one buffer. A preference data set has two for each example, chosen and rejected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dataset {
    ids: Vec<u32>,
    trained: Vec<bool>,
    /// The end of each sequence.
    ends: Vec<usize>,
    /// Sequences per example: 1, or 2 for preference pairs.
    per_example: usize,
}

impl Dataset {
    /// Makes a data set of tokenized sequences, one for each example.
    pub fn from_sequences<'a>(sequences: impl IntoIterator<Item = &'a Tokens>) -> Self {
        let mut set = Self { per_example: 1, ..Self::default() };
        sequences.into_iter().for_each(|tokens| set.push(tokens));
        set
    }

    /// The same sequences, taken as pairs of chosen and rejected.
    #[cfg(test)]
    pub(crate) fn paired(self) -> Self {
        Self { per_example: 2, ..self }
    }

    fn push(&mut self, tokens: &Tokens) {
        self.ids.extend_from_slice(&tokens.ids);
        self.trained.extend_from_slice(&tokens.trained);
        self.ends.push(self.ids.len());
    }

    /// Reads, renders and tokenizes all rows of these files. `on_row` is called with the counts after each row.
    ///
    /// # Errors
    /// A file or row that cannot be read (bad rows only without `skip_bad`), a row that the template refuses, or no
    /// trained token in the whole set.
    pub fn load(
        files: &[DataFile],
        options: DataOptions,
        renderer: &Renderer,
        mut on_row: impl FnMut(&DataReport),
    ) -> Result<Loaded> {
        let mut examples = Examples::new(files, options);
        let mut set = Self { per_example: 1, ..Self::default() };
        while let Some(next) = examples.next() {
            let (place, example) = next?;
            let outcome = match renderer.render(&example) {
                Ok(outcome) => outcome,
                Err(error) => {
                    let row = BadRow { place, field: String::new(), problem: error.to_string() };
                    match examples.bad(row) {
                        Some(error) => return Err(error),
                        None => continue,
                    }
                }
            };
            let report = &mut examples.report;
            report.untrained_turns += outcome.untrained_turns;
            report.system_in_user += u64::from(outcome.system_in_user);
            report.tools_left_out += u64::from(outcome.tools_left_out);
            outcome.lengths.iter().for_each(|length| report.count_length(*length));
            match outcome.rendered {
                Err(reason) => report.count_dropped(reason),
                Ok(rendered) => {
                    report.kept += 1;
                    report.truncated += u64::from(outcome.truncated);
                    set.per_example = rendered.sequences().count();
                    for tokens in rendered.sequences() {
                        report.tokens += tokens.ids.len() as u64;
                        report.trained_tokens += tokens.trained_count() as u64;
                        set.push(tokens);
                    }
                }
            }
            on_row(report);
        }
        if set.ends.is_empty() {
            let names = files.iter().map(|file| file.name().to_string()).collect::<Vec<_>>().join(", ");
            let report = &examples.report;
            let mut got = format!(
                "{} rows, of which {} were bad and {} dropped",
                report.read,
                report.bad,
                report.dropped_total()
            );
            if let Some((reason, _)) = report.dropped.iter().max_by_key(|(_, count)| **count) {
                got.push_str(&format!(" ({})", reason.text()));
            }
            return Err(TrainError::data(
                &names,
                "at least one example to train on",
                got,
                "look at the first rows with --dry-run",
            ));
        }
        Ok(Loaded { shape: examples.shape(), report: examples.report, dataset: set })
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.ends.len() / self.per_example.max(1)
    }

    /// Whether there are no examples.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Whether each example is a preference pair (chosen, rejected).
    pub fn is_preference(&self) -> bool {
        self.per_example == 2
    }

    /// A hash of all tokens, trained marks and their order: a resumed run must find the data that it began with.
    pub fn fingerprint(&self) -> u64 {
        let mut state = self.ends.len() as u64;
        let mut mix = |value: u64| {
            state ^= value;
            split_mix(&mut state);
            state = state.rotate_left(23).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        };
        self.ends.iter().for_each(|end| mix(*end as u64));
        self.ids.iter().zip(&self.trained).for_each(|(id, trained)| mix(u64::from(*id) << 1 | u64::from(*trained)));
        state
    }

    /// The length of each sequence.
    pub fn lengths(&self) -> Vec<usize> {
        (0..self.ends.len()).map(|at| self.range(at).len()).collect()
    }

    fn range(&self, sequence: usize) -> Range<usize> {
        let start = sequence.checked_sub(1).map_or(0, |before| self.ends[before]);
        start..self.ends[sequence]
    }

    /// Token ids and trained marks of a sequence. Preference example e has the sequences 2e (chosen) and 2e + 1
    /// (rejected).
    pub fn sequence(&self, sequence: usize) -> (&[u32], &[bool]) {
        let range = self.range(sequence);
        (&self.ids[range.clone()], &self.trained[range])
    }

    /// A data set of the examples with these numbers.
    #[must_use]
    pub fn subset(&self, examples: &[usize]) -> Self {
        let mut set = Self { per_example: self.per_example, ..Self::default() };
        for sequence in examples.iter().flat_map(|e| (0..self.per_example).map(move |part| e * self.per_example + part))
        {
            let (ids, trained) = self.sequence(sequence);
            set.ids.extend_from_slice(ids);
            set.trained.extend_from_slice(trained);
            set.ends.push(set.ids.len());
        }
        set
    }

    /// Concatenates sequences into a micro-batch; the positions of each start at 0.
    pub fn micro_batch(&self, sequences: &[usize]) -> MicroBatch {
        let mut batch = MicroBatch::default();
        for (number, sequence) in sequences.iter().enumerate() {
            let (ids, trained) = self.sequence(*sequence);
            batch.ids.extend_from_slice(ids);
            // The first token of a sequence is not trained: only the last token of another sequence precedes it.
            batch.labels.extend(
                ids.iter()
                    .zip(trained)
                    .enumerate()
                    .map(|(at, (id, t))| if *t && at > 0 { *id as i32 } else { IGNORED }),
            );
            batch.positions.extend(0..ids.len() as u32);
            batch.sequences.resize(batch.ids.len(), number as u32);
            batch.starts.push((batch.ids.len() - ids.len()) as u32);
        }
        batch
    }

    /// Groups sequences into packs of at most `length` tokens: each goes into the fullest pack that still has room, in
    /// the order given, so that the same order always gives the same packs. At most 256 packs are open at a time.
    pub fn pack(&self, length: usize) -> Vec<Vec<usize>> {
        const OPEN: usize = 256;
        let mut packs: Vec<Vec<usize>> = Vec::new();
        let mut open: Vec<(usize, usize)> = Vec::new(); // (tokens left, pack)
        for (sequence, tokens) in self.lengths().into_iter().enumerate() {
            let fit = open
                .iter()
                .enumerate()
                .filter(|(_, (left, _))| *left >= tokens)
                .min_by_key(|(_, fit)| **fit)
                .map(|(at, _)| at);
            match fit {
                Some(at) => {
                    open[at].0 -= tokens;
                    packs[open[at].1].push(sequence);
                }
                None => {
                    packs.push(vec![sequence]);
                    open.push((length.saturating_sub(tokens), packs.len() - 1));
                    if open.len() > OPEN {
                        let fullest = open.iter().enumerate().min_by_key(|(_, fit)| **fit).map_or(0, |(at, _)| at);
                        open.swap_remove(fullest);
                    }
                }
            }
        }
        packs
    }
}

/// A data set with the counts of its rows.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The sequences.
    pub dataset: Dataset,
    /// The counts of the rows.
    pub report: DataReport,
    /// The shape of the rows.
    pub shape: Option<Shape>,
}

/// Concatenated sequences without padding. T is the sum of their lengths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MicroBatch {
    /// Token ids \[T\].
    pub ids: Vec<u32>,
    /// `labels[t]` is token t where it is trained, −100 elsewhere \[T\].
    pub labels: Vec<i32>,
    /// The position of each token in its own sequence \[T\].
    pub positions: Vec<u32>,
    /// The number of each token's sequence within the batch \[T\].
    pub sequences: Vec<u32>,
    /// The start of each sequence.
    pub starts: Vec<u32>,
}

impl MicroBatch {
    /// The batch of these sequences, each with the number of its first trained token: the following ones are trained,
    /// too.
    pub fn of_ends<'a>(sequences: impl IntoIterator<Item = (&'a [u32], usize)>) -> MicroBatch {
        let mut batch = MicroBatch::default();
        for (number, (ids, from)) in sequences.into_iter().enumerate() {
            batch.starts.push(batch.ids.len() as u32);
            for (position, &id) in ids.iter().enumerate() {
                batch.ids.push(id);
                batch.labels.push(if position < from { IGNORED } else { id as i32 });
                batch.positions.push(position as u32);
                batch.sequences.push(number as u32);
            }
        }
        batch
    }

    /// The target of the logits at t \[T\]: the next token of the same sequence where it is trained, −100 elsewhere.
    pub fn targets(&self) -> Vec<i32> {
        let next = |t: usize| {
            self.sequences.get(t + 1).filter(|s| **s == self.sequences[t]).map_or(IGNORED, |_| self.labels[t + 1])
        };
        (0..self.ids.len()).map(next).collect()
    }

    /// Number of trained tokens.
    pub fn target_count(&self) -> usize {
        self.labels.iter().filter(|label| **label != IGNORED).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(lengths: &[usize]) -> Dataset {
        let sequences: Vec<Tokens> = lengths
            .iter()
            .enumerate()
            .map(|(n, length)| Tokens {
                ids: (0..*length as u32).map(|t| 100 * n as u32 + t).collect(),
                trained: (0..*length).map(|t| t >= length / 2).collect(),
            })
            .collect();
        Dataset::from_sequences(&sequences)
    }

    #[test]
    fn a_batch_keeps_sequences_apart() {
        let batch = set(&[4, 1, 3]).micro_batch(&[2, 0, 1]);
        assert_eq!(batch.ids, [200, 201, 202, 0, 1, 2, 3, 100]);
        assert_eq!(batch.positions, [0, 1, 2, 0, 1, 2, 3, 0]);
        assert_eq!(batch.sequences, [0, 0, 0, 1, 1, 1, 1, 2]);
        assert_eq!(batch.starts, [0, 3, 7]);
        assert_eq!(batch.labels, [-100, 201, 202, -100, -100, 2, 3, -100]);
        assert_eq!(batch.targets(), [201, 202, -100, -100, 2, 3, -100, -100]);
        assert_eq!(batch.target_count(), 4);
    }

    #[test]
    fn a_batch_of_ends_is_the_batch_of_such_sequences() {
        let sequences: [(&[u32], usize); 3] = [(&[200, 201, 202], 1), (&[0, 1, 2, 3], 2), (&[100], 1)];
        assert_eq!(MicroBatch::of_ends(sequences), set(&[4, 1, 3]).micro_batch(&[2, 0, 1]));
    }

    #[test]
    fn packs_hold_every_sequence_once_within_the_length() {
        let lengths: Vec<usize> = (0..500).map(|n| 1 + (n * 37) % 60).collect();
        let set = set(&lengths);
        let packs = set.pack(64);
        let mut all: Vec<usize> = packs.concat();
        all.sort_unstable();
        assert_eq!(all, (0..500).collect::<Vec<_>>());
        assert!(packs.iter().all(|pack| pack.iter().map(|s| lengths[*s]).sum::<usize>() <= 64));
        let least = lengths.iter().sum::<usize>().div_ceil(64);
        assert!(packs.len() <= least + least / 10, "{} packs, at least {least} are needed", packs.len());
        assert_eq!(packs, set.pack(64));
    }

    #[test]
    fn a_subset_has_its_examples() {
        let all = set(&[2, 3, 4]);
        let some = all.subset(&[2, 0]);
        assert_eq!((some.len(), some.lengths()), (2, vec![4, 2]));
        assert_eq!(some.sequence(0), all.sequence(2));
        assert_eq!(all.fingerprint(), set(&[2, 3, 4]).fingerprint());
        assert_ne!(all.fingerprint(), all.subset(&[1, 0, 2]).fingerprint());
        assert_ne!(all.fingerprint(), set(&[2, 3, 5]).fingerprint());
    }
}
