//! What an operation is: a kernel, and the same mathematics in plain Rust.

use std::any::Any;
use std::sync::Arc;

use bayan_gpu::GpuError;

use super::matrix::Matrix;
use super::values::Values;
use crate::passes::{Backward, BackwardError};
use crate::plan::Lowering;

/// A tensor as a reference sees it.
#[derive(Debug, Clone, Copy)]
pub struct Operand<'a> {
    /// Sizes, outermost first.
    pub shape: &'a [usize],
    /// Elements.
    pub values: &'a Values,
}

impl<'a> Operand<'a> {
    /// The floats.
    pub fn f32(&self) -> &'a [f32] {
        self.values.f32()
    }

    /// The integers.
    pub fn u32(&self) -> &'a [u32] {
        self.values.u32()
    }

    /// The last size.
    pub fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The floats row by row.
    pub fn rows(&self) -> std::slice::ChunksExact<'a, f32> {
        self.f32().chunks_exact(self.width())
    }
}

/// An operation: one Rust file, and its WGSL files in the folder of the same family.
pub trait Op: std::fmt::Debug + Any + Send + Sync {
    /// Its name, with which those of its kernels begin. Their WGSL is in the folder of its family in `shaders/`.
    fn name(&self) -> &'static str;

    /// Emits its kernel or kernels for the tensors of the node.
    ///
    /// # Errors
    /// A kernel that does not compile, or a device that fails.
    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError>;

    /// The same on the host, summing in f64: the definition that kernels are checked against.
    ///
    /// `inputs` and `outputs` have the node's tensors in order; outputs hold zeros, or the state that is updated in
    /// place.
    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]);

    /// About how many multiply-adds it takes, given the sizes of inputs and outputs: what submissions are cut by.
    fn work(&self, _inputs: &[&[usize]], outputs: &[&[usize]]) -> u64 {
        outputs.iter().map(|shape| elements(shape)).sum()
    }

    /// The matrix that it reads, where that may be trained.
    fn matrix(&self) -> Option<&Arc<Matrix>> {
        None
    }

    /// Records the operations of its gradient: reads `to.gradient(output)`, calls `to.contribute` for the inputs that
    /// `to.wants`.
    ///
    /// # Errors
    /// This operation, or a setting of it, has none.
    fn backward(&self, _to: &mut Backward<'_>) -> Result<(), BackwardError> {
        Err(BackwardError(self.name()))
    }

    /// For looking at the concrete type in rewrites.
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
