//! A recorded step of one shape: its inputs and its plan.

use std::sync::Arc;

use bayan_gpu::{Gpu, GpuError, KernelTime};
use bayan_models::{Cache, Decoder, StepInputs};
use bayan_tensor::ops::{CacheRows, Causality, QUERY_TILE, SETTINGS, SampleSettings, SampleStates};
use bayan_tensor::{
    Cost, Dtype, Graph, Matrix, PlannedKernel, Stage, State, Tensor, Transfer, Tuning, Values, partition,
};

use super::device_plan::{DevicePlan, PendingValues};
use super::devices::Devices;
use crate::GenerateError;

/// The purpose of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum StepKind {
    /// One token of each of this many sequences, then sampling of the next tokens.
    Decode(usize),
    /// As `Decode`, and the log-probabilities before penalties and biases.
    Scored(usize),
    /// Tokens of a prompt, without logits.
    Prefill(usize),
    /// One token of each of several sequences, whose next tokens are sampled, then tokens of a prompt without logits.
    Mixed {
        /// Number of sequences.
        rows: usize,
        /// Tokens of the prompt.
        piece: usize,
        /// Whether log-probabilities are computed, as for `Scored`.
        scored: bool,
    },
    /// Tokens of a prompt, with the log-probability of the token after each of them.
    ScoredPrompt(usize),
    /// Tokens with the logits after each of them.
    Logits(usize),
    /// Tokens of several sequences, with log-probabilities of tokens after some of them.
    Packed {
        /// Number of tokens.
        tokens: usize,
        /// Number of query tiles.
        tiles: usize,
        /// Number of tokens whose logits are computed.
        rows: usize,
        /// Number of log-probabilities: several tokens may be scored in one place.
        pairs: usize,
    },
    /// Consecutive tokens of each of several sequences, then sampling after each of them.
    Verify {
        /// Number of sequences.
        rows: usize,
        /// Tokens of each.
        width: usize,
    },
}

impl StepKind {
    pub(super) fn tokens(self) -> usize {
        match self {
            StepKind::Decode(tokens)
            | StepKind::Scored(tokens)
            | StepKind::Prefill(tokens)
            | StepKind::ScoredPrompt(tokens)
            | StepKind::Logits(tokens)
            | StepKind::Packed { tokens, .. } => tokens,
            StepKind::Mixed { rows, piece, .. } => rows + piece,
            StepKind::Verify { rows, width } => rows * width,
        }
    }

    /// Number of tokens that are sampled, of a step that samples.
    fn sampled(self) -> usize {
        if let StepKind::Mixed { rows, .. } = self { rows } else { self.tokens() }
    }

    /// Number of rows of log-probabilities, of a step that computes them.
    fn scored(self) -> Option<usize> {
        match self {
            StepKind::Scored(rows) | StepKind::ScoredPrompt(rows) | StepKind::Mixed { rows, scored: true, .. } => {
                Some(rows)
            }
            StepKind::Packed { pairs, .. } => Some(pairs),
            _ => None,
        }
    }

    /// Number of query tiles: all tokens of a tile belong to one sequence.
    fn tiles(self) -> usize {
        match self {
            StepKind::Decode(sequences) | StepKind::Scored(sequences) => sequences,
            StepKind::Prefill(tokens) | StepKind::ScoredPrompt(tokens) | StepKind::Logits(tokens) => {
                tokens.div_ceil(QUERY_TILE)
            }
            StepKind::Mixed { rows, piece, .. } => rows + piece.div_ceil(QUERY_TILE),
            StepKind::Packed { tiles, .. } => tiles,
            StepKind::Verify { rows, width } => rows * width.div_ceil(QUERY_TILE),
        }
    }

    /// Number of tokens whose logits are computed, if not all.
    fn rows(self) -> Option<usize> {
        match self {
            StepKind::Packed { rows, .. } | StepKind::Mixed { rows, .. } => Some(rows),
            _ => None,
        }
    }
}

