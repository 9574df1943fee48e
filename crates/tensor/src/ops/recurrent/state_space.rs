//! The selective state space of Mamba-2 (Dao and Gu, 2024), token by token.
//!
//! One invocation per channel of a head loops over the tokens, with its row of the state in memory: for a single token
//! it reads and writes the state once, which is the minimum. Rejected for now: the chunked form, which turns a long
//! prompt into matrix products, because it needs a second kernel for a layer whose projections cost far more.

use std::sync::Arc;

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::graph::{Dtype, Graph, Op, Operand, State, Tensor, Values};
use crate::ops::attention::Causality;
use crate::passes::{Backward, BackwardError};
use crate::plan::{KernelText, Lowering, grid};

/// For head h and channel p of it, with δ = softplus(dt + bias\[h\]): S\[n\] = exp(δ A\[h\]) S\[n\] + δ B\[n\] x, y =
/// (Σ_n C\[n\] S\[n\] + D\[h\] x) silu(z) · scale.
///
/// Inputs: x, B and C after their convolution [T, H P + 2 G N]; the projection [T, W], whose first columns are z and
/// whose columns from `steps` on are dt; constants [3, H] (A, D, bias); positions \[T\], bases \[T\]. Outputs: y [T, H
/// P], state [sequences, H N P].
#[derive(Debug, Clone, PartialEq)]
pub struct StateSpace {
    /// Heads H.
    pub heads: usize,
    /// Number of channels per head, P.
    pub head_dim: usize,
    /// Number of groups that share B and C, G.
    pub groups: usize,
    /// Size of the state of each channel, N.
    pub state_size: usize,
    /// Column of the projection where dt begins.
    pub steps: usize,
    /// Multiplies y.
    pub scale: f32,
    /// Positions per sequence; the base of each sequence is a multiple of it.
    pub context: usize,
}

/// Tensors that the gradient reads; the names are those of [`StateSpace`].
#[derive(Debug, Clone, Copy)]
pub struct StateSpaceRead {
    /// x, B and C [T, H P + 2 G N].
    pub mixed: Tensor,
    /// The projection [T, W]: first z, and dt from column `steps` on.
    pub projection: Tensor,
    /// A, D, bias [3, H].
    pub constants: Tensor,
    /// Positions \[T\].
    pub positions: Tensor,
    /// The gradient of y [T, H P].
    pub dy: Tensor,
}

impl Graph {
    /// Records the state space; see [`StateSpace`].
    pub fn state_space(
        &mut self,
        op: StateSpace,
        mixed: Tensor,
        projection: Tensor,
        constants: &Arc<State>,
        over: Causality,
        state: &Arc<State>,
    ) -> Tensor {
        let inner = op.heads * op.head_dim;
        assert_eq!(self.width(mixed), inner + 2 * op.groups * op.state_size, "state_space: width of x, B and C");
        assert!(self.width(projection) >= (op.steps + op.heads).max(inner), "state_space: width of the projection");
        let tokens = self.rows(mixed);
        let y = self.tensor(&[tokens, inner], Dtype::F32);
        let inputs = [mixed, projection, self.state(constants), over.positions, over.bases];
        let state = self.state(state);
        self.record(op, &inputs, &[y, state]);
        y
    }
}

impl StateSpace {
    /// Number of values in a sequence's state.
    pub fn state_len(&self) -> usize {
        self.heads * self.head_dim * self.state_size
    }
}

impl Op for StateSpace {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "state_space"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let (tokens, width) = (to.input_shape(1)[0], to.input_shape(1)[1]);
        let threads = grid::row_threads(to, 64);
        let (grid, stride) = grid::flat_grid(to, self.heads * self.head_dim, threads);
        let defines = Defines::new()
            .set("THREADS", threads)
            .set("H", self.heads)
            .set("P", self.head_dim)
            .set("G", self.groups)
            .set("N", self.state_size)
            .set("STEPS", self.steps)
            .set("OUTPUT_SCALE", self.scale)
            .set("CONTEXT", self.context);
        // The buffer holds the state of the previous tokens, so the loop over tokens can be split over dispatches
        // anywhere.
        let token_turns = 2 + self.state_size as u64;
        let piece = to.piece(1, token_turns, 1);
        for start in (0..tokens).step_by(piece) {
            let end = start.saturating_add(piece).min(tokens);
            let size = to.numbers(&[end as u32, stride, width as u32, start as u32])?;
            let bindings =
                vec![to.input(0), to.input(1), to.input(2), to.input(3), to.input(4), to.output(0), to.output(1), size];
            let turns = 1 + (end - start) as u64 * token_turns;
            let parts = [wgsl!("recurrent/state_space.wgsl")];
            let text = KernelText { name: "state_space", parts: &parts, defines: defines.clone(), turns };
            to.emit(text, &[bindings], grid)?;
        }
        Ok(())
    }

    fn backward(&self, to: &mut Backward<'_>) -> Result<(), BackwardError> {
        let Some(dy) = to.gradient(0) else { return Ok(()) };
        let read = StateSpaceRead {
            mixed: to.input(0),
            projection: to.input(1),
            constants: to.input(2),
            positions: to.input(3),
            dy,
        };
        if to.requires_grad(read.constants) {
            return Err(BackwardError("state_space with trained constants"));
        }
        let mut found = None;
        if to.requires_grad(read.mixed) {
            to.contribute(read.mixed, |graph, dmixed, add| {
                found = Some(graph.state_space_backward(self, read, dmixed, add))
            });
        }
        if to.requires_grad(read.projection) {
            let shape = to.graph().shape(read.mixed).to_vec();
            let found = found.unwrap_or_else(|| {
                let unused = to.graph().tensor(&shape, Dtype::F32);
                to.graph().state_space_backward(self, read, unused, false)
            });
            to.contribute(read.projection, |graph, dprojection, add| {
                graph.state_space_gates(self, read, found, dprojection, add)
            });
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let StateSpace { heads, head_dim: p, groups, state_size: n, .. } = *self;
        let inner = heads * p;
        let [a, d, bias] = [0, 1, 2].map(|i| &inputs[2].f32()[i * heads..(i + 1) * heads]);
        let (y, state) = outputs.split_at_mut(1);
        let rows = inputs[0].rows().zip(inputs[1].rows());
        for (t, ((mixed, projection), y)) in rows.zip(y[0].f32_mut().chunks_exact_mut(inner)).enumerate() {
            let from = inputs[4].u32()[t] as usize / self.context * self.state_len();
            let state = &mut state[0].f32_mut()[from..from + self.state_len()];
            if inputs[3].u32()[t] == 0 {
                state.fill(0.0);
            }
            for (index, y) in y.iter_mut().enumerate() {
                let (head, number) = (index / p, index % p);
                let group = head / (heads / groups);
                let raw = f64::from(projection[self.steps + head]) + f64::from(bias[head]);
                let step = raw.max(0.0) + (-raw.abs()).exp().ln_1p();
                let decay = (step * f64::from(a[head])).exp();
                let x = f64::from(mixed[index]);
                let mut sum = f64::from(d[head]) * x;
                for i in 0..n {
                    let s = &mut state[(head * n + i) * p + number];
                    let value = f64::from(*s) * decay + step * f64::from(mixed[inner + group * n + i]) * x;
                    *s = value as f32;
                    sum += value * f64::from(mixed[inner + (groups + group) * n + i]);
                }
                let z = f64::from(projection[index]);
                *y = (sum * z / (1.0 + (-z).exp()) * f64::from(self.scale)) as f32;
            }
        }
    }
}
