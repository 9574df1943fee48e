//! Converts rows to f16 and back: half the memory, with one power of two stored per row.
//!
//! The power makes f16 safe for any tensor: residual streams can exceed 65504, the largest f16 (Gemma's do), and
//! gradients can be too small for f16. Values down to 2⁻²⁹ of their row's largest keep 11 bits. Rejected: bf16, which
//! needs no power but keeps only 8 bits; and scales that are no powers of two, which would round twice.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::graph::{Dtype, Graph, Op, Operand, Tensor, Values, pack_f16, unpack_f16};
use crate::plan::{Extent, KernelText, Lowering, grid, grid_2d};

/// Input x [R, W]; output [R, ⌈W / 2⌉ + 1] words: two f16 in each, the first in the low half, and in the last word of
/// each row the power of two by which they are multiplied. Infinities and NaNs are preserved.
#[derive(Debug, Clone, PartialEq)]
pub struct ToF16 {
    /// Whether rows are filled up with zeros to whole blocks of 32 values and 4 words, so that kernels can read
    /// vectors: 16 ⌈W / 32⌉ + 4 words.
    pub padded: bool,
}

/// The inverse of [`ToF16`] without padding: its output and input exchanged.
#[derive(Debug, Clone, PartialEq)]
pub struct FromF16;

/// Lower bound of the (biased f32) exponent of a row's largest value, so that the power and its inverse are normal
/// numbers.
const LEAST_EXPONENT: u32 = 27;
/// The exponent of two to which the largest value of a row is scaled.
const MOST_EXPONENT: u32 = 14;

impl ToF16 {
    /// Number of words in a row of `width` values, without padding.
    pub fn words(width: usize) -> usize {
        width.div_ceil(2) + 1
    }

    /// Number of words in a padded row of `width` values.
    pub fn padded_words(width: usize) -> usize {
        width.div_ceil(32) * 16 + 4
    }
}

/// The values of rows of `width` that [`ToF16`] packed, padded or not.
pub(crate) fn unpack_rows(packed: &Operand<'_>, width: usize) -> Vec<f32> {
    let words = packed.width();
    let of_row = |row: &[u32]| {
        let power = f32::from_bits(row[words - 1]);
        (0..width).map(|i| power * unpack_f16(row[i / 2])[i % 2]).collect::<Vec<f32>>()
    };
    packed.u32().chunks_exact(words).flat_map(of_row).collect()
}

impl Graph {
    /// x [.., W] as f16 in words [R, ⌈W / 2⌉ + 1], where R is the product of the other sizes.
    pub fn to_f16(&mut self, x: Tensor) -> Tensor {
        let shape = [self.rows(x), ToF16::words(self.width(x))];
        let packed = self.tensor(&shape, Dtype::U32);
        self.record(ToF16 { padded: false }, &[x], &[packed]);
        packed
    }

    /// Converts the output of [`Graph::to_f16`] back to a tensor of this shape in f32.
    pub fn from_f16(&mut self, packed: Tensor, shape: &[usize]) -> Tensor {
        let width = shape.last().copied().unwrap_or(1);
        assert_eq!(
            self.info(packed).len() * width,
            shape.iter().product::<usize>() * ToF16::words(width),
            "from_f16: sizes"
        );
        self.apply(FromF16, &[packed], shape)
    }
}

fn emit(to: &mut Lowering<'_>, name: &str, parts: &[&str], shape: &[usize], words: usize) -> Result<(), GpuError> {
    let width = shape.last().copied().unwrap_or(1);
    let rows: usize = shape.iter().product::<usize>() / width;
    let threads = grid::row_threads(to, width.div_ceil(2));
    let defines = grid::reduction(to, Defines::new().set("W", width).set("WORDS", words), threads);
    let grid = grid_2d(rows, to.capabilities().max_workgroups);
    let Extent::Fixed(x) = grid[0] else { unreachable!("fixed") };
    let size = to.numbers(&[rows as u32, x])?;
    let bindings = vec![to.input(0), to.output(0), size];
    let turns = grid::walk(width, threads) + grid::walk(words, threads) + grid::REDUCTION;
    to.emit(KernelText { name, parts, defines, turns }, &[bindings], grid)
}

impl Op for ToF16 {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "to_f16"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let parts = [wgsl!("lib/reduce.wgsl"), wgsl!("training/to_f16.wgsl")];
        let words = to.output_shape(0)[1];
        emit(to, "to_f16", &parts, to.input_shape(0), words)
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let width = inputs[0].width();
        let words = if self.padded { ToF16::padded_words(width) } else { ToF16::words(width) };
        for (x, y) in inputs[0].rows().zip(outputs[0].u32_mut().chunks_exact_mut(words)) {
            let peak = x.iter().filter(|v| v.is_finite()).fold(0f32, |peak, v| peak.max(v.abs()));
            let exponent = (peak.to_bits() >> 23).max(LEAST_EXPONENT);
            let power = (exponent - MOST_EXPONENT) << 23;
            let inverse = f32::from_bits((254 + MOST_EXPONENT - exponent) << 23);
            // The largest finite values would be rounded up to 2¹²⁸, which is infinite.
            let most = if exponent == 254 { 32752.0 } else { 32768.0 };
            let within = |v: f32| if v.is_finite() { (v * inverse).clamp(-most, most) } else { v };
            let scaled = |i: usize| x.get(i).map_or(0.0, |&v| within(v));
            for (i, word) in y[..words - 1].iter_mut().enumerate() {
                *word = pack_f16(scaled(2 * i), scaled(2 * i + 1));
            }
            y[words - 1] = power;
        }
    }
}

impl Op for FromF16 {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "from_f16"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let words = to.input_shape(0)[1];
        emit(to, "from_f16", &[wgsl!("training/from_f16.wgsl")], to.output_shape(0), words)
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let width = outputs[0].len() / inputs[0].shape[0].max(1);
        outputs[0].f32_mut().copy_from_slice(&unpack_rows(&inputs[0], width));
    }
}