/// Replaces an infinite bias: larger than any logit, and safe in shaders, which may assume finite numbers.
pub const LARGEST_BIAS: f32 = 1e6;

/// Fails if the biases leave no token of the vocabulary: each is banned by minus infinity.
pub(super) fn refuse_all_banned(bias: &[(u32, f32)], vocabulary: usize) -> Result<(), GenerateError> {
    if bias.len() < vocabulary {
        return Ok(());
    }
    // The last bias of a token counts.
    let mut banned = vec![false; vocabulary];
    bias.iter()
        .filter(|(id, _)| (*id as usize) < vocabulary)
        .for_each(|&(id, value)| banned[id as usize] = value <= -LARGEST_BIAS);
    if banned.iter().all(|banned| *banned) { Err(GenerateError::AllBanned { vocabulary }) } else { Ok(()) }
}

/// The sampler's states, one row for each sequence that is decoded.
#[derive(Debug)]
pub(super) struct Sampling {
    states: SampleStates,
    vocabulary: usize,
}

impl Sampling {
    pub(super) fn new(gpu: Option<&Gpu>, sequences: usize, vocabulary: usize) -> Result<Sampling, GpuError> {
        let zeros = |label, width, dtype| State::zeros(gpu, label, &[sequences, width], dtype);
        let states = SampleStates {
            settings: zeros("sampling settings", SETTINGS, Dtype::F32)?,
            counts: zeros("token counts", vocabulary, Dtype::U32)?,
            bias: zeros("logit bias", vocabulary, Dtype::F32)?,
        };
        Ok(Sampling { states, vocabulary })
    }

    /// Sets a row: settings, bias, and the tokens that count as seen for the penalties. The settings say whether the
    /// bias is added.
    pub(super) fn write(
        &self,
        gpu: Option<&Gpu>,
        row: usize,
        settings: &SampleSettings,
        bias: &[(u32, f32)],
        seen: &[u32],
    ) {
        self.states.settings.write(gpu, row * SETTINGS, bytemuck::cast_slice(&settings.row()));
        if !settings.adjusts() {
            return;
        }
        let mut counts = vec![0u32; self.vocabulary];
        seen.iter().for_each(|&id| counts[id as usize] += 1);
        let mut biases = vec![0f32; self.vocabulary];
        let known = bias.iter().filter(|(id, _)| (*id as usize) < self.vocabulary);
        known.for_each(|&(id, value)| biases[id as usize] = value.clamp(-LARGEST_BIAS, LARGEST_BIAS));
        self.states.counts.write(gpu, row * self.vocabulary, bytemuck::cast_slice(&counts));
        self.states.bias.write(gpu, row * self.vocabulary, bytemuck::cast_slice(&biases));
    }

    /// Sets the biases \[V\] of a row whose settings say that they are added.
    pub(super) fn write_bias(&self, gpu: Option<&Gpu>, row: usize, biases: &[f32]) {
        self.states.bias.write(gpu, row * self.vocabulary, bytemuck::cast_slice(biases));
    }
}

/// Returns the state that holds the sums of a matrix.
pub(super) type SumsOf<'a> = dyn Fn(&Arc<Matrix>) -> Option<Arc<State>> + 'a;

/// The input with the number of most likely tokens that are wanted in each row of log-probabilities.
const WANTED: &str = "likely tokens wanted";
/// The input with the tokens that are scored.
const FOLLOWING: &str = "following tokens";
/// The input with the row of logits that each scored token of a packed step is looked up in.
const PAIRS: &str = "rows of scored tokens";

/// The input with the first cache row of each token's sequence, and the table of the cache behind them.
const CACHE_ROWS: &str = "cache rows";

/// The input with the factor of each adapter for each token.
pub(super) const FACTORS: &str = "factors of adapters";

