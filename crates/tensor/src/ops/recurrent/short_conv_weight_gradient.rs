//! The gradient of [`super::ShortConv`]'s weight and bias for each token; [`crate::ops::ColumnSum`] adds them up.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use super::short_conv::ShortConv;
use super::short_conv_backward::{Read, emit_gradient};
use crate::graph::{Dtype, Graph, Op, Operand, Tensor, Values};
use crate::plan::{KernelText, Lowering};

/// Inputs x [T, W], weight [C, k], positions \[T\], dy [T, C] (and bias \[C\]). Outputs for each token: the gradient of
/// the convolution's sums [T, C], before the output gate or SiLU, and that of the weight [T, C k]. Every sequence
/// begins within the step.
#[derive(Debug, Clone, PartialEq)]
pub struct ShortConvWeightGradient(pub ShortConv);

impl Graph {
    /// Records both outputs; `read` holds x, the weight and the positions.
    pub fn short_conv_weight_gradient(
        &mut self,
        of: ShortConv,
        read: [Tensor; 3],
        bias: Option<Tensor>,
        dy: Tensor,
    ) -> [Tensor; 2] {
        let tokens = self.rows(read[0]);
        let outputs = [of.channels, of.channels * of.kernel].map(|width| self.tensor(&[tokens, width], Dtype::F32));
        let mut inputs = read.to_vec();
        inputs.push(dy);
        inputs.extend(bias);
        self.record(ShortConvWeightGradient(of), &inputs, &outputs);
        outputs
    }
}

impl Op for ShortConvWeightGradient {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "short_conv_weight_gradient"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let count = to.input_shape(0)[0] * self.0.channels;
        let defines = Defines::new().set("PRODUCT_AT", 6 + usize::from(self.0.bias));
        let text = wgsl!("recurrent/short_conv_weight_gradient.wgsl");
        emit_gradient(
            to,
            &self.0,
            KernelText { name: "short_conv_weight_gradient", parts: &[text], defines, turns: 0 },
            count,
        )
    }

    fn work(&self, _inputs: &[&[usize]], outputs: &[&[usize]]) -> u64 {
        crate::graph::elements(outputs[1]) * 2
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let read = Read::of(&self.0, inputs);
        let (c, k) = (self.0.channels, self.0.kernel);
        let (slopes, products) = outputs.split_at_mut(1);
        for t in 0..read.tokens() {
            for channel in 0..c {
                let slope = read.slope(t, channel);
                slopes[0].f32_mut()[t * c + channel] = slope as f32;
                for age in 0..k {
                    let product = if age < read.reach(t) { slope * read.carried(t - age, channel) } else { 0.0 };
                    products[0].f32_mut()[(t * c + channel) * k + k - 1 - age] = product as f32;
                }
            }
        }
    }
}
