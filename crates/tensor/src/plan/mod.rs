//! A graph prepared for a device: memory for its tensors, pipelines, bind groups, and the list of dispatches that is
//! replayed.

pub(crate) mod grid;
mod lower;
mod memory;
mod tuning;
mod turns;
mod variant;

use std::sync::Mutex;

use bayan_gpu::{Buffer, Dispatch, Gpu, GpuError, Kernel, KernelTime, PendingRead, ReadRequest, Slice};

pub use grid::grid_2d;
pub use lower::{Extent, KernelText, Lowering, PlannedDispatch};
use memory::{Layout, Request};
pub use tuning::{RowsShape, Tuning};
pub use turns::{TurnCounter, Turns};
pub(crate) use variant::{Target, Variant};

use crate::graph::{ELEMENT_BYTES, Graph, Node, Tensor};

/// Costs of one run of a plan that do not depend on the device's speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Number of dispatches.
    pub dispatches: usize,
    /// Number of compute passes.
    pub passes: usize,
    /// Bytes of all bindings.
    pub bound_bytes: u64,
    /// Bytes of the buffers for activations.
    pub activation_bytes: u64,
}

/// One dispatch of a plan, and what it costs on any device.
#[derive(Debug, Clone)]
pub struct PlannedKernel {
    /// The dispatch's name.
    pub name: String,
    /// The kernel.
    pub kernel: Kernel,
    /// Number of workgroups.
    pub grid: [u32; 3],
    /// Bytes of all bindings.
    pub bound_bytes: u64,
    /// Approximate number of multiply-adds.
    pub multiply_adds: u64,
}

/// Activation memory shared by several plans.
#[derive(Debug, Clone, Default)]
pub struct Pool {
    buffers: Vec<Buffer>,
    layout: Layout,
}

/// A prepared graph.
#[derive(Debug)]
pub struct Plan {
    graph: Graph,
    planned: Vec<PlannedDispatch>,
    dispatches: Mutex<Vec<Dispatch>>,
    places: Vec<Option<Slice>>,
    activation_bytes: u64,
    /// Approximate number of multiply-adds of each dispatch.
    work: Vec<u64>,
}

impl Plan {
    /// Prepares a graph. The tensors in `keep` can be read after a run.
    ///
    /// # Errors
    /// Out of memory, a binding beyond the device's limits, or a kernel that does not compile.
    pub fn new(gpu: &Gpu, graph: Graph, keep: &[Tensor], tuning: &Tuning) -> Result<Plan, GpuError> {
        Plan::sharing(gpu, graph, keep, tuning, &mut Pool::default())
    }

