//! The gated delta rule (Yang et al., 2025) of Qwen 3.5's linear attention, token by token.
//!
//! A state maps keys to values. Each token lets it decay, and corrects what it gives for the token's key towards the
//! token's value. One invocation per column of a head's state loops over the tokens: it reads its column once and
//! writes it once, and the results for key and query come from the same reading. Rejected for now: the chunked form,
//! for the reason that [`super::StateSpace`] states.

use std::sync::Arc;

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::graph::{Dtype, Graph, Op, Operand, State, Tensor, Values};
use crate::ops::attention::Causality;
use crate::passes::{Backward, BackwardError};
use crate::plan::{KernelText, Lowering, grid};

/// Added to the sum of squares by which queries and keys are normalised.
pub(super) const EPS: f64 = 1e-6;

/// For value head h, with q and k of its key head divided by their lengths, q also by √dk, β = sigmoid(b\[h\]) and g =
/// exp(A\[h\] softplus(a\[h\] + bias\[h\])): S = g S, u = β (v − Sᵀ k), S = S + k uᵀ, y = Sᵀ q.
///
/// Inputs: q, k and v after their convolution [T, 2 K dk + H dv]; gates [T, 2H], b then a; constants [2, H] (A, bias);
/// positions \[T\], bases \[T\]. Outputs: y [T, H dv], state [sequences, H dk dv].
#[derive(Debug, Clone, PartialEq)]
pub struct GatedDelta {
    /// Value heads H.
    pub heads: usize,
    /// Size of a value, dv.
    pub value_dim: usize,
    /// Key heads K, each of which serves H / K value heads: consecutive ones, or if `tiled` every K-th.
    pub key_heads: usize,
    /// The order of the value heads in GGUF files.
    pub tiled: bool,
    /// Size of a key, dk.
    pub key_dim: usize,
    /// Positions per sequence; the base of each sequence is a multiple of it.
    pub context: usize,
}

/// Tensors that the gradient reads; the names are those of [`GatedDelta`].
#[derive(Debug, Clone, Copy)]
pub struct GatedDeltaRead {
    /// q, k and v [T, 2 K dk + H dv].
    pub mixed: Tensor,
    /// b and a [T, 2H].
    pub gates: Tensor,
    /// A and bias [2, H].
    pub constants: Tensor,
    /// Positions \[T\].
    pub positions: Tensor,
    /// The result y [T, H dv].
    pub y: Tensor,
    /// Its gradient [T, H dv].
    pub dy: Tensor,
}

impl Graph {
    /// Records the gated delta rule; see [`GatedDelta`].
    pub fn gated_delta(
        &mut self,
        op: GatedDelta,
        mixed: Tensor,
        gates: Tensor,
        constants: &Arc<State>,
        over: Causality,
        state: &Arc<State>,
    ) -> Tensor {
        assert_eq!(self.width(mixed), op.width(), "gated_delta: width of q, k and v");
        assert_eq!(self.width(gates), 2 * op.heads, "gated_delta: width of the gates");
        assert!(op.heads.is_multiple_of(op.key_heads), "gated_delta: value heads of a key head");
        let tokens = self.rows(mixed);
        let y = self.tensor(&[tokens, op.heads * op.value_dim], Dtype::F32);
        let inputs = [mixed, gates, self.state(constants), over.positions, over.bases];
        let state = self.state(state);
        self.record(op, &inputs, &[y, state]);
        y
    }
}

impl GatedDelta {
    /// Number of values in a sequence's state.
    pub fn state_len(&self) -> usize {
        self.heads * self.key_dim * self.value_dim
    }

    /// Number of columns of q, k and v together.
    pub fn width(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.heads * self.value_dim
    }

    /// The key head of a value head.
    pub(super) fn key_head(&self, head: usize) -> usize {
        if self.tiled { head % self.key_heads } else { head / (self.heads / self.key_heads) }
    }

    /// The names that all kernels read.
    pub(super) fn defines(&self, threads: usize) -> Defines {
        Defines::new()
            .set("THREADS", threads)
            .set("H", self.heads)
            .set("DV", self.value_dim)
            .set("K", self.key_heads)
            .set("DK", self.key_dim)
            .set("KEY_OF_HEAD", if self.tiled { "head % K" } else { "head / (H / K)" })
            .set("DELTA_EPS", EPS as f32)
            .set("QUERY_SCALE", 1.0 / (self.key_dim as f32).sqrt())
    }
}

/// β and the logarithm of the decay of a head, from its b and a, and its A and bias.
pub(super) fn gates(b: f32, a: f32, rate: f32, bias: f32) -> (f64, f64) {
    let raw = f64::from(a) + f64::from(bias);
    let step = raw.max(0.0) + (-raw.abs()).exp().ln_1p();
    (1.0 / (1.0 + (-f64::from(b)).exp()), step * f64::from(rate))
}

