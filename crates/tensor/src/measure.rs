//! Measures a few kernel shapes on a device to find the fastest.

use std::collections::HashMap;
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

/// How much is multiplied in one measured pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Work {
    /// Bytes of weights: the matrices are read again until these are reached.
    bytes: u64,
    /// Dispatches that are made at least.
    dispatches: usize,
    /// Whether the pass ends with the last matrix that fits into `bytes`, even if that makes fewer dispatches.
    at_most: bool,
}

/// Devices with timestamps measure kernels alone, and read more than fits into any cache. Elsewhere the wall clock
/// includes the submission, and software devices take a second for as little as this.
fn work(capabilities: &Capabilities) -> Work {
    if capabilities.timestamps && !capabilities.software {
        Work { bytes: 512 << 20, dispatches: 24, at_most: false }
    } else {
        Work { bytes: 64 << 20, dispatches: 1, at_most: true }
    }
}

/// Another shape replaces the default only if its time is less than this part of the default's, so that the choice does
/// not change with noise.
const CLEARLY_FASTER: f64 = 0.97;

/// Measures the shapes of the by-rows linear kernel for one token, on matrices of a model, and returns the fastest
/// first; the default is first unless another is clearly faster. `now_ms` is a clock, for devices without timestamps.
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
    let chosen =
        chosen(&matrices.iter().map(|matrix| matrix.size_bytes()).collect::<Vec<_>>(), work(gpu.capabilities()));
    for shape in candidates(gpu.capabilities()) {
        let (plan, output) = plan(gpu, chosen.iter().map(|&index| &matrices[index]), shape)?;
        let mut best = f64::INFINITY;
        let mut found = Vec::new();
        for repetition in 0..4 {
            let start = now_ms();
            for read in plan.submit(gpu, 1, &[plan.read_request(output)]) {
                found = Values::from_bytes(&read.wait().await?, Dtype::F32).f32().to_vec();
            }
            let mut elapsed_ms = now_ms() - start;
            // The first run compiles the kernels and is not measured.
            if repetition == 0 {
                continue;
            }
            if gpu.capabilities().timestamps && !gpu.capabilities().software {
                let kernels: f64 = plan.profile(gpu, 1).await?.iter().map(|time| time.elapsed_ms).sum();
                // Some drivers have timestamps that do not move.
                elapsed_ms = if kernels > 0.0 { kernels } else { elapsed_ms };
            }
            best = best.min(elapsed_ms);
        }
        let reference = expected.get_or_insert_with(|| found.clone());
        if nmse(reference, &found) < 1e-6 {
            measured.push(Measured { shape, elapsed_ms: best });
        }
    }
    order(&mut measured);
    Ok(measured)
}

/// Sorts the times, of which the first is the default's, so that the shape to use is first.
fn order(measured: &mut [Measured]) {
    let Some(default) = measured.first().copied() else { return };
    let time = |m: &Measured| m.elapsed_ms * if m.shape == default.shape { CLEARLY_FASTER } else { 1.0 };
    measured.sort_by(|a, b| time(a).total_cmp(&time(b)));
}

/// Which matrices of these sizes make up a pass; some several times, one after the other.
fn chosen(sizes: &[u64], work: Work) -> Vec<usize> {
    let (mut list, mut bytes) = (Vec::new(), 0);
    if work.at_most {
        for (index, &size) in sizes.iter().enumerate() {
            if bytes == 0 || bytes + size <= work.bytes {
                list.push(index);
                bytes += size;
            }
        }
        return list;
    }
    let most = MOST_DISPATCHES.max(work.dispatches);
    for index in (0..sizes.len()).cycle() {
        if list.len() == most || (bytes >= work.bytes && list.len() >= work.dispatches) {
            break;
        }
        list.push(index);
        bytes += sizes[index];
    }
    list
}

/// The most dispatches of a pass, for models so small that their matrices do not add up to much.
const MOST_DISPATCHES: usize = 512;

/// A plan that multiplies one token by each of the matrices.
fn plan<'a>(
    gpu: &Gpu,
    matrices: impl Iterator<Item = &'a Arc<Matrix>>,
    shape: RowsShape,
) -> Result<(Plan, Tensor), GpuError> {
    let mut graph = Graph::new();
    let mut output = None;
    let mut inputs: HashMap<usize, Arc<State>> = HashMap::new();
    for matrix in matrices {
        let columns = matrix.columns();
        let x = match inputs.get(&columns) {
            Some(x) => x.clone(),
            None => {
                let values = (0..columns).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
                State::new(Some(gpu), "tuning", &[1, columns], Values::F32(values))?
            }
        };
        inputs.insert(columns, x.clone());
        let x = graph.state(&x);
        output = Some(graph.linear(x, matrix, None));
    }
    let output = output.ok_or_else(|| GpuError::Validation("a model without matrices cannot be tuned".into()))?;
    let tuning = Tuning { rows: Some(shape), ..Tuning::defaults(gpu.capabilities()) };
    Ok((Plan::new(gpu, graph, &[output], &tuning)?, output))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_reads_enough_or_no_more_than_fits() {
        let much = Work { bytes: 100, dispatches: 4, at_most: false };
        assert_eq!(chosen(&[30, 20], much), [0, 1, 0, 1]);
        assert_eq!(chosen(&[1000, 1000], much), [0, 1, 0, 1], "enough dispatches");
        assert_eq!(chosen(&[10], much).len(), 10, "enough bytes");
        assert_eq!(chosen(&[0], much).len(), MOST_DISPATCHES);
        assert!(chosen(&[], much).is_empty());
        let little = Work { bytes: 100, dispatches: 1, at_most: true };
        assert_eq!(chosen(&[500, 60, 40, 1], little), [0]);
        assert_eq!(chosen(&[60, 50, 40, 1], little), [0, 2]);
    }

    #[test]
    fn the_default_stays_unless_another_is_clearly_faster() {
        let shape = |parts| RowsShape { lanes: 32, parts, columns: 8, sets: 1, shuffle: false };
        let first = |times: [f64; 3]| {
            let mut measured: Vec<_> = (times.iter().zip([8, 4, 2]))
                .map(|(&elapsed_ms, parts)| Measured { shape: shape(parts), elapsed_ms })
                .collect();
            order(&mut measured);
            measured[0].shape.parts
        };
        assert_eq!(first([1.0, 0.99, 1.2]), 8);
        assert_eq!(first([1.0, 0.9, 0.95]), 4);
        assert_eq!(first([1.0, 1.1, 0.5]), 2);
    }
}
