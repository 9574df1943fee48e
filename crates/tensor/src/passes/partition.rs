//! Splits one recorded list into stages for several devices, each of which holds some of the layers.
//!
//! A node runs on the device of its matrix or of the state that it writes. Other nodes run on the device of the node
//! before them, or already on the device that reads their result if that transfers no more bytes. Consecutive nodes of
//! one device form a stage: a graph of its own, prepared, fused and replayed like any other. Tensors that a later stage
//! reads are copied through the host; in a decoder that is only the residual stream, some KiB per token. Rejected:
//! models that know about several devices, because every architecture would have to state where each of its operations
//! runs.

use std::collections::HashMap;
use std::sync::Arc;

use bayan_gpu::{Gpu, GpuError};

use crate::graph::{ELEMENT_BYTES, Graph, Node, State, Tensor};
use crate::ops::{Embed, Linear};

/// A tensor that later stages read.
#[derive(Debug, Clone)]
pub struct Transfer {
    /// The tensor, in the stage that computes it.
    pub tensor: Tensor,
    /// For each later stage that reads the tensor: its device, and the state there that receives the copy.
    pub to: Vec<(usize, Arc<State>)>,
}

impl Transfer {
    /// Bytes read from the computing device; the same number is written to each receiving device.
    pub fn size_bytes(&self) -> u64 {
        self.to.first().map_or(0, |(_, state)| state.size_bytes())
    }
}

/// Consecutive operations of one device.
#[derive(Debug)]
pub struct Stage {
    /// Index of the device.
    pub device: usize,
    /// The operations. Tensors have the same indices as in the whole graph.
    pub graph: Graph,
    /// The tensors that later stages read.
    pub transfers: Vec<Transfer>,
}

/// Splits a graph. `inputs` are states that are written before each step and belong to no device. `local` returns the
/// copy of a state on another device than its own.
///
/// # Errors
/// Out of memory, or an error of `local`.
pub fn partition(
    graph: &Graph,
    keep: &[Tensor],
    gpus: &[Gpu],
    inputs: &[Arc<State>],
    local: &mut dyn FnMut(&Arc<State>, usize) -> Result<Arc<State>, GpuError>,
) -> Result<Vec<Stage>, GpuError> {
    let devices = devices(graph, keep, gpus, inputs);
    let mut stages: Vec<Stage> = Vec::new();
    // The stage that wrote each tensor that is not a state.
    let mut writers: HashMap<Tensor, usize> = HashMap::new();
    let mut start = 0;
    for nodes in devices.chunk_by(|a, b| a == b) {
        let (device, list) = (nodes[0], &graph.nodes()[start..start + nodes.len()]);
        start += nodes.len();
        let number = stages.len();
        let mut stage = graph.with_nodes(list.to_vec());
        let mut seen: Vec<Tensor> = Vec::new();
        for node in list {
            for &tensor in node.inputs.iter().chain(&node.outputs) {
                if seen.contains(&tensor) {
                    continue;
                }
                seen.push(tensor);
                let info = graph.info(tensor);
                if let Some(state) = &info.state {
                    if !state.is_on(&gpus[device]) {
                        stage.set_state(tensor, local(state, device)?);
                    }
                } else if let Some(writer) = writers.get(&tensor) {
                    let to = State::zeros(Some(&gpus[device]), "handed over", &info.shape, info.dtype)?;
                    stage.set_state(tensor, to.clone());
                    add_transfer(&mut stages[*writer], tensor, device, to);
                }
            }
        }
        for tensor in list.iter().flat_map(|node| &node.outputs).filter(|tensor| graph.info(**tensor).state.is_none()) {
            writers.insert(*tensor, number);
        }
        stages.push(Stage { device, graph: stage, transfers: Vec::new() });
    }
    Ok(stages)
}

fn add_transfer(from: &mut Stage, tensor: Tensor, device: usize, to: Arc<State>) {
    match from.transfers.iter_mut().find(|transfer| transfer.tensor == tensor) {
        Some(transfer) => transfer.to.push((device, to)),
        None => from.transfers.push(Transfer { tensor, to: vec![(device, to)] }),
    }
}

/// The device index of each node.
fn devices(graph: &Graph, keep: &[Tensor], gpus: &[Gpu], inputs: &[Arc<State>]) -> Vec<usize> {
    let nodes = graph.nodes();
    let fixed: Vec<Option<usize>> = nodes.iter().map(|node| fixed(graph, node, gpus, inputs)).collect();
    let mut current = fixed.iter().flatten().next().copied().unwrap_or(0);
    let mut devices: Vec<usize> = Vec::with_capacity(nodes.len());
    for at in &fixed {
        current = at.unwrap_or(current);
        devices.push(current);
    }
    // In reverse, so that whole chains move together: a norm before a layer runs on the layer's device.
    for index in (0..nodes.len()).rev().filter(|&index| fixed[index].is_none()) {
        if let Some(device) = readers_device(graph, keep, &devices, index) {
            devices[index] = device;
        }
    }
    devices
}

/// The device of the node's weights, or of the states that it writes.
fn fixed(graph: &Graph, node: &Node, gpus: &[Gpu], inputs: &[Arc<State>]) -> Option<usize> {
    let op = node.op.as_any();
    let matrix = op
        .downcast_ref::<Linear>()
        .map(|linear| &linear.weight)
        .or_else(|| op.downcast_ref::<Embed>().map(|embed| &embed.table));
    if let Some(matrix) = matrix {
        return gpus.iter().position(|gpu| matrix.is_on(gpu));
    }
    let written = node.outputs.iter().filter_map(|&tensor| graph.info(tensor).state.as_ref());
    let written = written.filter(|state| !inputs.iter().any(|input| Arc::ptr_eq(input, state)));
    written.into_iter().find_map(|state| gpus.iter().position(|gpu| state.is_on(gpu)))
}

/// The device of all readers of a node's outputs, if it is the same for all and the node has one input tensor that is
/// no larger than its outputs: copying the input instead then costs nothing more.
fn readers_device(graph: &Graph, keep: &[Tensor], devices: &[usize], index: usize) -> Option<usize> {
    let node = &graph.nodes()[index];
    let mut made_of = node.inputs.iter().filter(|&&tensor| graph.info(tensor).state.is_none());
    let (source, others) = (*made_of.next()?, made_of.next());
    let made: u64 = node.outputs.iter().map(|&tensor| graph.info(tensor).len() as u64 * ELEMENT_BYTES).sum();
    let lasting = node
        .outputs
        .iter()
        .any(|tensor| keep.contains(tensor) || *tensor == source || graph.info(*tensor).state.is_some());
    if others.is_some() || lasting || (graph.info(source).len() as u64 * ELEMENT_BYTES) > made {
        return None;
    }
    let reads = |node: &Node| node.inputs.iter().any(|tensor| graph.nodes()[index].outputs.contains(tensor));
    let mut readers = (index + 1..graph.nodes().len()).filter(|&at| reads(&graph.nodes()[at])).map(|at| devices[at]);
    let first = readers.next()?;
    readers.all(|device| device == first).then_some(first)
}
