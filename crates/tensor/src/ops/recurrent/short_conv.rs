//! A short causal convolution of each channel over the tokens of a sequence. Its state is the sequence's last inputs.
//!
//! One invocation per channel loops over the tokens. Rejected: one invocation per token, because passing on the last
//! inputs would need a second dispatch, which costs more than the loop over a few numbers per token.

use std::sync::Arc;

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::graph::{Dtype, Graph, Op, Operand, State, Tensor, Values};
use crate::ops::attention::Causality;
use crate::passes::{Backward, BackwardError};
use crate::plan::{KernelText, Lowering, grid};

/// u is the columns of x from `first` on, or if gated the product of the first and the third of three sections of x.
/// y\[t\] = Σ_j weight\[c, j\] u\[t − k + 1 + j\] (+ bias), followed by SiLU, or if gated multiplied by the second
/// section. Inputs: x [T, W], weight [C, k], positions \[T\], bases \[T\] (and bias \[C\]); outputs: y [T, C], and
/// state [sequences, (k − 1) C] with the last inputs of each sequence, oldest first. The tokens of a sequence are
/// consecutive.
#[derive(Debug, Clone, PartialEq)]
pub struct ShortConv {
    /// Channels C.
    pub channels: usize,
    /// Length k of the kernel.
    pub kernel: usize,
    /// The first column of x that is read.
    pub first: usize,
    /// x holds three sections of C columns: input gate, output gate and input (LFM2). Otherwise SiLU follows the
    /// convolution (Mamba).
    pub gated: bool,
    /// Whether there is a bias.
    pub bias: bool,
    /// Positions per sequence; the base of each sequence is a multiple of it.
    pub context: usize,
}

impl Graph {
    /// Records the convolution; see [`ShortConv`].
    pub fn short_conv(
        &mut self,
        op: ShortConv,
        x: Tensor,
        weight: &Arc<State>,
        bias: Option<&Arc<State>>,
        over: Causality,
        state: &Arc<State>,
    ) -> Tensor {
        assert_eq!(weight.shape().iter().product::<usize>(), op.channels * op.kernel, "short_conv: size of the weight");
        assert!(op.first + op.channels * if op.gated { 3 } else { 1 } <= self.width(x), "short_conv: width of x");
        let tokens = self.rows(x);
        let y = self.tensor(&[tokens, op.channels], Dtype::F32);
        let mut inputs = vec![x, self.state(weight), over.positions, over.bases];
        inputs.extend(bias.map(|bias| self.state(bias)));
        let state = self.state(state);
        self.record(ShortConv { bias: bias.is_some(), ..op }, &inputs, &[y, state]);
        y
    }
}

impl Op for ShortConv {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "short_conv"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let (tokens, width) = (to.input_shape(0)[0], to.input_shape(0)[1]);
        let threads = grid::row_threads(to, 64);
        let (grid, stride) = grid::flat_grid(to, self.channels, threads);
        let defines = Defines::new()
            .set("THREADS", threads)
            .set("C", self.channels)
            .set("KERNEL", self.kernel)
            .set("BEFORE", self.kernel - 1)
            .set("FIRST", self.first)
            .set("GATED", self.gated)
            .set("BIAS", self.bias)
            .set("CONTEXT", self.context);
        let size = to.numbers(&[tokens as u32, stride, width as u32])?;
        let mut bindings = vec![to.input(0), to.input(1), to.input(2), to.input(3), to.output(0), to.output(1), size];
        bindings.extend(self.bias.then(|| to.input(4)));
        let text = KernelText {
            name: "short_conv",
            parts: &[wgsl!("recurrent/short_conv.wgsl")],
            defines,
            turns: tokens as u64 + 1,
        };
        to.emit(text, &[bindings], grid)
    }

    fn backward(&self, to: &mut Backward<'_>) -> Result<(), BackwardError> {
        let inputs: Vec<Tensor> = (0..to.input_count()).map(|i| to.input(i)).collect();
        let bias = self.bias.then(|| inputs[4]);
        let trained = to.requires_grad(inputs[1]) || bias.is_some_and(|bias| to.requires_grad(bias));
        if let (Some(dy), true) = (to.gradient(0), trained) {
            let [slopes, products] =
                to.graph().short_conv_weight_gradient(self.clone(), [inputs[0], inputs[1], inputs[2]], bias, dy);
            for (weight, parts) in [(Some(inputs[1]), products), (bias, slopes)] {
                if let Some(weight) = weight.filter(|&weight| to.requires_grad(weight)) {
                    to.contribute(weight, |graph, dw, add| graph.column_sum(parts, dw, add));
                }
            }
        }
        if let (Some(dy), true) = (to.gradient(0), to.requires_grad(inputs[0])) {
            to.contribute(inputs[0], |graph, dx, add| {
                graph.short_conv_backward(self.clone(), [inputs[0], inputs[1], inputs[2]], bias, dy, dx, add)
            });
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let (c, k, width) = (self.channels, self.kernel, inputs[0].width());
        let (weight, positions, bases) = (inputs[1].f32(), inputs[2].u32(), inputs[3].u32());
        for (t, row) in inputs[0].f32().chunks_exact(width).enumerate() {
            let row = &row[self.first..];
            let size = (k - 1) * c;
            let from = bases[t] as usize / self.context * size;
            let (y, state) = outputs.split_at_mut(1);
            let state = &mut state[0].f32_mut()[from..from + size];
            if positions[t] == 0 {
                state.fill(0.0);
            }
            for channel in 0..c {
                let u = if self.gated { row[channel] * row[2 * c + channel] } else { row[channel] };
                let bias = if self.bias { f64::from(inputs[4].f32()[channel]) } else { 0.0 };
                let mut sum = bias + f64::from(weight[channel * k + k - 1]) * f64::from(u);
                for j in 0..k - 1 {
                    sum += f64::from(weight[channel * k + j]) * f64::from(state[j * c + channel]);
                    state[j * c + channel] = if j + 2 < k { state[(j + 1) * c + channel] } else { u };
                }
                let after = if self.gated { sum * f64::from(row[c + channel]) } else { sum / (1.0 + (-sum).exp()) };
                y[0].f32_mut()[t * c + channel] = after as f32;
            }
        }
    }
}
