//! Tiles of packed dot products, for many tokens on hardware: activations are rounded to int8 by a rewrite, and codes
//! of weights and activations are multiplied as integers.

use bayan_gpu::GpuError;

use super::{Int8Order, Linear, Rounding, ShardKernel};
use crate::format_shaders;
use crate::plan::{Extent, Lowering, Target, Variant};

pub(super) const VARIANT: Variant<Linear> = Variant { name: "dot", fits, emit };

fn fits(linear: &Linear, target: &Target<'_>) -> bool {
    target.hardware()
        && target.capabilities.dot
        && !target.few_tokens()
        && linear.is_plain()
        && linear.fits_int8()
        && linear.rounded == Some(Rounding::Int8(Int8Order::Sequential))
}

fn emit(linear: &Linear, to: &mut Lowering<'_>) -> Result<(), GpuError> {
    let tokens = to.target().tokens;
    // Tokens and rows of a tile, and what one invocation computes of it.
    let (tm, tn, rm, rn) = if tokens > 64 { (64, 64, 4, 4) } else { (32, 64, 2, 4) };
    let threads = tm / rm * (tn / rn);
    for shard in linear.weight.shards() {
        let defines = linear
            .defines()
            .set("TM", tm)
            .set("TN", tn)
            .set("RM", rm)
            .set("RN", rn)
            .set("TM_3", tm * 3)
            .set("TN_3", tn * 3)
            .set("THREADS", threads);
        let kernel = ShardKernel {
            library: format_shaders::constants(&linear.weight),
            texts: &[wgsl!("linear/dot.wgsl")],
            defines,
            bindings: linear.bindings(to, 2, &[shard.rows, shard.first_row, linear.weight.rows(), tokens])?,
            grid: [shard.rows.div_ceil(tn), tokens.div_ceil(tm), 1].map(|n| Extent::Fixed(n as u32)),
            turns: 1 + linear.weight.blocks() as u64,
        };
        linear.emit(to, VARIANT.name, shard, kernel)?;
    }
    Ok(())
}
