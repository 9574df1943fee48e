//! Dropout whose mask is a hash of a seed and the element's index: recomputing a layer gives the same mask, and no mask
//! is stored.

use std::sync::Arc;

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::graph::{Graph, Op, Operand, State, Tensor, Values};
use crate::passes::{Backward, BackwardError};
use crate::plan::{KernelText, Lowering, grid};

/// y\[i\] = x\[i\] / (1 − p), or 0 with probability p; inputs x and seed \[1\].
#[derive(Debug, Clone)]
pub struct Dropout {
    /// Probability that an element is set to zero.
    pub p: f32,
    /// Gives each layer of a step a different mask.
    pub salt: u32,
    /// \[1\] u32, which changes with every step.
    pub seed: Arc<State>,
}

impl Graph {
    /// x with some elements set to zero and the others scaled up.
    pub fn dropout(&mut self, x: Tensor, dropout: &Dropout) -> Tensor {
        let shape = self.shape(x).to_vec();
        let seed = self.state(&dropout.seed);
        self.apply(dropout.clone(), &[x, seed], &shape)
    }
}

/// A 32-bit hash (the finalizer of MurmurHash3, Appleby 2011, twice); the shader computes the same.
pub(super) fn hash(seed: u32, i: u32) -> u32 {
    let mix = |mut h: u32| {
        h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
        h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
        h ^ (h >> 16)
    };
    mix(mix(i.wrapping_add(0x9e37_79b9)) ^ seed)
}

impl Dropout {
    /// Elements with a hash below this are set to zero.
    fn threshold(&self) -> u32 {
        (f64::from(self.p) * 4_294_967_296.0).min(4_294_967_295.0) as u32
    }

    fn kept(&self) -> f32 {
        (1.0 / (1.0 - f64::from(self.p))) as f32
    }
}

impl Op for Dropout {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "dropout"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let len: usize = to.output_shape(0).iter().product();
        let threads = grid::row_threads(to, 64);
        let (grid, stride) = grid::flat_grid(to, len, threads);
        let size = to.numbers(&[len as u32, stride, self.threshold(), self.salt])?;
        let defines = Defines::new().set("THREADS", threads).set("KEPT", self.kept());
        let bindings = vec![to.input(0), to.input(1), to.output(0), size];
        let parts = [wgsl!("lib/hash.wgsl"), wgsl!("training/dropout.wgsl")];
        to.emit(KernelText { name: "dropout", parts: &parts, defines, turns: 0 }, &[bindings], grid)
    }

    fn backward(&self, to: &mut Backward<'_>) -> Result<(), BackwardError> {
        let x = to.input(0);
        if let (Some(gradient), true) = (to.gradient(0), to.requires_grad(x)) {
            let masked = to.graph().dropout(gradient, self);
            to.pass(masked, x);
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let seed = inputs[1].u32()[0] ^ self.salt.wrapping_mul(0x9e37_79b9);
        for (i, (y, &x)) in outputs[0].f32_mut().iter_mut().zip(inputs[0].f32()).enumerate() {
            *y = if hash(seed, i as u32) < self.threshold() { 0.0 } else { x * self.kept() };
        }
    }
}
