//! The gradient of [`super::StateSpace`], for sequences that begin within the step.
//!
//! Computed as attention without a softmax (the dual form of Dao and Gu, 2024): with a\[t\] the sum of δ A up to token
//! t, o\[t\] = Σ_{s ≤ t} exp(a\[t\] − a\[s\]) (C\[t\]·B\[s\]) δ\[s\] x\[s\]. All sums over tokens are then matrix
//! products of one head, ordinary [`Product`]s, and the rest is element-wise. The cost is memory for a few [T, T]
//! matrices of one head at a time. Rejected: differentiating the recurrence in reverse, because each state is [H, P,
//! N], all states would have to be stored or recomputed in runs, and the gradients of B and C would be sums over the
//! invocations of a head at every token.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use super::state_space::{StateSpace, StateSpaceRead};
use crate::graph::{Dtype, Graph, Op, Operand, Tensor, Values};
use crate::ops::elementwise::Activation;
use crate::ops::linear::{Product, View};
use crate::plan::{KernelText, Lowering, grid};

/// What a node computes. `steps` \[T, 2H\] holds δ, then the sum of δ A over the sequence's tokens up to this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// From projection, constants and positions: `steps`.
    Steps,
    /// From mixed, projection, `steps` and dy: δ x and do = dy silu(z) scale, [T, H P] each.
    Scaled,
    /// For one head, from C\[t\]·B\[s\], do\[t\]·δx\[s\], `steps` and positions: both products times exp(a\[t\] −
    /// a\[s\]), for s ≤ t in the same sequence.
    Decay(usize),
    /// From mixed, `steps`, do, o and the gradient of δ x, for each head: Σ_p d(δx) x, and Σ_p do o minus δ times the
    /// first sum; [T, 2H].
    Sums,
    /// From these sums, projection, constants and positions: the gradient of dt [T, H].
    Step,
    /// From constants, `steps`, do and d(δx): the gradient of x, the first columns of mixed.
    Inputs,
    /// From mixed, projection, constants, o, dy and the gradient of dt: the gradient of projection.
    Gates,
}

/// One node of the gradient.
#[derive(Debug, Clone, PartialEq)]
pub struct StateSpaceBackward {
    /// The op that is differentiated.
    pub of: StateSpace,
    /// What this node computes.
    pub part: Part,
    /// Add to the output instead of overwriting it.
    pub add: bool,
}

impl Graph {
    /// Records the gradient of mixed into `dmixed`, and returns what [`Graph::state_space_gates`] needs: o and the
    /// gradient of dt.
    pub fn state_space_backward(
        &mut self,
        of: &StateSpace,
        read: StateSpaceRead,
        dmixed: Tensor,
        add: bool,
    ) -> [Tensor; 2] {
        let StateSpace { heads, head_dim: p, groups, state_size: n, .. } = *of;
        let (tokens, inner, wide) = (self.rows(read.mixed), heads * p, self.width(read.mixed));
        let part = |part, add| StateSpaceBackward { of: of.clone(), part, add };
        let steps = self.apply(
            part(Part::Steps, false),
            &[read.projection, read.constants, read.positions],
            &[tokens, 2 * heads],
        );
        let [scaled, slope, out, dscaled] = [(); 4].map(|()| self.tensor(&[tokens, inner], Dtype::F32));
        self.record(part(Part::Scaled, false), &[read.mixed, read.projection, steps, read.dy], &[scaled, slope]);
        let square = [tokens, tokens];
        let whole = View::of(tokens);
        let product = |m, n, k, a, b, c, add| Product { m, n, k, a, b, c, alpha: 1.0, add, packed: false };
        for group in 0..groups {
            let of_b = View { offset: inner + group * n, ..View::of(wide) };
            let of_c = View { offset: inner + (groups + group) * n, ..View::of(wide) };
            let matches = self.tensor(&square, Dtype::F32);
            self.product(
                product(tokens, tokens, n, of_c, of_b.transposed(), whole, false),
                read.mixed,
                read.mixed,
                matches,
            );
            for (index, head) in (group * (heads / groups)..(group + 1) * (heads / groups)).enumerate() {
                let own = View { offset: head * p, ..View::of(inner) };
                let [slopes, by_match, by_slope] = [(); 3].map(|()| self.tensor(&square, Dtype::F32));
                self.product(product(tokens, tokens, p, own, own.transposed(), whole, false), slope, scaled, slopes);
                self.record(
                    part(Part::Decay(head), false),
                    &[matches, slopes, steps, read.positions],
                    &[by_match, by_slope],
                );
                self.product(product(tokens, p, tokens, whole, own, own, false), by_match, scaled, out);
                self.product(product(tokens, p, tokens, whole.transposed(), own, own, false), by_match, slope, dscaled);
                let more = add || index > 0;
                self.product(product(tokens, n, tokens, whole, of_b, of_c, more), by_slope, read.mixed, dmixed);
                self.product(
                    product(tokens, n, tokens, whole.transposed(), of_c, of_b, more),
                    by_slope,
                    read.mixed,
                    dmixed,
                );
            }
        }
        let sums = self.apply(part(Part::Sums, false), &[read.mixed, steps, slope, out, dscaled], &[tokens, 2 * heads]);
        let dstep = self.apply(
            part(Part::Step, false),
            &[sums, read.projection, read.constants, read.positions],
            &[tokens, heads],
        );
        // The products have already written the gradients of B and C. The gradient of x is added to `dmixed`, or
        // written to its remaining columns.
        self.record(part(Part::Inputs, add), &[read.constants, steps, slope, dscaled, dmixed], &[dmixed]);
        [out, dstep]
    }

