//! The gradient of [`super::ShortConv`]'s input, with the convolution computed again.

use bayan_gpu::GpuError;

use super::gated::Activation;
use super::short_conv::ShortConv;
use super::short_conv_product::slope_defines;
use crate::graph::{Graph, Tensor};
use crate::lower::{KernelText, Lowering};
use crate::op::{Op, Operand};
use crate::values::Values;

/// Inputs x [T, W], weight [C, k], positions \[T\], dy [T, C] (and bias \[C\], and dx when adding); output dx [T, W], zero in columns that are
/// not read. Every sequence begins within the step.
#[derive(Debug, Clone, PartialEq)]
pub struct ShortConvBackward {
    /// What was done.
    pub of: ShortConv,
    /// Add to dx instead of writing it.
    pub add: bool,
}

impl Graph {
    /// Records the gradient of the input of `short_conv`; `read` is x, the weight and the positions.
    pub fn short_conv_backward(&mut self, of: ShortConv, read: [Tensor; 3], bias: Option<Tensor>, dy: Tensor, dx: Tensor, add: bool) {
        let mut inputs = read.to_vec();
        inputs.push(dy);
        inputs.extend(bias);
        inputs.extend(add.then_some(dx));
        self.record(ShortConvBackward { of, add }, &inputs, &[dx]);
    }
}

impl ShortConvBackward {
    /// Columns of x that are read.
    fn read(&self) -> usize {
        self.of.channels * if self.of.gated { 3 } else { 1 }
    }
}

impl Op for ShortConvBackward {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "short_conv_backward"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let (tokens, width) = (to.input_shape(0)[0], to.input_shape(0)[1]);
        let threads = super::row_threads(to, 64);
        let (grid, stride) = super::flat_grid(to, tokens * width, threads);
        let defines = slope_defines(&self.of, threads).set("READ", self.read()).set("ADD", self.add);
        let size = to.numbers(&[tokens as u32, stride, width as u32])?;
        let mut bindings = vec![to.input(0), to.input(1), to.input(2), to.input(3), to.output(0), size];
        bindings.extend(self.of.bias.then(|| to.input(4)));
        let parts = [
            include_str!("../../../../shaders/lib/activate.wgsl"),
            include_str!("../../../../shaders/lib/activate_slope.wgsl"),
            include_str!("../../../../shaders/lib/short_conv_slope.wgsl"),
            include_str!("../../../../shaders/short_conv_backward.wgsl"),
        ];
        to.emit(KernelText { name: "short_conv_backward", parts: &parts, defines }, &[bindings], grid)
    }

    fn work(&self, _inputs: &[&[usize]], outputs: &[&[usize]]) -> u64 {
        crate::op::elements(outputs[0]) * (self.of.kernel * self.of.kernel) as u64
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let ShortConv { channels: c, kernel: k, first, gated, bias, .. } = self.of;
        let (x, width, positions) = (inputs[0].f32(), inputs[0].width(), inputs[2].u32());
        let weight = |channel: usize, age: usize| f64::from(inputs[1].f32()[channel * k + k - 1 - age]);
        let dy = |t: usize, channel: usize| f64::from(inputs[3].f32()[t * c + channel]);
        let part = |t: usize, part: usize, channel: usize| f64::from(x[t * width + first + part * c + channel]);
        let carried = |t: usize, channel: usize| if gated { part(t, 0, channel) * part(t, 2, channel) } else { part(t, 0, channel) };
        let sum = |t: usize, channel: usize| {
            let start = if bias { f64::from(inputs[4].f32()[channel]) } else { 0.0 };
            (0..k.min(positions[t] as usize + 1)).fold(start, |sum, age| sum + weight(channel, age) * carried(t - age, channel))
        };
        let mut gradients = vec![0.0; x.len()];
        for t in 0..positions.len() {
            for channel in 0..c {
                let slope = if gated { dy(t, channel) * part(t, 1, channel) } else { dy(t, channel) * Activation::Silu.slope(sum(t, channel)) };
                for age in 0..k.min(positions[t] as usize + 1) {
                    let at = (t - age) * width + first + channel;
                    let du = slope * weight(channel, age);
                    gradients[at] += if gated { du * part(t - age, 2, channel) } else { du };
                    if gated {
                        gradients[at + 2 * c] += du * part(t - age, 0, channel);
                    }
                }
                if gated {
                    gradients[t * width + first + c + channel] += dy(t, channel) * sum(t, channel);
                }
            }
        }
        for (dx, gradient) in outputs[0].f32_mut().iter_mut().zip(gradients) {
            *dx = (gradient + if self.add { f64::from(*dx) } else { 0.0 }) as f32;
        }
    }
}
