//! The type of a test case, and the random tensors of which cases consist.

use std::sync::Arc;

use bayan_gpu::{Gpu, GpuError};
use bayan_weights::{FORMATS, Format, Planes};

use crate::graph::{Dtype, Graph, Matrix, MatrixBuilder, State, Tensor, Values};

/// What a case records: the graph, and the tensors to compare.
pub type Recorded = (Graph, Vec<Tensor>);

/// One case.
pub struct Case {
    /// The operation, then what is special about the case.
    pub name: String,
    /// Largest permitted NMSE against the reference.
    pub bound: f64,
    /// Whether the case also runs where a form of the kernels repeats another with a feature less. There, a fifth of
    /// the cases is enough: compiling kernels takes most of the suite's time.
    pub in_repeats: bool,
    /// Number of cached positions of the longest sequence after the case.
    pub(crate) cached: usize,
    pub(crate) record: Box<dyn Fn(&mut RandomTensors<'_>) -> Result<Recorded, GpuError>>,
}

/// The result of a case on a device.
#[derive(Debug, Clone)]
pub struct CaseResult {
    /// The case's name.
    pub name: String,
    /// Largest NMSE of its outputs.
    pub nmse: f64,
    /// Largest permitted NMSE.
    pub bound: f64,
}

impl CaseResult {
    /// Whether the kernel agrees with its reference.
    pub fn passed(&self) -> bool {
        self.nmse <= self.bound
    }
}

/// Makes reproducible random tensors on the device or on the host.
pub struct RandomTensors<'a> {
    pub(crate) gpu: Option<&'a Gpu>,
    pub(crate) seed: u64,
}

impl RandomTensors<'_> {
    fn next(&mut self) -> f32 {
        // SplitMix64 (Steele, Lea and Flood, 2014); the sum of twelve uniform numbers is approximately normal.
        let mut sum = 0.0;
        for _ in 0..12 {
            self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.seed;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            sum += ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32;
        }
        sum - 6.0
    }

    /// Normal numbers; with `massive`, one channel in 37 is a thousand times larger.
    pub(crate) fn numbers(&mut self, len: usize, massive: bool) -> Vec<f32> {
        (0..len).map(|i| self.next() * if massive && i % 37 == 5 { 1000.0 } else { 1.0 }).collect()
    }

    pub(crate) fn state(&mut self, shape: &[usize], values: Vec<f32>) -> Result<Arc<State>, GpuError> {
        State::new(self.gpu, "case", shape, Values::F32(values))
    }

    pub(crate) fn random(&mut self, shape: &[usize]) -> Result<Arc<State>, GpuError> {
        let values = self.numbers(shape.iter().product(), false);
        self.state(shape, values)
    }

    pub(crate) fn indices(&mut self, shape: &[usize], values: Vec<u32>) -> Result<Arc<State>, GpuError> {
        State::new(self.gpu, "case", shape, Values::U32(values))
    }

    pub(crate) fn matrix(
        &mut self,
        format: &'static dyn Format,
        rows: usize,
        columns: usize,
    ) -> Result<Arc<Matrix>, GpuError> {
        let values: Vec<f32> = self.numbers(rows * columns, false).iter().map(|v| v * 0.05).collect();
        self.matrix_of(format, rows, columns, &values)
    }

    /// Whole numbers from minus `most` to `most`.
    pub(crate) fn whole_numbers(&mut self, len: usize, most: f32) -> Vec<f32> {
        (0..len).map(|_| (self.next() * most / 2.0).round().clamp(-most, most)).collect()
    }

    pub(crate) fn matrix_of(
        &mut self,
        format: &'static dyn Format,
        rows: usize,
        columns: usize,
        values: &[f32],
    ) -> Result<Arc<Matrix>, GpuError> {
        let mut planes = Planes::new(format, columns);
        if let Err(error) = planes.push_rows(values, None) {
            unreachable!("normal numbers fit every format: {error:?}");
        }
        let mut builder = MatrixBuilder::new(self.gpu, "case", format, rows, columns)?;
        builder.push(&planes);
        Ok(builder.finish())
    }

    /// A stacked matrix of 64, 32 and 33 rows in formats of these names.
    pub(crate) fn stacked(&mut self, names: &[&str; 3], columns: usize) -> Result<Arc<Matrix>, GpuError> {
        let mut parts = Vec::new();
        for (name, rows) in names.iter().zip([64, 32, 33]) {
            let format = FORMATS.iter().find(|format| format.name() == *name).unwrap_or(&FORMATS[0]);
            parts.push(self.matrix(*format, rows, columns)?);
        }
        Ok(Matrix::stacked(parts))
    }
}

impl RandomTensors<'_> {
    /// A trained matrix, and the state of its values.
    pub(crate) fn trained_matrix(
        &mut self,
        rows: usize,
        columns: usize,
    ) -> Result<(Arc<Matrix>, Arc<State>), GpuError> {
        let values: Vec<f32> = self.numbers(rows * columns, false).iter().map(|v| v * 0.3).collect();
        let state = State::zeros(self.gpu, "matrix", &[crate::graph::packed_len(rows, columns)], Dtype::F32)?;
        let mut planes = Planes::new(FORMATS[0], columns);
        if let Err(error) = planes.push_rows(&values, None) {
            unreachable!("normal numbers fit every format: {error:?}");
        }
        let mut builder = MatrixBuilder::trained(self.gpu, "case", rows, columns, &state)?;
        builder.push(&planes);
        Ok((builder.finish(), state))
    }
}

pub(crate) fn case(
    name: impl Into<String>,
    bound: f64,
    record: impl Fn(&mut RandomTensors<'_>) -> Result<Recorded, GpuError> + 'static,
) -> Case {
    Case { name: name.into(), bound, in_repeats: true, cached: 512, record: Box::new(record) }
}