    /// Records the gradient of the projection into `dprojection`.
    pub fn state_space_gates(
        &mut self,
        of: &StateSpace,
        read: StateSpaceRead,
        [out, dstep]: [Tensor; 2],
        dprojection: Tensor,
        add: bool,
    ) {
        let mut inputs = vec![read.mixed, read.projection, read.constants, out, read.dy, dstep];
        inputs.extend(add.then_some(dprojection));
        self.record(StateSpaceBackward { of: of.clone(), part: Part::Gates, add }, &inputs, &[dprojection]);
    }
}

impl StateSpaceBackward {
    /// The part's name in the shader, the number of inputs that its kernel binds, and the number of invocations.
    fn about(&self, tokens: usize, width: usize) -> (&'static str, usize, usize) {
        let (heads, inner) = (self.of.heads, self.of.heads * self.of.head_dim);
        match self.part {
            Part::Steps => ("steps", 3, heads),
            Part::Scaled => ("scaled", 4, tokens * inner),
            Part::Decay(_) => ("decay", 4, tokens * tokens),
            Part::Sums => ("sums", 5, tokens * heads),
            Part::Step => ("step", 4, heads),
            Part::Inputs => ("inputs", 4, tokens * inner),
            Part::Gates => ("gates", 6, tokens * width),
        }
    }
}

