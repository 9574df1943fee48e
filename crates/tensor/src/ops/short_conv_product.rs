//! The gradient of the weight and bias of [`super::ShortConv`], of each token; [`super::ColumnSum`] adds them up.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use super::gated::Activation;
use super::short_conv::ShortConv;
use crate::graph::{Dtype, Graph, Tensor};
use crate::lower::{KernelText, Lowering};
use crate::op::{Op, Operand};
use crate::values::Values;

/// Inputs x [T, W], weight [C, k], positions \[T\], dy [T, C] (and bias \[C\]); outputs of each token the gradient of the sums before what
/// follows the convolution [T, C], and that of the weight [T, C k]. Every sequence begins within the step.
#[derive(Debug, Clone, PartialEq)]
pub struct ShortConvProduct(pub ShortConv);

impl Graph {
    /// Records both outputs; `read` is x, the weight and the positions.
    pub fn short_conv_product(&mut self, of: ShortConv, read: [Tensor; 3], bias: Option<Tensor>, dy: Tensor) -> [Tensor; 2] {
        let tokens = self.rows(read[0]);
        let outputs = [of.channels, of.channels * of.kernel].map(|width| self.tensor(&[tokens, width], Dtype::F32));
        let mut inputs = read.to_vec();
        inputs.push(dy);
        inputs.extend(bias);
        self.record(ShortConvProduct(of), &inputs, &outputs);
        outputs
    }
}

impl Op for ShortConvProduct {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "short_conv_product"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let of = &self.0;
        let (tokens, width) = (to.input_shape(0)[0], to.input_shape(0)[1]);
        let threads = super::row_threads(to, 64);
        let (grid, stride) = super::flat_grid(to, tokens * of.channels, threads);
        let size = to.numbers(&[tokens as u32, stride, width as u32])?;
        let mut bindings = vec![to.input(0), to.input(1), to.input(2), to.input(3), to.output(0), size];
        bindings.extend(of.bias.then(|| to.input(4)));
        bindings.push(to.output(1));
        let parts = [
            include_str!("../../../../shaders/lib/activate.wgsl"),
            include_str!("../../../../shaders/lib/activate_slope.wgsl"),
            include_str!("../../../../shaders/lib/short_conv_slope.wgsl"),
            include_str!("../../../../shaders/short_conv_product.wgsl"),
        ];
        let defines = slope_defines(of, threads).set("PRODUCT_AT", 6 + usize::from(of.bias));
        to.emit(KernelText { name: "short_conv_product", parts: &parts, defines }, &[bindings], grid)
    }

    fn work(&self, _inputs: &[&[usize]], outputs: &[&[usize]]) -> u64 {
        crate::op::elements(outputs[1]) * 2
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let ShortConv { channels: c, kernel: k, first, gated, bias, .. } = self.0;
        let (x, width, positions) = (inputs[0].f32(), inputs[0].width(), inputs[2].u32());
        let part = |t: usize, part: usize, channel: usize| f64::from(x[t * width + first + part * c + channel]);
        let carried = |t: usize, channel: usize| if gated { part(t, 0, channel) * part(t, 2, channel) } else { part(t, 0, channel) };
        let (slopes, products) = outputs.split_at_mut(1);
        for (t, &position) in positions.iter().enumerate() {
            for channel in 0..c {
                let reach = k.min(position as usize + 1);
                let start = if bias { f64::from(inputs[4].f32()[channel]) } else { 0.0 };
                let sum = (0..reach).fold(start, |sum, age| sum + f64::from(inputs[1].f32()[channel * k + k - 1 - age]) * carried(t - age, channel));
                let dy = f64::from(inputs[3].f32()[t * c + channel]);
                let slope = dy * if gated { part(t, 1, channel) } else { Activation::Silu.slope(sum) };
                slopes[0].f32_mut()[t * c + channel] = slope as f32;
                for age in 0..k {
                    let product = if age < reach { slope * carried(t - age, channel) } else { 0.0 };
                    products[0].f32_mut()[(t * c + channel) * k + k - 1 - age] = product as f32;
                }
            }
        }
    }
}

/// What kernels over `short_conv_slope.wgsl` are told.
pub(super) fn slope_defines(of: &ShortConv, threads: usize) -> Defines {
    Defines::new()
        .set("THREADS", threads)
        .set("C", of.channels)
        .set("KERNEL", of.kernel)
        .set("FIRST", of.first)
        .set("GATED", of.gated)
        .set("BIAS", of.bias)
        .set("ACTIVATION", Activation::Silu.name())
}
