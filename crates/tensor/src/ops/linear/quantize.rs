//! Rounds activations to int8, for packed dot products and for integer products of pairs.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::graph::{Op, Operand, Values};
use crate::plan::{KernelText, Lowering, grid};

/// How a rewrite rounds the activations of a product for its kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// To f16, each row scaled by a power of two.
    F16,
    /// To int8, with a scale for each block of 32.
    Int8(Int8Order),
}

impl Rounding {
    /// In the order in which they are preferred.
    pub(crate) const ALL: [Rounding; 3] =
        [Rounding::F16, Rounding::Int8(Int8Order::Sequential), Rounding::Int8(Int8Order::HalvesSwapped)];
}

/// The order of four int8 activations in a word, from the lowest byte up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Int8Order {
    /// 0, 1, 2, 3, for packed dot products.
    Sequential,
    /// 2, 3, 0, 1, for products of pairs: a 32-bit product multiplies low halves of one factor with high halves of the
    /// other.
    HalvesSwapped,
}

impl Int8Order {
    /// Bytes in order to this order, and back.
    fn reorder(self, bytes: [u8; 4]) -> [u8; 4] {
        let [a, b, c, d] = bytes;
        if self == Int8Order::HalvesSwapped { [c, d, a, b] } else { bytes }
    }

    /// The activations that codes and scales represent.
    pub(crate) fn dequantize(self, codes: &[u32], scales: &[f32]) -> Vec<f32> {
        let of_word = |(word, code): (usize, &u32)| {
            self.reorder(code.to_le_bytes()).map(|byte| f32::from(byte as i8) * scales[word / 8 * 4])
        };
        codes.iter().enumerate().flat_map(of_word).collect()
    }
}

/// Input x [T, K], K a multiple of 32; outputs: codes [T, K / 4] with four int8 in each u32, scales [T, K / 32, 4]: d,
/// d times the sum of the first 16 codes, d times the sum of the other 16, d times the sum of all.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantize {
    /// The order of the codes in a word.
    pub order: Int8Order,
}

impl Op for Quantize {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "quantize"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let blocks = to.input_shape(0).iter().product::<usize>() / 32;
        let threads = grid::row_threads(to, 64);
        let (grid, stride) = grid::flat_grid(to, blocks, threads);
        let size = to.numbers(&[blocks as u32, stride])?;
        let bindings = vec![to.input(0), to.output(0), to.output(1), size];
        let defines =
            Defines::new().set("THREADS", threads).set("HALVES_SWAPPED", self.order == Int8Order::HalvesSwapped);
        let text = KernelText { name: "quantize", parts: &[wgsl!("linear/quantize.wgsl")], defines, turns: 0 };
        to.emit(text, &[bindings], grid)
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        for (block, x) in inputs[0].f32().chunks_exact(32).enumerate() {
            let peak = x.iter().fold(0f32, |m, v| m.max(v.abs()));
            let inverse = if peak == 0.0 { 0.0 } else { 127.0 / peak };
            let codes: Vec<i32> = x.iter().map(|v| (v * inverse).round_ties_even() as i32).collect();
            for (i, four) in codes.chunks_exact(4).enumerate() {
                outputs[0].u32_mut()[block * 8 + i] =
                    u32::from_le_bytes(self.order.reorder([0, 1, 2, 3].map(|j| four[j] as u8)));
            }
            let d = peak / 127.0;
            let sum = |half: &[i32]| d * half.iter().sum::<i32>() as f32;
            outputs[1].f32_mut()[block * 4..][..4].copy_from_slice(&[
                d,
                sum(&codes[..16]),
                sum(&codes[16..]),
                sum(&codes),
            ]);
        }
    }
}