impl Op for StateSpaceBackward {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "state_space_backward"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let StateSpace { heads, head_dim, groups, state_size, steps, scale, .. } = self.of;
        let projection = match self.part {
            Part::Steps => Some(0),
            Part::Scaled | Part::Step | Part::Gates => Some(1),
            _ => None,
        };
        let width = projection.map_or(1, |input| to.input_shape(input)[1]);
        let tokens = to.output_shape(0)[0];
        let (name, inputs, count) = self.about(tokens, width);
        let threads = grid::row_threads(to, 64);
        let (grid, stride) = grid::flat_grid(to, count, threads);
        let defines = Defines::new()
            .set("THREADS", threads)
            .set("PART", name)
            .set("H", heads)
            .set("P", head_dim)
            .set("W", width)
            .set("M", heads * head_dim + 2 * groups * state_size)
            .set("STEPS", steps)
            .set("OUTPUT_SCALE", scale)
            .set("HEAD", if let Part::Decay(head) = self.part { head } else { 0 })
            .set("ADD", self.add);
        let size = to.numbers(&[count as u32, stride, tokens as u32])?;
        let mut bindings: Vec<_> = (0..inputs).map(|i| to.input(i)).collect();
        bindings.push(to.output(0));
        bindings.extend(matches!(self.part, Part::Scaled | Part::Decay(_)).then(|| to.output(1)));
        bindings.push(size);
        let parts = [wgsl!("recurrent/state_space_backward.wgsl")];
        let turns = match self.part {
            Part::Steps | Part::Step => tokens,
            Part::Sums => head_dim,
            _ => 0,
        };
        let name = format!("state_space_backward {name}");
        to.emit(KernelText { name: &name, parts: &parts, defines, turns: turns as u64 + 1 }, &[bindings], grid)
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let StateSpace { heads, head_dim: p, .. } = self.of;
        let inner = heads * p;
        let get = |input: usize, row: usize, column: usize| {
            f64::from(inputs[input].f32()[row * inputs[input].width() + column])
        };
        let number = |input: usize, which: usize, head: usize| f64::from(inputs[input].f32()[which * heads + head]);
        let logistic = |v: f64| 1.0 / (1.0 + (-v).exp());
        let begun = |input: usize, t: usize| inputs[input].u32()[t] as usize;
        match self.part {
            Part::Steps => {
                for head in 0..heads {
                    let mut sum = 0.0;
                    for (t, row) in outputs[0].f32_mut().chunks_exact_mut(2 * heads).enumerate() {
                        let raw = get(0, t, self.of.steps + head) + number(1, 2, head);
                        let delta = raw.max(0.0) + (-raw.abs()).exp().ln_1p();
                        sum = if begun(2, t) == 0 { 0.0 } else { sum } + delta * number(1, 0, head);
                        (row[head], row[heads + head]) = (delta as f32, sum as f32);
                    }
                }
            }
            Part::Scaled => {
                let (scaled, slope) = outputs.split_at_mut(1);
                for (i, (scaled, slope)) in scaled[0].f32_mut().iter_mut().zip(slope[0].f32_mut()).enumerate() {
                    let (t, index) = (i / inner, i % inner);
                    *scaled = (get(2, t, index / p) * get(0, t, index)) as f32;
                    *slope = (f64::from(inputs[3].f32()[i])
                        * Activation::Silu.apply(get(1, t, index))
                        * f64::from(self.of.scale)) as f32;
                }
            }
            Part::Decay(head) => {
                let tokens = inputs[0].width();
                for t in 0..tokens {
                    for s in 0..tokens {
                        let reaches = s <= t && begun(3, t) >= t - s;
                        let decay =
                            if reaches { (get(2, t, heads + head) - get(2, s, heads + head)).exp() } else { 0.0 };
                        for (input, output) in outputs.iter_mut().enumerate() {
                            output.f32_mut()[t * tokens + s] = (decay * get(input, t, s)) as f32;
                        }
                    }
                }
            }
            Part::Sums => {
                for (t, row) in outputs[0].f32_mut().chunks_exact_mut(2 * heads).enumerate() {
                    for head in 0..heads {
                        let dot = |a: usize, b: usize| {
                            (head * p..(head + 1) * p).map(|i| get(a, t, i) * get(b, t, i)).sum::<f64>()
                        };
                        let own = dot(4, 0);
                        (row[head], row[heads + head]) = (own as f32, (dot(2, 3) - get(1, t, head) * own) as f32);
                    }
                }
            }
            Part::Step => {
                for head in 0..heads {
                    let mut later = 0.0;
                    for (t, row) in outputs[0].f32_mut().chunks_exact_mut(heads).enumerate().rev() {
                        later += get(0, t, heads + head);
                        let slope = logistic(get(1, t, self.of.steps + head) + number(2, 2, head));
                        row[head] = ((get(0, t, head) + number(2, 0, head) * later) * slope) as f32;
                        if begun(3, t) == 0 {
                            later = 0.0;
                        }
                    }
                }
            }
            Part::Inputs => {
                let width = outputs[0].f32().len() / inputs[1].rows().len();
                for (t, row) in outputs[0].f32_mut().chunks_exact_mut(width).enumerate() {
                    for (index, dx) in row[..inner].iter_mut().enumerate() {
                        let gradient =
                            get(1, t, index / p) * get(3, t, index) + number(0, 1, index / p) * get(2, t, index);
                        *dx = (gradient + if self.add { f64::from(*dx) } else { 0.0 }) as f32;
                    }
                }
            }
            Part::Gates => {
                let width = inputs[1].width();
                for (t, row) in outputs[0].f32_mut().chunks_exact_mut(width).enumerate() {
                    for (column, d) in row.iter_mut().enumerate() {
                        let mut gradient = if self.add { f64::from(*d) } else { 0.0 };
                        if column < inner {
                            let sum = get(3, t, column) + number(2, 1, column / p) * get(0, t, column);
                            gradient += f64::from(inputs[4].f32()[t * inner + column])
                                * sum
                                * Activation::Silu.slope(get(1, t, column))
                                * f64::from(self.of.scale);
                        }
                        if (self.of.steps..self.of.steps + heads).contains(&column) {
                            gradient += get(5, t, column - self.of.steps);
                        }
                        *d = gradient as f32;
                    }
                }
            }
        }
    }
}
