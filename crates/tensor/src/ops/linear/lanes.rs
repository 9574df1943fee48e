//! By rows, for software devices with subgroups of a known size: a workgroup is one subgroup, which reads each input
//! once and broadcasts it. Loads and barriers are what costs time there.

use bayan_gpu::GpuError;

use super::rows::{Division, SHARED};
use super::{ACTIVATE, Linear, ShardKernel};
use crate::format_shaders::{self, Unpacking};
use crate::plan::{Lowering, Target, Variant};

pub(super) const VARIANT: Variant<Linear> = Variant { name: "lanes", fits, emit };

fn fits(linear: &Linear, target: &Target<'_>) -> bool {
    target.lanes().is_some() && linear.fits_rows()
}

fn emit(linear: &Linear, to: &mut Lowering<'_>) -> Result<(), GpuError> {
    let shape = to.target().rows_shape;
    let held = 8usize.div_ceil(shape.lanes);
    for shard in linear.weight.shards() {
        let division = Division::of(linear, to, shard)?;
        let tokens = division.tokens;
        let spread = format_shaders::has_offset(shard.format);
        let shared = format_shaders::has_shared_scales(shard.format);
        let unpacking = match (spread, shape.lanes) {
            (true, _) => Unpacking::Spread,
            (false, 4) => Unpacking::Masked,
            (false, _) => Unpacking::Plain,
        };
        let defines = division
            .defines(linear)
            .set("SPREAD_CODES", spread)
            .set("SHARED_SCALES", shared)
            .set("BROADCAST", shape.broadcast())
            .set("HELD", held)
            .set("SHARED_SQUARES", tokens * shape.lanes);
        let ragged = if linear.whole_blocks() { 0 } else { 5 * tokens * held };
        let norms = if linear.norm.is_some() { tokens * (shape.lanes + 1) } else { 0 };
        // The loop over groups of 8 blocks and the end of each loop inside it.
        let groups = if shared { 2 * linear.weight.blocks().div_ceil(8) } else { 0 };
        let kernel = ShardKernel {
            library: format_shaders::variables(unpacking),
            texts: &[ACTIVATE, SHARED, wgsl!("linear/lanes.wgsl")],
            defines,
            bindings: division.bindings,
            grid: division.grid,
            turns: (1 + groups + linear.weight.blocks() * (1 + ragged) + norms) as u64,
        };
        linear.emit(to, VARIANT.name, shard, kernel)?;
    }
    Ok(())
}
