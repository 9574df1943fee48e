//! Requests, what the engine reports of them, and a fixed list of prompts on top of both.
//!
//! A single chat is a batch of one request, without code of its own.

use std::ops::ControlFlow;

use bayan_tensor::ops::SampleSettings;

use super::score::TokenScore;
use super::{Engine, Usage};
use crate::GenerateError;
use crate::grammar::Grammar;

/// A prompt to continue.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Its tokens.
    pub prompt: &'a [u32],
    /// Sampling settings.
    pub settings: SampleSettings,
    /// Biases added to the logits of these tokens.
    pub bias: &'a [(u32, f32)],
    /// Tokens that end the answer and are not part of it.
    pub stop: &'a [u32],
    /// Most new tokens.
    pub max_tokens: usize,
    /// What the text of the answer must match.
    pub grammar: Option<&'a Grammar>,
    /// As [`Job::scores`].
    pub scores: Option<usize>,
}

/// A request that the engine keeps until it ends.
#[derive(Debug, Clone, Default)]
pub struct Job {
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Sampling settings.
    pub settings: SampleSettings,
    /// Biases added to the logits of these tokens.
    pub bias: Vec<(u32, f32)>,
    /// Tokens that end the answer and are not part of it.
    pub stop: Vec<u32>,
    /// Most new tokens.
    pub max_tokens: usize,
    /// What the text of the answer must match. The answer ends by itself when the text is complete.
    pub grammar: Option<Grammar>,
    /// The loaded adapter that computes the answer, beside those that are attached for all.
    pub adapter: Option<String>,
    /// Cached tokens are reused only between jobs with the same owner.
    pub owner: u64,
    /// Report the log-probability of each new token and of this many most likely ones, at most 20, before penalties and
    /// biases.
    pub scores: Option<usize>,
    /// Report the same of each token of the prompt but the first. The prompt is then computed whole.
    pub prompt_scores: Option<usize>,
}

/// The number of a job, unique within an engine.
pub type JobId = u64;

/// What happened to a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// It has a slot of the cache, where this many tokens of its prompt are already. More may be copied later from a
    /// job that computes the same prompt; [`Event::Ended`] has the whole number.
    Started {
        /// Tokens that need not be computed.
        cached_tokens: usize,
    },
    /// Scores of the next tokens of its prompt, from the second on.
    Prompt(Vec<TokenScore>),
    /// A new token.
    Token {
        /// The token.
        id: u32,
        /// Its score, if the job asks for scores.
        score: Option<TokenScore>,
    },
    /// The grammar failed, for this reason; the job ends with [`super::FinishReason::GrammarFault`].
    Fault(String),
    /// It ended; no more events follow.
    Ended(Usage),
}

/// Called with each event; a break ends the job.
pub type OnEvent<'a> = &'a mut dyn FnMut(JobId, Event) -> ControlFlow<()>;

impl Engine {
    /// The scores of each prompt's tokens but the first, with the `top` most likely tokens at each place, computed
    /// exactly as those of jobs that ask for [`Job::prompt_scores`]. Other jobs of the engine are removed.
    ///
    /// # Errors
    /// A prompt does not fit, or the device fails. After an error the cache is empty.
    pub async fn score_prompts(
        &mut self,
        prompts: &[&[u32]],
        top: usize,
    ) -> Result<Vec<Vec<TokenScore>>, GenerateError> {
        prompts.iter().try_for_each(|prompt| self.check_job(prompt, &[], None))?;
        self.remove_all();
        self.control.start();
        let mut first = None;
        for prompt in prompts {
            let id = self.add(Job { prompt: prompt.to_vec(), prompt_scores: Some(top), ..Default::default() })?;
            first = first.or(Some(id));
        }
        let first = first.unwrap_or(0);
        let mut found = vec![Vec::new(); prompts.len()];
        let mut on_event = |id: JobId, event: Event| {
            if let (Event::Prompt(scores), Some(own)) = (event, found.get_mut((id - first) as usize)) {
                own.extend(scores);
            }
            ControlFlow::Continue(())
        };
        while self.advance(&mut on_event).await? {}
        Ok(found)
    }

    /// Continues several prompts, as many at a time as the engine has sequences; the others are queued. `on_token` is
    /// called with the number of the request, each new token, and its score if the request asks for scores, and may end
    /// that answer. The usages are returned in the order of the requests. Other jobs of the engine are removed.
    ///
    /// # Errors
    /// A prompt does not fit, or the device fails. After an error the cache is empty.
    pub async fn generate_many(
        &mut self,
        requests: &[Request<'_>],
        on_token: &mut dyn FnMut(usize, u32, Option<&TokenScore>) -> ControlFlow<()>,
    ) -> Result<Vec<Usage>, GenerateError> {
        requests.iter().try_for_each(|request| self.check_job(request.prompt, request.bias, None))?;
        self.remove_all();
        self.control.start();
        let mut first = None;
        for &Request { prompt, settings, bias, stop, max_tokens, grammar, scores } in requests {
            let (prompt, bias, stop) = (prompt.to_vec(), bias.to_vec(), stop.to_vec());
            let grammar = grammar.cloned();
            let job = Job { prompt, settings, bias, stop, max_tokens, grammar, scores, ..Default::default() };
            let id = self.add(job)?;
            first = first.or(Some(id));
        }
        let first = first.unwrap_or(0);
        let mut usages: Vec<Option<Usage>> = vec![None; requests.len()];
        let mut on_event = |id: JobId, event: Event| {
            let index = (id - first) as usize;
            match event {
                Event::Token { id, score } => return on_token(index, id, score.as_ref()),
                Event::Ended(usage) => usages[index] = Some(usage),
                Event::Fault(problem) => tracing::warn!("a grammar failed: {problem}"),
                Event::Started { .. } | Event::Prompt(_) => {}
            }
            ControlFlow::Continue(())
        };
        while self.advance(&mut on_event).await? {}
        Ok(usages.into_iter().flatten().collect())
    }
}
