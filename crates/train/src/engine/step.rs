//! One recorded step: the forward pass over a packed micro-batch, the loss, and for training the gradients, for a fixed
//! number of tokens and rows.
//!
//! Sizes are rounded up, so that batches of similar lengths share a plan. Padding tokens form sequences of their own
//! and padding rows have ignored targets, so that padding does not affect the loss.

use std::sync::Arc;

use bayan_gpu::{Gpu, GpuError, KernelTime};
use bayan_models::{Cache, Decoder, StepInputs};
use bayan_tensor::ops::{Causality, IGNORED, QUERY_TILE};
use bayan_tensor::{
    BackwardOptions, Dtype, Graph, Plan, PlannedKernel, Pool, State, Tensor, Tuning, Values, interpret,
    store_activations_f16,
};

use super::EngineError;
use super::arena::Arena;
use super::trainer::TrainerOptions;
use crate::MicroBatch;

/// What a step computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StepKind {
    /// Row losses with the adapter attached, without gradients.
    Evaluate,
    /// Row losses of the base model alone.
    Base,
    /// Σ weight · nll, with gradients.
    Supervised,
    /// The preference loss of pairs, with gradients.
    Preference,
}

/// The sizes of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub kind: StepKind,
    pub tokens: usize,
    pub rows: usize,
    tiles: usize,
    pairs: usize,
}

/// A micro-batch in the form that the kernels read.
#[derive(Debug)]
pub(super) struct PackedBatch {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    bases: Vec<u32>,
    tiles: Vec<u32>,
    rows: Vec<u32>,
    targets: Vec<u32>,
    sequence_of_row: Vec<u32>,
    longest: usize,
    /// For each token, the length of its sequence.
    lengths: Vec<u32>,
    /// Number of trained rows.
    pub count: usize,
    sequences: usize,
}

/// Batches of fewer sequences share a plan with batches of this many.
const LEAST_SEQUENCES: usize = 8;

/// Sizes up to this have few steps between powers of two.
const FINE_FROM: usize = 1024;

/// Rounds `n` up to a size of a short list, so that the batches of a run share few plans: kernels are compiled for each
/// size, which takes longer than many small steps. Up to 1,024 the list has the powers of two and one and a half times
/// these (where that is a multiple of `least`); above, eighths of the next power of two.
pub(crate) fn rounded(n: usize, least: usize) -> usize {
    let power = n.next_power_of_two().max(least);
    if power > FINE_FROM {
        return n.next_multiple_of((power / 8).max(least));
    }
    let between = power / 4 * 3;
    if n <= between && between.is_multiple_of(least) { between } else { power }
}

