//! A graph made ready for a device: buffers by liveness, pipelines, bind groups, and the list that is replayed.

use std::collections::HashMap;
use std::sync::Mutex;

use bayan_gpu::{Buffer, Dispatch, Gpu, GpuError, KernelTime, PendingRead, ReadRequest};

use crate::graph::{ELEMENT_BYTES, Graph, Node, Tensor};
use crate::lower::{Lowering, Planned};
use crate::tune::Tuning;

/// What one run of a plan costs, whatever the device: the portable half of speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Kernels started.
    pub dispatches: usize,
    /// Compute passes.
    pub passes: usize,
    /// Bytes in all bindings.
    pub bound_bytes: u64,
    /// Bytes of activations held.
    pub activation_bytes: u64,
}

/// Memory of activations that plans share.
#[derive(Debug, Clone, Default)]
pub struct Pool {
    /// Of tensors that come and go.
    passing: Vec<Buffer>,
    /// Of tensors that wait for the backward pass where others are packed meanwhile. Of their own, so that such a one does not sit for the
    /// whole step in a buffer that was made for something larger and is free for a moment.
    waiting: Vec<Buffer>,
}

/// A prepared graph.
#[derive(Debug)]
pub struct Plan {
    graph: Graph,
    planned: Vec<Planned>,
    dispatches: Mutex<Vec<Dispatch>>,
    buffers: Vec<Option<Buffer>>,
    activation_bytes: u64,
    /// Multiply-adds of each dispatch, about.
    work: Vec<u64>,
}

impl Plan {
    /// Prepares a graph; the tensors in `keep` hold their values after a run.
    ///
    /// # Errors
    /// Out of memory, a binding beyond the device's limits, or a kernel that does not compile.
    pub fn new(gpu: &Gpu, graph: Graph, keep: &[Tensor], tuning: &Tuning) -> Result<Plan, GpuError> {
        Plan::sharing(gpu, graph, keep, tuning, &mut Pool::default())
    }

    /// As [`Plan::new`], with activations in the buffers of `pool` where they fit; what does not fit is added to it. Plans that share a
    /// pool run one after the other, and what one of them keeps lasts until the next one runs.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn sharing(gpu: &Gpu, graph: Graph, keep: &[Tensor], tuning: &Tuning, pool: &mut Pool) -> Result<Plan, GpuError> {
        let graph = if tuning.fuse { crate::fuse::fuse(&graph, keep, gpu.capabilities()) } else { graph };
        let (buffers, activation_bytes) = assign(gpu, &graph, keep, pool)?;
        let mut planned = Vec::new();
        for index in 0..graph.nodes().len() {
            let op = graph.nodes()[index].op.clone();
            op.dispatch(&mut Lowering::new(gpu, &graph, index, &buffers, &mut planned, tuning))?;
        }
        let dispatches = Mutex::new(planned.iter().map(|p| p.dispatch.clone()).collect());
        let work = work_of(&graph, &planned);
        Ok(Plan { graph, planned, dispatches, buffers, activation_bytes, work })
    }

    /// The graph it runs.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Its cost, not counting what a longer cache adds.
    pub fn cost(&self) -> Cost {
        Cost {
            dispatches: self.planned.len(),
            passes: 1,
            bound_bytes: self.planned.iter().map(|p| p.bound_bytes).sum(),
            activation_bytes: self.activation_bytes,
        }
    }

    /// Where a tensor is after a run: its state's buffer, or that of a tensor in `keep`.
    ///
    /// # Panics
    /// If the tensor has no buffer.
    pub fn buffer(&self, tensor: Tensor) -> &Buffer {
        match (&self.graph.info(tensor).state, &self.buffers[tensor.index()]) {
            (Some(state), _) => state.buffer(),
            (None, Some(buffer)) => buffer,
            (None, None) => panic!("tensor {} is not kept", tensor.index()),
        }
    }

    /// Submits one run. `cached` is the largest number of cached positions that any sequence has after it.
    pub fn submit(&self, gpu: &Gpu, cached: usize, reads: &[ReadRequest]) -> Vec<PendingRead> {
        let mut dispatches = self.dispatches.lock().unwrap_or_else(|e| e.into_inner());
        for (dispatch, planned) in dispatches.iter_mut().zip(&self.planned) {
            dispatch.grid = planned.grid.map(|extent| extent.resolve(cached));
        }
        gpu.submit(dispatches.iter(), reads)
    }

    /// As [`Plan::submit`], in as many submissions as it takes for none to have more than so many multiply-adds (but for one kernel that
    /// has more alone): a device that also draws the screen ends what runs for seconds. Results are the same to the bit.
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

    /// As [`Plan::submit`], cut into so many submissions at most, each short enough for a slow device that also draws the screen.
    pub fn submit_parts(&self, gpu: &Gpu, cached: usize, parts: usize) {
        let mut dispatches = self.dispatches.lock().unwrap_or_else(|e| e.into_inner());
        for (dispatch, planned) in dispatches.iter_mut().zip(&self.planned) {
            dispatch.grid = planned.grid.map(|extent| extent.resolve(cached));
        }
        for part in dispatches.chunks(dispatches.len().div_ceil(parts.max(1)).max(1)) {
            gpu.submit(part, &[]);
        }
    }

    /// Runs once with a timestamp pair around each dispatch.
    ///
    /// # Errors
    /// The device has no timestamps, or fails.
    pub async fn profile(&self, gpu: &Gpu, cached: usize) -> Result<Vec<KernelTime>, GpuError> {
        let dispatches: Vec<Dispatch> =
            self.planned.iter().map(|p| Dispatch { grid: p.grid.map(|extent| extent.resolve(cached)), ..p.dispatch.clone() }).collect();
        gpu.profile(&dispatches).await
    }

    /// Fills every intermediate buffer with NaN, so that a test sees what no kernel wrote.
    pub fn poison(&self, gpu: &Gpu) {
        for buffer in self.buffers.iter().flatten() {
            gpu.write(buffer, 0, bytemuck::cast_slice(&vec![f32::NAN; buffer.size_bytes() as usize / 4]));
        }
    }

    /// A read of a whole tensor.
    pub fn read_request(&self, tensor: Tensor) -> ReadRequest {
        let offset_bytes = self.graph.info(tensor).state.as_ref().map_or(0, |state| state.offset_bytes());
        ReadRequest { buffer: self.buffer(tensor).clone(), offset_bytes, size_bytes: self.graph.info(tensor).len() as u64 * ELEMENT_BYTES }
    }
}

