//! A computation with its gradients, and the finite differences with which they are compared.

use std::sync::Arc;

use bayan_gpu::GpuError;

use crate::graph::{Dtype, Graph, State, Tensor, Values, interpret};
use crate::passes::BackwardOptions;
use crate::suite::case::RandomTensors;

/// A computation with its gradients.
pub struct Differentiated {
    /// Forward, then backward.
    pub graph: Graph,
    /// The result of the forward pass.
    pub y: Tensor,
    /// The function that is differentiated is Σ cotangent · y; `None`: the first element of y.
    pub cotangent: Option<Arc<State>>,
    /// The states by which the function is differentiated, with their gradients.
    pub gradients: Vec<(Arc<State>, Tensor)>,
}

/// One case.
pub struct GradientCase {
    /// The operation, then what is special about the case.
    pub name: String,
    /// Largest permitted NMSE of the kernels against the references.
    pub bound: f64,
    /// Whether the case is small and smooth enough for finite differences.
    pub small: bool,
    pub(crate) record: Box<dyn Fn(&mut RandomTensors<'_>) -> Result<Differentiated, GpuError> + Send + Sync>,
}

/// The result of [`finite_differences`]: the largest relative error (L2) of any gradient, and the index of that
/// gradient.
#[derive(Debug, Clone)]
pub struct Difference {
    /// Relative error.
    pub error: f64,
    /// Index of the gradient.
    pub gradient: usize,
}

pub(crate) fn zeros(make: &RandomTensors<'_>, shape: &[usize]) -> Result<Arc<State>, GpuError> {
    State::zeros(make.gpu, "gradient", shape, Dtype::F32)
}

/// Differentiates the recorded operations, for a random cotangent.
pub(crate) fn differentiate(
    make: &mut RandomTensors<'_>,
    mut graph: Graph,
    y: Tensor,
    by: Vec<Arc<State>>,
    recompute: bool,
) -> Result<Differentiated, GpuError> {
    let shape = graph.shape(y).to_vec();
    let cotangent = make.random(&shape)?;
    let gradients: Vec<Arc<State>> = by.iter().map(|state| zeros(make, state.shape())).collect::<Result<_, _>>()?;
    let parameters: Vec<_> = by.iter().cloned().zip(gradients.iter().cloned()).collect();
    let seed = graph.state(&cotangent);
    if let Err(error) = graph.backward(&[(y, seed)], &parameters, BackwardOptions { recompute }) {
        unreachable!("cases are differentiable: {error}");
    }
    let gradients = by.into_iter().zip(gradients.iter().map(|g| graph.state(g))).collect();
    Ok(Differentiated { graph, y, cotangent: Some(cotangent), gradients })
}

pub(crate) fn gradient(
    name: impl Into<String>,
    small: bool,
    record: impl Fn(&mut RandomTensors<'_>, &mut Graph) -> Result<(Tensor, Vec<Arc<State>>), GpuError>
    + Send
    + Sync
    + 'static,
) -> GradientCase {
    let whole = move |make: &mut RandomTensors<'_>| {
        let mut graph = Graph::new();
        let (y, by) = record(make, &mut graph)?;
        differentiate(make, graph, y, by, false)
    };
    GradientCase { name: name.into(), bound: 1e-10, small, record: Box::new(whole) }
}

/// Half the distance between the two inner probes of a difference.
const STEP: f32 = 0.03;

/// Compares a case's gradients, as the references compute them, with fourth-order central differences of the forward
/// references.
///
/// # Errors
/// Never on the host; recording has this signature.
pub fn finite_differences(case: &GradientCase, seed: u64) -> Result<Difference, GpuError> {
    let made = (case.record)(&mut RandomTensors { gpu: None, seed })?;
    let initial: Vec<Values> = made.graph.tensors().iter().filter_map(|info| info.state.as_ref()?.host()).collect();
    let states: Vec<Arc<State>> = made.graph.tensors().iter().filter_map(|info| info.state.clone()).collect();
    // A run changes states (gradients, the cache), so they are restored before every run.
    let restore = || states.iter().zip(&initial).for_each(|(state, values)| state.write(None, 0, values.bytes()));
    let run = |graph: &Graph| {
        restore();
        interpret(graph)
    };
    let values = run(&made.graph);
    let found: Vec<Vec<f32>> = made
        .gradients
        .iter()
        .map(|(_, g)| values[g.index()].as_ref().map(|v| v.f32().to_vec()).unwrap_or_default())
        .collect();
    let cotangent = made.cotangent.as_ref().and_then(|state| state.host());
    let function = |graph: &Graph| {
        let values = interpret(graph);
        let y = values[made.y.index()].as_ref().map(|v| v.f32().to_vec()).unwrap_or_default();
        match &cotangent {
            Some(c) => y.iter().zip(c.f32()).map(|(&y, &c)| f64::from(y) * f64::from(c)).sum::<f64>(),
            None => f64::from(y[0]),
        }
    };
    // Every y is rounded to f32, and so are intermediate sums. The error that this leaves in a difference quotient is
    // subtracted from that of the gradient.
    let y = values[made.y.index()].as_ref().map(|v| v.f32().to_vec()).unwrap_or_default();
    let parts = y
        .iter()
        .enumerate()
        .map(|(i, &y)| (f64::from(y) * cotangent.as_ref().map_or(1.0, |c| f64::from(c.f32()[i]))).powi(2));
    let noise = 4.0 * f64::from(f32::EPSILON) * parts.sum::<f64>().sqrt() / f64::from(STEP);
    let mut worst = Difference { error: 0.0, gradient: 0 };
    for (index, (state, _)) in made.gradients.iter().enumerate() {
        let at: Vec<f32> = state.host().map(|v| v.f32().to_vec()).unwrap_or_default();
        let (mut error, mut size) = (0.0, 0.0);
        for i in 0..at.len() {
            // Skips the padding of a matrix; a nonzero gradient there would be probed and reported as an error.
            if at[i] == 0.0 && found[index][i] == 0.0 {
                continue;
            }
            let probe = |factor: f32| {
                restore();
                state.write(None, i, bytemuck::bytes_of(&(at[i] + factor * STEP)));
                function(&made.graph)
            };
            let slope = (8.0 * (probe(1.0) - probe(-1.0)) - (probe(2.0) - probe(-2.0))) / (12.0 * f64::from(STEP));
            error += (slope - f64::from(found[index][i])).powi(2);
            size += slope * slope;
        }
        let relative = (error.sqrt() - noise * (at.len() as f64).sqrt()).max(0.0) / size.sqrt().max(1e-6);
        if relative.is_nan() || relative > worst.error {
            worst = Difference { error: relative, gradient: index };
        }
    }
    restore();
    Ok(worst)
}
