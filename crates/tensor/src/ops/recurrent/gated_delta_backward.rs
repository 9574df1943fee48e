//! The gradient of [`super::GatedDelta`], for sequences that begin within the step.
//!
//! The state is linear in all that is written to it, so its gradient M follows the same recurrence backwards, and with
//! E = v − Sᵀ k (what a token corrects), U = β E and Y the gradient of U, everything else is a product of two tokens:
//! with D\[t, s\] the decay from s to t, dq\[t\] = Σ_s D (dy\[t\]·U\[s\]) k\[s\], and dk likewise. The gradient of the
//! decays is dy·y − β Y·v, summed over all later tokens: the products with the state cancel. So only E and Y need loops
//! over the tokens, one invocation per column of the state as forwards; the sums over tokens are matrix products of one
//! head. Rejected: storing the states of all tokens, dk dv numbers for each head and token.

use bayan_gpu::GpuError;

use super::gated_delta::{GatedDelta, GatedDeltaRead, gates, inverse_length};
use crate::graph::{Dtype, Graph, Op, Operand, Tensor, Values};
use crate::ops::linear::{Product, View};
use crate::plan::{KernelText, Lowering, grid};

/// What a node computes. `steps` [T, 3H] holds β, the logarithm of the decay, and its sum over the sequence's tokens up
/// to this one; `unit` [T, 2 K dk] the normalised q and k.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeltaPart {
    /// From gates, constants and positions: `steps`.
    Steps,
    /// From mixed: `unit`.
    Unit,
    /// From mixed, `unit`, `steps` and positions: E and U [T, H dv], and the state [H dk dv] as working memory.
    Replay,
    /// From dy, `unit`, `steps` and positions: Y [T, H dv], and M [H dk dv] as working memory.
    Adjoint,
    /// For one head, from dy\[t\]·U\[s\], Y\[t\]·U\[s\], `steps` and positions: D times the first for s ≤ t, and
    /// −β\[t\] D times the second for s < t, in the same sequence.
    Decay(usize),
    /// From mixed, the gradient of `unit`, Y and `steps`: the gradient of mixed.
    Mixed,
    /// From mixed, E, Y, y, dy and `steps`, for each head: Σ Y E, and Σ dy y − β Y v; [T, 2H].
    Sums,
    /// From these sums, gates, constants, `steps` and positions: the gradient of the gates.
    Gates,
}

/// One node of the gradient.
#[derive(Debug, Clone, PartialEq)]
pub struct GatedDeltaBackward {
    /// The op that is differentiated.
    pub of: GatedDelta,
    /// What this node computes.
    pub part: DeltaPart,
    /// Add to the output instead of overwriting it.
    pub add: bool,
}

/// What the gradients of all inputs need.
#[derive(Debug, Clone, Copy)]
pub struct DeltaAdjoint {
    steps: Tensor,
    unit: Tensor,
    errors: Tensor,
    changes: Tensor,
    adjoint: Tensor,
}

impl Graph {
    fn delta_part(&mut self, of: &GatedDelta, part: DeltaPart, add: bool, inputs: &[Tensor], outputs: &[Tensor]) {
        self.record(GatedDeltaBackward { of: of.clone(), part, add }, inputs, outputs);
    }

    /// Records what the gradients of all inputs need.
    pub fn gated_delta_adjoint(&mut self, of: &GatedDelta, read: GatedDeltaRead) -> DeltaAdjoint {
        let tokens = self.rows(read.mixed);
        let inner = of.heads * of.value_dim;
        let steps = self.tensor(&[tokens, 3 * of.heads], Dtype::F32);
        let unit = self.tensor(&[tokens, 2 * of.key_heads * of.key_dim], Dtype::F32);
        let [errors, changes, adjoint] = [(); 3].map(|()| self.tensor(&[tokens, inner], Dtype::F32));
        let [forwards, backwards] = [(); 2].map(|()| self.tensor(&[of.state_len()], Dtype::F32));
        self.delta_part(of, DeltaPart::Steps, false, &[read.gates, read.constants, read.positions], &[steps]);
        self.delta_part(of, DeltaPart::Unit, false, &[read.mixed], &[unit]);
        let inputs = [read.mixed, unit, steps, read.positions];
        self.delta_part(of, DeltaPart::Replay, false, &inputs, &[errors, changes, forwards]);
        let inputs = [read.dy, unit, steps, read.positions];
        self.delta_part(of, DeltaPart::Adjoint, false, &inputs, &[adjoint, backwards]);
        DeltaAdjoint { steps, unit, errors, changes, adjoint }
    }