/// Multiply-adds of each dispatch: those of its node, shared evenly.
fn work_of(graph: &Graph, planned: &[Planned]) -> Vec<u64> {
    let mut counts = vec![0u64; graph.nodes().len()];
    planned.iter().for_each(|p| counts[p.node] += 1);
    let of_node = |node: &Node| {
        let [inputs, outputs] = [&node.inputs, &node.outputs].map(|list| list.iter().map(|&t| graph.shape(t)).collect::<Vec<_>>());
        node.op.work(&inputs, &outputs)
    };
    let work: Vec<u64> = graph.nodes().iter().map(of_node).collect();
    planned.iter().map(|p| work[p.node] / counts[p.node].max(1)).collect()
}

/// Where to cut a list so that no part has more than so much work, unless one entry has.
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

/// Gives every intermediate tensor a buffer. A buffer is handed on once its tensor has been read for the last time; outputs
/// never share with the inputs of the same node, so that no dispatch binds a buffer twice.
fn assign(gpu: &Gpu, graph: &Graph, keep: &[Tensor], pool: &mut Pool) -> Result<(Vec<Option<Buffer>>, u64), GpuError> {
    let mut last_use: HashMap<Tensor, usize> = HashMap::new();
    for (index, node) in graph.nodes().iter().enumerate() {
        for &tensor in node.inputs.iter().chain(&node.outputs) {
            last_use.insert(tensor, index);
        }
    }
    let mut buffers: Vec<Option<Buffer>> = vec![None; graph.tensors().len()];
    let mut free = pool.clone();
    let mut used: Vec<Buffer> = Vec::new();
    for (index, node) in graph.nodes().iter().enumerate() {
        for &tensor in &node.outputs {
            let (free, pool) = if graph.info(tensor).waits { (&mut free.waiting, &mut pool.waiting) } else { (&mut free.passing, &mut pool.passing) };
            if graph.info(tensor).state.is_some() || buffers[tensor.index()].is_some() {
                continue;
            }
            let size_bytes = (graph.info(tensor).len() as u64 * ELEMENT_BYTES).max(16).next_multiple_of(16);
            let fitting = free.iter().enumerate().filter(|(_, b)| b.size_bytes() >= size_bytes).min_by_key(|(_, b)| b.size_bytes());
            let buffer = match fitting.map(|(position, _)| position) {
                Some(position) => free.swap_remove(position),
                None => {
                    let fresh = gpu.allocate("activations", size_bytes)?;
                    pool.push(fresh.clone());
                    fresh
                }
            };
            if !used.iter().any(|u| u.same(&buffer)) {
                used.push(buffer.clone());
            }
            buffers[tensor.index()] = Some(buffer);
        }
        for &tensor in node.inputs.iter().chain(&node.outputs) {
            let dead = last_use[&tensor] == index && !keep.contains(&tensor) && graph.info(tensor).state.is_none();
            if let (true, Some(buffer)) = (dead, &buffers[tensor.index()]) {
                let free = if graph.info(tensor).waits { &mut free.waiting } else { &mut free.passing };
                if !free.iter().any(|f| f.same(buffer)) {
                    free.push(buffer.clone());
                }
            }
        }
    }
    Ok((buffers, used.iter().map(Buffer::size_bytes).sum()))
}

#[cfg(test)]
mod tests {
    use super::cuts;

    #[test]
    fn no_submission_has_more_work_than_allowed_unless_one_kernel_has() {
        let work = [3, 4, 0, 9, 1, 1, 20, 2];
        assert_eq!(cuts(&work, 10), [3, 5, 6, 7]);
        assert!(cuts(&work, 1000).is_empty());
        assert_eq!(cuts(&work, 0).len(), 6);
        assert!(cuts(&[], 1).is_empty());
    }
}
