//! Log-likelihoods of continuations, as evaluations ask for them: several continuations of one context, for many
//! contexts.
//!
//! The common beginning of an item's texts is computed once and stays in the item's cache slot; each different rest is
//! computed after it. Texts that differ only in their last token have no different rest: one forward pass gives all of
//! them. What an item has in common with one before it, such as examples before each question, is not computed again
//! either: a slot goes on behind its own tokens, or points at another slot's. A step packs tokens of as many items as
//! there are slots, and computes logits only where a continuation is predicted. The device gives the log-probability of
//! each scored token: the host reads no row of logits, whose sum took it 1.4 ms for a vocabulary of 152,000. Rejected:
//! a job for each text ([`super::Job::prompt_scores`]), because it computes the context once for every continuation,
//! with logits everywhere.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use bayan_tensor::ops::{QUERY_TILE, many_tokens};

use super::adapters::StepAdapters;
use super::prefix::LEAST_COPIED;
use super::score::Scores;
use super::sizes::SMALLEST_PIECE;
use super::step::{Packed, StepKind};
use super::{Engine, LOGITS_CHUNK};
use crate::GenerateError;

/// Tokens that are scored in one place, of a step with few places: choices that are letters.
const FEW_CHOICES: usize = 4;

/// A text whose end is scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoredText {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Number of the first scored token, at least 1.
    pub from: usize,
}

/// The log-likelihood of a text's end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Likelihood {
    /// Sum of the natural log-probabilities of the scored tokens.
    pub sum: f64,
    /// Whether each scored token is the most likely one at its place.
    pub greedy: bool,
}

/// Tokens that follow each other in a slot, and what is scored there.
#[derive(Debug)]
struct Run {
    /// Position of the first token.
    start: usize,
    ids: Vec<u32>,
    /// Number of the first token after which logits are needed.
    first_row: usize,
    /// Numbers of the texts that these tokens belong to.
    texts: Vec<usize>,
}

impl Run {
    /// The texts whose token after the run's token `at` is scored, with that token.
    fn targets<'a>(&'a self, texts: &'a [ScoredText], at: usize) -> impl Iterator<Item = (usize, u32)> + 'a {
        let target = self.start + at + 1;
        let of = move |&text: &usize| {
            let ScoredText { ids, from } = &texts[text];
            ids.get(target).filter(|_| target >= *from).map(|&id| (text, id))
        };
        self.texts.iter().filter_map(of)
    }
}

/// A slot of the cache, with the runs that are left of its item.
#[derive(Debug, Default)]
struct Lane {
    item: usize,
    runs: VecDeque<Run>,
    /// Computed tokens of the first run.
    done: usize,
    /// The tokens whose keys and values the slot has, of this item or the one before it.
    cached: Vec<u32>,
    /// How many of them steps before this one have computed.
    ready: usize,
    /// Number of positions that were written, also behind these tokens.
    written: usize,
}

impl Lane {
    /// The number of tokens at the beginning of the first run that are among these. Those from the first row on are
    /// computed in any case: their logits are needed.
    fn common(&self, cached: &[u32]) -> usize {
        let Some(run) = self.runs.front().filter(|run| run.start == 0) else { return 0 };
        cached.iter().zip(&run.ids[..run.first_row]).take_while(|(a, b)| a == b).count()
    }

    /// Notes the first run's tokens until `end` as computed.
    fn advance(&mut self, end: usize) {
        let Some(run) = self.runs.front() else { return };
        self.cached.truncate(run.start + self.done);
        self.cached.extend_from_slice(&run.ids[self.done..end]);
        self.written = self.written.max(self.cached.len());
        self.done = end;
    }
}

