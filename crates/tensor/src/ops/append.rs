//! Writes new keys and values into the cache.

use std::sync::Arc;

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;
use half::f16;

use crate::autodiff::{Backward, BackwardError};
use crate::graph::{Dtype, Graph, Tensor};
use crate::lower::{KernelText, Lowering};
use crate::op::{Op, Operand};
use crate::state::State;
use crate::values::Values;

/// cache[bases\[t\] + positions\[t\]] = (k\[t\], v\[t\]); inputs k, v [T, K, d], positions \[T\], bases \[T\]; outputs: the two cache states
/// [rows, K d], or [rows, K d / 2] with two f16 in each u32.
#[derive(Debug, Clone, PartialEq)]
pub struct Append;

impl Graph {
    /// Appends and returns the cache's two tensors.
    pub fn append(&mut self, k: Tensor, v: Tensor, positions: Tensor, bases: Tensor, k_cache: &Arc<State>, v_cache: &Arc<State>) -> (Tensor, Tensor) {
        let (k_cache, v_cache) = (self.state(k_cache), self.state(v_cache));
        self.record(Append, &[k, v, positions, bases], &[k_cache, v_cache]);
        (k_cache, v_cache)
    }
}

impl Op for Append {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "append"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let shape = to.input_shape(0);
        let width = to.output_shape(0)[1];
        let half = width != shape[1] * shape[2];
        let threads = super::row_threads(to, width);
        let (from, into, vectors) = match (half, width.is_multiple_of(4)) {
            (true, _) => ("vec2<f32>", "u32", width),
            (false, true) => ("vec4<f32>", "vec4<f32>", width / 4),
            (false, false) => ("f32", "f32", width),
        };
        let defines = Defines::new().set("THREADS", threads).set("FROM", from).set("TO", into).set("WIDTH", vectors).set("HALF_CACHE", half);
        let bindings = vec![to.input(0), to.input(1), to.input(2), to.input(3), to.output(0), to.output(1)];
        let text = KernelText { name: "append", parts: &[include_str!("../../../../shaders/append.wgsl")], defines };
        to.emit(text, &[bindings], super::rows_grid(shape[0]))
    }

    fn backward(&self, to: &mut Backward<'_>) -> Result<(), BackwardError> {
        let (positions, bases) = (to.input(2), to.input(3));
        // The rows belong to this step alone: what a cache shared by layers held before has another gradient.
        let (Some(dk), Some(dv)) = (to.take_gradient(0), to.take_gradient(1)) else { return Ok(()) };
        let k = to.input(0);
        let shape = to.graph().shape(k).to_vec();
        let gradients = to.graph().append_backward(dk, dv, positions, bases, &shape);
        for (input, gradient) in [k, to.input(1)].into_iter().zip(gradients) {
            to.pass(gradient, input);
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let width = inputs[0].shape[1] * inputs[0].shape[2];
        for t in 0..inputs[0].shape[0] {
            let row = (inputs[2].u32()[t] + inputs[3].u32()[t]) as usize;
            for (input, output) in inputs[..2].iter().zip(outputs.iter_mut()) {
                let from = &input.f32()[t * width..(t + 1) * width];
                match output.dtype() {
                    Dtype::F32 => output.f32_mut()[row * width..(row + 1) * width].copy_from_slice(from),
                    Dtype::U32 => {
                        let to = &mut output.u32_mut()[row * width / 2..(row + 1) * width / 2];
                        to.iter_mut().zip(from.chunks_exact(2)).for_each(|(y, v)| *y = pack_f16(v[0], v[1]));
                    }
                }
            }
        }
    }
}

/// Two f16 in one u32, the first in the low half, as WGSL's `pack2x16float`.
pub(crate) fn pack_f16(low: f32, high: f32) -> u32 {
    u32::from(f16::from_f32(low).to_bits()) | u32::from(f16::from_f32(high).to_bits()) << 16
}

/// The two f16 of a u32.
pub(crate) fn unpack_f16(word: u32) -> [f32; 2] {
    [f16::from_bits(word as u16).to_f32(), f16::from_bits((word >> 16) as u16).to_f32()]
}
