//! A loop over the tokens, for many tokens on software devices with subgroups of 4 (SwiftShader): weights are unpacked
//! once for all tokens of a workgroup, and the loop is not unrolled, because the compilers of such devices keep little
//! in registers.

use bayan_gpu::GpuError;

use super::{ACTIVATE, Linear, ShardKernel};
use crate::format_shaders::{self, Unpacking};
use crate::graph::Shard;
use crate::plan::{Extent, Lowering, Target, Variant, grid_2d};

pub(super) const VARIANT: Variant<Linear> = Variant { name: "sweep", fits, emit };

/// How these kernels write results.
pub(super) const STORE: &str = wgsl!("lib/linear_sweep.wgsl");

/// Tokens per workgroup.
const TOKENS: usize = 64;

fn fits(linear: &Linear, target: &Target<'_>) -> bool {
    suits(target) && linear.fits_rows() && linear.norm.is_none() && linear.whole_blocks()
}

/// Whether the device and the number of tokens suit a loop over the tokens.
pub(super) fn suits(target: &Target<'_>) -> bool {
    let capabilities = target.capabilities;
    !target.hardware() && capabilities.subgroups && capabilities.subgroup_size == (4, 4) && !target.few_tokens()
}

fn emit(linear: &Linear, to: &mut Lowering<'_>) -> Result<(), GpuError> {
    for shard in linear.weight.shards() {
        let kernel = kernel(linear, to, shard, 1, &[ACTIVATE, STORE, wgsl!("linear/sweep.wgsl")])?;
        linear.emit(to, VARIANT.name, shard, kernel)?;
    }
    Ok(())
}

/// What both kernels that loop over the tokens set for a shard; `inputs` is the number of tensors that hold x.
pub(super) fn kernel<'a>(
    linear: &Linear,
    to: &Lowering<'_>,
    shard: &Shard,
    inputs: usize,
    texts: &'a [&'a str],
) -> Result<ShardKernel<'a>, GpuError> {
    let (tokens, blocks) = (to.target().tokens, linear.weight.blocks());
    // With a gate, half of an invocation's 8 rows are from the other half of the weights.
    let sets = if linear.gate.is_some() { 2 } else { 1 };
    let (rows, own) = (shard.rows / sets, 8 / sets);
    let defines = linear
        .gate_defines()
        .set("BIAS_AT", 2 + inputs)
        .set("RESIDUAL_AT", 2 + inputs + usize::from(linear.bias))
        .set("OWN", own)
        .set("TOKENS", TOKENS);
    let mut grid = grid_2d(rows.div_ceil(4 * own), to.capabilities().max_workgroups);
    grid[2] = Extent::Fixed(tokens.div_ceil(TOKENS) as u32);
    let sizes = [rows, shard.first_row, to.output_shape(0)[1], grid[0].resolve(1) as usize, tokens, blocks];
    let loops = tokens.min(TOKENS) as u64;
    Ok(ShardKernel {
        library: format_shaders::variables(Unpacking::Masked),
        texts,
        defines,
        bindings: linear.bindings(to, 0, &sizes)?,
        grid,
        turns: 1 + blocks as u64 * (2 + loops) + (loops + 1) * (2 + own as u64),
    })
}