/// The runs of an item. With `whole`, nothing is shared: each text begins at position 0.
fn runs(texts: &[ScoredText], whole: bool) -> VecDeque<Run> {
    let inputs = |text: &ScoredText| text.ids.len() - 1;
    let first = &texts[0].ids;
    let common = |text: &ScoredText| {
        let equal = first.iter().zip(&text.ids).take_while(|(a, b)| a == b).count();
        equal.min(inputs(text)).min(text.from - 1)
    };
    let shared = if whole { 0 } else { texts.iter().map(common).min().unwrap_or(0) };
    let mut found: VecDeque<Run> = VecDeque::new();
    for (number, text) in texts.iter().enumerate() {
        let (rest, first_row) = (&text.ids[shared..inputs(text)], text.from - 1 - shared);
        match found.iter_mut().find(|run| run.ids == rest) {
            Some(run) => {
                run.texts.push(number);
                run.first_row = run.first_row.min(first_row);
            }
            None => found.push_back(Run { start: shared, ids: rest.to_vec(), first_row, texts: vec![number] }),
        }
    }
    // The first run also computes what all share.
    if let Some(run) = found.front_mut() {
        run.ids = first[..shared].iter().chain(&run.ids).copied().collect();
        run.start = 0;
        run.first_row += shared;
    }
    found
}

impl Engine {
    /// Log-likelihoods of the ends of texts, in items whose texts share a beginning. `on_item` is called with the
    /// number of each finished item and the results of its texts, in the order in which items finish; a break ends the
    /// computation. The engine needs two sequences or more, of which the last is used to fill up steps; more sequences
    /// compute more items together. Other jobs of the engine are removed and the cache is empty afterwards. Returns the
    /// number of tokens that were computed.
    ///
    /// # Errors
    /// An item is empty, a text has nothing to score, does not fit the context or has tokens outside the vocabulary,
    /// the engine has one sequence, or the device fails.
    pub async fn likelihoods(
        &mut self,
        items: &[Vec<ScoredText>],
        on_item: &mut dyn FnMut(usize, &[Likelihood]) -> ControlFlow<()>,
    ) -> Result<usize, GenerateError> {
        for text in items.iter().flatten() {
            self.check(&text.ids)?;
            if text.from == 0 || text.from >= text.ids.len() {
                return Err(GenerateError::EmptyPrompt);
            }
            if text.ids.len() > self.context() + 1 {
                return Err(GenerateError::PromptTooLong { prompt: text.ids.len(), context: self.context() });
            }
        }
        if self.sequences() < 2 || items.iter().any(Vec::is_empty) {
            return Err(GenerateError::EmptyPrompt);
        }
        self.remove_all();
        self.reset();
        let result = self.score_items(items, on_item).await;
        self.reset();
        self.written.fill(0);
        result
    }

    async fn score_items(
        &mut self,
        items: &[Vec<ScoredText>],
        on_item: &mut dyn FnMut(usize, &[Likelihood]) -> ControlFlow<()>,
    ) -> Result<usize, GenerateError> {
        let mut lanes: Vec<Lane> = (1..self.sequences()).map(|_| Lane::default()).collect();
        let mut results: Vec<Vec<Likelihood>> =
            items.iter().map(|texts| vec![Likelihood { sum: 0.0, greedy: true }; texts.len()]).collect();
        let (mut next, mut computed) = (0, 0);
        loop {
            for lane in lanes.iter_mut().filter(|lane| lane.runs.is_empty()) {
                let Some(texts) = items.get(next) else { break };
                (lane.item, lane.runs, lane.done) = (next, self.item_runs(texts), 0);
                next += 1;
            }
            if lanes.iter().all(|lane| lane.runs.is_empty()) {
                return Ok(computed);
            }
            computed += self.packed_step(&mut lanes, items, &mut results).await?;
            for lane in &mut lanes {
                if lane.runs.front().is_some_and(|run| run.ids.len() == lane.done) {
                    lane.runs.pop_front();
                    lane.done = 0;
                    if lane.runs.is_empty() && on_item(lane.item, &results[lane.item]).is_break() {
                        return Ok(computed);
                    }
                }
            }
        }
    }

    fn item_runs(&self, texts: &[ScoredText]) -> VecDeque<Run> {
        let found = runs(texts, false);
        let shared = found.get(1).map_or(0, |run| run.start);
        let longest = found.iter().map(|run| run.start + run.ids.len()).max().unwrap_or(0);
        // A recurrent state has no way back to the shared beginning, and a ring may have overwritten it.
        if found.len() > 1 && (self.cache.is_recurrent() || !self.cache.can_rewind(longest, shared)) {
            return runs(texts, true);
        }
        found
    }