    /// Records the gradient of q, k and v into `dmixed`.
    pub fn gated_delta_mixed(
        &mut self,
        of: &GatedDelta,
        read: GatedDeltaRead,
        found: &DeltaAdjoint,
        dmixed: Tensor,
        add: bool,
    ) {
        let (tokens, keys, dk, dv) = (self.rows(read.mixed), of.key_heads * of.key_dim, of.key_dim, of.value_dim);
        let whole = View::of(tokens);
        let dunit = self.tensor(&[tokens, 2 * keys], Dtype::F32);
        let product = |m, n, k, a, b, c, add| Product { m, n, k, a, b, c, alpha: 1.0, add, packed: false };
        for head in 0..of.heads {
            let own = View { offset: head * dv, ..View::of(of.heads * dv) };
            let query = View { offset: of.key_head(head) * dk, ..View::of(2 * keys) };
            let key = View { offset: keys + query.offset, ..query };
            let [slopes, pulls, by_query, by_key] = [(); 4].map(|()| self.tensor(&[tokens, tokens], Dtype::F32));
            for (of_token, into) in [(read.dy, slopes), (found.adjoint, pulls)] {
                let outer = product(tokens, tokens, dv, own, own.transposed(), whole, false);
                self.product(outer, of_token, found.changes, into);
            }
            let inputs = [slopes, pulls, found.steps, read.positions];
            self.delta_part(of, DeltaPart::Decay(head), false, &inputs, &[by_query, by_key]);
            // The first value head of a key head writes, the others add.
            let more = (0..head).any(|earlier| of.key_head(earlier) == of.key_head(head));
            let unit = found.unit;
            self.product(product(tokens, dk, tokens, whole, key, query, more), by_query, unit, dunit);
            self.product(product(tokens, dk, tokens, whole.transposed(), query, key, more), by_query, unit, dunit);
            self.product(product(tokens, dk, tokens, whole, key, key, true), by_key, unit, dunit);
            self.product(product(tokens, dk, tokens, whole.transposed(), key, key, true), by_key, unit, dunit);
        }
        let mut inputs = vec![read.mixed, dunit, found.adjoint, found.steps];
        inputs.extend(add.then_some(dmixed));
        self.delta_part(of, DeltaPart::Mixed, add, &inputs, &[dmixed]);
    }

    /// Records the gradient of the gates into `dgates`.
    pub fn gated_delta_gates(
        &mut self,
        of: &GatedDelta,
        read: GatedDeltaRead,
        found: &DeltaAdjoint,
        dgates: Tensor,
        add: bool,
    ) {
        let tokens = self.rows(read.mixed);
        let sums = self.tensor(&[tokens, 2 * of.heads], Dtype::F32);
        let inputs = [read.mixed, found.errors, found.adjoint, read.y, read.dy, found.steps];
        self.delta_part(of, DeltaPart::Sums, false, &inputs, &[sums]);
        let mut inputs = vec![sums, read.gates, read.constants, found.steps, read.positions];
        inputs.extend(add.then_some(dgates));
        self.delta_part(of, DeltaPart::Gates, add, &inputs, &[dgates]);
    }
}

/// How a part is dispatched.
struct About {
    name: &'static str,
    /// Number of inputs and outputs that its kernel binds.
    bound: [usize; 2],
    /// Number of invocations.
    count: usize,
    /// Most turns of loops for one token of those that an invocation loops over, and besides.
    token_turns: u64,
    turns: u64,
}

impl GatedDeltaBackward {
    fn about(&self, tokens: usize) -> About {
        let GatedDelta { heads, value_dim, key_heads, key_dim, .. } = self.of;
        let (inner, dk, dv) = (heads * value_dim, key_dim as u64, value_dim as u64);
        let of = |name, bound, count, token_turns, turns| About { name, bound, count, token_turns, turns };
        match self.part {
            DeltaPart::Steps => of("steps", [3, 1], heads, 1, 1),
            DeltaPart::Unit => of("unit", [1, 1], tokens * 2 * key_heads, 0, 2 * dk + 2),
            DeltaPart::Replay => of("replay", [4, 3], inner, 2 * dk + 3, 1),
            DeltaPart::Adjoint => of("adjoint", [4, 2], inner, 2 * dk + 3, 1),
            DeltaPart::Decay(_) => of("decay", [4, 2], tokens * tokens, 0, 1),
            DeltaPart::Mixed => of("mixed", [4, 1], tokens * self.of.width(), 0, dk + 1),
            DeltaPart::Sums => of("sums", [6, 1], tokens * heads, 0, dv + 1),
            DeltaPart::Gates => of("gates", [5, 1], heads, 1, 1),
        }
    }
}

