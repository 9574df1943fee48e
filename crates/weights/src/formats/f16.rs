//! Dense 16-bit floats, rounded to nearest even: two weights to a 32-bit word, `unpack2x16float` in WGSL.
//!
//! BF16 checkpoints become f16: mantissa grows, range shrinks, and a weight beyond 65504 is an error rather than
//! infinity.

use super::{Format, PlaneSpec, Unrepresentable, halves_to_f32, push_halves};
use crate::dtype::Dtype;

/// 2 bytes a weight. A row with odd `K` ends inside a word; see [`Format::rows_alignment`].
#[derive(Debug)]
pub struct F16;

impl Format for F16 {
    fn name(&self) -> &'static str {
        "f16"
    }

    fn block(&self) -> usize {
        1
    }

    fn planes(&self) -> &'static [PlaneSpec] {
        &[PlaneSpec { name: "values", bytes_per_block: 2, dtype: Dtype::F16 }]
    }

    fn quantize_row(
        &self,
        values: &[f32],
        _importance: Option<&[f32]>,
        planes: &mut [Vec<u8>],
    ) -> Result<(), Unrepresentable> {
        push_halves(values, &mut planes[0]).map_err(|index| Unrepresentable { index, value: values[index] })
    }

    fn dequantize_row(&self, planes: &[&[u8]], out: &mut [f32]) {
        halves_to_f32(planes[0], out);
    }
}
