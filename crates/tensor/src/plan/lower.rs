//! Lowering of operations to dispatches: the interface through which an op emits its kernels.

use bayan_gpu::shader::{Defines, link};
use bayan_gpu::{Capabilities, Dispatch, Gpu, GpuError, Slice};

use super::tuning::Tuning;
use super::turns::TurnCounter;
use crate::graph::{ELEMENT_BYTES, Graph, Node, Tensor};

/// Number of workgroups in one dimension of a grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Known when the plan is made.
    Fixed(u32),
    /// One workgroup for each run of this many cached positions, a partial run included; known when the step is
    /// submitted.
    CachedRuns(u32),
}

impl Extent {
    /// Number of workgroups for a step in which no sequence has more than `cached` positions.
    pub fn resolve(self, cached: usize) -> u32 {
        match self {
            Extent::Fixed(n) => n,
            Extent::CachedRuns(run) => (cached as u32).div_ceil(run).max(1),
        }
    }
}

/// A dispatch whose grid may depend on the step.
#[derive(Debug, Clone)]
pub struct PlannedDispatch {
    /// The dispatch, with the grid for an empty cache.
    pub dispatch: Dispatch,
    /// The grid, which may depend on the step.
    pub grid: [Extent; 3],
    /// Index of the node that emitted the dispatch.
    pub node: usize,
    /// Bytes of all bindings, without those of a cache.
    pub bound_bytes: u64,
}

/// A kernel's WGSL before linking.
#[derive(Debug, Clone)]
pub struct KernelText<'a> {
    /// Name for error messages and profiles.
    pub name: &'a str,
    /// Texts to concatenate.
    pub parts: &'a [&'a str],
    /// Names that the preprocessor replaces.
    pub defines: Defines,
    /// Largest number of iterations (turns) of all loops of one invocation together, including the failing tests that
    /// end the loops. Some software devices silently end an invocation's loops early
    /// ([`Capabilities::max_loop_turns`]).
    pub turns: u64,
}

/// One node while its dispatches are emitted.
pub struct Lowering<'a> {
    gpu: &'a Gpu,
    graph: &'a Graph,
    node: &'a Node,
    node_index: usize,
    places: &'a [Option<Slice>],
    planned: &'a mut Vec<PlannedDispatch>,
    tune: &'a Tuning,
    counter: Option<&'a TurnCounter>,
}

