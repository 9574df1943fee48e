//! For software devices with subgroups of a known size: a workgroup is one subgroup and computes one block of 32
//! columns, with the weights in registers and a loop over the tokens.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use super::{BackwardKernel, LinearBackward, SHARED};
use crate::plan::{Lowering, Target, Variant, grid};

pub(super) const VARIANT: Variant<LinearBackward> = Variant { name: "lanes", fits, emit };

fn fits(op: &LinearBackward, target: &Target<'_>) -> bool {
    target.lanes().is_some() && !op.f16
}

fn emit(op: &LinearBackward, to: &mut Lowering<'_>) -> Result<(), GpuError> {
    let shape = to.target().rows_shape;
    let tokens = to.input_shape(0)[0].min(64);
    let (own, held) = (8 / shape.lanes, 16 / shape.lanes);
    let defines = Defines::new()
        .set("LANES", shape.lanes)
        .set("BROADCAST", shape.broadcast())
        .set("OWN", own)
        .set("HELD", held)
        .set("TOKENS", tokens)
        .set("TOKENS_8", tokens * 8);
    let kernel = BackwardKernel {
        texts: &[SHARED, wgsl!("linear/backward_lanes.wgsl")],
        defines,
        inputs: vec![to.input(0)],
        columns: 32,
        tokens,
        step: 64,
        step_turns: 1 + grid::walk(64, shape.lanes) * 10 + ((tokens + 1) * (1 + 5 * held)) as u64,
        other_turns: 1 + ((tokens + 1) * (2 + 5 * own)) as u64,
    };
    op.emit(to, VARIANT.name, kernel)
}