impl PackedBatch {
    /// Checks and packs a batch. `context` is the number of positions of the model's rotary table.
    pub fn new(batch: &MicroBatch, context: usize, vocabulary: usize) -> Result<PackedBatch, EngineError> {
        let lengths = batch.ids.len();
        if lengths == 0 || [batch.labels.len(), batch.positions.len(), batch.sequences.len()] != [lengths; 3] {
            return Err(EngineError::input(
                "micro-batch",
                "ids, labels, positions and sequences of one length above 0",
                format!("{lengths} ids"),
                "report this as a bug",
            ));
        }
        if let Some(id) = batch.ids.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(EngineError::input(
                "micro-batch",
                format!("token ids below {vocabulary}"),
                id.to_string(),
                "use the tokenizer of this model",
            ));
        }
        let tokens = rounded(lengths, 2 * QUERY_TILE);
        let mut packed = PackedBatch {
            tokens: batch.ids.clone(),
            positions: Vec::with_capacity(tokens),
            bases: Vec::with_capacity(tokens),
            tiles: Vec::new(),
            rows: Vec::new(),
            targets: Vec::new(),
            sequence_of_row: Vec::new(),
            longest: 0,
            lengths: Vec::with_capacity(tokens),
            count: 0,
            sequences: 0,
        };
        for start in batch.starts.iter().map(|&s| s as usize) {
            let Some(&number) = batch.sequences.get(start) else { continue };
            packed.push(batch.sequences[start..].iter().take_while(|&&s| s == number).count(), context)?;
        }
        if packed.positions != batch.positions {
            return Err(EngineError::input(
                "micro-batch",
                "positions from 0 on in each sequence",
                "others",
                "report this as a bug",
            ));
        }
        packed.tokens.resize(tokens, 0);
        while packed.positions.len() < tokens {
            packed.push((tokens - packed.positions.len()).min(context), context)?;
        }
        let targets = batch.targets();
        for (t, &target) in targets.iter().enumerate().filter(|(_, target)| **target >= 0) {
            if target as usize >= vocabulary {
                return Err(EngineError::input(
                    "micro-batch",
                    format!("labels below {vocabulary}"),
                    target.to_string(),
                    "use the tokenizer of this model",
                ));
            }
            packed.rows.push(t as u32);
            packed.targets.push(target as u32);
            packed.sequence_of_row.push(batch.sequences[t]);
        }
        packed.count = packed.rows.len();
        let rows = rounded(packed.count.max(1), 16);
        packed.rows.resize(rows, 0);
        packed.targets.resize(rows, IGNORED);
        packed.sequence_of_row.resize(rows, IGNORED);
        let tiles = packed.tokens.len() / QUERY_TILE + packed.sequences.next_power_of_two().max(LEAST_SEQUENCES);
        packed.tiles.resize(2 * tiles.max(packed.tiles.len() / 2), 0);
        Ok(packed)
    }

    fn push(&mut self, len: usize, context: usize) -> Result<(), EngineError> {
        if len > context {
            let remedy = "shorten the sequences, or open the model with a longer context";
            return Err(EngineError::input(
                "micro-batch",
                format!("sequences of at most {context} tokens"),
                len.to_string(),
                remedy,
            ));
        }
        let first = self.positions.len();
        self.tiles.extend(
            (0..len).step_by(QUERY_TILE).flat_map(|start| [(first + start) as u32, QUERY_TILE.min(len - start) as u32]),
        );
        self.positions.extend((0..len).map(|p| p as u32));
        self.bases.extend(std::iter::repeat_n(first as u32, len));
        self.lengths.extend(std::iter::repeat_n(len as u32, len));
        self.longest = self.longest.max(len);
        self.sequences += 1;
        Ok(())
    }

    /// The shape of the step that runs this batch; `pairs` matters for preferences only.
    pub fn shape(&self, kind: StepKind, pairs: usize) -> Shape {
        Shape {
            kind,
            tokens: self.tokens.len(),
            rows: self.rows.len(),
            tiles: self.tiles.len() / 2,
            pairs: if kind == StepKind::Preference { pairs } else { 0 },
        }
    }
}

/// Further inputs of a step.
#[derive(Debug, Clone)]
pub(super) enum LossInputs {
    /// The weight of every row's loss.
    Scale(f32),
    /// Reference log-probabilities of pairs (chosen, rejected), β, and the factor on the loss.
    Preference(Vec<[f32; 2]>, f32, f32),
}

/// The results of a step.
#[derive(Debug, Clone, Default)]
pub(super) struct StepResult {
    /// Weighted loss.
    pub loss: f32,
    /// Summed nll of each sequence, by its number.
    pub sums: Vec<f64>,
    /// For each pair: log-probability of chosen and rejected, margin, loss.
    pub pairs: Vec<[f32; 4]>,
}

struct Inputs {
    tokens: Arc<State>,
    positions: Arc<State>,
    bases: Arc<State>,
    tiles: Arc<State>,
    rows: Arc<State>,
    targets: Arc<State>,
    sequence_of_row: Arc<State>,
    weights: Arc<State>,
    reference: Arc<State>,
    settings: Arc<State>,
    noise: Arc<State>,
}

impl Inputs {
    fn new(gpu: Option<&Gpu>, shape: Shape) -> Result<Inputs, GpuError> {
        let integers = |label: &str, shape: &[usize]| State::zeros(gpu, label, shape, Dtype::U32);
        let floats = |label: &str, shape: &[usize]| State::zeros(gpu, label, shape, Dtype::F32);
        Ok(Inputs {
            tokens: integers("tokens", &[shape.tokens])?,
            positions: integers("positions", &[shape.tokens])?,
            bases: integers("bases", &[shape.tokens])?,
            tiles: integers("tiles", &[shape.tiles, 2])?,
            rows: integers("rows", &[shape.rows])?,
            targets: integers("targets", &[shape.rows])?,
            sequence_of_row: integers("sequence_of_row", &[shape.rows])?,
            weights: floats("weights", &[shape.rows])?,
            reference: floats("reference", &[shape.pairs.max(1), 2])?,
            settings: floats("settings", &[4])?,
            noise: floats("noise", &[shape.tokens])?,
        })
    }
}