/// The inputs of mixed steps with positions, cache rows and tiles of the answers' tokens.
const FIRST: [&str; 3] = ["first positions", "first cache rows", "first tiles"];

/// An input that is written before each step, with its copies on other devices.
#[derive(Debug)]
struct Input {
    state: Arc<State>,
    copies: Vec<(usize, Arc<State>)>,
}

/// The plan of one stage of a step.
#[derive(Debug)]
struct StagePlan {
    plan: DevicePlan,
    transfers: Vec<Transfer>,
}

/// A recorded step.
#[derive(Debug)]
pub(super) struct Step {
    /// Tokens, positions, cache rows, tiles; of some kinds also the tokens whose logits are computed, and what
    /// log-probabilities need.
    inputs: Vec<Input>,
    gpus: Vec<Gpu>,
    stages: Vec<StagePlan>,
    /// What the host reads of each run.
    results: Vec<Tensor>,
    kind: StepKind,
}

/// Tokens of several sequences, as a packed step reads them.
#[derive(Debug, Default)]
pub(super) struct Packed {
    /// Token ids \[T\].
    pub(super) ids: Vec<u32>,
    /// Their positions \[T\].
    pub(super) positions: Vec<u32>,
    /// The first cache row of each token's sequence \[T\].
    pub(super) bases: Vec<u32>,
    /// Tiles [n, 2] of first token and number of tokens.
    pub(super) tiles: Vec<u32>,
    /// Numbers of the tokens whose logits are read \[R\].
    pub(super) rows: Vec<u32>,
}

impl Packed {
    /// Adds consecutive tokens of one sequence, whose cache begins at row `base`, from `position` on.
    pub(super) fn push(&mut self, ids: &[u32], position: usize, base: usize) {
        let first = self.ids.len();
        let tile = |start: usize| [(first + start) as u32, QUERY_TILE.min(ids.len() - start) as u32];
        self.tiles.extend((0..ids.len()).step_by(QUERY_TILE).flat_map(tile));
        self.ids.extend_from_slice(ids);
        self.positions.extend((position..position + ids.len()).map(|position| position as u32));
        self.bases.extend(std::iter::repeat_n(base as u32, ids.len()));
    }
}

/// What is needed to record a step.
pub(super) struct StepSpec<'a> {
    pub(super) decoder: &'a dyn Decoder,
    pub(super) cache: &'a Cache,
    pub(super) sampling: &'a Sampling,
    pub(super) tuning: &'a Tuning,
    /// For every linear layer, the squares of its inputs are added to the state that this returns for the layer's
    /// matrix.
    pub(super) sums: Option<&'a SumsOf<'a>>,
    /// The factors of adapters that the decoder's pairs read, of a step whose tokens have different ones.
    pub(super) factors: Option<&'a Arc<State>>,
}

