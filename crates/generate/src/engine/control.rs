//! Control of a generation: a handle to follow and stop it, and the size of the submissions of a prompt.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bayan_gpu::Capabilities;

/// A handle on the running generation, which stops between two tokens or two chunks of a prompt.
#[derive(Debug, Default)]
pub struct Control {
    stopped: AtomicBool,
    tokens: AtomicUsize,
}

impl Control {
    /// Stops the running generation with [`super::FinishReason::Stopped`]; no effect when none runs.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Number of tokens that the running or the last generation has generated.
    pub fn tokens(&self) -> usize {
        self.tokens.load(Ordering::Relaxed)
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    pub(super) fn start(&self) {
        self.stopped.store(false, Ordering::Relaxed);
        self.count(0);
    }

    pub(super) fn count(&self, tokens: usize) {
        self.tokens.store(tokens, Ordering::Relaxed);
    }
}

/// The longest time of one submission in a browser: longer ones make the whole screen stutter, and far longer ones make
/// the browser reset the device.
const SUBMISSION_SECONDS: f64 = 0.1;

/// Bounds of a chunk whose size is adapted to the measured time.
const CHUNK_RANGE: std::ops::RangeInclusive<usize> = 16..=512;

/// Most submissions of one chunk.
const MAX_SUBMISSIONS: usize = 64;

/// The number of prompt tokens in one chunk, and, when even the smallest chunk takes too long, the number of
/// submissions that the chunk is divided into.
#[derive(Debug)]
pub(super) struct PrefillChunks {
    chunk: usize,
    submissions: usize,
    adaptive: bool,
}

impl PrefillChunks {
    pub(super) fn new(fixed: Option<usize>, capabilities: &Capabilities) -> PrefillChunks {
        let start = match (capabilities.browser, capabilities.software) {
            (true, _) => 64,
            (false, true) => 128,
            (false, false) => 512,
        };
        PrefillChunks {
            chunk: fixed.unwrap_or(start).max(1),
            submissions: 1,
            adaptive: fixed.is_none() && capabilities.browser,
        }
    }

    /// The largest size that a chunk can reach.
    pub(super) fn max_chunk(&self) -> usize {
        if self.adaptive { *CHUNK_RANGE.end() } else { self.chunk }
    }

    pub(super) fn chunk(&self) -> usize {
        self.chunk
    }

    pub(super) fn submissions(&self) -> usize {
        self.submissions
    }

    /// Adapts to a submission of `tokens` that took `seconds`. A last, shorter chunk of a prompt is ignored.
    pub(super) fn adapt(&mut self, tokens: usize, seconds: f64) {
        if !self.adaptive || tokens != self.chunk {
            return;
        }
        let mut expected = seconds;
        while expected > SUBMISSION_SECONDS && self.chunk > *CHUNK_RANGE.start() {
            self.chunk /= 2;
            expected /= 2.0;
        }
        self.submissions = ((expected / SUBMISSION_SECONDS).ceil() as usize).clamp(1, MAX_SUBMISSIONS);
        // The margin prevents alternating between two sizes.
        if expected * 2.0 < SUBMISSION_SECONDS * 0.8 && self.chunk < *CHUNK_RANGE.end() {
            self.chunk *= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_settle_below_the_time_limit_and_stay() {
        for (per_token, expected, submissions) in
            [(0.0001, 512, 1), (0.001, 64, 1), (0.002, 32, 1), (0.05, 16, 8), (9.0, 16, MAX_SUBMISSIONS)]
        {
            let mut chunks = PrefillChunks { chunk: 64, submissions: 1, adaptive: true };
            for _ in 0..8 {
                chunks.adapt(chunks.chunk, chunks.chunk as f64 * per_token);
            }
            assert_eq!((chunks.chunk(), chunks.submissions()), (expected, submissions), "{per_token} s a token");
        }
    }

    #[test]
    fn a_fixed_size_and_a_remainder_change_nothing() {
        let mut fixed = PrefillChunks { chunk: 100, submissions: 1, adaptive: false };
        fixed.adapt(100, 10.0);
        assert_eq!(fixed.chunk, 100);
        let mut chunks = PrefillChunks { chunk: 64, submissions: 1, adaptive: true };
        chunks.adapt(3, 10.0);
        assert_eq!(chunks.chunk, 64);
    }
}
