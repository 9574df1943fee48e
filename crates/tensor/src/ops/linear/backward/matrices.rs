//! Cooperative matrices, as in the forward product: the gradient is rounded to f16 by a rewrite, each token scaled by a
//! power of two.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use super::super::matrices::{KERNEL, Shape};
use super::{BackwardKernel, LinearBackward};
use crate::plan::{Lowering, Target, Variant};

pub(super) const VARIANT: Variant<LinearBackward> = Variant { name: "matrices", fits, emit };

fn fits(op: &LinearBackward, target: &Target<'_>) -> bool {
    target.hardware() && !target.few_tokens() && op.f16 && Shape::of(target.capabilities, true).is_some()
}

fn emit(op: &LinearBackward, to: &mut Lowering<'_>) -> Result<(), GpuError> {
    let Some(shape) = Shape::of(to.capabilities(), true) else { unreachable!("it fits") };
    let (step_turns, other_turns) = shape.turns();
    let defines = Defines::new().set("N_BLOCKS", op.weight.rows().div_ceil(32));
    let kernel = BackwardKernel {
        texts: &[wgsl!("linear/backward_matrices.wgsl"), KERNEL],
        defines: shape.defines(defines),
        inputs: vec![to.input(0), to.input(0)],
        columns: shape.results(),
        tokens: shape.tokens(),
        step: 32,
        step_turns,
        other_turns,
    };
    op.emit(to, VARIANT.name, kernel)
}
