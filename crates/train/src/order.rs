//! The order of the examples, and a run's position in it.
//!
//! The order of an epoch depends on seed and epoch alone, so that a position is two numbers and a resumed run sees
//! exactly what an uninterrupted one would. Rejected: storing the permutation in each checkpoint, because it grows with
//! the data and adds no information.

use serde::{Deserialize, Serialize};

use crate::rng::Rng;

/// A run's position in its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Position {
    /// Complete epochs.
    pub epoch: u64,
    /// Examples of this epoch that were returned.
    pub taken: u64,
}

/// Returns example numbers batch by batch, epoch after epoch, without end.
#[derive(Debug, Clone)]
pub struct Order {
    examples: usize,
    batch_size: usize,
    seed: u64,
    shuffle: bool,
    position: Position,
    permutation: Vec<u32>,
}

/// One micro-batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Its epoch, from 0.
    pub epoch: u64,
    /// The numbers of its examples; fewer than the batch size at the end of an epoch.
    pub examples: Vec<usize>,
    /// Whether it is the last of its epoch. As in transformers, an optimizer step ends there even with fewer
    /// micro-batches.
    pub ends_epoch: bool,
}

impl Order {
    /// An order over `examples` examples (at most 2³² − 1). Without `shuffle`, every epoch is 0, 1, 2, ….
    pub fn new(examples: usize, batch_size: usize, seed: u64, shuffle: bool) -> Self {
        let examples = examples.min(u32::MAX as usize);
        let mut order = Self {
            examples,
            batch_size: batch_size.max(1),
            seed,
            shuffle,
            position: Position::default(),
            permutation: vec![],
        };
        order.permute();
        order
    }

    /// The same order from a position on. A position beyond the epoch's end means its end.
    #[must_use]
    pub fn resumed(mut self, position: Position) -> Self {
        self.position = Position { epoch: position.epoch, taken: position.taken.min(self.examples as u64) };
        self.permute();
        self
    }

    /// The start of the next batch.
    pub fn position(&self) -> Position {
        self.position
    }

    fn permute(&mut self) {
        self.permutation = (0..self.examples as u32).collect();
        if self.shuffle {
            Rng::new(self.seed, self.position.epoch).shuffle(&mut self.permutation);
        }
    }

    /// The next micro-batch; `None` only when there are no examples.
    pub fn next_batch(&mut self) -> Option<Batch> {
        if self.examples == 0 {
            return None;
        }
        if self.position.taken >= self.examples as u64 {
            self.position = Position { epoch: self.position.epoch + 1, taken: 0 };
            self.permute();
        }
        let from = self.position.taken as usize;
        let to = (from + self.batch_size).min(self.examples);
        self.position.taken = to as u64;
        let examples = self.permutation[from..to].iter().map(|i| *i as usize).collect();
        Some(Batch { epoch: self.position.epoch, examples, ends_epoch: to == self.examples })
    }

    /// The micro-batches of the next optimizer step: `accumulation` of them, fewer at the end of an epoch, as in
    /// transformers' Trainer.
    pub fn next_step(&mut self, accumulation: usize) -> Vec<Batch> {
        let mut step = Vec::new();
        while step.len() < accumulation.max(1) {
            let Some(batch) = self.next_batch() else { break };
            let ends = batch.ends_epoch;
            step.push(batch);
            if ends {
                break;
            }
        }
        step
    }
}

/// Optimizer steps of an epoch, including an incomplete accumulation at the end.
pub fn steps_per_epoch(examples: usize, batch_size: usize, accumulation: usize) -> u64 {
    examples.div_ceil(batch_size.max(1)).div_ceil(accumulation.max(1)) as u64
}

/// A seeded split: the numbers of `count` examples for validation and of the others for training, both ascending.
pub fn split_validation(examples: usize, count: usize, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let mut all: Vec<usize> = (0..examples).collect();
    Rng::new(seed, u64::MAX).shuffle(&mut all);
    let mut training = all.split_off(count.min(examples));
    all.sort_unstable();
    training.sort_unstable();
    (all, training)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_has_every_example_once_in_another_order() {
        let mut order = Order::new(10, 3, 42, true);
        let mut epochs = vec![vec![]; 3];
        for _ in 0..12 {
            let batch = order.next_batch().unwrap();
            epochs[batch.epoch as usize].extend(batch.examples);
        }
        assert_ne!(epochs[0], epochs[1]);
        assert_ne!(epochs[1], epochs[2]);
        for epoch in &mut epochs {
            epoch.sort_unstable();
            assert_eq!(*epoch, (0..10).collect::<Vec<_>>());
        }
        // Checkpoints of earlier versions depend on this order.
        assert_eq!(Order::new(8, 8, 0, true).next_batch().unwrap().examples, [2, 4, 6, 5, 1, 0, 3, 7]);
    }

    #[test]
    fn resuming_anywhere_goes_on_as_if_never_stopped() {
        let mut whole = Order::new(11, 2, 5, true);
        for stop in 0..20 {
            let mut resumed = Order::new(11, 2, 5, true).resumed(whole.position());
            let rest: Vec<_> = (0..15).map(|_| resumed.next_batch()).collect();
            let mut copy = whole.clone();
            assert_eq!(rest, (0..15).map(|_| copy.next_batch()).collect::<Vec<_>>(), "after {stop} batches");
            whole.next_batch();
        }
    }

    #[test]
    fn steps_end_with_the_epoch() {
        let mut order = Order::new(7, 2, 0, false);
        let sizes: Vec<Vec<usize>> =
            (0..4).map(|_| order.next_step(3).iter().map(|b| b.examples.len()).collect()).collect();
        assert_eq!(sizes, [vec![2, 2, 2], vec![1], vec![2, 2, 2], vec![1]]);
        assert_eq!(steps_per_epoch(7, 2, 3), 2);
        assert_eq!(steps_per_epoch(0, 2, 3), 0);
        assert!(Order::new(0, 2, 0, true).next_step(3).is_empty());
    }

    #[test]
    fn a_split_is_a_partition_and_the_same_each_time() {
        let (validation, training) = split_validation(100, 10, 3);
        assert_eq!((validation.len(), training.len()), (10, 90));
        let mut all = [validation.clone(), training].concat();
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
        assert_eq!(split_validation(100, 10, 3).0, validation);
        assert_ne!(split_validation(100, 10, 4).0, validation);
    }
}