impl Step {
    /// Records a step.
    pub(super) fn new(devices: &mut Devices, spec: &StepSpec<'_>, kind: StepKind) -> Result<Step, GpuError> {
        let count = kind.tokens();
        let first = devices.gpus.first().cloned();
        let zeros = |label, shape: &[usize]| {
            State::zeros(first.as_ref(), label, shape, Dtype::U32).map(|state| Input { state, copies: Vec::new() })
        };
        let fixed = [
            zeros("tokens", &[count])?,
            zeros("positions", &[count])?,
            zeros(CACHE_ROWS, &[CacheRows::bases_len(count, spec.cache.table_len())])?,
            zeros("tiles", &[kind.tiles(), 2])?,
        ];
        let mut graph = Graph::new();
        let [tokens, positions, bases, tiles] = fixed.each_ref().map(|input| graph.state(&input.state));
        let mut inputs = Vec::from(fixed);
        if let Some(rows) = kind.rows() {
            inputs.push(zeros("rows with logits", &[rows])?);
        }
        let rows = inputs.get(4).map(|input| graph.state(&input.state));
        if let Some(rows) = kind.scored() {
            inputs.push(zeros(WANTED, &[rows])?);
            if matches!(kind, StepKind::ScoredPrompt(_) | StepKind::Packed { .. }) {
                inputs.push(zeros(FOLLOWING, &[rows])?);
            }
            if matches!(kind, StepKind::Packed { .. }) {
                inputs.push(zeros(PAIRS, &[rows])?);
            }
        }
        if let StepKind::Mixed { rows, .. } = kind {
            let table = spec.cache.table_len();
            let bases = CacheRows::bases_len(rows, table);
            for (label, sizes) in FIRST.into_iter().zip([&[rows] as &[usize], &[bases], &[rows, 2]]) {
                inputs.push(zeros(label, sizes)?);
            }
        }
        inputs.extend(spec.factors.map(|state| Input { state: state.clone(), copies: Vec::new() }));
        let labelled = |inputs: &[Input], label| {
            inputs.iter().find(|input| input.state.label() == label).map(|input| input.state.clone())
        };
        let (wanted, following) = (labelled(&inputs, WANTED), labelled(&inputs, FOLLOWING));
        let pairs = labelled(&inputs, PAIRS);
        let causality = Causality { positions, bases, tiles };
        let logits = spec.decoder.forward(&mut graph, StepInputs { tokens, causality, rows }, spec.cache);
        if let ([Some(positions), Some(bases), Some(tiles)], Some(rows)) = (FIRST.map(|l| labelled(&inputs, l)), rows) {
            let [positions, bases, tiles] = [positions, bases, tiles].map(|state| graph.state(&state));
            graph = graph.with_early_rows(rows, Causality { positions, bases, tiles });
        }
        if let Some(sums) = spec.sums {
            graph = graph.with_input_squares(sums);
        }
        let log_probs = |graph: &mut Graph, logits, chosen: Tensor| {
            let wanted = wanted.as_ref().map(|wanted| graph.state(wanted));
            wanted.map_or([logits; 2], |wanted| graph.log_probs(logits, chosen, wanted))
        };
        let results = match kind {
            StepKind::Decode(_) | StepKind::Verify { .. } | StepKind::Mixed { scored: false, .. } => {
                graph.sample(logits, tokens, positions, &spec.sampling.states);
                vec![tokens]
            }
            StepKind::Scored(_) | StepKind::Mixed { scored: true, .. } => {
                // Sampling changes the logits in place.
                let every: Vec<u32> = (0..kind.sampled() as u32).collect();
                let every = State::new(first.as_ref(), "rows", &[every.len()], Values::U32(every))?;
                let rows = graph.state(&every);
                let copy = graph.select_rows(logits, rows);
                graph.sample(logits, tokens, positions, &spec.sampling.states);
                let [values, ids] = log_probs(&mut graph, copy, tokens);
                vec![tokens, values, ids]
            }
            StepKind::ScoredPrompt(_) | StepKind::Packed { .. } => {
                let chosen = following.as_ref().map_or(tokens, |following| graph.state(following));
                let logits = pairs.as_ref().map_or(logits, |pairs| {
                    let pairs = graph.state(pairs);
                    graph.select_rows(logits, pairs)
                });
                log_probs(&mut graph, logits, chosen).to_vec()
            }
            // A prompt's tokens only fill the cache: operations after the last cache write are not run.
            StepKind::Prefill(_) => {
                graph = graph.until_last_state();
                Vec::new()
            }
            StepKind::Logits(_) => vec![logits],
        };
        let keep: Vec<Tensor> = results.iter().copied().filter(|&tensor| graph.info(tensor).state.is_none()).collect();
        let only = |plan| vec![StagePlan { plan, transfers: Vec::new() }];
        let stages = match (&devices.cpu, devices.gpus.as_slice()) {
            (Some(cpu), _) => only(DevicePlan::on_cpu(cpu, graph, &keep)),
            (None, [gpu]) => {
                let gpu = gpu.clone();
                let mut pool = devices.pool(0);
                let plan = DevicePlan::on_gpu(&gpu, graph, &keep, spec.tuning, &mut pool)?;
                devices.put_back(0, pool);
                only(plan)
            }
            _ => plan_stages(devices, &graph, &keep, spec.tuning, &mut inputs)?,
        };
        Ok(Step { inputs, gpus: devices.gpus.clone(), stages, results, kind })
    }