    /// The smallest number of tokens of a step that scores texts; smaller ones are filled up. A GPU has other kernels
    /// for few tokens: so a log-probability has the same bits in every step that computes it.
    pub(super) fn least_scored(&self) -> usize {
        match self.cpu() {
            Some(_) => SMALLEST_PIECE,
            None => many_tokens(self.capabilities().software),
        }
    }

    /// The number of tokens of a step with so many: few sizes, because each needs a plan, which takes long on a GPU.
    fn packed_tokens(&self, tokens: usize) -> usize {
        let power = tokens.next_power_of_two();
        if self.cpu().is_some() { power.min(tokens.next_multiple_of(LOGITS_CHUNK)) } else { power }
    }

    /// Prepares the next tokens of a lane. Returns false if they should wait, because another lane computes them in
    /// this step.
    fn prepare(&mut self, lanes: &mut [Lane], number: usize) -> Result<bool, GenerateError> {
        let lane = &lanes[number];
        let Some(start) = lane.runs.front().map(|run| run.start) else { return Ok(false) };
        let usable = |source: &Lane, tokens: usize| {
            let common = lane.common(&source.cached[..tokens]);
            let kept = !self.cache.is_recurrent() && self.cache.can_rewind(source.written, common);
            if kept { common } else { 0 }
        };
        let mut done = if lane.done == 0 && start == 0 { usable(lane, lane.cached.len()) } else { lane.done };
        let others = || (0..lanes.len()).filter(|&other| other != number).map(|other| (other, &lanes[other]));
        let (common, source) =
            others().map(|(other, lane)| (usable(lane, lane.ready), other)).max().unwrap_or((0, number));
        let later = others().map(|(_, lane)| usable(lane, lane.cached.len())).max().unwrap_or(0);
        if later >= done.max(common) + LEAST_COPIED {
            return Ok(false);
        }
        if common >= done + LEAST_COPIED && self.cache.share_prefix(&self.devices.gpus, source, number, common)? {
            lanes[number].cached = lanes[source].cached[..common].to_vec();
            // A ring is copied whole.
            lanes[number].written = lanes[source].written;
            done = common;
        }
        let (at, lane) = (start + done, &mut lanes[number]);
        if lane.done != done || done == 0 {
            // A block that other lanes have, too, is not written.
            let left = self.cache.rewind(&self.devices.gpus, number, at)?;
            if left < at {
                return Err(GenerateError::CacheFull { needed: at, positions: self.cache_positions().0 });
            }
            if at == 0 {
                lane.written = 0;
            }
        }
        lane.cached.truncate(at);
        (lane.done, lane.ready) = (done, at);
        Ok(true)
    }

