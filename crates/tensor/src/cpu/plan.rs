//! A graph prepared for the CPU: memory for its tensors, and the list of ops that is run.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bayan_gpu::{GpuError, KernelTime};

use super::{Cpu, CpuStep};
use crate::graph::{Dtype, ELEMENT_BYTES, Graph, Operand, State, Tensor, Values};
use crate::plan::Cost;

/// Where the tensors of a node are.
#[derive(Debug)]
struct Places {
    inputs: Vec<usize>,
    outputs: Vec<usize>,
    updated: Vec<Option<usize>>,
    fresh: Vec<bool>,
}

/// A prepared graph. Tensors whose lifetimes do not overlap share memory if they have equal lengths.
#[derive(Debug)]
pub struct CpuPlan {
    cpu: Cpu,
    graph: Graph,
    nodes: Vec<Places>,
    /// For each tensor, the buffer that has its values.
    places: Vec<Option<usize>>,
    /// The buffers that have a state's values while the plan runs.
    states: Vec<(usize, Arc<State>)>,
    buffers: Mutex<Vec<Values>>,
}

impl CpuPlan {
    /// Prepares a graph whose states are on the host. The tensors in `keep` can be read after a run.
    pub fn new(cpu: &Cpu, graph: Graph, keep: &[Tensor]) -> CpuPlan {
        let mut last = vec![0; graph.tensors().len()];
        for (index, node) in graph.nodes().iter().enumerate() {
            node.inputs.iter().chain(&node.outputs).for_each(|tensor| last[tensor.index()] = index);
        }
        keep.iter().for_each(|tensor| last[tensor.index()] = usize::MAX);
        let mut buffers = Vec::new();
        let mut places: Vec<Option<usize>> = vec![None; graph.tensors().len()];
        let mut states = Vec::new();
        let mut free: HashMap<(usize, Dtype), Vec<usize>> = HashMap::new();
        let mut nodes = Vec::new();
        for (index, node) in graph.nodes().iter().enumerate() {
            let mut place = |tensor: Tensor| {
                if let Some(place) = places[tensor.index()] {
                    return (place, false);
                }
                let info = graph.info(tensor);
                let reused = if info.state.is_some() { None } else { free.get_mut(&(info.len(), info.dtype)) };
                let place = reused.and_then(Vec::pop).unwrap_or_else(|| {
                    // A state's values are put here for a run.
                    let len = if info.state.is_some() { 0 } else { info.len() };
                    buffers.push(Values::zeros(len, info.dtype));
                    buffers.len() - 1
                });
                states.extend(info.state.clone().map(|state| (place, state)));
                places[tensor.index()] = Some(place);
                (place, info.state.is_none())
            };
            let inputs = node.inputs.iter().map(|&tensor| place(tensor).0).collect();
            let (outputs, fresh) = node.outputs.iter().map(|&tensor| place(tensor)).unzip();
            let updated = node.inputs.iter().map(|i| node.outputs.iter().position(|o| o == i)).collect();
            nodes.push(Places { inputs, outputs, updated, fresh });
            let mut ended: Vec<Tensor> = node.inputs.iter().chain(&node.outputs).copied().collect();
            ended.sort();
            ended.dedup();
            for tensor in ended {
                let info = graph.info(tensor);
                if let (Some(place), None, true) = (places[tensor.index()], &info.state, last[tensor.index()] == index)
                {
                    free.entry((info.len(), info.dtype)).or_default().push(place);
                }
            }
        }
        CpuPlan { cpu: cpu.clone(), graph, nodes, places, states, buffers: Mutex::new(buffers) }
    }

    /// The graph that the plan runs.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Runs the plan, and returns the values of these tensors: ones with a state, or in the list of those to keep.
    ///
    /// # Panics
    /// If a tensor was not kept, or a state is not on the host.
    pub fn run(&self, reads: &[Tensor]) -> Vec<Values> {
        self.run_with(&mut |_, run| run(), reads)
    }

    /// Fails if a helper of the CPU has failed; results since then are wrong.
    ///
    /// # Errors
    /// As [`Cpu::check`].
    pub fn check(&self) -> Result<(), GpuError> {
        self.cpu.check()
    }

    /// Runs the plan once and measures the time of each op.
    pub fn profile(&self) -> Vec<KernelTime> {
        let mut times = Vec::new();
        let mut measure = |name: String, run: &mut dyn FnMut()| {
            let start = Instant::now();
            run();
            times.push(KernelTime { name, elapsed_ms: start.elapsed().as_secs_f64() * 1e3 });
        };
        self.run_with(&mut |node, run| measure(self.describe(node), run), &[]);
        times
    }

    /// An op with its sizes.
    fn describe(&self, node: usize) -> String {
        let node = &self.graph.nodes()[node];
        match node.op.matrix() {
            Some(matrix) => {
                format!("{} {} {}x{}", node.op.name(), matrix.format().name(), matrix.rows(), matrix.columns())
            }
            None => node.op.name().to_string(),
        }
    }

    fn run_with(&self, around: &mut (dyn FnMut(usize, &mut dyn FnMut()) + Send), reads: &[Tensor]) -> Vec<Values> {
        let mut buffers = self.buffers.lock().unwrap_or_else(|e| e.into_inner());
        let buffers = &mut *buffers;
        for (place, state) in &self.states {
            let values = state.take_host();
            buffers[*place] = values.unwrap_or_else(|| panic!("state `{}` is not on the host", state.label()));
        }
        self.cpu.run(|| {
            for number in 0..self.nodes.len() {
                around(number, &mut || self.compute(number, buffers));
            }
        });
        let read = |tensor: &Tensor| {
            let place = self.places[tensor.index()];
            buffers[place.unwrap_or_else(|| panic!("tensor {} has no values", tensor.index()))].clone()
        };
        let read = reads.iter().map(read).collect();
        for (place, state) in &self.states {
            let empty = Values::zeros(0, state.dtype());
            state.set_host(std::mem::replace(&mut buffers[*place], empty));
        }
        read
    }

    fn compute(&self, number: usize, buffers: &mut [Values]) {
        let (node, places) = (&self.graph.nodes()[number], &self.nodes[number]);
        let take = |&place: &usize| std::mem::replace(&mut buffers[place], Values::F32(Vec::new()));
        let mut outputs: Vec<Values> = places.outputs.iter().map(take).collect();
        let operand =
            |(&tensor, &place): (&Tensor, &usize)| Operand { shape: self.graph.shape(tensor), values: &buffers[place] };
        let inputs: Vec<Operand<'_>> = node.inputs.iter().zip(&places.inputs).map(operand).collect();
        let mut step = CpuStep {
            inputs: &inputs,
            outputs: &mut outputs,
            updated: &places.updated,
            fresh: &places.fresh,
            cpu: &self.cpu,
        };
        node.op.compute(&mut step);
        for (&place, values) in places.outputs.iter().zip(outputs) {
            buffers[place] = values;
        }
    }

    /// The plan's cost: ops, bytes of weights and cache, bytes of activations.
    pub fn cost(&self) -> Cost {
        let buffers = self.buffers.lock().unwrap_or_else(|e| e.into_inner());
        let activations: usize = buffers.iter().map(Values::len).sum();
        let weights: u64 =
            self.graph.nodes().iter().filter_map(|node| node.op.matrix()).map(|matrix| matrix.size_bytes()).sum();
        let states: u64 = self.states.iter().map(|(_, state)| state.size_bytes()).sum();
        Cost {
            dispatches: self.nodes.len(),
            passes: 1,
            bound_bytes: weights + states,
            activation_bytes: activations as u64 * ELEMENT_BYTES,
        }
    }
}
