//! What an operation is: its kernels, and the same mathematics in plain Rust.

use std::any::Any;
use std::sync::Arc;

use bayan_gpu::GpuError;

use super::matrix::Matrix;
use super::values::Values;
use crate::cpu::CpuStep;
use crate::passes::{Backward, BackwardError};
use crate::plan::Lowering;

/// A tensor as it is passed to an op's reference.
#[derive(Debug, Clone, Copy)]
pub struct Operand<'a> {
    /// Sizes, outermost first.
    pub shape: &'a [usize],
    /// Elements.
    pub values: &'a Values,
}

impl<'a> Operand<'a> {
    /// The elements as f32.
    pub fn f32(&self) -> &'a [f32] {
        self.values.f32()
    }

    /// The elements as u32.
    pub fn u32(&self) -> &'a [u32] {
        self.values.u32()
    }

    /// The last size.
    pub fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The f32 elements row by row.
    pub fn rows(&self) -> std::slice::ChunksExact<'a, f32> {
        self.f32().chunks_exact(self.width())
    }
}

/// An operation: one Rust file, and its WGSL files in the folder of the same family.
pub trait Op: std::fmt::Debug + Any + Send + Sync {
    /// The op's name; the names of its kernels begin with it.
    fn name(&self) -> &'static str;

    /// Emits the kernels for the node's tensors.
    ///
    /// # Errors
    /// A kernel that does not compile, or a device that fails.
    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError>;

    /// Computes the op on the host, summing in f64: the definition that the kernels are checked against.
    ///
    /// `inputs` and `outputs` are the node's tensors in order. An output holds zeros, or the current values of a state
    /// that is updated in place.
    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]);

    /// Computes the op on a CPU: the form that is fast there. It may round weights' inputs to 8 bits and sum in f32. The
    /// default is the reference.
    fn compute(&self, step: &mut CpuStep<'_>) {
        step.by_reference(&|inputs, outputs| self.reference(inputs, outputs));
    }

    /// Approximate number of multiply-adds for these input and output sizes; long lists are split into submissions by
    /// it.
    fn work(&self, _inputs: &[&[usize]], outputs: &[&[usize]]) -> u64 {
        outputs.iter().map(|shape| elements(shape)).sum()
    }

    /// The weight matrix that the op reads, where that may be trained.
    fn matrix(&self) -> Option<&Arc<Matrix>> {
        None
    }

    /// Records the operations of the gradient: reads `to.gradient(output)` and calls `to.contribute` for every input
    /// for which `to.wants` is true.
    ///
    /// # Errors
    /// The operation, or the way it is configured, has no gradient.
    fn backward(&self, _to: &mut Backward<'_>) -> Result<(), BackwardError> {
        Err(BackwardError(self.name()))
    }

    /// Gives rewrites access to the concrete type.
    fn as_any(&self) -> &dyn Any;
}

/// The number of elements of a tensor of these sizes.
pub(crate) fn elements(shape: &[usize]) -> u64 {
    shape.iter().map(|&n| n as u64).product()
}

/// Implements [`Op::as_any`] in an op's `impl` block.
#[macro_export]
macro_rules! op_as_any {
    () => {
        fn as_any(&self) -> &dyn std::any::Any {
            self
        }
    };
}