/// A recorded step.
pub(super) struct Step {
    pub shape: Shape,
    inputs: Inputs,
    graph: Option<Graph>,
    plan: Option<Plan>,
    loss: Tensor,
    nll: Tensor,
    pairs: Option<Tensor>,
    /// The bound of the embedding noise times √(tokens of the sequence).
    noise: Option<f64>,
    submission_work: u64,
}

impl Step {
    /// Records and plans a step. The caller attaches or detaches the adapter as `kind` requires.
    pub fn new(
        gpu: Option<&Gpu>,
        decoder: &dyn Decoder,
        arena: &Arena,
        cache: &Cache,
        shape: Shape,
        options: &TrainerOptions,
        seed: &Arc<State>,
        pool: &mut Pool,
    ) -> Result<Step, EngineError> {
        let inputs = Inputs::new(gpu, shape)?;
        let mut graph = Graph::new();
        let causality = Causality {
            positions: graph.state(&inputs.positions),
            bases: graph.state(&inputs.bases),
            tiles: graph.state(&inputs.tiles),
        };
        let (tokens, rows, targets) =
            (graph.state(&inputs.tokens), graph.state(&inputs.rows), graph.state(&inputs.targets));
        let logits = decoder.forward(&mut graph, StepInputs { tokens, causality, rows: Some(rows) }, cache);
        if let (Some(_), StepKind::Supervised) = (options.neftune, shape.kind) {
            let sizes = graph.state(&inputs.noise);
            graph.noise_on_embeddings(seed, sizes);
        }
        let Some(sweep) = graph.cross_entropy(logits, targets, options.logits_budget) else {
            let expected = "an output head that is a plain linear layer without bias or adapter";
            return Err(EngineError::input(
                "model",
                expected,
                "another kind of output head",
                "leave lm_head out of target_modules",
            ));
        };
        let (loss, nll, weights, pairs) = if shape.kind == StepKind::Preference {
            let [sequence_of_row, reference, settings] =
                [&inputs.sequence_of_row, &inputs.reference, &inputs.settings].map(|state| graph.state(state));
            let [nll, weights, pairs, loss] =
                graph.preference_loss(sweep.statistics, sequence_of_row, reference, settings);
            (loss, nll, weights, Some(pairs))
        } else {
            let weights = graph.state(&inputs.weights);
            let (loss, nll) = graph.weighted_loss(sweep.statistics, targets, weights);
            (loss, nll, weights, None)
        };
        let keep: Vec<Tensor> = [loss, nll].into_iter().chain(pairs).collect();
        if matches!(shape.kind, StepKind::Supervised | StepKind::Preference) {
            let forward = graph.nodes().len();
            let gradient = graph.cross_entropy_backward(&sweep, weights, &arena.pairs());
            graph.backward(
                &[(sweep.hidden(), gradient)],
                &arena.pairs(),
                BackwardOptions { recompute: options.recompute },
            )?;
            if options.f16 {
                graph = store_activations_f16(&graph, forward, decoder.sizes().num_hidden_layers, &keep);
            }
        }
        let noise = options.neftune.map(|alpha| alpha / (decoder.sizes().hidden_size as f64).sqrt());
        let submission_work = options.submission_work;
        let Some(gpu) = gpu else {
            return Ok(Step {
                shape,
                inputs,
                graph: Some(graph),
                plan: None,
                loss,
                nll,
                pairs,
                noise,
                submission_work,
            });
        };
        // No fusion: fused kernels are for inference; some round activations, and all hide values that the gradients
        // read.
        let tuning = Tuning { fuse: false, ..Tuning::defaults(gpu.capabilities()) };
        let plan = Plan::sharing(gpu, graph, &keep, &tuning, pool)?;
        Ok(Step { shape, inputs, graph: None, plan: Some(plan), loss, nll, pairs, noise, submission_work })
    }

    /// Device bytes of the activations.
    pub fn activation_bytes(&self) -> u64 {
        self.plan.as_ref().map_or(0, |plan| plan.cost().activation_bytes)
    }

    /// Number of dispatches.
    pub fn dispatches(&self) -> usize {
        self.plan.as_ref().map_or(0, |plan| plan.cost().dispatches)
    }

    /// The dispatches.
    pub fn kernels(&self) -> Vec<PlannedKernel> {
        self.plan.as_ref().map_or(Vec::new(), |plan| plan.kernels(self.shape.tokens))
    }

