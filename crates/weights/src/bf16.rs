//! Dense bfloat16, rounded to nearest even: a format for writing files only.
//!
//! No kernel reads it, so it is not in the table of formats; bf16 weights become f16 on a device.

use crate::dtype::Dtype;
use crate::formats::{BlockTypes, Codes, Format, PlaneSpec, Unrepresentable};
use crate::gguf::block_type::BlockType;

/// 2 bytes a weight.
#[derive(Debug)]
pub struct Bf16;

impl Format for Bf16 {
    fn name(&self) -> &'static str {
        "bf16"
    }

    fn help(&self) -> &'static str {
        "rounded to 8 bits; for files"
    }

    fn block(&self) -> usize {
        1
    }

    fn planes(&self) -> &'static [PlaneSpec] {
        const { &[PlaneSpec::new("values", 2, Dtype::Bf16)] }
    }

    fn codes(&self) -> Codes {
        Codes::Values
    }

    fn block_types(&self) -> BlockTypes {
        BlockTypes { read: &[], written: &[BlockType::BF16] }
    }

    fn wgsl(&self) -> Option<&'static str> {
        None
    }

    fn quantize_row(
        &self,
        values: &[f32],
        _importance: Option<&[f32]>,
        planes: &mut [Vec<u8>],
    ) -> Result<(), Unrepresentable> {
        for (index, &value) in values.iter().enumerate() {
            let rounded = half::bf16::from_f32(value);
            if !rounded.is_finite() {
                return Err(Unrepresentable { index, value });
            }
            planes[0].extend_from_slice(&rounded.to_le_bytes());
        }
        Ok(())
    }

    fn dequantize_row(&self, planes: &[&[u8]], out: &mut [f32]) {
        for (value, bytes) in out.iter_mut().zip(planes[0].as_chunks::<2>().0) {
            *value = half::bf16::from_le_bytes(*bytes).to_f32();
        }
    }
}