    /// As [`Plan::new`], with activations in the buffers of `pool`, which grows by what does not fit. Plans that share
    /// a pool run one after the other, and the kept tensors of one plan last until the next one runs.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn sharing(
        gpu: &Gpu,
        graph: Graph,
        keep: &[Tensor],
        tuning: &Tuning,
        pool: &mut Pool,
    ) -> Result<Plan, GpuError> {
        Plan::make(gpu, graph, keep, tuning, pool, None)
    }

    /// As [`Plan::new`], with kernels that count the iterations (turns) of their loops.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn counting_turns(
        gpu: &Gpu,
        graph: Graph,
        keep: &[Tensor],
        tuning: &Tuning,
        counter: &TurnCounter,
    ) -> Result<Plan, GpuError> {
        Plan::make(gpu, graph, keep, tuning, &mut Pool::default(), Some(counter))
    }

    fn make(
        gpu: &Gpu,
        graph: Graph,
        keep: &[Tensor],
        tuning: &Tuning,
        pool: &mut Pool,
        counter: Option<&TurnCounter>,
    ) -> Result<Plan, GpuError> {
        let graph = match tuning.fuse {
            true => crate::passes::fuse(&graph, keep, gpu.capabilities(), tuning),
            false => crate::passes::round_to_f16(&graph, gpu.capabilities(), tuning),
        };
        let (places, activation_bytes) = assign(gpu, &graph, keep, pool)?;
        let mut planned = Vec::new();
        for index in 0..graph.nodes().len() {
            let op = graph.nodes()[index].op.clone();
            op.dispatch(&mut Lowering::new(gpu, &graph, index, &places, &mut planned, tuning, counter))?;
        }
        let dispatches = Mutex::new(planned.iter().map(|p| p.dispatch.clone()).collect());
        let work = work_of(&graph, &planned);
        Ok(Plan { graph, planned, dispatches, places, activation_bytes, work })
    }

    /// The graph that the plan runs.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The plan's cost, with an empty cache.
    pub fn cost(&self) -> Cost {
        Cost {
            dispatches: self.planned.len(),
            passes: 1,
            bound_bytes: self.planned.iter().map(|p| p.bound_bytes).sum(),
            activation_bytes: self.activation_bytes,
        }
    }

    /// The dispatches in order, for a run in which no sequence has more than `cached` positions.
    pub fn kernels(&self, cached: usize) -> Vec<PlannedKernel> {
        let of = |(planned, &multiply_adds): (&PlannedDispatch, &u64)| PlannedKernel {
            name: planned.dispatch.name.clone(),
            kernel: planned.dispatch.kernel.clone(),
            grid: planned.grid.map(|extent| extent.resolve(cached)),
            bound_bytes: planned.bound_bytes,
            multiply_adds,
        };
        self.planned.iter().zip(&self.work).map(of).collect()
    }

    /// Submits one run. `cached` is the largest number of cached positions that any sequence has after the run.
    pub fn submit(&self, gpu: &Gpu, cached: usize, reads: &[ReadRequest]) -> Vec<PendingRead> {
        let mut dispatches = self.dispatches.lock().unwrap_or_else(|e| e.into_inner());
        for (dispatch, planned) in dispatches.iter_mut().zip(&self.planned) {
            dispatch.grid = planned.grid.map(|extent| extent.resolve(cached));
        }
        gpu.submit(dispatches.iter(), reads)
    }

    /// Submits every dispatch without workgroups: nothing is computed. Software devices compile a kernel when it is
    /// first dispatched and not when it is made, so that the first run would wait for that.
    pub fn submit_empty(&self, gpu: &Gpu) {
        let mut dispatches = self.dispatches.lock().unwrap_or_else(|e| e.into_inner());
        dispatches.iter_mut().for_each(|dispatch| dispatch.grid = [0; 3]);
        gpu.submit(dispatches.iter(), &[]);
    }

    /// As [`Plan::submit`], split into several submissions of at most `work` multiply-adds each (a single dispatch with
    /// more gets its own), because a device that also draws the screen aborts submissions that run for seconds. The
    /// results are bit-identical.
    pub fn submit_within(&self, gpu: &Gpu, cached: usize, work: u64, reads: &[ReadRequest]) -> Vec<PendingRead> {
        let mut dispatches = self.dispatches.lock().unwrap_or_else(|e| e.into_inner());
        for (dispatch, planned) in dispatches.iter_mut().zip(&self.planned) {
            dispatch.grid = planned.grid.map(|extent| extent.resolve(cached));
        }
        let mut start = 0;
        for end in cuts(&self.work, work) {
            gpu.submit(&dispatches[start..end], &[]);
            start = end;
        }
        gpu.submit(&dispatches[start..], reads)
    }

    /// The number of submissions of [`Plan::submit_within`].
    pub fn submissions_within(&self, work: u64) -> usize {
        cuts(&self.work, work).len() + 1
    }

    /// As [`Plan::submit`], split into at most `parts` submissions, so that a slow device which also draws the screen
    /// finishes each in time.
    pub fn submit_parts(&self, gpu: &Gpu, cached: usize, parts: usize) {
        let mut dispatches = self.dispatches.lock().unwrap_or_else(|e| e.into_inner());
        for (dispatch, planned) in dispatches.iter_mut().zip(&self.planned) {
            dispatch.grid = planned.grid.map(|extent| extent.resolve(cached));
        }
        for part in dispatches.chunks(dispatches.len().div_ceil(parts.max(1)).max(1)) {
            gpu.submit(part, &[]);
        }
    }

    /// Runs the plan once with a pair of timestamps around each dispatch.
    ///
    /// # Errors
    /// The device has no timestamps, or fails.
    pub async fn profile(&self, gpu: &Gpu, cached: usize) -> Result<Vec<KernelTime>, GpuError> {
        let dispatches: Vec<Dispatch> = self
            .planned
            .iter()
            .map(|p| Dispatch { grid: p.grid.map(|extent| extent.resolve(cached)), ..p.dispatch.clone() })
            .collect();
        gpu.profile(&dispatches).await
    }

    /// Fills every intermediate buffer with NaN, so that tests detect values that no kernel wrote.
    pub fn poison(&self, gpu: &Gpu) {
        for place in self.places.iter().flatten() {
            gpu.write(&place.buffer, 0, bytemuck::cast_slice(&vec![f32::NAN; place.buffer.size_bytes() as usize / 4]));
        }
    }

    /// A request to read a whole tensor after a run: one with a state, or one in `keep`.
    ///
    /// # Panics
    /// If the tensor has no memory.
    pub fn read_request(&self, tensor: Tensor) -> ReadRequest {
        let info = self.graph.info(tensor);
        let (buffer, offset_bytes) = match (&info.state, &self.places[tensor.index()]) {
            (Some(state), _) => (state.buffer().clone(), state.offset_bytes()),
            (None, Some(place)) => (place.buffer.clone(), place.offset_bytes),
            (None, None) => panic!("tensor {} is not kept", tensor.index()),
        };
        ReadRequest { buffer, offset_bytes, size_bytes: info.len() as u64 * ELEMENT_BYTES }
    }
}