    /// Sets the tokens of the next run: consecutive tokens of one sequence, whose cache begins at row `base`, from
    /// `position` on. `table` is that of the cache.
    pub(super) fn write(&self, ids: &[u32], position: usize, base: usize, table: &[u32]) {
        let positions: Vec<u32> = (0..ids.len()).map(|i| (position + i) as u32).collect();
        let tiles: Vec<u32> = (0..ids.len())
            .step_by(QUERY_TILE)
            .flat_map(|start| [start as u32, QUERY_TILE.min(ids.len() - start) as u32])
            .collect();
        let bases = CacheRows::with_table(&vec![base as u32; ids.len()], table);
        self.write_inputs([ids, &positions, &bases, &tiles]);
    }

    /// Sets one token for each of several sequences: (id, position, first row of the cache).
    pub(super) fn write_each(&self, rows: &[(u32, usize, usize)], table: &[u32]) {
        let ids: Vec<u32> = rows.iter().map(|row| row.0).collect();
        let positions: Vec<u32> = rows.iter().map(|row| row.1 as u32).collect();
        let bases: Vec<u32> = rows.iter().map(|row| row.2 as u32).collect();
        let tiles: Vec<u32> = (0..rows.len() as u32).flat_map(|row| [row, 1]).collect();
        self.write_inputs([&ids, &positions, &CacheRows::with_table(&bases, table), &tiles]);
    }

    /// Sets packed tokens; `rows` are the numbers of those whose logits are read, if the step is of a kind that has
    /// them. All have the lengths of the step.
    pub(super) fn write_packed(&self, packed: &Packed, table: &[u32]) {
        let Packed { ids, positions, bases, tiles, rows } = packed;
        self.write_inputs([ids.as_slice(), positions, &CacheRows::with_table(bases, table), tiles, rows]);
        if let StepKind::Mixed { rows, .. } = self.kind {
            let first = [&positions[..rows], &CacheRows::with_table(&bases[..rows], table), &tiles[..2 * rows]];
            FIRST.into_iter().zip(first).for_each(|(label, values)| self.write_labelled(label, values));
        }
    }

    /// Sets the table of the cache; places that submitted steps read stay as they are.
    pub(super) fn write_table(&self, table: &[u32]) {
        let input = self.inputs.iter().find(|input| input.state.label() == CACHE_ROWS);
        input.into_iter().for_each(|input| self.write_from(input, CacheRows::table_start(self.kind.tokens()), table));
    }

    /// Sets how many of the most likely tokens are wanted after each token, of a step that computes log-probabilities.
    pub(super) fn write_wanted(&self, wanted: impl Iterator<Item = Option<usize>>) {
        let wanted: Vec<u32> = wanted.map(|count| count.unwrap_or(0) as u32).collect();
        self.write_labelled(WANTED, &wanted);
    }

    /// Sets the token after each token of a prompt, of a step that computes its log-probabilities.
    pub(super) fn write_following(&self, following: &[u32]) {
        self.write_labelled(FOLLOWING, following);
    }

    /// Sets the tokens that a packed step scores, and for each the number of its row of logits. Both have the length of
    /// the step.
    pub(super) fn write_pairs(&self, rows: &[u32], tokens: &[u32]) {
        self.write_labelled(PAIRS, rows);
        self.write_labelled(FOLLOWING, tokens);
        self.write_wanted(tokens.iter().map(|_| Some(1)));
    }

