//! Writes new keys and values into the cache.

use std::sync::Arc;

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use super::cache::{CacheElement, CacheRows};
use crate::graph::{Graph, Op, Operand, State, Tensor, Values};
use crate::passes::{Backward, BackwardError};
use crate::plan::{KernelText, Lowering, grid};

/// cache\[row of t\] = (k\[t\], v\[t\]); inputs k, v [T, K, d], positions \[T\], bases \[T\]; outputs: the two cache
/// states, with rows in the format of [`CacheElement`].
#[derive(Debug, Clone, PartialEq)]
pub struct Append {
    /// Maps positions to cache rows.
    pub rows: CacheRows,
    /// The cache's element format.
    pub element: CacheElement,
}

impl Graph {
    /// Appends keys and values, and returns the two cache tensors.
    pub fn append(
        &mut self,
        rows: CacheRows,
        k: Tensor,
        v: Tensor,
        positions: Tensor,
        bases: Tensor,
        caches: [&Arc<State>; 2],
    ) -> (Tensor, Tensor) {
        let element = CacheElement::of(caches[0].shape()[1], self.shape(k)[1..].iter().product());
        let [k_cache, v_cache] = caches.map(|cache| self.state(cache));
        self.record(Append { rows, element }, &[k, v, positions, bases], &[k_cache, v_cache]);
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
        let width = shape[1] * shape[2];
        let element = self.element;
        let (from, into, elements) = match (element, width.is_multiple_of(4)) {
            (CacheElement::F16, _) => ("vec2<f32>", "u32", width / 2),
            (CacheElement::F32, true) => ("vec4<f32>", "vec4<f32>", width / 4),
            (CacheElement::F32, false) => ("f32", "f32", width),
            (CacheElement::Q8_0 | CacheElement::Q4_0, _) => ("vec4<f32>", "u32", width / 32),
        };
        let threads = grid::row_threads(to, elements);
        let defines = Defines::new()
            .set("THREADS", threads)
            .set("FROM", from)
            .set("TO", into)
            .set("WIDTH", elements)
            .set("BLOCKS", elements);
        let defines = element.defines(self.rows.defines(defines), to.output_shape(0)[0], width);
        let grid = grid::rows_grid(shape[0]);
        if element.is_quantized() {
            for part in 0..2 {
                let bindings = vec![to.input(part), to.input(2), to.input(3), to.output(part)];
                let text = KernelText {
                    name: "append_codes",
                    parts: &[wgsl!("attention/append_codes.wgsl")],
                    defines: defines.clone(),
                    turns: grid::walk(elements, threads),
                };
                to.emit(text, &[bindings], grid)?;
            }
            return Ok(());
        }
        let bindings = vec![to.input(0), to.input(1), to.input(2), to.input(3), to.output(0), to.output(1)];
        to.emit(
            KernelText {
                name: "append",
                parts: &[wgsl!("attention/append.wgsl")],
                defines,
                turns: grid::walk(elements, threads),
            },
            &[bindings],
            grid,
        )
    }

    fn backward(&self, to: &mut Backward<'_>) -> Result<(), BackwardError> {
        let (positions, bases) = (to.input(2), to.input(3));
        // Remove the caches' gradients: an earlier append to a cache that layers share wrote other values.
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
        let (tokens, width) = (inputs[0].shape[0], inputs[0].shape[1] * inputs[0].shape[2]);
        for (input, output) in inputs[..2].iter().zip(outputs.iter_mut()) {
            for t in 0..tokens {
                let row = self.rows.row(inputs[3].u32()[t] as usize, inputs[2].u32()[t] as usize);
                self.element.write(output, row, &input.f32()[t * width..(t + 1) * width]);
            }
        }
    }
}
