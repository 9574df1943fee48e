//! Samples the next token on the device and feeds it back, so that no step waits for the host.

use std::cmp::Ordering;
use std::sync::Arc;

use bayan_gpu::GpuError;

use super::{candidates, search};
use crate::cpu::{CpuStep, exp, lane_sum};
use crate::graph::{Dtype, Graph, Op, Operand, State, Tensor, Values};
use crate::plan::{Lowering, Variant};

/// The kernels; the first that fits is used.
const VARIANTS: &[Variant<Sample>] = &[
    candidates::VARIANT, // hardware
    search::VARIANT,     // everything else
];

/// What both kernels that choose a token share.
pub(super) const SHARED: &str = wgsl!("lib/sample.wgsl");
/// Integers in the order of floats.
pub(super) const FLOAT_ORDER: &str = wgsl!("lib/float_order.wgsl");

/// The largest key of all invocations.
pub(super) const BEST_OF: &str = wgsl!("lib/best_of.wgsl");

/// The fewest logits per chunk that a variant uses in the first pass.
pub(super) const SHORTEST_CHUNK: usize = 256;

/// Number of values in a row of [`SampleStates::settings`].
pub const SETTINGS: usize = 16;

/// Sampling settings, in the order in which they are applied: penalties, top-k, top-p, min-p, temperature.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleSettings {
    /// 0: always the most likely token.
    pub temperature: f32,
    /// Keep this many of the most likely tokens; 0: all.
    pub top_k: u32,
    /// Keep the most likely tokens up to this total probability; 1: all.
    pub top_p: f32,
    /// Keep tokens whose probability is at least this fraction of the most likely one's; 0: all.
    pub min_p: f32,
    /// Divides positive logits of tokens seen before, and multiplies negative ones (Keskar et al., 2019); 1: off.
    pub repeat_penalty: f32,
    /// Subtracted once for a token seen before.
    pub presence_penalty: f32,
    /// Subtracted for each time a token was seen before.
    pub frequency_penalty: f32,
    /// Whether a bias is set for any token.
    pub biased: bool,
    /// The same seed on the same device with the same options gives the same tokens.
    pub seed: u64,
}

impl Default for SampleSettings {
    fn default() -> SampleSettings {
        SampleSettings {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            biased: false,
            seed: 0,
        }
    }
}

impl SampleSettings {
    /// Whether penalties or biases change the logits.
    pub fn adjusts(&self) -> bool {
        self.biased || self.repeat_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// The settings as a row of [`SampleStates::settings`].
    pub fn row(&self) -> [f32; SETTINGS] {
        let mut row = [0.0; SETTINGS];
        row[..7].copy_from_slice(&[
            self.temperature,
            self.top_k as f32,
            self.top_p,
            self.min_p,
            self.repeat_penalty,
            self.presence_penalty,
            self.frequency_penalty,
        ]);
        row[7] = f32::from(u8::from(self.adjusts()));
        row[8] = f32::from_bits(self.seed as u32);
        row[9] = f32::from_bits((self.seed >> 32) as u32);
        row
    }
}

/// States of sampling for R sequences.
#[derive(Debug, Clone)]
pub struct SampleStates {
    /// Settings [R, 16]; the rows are those of [`SampleSettings::row`].
    pub settings: Arc<State>,
    /// Number of times that each token has been seen [R, V].
    pub counts: Arc<State>,
    /// Biases that are added to the logits [R, V].
    pub bias: Arc<State>,
}

/// Inputs: logits [R, V], settings, counts, bias; outputs: logits (adjusted), peaks, counts, tokens \[R\], positions
/// \[R\].
#[derive(Debug, Clone, PartialEq)]
pub struct Sample;

impl Graph {
    /// Samples a token from each row of logits [R, V], writes it to `tokens` \[R\] and increments `positions` \[R\].
    pub fn sample(&mut self, logits: Tensor, tokens: Tensor, positions: Tensor, states: &SampleStates) {
        let (rows, chunks) = (self.rows(logits), self.width(logits).div_ceil(SHORTEST_CHUNK));
        let peaks = self.tensor(&[rows, chunks, 2], Dtype::U32);
        let [settings, counts, bias] = [&states.settings, &states.counts, &states.bias].map(|s| self.state(s));
        self.record(
            Sample,
            &[logits, settings, counts, bias, tokens, positions],
            &[logits, peaks, counts, tokens, positions],
        );
    }
}

impl Op for Sample {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "sample"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        to.emit_first(VARIANTS, self)
    }

    fn compute(&self, step: &mut CpuStep<'_>) {
        let vocabulary = step.inputs[0].width();
        let (settings, bias) = (step.inputs[1].f32(), step.inputs[3].f32());
        let [logits, _, counts, tokens, positions] = step.outputs else { unreachable!("sample has five outputs") };
        for (row, logits) in logits.f32_mut().chunks_exact_mut(vocabulary).enumerate() {
            let settings = &settings[row * SETTINGS..][..SETTINGS];
            let counts = &mut counts.u32_mut()[row * vocabulary..][..vocabulary];
            if settings[7] != 0.0 {
                let adjusted = adjust(logits, settings, counts, &bias[row * vocabulary..][..vocabulary]);
                logits.copy_from_slice(&adjusted);
            }
            let position = positions.u32()[row];
            let token = choose_among_likely(logits, settings, position);
            counts[token] += 1;
            tokens.u32_mut()[row] = token as u32;
            positions.u32_mut()[row] = position + 1;
        }
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let vocabulary = inputs[0].width();
        for (row, logits) in inputs[0].rows().enumerate() {
            let settings = &inputs[1].f32()[row * SETTINGS..][..SETTINGS];
            let counts = &inputs[2].u32()[row * vocabulary..][..vocabulary];
            let bias = &inputs[3].f32()[row * vocabulary..][..vocabulary];
            let position = inputs[5].u32()[row];
            let adjusted = adjust(logits, settings, counts, bias);
            let token = choose(&adjusted, settings, position);
            outputs[0].f32_mut()[row * vocabulary..][..vocabulary].copy_from_slice(&adjusted);
            outputs[2].u32_mut()[row * vocabulary + token] += 1;
            outputs[3].u32_mut()[row] = token as u32;
            outputs[4].u32_mut()[row] = position + 1;
        }
    }
}

