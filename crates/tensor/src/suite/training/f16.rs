//! Cases of training in f16: packing and unpacking of rows, and a list whose saved activations are stored in f16.

use bayan_gpu::GpuError;

use super::gradient::{Differentiated, GradientCase, zeros};
use super::layers::layers;
use crate::graph::Graph;
use crate::passes::{BackwardOptions, store_activations_f16};
use crate::suite::case::{Case, RandomTensors, Recorded, case};

/// Packing and unpacking, compared with the references.
pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (rows, width, massive) in [(1, 64, false), (3, 100, true), (2, 2304, true), (5, 33, false), (70_000, 16, false)]
    {
        let record = move |make: &mut RandomTensors<'_>| -> Result<Recorded, GpuError> {
            let mut graph = Graph::new();
            let values = make.numbers(rows * width, massive);
            let x = make.state(&[rows, width], values)?;
            let x = graph.state(&x);
            let packed = graph.to_f16(x);
            let y = graph.from_f16(packed, &[rows, width]);
            Ok((graph, vec![packed, y]))
        };
        all.push(case(format!("to f16 and back {rows}x{width}"), 1e-14, record));
    }
    all
}

/// Layers and their gradients with saved activations in f16. Kernels and references round alike, except values halfway
/// between two f16 that were summed in another order: each of those differs by 5e-4, and gradients whose terms nearly
/// cancel by several times as much.
pub(crate) fn gradient_cases() -> Vec<GradientCase> {
    let record = |recompute: bool| {
        move |make: &mut RandomTensors<'_>| {
            let mut graph = Graph::new();
            let (y, by) = layers(make, &mut graph, 4, 3)?;
            let forward = graph.nodes().len();
            let shape = graph.shape(y).to_vec();
            let cotangent = make.random(&shape)?;
            let gradients = by.iter().map(|state| zeros(make, state.shape())).collect::<Result<Vec<_>, _>>()?;
            let parameters: Vec<_> = by.iter().cloned().zip(gradients.iter().cloned()).collect();
            let seed = graph.state(&cotangent);
            if let Err(error) = graph.backward(&[(y, seed)], &parameters, BackwardOptions { recompute }) {
                unreachable!("cases are differentiable: {error}");
            }
            let mut graph = store_activations_f16(&graph, forward, 3, &[y]);
            let gradients = by.into_iter().zip(gradients.iter().map(|g| graph.state(g))).collect();
            Ok(Differentiated { graph, y, cotangent: Some(cotangent), gradients })
        }
    };
    let case = |recompute| GradientCase {
        name: format!("layers kept in f16, recompute {recompute}"),
        bound: 1e-5,
        small: false,
        record: Box::new(record(recompute)),
    };
    vec![case(false), case(true)]
}
