//! The gradients of whole layers.

use std::sync::Arc;

use bayan_gpu::GpuError;
use bayan_weights::FORMATS;

use super::gradient::{GradientCase, differentiate, zeros};
use super::ops::{packed, table};
use crate::graph::{Graph, State, Tensor};
use crate::ops::{Activation, Attention, CacheRows, Rope};
use crate::suite::case::RandomTensors;

/// Two pre-norm layers with LoRA adapters, all operations together, with and without recomputation.
pub(super) fn cases() -> Vec<GradientCase> {
    let mut all = Vec::new();
    for recompute in [false, true] {
        let record = move |make: &mut RandomTensors<'_>| {
            let mut graph = Graph::new();
            let (y, by) = layers(make, &mut graph, 1, 2)?;
            differentiate(make, graph, y, by, recompute)
        };
        all.push(GradientCase {
            name: format!("layers, recompute {recompute}"),
            bound: 1e-9,
            small: true,
            record: Box::new(record),
        });
    }
    all
}

/// `count` layers, each size `times` that of the smallest case.
pub(crate) fn layers(
    make: &mut RandomTensors<'_>,
    graph: &mut Graph,
    times: usize,
    count: usize,
) -> Result<(Tensor, Vec<Arc<State>>), GpuError> {
    let (width, heads, head_dim, sequences) = (8 * times, 2, 4 * times, [4, 3]);
    let embedding = make.matrix(FORMATS[0], 11, width)?;
    let tokens = make.indices(&[7], vec![3, 1, 4, 1, 5, 9, 2])?;
    let tokens = graph.state(&tokens);
    let over = packed(make, graph, &sequences)?;
    let table = table(make, 8, head_dim)?;
    let mut x = graph.embed(tokens, &embedding, 20.0);
    let mut by = Vec::new();
    for _ in 0..count {
        let mut matrix = |rows, columns| make.matrix(FORMATS[0], rows * times, columns * times);
        let (qkv_weight, gate_weight, down_weight) = (matrix(16, 8)?, matrix(12, 8)?, matrix(8, 6)?);
        let norm = make.numbers(width, false).iter().map(|v| 2.0 * v).collect();
        let norm = make.state(&[width], norm)?;
        // Weights are smaller where sums are longer, so that attention does not look at a single key.
        let small = |make: &mut RandomTensors<'_>, shape: &[usize]| {
            let values = make.numbers(shape.iter().product(), false).iter().map(|v| v / times as f32).collect();
            make.state(shape, values)
        };
        let pairs = [(0, 8, 8), (12, 4, 8), (0, 8, 6)].map(|(first, rows, columns)| {
            Ok((first * times, make.random(&[2, columns * times])?, small(make, &[rows * times, 2])?))
        });
        let [q_pair, v_pair, down_pair] = pairs;
        let (q_pair, v_pair, down_pair): (_, _, (usize, Arc<State>, Arc<State>)) = (q_pair?, v_pair?, down_pair?);
        let h = graph.rms_norm(x, &norm, 1e-3);
        let qkv = graph.linear(h, &qkv_weight, None);
        for (first, a, b) in [&q_pair, &v_pair] {
            graph.lora(h, qkv, *first, a, b, 0.3);
        }
        let rope = Rope { heads, kv_heads: 1, head_dim, rotary_dim: head_dim, ..Default::default() };
        let [q, k, v] = graph.rope(rope, qkv, over.positions, &table, None);
        let cache = [zeros(make, &[7, head_dim])?, zeros(make, &[7, head_dim])?];
        let (keys, values) =
            graph.append(CacheRows::direct(8), k, v, over.positions, over.bases, [&cache[0], &cache[1]]);
        let attention = Attention {
            heads,
            kv_heads: 1,
            head_dim,
            scale: 0.5,
            softcap: None,
            window: None,
            context: 8,
            ..Default::default()
        };
        let y = graph.attention(attention, q, keys, values, over);
        let y = graph.flatten(y);
        x = graph.add(x, y);
        let h = graph.rms_norm(x, &norm, 1e-3);
        let gate = graph.linear(h, &gate_weight, None);
        let y = graph.gated(gate, Activation::Silu);
        let z = graph.linear(y, &down_weight, None);
        graph.lora(y, z, 0, &down_pair.1, &down_pair.2, 0.3);
        x = graph.add(x, z);
        by.extend([q_pair.1, q_pair.2, v_pair.1, v_pair.2, down_pair.1, down_pair.2]);
    }
    Ok((x, by))
}