fn adjust(logits: &[f32], settings: &[f32], counts: &[u32], bias: &[f32]) -> Vec<f32> {
    if settings[7] == 0.0 {
        return logits.to_vec();
    }
    let adjusted = logits.iter().zip(counts).zip(bias).map(|((&logit, &seen), &bias)| {
        let logit = logit + bias;
        let repeated = if logit > 0.0 { logit / settings[4] } else { logit * settings[4] };
        if seen > 0 { repeated - (settings[5] + settings[6] * seen as f32) } else { logit }
    });
    adjusted.collect()
}

/// The noise that sampling adds to a logit is between −2.9 and 17.4, so that a token this much less likely than the
/// best one, in units of the temperature, is never chosen.
const NEVER: f32 = 20.5;

/// As [`choose`], of the tokens that can be chosen at all: only these are sorted.
fn choose_among_likely(logits: &[f32], settings: &[f32], position: u32) -> usize {
    let mut best = 0;
    for (id, &logit) in logits.iter().enumerate() {
        if logit.total_cmp(&logits[best]).is_gt() {
            best = id;
        }
    }
    if settings[0] <= 0.0 {
        return best;
    }
    let (top_k, peak) = (settings[1] as usize, logits[best]);
    let within = |width: f32| -> Vec<usize> { (0..logits.len()).filter(|&id| logits[id] >= peak - width).collect() };
    let never = NEVER * settings[0];
    if top_k > 0 {
        let mut order = within(never);
        if order.len() < top_k {
            order = (0..logits.len()).collect();
        }
        if order.len() > top_k {
            order.select_nth_unstable_by(top_k - 1, |&a, &b| descending(logits, a, b));
            order.truncate(top_k);
        }
        return choose_of(order, None, logits, settings, position);
    }
    if settings[2] >= 1.0 {
        return choose_of(within(never), None, logits, settings, position);
    }
    // Without top-k, top-p counts the probability of all tokens; few of them have most of it.
    let mass = |part: &[f32]| f64::from(lane_sum(part, |logit| exp(logit - peak)));
    let whole: f64 = logits.chunks(4096).map(mass).sum();
    let enough = |order: &Vec<usize>| {
        let sum: f64 = order.iter().map(|&id| f64::from(logits[id] - peak).exp()).sum();
        sum >= whole * (f64::from(settings[2]) + 1e-5)
    };
    let order = [4.0, 10.0].into_iter().filter(|&width| width < never).map(within).find(enough);
    choose_of(order.unwrap_or_else(|| within(never)), Some(whole), logits, settings, position)
}

/// Likely tokens first; ties go to the smaller id.
fn descending(logits: &[f32], a: usize, b: usize) -> Ordering {
    logits[b].total_cmp(&logits[a]).then(a.cmp(&b))
}

/// The token that a row of settings selects; ties go to the smaller id.
fn choose(logits: &[f32], settings: &[f32], position: u32) -> usize {
    choose_of((0..logits.len()).collect(), None, logits, settings, position)
}

/// As [`choose`], of these tokens. `whole` is Σ exp(logit − peak) of all tokens, if these are only some of them.
fn choose_of(mut order: Vec<usize>, whole: Option<f64>, logits: &[f32], settings: &[f32], position: u32) -> usize {
    if settings[0] <= 0.0 || settings[1] > 0.0 || settings[2] < 1.0 {
        order.sort_by(|&a, &b| descending(logits, a, b));
    }
    if settings[0] <= 0.0 {
        return order[0];
    }
    let peak = order.iter().fold(f32::NEG_INFINITY, |peak, &i| if logits[i] > peak { logits[i] } else { peak });
    let mass = |kept: &[usize]| kept.iter().map(|&i| f64::from(logits[i] - peak).exp()).sum::<f64>();
    if settings[1] > 0.0 {
        order.truncate(settings[1] as usize);
    }
    if settings[2] < 1.0 {
        let wanted = f64::from(settings[2]) * whole.unwrap_or_else(|| mass(&order));
        let mut sum = 0.0;
        let enough = order.iter().position(|&i| {
            sum += mass(&[i]);
            sum >= wanted
        });
        order.truncate(enough.map_or(order.len(), |last| last + 1));
    }
    if settings[3] > 0.0 {
        order.retain(|&i| logits[i] >= peak + settings[3].ln());
    }
    let seed = hash(settings[8].to_bits() ^ hash(settings[9].to_bits() ^ hash(position)));
    let noisy = |i: usize| {
        let uniform = (f64::from(hash(hash(i as u32) ^ seed) >> 8) + 0.5) / 16_777_216.0;
        f64::from((logits[i] - peak) / settings[0]) - (-uniform.ln()).ln()
    };
    order.into_iter().max_by(|&a, &b| noisy(a).total_cmp(&noisy(b)).then(b.cmp(&a))).unwrap_or(0)
}

/// PCG hash (Jarzynski and Olano, 2020).
fn hash(value: u32) -> u32 {
    let state = value.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    let word = ((state >> ((state >> 28) + 4)) ^ state).wrapping_mul(277_803_737);
    (word >> 22) ^ word
}