    /// Sets the adapter of each token, by its number, of a step whose tokens have some of `count` adapters.
    pub(super) fn write_adapters(&self, adapters: &[Option<usize>], count: usize) {
        let Some(input) = self.inputs.iter().find(|input| input.state.label() == FACTORS) else { return };
        let width = input.state.shape()[1];
        let rank = width / count;
        let mut factors = vec![0u32; self.kind.tokens() * width];
        for (row, adapter) in factors.chunks_exact_mut(width).zip(adapters) {
            adapter.iter().for_each(|number| row[number * rank..(number + 1) * rank].fill(1f32.to_bits()));
        }
        self.write_input(input, &factors);
    }

    fn write_labelled(&self, label: &str, values: &[u32]) {
        let input = self.inputs.iter().find(|input| input.state.label() == label);
        input.into_iter().for_each(|input| self.write_input(input, values));
    }

    fn write_inputs<const N: usize>(&self, values: [&[u32]; N]) {
        self.inputs.iter().zip(values).for_each(|(input, values)| self.write_input(input, values));
    }

    fn write_input(&self, input: &Input, values: &[u32]) {
        self.write_from(input, 0, values);
    }

    /// Writes values from an index of the input on.
    fn write_from(&self, input: &Input, first: usize, values: &[u32]) {
        input.state.write(self.gpus.first(), first, bytemuck::cast_slice(values));
        for (device, copy) in &input.copies {
            copy.write(self.gpus.get(*device), first, bytemuck::cast_slice(values));
        }
    }

    /// Number of tokens that the step samples, if it samples.
    pub(super) fn sampled(&self) -> usize {
        self.kind.sampled()
    }

    /// Whether several devices run the step, so that its inputs must be written before each run.
    pub(super) fn is_split(&self) -> bool {
        self.stages.len() > 1
    }

    /// Whether the host computes the step itself, so that nothing is gained by submitting steps ahead.
    pub(super) fn is_on_cpu(&self) -> bool {
        self.stages.iter().any(|stage| stage.plan.is_on_cpu())
    }

    /// Bytes that one run transfers between devices through the host.
    pub(super) fn transfer_bytes(&self) -> u64 {
        self.stages.iter().flat_map(|stage| &stage.transfers).map(Transfer::size_bytes).sum()
    }

    /// The cost, summed over all devices.
    pub(super) fn cost(&self) -> Cost {
        let sum = |a: Cost, b: Cost| Cost {
            dispatches: a.dispatches + b.dispatches,
            passes: a.passes + b.passes,
            bound_bytes: a.bound_bytes + b.bound_bytes,
            activation_bytes: a.activation_bytes + b.activation_bytes,
        };
        let none = Cost { dispatches: 0, passes: 0, bound_bytes: 0, activation_bytes: 0 };
        self.stages.iter().map(|stage| stage.plan.cost()).fold(none, sum)
    }

    /// The dispatches of all devices.
    pub(super) fn kernels(&self, cached: usize) -> Vec<PlannedKernel> {
        self.stages.iter().flat_map(|stage| stage.plan.kernels(cached)).collect()
    }

    /// The time of each kernel.
    pub(super) async fn profile(&self, cached: usize) -> Result<Vec<KernelTime>, GpuError> {
        let mut times = Vec::new();
        for stage in &self.stages {
            times.extend(stage.plan.profile(cached).await?);
        }
        Ok(times)
    }

    /// Lets the devices compile the kernels that they have not dispatched yet; nothing is computed.
    pub(super) fn submit_empty(&self) {
        self.stages.iter().for_each(|stage| stage.plan.submit_empty());
    }

    /// Runs the step for tokens that only fill the cache; on one device it is divided into this many submissions.
    pub(super) async fn run_prefill(&self, cached: usize, submissions: usize) -> Result<(), GpuError> {
        match self.stages.as_slice() {
            [only] => {
                only.plan.submit_parts(cached, submissions);
                only.plan.check()?;
            }
            _ => drop(self.submit(cached, &[]).await?),
        }
        for gpu in &self.gpus {
            gpu.flush().await?;
        }
        Ok(())
    }

