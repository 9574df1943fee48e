//! Dense 32-bit floats: used for norms and biases, and the exact reference of every other format.

use super::{BlockTypes, Codes, Format, PlaneSpec, Unrepresentable};
use crate::dtype::Dtype;
use crate::gguf::block_type::BlockType;

/// 4 bytes a weight.
#[derive(Debug)]
pub struct F32;

impl Format for F32 {
    fn name(&self) -> &'static str {
        "f32"
    }

    fn help(&self) -> &'static str {
        "exact"
    }

    fn block(&self) -> usize {
        1
    }

    fn planes(&self) -> &'static [PlaneSpec] {
        const { &[PlaneSpec::new("values", 4, Dtype::F32)] }
    }

    fn codes(&self) -> Codes {
        Codes::Values
    }

    fn block_types(&self) -> BlockTypes {
        BlockTypes { read: &[BlockType::F32], written: &[BlockType::F32] }
    }

    fn wgsl(&self) -> Option<&'static str> {
        Some(quant_wgsl!("f32"))
    }

    fn quantize_row(
        &self,
        values: &[f32],
        _importance: Option<&[f32]>,
        planes: &mut [Vec<u8>],
    ) -> Result<(), Unrepresentable> {
        let start = planes[0].len();
        planes[0].resize(start + 4 * values.len(), 0);
        for (bytes, value) in planes[0][start..].as_chunks_mut::<4>().0.iter_mut().zip(values) {
            *bytes = value.to_le_bytes();
        }
        Ok(())
    }

    fn dequantize_row(&self, planes: &[&[u8]], out: &mut [f32]) {
        for (bytes, value) in planes[0].as_chunks::<4>().0.iter().zip(out) {
            *value = f32::from_le_bytes(*bytes);
        }
    }
}
