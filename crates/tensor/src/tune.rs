//! Kernel shapes for a device: sensible ones without measuring, and the best of a few by measuring.

use std::sync::Arc;

use bayan_gpu::{Capabilities, Gpu, GpuError};

use crate::graph::{Dtype, Graph};
use crate::interpret::nmse;
use crate::matrix::Matrix;
use crate::plan::Plan;
use crate::state::State;
use crate::values::Values;

/// The shape of the linear kernel that works by rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RowsShape {
    /// Invocations that share a group of 32 rows: a divisor of 32.
    pub lanes: usize,
    /// Sets of lanes that share K.
    pub parts: usize,
    /// Tokens of one workgroup.
    pub columns: usize,
    /// Sets of 32 rows of one workgroup, from as many equal parts of the matrix; 1 where its rows cannot be so divided,
    /// 2 with a gate.
    pub sets: usize,
    /// Inputs are read once a subgroup and passed around; needs lanes = subgroup size and one part.
    pub shuffle: bool,
}

impl RowsShape {
    /// The WGSL function that passes a value around, for `shuffle`.
    pub(crate) fn pass(&self) -> &'static str {
        if self.lanes == 4 { "quadBroadcast" } else { "subgroupShuffle" }
    }
}

/// The chosen shapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuning {
    /// Rewrite operations into fused ones.
    pub fuse: bool,
    /// Chosen shape of the linear kernel by rows; `None`: the default of the device.
    pub rows: Option<RowsShape>,
}

impl Tuning {
    /// Sensible shapes for this device, without measuring.
    pub fn defaults(_capabilities: &Capabilities) -> Tuning {
        Tuning { fuse: true, rows: None }
    }

    /// The shape of the linear kernel by rows.
    ///
    /// Software devices pay for each load instruction (a loop over the lanes) and each barrier, not for bytes: the
    /// lanes of one subgroup, eight rows each, inputs passed around by shuffles. Measured on Mesa 22.3 (subgroups of
    /// 8): 0.09 ns a weight and token against 0.24 with one row an invocation. On SwiftShader (subgroups of 4) passing
    /// an input around costs 2.6 ns, its product with a weight 0.18 and unpacking a weight 0.8; this is for few tokens
    /// there, more are swept over (`linear_sweep.wgsl`). Real devices want one row an invocation, so that neighbours
    /// read neighbouring words, and K split to have enough of them.
    pub fn rows_shape(&self, capabilities: &Capabilities) -> RowsShape {
        let (smallest, largest) = capabilities.subgroup_size;
        self.rows.unwrap_or(match capabilities.software {
            true if capabilities.subgroups && smallest == largest && matches!(smallest, 4 | 8) => {
                RowsShape { lanes: smallest as usize, parts: 1, columns: 8, sets: smallest as usize / 4, shuffle: true }
            }
            true => RowsShape { lanes: 8, parts: 1, columns: 8, sets: 1, shuffle: false },
            false => RowsShape { lanes: 32, parts: 8, columns: 8, sets: 1, shuffle: false },
        })
    }
}

/// One shape and how long one pass over the measured matrices took with it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// The shape.
    pub shape: RowsShape,
    /// Time of one pass.
    pub elapsed_ms: f64,
}

/// The shapes worth trying on a device; the first is the default.
fn candidates(capabilities: &Capabilities) -> Vec<RowsShape> {
    let default = Tuning::defaults(capabilities).rows_shape(capabilities);
    let mut all = vec![default];
    for (lanes, parts) in [(32, 1), (32, 2), (32, 4), (32, 8), (16, 4), (16, 8), (8, 1), (8, 8), (4, 1)] {
        let shape = RowsShape { lanes, parts, shuffle: false, ..default };
        if lanes * parts <= capabilities.max_workgroup_size as usize && !all.contains(&shape) {
            all.push(shape);
        }
    }
    all
}

/// Bytes of weights that are read in one measured pass, at most: more than caches hold, less than a second on slow
/// devices.
const MEASURED_BYTES: u64 = 64 << 20;

/// Measures the shapes of the linear kernel by rows on matrices of a model, for one token; the fastest is first.
/// `now_ms` is a clock.
///
/// A shape whose results differ from the default's is left out, so that tuning can never choose a wrong kernel.
///
/// # Errors
/// The device fails.
pub async fn measure_rows(
    gpu: &Gpu,
    matrices: &[Arc<Matrix>],
    now_ms: &dyn Fn() -> f64,
) -> Result<Vec<Measured>, GpuError> {
    let mut measured = Vec::new();
    let mut expected: Option<Vec<f32>> = None;
    for shape in candidates(gpu.capabilities()) {
        let (plan, output) = plan(gpu, matrices, shape)?;
        let mut best = f64::INFINITY;
        let mut found = Vec::new();
        for repetition in 0..4 {
            let start = now_ms();
            for read in plan.submit(gpu, 1, &[plan.read_request(output)]) {
                found = Values::from_bytes(&read.wait().await?, Dtype::F32).f32().to_vec();
            }
            // The first run compiles and warms.
            if repetition > 0 {
                best = best.min(now_ms() - start);
            }
        }
        let reference = expected.get_or_insert_with(|| found.clone());
        if nmse(reference, &found) < 1e-6 {
            measured.push(Measured { shape, elapsed_ms: best });
        }
    }
    measured.sort_by(|a, b| a.elapsed_ms.total_cmp(&b.elapsed_ms));
    Ok(measured)
}

/// A graph of products of one token with as many of the matrices as the bytes allow.
fn plan(gpu: &Gpu, matrices: &[Arc<Matrix>], shape: RowsShape) -> Result<(Plan, crate::Tensor), GpuError> {
    let mut graph = Graph::new();
    let mut output = None;
    let mut bytes = 0;
    for matrix in matrices {
        if bytes > 0 && bytes + matrix.size_bytes() > MEASURED_BYTES {
            continue;
        }
        bytes += matrix.size_bytes();
        let values = (0..matrix.columns()).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let x = State::new(Some(gpu), "tuning", &[1, matrix.columns()], Values::F32(values))?;
        let x = graph.state(&x);
        output = Some(graph.linear(x, matrix, None));
    }
    let output = output.ok_or_else(|| GpuError::Validation("a model without matrices cannot be tuned".into()))?;
    let tuning = Tuning { rows: Some(shape), ..Tuning::defaults(gpu.capabilities()) };
    Ok((Plan::new(gpu, graph, &[output], &tuning)?, output))
}
