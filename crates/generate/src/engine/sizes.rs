//! The numbers of tokens that steps may have.
//!
//! A plan is compiled for each number, so a server takes them from a short list: plans are then few, can be compiled at
//! start, and their memory is bounded. A step with fewer tokens than its size is filled up with tokens whose results
//! nobody reads. Rejected: exact sizes everywhere, because every new length of a prompt would compile kernels while
//! other answers wait; one chat keeps them, because it computes no token in vain.

/// How the number of tokens of a step is chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StepSizes {
    /// As many tokens as there are, and prompts are read whole before answers go on. For one user.
    #[default]
    Exact,
    /// Sizes from a short list, and answers go on beside each piece of a prompt. For a server.
    Listed,
    /// As [`StepSizes::Listed`], with one size for each kind of step, so that an answer does not depend on other
    /// requests: the same kernels compute it in the same order, alone or among others.
    Invariant,
}

/// The smallest listed piece of a prompt; smaller ones are filled up.
pub(super) const SMALLEST_PIECE: usize = 16;

/// A piece of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// Tokens of the prompt.
    pub(super) tokens: usize,
    /// Tokens of the step: those of the prompt, and others behind them that fill it up.
    pub(super) size: usize,
}

impl StepSizes {
    /// Whether answers go on while a prompt is read.
    pub(super) fn interleaves(self) -> bool {
        self != StepSizes::Exact
    }

    /// Whether a step may have a piece of a prompt and one token of each answer together. Otherwise they take turns.
    pub(super) fn mixes(self, recurrent: bool) -> bool {
        self == StepSizes::Listed && !recurrent
    }

    /// The sizes of steps with one token of each answer, for at most `sequences` answers; empty when every number may
    /// occur. A recurrent state must not be advanced twice, so that no row can be filled up.
    pub(super) fn rows(self, sequences: usize, recurrent: bool) -> Vec<usize> {
        match self {
            StepSizes::Exact => Vec::new(),
            StepSizes::Listed if recurrent => (1..=sequences).collect(),
            StepSizes::Listed => powers(1, sequences),
            StepSizes::Invariant => vec![sequences],
        }
    }

    /// The number of rows of a step for this many answers.
    pub(super) fn row_count(self, answers: usize, sequences: usize, recurrent: bool) -> usize {
        self.rows(sequences, recurrent).into_iter().find(|&size| size >= answers).unwrap_or(answers)
    }

    /// The sizes of pieces of a prompt that are compiled at start.
    pub(super) fn pieces(self, chunk: usize, recurrent: bool) -> Vec<usize> {
        match self {
            StepSizes::Exact => Vec::new(),
            StepSizes::Listed if recurrent => powers(1, chunk),
            StepSizes::Listed => powers(SMALLEST_PIECE.min(chunk), chunk),
            StepSizes::Invariant => vec![chunk],
        }
    }

    /// The next piece of a prompt of which `left` tokens remain, where the cache has `room` more positions. It is filled
    /// up to `least` tokens if it can be.
    pub(super) fn piece(self, left: usize, room: usize, [least, chunk]: [usize; 2], recurrent: bool) -> Piece {
        let exact = |size: usize| Piece { tokens: size, size };
        if self == StepSizes::Exact || left >= chunk {
            return exact(left.min(chunk));
        }
        let sizes = self.pieces(chunk, recurrent);
        let fitting = |tokens: usize| sizes.iter().copied().find(|&size| size >= tokens && size <= room);
        let listed = fitting(if recurrent { left } else { left.max(least.min(chunk)) }).or_else(|| fitting(left));
        match listed.filter(|&size| !recurrent || size == left) {
            Some(size) => Piece { tokens: left, size },
            // Nothing can be filled up: the largest power of two.
            None => exact(1 << left.ilog2()),
        }
    }
}

/// The powers of two from `first` below `last`, and `last`.
fn powers(first: usize, last: usize) -> Vec<usize> {
    let mut sizes: Vec<usize> = std::iter::successors(Some(first.next_power_of_two()), |size| Some(size * 2))
        .take_while(|&size| size < last)
        .collect();
    sizes.push(last);
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes of all pieces of a prompt.
    fn pieces(sizes: StepSizes, tokens: usize, context: usize, chunk: usize, recurrent: bool) -> Vec<usize> {
        let (mut at, mut found) = (0, Vec::new());
        while at < tokens {
            let piece = sizes.piece(tokens - at, context - at, [1, chunk], recurrent);
            assert!(piece.tokens > 0 && piece.tokens <= piece.size && at + piece.size <= context, "{piece:?} at {at}");
            assert!(!recurrent || piece.tokens == piece.size, "{piece:?}: a recurrent state reads every token");
            at += piece.tokens;
            found.push(piece.size);
        }
        assert_eq!(at, tokens);
        found
    }

    #[test]
    fn prompts_of_any_length_take_few_sizes() {
        let mut seen = std::collections::BTreeSet::new();
        for tokens in 1..1000 {
            seen.extend(pieces(StepSizes::Listed, tokens, 2048, 256, false));
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [16, 32, 64, 128, 256]);
        assert_eq!(pieces(StepSizes::Listed, 700, 2048, 256, false), [256, 256, 256]);
        assert_eq!(pieces(StepSizes::Listed, 600, 2048, 256, false), [256, 256, 128]);
        assert_eq!(pieces(StepSizes::Exact, 600, 2048, 256, false), [256, 256, 88]);
        assert_eq!(pieces(StepSizes::Invariant, 300, 2048, 256, false), [256, 256]);
    }

    #[test]
    fn pieces_are_filled_up_to_the_smallest_size() {
        let piece = |left, room, recurrent| StepSizes::Listed.piece(left, room, [64, 64], recurrent).size;
        assert_eq!([piece(5, 100, false), piece(64, 100, false), piece(5, 20, false)], [64, 64, 16]);
        assert_eq!(piece(5, 100, true), 4, "a recurrent state reads every token");
    }

    #[test]
    fn full_contexts_and_recurrent_states_take_powers_of_two() {
        assert_eq!(pieces(StepSizes::Listed, 99, 99, 64, false), [64, 32, 2, 1]);
        assert_eq!(pieces(StepSizes::Listed, 99, 4096, 64, true), [64, 32, 2, 1]);
        for tokens in 1..300 {
            pieces(StepSizes::Listed, tokens, tokens, 100, false);
            pieces(StepSizes::Listed, tokens, tokens, 100, true);
        }
    }

    #[test]
    fn answers_share_steps_of_few_sizes() {
        assert_eq!(StepSizes::Listed.rows(6, false), [1, 2, 4, 6]);
        assert_eq!(StepSizes::Listed.rows(1, false), [1]);
        assert_eq!(StepSizes::Listed.row_count(3, 6, false), 4);
        assert_eq!(StepSizes::Listed.row_count(5, 6, false), 6);
        assert_eq!(StepSizes::Listed.row_count(3, 6, true), 3);
        assert_eq!(StepSizes::Invariant.row_count(1, 6, false), 6);
        assert_eq!(StepSizes::Exact.row_count(3, 6, false), 3);
    }
}
