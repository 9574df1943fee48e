//! Cases of training: each records a small computation and its gradients. On the device the gradients are compared with
//! the interpreter's; on the host these are compared with finite differences of the forward references.

pub(crate) mod f16;
mod full;
mod gated;
pub(crate) mod gradient;
pub(crate) mod layers;
pub(crate) mod ops;

use bayan_gpu::GpuError;

use gradient::zeros;
pub use gradient::{Difference, Differentiated, GradientCase, finite_differences};

use crate::graph::Graph;
use crate::ops::{Arenas, Hyper};
use crate::suite::case::{Case, RandomTensors, Recorded, case};

/// All gradients.
pub fn gradient_cases() -> Vec<GradientCase> {
    let mut all = ops::element_cases();
    all.extend(ops::linear_cases());
    all.extend(ops::product_cases());
    all.extend(ops::attention_cases());
    all.extend(ops::recurrent_cases());
    all.extend(gated::cases());
    all.extend(ops::loss_cases());
    all.extend(layers::cases());
    all.extend(full::cases());
    all.extend(f16::gradient_cases());
    all
}

/// The gradients and the optimizer, as kernels that are compared with their references.
pub fn cases() -> Vec<Case> {
    let mut all: Vec<Case> = gradient_cases().into_iter().map(kernels).collect();
    for (len, max_norm, window) in [(64, 1.0, 1 << 20), (10_000, 0.5, 1 << 20), (777, 0.0, 1 << 20), (777, 0.7, 256)] {
        all.push(case(format!("adamw {len}, norm {max_norm}, {window} at a time"), 1e-11, move |make| {
            adamw_case(make, len, max_norm, window)
        }));
    }
    super::choose_for_repeats(&mut all);
    all
}

/// Compares a gradient's kernels with their references.
pub(super) fn kernels(gradient: GradientCase) -> Case {
    case(gradient.name, gradient.bound, move |make| {
        let made = (gradient.record)(make)?;
        let outputs = made.gradients.iter().map(|g| g.1).collect();
        Ok((made.graph, outputs))
    })
}

fn adamw_case(make: &mut RandomTensors<'_>, len: usize, max_norm: f64, window: usize) -> Result<Recorded, GpuError> {
    let mut graph = Graph::new();
    let second: Vec<f32> = make.numbers(len, false).iter().map(|v| v * v).collect();
    let arenas = Arenas {
        parameters: make.random(&[len])?,
        gradients: make.random(&[len])?,
        first: make.random(&[len])?,
        second: make.state(&[len], second)?,
        decayed: len / 3,
    };
    let hyper = Hyper {
        learning_rate: 1e-2,
        betas: (0.9, 0.999),
        eps: 1e-8,
        weight_decay: 0.1,
        max_norm,
        update: 3,
        loss_scale: if len == 777 { 8.0 } else { 1.0 },
    };
    let hyper = make.state(&[Hyper::LEN], hyper.numbers().to_vec())?;
    let norm = zeros(make, &[4])?;
    graph.adamw_in_windows(&arenas, &hyper, &norm, window);
    let outputs = [&norm, &arenas.parameters, &arenas.first, &arenas.second].map(|state| graph.state(state));
    Ok((graph, outputs.to_vec()))
}