impl Op for GatedDeltaBackward {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "gated_delta_backward"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let tokens = to.output_shape(0)[0];
        let about = self.about(tokens);
        let threads = grid::row_threads(to, 64);
        let (grid, stride) = grid::flat_grid(to, about.count, threads);
        let defines = self
            .of
            .defines(threads)
            .set("PART", about.name)
            .set("HEAD", if let DeltaPart::Decay(head) = self.part { head } else { 0 })
            .set("ADD", self.add);
        // A loop with working memory can be split over dispatches anywhere; it runs in reverse where the gradient does.
        let splits = matches!(self.part, DeltaPart::Replay | DeltaPart::Adjoint);
        let piece = if splits { to.piece(about.turns, about.token_turns, 1) } else { tokens };
        let mut pieces: Vec<(usize, usize)> =
            (0..tokens).step_by(piece).map(|start| (start, start.saturating_add(piece).min(tokens))).collect();
        if self.part == DeltaPart::Adjoint {
            pieces.reverse();
        }
        for (start, end) in pieces {
            let size = to.numbers(&[about.count as u32, stride, tokens as u32, 0, start as u32, end as u32])?;
            let mut bindings: Vec<_> = (0..about.bound[0]).map(|input| to.input(input)).collect();
            bindings.extend((0..about.bound[1]).map(|output| to.output(output)));
            bindings.push(size);
            let parts = [wgsl!("recurrent/gated_delta_backward.wgsl")];
            let turns = about.turns + (end - start) as u64 * about.token_turns;
            let name = format!("gated_delta_backward {}", about.name);
            to.emit(KernelText { name: &name, parts: &parts, defines: defines.clone(), turns }, &[bindings], grid)?;
        }
        Ok(())
    }

    fn work(&self, _inputs: &[&[usize]], outputs: &[&[usize]]) -> u64 {
        let each = match self.part {
            DeltaPart::Replay | DeltaPart::Adjoint => 2 * self.of.key_dim as u64,
            _ => 1,
        };
        crate::graph::elements(outputs[0]) * each
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let GatedDelta { heads, value_dim: dv, key_heads, key_dim: dk, .. } = self.of;
        let (inner, keys) = (heads * dv, key_heads * dk);
        let get = |input: usize, row: usize, column: usize| {
            f64::from(inputs[input].f32()[row * inputs[input].width() + column])
        };
        let begins = |input: usize, t: usize| inputs[input].u32()[t] == 0;
        match self.part {
            DeltaPart::Steps => {
                let constants = inputs[1].f32();
                for head in 0..heads {
                    let mut sum = 0.0;
                    for (t, row) in outputs[0].f32_mut().chunks_exact_mut(3 * heads).enumerate() {
                        let raw = &inputs[0].f32()[t * 2 * heads..];
                        let (beta, decay) =
                            gates(raw[head], raw[heads + head], constants[head], constants[heads + head]);
                        sum = if begins(2, t) { 0.0 } else { sum } + decay;
                        for (part, value) in [beta, decay, sum].into_iter().enumerate() {
                            row[part * heads + head] = value as f32;
                        }
                    }
                }
            }
            DeltaPart::Unit => {
                let rows = inputs[0].rows().zip(outputs[0].f32_mut().chunks_exact_mut(2 * keys));
                for (from, to) in rows {
                    for (head, to) in to.chunks_exact_mut(dk).enumerate() {
                        let from = &from[head * dk..(head + 1) * dk];
                        let scale = if head < key_heads { 1.0 / (dk as f64).sqrt() } else { 1.0 };
                        let scale = scale * inverse_length(from);
                        to.iter_mut().zip(from).for_each(|(to, &v)| *to = (f64::from(v) * scale) as f32);
                    }
                }
            }
            DeltaPart::Replay | DeltaPart::Adjoint => self.recurrences(inputs, outputs),
            DeltaPart::Decay(head) => {
                let tokens = inputs[0].width();
                for t in 0..tokens {
                    for s in 0..tokens {
                        let reaches = s <= t && inputs[3].u32()[t] as usize >= t - s;
                        let decay = if reaches {
                            (get(2, t, 2 * heads + head) - get(2, s, 2 * heads + head)).exp()
                        } else {
                            0.0
                        };
                        let earlier = if s < t { -get(2, t, head) } else { 0.0 };
                        outputs[0].f32_mut()[t * tokens + s] = (decay * get(0, t, s)) as f32;
                        outputs[1].f32_mut()[t * tokens + s] = (decay * earlier * get(1, t, s)) as f32;
                    }
                }
            }
            DeltaPart::Mixed => {
                for (t, row) in outputs[0].f32_mut().chunks_exact_mut(2 * keys + inner).enumerate() {
                    let mixed = &inputs[0].f32()[t * (2 * keys + inner)..];
                    for (column, d) in row.iter_mut().enumerate() {
                        let gradient = if column < 2 * keys {
                            let first = column / dk * dk;
                            let own = &mixed[first..first + dk];
                            let (length, scale) =
                                (inverse_length(own), if column < keys { 1.0 / (dk as f64).sqrt() } else { 1.0 });
                            let along: f64 =
                                own.iter().enumerate().map(|(i, &v)| f64::from(v) * get(1, t, first + i)).sum();
                            let x = f64::from(mixed[column]);
                            scale * (length * get(1, t, column) - x * along * length.powi(3))
                        } else {
                            let index = column - 2 * keys;
                            get(3, t, index / dv) * get(2, t, index)
                        };
                        *d = (gradient + if self.add { f64::from(*d) } else { 0.0 }) as f32;
                    }
                }
            }
            DeltaPart::Sums => {
                for (t, row) in outputs[0].f32_mut().chunks_exact_mut(2 * heads).enumerate() {
                    for head in 0..heads {
                        let sum = |a: usize, b: usize, first: usize| {
                            (head * dv..(head + 1) * dv).map(|i| get(a, t, i) * get(b, t, first + i)).sum::<f64>()
                        };
                        row[head] = sum(2, 1, 0) as f32;
                        row[heads + head] = (sum(4, 3, 0) - get(5, t, head) * sum(2, 0, 2 * keys)) as f32;
                    }
                }
            }
            DeltaPart::Gates => {
                let constants = inputs[2].f32();
                for head in 0..heads {
                    let mut later = 0.0;
                    for (t, row) in outputs[0].f32_mut().chunks_exact_mut(2 * heads).enumerate().rev() {
                        later += get(0, t, heads + head);
                        let beta = get(3, t, head);
                        let raw = get(1, t, heads + head) + f64::from(constants[heads + head]);
                        let slope = f64::from(constants[head]) / (1.0 + (-raw).exp());
                        let found = [get(0, t, head) * beta * (1.0 - beta), later * slope];
                        for (to, gradient) in [head, heads + head].into_iter().zip(found) {
                            row[to] = (gradient + if self.add { f64::from(row[to]) } else { 0.0 }) as f32;
                        }
                        if begins(4, t) {
                            later = 0.0;
                        }
                    }
                }
            }
        }
    }
}

