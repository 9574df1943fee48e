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
use crate::ops::{AttentionBackward, Narrow, Widen};

/// Narrower rows hold statistics, or save little because every packed row also stores its power of two.
const NARROWEST: usize = 16;

/// Over which nodes a tensor must be saved: after the last node of the forward pass that uses it, until the first node
/// of the backward pass that does.
#[derive(Debug, Clone, Copy, Default)]
struct Wait {
    last: Option<usize>,
    next: Option<usize>,
    /// A node of the backward pass writes the tensor, or needs its full precision.
    whole: bool,
}

/// Rewrites the graph so that f32 intermediate tensors which the first `forward` nodes leave for the later ones are
/// stored in f16 in between. Tensors in `keep` stay f32, and so do those of the last of `layers` equal parts of the
/// forward nodes: the backward pass reads them first, when memory use is at its peak.
pub fn keep_in_f16(graph: &Graph, forward: usize, layers: usize, keep: &[Tensor]) -> Graph {
    let until = forward - forward.div_ceil(layers.max(1));
    let mut waits = vec![Wait::default(); graph.tensors().len()];
    for (index, node) in graph.nodes().iter().enumerate() {
        for &tensor in node.inputs.iter().chain(&node.outputs) {
            let wait = &mut waits[tensor.index()];
            if index < forward {
                wait.last = Some(index);
            } else {
                wait.next.get_or_insert(index);
                wait.whole |= node.outputs.contains(&tensor) || is_output_of_attention(node, tensor);
            }
        }
    }
    let mut rewritten = graph.clone();
    let mut after: Vec<Vec<Node>> = vec![Vec::new(); graph.nodes().len()];
    let mut before = after.clone();
    let mut renamed: Vec<Option<Tensor>> = vec![None; waits.len()];
    for (number, wait) in waits.iter().enumerate() {
        let tensor = Tensor(number as u32);
        let (Some(last), Some(next)) = (wait.last, wait.next) else { continue };
        if last >= until
            || wait.whole
            || keep.contains(&tensor)
            || graph.info(tensor).state.is_some()
            || !worth(graph, tensor)
        {
            continue;
        }
        let packed = rewritten.tensor(&[graph.rows(tensor), Narrow::words(graph.width(tensor))], Dtype::U32);
        let wide = rewritten.tensor(graph.shape(tensor), Dtype::F32);
        after[last].push(Node { op: Arc::new(Narrow), inputs: vec![tensor], outputs: vec![packed] });
        before[next].push(Node { op: Arc::new(Widen), inputs: vec![packed], outputs: vec![wide] });
        renamed[number] = Some(wide);
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

fn worth(graph: &Graph, tensor: Tensor) -> bool {
    let info = graph.info(tensor);
    info.dtype == Dtype::F32 && graph.width(tensor) >= NARROWEST
}

#[cfg(test)]
mod tests {
    use bayan_gpu::{Gpu, GpuOptions, block_on};

    use super::*;
    use crate::passes::BackwardOptions;
    use crate::passes::census;
    use crate::plan::Plan;
    use crate::plan::Tuning;
    use crate::suite::Maker;
    use crate::suite::training::gradient::zeros;
    use crate::suite::training::layers::layers;

    /// Bytes of the activations of a step over `count` layers, and how many tensors were packed.
    fn held(gpu: &Gpu, count: usize, recompute: bool, in_f16: bool) -> (u64, usize) {
        let mut make = Maker { gpu: Some(gpu), seed: 1 };
        let mut graph = Graph::new();
        let (y, by) = layers(&mut make, &mut graph, 16, count).unwrap();
        let forward = graph.nodes().len();
        let shape = graph.shape(y).to_vec();
        let seed = make.random(&shape).unwrap();
        let seed = graph.state(&seed);
        let parameters: Vec<_> = by.iter().map(|state| (state.clone(), zeros(&make, state.shape()).unwrap())).collect();
        graph.backward(&[(y, seed)], &parameters, BackwardOptions { recompute }).unwrap();
        let graph = if in_f16 { keep_in_f16(&graph, forward, count, &[]) } else { graph };
        let counts = census(&graph);
        let [narrow, widen] = ["narrow", "widen"].map(|name| counts.get(name).copied().unwrap_or(0));
        assert_eq!(narrow, widen);
        let tuning = Tuning { fuse: false, ..Tuning::defaults(gpu.capabilities()) };
        (Plan::new(gpu, graph, &[], &tuning).unwrap().cost().activation_bytes, narrow)
    }

    #[test]
    fn what_a_layer_adds_is_nearly_halved() {
        let gpu = block_on(Gpu::open(&GpuOptions::default())).unwrap();
        for recompute in [true, false] {
            let of = |in_f16| {
                let [(few, _), (many, packed)] = [4, 12].map(|count| held(&gpu, count, recompute, in_f16));
                (((many - few) / 8) as f64, many, packed)
            };
            let ((wide, before, none), (narrow, after, packed)) = (of(false), of(true));
            println!(
                "recompute {recompute}: {wide} bytes a layer, {narrow} in f16; {before} and {after} with 12 layers, {packed} packed"
            );
            assert!(none == 0 && packed >= 10 && after < before);
            assert!(narrow < 0.62 * wide, "a layer takes {narrow} bytes for {wide}");
        }
    }
}