/// One divided by the length of a vector.
pub(super) fn inverse_length(v: &[f32]) -> f64 {
    1.0 / (v.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() + EPS).sqrt()
}

impl Op for GatedDelta {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "gated_delta"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let tokens = to.input_shape(0)[0];
        let threads = grid::row_threads(to, 64);
        let (grid, stride) = grid::flat_grid(to, self.heads * self.value_dim, threads);
        let defines = self.defines(threads).set("CONTEXT", self.context);
        // The buffer holds the state of the previous tokens, so the loop over tokens can be split over dispatches
        // anywhere.
        let token_turns = 3 + 2 * self.key_dim as u64;
        let piece = to.piece(1, token_turns, 1);
        for start in (0..tokens).step_by(piece) {
            let end = start.saturating_add(piece).min(tokens);
            let size = to.numbers(&[end as u32, stride, start as u32])?;
            let mut bindings: Vec<_> = (0..5).map(|input| to.input(input)).collect();
            bindings.extend([to.output(0), to.output(1), size]);
            let turns = 1 + (end - start) as u64 * token_turns;
            let parts = [wgsl!("recurrent/gated_delta.wgsl")];
            let text = KernelText { name: "gated_delta", parts: &parts, defines: defines.clone(), turns };
            to.emit(text, &[bindings], grid)?;
        }
        Ok(())
    }

    fn work(&self, inputs: &[&[usize]], _outputs: &[&[usize]]) -> u64 {
        2 * inputs[0][0] as u64 * self.state_len() as u64
    }

    fn backward(&self, to: &mut Backward<'_>) -> Result<(), BackwardError> {
        let Some(dy) = to.gradient(0) else { return Ok(()) };
        let read = GatedDeltaRead {
            mixed: to.input(0),
            gates: to.input(1),
            constants: to.input(2),
            positions: to.input(3),
            y: to.output(0),
            dy,
        };
        if to.requires_grad(read.constants) {
            return Err(BackwardError("gated_delta with trained constants"));
        }
        if !to.requires_grad(read.mixed) && !to.requires_grad(read.gates) {
            return Ok(());
        }
        let found = to.graph().gated_delta_adjoint(self, read);
        if to.requires_grad(read.mixed) {
            to.contribute(read.mixed, |graph, dmixed, add| graph.gated_delta_mixed(self, read, &found, dmixed, add));
        }
        if to.requires_grad(read.gates) {
            to.contribute(read.gates, |graph, dgates, add| graph.gated_delta_gates(self, read, &found, dgates, add));
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let GatedDelta { heads, value_dim: dv, key_heads, key_dim: dk, .. } = *self;
        let [rates, bias] = [0, 1].map(|i| &inputs[2].f32()[i * heads..(i + 1) * heads]);
        let (y, state) = outputs.split_at_mut(1);
        let rows = inputs[0].rows().zip(inputs[1].rows()).zip(y[0].f32_mut().chunks_exact_mut(heads * dv));
        for (t, ((mixed, raw), y)) in rows.enumerate() {
            let from = inputs[4].u32()[t] as usize / self.context * self.state_len();
            let state = &mut state[0].f32_mut()[from..from + self.state_len()];
            if inputs[3].u32()[t] == 0 {
                state.fill(0.0);
            }
            for head in 0..heads {
                let at = self.key_head(head) * dk;
                let (q, k) = (&mixed[at..at + dk], &mixed[key_heads * dk + at..][..dk]);
                let (of_q, of_k) = (inverse_length(q) / (dk as f64).sqrt(), inverse_length(k));
                let (beta, log_decay) = gates(raw[head], raw[heads + head], rates[head], bias[head]);
                let decay = log_decay.exp();
                for j in 0..dv {
                    let index = |i: usize| (head * dk + i) * dv + j;
                    let before: Vec<f64> = (0..dk).map(|i| f64::from(state[index(i)]) * decay).collect();
                    let memory: f64 = before.iter().zip(k).map(|(s, &k)| s * f64::from(k) * of_k).sum();
                    let value = f64::from(mixed[2 * key_heads * dk + head * dv + j]);
                    let change = beta * (value - memory);
                    let mut sum = 0.0;
                    for i in 0..dk {
                        let after = before[i] + f64::from(k[i]) * of_k * change;
                        state[index(i)] = after as f32;
                        sum += after * f64::from(q[i]) * of_q;
                    }
                    y[head * dv + j] = sum as f32;
                }
            }
        }
    }
}