    /// Number of submissions that the step is divided into.
    pub fn submissions(&self) -> usize {
        self.plan.as_ref().map_or(0, |plan| plan.submissions_within(self.submission_work))
    }

    /// Measures the time of each kernel.
    pub async fn profile(&self, gpu: &Gpu) -> Result<Vec<KernelTime>, EngineError> {
        match &self.plan {
            Some(plan) => Ok(plan.profile(gpu, self.shape.tokens).await?),
            None => Ok(Vec::new()),
        }
    }

    /// Runs the step once.
    pub async fn run(
        &self,
        gpu: Option<&Gpu>,
        packed: &PackedBatch,
        loss_inputs: &LossInputs,
    ) -> Result<StepResult, EngineError> {
        self.write(gpu, packed, loss_inputs);
        let wanted: Vec<Tensor> = [self.loss, self.nll].into_iter().chain(self.pairs).collect();
        let values = match (gpu, &self.plan, &self.graph) {
            (Some(gpu), Some(plan), _) => {
                let requests: Vec<_> = wanted.iter().map(|&t| plan.read_request(t)).collect();
                let mut values = Vec::new();
                for read in plan.submit_within(gpu, packed.longest, self.submission_work, &requests) {
                    values.push(Values::from_bytes(&read.wait().await?, Dtype::F32));
                }
                values
            }
            (_, _, Some(graph)) => {
                let all = interpret(graph);
                wanted.iter().map(|t| all[t.index()].clone().unwrap_or_else(|| Values::zeros(0, Dtype::F32))).collect()
            }
            _ => Vec::new(),
        };
        let mut result =
            StepResult { loss: values[0].f32()[0], sums: vec![0.0; packed.sequences], ..StepResult::default() };
        for (&nll, &sequence) in values[1].f32().iter().zip(&packed.sequence_of_row) {
            if let Some(sum) = result.sums.get_mut(sequence as usize) {
                *sum += f64::from(nll);
            }
        }
        if let Some(pairs) = values.get(2) {
            result.pairs = pairs.f32().chunks_exact(4).map(|p| [p[0], p[1], p[2], p[3]]).collect();
        }
        Ok(result)
    }

    fn write(&self, gpu: Option<&Gpu>, packed: &PackedBatch, loss_inputs: &LossInputs) {
        let inputs = &self.inputs;
        for (state, values) in [
            (&inputs.tokens, &packed.tokens),
            (&inputs.positions, &packed.positions),
            (&inputs.bases, &packed.bases),
            (&inputs.tiles, &packed.tiles),
            (&inputs.rows, &packed.rows),
            (&inputs.targets, &packed.targets),
            (&inputs.sequence_of_row, &packed.sequence_of_row),
        ] {
            state.write(gpu, 0, bytemuck::cast_slice(values));
        }
        if let Some(noise) = self.noise {
            let sizes: Vec<f32> = packed.lengths.iter().map(|&len| (noise / f64::from(len).sqrt()) as f32).collect();
            inputs.noise.write(gpu, 0, bytemuck::cast_slice(&sizes));
        }
        match loss_inputs {
            LossInputs::Scale(scale) => {
                let weights: Vec<f32> =
                    packed.targets.iter().map(|&target| if target == IGNORED { 0.0 } else { *scale }).collect();
                inputs.weights.write(gpu, 0, bytemuck::cast_slice(&weights));
            }
            LossInputs::Preference(reference, beta, scale) => {
                inputs.reference.write(gpu, 0, bytemuck::cast_slice(reference));
                inputs.settings.write(gpu, 0, bytemuck::cast_slice(&[*beta, *scale, 0.0, 0.0]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::rounded;

    #[test]
    fn small_sizes_are_few_and_large_ones_close() {
        let mut sizes: Vec<usize> = (1..=1024).map(|n| rounded(n, 32)).collect();
        sizes.dedup();
        assert_eq!(sizes, [32, 64, 96, 128, 192, 256, 384, 512, 768, 1024]);
        let mut rows: Vec<usize> = (1..=128).map(|n| rounded(n, 16)).collect();
        rows.dedup();
        assert_eq!(rows, [16, 32, 48, 64, 96, 128]);
        for n in 1..5000 {
            let size = rounded(n, 32);
            assert!(size >= n && size.is_multiple_of(32) && (n <= 1024 || size * 4 <= n * 5 + 256), "{n}: {size}");
        }
    }
}
