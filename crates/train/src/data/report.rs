//! Counts of rows that were kept, dropped or bad, for the user to read before a long run.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::error::BadRow;

/// Why a valid row was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// An assistant's turn, completion, chosen or rejected answer is empty.
    EmptyAnswer,
    /// The question is empty.
    EmptyPrompt,
    /// The text is empty.
    EmptyText,
    /// No turn of the assistant.
    NoAnswer,
    /// Every answer is marked with weight 0 or train false.
    AnswersUntrained,
    /// Chosen and rejected are the same.
    SameAnswers,
    /// No trained token is left within the maximal length.
    NothingTrained,
}

impl DropReason {
    /// The reason in words.
    pub fn text(self) -> &'static str {
        match self {
            Self::EmptyAnswer => "the answer is empty",
            Self::EmptyPrompt => "the question is empty",
            Self::EmptyText => "the text is empty",
            Self::NoAnswer => "no turn of the assistant",
            Self::AnswersUntrained => "an answer has weight 0 or train false, and none is left to train on",
            Self::SameAnswers => "chosen and rejected are the same",
            Self::NothingTrained => "nothing to train on within max_seq_length",
        }
    }
}

/// Number of bad rows whose description is kept.
const KEPT_BAD_ROWS: usize = 10;

/// Counts over all data files of a training or evaluation set.
#[derive(Debug, Clone, Default)]
pub struct DataReport {
    /// Rows read.
    pub read: u64,
    /// Examples kept (a preference row is one).
    pub kept: u64,
    /// Examples kept that were cut at the maximal length.
    pub truncated: u64,
    /// Rows that could not be read and were counted instead of stopping (`skip_bad`).
    pub bad: u64,
    /// The first bad rows.
    pub bad_rows: Vec<BadRow>,
    /// Rows left out, by reason.
    pub dropped: BTreeMap<DropReason, u64>,
    /// Assistant turns that could not be located in the rendered text and are therefore not trained.
    pub untrained_turns: u64,
    /// Examples whose system text was put before the first user turn, because the template has no system role.
    pub system_in_user: u64,
    /// Examples with tools that the template leaves out.
    pub tools_left_out: u64,
    /// Tokens kept.
    pub tokens: u64,
    /// Trained tokens among them.
    pub trained_tokens: u64,
    /// The longest sequence, before truncation.
    pub longest: u64,
    /// Sequences by length before truncation: bucket b counts lengths in 2^b .. 2^(b+1).
    pub lengths: [u64; 32],
}

impl DataReport {
    pub(crate) fn count_bad(&mut self, row: BadRow) {
        self.bad += 1;
        if self.bad_rows.len() < KEPT_BAD_ROWS {
            self.bad_rows.push(row);
        }
    }

    pub(crate) fn count_dropped(&mut self, reason: DropReason) {
        *self.dropped.entry(reason).or_default() += 1;
    }

    /// Counts a sequence of `length` tokens (before truncation).
    pub(crate) fn count_length(&mut self, length: usize) {
        self.longest = self.longest.max(length as u64);
        self.lengths[(length.max(1).ilog2() as usize).min(31)] += 1;
    }

    /// Rows left out for any reason other than being bad.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.values().sum()
    }
}

impl fmt::Display for DataReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
        writeln!(f, "rows read        {:>10}", self.read)?;
        writeln!(f, "kept             {:>10}", self.kept)?;
        writeln!(f, "  truncated      {:>10}", self.truncated)?;
        writeln!(f, "bad (skipped)    {:>10}", self.bad)?;
        for row in &self.bad_rows {
            writeln!(f, "    {row}")?;
        }
        writeln!(f, "dropped          {:>10}", self.dropped_total())?;
        for (reason, count) in &self.dropped {
            writeln!(f, "  {count:>10}  {}", reason.text())?;
        }
        if self.untrained_turns > 0 {
            writeln!(
                f,
                "turns not found  {:>10}  (the template renders them differently inside the conversation; not trained)",
                self.untrained_turns
            )?;
        }
        if self.system_in_user > 0 {
            writeln!(
                f,
                "system in user   {:>10}  (the template has no system role: its text is before the first user turn)",
                self.system_in_user
            )?;
        }
        if self.tools_left_out > 0 {
            writeln!(f, "tools left out   {:>10}  (the template does not render `tools`)", self.tools_left_out)?;
        }
        writeln!(f, "tokens           {:>10}", self.tokens)?;
        writeln!(
            f,
            "  trained        {:>10}  ({:.1} %)",
            self.trained_tokens,
            share(self.trained_tokens, self.tokens)
        )?;
        writeln!(f, "longest          {:>10}", self.longest)?;
        let most = self.lengths.iter().copied().max().unwrap_or(0);
        for (bucket, &count) in self.lengths.iter().enumerate().filter(|(_, count)| **count > 0) {
            let bar = "█".repeat((count * 30).div_ceil(most.max(1)) as usize);
            writeln!(f, "  {:>7}..{:<7} {count:>8} {bar}", 1u64 << bucket, (2u64 << bucket) - 1)?;
        }
        Ok(())
    }
}
