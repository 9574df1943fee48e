//! One shape of step: the states that its inputs are written to, and its plan.

use std::sync::Arc;

use bayan_gpu::{Gpu, GpuError};
use bayan_models::{Cache, Decoder, StepInputs};
use bayan_tensor::ops::{Causality, HISTORY, QUERY_TILE, SETTINGS, SampleSettings, SampleStates};
use bayan_tensor::{Dtype, Graph, Plan, State, Tensor, Tuning};

/// What a step is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum StepKind {
    /// One token, then the choice of the next.
    Decode,
    /// Tokens of a prompt; no logits.
    Prefill(usize),
    /// Tokens with the logits after each.
    Logits(usize),
}

impl StepKind {
    fn tokens(self) -> usize {
        match self {
            StepKind::Decode => 1,
            StepKind::Prefill(tokens) | StepKind::Logits(tokens) => tokens,
        }
    }
}

/// The sampler's states for one sequence.
#[derive(Debug)]
pub(super) struct Sampling {
    pub(super) states: SampleStates,
    vocabulary: usize,
}

impl Sampling {
    pub(super) fn new(gpu: &Gpu, vocabulary: usize) -> Result<Sampling, GpuError> {
        let zeros = |label, width, dtype| State::zeros(Some(gpu), label, &[1, width], dtype);
        let states = SampleStates {
            settings: zeros("sampling settings", SETTINGS, Dtype::F32)?,
            counts: zeros("token counts", vocabulary, Dtype::U32)?,
            bias: zeros("logit bias", vocabulary, Dtype::F32)?,
            history: zeros("tokens chosen", HISTORY, Dtype::U32)?,
        };
        Ok(Sampling { states, vocabulary })
    }

    /// Starts a generation: settings, bias, and the prompt's tokens counted as seen.
    pub(super) fn write(&self, gpu: &Gpu, settings: &SampleSettings, bias: &[(u32, f32)], prompt: &[u32]) {
        let settings = SampleSettings { biased: !bias.is_empty(), ..*settings };
        self.states.settings.write(Some(gpu), 0, bytemuck::cast_slice(&settings.row()));
        if !settings.adjusts() {
            return;
        }
        let mut counts = vec![0u32; self.vocabulary];
        prompt.iter().for_each(|&id| counts[id as usize] += 1);
        let mut biases = vec![0f32; self.vocabulary];
        bias.iter().filter(|b| (b.0 as usize) < self.vocabulary).for_each(|&(id, value)| biases[id as usize] = value);
        self.states.counts.write(Some(gpu), 0, bytemuck::cast_slice(&counts));
        self.states.bias.write(Some(gpu), 0, bytemuck::cast_slice(&biases));
    }
}

/// A prepared step.
#[derive(Debug)]
pub(super) struct Step {
    tokens: Arc<State>,
    positions: Arc<State>,
    tiles: Arc<State>,
    pub(super) plan: Plan,
    pub(super) logits: Tensor,
}

impl Step {
    pub(super) fn new(gpu: &Gpu, decoder: &dyn Decoder, cache: &Cache, sampling: &Sampling, kind: StepKind, tuning: &Tuning) -> Result<Step, GpuError> {
        let count = kind.tokens();
        let zeros = |label, shape: &[usize]| State::zeros(Some(gpu), label, shape, Dtype::U32);
        let (tokens, positions) = (zeros("tokens", &[count])?, zeros("positions", &[count])?);
        let (bases, tiles) = (zeros("cache rows", &[count])?, zeros("tiles", &[count.div_ceil(QUERY_TILE), 2])?);
        let mut graph = Graph::new();
        let over = Causality { positions: graph.state(&positions), bases: graph.state(&bases), tiles: graph.state(&tiles) };
        let inputs = StepInputs { tokens: graph.state(&tokens), over, rows: None };
        let mut logits = decoder.forward(&mut graph, inputs, cache);
        let mut keep = vec![logits];
        match kind {
            StepKind::Decode => graph.sample(logits, inputs.tokens, over.positions, &sampling.states),
            // A prompt's tokens only fill the cache: what comes after the last append is not run.
            StepKind::Prefill(_) => {
                graph = graph.until_last("append");
                logits = inputs.tokens;
                keep.clear();
            }
            StepKind::Logits(_) => {}
        }
        let plan = Plan::new(gpu, graph, &keep, tuning)?;
        Ok(Step { tokens, positions, tiles, plan, logits })
    }

    /// Sets the tokens of the next run, the first of them at `position`.
    pub(super) fn write(&self, gpu: &Gpu, ids: &[u32], position: usize) {
        let positions: Vec<u32> = (0..ids.len()).map(|i| (position + i) as u32).collect();
        let tiles: Vec<u32> = (0..ids.len()).step_by(QUERY_TILE).flat_map(|start| [start as u32, QUERY_TILE.min(ids.len() - start) as u32]).collect();
        self.tokens.write(Some(gpu), 0, bytemuck::cast_slice(ids));
        self.positions.write(Some(gpu), 0, bytemuck::cast_slice(&positions));
        self.tiles.write(Some(gpu), 0, bytemuck::cast_slice(&tiles));
    }
}
