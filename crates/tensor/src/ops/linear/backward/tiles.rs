//! Tiles in workgroup memory: 64 columns (two blocks of 32) by 16 or 64 tokens. Where the device was opened with f16,
//! tiles hold f16, as in the forward product, and sums stay f32. Software devices use f32: they have no separate
//! workgroup memory to save, and convert one value at a time.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use super::{BackwardKernel, LinearBackward, SHARED};
use crate::plan::{Lowering, Target, Variant, grid};

pub(super) const VARIANT: Variant<LinearBackward> = Variant { name: "tiles", fits, emit };

fn fits(op: &LinearBackward, _: &Target<'_>) -> bool {
    !op.f16
}

fn emit(op: &LinearBackward, to: &mut Lowering<'_>) -> Result<(), GpuError> {
    // Tokens of a tile, and how many of them one invocation computes.
    let (tm, rm) = if to.input_shape(0)[0] <= 16 { (16, 2) } else { (64, 8) };
    let threads = tm / rm * 16;
    // A padded stride places neighbouring rows in different memory banks, if workgroup memory is large enough.
    let stride: usize = if to.capabilities().max_workgroup_bytes >= 20_000 { 17 } else { 16 };
    let defines = Defines::new()
        .set("HALF_TILES", to.capabilities().f16 && to.target().hardware())
        .set("TM", tm)
        .set("RM", rm)
        .set("TM_8", tm * 8)
        .set("STRIDE", stride)
        .set("TILE_W", 32 * stride)
        .set("THREADS", threads);
    let kernel = BackwardKernel {
        texts: &[SHARED, wgsl!("linear/backward_tiles.wgsl")],
        defines,
        inputs: vec![to.input(0)],
        columns: 64,
        tokens: tm,
        step: 32,
        step_turns: 10 + grid::walk(64, threads) * 10 + grid::walk(tm * 8, threads) * 6,
        other_turns: 1 + 5 * rm as u64,
    };
    op.emit(to, VARIANT.name, kernel)
}
