//! Measures a few kernel shapes on a device to find the fastest.

use std::sync::Arc;

use bayan_gpu::{Capabilities, Gpu, GpuError};

use crate::graph::{Dtype, Graph, Matrix, State, Tensor, Values, nmse};
use crate::plan::{Plan, RowsShape, Tuning};

/// A shape and the time of one pass over the measured matrices with it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// The shape.
    pub shape: RowsShape,
    /// Time of one pass.
    pub elapsed_ms: f64,
}

/// The shapes to measure on a device; the first is the default.
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

/// Upper bound of the weight bytes read in one measured pass: more than fits into caches, less than a second on slow
/// devices.
const MEASURED_BYTES: u64 = 64 << 20;

/// Measures the shapes of the by-rows linear kernel for one token, on matrices of a model, and returns the fastest
/// first. `now_ms` is a clock.
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
            // The first run compiles the kernels and is not measured.
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

/// A plan that multiplies one token by as many of the matrices as fit into `MEASURED_BYTES`.
fn plan(gpu: &Gpu, matrices: &[Arc<Matrix>], shape: RowsShape) -> Result<(Plan, Tensor), GpuError> {
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
