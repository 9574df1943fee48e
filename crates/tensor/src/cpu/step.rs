//! One op of a plan while the CPU computes it.

use super::Cpu;
use crate::graph::{Operand, Values};

/// The tensors of one op, and the device.
pub struct CpuStep<'a> {
    /// The inputs. One that is also an output has no values here: they are in the output.
    pub inputs: &'a [Operand<'a>],
    /// The outputs: their earlier values where they are updated in place, otherwise anything.
    pub outputs: &'a mut [Values],
    /// For each input, the number of the output that is the same tensor.
    pub(super) updated: &'a [Option<usize>],
    /// For each output, whether no earlier op wrote it.
    pub(super) fresh: &'a [bool],
    /// The device.
    pub cpu: &'a Cpu,
}

impl CpuStep<'_> {
    /// Computes the op by its reference, on one thread.
    pub fn by_reference(&mut self, reference: &dyn Fn(&[Operand<'_>], &mut [Values])) {
        for (output, _) in self.outputs.iter_mut().zip(self.fresh).filter(|(_, fresh)| **fresh) {
            *output = Values::zeros(output.len(), output.dtype());
        }
        let copies: Vec<Option<Values>> =
            self.updated.iter().map(|output| output.map(|output| self.outputs[output].clone())).collect();
        let mut inputs = Vec::with_capacity(self.inputs.len());
        for (input, copy) in self.inputs.iter().zip(&copies) {
            inputs.push(Operand { shape: input.shape, values: copy.as_ref().unwrap_or(input.values) });
        }
        reference(&inputs, self.outputs);
    }
}
