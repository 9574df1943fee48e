//! Dense 16-bit floats, rounded to nearest even: two weights to a 32-bit word, `unpack2x16float` in WGSL.
//!
//! BF16 checkpoints become f16: the mantissa grows, the range shrinks, and a weight beyond 65504 is an error instead of
//! infinity.

use super::{BlockTypes, Codes, Format, PlaneSpec, Unrepresentable, halves_to_f32, push_halves};
use crate::dtype::Dtype;
use crate::gguf::block_type::BlockType;

/// 2 bytes a weight. A row with odd `K` ends inside a word; see [`Format::rows_alignment`].
#[derive(Debug)]
pub struct F16;

impl Format for F16 {
    fn name(&self) -> &'static str {
        "f16"
    }

    fn help(&self) -> &'static str {
        "rounded to 11 bits; what bf16 becomes too"
    }

    fn block(&self) -> usize {
        1
    }

    fn planes(&self) -> &'static [PlaneSpec] {
        const { &[PlaneSpec::new("values", 2, Dtype::F16)] }
    }

    fn codes(&self) -> Codes {
        Codes::Values
    }

    fn block_types(&self) -> BlockTypes {
        BlockTypes { read: &[BlockType::F16, BlockType::BF16], written: &[BlockType::F16] }
    }

    fn wgsl(&self) -> Option<&'static str> {
        Some(quant_wgsl!("f16"))
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

    #[cfg(test)]
    fn error_limits(&self) -> [(f64, f64); 3] {
        [(0.0003, 0.0), (0.0003, 0.0), (0.0003, 0.0)]
    }
}