/// Multiply-adds of each dispatch: those of its node, divided evenly among the node's dispatches.
fn work_of(graph: &Graph, planned: &[PlannedDispatch]) -> Vec<u64> {
    let mut counts = vec![0u64; graph.nodes().len()];
    planned.iter().for_each(|p| counts[p.node] += 1);
    let of_node = |node: &Node| {
        let [inputs, outputs] =
            [&node.inputs, &node.outputs].map(|list| list.iter().map(|&t| graph.shape(t)).collect::<Vec<_>>());
        node.op.work(&inputs, &outputs)
    };
    let work: Vec<u64> = graph.nodes().iter().map(of_node).collect();
    planned.iter().map(|p| work[p.node] / counts[p.node].max(1)).collect()
}

/// Where to split a list so that no part has more work than `most`, except a part of a single entry.
fn cuts(work: &[u64], most: u64) -> Vec<usize> {
    let (mut cuts, mut sum) = (Vec::new(), 0u64);
    for (index, &work) in work.iter().enumerate() {
        if sum > 0 && sum.saturating_add(work) > most {
            cuts.push(index);
            sum = 0;
        }
        sum = sum.saturating_add(work);
    }
    cuts
}

/// Assigns memory in the pool to every intermediate tensor; the pool grows where needed. Also returns the bytes of the
/// buffers that are used. No dispatch writes a buffer that it binds a second time.
fn assign(gpu: &Gpu, graph: &Graph, keep: &[Tensor], pool: &mut Pool) -> Result<(Vec<Option<Slice>>, u64), GpuError> {
    let mut numbers: Vec<Option<usize>> = vec![None; graph.tensors().len()];
    let mut requests: Vec<Request> = Vec::new();
    for (index, node) in graph.nodes().iter().enumerate() {
        let passing = |list: &[Tensor]| {
            list.iter().copied().filter(|&tensor| graph.info(tensor).state.is_none()).collect::<Vec<_>>()
        };
        let (inputs, outputs) = (passing(&node.inputs), passing(&node.outputs));
        for (slot, &tensor) in inputs.iter().chain(&outputs).enumerate() {
            let last = if keep.contains(&tensor) { usize::MAX } else { index };
            let number = *numbers[tensor.index()].get_or_insert_with(|| {
                requests.push(Request {
                    key: (index, slot),
                    size: size_bytes(graph, tensor),
                    last_use: last,
                    conflicts: Vec::new(),
                });
                requests.len() - 1
            });
            requests[number].last_use = requests[number].last_use.max(last);
        }
        for &output in &outputs {
            for &other in inputs.iter().chain(&outputs).filter(|&&other| other != output) {
                if let (Some(a), Some(b)) = (numbers[output.index()], numbers[other.index()]) {
                    requests[a].conflicts.push(b);
                    requests[b].conflicts.push(a);
                }
            }
        }
    }
    let alignment = u64::from(gpu.capabilities().offset_alignment).max(16);
    let places = pool.layout.place(&requests, alignment);
    for &size in &pool.layout.buffers[pool.buffers.len()..] {
        pool.buffers.push(gpu.allocate("activations", size)?);
    }
    let slice = |number: usize| pool.buffers[places[number].buffer].slice(places[number].offset, requests[number].size);
    let used = |buffer: usize| places.iter().any(|place| place.buffer == buffer);
    let activation_bytes =
        pool.buffers.iter().enumerate().filter(|&(buffer, _)| used(buffer)).map(|(_, held)| held.size_bytes()).sum();
    Ok((numbers.into_iter().map(|number| number.map(slice)).collect(), activation_bytes))
}

/// Bytes that a binding of the tensor covers: its size rounded up to whole vectors of four.
fn size_bytes(graph: &Graph, tensor: Tensor) -> u64 {
    (graph.info(tensor).len() as u64 * ELEMENT_BYTES).max(16).next_multiple_of(16)
}

#[cfg(test)]
mod tests {
    use super::cuts;

    #[test]
    fn submissions_stay_within_the_work_limit_except_one_kernel() {
        let work = [3, 4, 0, 9, 1, 1, 20, 2];
        assert_eq!(cuts(&work, 10), [3, 5, 6, 7]);
        assert!(cuts(&work, 1000).is_empty());
        assert_eq!(cuts(&work, 0).len(), 6);
        assert!(cuts(&[], 1).is_empty());
    }
}