    /// Submits a run and reads its results: sampled tokens; values and ids of log-probabilities; logits.
    pub(super) async fn submit_reading(&self, cached: usize) -> Result<Vec<PendingValues>, GpuError> {
        self.submit(cached, &self.results).await
    }

    /// Runs stage after stage and transfers the outputs that later stages need; the last stage is only submitted.
    async fn submit(&self, cached: usize, reads: &[Tensor]) -> Result<Vec<PendingValues>, GpuError> {
        let Some((last, before)) = self.stages.split_last() else { return Ok(Vec::new()) };
        for stage in before {
            let outputs: Vec<Tensor> = stage.transfers.iter().map(|transfer| transfer.tensor).collect();
            for (transfer, read) in stage.transfers.iter().zip(stage.plan.submit(cached, &outputs)) {
                let values = read.wait().await?;
                for (device, state) in &transfer.to {
                    state.write(self.gpus.get(*device), 0, values.bytes());
                }
            }
        }
        let values = last.plan.submit(cached, reads);
        last.plan.check()?;
        Ok(values)
    }
}

fn plan_stages(
    devices: &mut Devices,
    graph: &Graph,
    keep: &[Tensor],
    tuning: &Tuning,
    inputs: &mut [Input],
) -> Result<Vec<StagePlan>, GpuError> {
    let gpus = devices.gpus.clone();
    let states: Vec<Arc<State>> = inputs.iter().map(|input| input.state.clone()).collect();
    let mut local = |state: &Arc<State>, device: usize| {
        let Some(input) = inputs.iter_mut().find(|input| Arc::ptr_eq(&input.state, state)) else {
            return devices.copy(state, device);
        };
        if let Some((_, copy)) = input.copies.iter().find(|copy| copy.0 == device) {
            return Ok(copy.clone());
        }
        let copy = State::zeros(gpus.get(device), state.label(), state.shape(), state.dtype())?;
        input.copies.push((device, copy.clone()));
        Ok(copy)
    };
    let stages = partition(graph, keep, &gpus, &states, &mut local)?;
    let mut plan = |stage: Stage| {
        let gpu = gpus[stage.device].clone();
        let kept: Vec<Tensor> =
            keep.iter().copied().chain(stage.transfers.iter().map(|transfer| transfer.tensor)).collect();
        // Measured kernel variants are valid for devices of the same name.
        let same = gpu.capabilities().name == gpus[0].capabilities().name;
        let tuning = if same { tuning.clone() } else { Tuning::defaults(gpu.capabilities()) };
        let mut pool = devices.pool(stage.device);
        let plan = DevicePlan::on_gpu(&gpu, stage.graph, &kept, &tuning, &mut pool)?;
        devices.put_back(stage.device, pool);
        Ok(StagePlan { plan, transfers: stage.transfers })
    };
    stages.into_iter().map(&mut plan).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vocabulary_without_any_token_is_refused() {
        let bans = |count: u32| (0..count).map(|id| (id, f32::NEG_INFINITY)).collect::<Vec<_>>();
        let error = refuse_all_banned(&bans(5), 5).expect_err("nothing is left").to_string();
        assert!(error.contains("all 5 tokens"), "{error}");
        assert!(refuse_all_banned(&bans(4), 5).is_ok(), "token 4 is left");
        assert!(refuse_all_banned(&[bans(5), vec![(2, 0.0)]].concat(), 5).is_ok(), "the last bias counts");
        assert!(refuse_all_banned(&[bans(4), vec![(9, f32::NEG_INFINITY)]].concat(), 5).is_ok(), "9 is no token");
        assert!(refuse_all_banned(&[(0, -LARGEST_BIAS)], 1).is_err());
    }
}
