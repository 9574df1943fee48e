//! Dense 16-bit floats, rounded to nearest even: two weights to a 32-bit word, `unpack2x16float` in WGSL.
//!
//! BF16 checkpoints become f16: mantissa grows, range shrinks, and a weight beyond 65504 is an error rather than infinity.

use super::{Format, PlaneSpec, Unrepresentable};
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

    fn quantize_row(&self, values: &[f32], _importance: Option<&[f32]>, planes: &mut [Vec<u8>]) -> Result<(), Unrepresentable> {
        for (index, &value) in values.iter().enumerate() {
            let half = half::f16::from_f32(value);
            if !half.is_finite() {
                return Err(Unrepresentable { index, value });
            }
            planes[0].extend_from_slice(&half.to_le_bytes());
        }
        Ok(())
    }

    fn dequantize_row(&self, planes: &[&[u8]], out: &mut [f32]) {
        for (bytes, value) in planes[0].as_chunks::<2>().0.iter().zip(out) {
            *value = half::f16::from_le_bytes(*bytes).to_f32();
        }
    }
}
