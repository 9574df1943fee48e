//! The gradient of [`super::ShortConv`]'s input; the convolution is recomputed.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use super::short_conv::ShortConv;
use crate::graph::{Graph, Op, Operand, Tensor, Values};
use crate::ops::elementwise::Activation;
use crate::plan::{KernelText, Lowering, grid};

/// Inputs x [T, W], weight [C, k], positions \[T\], dy [T, C] (and bias \[C\], and dx when adding); output dx [T, W],
/// which is zero in columns that the convolution does not read. Every sequence begins within the step.
#[derive(Debug, Clone, PartialEq)]
pub struct ShortConvBackward {
    /// The op that is differentiated.
    pub of: ShortConv,
    /// Add to dx instead of overwriting it.
    pub add: bool,
}

impl Graph {
    /// Records the gradient of the input of `short_conv`; `read` holds x, the weight and the positions.
    pub fn short_conv_backward(
        &mut self,
        of: ShortConv,
        read: [Tensor; 3],
        bias: Option<Tensor>,
        dy: Tensor,
        dx: Tensor,
        add: bool,
    ) {
        let mut inputs = read.to_vec();
        inputs.push(dy);
        inputs.extend(bias);
        inputs.extend(add.then_some(dx));
        self.record(ShortConvBackward { of, add }, &inputs, &[dx]);
    }
}

impl ShortConvBackward {
    /// Number of columns of x that the convolution reads.
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
        let count = to.input_shape(0).iter().product();
        let defines = Defines::new().set("READ", self.read()).set("ADD", self.add);
        let text = wgsl!("recurrent/short_conv_backward.wgsl");
        emit_gradient(
            to,
            &self.of,
            KernelText { name: "short_conv_backward", parts: &[text], defines, turns: 0 },
            count,
        )
    }

    fn work(&self, _inputs: &[&[usize]], outputs: &[&[usize]]) -> u64 {
        crate::graph::elements(outputs[0]) * (self.of.kernel * self.of.kernel) as u64
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let read = Read::of(&self.of, inputs);
        let ShortConv { channels: c, first, gated, .. } = self.of;
        let width = inputs[0].width();
        let mut gradients = vec![0.0; inputs[0].f32().len()];
        for t in 0..read.tokens() {
            for channel in 0..c {
                for age in 0..read.reach(t) {
                    let at = (t - age) * width + first + channel;
                    let du = read.slope(t, channel) * read.weight(channel, age);
                    gradients[at] += if gated { du * read.part(t - age, 2, channel) } else { du };
                    if gated {
                        gradients[at + 2 * c] += du * read.part(t - age, 0, channel);
                    }
                }
                if gated {
                    gradients[t * width + first + c + channel] += read.dy(t, channel) * read.sum(t, channel);
                }
            }
        }
        for (dx, gradient) in outputs[0].f32_mut().iter_mut().zip(gradients) {
            *dx = (gradient + if self.add { f64::from(*dx) } else { 0.0 }) as f32;
        }
    }
}

/// Emits a gradient kernel of the convolution: the WGSL and names that all of them share, then those of `text`. A
/// second output, if there is one, is bound last.
pub(super) fn emit_gradient(
    to: &mut Lowering<'_>,
    of: &ShortConv,
    text: KernelText<'_>,
    count: usize,
) -> Result<(), GpuError> {
    let (tokens, width) = (to.input_shape(0)[0], to.input_shape(0)[1]);
    let threads = grid::row_threads(to, 64);
    let (grid, stride) = grid::flat_grid(to, count, threads);
    let size = to.numbers(&[tokens as u32, stride, width as u32])?;
    let mut bindings = vec![to.input(0), to.input(1), to.input(2), to.input(3), to.output(0), size];
    bindings.extend(of.bias.then(|| to.input(4)));
    bindings.extend((1..to.output_count()).map(|output| to.output(output)));
    let defines = text
        .defines
        .set("THREADS", threads)
        .set("C", of.channels)
        .set("KERNEL", of.kernel)
        .set("FIRST", of.first)
        .set("GATED", of.gated)
        .set("BIAS", of.bias)
        .set("ACTIVATION", Activation::Silu.name());
    let mut parts =
        vec![wgsl!("lib/activate.wgsl"), wgsl!("lib/activate_slope.wgsl"), wgsl!("lib/short_conv_slope.wgsl")];
    parts.extend(text.parts);
    // For every tap of the kernel, the convolution is recomputed over as many inputs.
    let turns = text.turns + 2 * ((1 + of.kernel) * (2 + of.kernel)) as u64;
    to.emit(KernelText { name: text.name, parts: &parts, defines, turns }, &[bindings], grid)
}

/// Inputs of the gradients' references: x, weight, positions, dy and bias of the convolution.
pub(super) struct Read<'a> {
    of: &'a ShortConv,
    width: usize,
    x: &'a [f32],
    weight: &'a [f32],
    positions: &'a [u32],
    dy: &'a [f32],
    bias: Option<&'a [f32]>,
}

impl<'a> Read<'a> {
    pub fn of(of: &'a ShortConv, inputs: &'a [Operand<'_>]) -> Read<'a> {
        let bias = of.bias.then(|| inputs[4].f32());
        Read {
            of,
            width: inputs[0].width(),
            x: inputs[0].f32(),
            weight: inputs[1].f32(),
            positions: inputs[2].u32(),
            dy: inputs[3].f32(),
            bias,
        }
    }

    pub fn tokens(&self) -> usize {
        self.positions.len()
    }

    /// Number of tokens in the sum of token t.
    pub fn reach(&self, t: usize) -> usize {
        self.of.kernel.min(self.positions[t] as usize + 1)
    }

    pub fn weight(&self, channel: usize, age: usize) -> f64 {
        f64::from(self.weight[channel * self.of.kernel + self.of.kernel - 1 - age])
    }

    pub fn dy(&self, t: usize, channel: usize) -> f64 {
        f64::from(self.dy[t * self.of.channels + channel])
    }

    /// One of the three sections of x: input gate, output gate, input.
    pub fn part(&self, t: usize, part: usize, channel: usize) -> f64 {
        f64::from(self.x[t * self.width + self.of.first + part * self.of.channels + channel])
    }

    /// The convolution's input u.
    pub fn carried(&self, t: usize, channel: usize) -> f64 {
        self.part(t, 0, channel) * if self.of.gated { self.part(t, 2, channel) } else { 1.0 }
    }

    /// The convolution's sum, before the output gate or SiLU.
    pub fn sum(&self, t: usize, channel: usize) -> f64 {
        let start = self.bias.map_or(0.0, |bias| f64::from(bias[channel]));
        (0..self.reach(t)).fold(start, |sum, age| sum + self.weight(channel, age) * self.carried(t - age, channel))
    }

    /// The gradient of that sum.
    pub fn slope(&self, t: usize, channel: usize) -> f64 {
        self.dy(t, channel)
            * if self.of.gated { self.part(t, 1, channel) } else { Activation::Silu.slope(self.sum(t, channel)) }
    }
}
