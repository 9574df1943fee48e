//! Stores saved activations in f16: tensors that the forward pass computes and the backward pass reads. That halves
//! their memory.
//!
//! A rewrite of the finished list, like fusion: model files, differentiation and the planner are unaware of it, and the
//! two new ops have references like all others, so the interpreter runs the same list. Rejected: backward kernels that
//! read f16, because each would need a second form for a read that is a small part of its time. Only saved activations
//! are stored so. What is computed and used within a layer stays in f32, and so do the cached keys and values and the
//! output of attention.

use std::sync::Arc;

use crate::graph::{Dtype, Graph, Node, Tensor};
use crate::ops::{AttentionBackward, FromF16, ToF16};

/// Fewest elements of a row that is stored in f16: shorter rows hold statistics, or save little because every packed
/// row also stores its power of two.
const MIN_WIDTH: usize = 16;

/// The nodes between which a tensor must be saved: after the last node of the forward pass that uses it, until the
/// first node of the backward pass that does.
#[derive(Debug, Clone, Copy, Default)]
struct Lifetime {
    last_forward: Option<usize>,
    first_backward: Option<usize>,
    /// A node of the backward pass writes the tensor, or needs its full precision.
    needs_f32: bool,
}

/// Rewrites the graph so that f32 intermediate tensors which the first `forward` nodes leave for the later ones are
/// stored in f16 in between. Tensors in `outputs` stay f32, and so do those of the last of `layers` equal parts of the
/// forward nodes: the backward pass reads them first, when memory use is at its peak.
pub fn store_activations_f16(graph: &Graph, forward: usize, layers: usize, outputs: &[Tensor]) -> Graph {
    let until = forward - forward.div_ceil(layers.max(1));
    let mut lifetimes = vec![Lifetime::default(); graph.tensors().len()];
    for (index, node) in graph.nodes().iter().enumerate() {
        for &tensor in node.inputs.iter().chain(&node.outputs) {
            let lifetime = &mut lifetimes[tensor.index()];
            if index < forward {
                lifetime.last_forward = Some(index);
            } else {
                lifetime.first_backward.get_or_insert(index);
                lifetime.needs_f32 |= node.outputs.contains(&tensor) || is_output_of_attention(node, tensor);
            }
        }
    }
    let mut rewritten = graph.clone();
    let mut after: Vec<Vec<Node>> = vec![Vec::new(); graph.nodes().len()];
    let mut before = after.clone();
    let mut renamed: Vec<Option<Tensor>> = vec![None; lifetimes.len()];
    for (number, lifetime) in lifetimes.iter().enumerate() {
        let tensor = Tensor(number as u32);
        let (Some(last), Some(first)) = (lifetime.last_forward, lifetime.first_backward) else { continue };
        if last >= until
            || lifetime.needs_f32
            || outputs.contains(&tensor)
            || graph.info(tensor).state.is_some()
            || !is_large_enough(graph, tensor)
        {
            continue;
        }
        let packed = rewritten.tensor(&[graph.rows(tensor), ToF16::words(graph.width(tensor))], Dtype::U32);
        let unpacked = rewritten.tensor(graph.shape(tensor), Dtype::F32);
        after[last].push(Node { op: Arc::new(ToF16 { padded: false }), inputs: vec![tensor], outputs: vec![packed] });
        before[first].push(Node { op: Arc::new(FromF16), inputs: vec![packed], outputs: vec![unpacked] });
        renamed[number] = Some(unpacked);
    }
    let mut list = Vec::with_capacity(graph.nodes().len());
    for (index, node) in graph.nodes().iter().enumerate() {
        list.append(&mut before[index]);
        let name = |&tensor: &Tensor| if index < forward { tensor } else { renamed[tensor.index()].unwrap_or(tensor) };
        list.push(Node {
            op: node.op.clone(),
            inputs: node.inputs.iter().map(name).collect(),
            outputs: node.outputs.iter().map(name).collect(),
        });
        list.append(&mut after[index]);
    }
    rewritten.with_nodes(list)
}

/// Whether `tensor` is the output of attention that `node` differentiates. The gradient subtracts Σ dy∘y from terms
/// that nearly equal it where attention looks at one key: the rounding error of a rounded y would be as large as the
/// gradients of queries and keys.
fn is_output_of_attention(node: &Node, tensor: Tensor) -> bool {
    node.op.as_any().is::<AttentionBackward>() && node.inputs.get(3) == Some(&tensor)
}

fn is_large_enough(graph: &Graph, tensor: Tensor) -> bool {
    let info = graph.info(tensor);
    info.dtype == Dtype::F32 && graph.width(tensor) >= MIN_WIDTH
}

#[cfg(test)]
mod tests {
    use bayan_gpu::{Gpu, GpuOptions, block_on};

    use super::*;
    use crate::passes::BackwardOptions;
    use crate::passes::count_ops;
    use crate::plan::Plan;
    use crate::plan::Tuning;
    use crate::suite::RandomTensors;
    use crate::suite::training::gradient::zeros;
    use crate::suite::training::layers::layers;

    /// Bytes of the activations of a step over `count` layers, and how many tensors were packed.
    fn activation_bytes(gpu: &Gpu, count: usize, recompute: bool, in_f16: bool) -> (u64, usize) {
        let mut make = RandomTensors { gpu: Some(gpu), seed: 1 };
        let mut graph = Graph::new();
        let (y, by) = layers(&mut make, &mut graph, 16, count).unwrap();
        let forward = graph.nodes().len();
        let shape = graph.shape(y).to_vec();
        let seed = make.random(&shape).unwrap();
        let seed = graph.state(&seed);
        let parameters: Vec<_> = by.iter().map(|state| (state.clone(), zeros(&make, state.shape()).unwrap())).collect();
        graph.backward(&[(y, seed)], &parameters, BackwardOptions { recompute }).unwrap();
        let graph = if in_f16 { store_activations_f16(&graph, forward, count, &[]) } else { graph };
        let counts = count_ops(&graph);
        let [packed, unpacked] = ["to_f16", "from_f16"].map(|name| counts.get(name).copied().unwrap_or(0));
        assert_eq!(packed, unpacked);
        let tuning = Tuning { fuse: false, ..Tuning::defaults(gpu.capabilities()) };
        (Plan::new(gpu, graph, &[], &tuning).unwrap().cost().activation_bytes, packed)
    }

    #[test]
    fn what_a_layer_adds_is_nearly_halved() {
        let gpu = block_on(Gpu::open(&GpuOptions::default())).unwrap();
        for recompute in [true, false] {
            let of = |in_f16| {
                let [(few, _), (many, packed)] = [4, 12].map(|count| activation_bytes(&gpu, count, recompute, in_f16));
                (((many - few) / 8) as f64, many, packed)
            };
            let ((in_f32, before, none), (in_f16, after, packed)) = (of(false), of(true));
            println!(
                "recompute {recompute}: {in_f32} bytes a layer, {in_f16} in f16; {before} and {after} with 12 layers, {packed} packed"
            );
            assert!(none == 0 && packed >= 10 && after < before);
            assert!(in_f16 < 0.62 * in_f32, "a layer takes {in_f16} bytes in f16, {in_f32} in f32");
        }
    }
}
