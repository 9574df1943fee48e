//! Grammars of running answers: before each step, the tokens that a row's grammar does not allow get a bias that bans
//! them.
//!
//! Which tokens are allowed depends on the last one, so that a step with such a row is submitted only when the host has
//! read the step before. Rejected: a mask of bits with a kernel of its own, because the bias does the same with the
//! kernel that is there; it writes 4 bytes for each token of the vocabulary.

use std::collections::HashMap;

use super::Engine;
use super::FinishReason;
use super::batch::{Event, JobId, OnEvent};
use super::schedule::Row;
use super::step::LARGEST_BIAS;
use crate::grammar::Grammar;

/// Bounds of a request's own biases beside a grammar: what the grammar bans stays less likely than what a bias bans.
const OWN_BIAS: f32 = LARGEST_BIAS / 10.0;

/// What follows a position of a constrained answer.
enum Next {
    /// Biases of all tokens.
    Biases(Vec<f32>),
    /// Nothing: the text is complete.
    End,
}

impl Engine {
    /// Writes the biases for the next step. Rows whose grammar ends or fails here get their reason. No step may be in
    /// flight.
    pub(super) fn constrain(&mut self, on_event: OnEvent<'_>) {
        let vocabulary = self.decoder.sizes().vocab_size;
        let mut biases: HashMap<JobId, Vec<f32>> = HashMap::new();
        let laid_out: Vec<JobId> =
            self.laid_rows().map_or_else(Vec::new, |(_, rows)| rows.iter().map(|r| r.id).collect());
        for row in self.jobs.rows.iter_mut().filter(|row| laid_out.contains(&row.id) && row.finish.is_none()) {
            let Row { id, job, finish, .. } = row;
            let Some(grammar) = &mut job.grammar else { continue };
            match next(grammar, &job.bias, &job.stop, vocabulary) {
                Ok(Next::Biases(values)) => drop(biases.insert(*id, values)),
                Ok(Next::End) => *finish = Some(FinishReason::Stop),
                Err(problem) => {
                    *finish = Some(FinishReason::GrammarFault);
                    let _ = on_event(*id, Event::Fault(problem));
                }
            }
        }
        for (number, row) in self.laid_rows().into_iter().flat_map(|(_, rows)| rows).enumerate() {
            if let Some(values) = biases.get(&row.id) {
                self.sampling.write_bias(self.head_gpu.as_ref(), number, values);
            }
        }
    }
}

fn next(grammar: &mut Grammar, own: &[(u32, f32)], stop: &[u32], vocabulary: usize) -> Result<Next, String> {
    let allowed = grammar.allowed()?;
    let mut biases = vec![-LARGEST_BIAS; vocabulary];
    let mut any = false;
    for id in (0..vocabulary as u32).filter(|id| allowed.token(*id)) {
        biases[id as usize] = 0.0;
        any = true;
    }
    if allowed.end() {
        for &id in stop.iter().filter(|id| (**id as usize) < vocabulary) {
            biases[id as usize] = 0.0;
            any = true;
        }
        if !any {
            return Ok(Next::End);
        }
    }
    if !any {
        return Err("no token of the vocabulary may follow".into());
    }
    for &(id, value) in own {
        if let Some(bias) = biases.get_mut(id as usize).filter(|bias| **bias == 0.0) {
            *bias = value.clamp(-OWN_BIAS, OWN_BIAS);
        }
    }
    Ok(Next::Biases(biases))
}

impl Row {
    /// Goes on in the row's grammar after a token of the answer.
    pub(super) fn follow(&mut self, token: u32, on_event: OnEvent<'_>) {
        let Some(grammar) = &mut self.job.grammar else { return };
        match grammar.take(token) {
            // An answer that is complete with its last allowed token is not cut.
            Ok(complete) => {
                if complete || (self.finish == Some(FinishReason::Length) && grammar.may_end()) {
                    self.finish = Some(FinishReason::Stop);
                }
            }
            Err(problem) => {
                self.finish = Some(FinishReason::GrammarFault);
                let _ = on_event(self.id, Event::Fault(problem));
            }
        }
    }
}
