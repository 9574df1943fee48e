//! Tiles, for many tokens on hardware: a workgroup computes a tile of tokens and rows, with one block of K at a time in
//! workgroup memory. Where the device was opened with f16, tiles hold f16 and sums stay f32.

use bayan_gpu::GpuError;

use super::{Linear, ShardKernel};
use crate::format_shaders;
use crate::plan::{Extent, Lowering, Target, Variant, grid};

pub(super) const VARIANT: Variant<Linear> = Variant { name: "tiles", fits, emit };

fn fits(linear: &Linear, target: &Target<'_>) -> bool {
    target.hardware() && !target.few_tokens() && linear.is_plain() && linear.rounded.is_none()
}

fn emit(linear: &Linear, to: &mut Lowering<'_>) -> Result<(), GpuError> {
    let tokens = to.target().tokens;
    let half = to.capabilities().f16;
    // 128 rows of f32 tiles take 18 KiB of workgroup memory, more than WebGPU guarantees.
    let large = half || to.capabilities().max_workgroup_bytes >= (64 + 64) * 9 * 16;
    // Tokens and rows of a tile, and what one invocation computes of it.
    let (tm, tn, rm, rn) = if tokens > 64 && large { (64, 64, 8, 4) } else { (32, 64, 4, 4) };
    let threads = tm / rm * (tn / rn);
    let loads = grid::walk(tm * 8, threads) * 6 + grid::walk(tn, threads) * 10;
    for shard in linear.weight.shards() {
        let defines = linear
            .defines()
            .set("K", linear.weight.columns())
            .set("TM", tm)
            .set("TN", tn)
            .set("RM", rm)
            .set("RN", rn)
            .set("RM_RN", rm * rn)
            .set("TM_9", tm * 9)
            .set("TN_9", tn * 9)
            .set("THREADS", threads)
            .set("HALF_TILES", half);
        let kernel = ShardKernel {
            library: format_shaders::constants(&linear.weight),
            texts: &[wgsl!("linear/tiles.wgsl")],
            defines,
            bindings: linear.bindings(to, 1, &[shard.rows, shard.first_row, linear.weight.rows(), tokens])?,
            grid: [shard.rows.div_ceil(tn), tokens.div_ceil(tm), 1].map(|n| Extent::Fixed(n as u32)),
            turns: 1 + linear.weight.blocks() as u64 * (10 + loads) + ((rm + 1) * (2 + rn)) as u64,
        };
        linear.emit(to, VARIANT.name, shard, kernel)?;
    }
    Ok(())
}