impl<'a> Lowering<'a> {
    pub(crate) fn new(
        gpu: &'a Gpu,
        graph: &'a Graph,
        node_index: usize,
        places: &'a [Option<Slice>],
        planned: &'a mut Vec<PlannedDispatch>,
        tune: &'a Tuning,
        counter: Option<&'a TurnCounter>,
    ) -> Lowering<'a> {
        Lowering { gpu, graph, node: &graph.nodes()[node_index], node_index, places, planned, tune, counter }
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        self.gpu
    }

    /// The device's features and limits.
    pub fn capabilities(&self) -> &'a Capabilities {
        self.gpu.capabilities()
    }

    /// Largest number of loop iterations that one invocation may take.
    pub fn turn_limit(&self) -> u64 {
        self.capabilities().max_loop_turns.unwrap_or(u64::MAX)
    }

    /// How many numbers one dispatch may take without its loops passing the limit of turns, where it takes `fixed`
    /// turns, and `each` more for every `step` numbers: a multiple of `step`, at least one.
    pub(crate) fn piece(&self, fixed: u64, each: u64, step: usize) -> usize {
        let steps = (self.turn_limit().saturating_sub(fixed) / each).max(1);
        usize::try_from(steps).unwrap_or(usize::MAX).saturating_mul(step)
    }

    /// Kernel shapes chosen for this device.
    pub fn tuning(&self) -> &'a Tuning {
        self.tune
    }

    /// Sizes of an input.
    pub fn input_shape(&self, index: usize) -> &'a [usize] {
        self.graph.shape(self.node.inputs[index])
    }

    /// Sizes of an output.
    pub fn output_shape(&self, index: usize) -> &'a [usize] {
        self.graph.shape(self.node.outputs[index])
    }

    /// Number of inputs.
    pub fn input_count(&self) -> usize {
        self.node.inputs.len()
    }

    /// Number of outputs.
    pub fn output_count(&self) -> usize {
        self.node.outputs.len()
    }

    /// The buffer of an input.
    pub fn input(&self, index: usize) -> Slice {
        self.slice(self.node.inputs[index])
    }

    /// The buffer of an output.
    pub fn output(&self, index: usize) -> Slice {
        self.slice(self.node.outputs[index])
    }

    fn slice(&self, tensor: Tensor) -> Slice {
        let info = self.graph.info(tensor);
        match (&info.state, &self.places[tensor.index()]) {
            (Some(state), _) => {
                let size_bytes = (info.len() as u64 * ELEMENT_BYTES).max(16).next_multiple_of(16);
                state
                    .buffer()
                    .slice(state.offset_bytes(), size_bytes.min(state.buffer().size_bytes() - state.offset_bytes()))
            }
            (None, Some(place)) => place.clone(),
            (None, None) => unreachable!("the planner gave tensor {} no place", tensor.index()),
        }
    }

    /// A small read-only buffer of numbers. It is a storage buffer, because Mesa's software driver recompiles a kernel
    /// when a loop bound or a condition comes from a uniform buffer that is bound again.
    ///
    /// # Errors
    /// Out of memory.
    pub fn numbers(&self, numbers: &[u32]) -> Result<Slice, GpuError> {
        let mut padded = numbers.to_vec();
        padded.resize(numbers.len().next_multiple_of(4), 0);
        let buffer = self.gpu.allocate("parameters", padded.len() as u64 * 4)?;
        self.gpu.write(&buffer, 0, bytemuck::cast_slice(&padded));
        Ok(buffer.whole())
    }

    /// Emits a dispatch.
    ///
    /// # Errors
    /// The text does not link or compile, or a binding is larger than the device allows.
    pub fn emit(&mut self, text: KernelText<'_>, groups: &[Vec<Slice>], grid: [Extent; 3]) -> Result<(), GpuError> {
        let fail = |reason: String| GpuError::Kernel { kernel: text.name.to_string(), reason };
        let defines = text
            .defines
            .set("SUBGROUPS", self.capabilities().subgroups)
            .set("F16", self.capabilities().f16)
            .set("DOT", self.capabilities().dot)
            .set("MATRICES", self.capabilities().matrix_size.is_some());
        if let Some(limit) = self.capabilities().max_loop_turns.filter(|&limit| text.turns > limit) {
            return Err(fail(format!(
                "an invocation would take up to {} turns of loops, and this software device ends them after {limit} \
                 without an error: use a shorter context or smaller batches, a newer driver (Mesa 26 has no such limit), or a GPU",
                text.turns
            )));
        }
        let mut source = link(text.parts, &defines).map_err(fail)?;
        let mut groups = groups.to_vec();
        if let Some(counter) = self.counter {
            counter.instrument(text.name, text.turns, &mut source, &mut groups);
        }
        let kernel = self.gpu.kernel(text.name, &source)?;
        let bindings = self.gpu.bind(text.name, &kernel, &groups)?;
        let limit = self.capabilities().max_workgroups;
        let resolved = grid.map(|extent| extent.resolve(1));
        if let Some(&over) = resolved.iter().find(|&&n| n > limit) {
            return Err(fail(format!("{over} workgroups in one dimension, this device allows {limit}")));
        }
        let bound_bytes = groups.iter().flatten().map(|slice| slice.size_bytes).sum();
        let uploads =
            groups.iter().flatten().filter_map(|slice| Some((slice.buffer.clone(), slice.contents.clone()?))).collect();
        self.planned.push(PlannedDispatch {
            dispatch: Dispatch { name: text.name.to_string(), kernel, bindings, grid: resolved, uploads },
            grid,
            node: self.node_index,
            bound_bytes,
        });
        Ok(())
    }
}