    /// Computes as many tokens of all lanes as fit one step, and adds up what they predict. Returns their number.
    async fn packed_step(
        &mut self,
        lanes: &mut [Lane],
        items: &[Vec<ScoredText>],
        results: &mut [Vec<Likelihood>],
    ) -> Result<usize, GenerateError> {
        let least = self.least_scored();
        let (chunk, context) = (self.chunks.chunk().max(least), self.context());
        let mut packed = Packed::default();
        // Of each scored token its row of logits, itself, and (item, text).
        let (mut pair_rows, mut pair_tokens, mut pairs): (Vec<u32>, Vec<u32>, Vec<(usize, usize)>) = Default::default();
        let mut longest = 0;
        lanes.iter_mut().for_each(|lane| lane.ready = lane.cached.len());
        for number in 0..lanes.len() {
            if packed.ids.len() == chunk || !self.prepare(lanes, number)? {
                continue;
            }
            let lane = &mut lanes[number];
            let Some(run) = lane.runs.front() else { continue };
            let texts = &items[lane.item];
            let (first, room) = (packed.ids.len(), (chunk - packed.ids.len()).min(run.ids.len() - lane.done));
            let mut end = lane.done;
            while end < lane.done + room {
                if end >= run.first_row {
                    let count = run.targets(texts, end).count();
                    if !pairs.is_empty() && pairs.len() + count > LOGITS_CHUNK {
                        break;
                    }
                    for (text, id) in run.targets(texts, end) {
                        pair_rows.push(packed.rows.len() as u32);
                        pair_tokens.push(id);
                        pairs.push((lane.item, text));
                    }
                    packed.rows.push((first + end - lane.done) as u32);
                }
                end += 1;
            }
            packed.push(&run.ids[lane.done..end], run.start + lane.done, number * context);
            let positions = run.start + end;
            if !self.cache.blocks_mut().reserve(number, positions) {
                return Err(GenerateError::CacheFull { needed: positions, positions: self.cache_positions().0 });
            }
            longest = longest.max(positions);
            lane.advance(end);
        }
        let computed = packed.ids.len();
        let tokens = self.packed_tokens(computed).clamp(least, chunk);
        while packed.ids.len() < tokens {
            let count = (tokens - packed.ids.len()).min(context);
            packed.push(&vec![0; count], 0, lanes.len() * context);
            longest = longest.max(count);
        }
        // Each lane, and what fills the step up, has at most one tile that is not full.
        let tiles = tokens / QUERY_TILE + lanes.len() + tokens.div_ceil(context);
        packed.tiles.resize(2 * tiles, 0);
        // Few sizes, because each needs a plan; on a GPU as many rows as the kernels for many tokens take.
        let few = if self.cpu().is_some() { lanes.len() } else { lanes.len().max(least) }.min(LOGITS_CHUNK);
        packed.rows.resize(if packed.rows.len() <= few { few } else { LOGITS_CHUNK }, 0);
        let (rows, letters) = (packed.rows.len(), few * FEW_CHOICES);
        let scored = if rows == few && pairs.len() <= letters {
            letters
        } else {
            pairs.len().max(LOGITS_CHUNK).next_power_of_two()
        };
        pair_rows.resize(scored, 0);
        pair_tokens.resize(scored, 0);
        let step =
            self.prepared_step(StepKind::Packed { tokens, tiles, rows, pairs: scored }, &StepAdapters::NONE).await?;
        step.write_packed(&packed, &self.cache.table());
        step.write_pairs(&pair_rows, &pair_tokens);
        let mut reads = step.submit_reading(longest).await?.into_iter();
        let (Some(values), Some(ids)) = (reads.next(), reads.next()) else { return Ok(computed) };
        let scores = Scores { values: values.wait().await?, ids: ids.wait().await? };
        for (row, (item, text)) in pairs.into_iter().enumerate() {
            let (log_probability, best) = scores.of_pair(row);
            let result = &mut results[item][text];
            result.sum += f64::from(log_probability);
            result.greedy &= best <= log_probability;
        }
        Ok(computed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(ids: &[u32], from: usize) -> ScoredText {
        ScoredText { ids: ids.to_vec(), from }
    }

    #[test]
    fn single_token_choices_are_one_run() {
        let texts: Vec<ScoredText> = (10..14).map(|id| text(&[1, 2, 3, id], 3)).collect();
        let found = runs(&texts, false);
        assert_eq!(found.len(), 1);
        assert_eq!((&found[0].ids[..], found[0].start, found[0].first_row), (&[1, 2, 3][..], 0, 2));
        assert_eq!(found[0].texts, [0, 1, 2, 3]);
    }

    #[test]
    fn longer_choices_follow_the_shared_beginning() {
        let texts = [text(&[1, 2, 3, 10, 11], 3), text(&[1, 2, 3, 12, 13, 14], 3), text(&[1, 2, 3, 10, 15], 3)];
        let found = runs(&texts, false);
        assert_eq!(found.len(), 2, "the first and the last differ in their last token only");
        assert_eq!((&found[0].ids[..], found[0].start, found[0].first_row), (&[1, 2, 3, 10][..], 0, 2));
        assert_eq!(found[0].texts, [0, 2]);
        // The token before the first scored one is computed again: its logits are needed.
        assert_eq!((&found[1].ids[..], found[1].start, found[1].first_row), (&[3, 12, 13][..], 2, 0));
        let whole = runs(&texts, true);
        assert_eq!(whole.iter().map(|run| run.start).collect::<Vec<_>>(), [0, 0]);
        assert_eq!(whole[1].ids, [1, 2, 3, 12, 13]);
        assert_eq!(whole[1].first_row, 2);
    }
}