impl GatedDeltaBackward {
    /// The references of the parts that loop over the tokens with working memory.
    fn recurrences(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let GatedDelta { heads, value_dim: dv, key_heads, key_dim: dk, .. } = self.of;
        let (inner, keys) = (heads * dv, key_heads * dk);
        let get = |input: usize, row: usize, column: usize| {
            f64::from(inputs[input].f32()[row * inputs[input].width() + column])
        };
        let tokens = inputs[0].shape[0];
        for index in 0..inner {
            let head = index / dv;
            let from_q = self.of.key_head(head) * dk;
            let mut state = vec![0.0f64; dk];
            let q = |t: usize, i: usize| get(1, t, from_q + i);
            let k = |t: usize, i: usize| get(1, t, keys + from_q + i);
            for step in 0..tokens {
                let forwards = self.part == DeltaPart::Replay;
                let t = if forwards { step } else { tokens - 1 - step };
                let (beta, decay) = (get(2, t, head), get(2, t, heads + head).exp());
                if forwards {
                    if inputs[3].u32()[t] == 0 {
                        state.fill(0.0);
                    }
                    state.iter_mut().for_each(|s| *s *= decay);
                    let memory: f64 = (0..dk).map(|i| state[i] * k(t, i)).sum();
                    let error = get(0, t, 2 * keys + index) - memory;
                    (0..dk).for_each(|i| state[i] += k(t, i) * beta * error);
                    outputs[0].f32_mut()[t * inner + index] = error as f32;
                    outputs[1].f32_mut()[t * inner + index] = (beta * error) as f32;
                } else {
                    if t + 1 == tokens || inputs[3].u32()[t + 1] == 0 {
                        state.fill(0.0);
                    }
                    let dy = get(0, t, index);
                    (0..dk).for_each(|i| state[i] += q(t, i) * dy);
                    let adjoint: f64 = (0..dk).map(|i| state[i] * k(t, i)).sum();
                    (0..dk).for_each(|i| state[i] = decay * (state[i] - beta * k(t, i) * adjoint));
                    outputs[0].f32_mut()[t * inner + index] = adjoint as f32;
                }
            }
            let memory = outputs.len() - 1;
            let to = outputs[memory].f32_mut();
            (0..dk).for_each(|i| to[(head * dk + i) * dv + index % dv] = state[i] as f32);
        }
    }
}
