//! Rewrites sequences of small operations into fused ones. Models record the small ones. The reference of a fused op is
//! their composition, so that fused and unfused runs check each other.

use std::collections::HashMap;
use std::sync::Arc;

use bayan_gpu::Capabilities;

use crate::graph::{Dtype, Graph, Node, Op, Tensor};
use crate::ops::{
    Activate, Add, Append, Attention, AttentionDecode, Gated, Int8Order, Linear, LinearBackward, Quantize, RmsNorm,
    Rope, Rounding, ToF16,
};
use crate::plan::{Target, Tuning};

/// The graph with every known pattern fused for this device, with the kernel shapes chosen for it. Tensors in `keep`
/// are still computed.
pub fn fuse(graph: &Graph, keep: &[Tensor], capabilities: &Capabilities, tuning: &Tuning) -> Graph {
    let nodes = graph.nodes().iter().cloned().map(Some).collect();
    let device = Target::new(capabilities, tuning, 0);
    let mut rewrite = Rewrite { graph: graph.clone(), nodes, keep, device };
    for index in 0..rewrite.nodes.len() {
        rewrite.norm(index);
        rewrite.norm_residual(index);
        rewrite.gate(index);
        rewrite.activation(index);
        rewrite.residual(index);
        rewrite.attention(index);
        rewrite.runs(index);
    }
    let nodes = rewrite.nodes.into_iter().flatten().collect();
    round_products(rewrite.graph, nodes, &|node, tokens| rounding(node, &device.with_tokens(tokens)))
}

/// The graph in which the inputs of all products with quantized weights in whole blocks are rounded to int8, as a CPU
/// does: what its results are compared with.
pub(crate) fn round_inputs(graph: &Graph) -> Graph {
    let int8 = |node: &Node, _| {
        let linear = node.op.as_any().downcast_ref::<Linear>().filter(|linear| linear.fits_int8())?;
        Some(rounded(linear, Rounding::Int8(Int8Order::Sequential)))
    };
    round_products(graph.clone(), graph.nodes().to_vec(), &int8)
}

/// The graph with the inputs of products rounded to f16 where the device multiplies cooperative matrices, and otherwise
/// as it was recorded: for training, whose backward pass reads what fusion would hide.
pub(crate) fn round_to_f16(graph: &Graph, capabilities: &Capabilities, tuning: &Tuning) -> Graph {
    let device = Target::new(capabilities, tuning, 0);
    let f16 = |node: &Node, tokens| {
        rounding(node, &device.with_tokens(tokens)).filter(|(_, rounding)| *rounding == Rounding::F16)
    };
    round_products(graph.clone(), graph.nodes().to_vec(), &f16)
}

/// A product that reads its first input rounded.
type Rounded = (Arc<dyn Op>, Rounding);

/// Rounds the inputs of the products for which `wanted` gives another, by the node and its number of tokens; an input
/// that several products read is rounded once.
fn round_products(mut graph: Graph, nodes: Vec<Node>, wanted: &dyn Fn(&Node, usize) -> Option<Rounded>) -> Graph {
    let mut rounded: HashMap<(Tensor, Rounding), Vec<Tensor>> = HashMap::new();
    let mut list = Vec::with_capacity(nodes.len());
    for node in nodes {
        let rounding = node.inputs.first().and_then(|&x| wanted(&node, graph.rows(x)));
        let written = node.outputs.clone();
        match rounding {
            Some((op, rounding)) => {
                let x = node.inputs[0];
                let codes = rounded.entry((x, rounding)).or_insert_with(|| {
                    let round = round(&mut graph, x, rounding);
                    list.push(round.clone());
                    round.outputs
                });
                let inputs = [codes, &node.inputs[1..]].concat();
                list.push(Node { op, inputs, outputs: node.outputs });
            }
            None => list.push(node),
        }
        rounded.retain(|(tensor, _), _| !written.contains(tensor));
    }
    graph.with_nodes(list)
}

/// The layer with its input rounded.
fn rounded(linear: &Linear, rounding: Rounding) -> Rounded {
    (Arc::new(Linear { rounded: Some(rounding), ..linear.clone() }), rounding)
}

/// The product that reads its first input rounded, and how, if a kernel of the device does.
fn rounding(node: &Node, target: &Target<'_>) -> Option<Rounded> {
    if let Some(linear) = node.op.as_any().downcast_ref::<Linear>() {
        return Some(rounded(linear, linear.rounding(target)?));
    }
    let backward = node.op.as_any().downcast_ref::<LinearBackward>()?;
    backward
        .takes_f16(target)
        .then(|| (Arc::new(LinearBackward { f16: true, ..backward.clone() }) as Arc<dyn Op>, Rounding::F16))
}

