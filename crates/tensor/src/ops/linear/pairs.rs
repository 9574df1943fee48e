//! The loop over the tokens in integers, where activations were rounded to int8 and codes have 4 bits: two products in
//! one 32-bit multiplication.

use bayan_gpu::GpuError;

use super::{ACTIVATE, Int8Order, Linear, Rounding, sweep};
use crate::format_shaders::{Nibbles, nibbles};
use crate::plan::{Lowering, Target, Variant};

pub(super) const VARIANT: Variant<Linear> = Variant { name: "pairs", fits, emit };

fn fits(linear: &Linear, target: &Target<'_>) -> bool {
    sweep::suits(target)
        && target.capabilities.dot
        && linear.fits_int8()
        && linear.gate_divides()
        && linear.rounded == Some(Rounding::Int8(Int8Order::HalvesSwapped))
        && linear.weight.all_rows(|format| nibbles(format).is_some())
}

fn emit(linear: &Linear, to: &mut Lowering<'_>) -> Result<(), GpuError> {
    for shard in linear.weight.shards() {
        let texts = [ACTIVATE, sweep::STORE, wgsl!("linear/pairs.wgsl")];
        let mut kernel = sweep::kernel(linear, to, shard, 2, &texts)?;
        kernel.defines = kernel.defines.set("OFFSET", nibbles(shard.format) == Some(Nibbles::Offset));
        linear.emit(to, VARIANT.name, shard, kernel)?;
    }
    Ok(())
}
