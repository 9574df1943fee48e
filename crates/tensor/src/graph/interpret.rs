//! Runs a graph on the host through each op's `reference`. The kernels are checked against these results.

use super::Graph;
use super::op::Operand;
use super::tensor::Tensor;
use super::values::Values;

/// Runs every node in order; returns the values of all tensors by index. States are read from and written back to the
/// host.
///
/// # Panics
/// If a state of the graph exists only on a device.
pub fn interpret(graph: &Graph) -> Vec<Option<Values>> {
    let mut values: Vec<Option<Values>> = graph
        .tensors()
        .iter()
        .map(|info| {
            info.state
                .as_ref()
                .map(|state| state.host().unwrap_or_else(|| panic!("state `{}` is not on the host", state.label())))
        })
        .collect();
    for node in graph.nodes() {
        let mut outputs: Vec<Values> = node.outputs.iter().map(|&t| output_before(graph, &mut values, t)).collect();
        let operand = |&tensor: &Tensor| Operand {
            shape: graph.shape(tensor),
            values: values[tensor.index()]
                .as_ref()
                .unwrap_or_else(|| panic!("{}: input {} was not computed", node.op.name(), tensor.index())),
        };
        let inputs: Vec<Operand<'_>> = node.inputs.iter().map(operand).collect();
        node.op.reference(&inputs, &mut outputs);
        for (&tensor, value) in node.outputs.iter().zip(outputs) {
            values[tensor.index()] = Some(value);
        }
    }
    for (info, value) in graph.tensors().iter().zip(&values) {
        if let (Some(state), Some(value)) = (&info.state, value) {
            state.set_host(value.clone());
        }
    }
    values
}

fn output_before(graph: &Graph, values: &mut [Option<Values>], tensor: Tensor) -> Values {
    let info = graph.info(tensor);
    // A tensor that already has values is being updated in place.
    values[tensor.index()].clone().unwrap_or_else(|| Values::zeros(info.len(), info.dtype))
}

/// Σ(a−b)² / Σa²: the normalised mean square error of `b` against `a`. Infinite when `b` has a NaN, or when `a` is zero
/// and `b` is not.
pub fn nmse(reference: &[f32], other: &[f32]) -> f64 {
    assert_eq!(reference.len(), other.len(), "lengths");
    let error: f64 = reference.iter().zip(other).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    let size: f64 = reference.iter().map(|&a| f64::from(a).powi(2)).sum();
    match (error.is_finite(), size > 0.0) {
        (false, _) => f64::INFINITY,
        (true, true) => error / size,
        (true, false) if error == 0.0 => 0.0,
        (true, false) => f64::INFINITY,
    }
}