/// The node that rounds x.
fn round(graph: &mut Graph, x: Tensor, rounding: Rounding) -> Node {
    let (rows, width) = (graph.rows(x), graph.width(x));
    match rounding {
        Rounding::F16 => {
            let packed = graph.tensor(&[rows, ToF16::padded_words(width)], Dtype::U32);
            Node { op: Arc::new(ToF16 { padded: true }), inputs: vec![x], outputs: vec![packed] }
        }
        Rounding::Int8(order) => {
            let outputs =
                vec![graph.tensor(&[rows, width / 4], Dtype::U32), graph.tensor(&[rows, width / 32, 4], Dtype::F32)];
            Node { op: Arc::new(Quantize { order }), inputs: vec![x], outputs }
        }
    }
}

struct Rewrite<'a> {
    graph: Graph,
    /// The list; nodes that were fused into others are `None`.
    nodes: Vec<Option<Node>>,
    keep: &'a [Tensor],
    device: Target<'a>,
}

impl Rewrite<'_> {
    fn op<T: 'static>(&self, index: usize) -> Option<&T> {
        self.nodes.get(index)?.as_ref()?.op.as_any().downcast_ref()
    }

    /// The nodes that read a tensor, or `None` if the tensor must stay: it is a state, is in `keep`, or is written by
    /// several nodes.
    fn readers(&self, tensor: Tensor) -> Option<Vec<usize>> {
        let written = self.nodes.iter().flatten().filter(|node| node.outputs.contains(&tensor)).count();
        if self.keep.contains(&tensor) || self.graph.info(tensor).state.is_some() || written != 1 {
            return None;
        }
        let reads = |node: &Option<Node>| node.as_ref().is_some_and(|node| node.inputs.contains(&tensor));
        Some((0..self.nodes.len()).filter(|&i| reads(&self.nodes[i])).collect())
    }

    fn only_reader(&self, tensor: Tensor) -> Option<usize> {
        self.readers(tensor).filter(|readers| readers.len() == 1).map(|readers| readers[0])
    }

    /// Whether a linear layer over the rows of `x` should become `fused`: the same kernel then does more at once. Where
    /// `fused` would need another kernel, that is the slower one.
    fn pays(&self, linear: &Linear, fused: &Linear, x: Tensor) -> bool {
        linear.same_variant(fused, &self.device.with_tokens(self.graph.rows(x)))
    }

    fn replace(&mut self, index: usize, op: impl crate::graph::Op, inputs: Vec<Tensor>, outputs: Vec<Tensor>) {
        self.nodes[index] = Some(Node { op: Arc::new(op), inputs, outputs });
    }

    /// rms_norm, then linear: the inverse root is one factor per token, so it is applied after the sum.
    fn norm(&mut self, index: usize) -> Option<()> {
        let eps = self.op::<RmsNorm>(index)?.eps;
        let node = self.nodes[index].clone()?;
        if self.graph.width(node.inputs[0]) != self.graph.width(node.inputs[1]) {
            return None;
        }
        let readers = self.readers(node.outputs[0])?;
        let takes = |&reader: &usize| {
            self.op::<Linear>(reader).is_some_and(|linear| {
                linear.norm.is_none()
                    && self.pays(linear, &Linear { norm: Some(eps), ..linear.clone() }, node.outputs[0])
                    && self.nodes[reader].as_ref().is_some_and(|n| n.inputs[0] == node.outputs[0])
            })
        };
        if readers.is_empty() || !readers.iter().all(takes) {
            return None;
        }
        for reader in readers {
            let linear = Linear { norm: Some(eps), ..self.op::<Linear>(reader)?.clone() };
            let old = self.nodes[reader].clone()?;
            let inputs = [&node.inputs[..2], &old.inputs[1..]].concat();
            self.replace(reader, linear, inputs, old.outputs);
        }
        self.nodes[index] = None;
        Some(())
    }

    /// rms_norm, then add of a tensor that is already computed.
    fn norm_residual(&mut self, index: usize) -> Option<()> {
        let norm = self.op::<RmsNorm>(index)?.clone();
        let node = self.nodes[index].clone()?;
        let reader = self.only_reader(node.outputs[0])?;
        self.op::<Add>(reader)?;
        let add = self.nodes[reader].clone()?;
        let other = *add.inputs.iter().find(|&&t| t != node.outputs[0])?;
        if norm.residual || !self.known_before(other, index) {
            return None;
        }
        self.nodes[reader] = None;
        let inputs = [&node.inputs[..], &[other]].concat();
        self.replace(index, RmsNorm { residual: true, ..norm }, inputs, add.outputs);
        Some(())
    }

    /// Whether a tensor already has its value before the node at `index`.
    fn known_before(&self, tensor: Tensor, index: usize) -> bool {
        self.graph.info(tensor).state.is_some()
            || self.nodes[..index].iter().flatten().any(|n| n.outputs.contains(&tensor))
    }

    /// linear, then an activation.
    fn activation(&mut self, index: usize) -> Option<()> {
        let linear = self.op::<Linear>(index)?.clone();
        let node = self.nodes[index].clone()?;
        let reader = self.only_reader(node.outputs[0])?;
        let activation = self.op::<Activate>(reader)?.activation;
        let fused = Linear { activation: Some(activation), ..linear.clone() };
        if linear.gate.is_some()
            || linear.activation.is_some()
            || linear.residual
            || !self.pays(&linear, &fused, node.outputs[0])
        {
            return None;
        }
        let outputs = self.nodes[reader].take()?.outputs;
        self.replace(index, fused, node.inputs, outputs);
        Some(())
    }

    /// linear, then gated: the invocation that owns a row of the gate also owns the matching row of up.
    fn gate(&mut self, index: usize) -> Option<()> {
        let linear = self.op::<Linear>(index)?.clone();
        let node = self.nodes[index].clone()?;
        let reader = self.only_reader(node.outputs[0])?;
        let activation = self.op::<Gated>(reader)?.activation;
        let fused = Linear { gate: Some(activation), ..linear.clone() };
        if linear.gate.is_some()
            || linear.activation.is_some()
            || linear.residual
            || !self.pays(&linear, &fused, node.outputs[0])
        {
            return None;
        }
        let outputs = self.nodes[reader].take()?.outputs;
        self.replace(index, fused, node.inputs, outputs);
        Some(())
    }

    /// linear, then add of a tensor that is already computed.
    fn residual(&mut self, index: usize) -> Option<()> {
        let linear = self.op::<Linear>(index)?.clone();
        let node = self.nodes[index].clone()?;
        let reader = self.only_reader(node.outputs[0])?;
        self.op::<Add>(reader)?;
        let add = self.nodes[reader].clone()?;
        let other = *add.inputs.iter().find(|&&t| t != node.outputs[0])?;
        if linear.gate.is_some()
            || linear.activation.is_some()
            || linear.residual
            || linear.norm.is_some()
            || !self.known_before(other, index)
        {
            return None;
        }
        self.nodes[reader] = None;
        let inputs = [&node.inputs[..], &[other]].concat();
        self.replace(index, Linear { residual: true, ..linear }, inputs, add.outputs);
        Some(())
    }

    /// rope, append and attention of a single token.
    fn attention(&mut self, index: usize) -> Option<()> {
        let rope = self.op::<Rope>(index)?.clone();
        let node = self.nodes[index].clone()?;
        if self.graph.shape(node.inputs[0])[0] != 1 || node.outputs.len() != 3 {
            return None;
        }
        let [q, k, v] = node.outputs[..] else { return None };
        let (append_at, attention_at) = (self.only_reader(k)?, self.only_reader(q)?);
        self.op::<Append>(append_at)?;
        let attention = self.op::<Attention>(attention_at)?.clone();
        let op = AttentionDecode { rope, attention };
        if !op.has_variant(&self.device.with_tokens(1)) {
            return None;
        }
        let (append, attend) = (self.nodes[append_at].clone()?, self.nodes[attention_at].clone()?);
        let matches = self.only_reader(v)? == append_at
            && append.inputs[..2] == [k, v]
            && attend.inputs[1..3] == append.outputs[..2]
            && append_at < attention_at;
        if !matches {
            return None;
        }
        let runs = self.graph.tensor(&op.runs(self.device.capabilities, 1), Dtype::F32);
        let inputs = [&[node.inputs[0], node.inputs[1], node.inputs[2], append.inputs[3]], &node.inputs[3..]].concat();
        let outputs = vec![attend.outputs[0], append.outputs[0], append.outputs[1], runs];
        self.nodes[index] = None;
        self.nodes[append_at] = None;
        self.replace(attention_at, op, inputs, outputs);
        Some(())
    }

    /// Attention of few tokens: the results of its runs become an output, so that all layers use the same memory.
    fn runs(&mut self, index: usize) -> Option<()> {
        let attention = self.op::<Attention>(index)?.clone();
        let node = self.nodes[index].clone()?;
        let tokens = self.graph.rows(node.inputs[0]);
        let sizes = attention.runs(&self.device.with_tokens(tokens))?;
        let runs = self.graph.tensor(&sizes, Dtype::F32);
        self.replace(index, attention, node.inputs, vec![node.outputs[0], runs]);
        Some(())
    }
}

/// Counts a graph's operations by name, for tests and reports.
pub fn count_ops(graph: &Graph) -> HashMap<&'static str, usize> {
    let mut counts = HashMap::new();
    graph.nodes().iter().for_each(|node| *counts.entry(node.op.name()).or_insert(0) += 1);
    counts
}
