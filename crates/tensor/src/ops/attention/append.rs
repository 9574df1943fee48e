//! Writes new keys and values into the cache.

use std::sync::Arc;

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use super::cache::{CacheElement, CacheRows, ROW};
use crate::cpu::CpuStep;
use crate::graph::{Graph, Op, Operand, State, Tensor, Values};
use crate::passes::{Backward, BackwardError};
use crate::plan::{KernelText, Lowering, Variant, grid};

/// cache\[row of t\] = (k\[t\], v\[t\]); inputs k, v [T, K, d], positions \[T\], bases \[T\] and a table as
/// [`CacheRows`] says; outputs: the two cache states, with rows in the format of [`CacheElement`].
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

/// The kernels; the first that fits is used.
const VARIANTS: &[Variant<Append>] = &[
    Variant { name: "codes", fits: |op, _| op.element.is_quantized(), emit: emit_codes },
    Variant { name: "numbers", fits: |op, _| !op.element.is_quantized(), emit: emit_numbers },
];

/// Quantizes blocks of 32, the keys in one dispatch and the values in another.
fn emit_codes(op: &Append, to: &mut Lowering<'_>) -> Result<(), GpuError> {
    let shape = to.input_shape(0);
    let width = shape[1] * shape[2];
    let blocks = width / 32;
    let threads = grid::row_threads(to, blocks);
    let defines = Defines::new().set("THREADS", threads).set("BLOCKS", blocks);
    let defines =
        op.element.defines(op.rows.defines(defines, to.input_shape(3)[0], shape[0]), to.output_shape(0)[0], width);
    for part in 0..2 {
        let bindings = vec![to.input(part), to.input(2), to.input(3), to.output(part)];
        let text = KernelText {
            name: "append_codes",
            parts: &[ROW, wgsl!("attention/append_codes.wgsl")],
            defines: defines.clone(),
            turns: grid::walk(blocks, threads),
        };
        to.emit(text, &[bindings], grid::rows_grid(shape[0]))?;
    }
    Ok(())
}

/// Copies keys and values in units of `TO`, for which `FROM` is read.
fn emit_numbers(op: &Append, to: &mut Lowering<'_>) -> Result<(), GpuError> {
    let shape = to.input_shape(0);
    let width = shape[1] * shape[2];
    let (from, into, units) = match (op.element, width.is_multiple_of(4)) {
        (CacheElement::F16, _) => ("vec2<f32>", "u32", width / 2),
        (_, true) => ("vec4<f32>", "vec4<f32>", width / 4),
        (_, false) => ("f32", "f32", width),
    };
    let threads = grid::row_threads(to, units);
    let defines = Defines::new().set("THREADS", threads).set("FROM", from).set("TO", into).set("WIDTH", units);
    let text = KernelText {
        name: "append",
        parts: &[ROW, wgsl!("attention/append.wgsl")],
        defines: op.element.defines(
            op.rows.defines(defines, to.input_shape(3)[0], shape[0]),
            to.output_shape(0)[0],
            width,
        ),
        turns: grid::walk(units, threads),
    };
    let bindings = vec![to.input(0), to.input(1), to.input(2), to.input(3), to.output(0), to.output(1)];
    to.emit(text, &[bindings], grid::rows_grid(shape[0]))
}

impl Op for Append {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "append"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        to.emit_first(VARIANTS, self)
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

    fn compute(&self, step: &mut CpuStep<'_>) {
        self.reference(step.inputs, step.outputs);
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let (tokens, width) = (inputs[0].shape[0], inputs[0].shape[1] * inputs[0].shape[2]);
        let (bases, table) = CacheRows::split_table(inputs[3].u32(), tokens);
        for (input, output) in inputs[..2].iter().zip(outputs.iter_mut()) {
            for t in 0..tokens {
                let row = self.rows.row(table, bases[t] as usize, inputs[2].u32()[t] as usize);
                self.element.write(output, row, &input.f32()[t * width..(t + 1) * width]);
            }
        }
    }
}
