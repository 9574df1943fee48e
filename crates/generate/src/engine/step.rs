//! One shape of step: the states that its inputs are written to, and its plan.

use std::sync::Arc;

use bayan_gpu::{Gpu, GpuError, ReadRequest};
use bayan_models::{Cache, Decoder, StepInputs};
use bayan_tensor::ops::{Causality, QUERY_TILE, SETTINGS, SampleSettings, SampleStates};
use bayan_tensor::{Dtype, Graph, Matrix, Plan, State, Tensor, Tuning};

/// What a step is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum StepKind {
    /// One token of each of so many sequences, then the choice of the next ones.
    Decode(usize),
    /// Tokens of a prompt; no logits.
    Prefill(usize),
    /// Tokens with the logits after each.
    Logits(usize),
}

impl StepKind {
    fn tokens(self) -> usize {
        match self {
            StepKind::Decode(tokens) | StepKind::Prefill(tokens) | StepKind::Logits(tokens) => tokens,
        }
    }

    /// Tiles of queries: a tile has tokens of one sequence only.
    fn tiles(self) -> usize {
        match self {
            StepKind::Decode(sequences) => sequences,
            StepKind::Prefill(tokens) | StepKind::Logits(tokens) => tokens.div_ceil(QUERY_TILE),
        }
    }
}

/// The sampler's states, one row for each sequence that decodes at a time.
#[derive(Debug)]
pub(super) struct Sampling {
    states: SampleStates,
    vocabulary: usize,
}

impl Sampling {
    pub(super) fn new(gpu: &Gpu, sequences: usize, vocabulary: usize) -> Result<Sampling, GpuError> {
        let zeros = |label, width, dtype| State::zeros(Some(gpu), label, &[sequences, width], dtype);
        let states = SampleStates {
            settings: zeros("sampling settings", SETTINGS, Dtype::F32)?,
            counts: zeros("token counts", vocabulary, Dtype::U32)?,
            bias: zeros("logit bias", vocabulary, Dtype::F32)?,
        };
        Ok(Sampling { states, vocabulary })
    }

    /// Sets a row: settings, bias, and the tokens that count as seen.
    pub(super) fn write(&self, gpu: &Gpu, row: usize, settings: &SampleSettings, bias: &[(u32, f32)], seen: &[u32]) {
        let settings = SampleSettings { biased: !bias.is_empty(), ..*settings };
        self.states.settings.write(Some(gpu), row * SETTINGS, bytemuck::cast_slice(&settings.row()));
        if !settings.adjusts() {
            return;
        }
        let mut counts = vec![0u32; self.vocabulary];
        seen.iter().for_each(|&id| counts[id as usize] += 1);
        let mut biases = vec![0f32; self.vocabulary];
        bias.iter().filter(|b| (b.0 as usize) < self.vocabulary).for_each(|&(id, value)| biases[id as usize] = value);
        self.states.counts.write(Some(gpu), row * self.vocabulary, bytemuck::cast_slice(&counts));
        self.states.bias.write(Some(gpu), row * self.vocabulary, bytemuck::cast_slice(&biases));
    }
}

/// The sums that belong to a matrix.
pub(super) type SumsOf<'a> = dyn Fn(&Arc<Matrix>) -> Option<Arc<State>> + 'a;

/// A prepared step.
#[derive(Debug)]
pub(super) struct Step {
    tokens: Arc<State>,
    positions: Arc<State>,
    bases: Arc<State>,
    tiles: Arc<State>,
    pub(super) plan: Plan,
    pub(super) logits: Tensor,
}

impl Step {
    /// Prepares a step. With `sums`, the squares of every linear layer's inputs are added to the state that it has for the layer's matrix.
    pub(super) fn new(
        gpu: &Gpu,
        decoder: &dyn Decoder,
        cache: &Cache,
        sampling: &Sampling,
        kind: StepKind,
        tuning: &Tuning,
        sums: Option<&SumsOf<'_>>,
    ) -> Result<Step, GpuError> {
        let count = kind.tokens();
        let zeros = |label, shape: &[usize]| State::zeros(Some(gpu), label, shape, Dtype::U32);
        let (tokens, positions) = (zeros("tokens", &[count])?, zeros("positions", &[count])?);
        let (bases, tiles) = (zeros("cache rows", &[count])?, zeros("tiles", &[kind.tiles(), 2])?);
        let mut graph = Graph::new();
        let over = Causality { positions: graph.state(&positions), bases: graph.state(&bases), tiles: graph.state(&tiles) };
        let inputs = StepInputs { tokens: graph.state(&tokens), over, rows: None };
        let mut logits = decoder.forward(&mut graph, inputs, cache);
        let mut keep = vec![logits];
        if let Some(sums) = sums {
            graph = graph.measured(sums);
        }
        match kind {
            StepKind::Decode(_) => graph.sample(logits, inputs.tokens, over.positions, &sampling.states),
            // A prompt's tokens only fill the cache: what comes after the last that is remembered is not run.
            StepKind::Prefill(_) => {
                graph = graph.until_last_state();
                logits = inputs.tokens;
                keep.clear();
            }
            StepKind::Logits(_) => {}
        }
        let plan = Plan::new(gpu, graph, &keep, tuning)?;
        Ok(Step { tokens, positions, bases, tiles, plan, logits })
    }

    /// Sets the tokens of the next run: of one sequence, whose cache begins at row `base`, the first of them at `position`.
    pub(super) fn write(&self, gpu: &Gpu, ids: &[u32], position: usize, base: usize) {
        let positions: Vec<u32> = (0..ids.len()).map(|i| (position + i) as u32).collect();
        let tiles: Vec<u32> = (0..ids.len()).step_by(QUERY_TILE).flat_map(|start| [start as u32, QUERY_TILE.min(ids.len() - start) as u32]).collect();
        self.write_states(gpu, ids, &positions, &vec![base as u32; ids.len()], &tiles);
    }

    /// Sets one token of each of several sequences: (id, position, first row of the cache).
    pub(super) fn write_each(&self, gpu: &Gpu, rows: &[(u32, usize, usize)]) {
        let ids: Vec<u32> = rows.iter().map(|row| row.0).collect();
        let positions: Vec<u32> = rows.iter().map(|row| row.1 as u32).collect();
        let bases: Vec<u32> = rows.iter().map(|row| row.2 as u32).collect();
        let tiles: Vec<u32> = (0..rows.len() as u32).flat_map(|row| [row, 1]).collect();
        self.write_states(gpu, &ids, &positions, &bases, &tiles);
    }

    fn write_states(&self, gpu: &Gpu, ids: &[u32], positions: &[u32], bases: &[u32], tiles: &[u32]) {
        for (state, values) in [(&self.tokens, ids), (&self.positions, positions), (&self.bases, bases), (&self.tiles, tiles)] {
            state.write(Some(gpu), 0, bytemuck::cast_slice(values));
        }
    }

    /// Reads, after a decoding step, the tokens that it chose.
    pub(super) fn chosen(&self) -> ReadRequest {
        ReadRequest { buffer: self.tokens.buffer().clone(), offset_bytes: 0, size_bytes: self.tokens.size_bytes() }
    }
}
