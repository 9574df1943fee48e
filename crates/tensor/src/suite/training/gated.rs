//! Gradients of the operations of Gemma 4 and Qwen 3.5: gated columns, norms of runs, projections of other heads than
//! queries, keys and values, keys that two layers read, and the gated delta rule.

use super::gradient::{GradientCase, gradient};
use super::ops::{joined_heads, packed, table};
use crate::ops::{Activation, Attention, CacheRows, Columns, GateColumns, GatedDelta, Projection, Rope};

pub(super) fn cases() -> Vec<GradientCase> {
    let mut all = element_cases();
    all.extend(projection_cases());
    all.extend(shared_key_cases());
    all.extend(delta_cases());
    all
}

fn element_cases() -> Vec<GradientCase> {
    let mut all = Vec::new();
    for (rows, width) in [(2, 4), (5, 33), (3, 700)] {
        for activation in [Activation::Sigmoid, Activation::Silu, Activation::GeluTanh] {
            let name = format!("gate_columns {} {rows}x{width}", activation.name());
            all.push(gradient(name, width < 40, move |make, graph| {
                let (x, gate) = (make.random(&[rows, 2 * width + 3])?, make.random(&[rows, 4 * width + 1])?);
                let (of_x, of_gate) = (graph.state(&x), graph.state(&gate));
                let op = GateColumns {
                    count: 2 * width,
                    activation,
                    x: Columns::from(3, 2 * width),
                    gate: Columns { first: width, run: width, step: 2 * width },
                };
                // Twice, so that the second contribution is added to the first.
                let other = GateColumns { x: Columns::from(1, 2 * width), ..op.clone() };
                let (a, b) = (graph.gate_columns(op, of_x, of_gate), graph.gate_columns(other, of_x, of_gate));
                Ok((graph.add(a, b), vec![x, gate]))
            }));
        }
        all.push(gradient(format!("rms_norm of runs {rows}x3x{width}"), width < 40, move |make, graph| {
            let (x, weight) = (make.random(&[rows, 3 * width])?, make.random(&[width])?);
            let input = graph.state(&x);
            let y = graph.rms_norm(input, &weight, 0.1);
            Ok((graph.scale(y, 0.7), vec![x, weight]))
        }));
        all.push(gradient(format!("scale_columns by one number {rows}x{width}"), width < 40, move |make, graph| {
            let (x, factor) = (make.random(&[rows, width])?, make.random(&[1])?);
            let input = graph.state(&x);
            Ok((graph.scale_columns(input, &factor), vec![x]))
        }));
    }
    all
}

fn projection_cases() -> Vec<GradientCase> {
    let kinds = [
        (Projection::Separate, true),
        (Projection::ValuesAreKeys, true),
        (Projection::ValuesAreKeys, false),
        (Projection::GatedQueries, false),
        (Projection::Queries, false),
    ];
    let mut all = Vec::new();
    for (heads, kv_heads, head_dim) in [(2, 1, 8), (4, 2, 80)] {
        for (projection, norm_values) in kinds {
            let of_values = if norm_values { " norm of values" } else { "" };
            let name = format!("rope_backward {heads}/{kv_heads}x{head_dim} {projection:?}{of_values}");
            all.push(gradient(name, head_dim < 16, move |make, graph| {
                let rope = Rope {
                    heads,
                    kv_heads,
                    head_dim,
                    rotary_dim: head_dim,
                    norm_eps: Some(1e-2),
                    norm_values,
                    projection,
                    ..Default::default()
                };
                let x = make.random(&[3, rope.width()])?;
                let positions = make.indices(&[3], vec![0, 9, 4])?;
                let table = table(make, 10, head_dim)?;
                let (q, k) = (make.random(&[head_dim])?, make.random(&[head_dim])?);
                let (input, positions) = (graph.state(&x), graph.state(&positions));
                if projection == Projection::Queries {
                    let y = graph.rope_queries(rope, input, positions, &table, Some(&q));
                    return Ok((graph.flatten(y), vec![x, q]));
                }
                let rotated = graph.rope(rope, input, positions, &table, Some((&q, &k)));
                Ok((joined_heads(make, graph, rotated)?, vec![x, q, k]))
            }));
        }
    }
    all
}

/// Keys and values that the attention of two layers reads.
fn shared_key_cases() -> Vec<GradientCase> {
    [(4, &[5usize, 3][..]), (64, &[40, 9][..])]
        .into_iter()
        .map(|(head_dim, lengths)| {
            gradient(format!("attention over shared keys x{head_dim}"), head_dim < 16, move |make, graph| {
                let tokens: usize = lengths.iter().sum();
                let shapes =
                    [[tokens, 2, head_dim], [tokens, 2, head_dim], [tokens, 1, head_dim], [tokens, 1, head_dim]];
                let [q, other, k, v] = shapes.map(|shape| make.random(&shape));
                let (q, other, k, v) = (q?, other?, k?, v?);
                let over = packed(make, graph, lengths)?;
                let cache = [make.random(&[tokens, head_dim])?, make.random(&[tokens, head_dim])?];
                let [tq, to, tk, tv] = [&q, &other, &k, &v].map(|state| graph.state(state));
                let rows = CacheRows::direct(tokens);
                let caches = [&cache[0], &cache[1]];
                let (keys, values) = graph.append(rows, tk, tv, over.positions, over.bases, caches);
                let attention =
                    Attention { heads: 2, kv_heads: 1, head_dim, scale: 0.5, context: tokens, ..Default::default() };
                let a = graph.attention(attention.clone(), tq, keys, values, over);
                let b = graph.attention(Attention { window: Some(3), ..attention }, to, keys, values, over);
                Ok((graph.add(a, b), vec![q, other, k, v]))
            })
        })
        .collect()
}

fn delta_cases() -> Vec<GradientCase> {
    let mut all = Vec::new();
    let steps: [&[usize]; 3] = [&[5, 1, 4], &[40, 30], &[130]];
    for lengths in steps {
        let tokens: usize = lengths.iter().sum();
        for (heads, value_dim, key_heads, key_dim) in [(4, 3, 2, 5), (2, 8, 2, 4), (6, 3, 2, 4)] {
            let name = format!("gated_delta {heads}x{value_dim} {key_heads}x{key_dim} {lengths:?}");
            all.push(gradient(name, tokens == 10, move |make, graph| {
                let op = GatedDelta { heads, value_dim, key_heads, key_dim, tiled: heads == 6, context: tokens };
                let (mixed, gates) = (make.random(&[tokens, op.width()])?, make.random(&[tokens, 2 * heads])?);
                let numbers = make.numbers(2 * heads, false);
                let numbers = numbers.iter().enumerate().map(|(i, v)| if i < heads { -v.abs() } else { *v }).collect();
                let (constants, state) = (make.state(&[2, heads], numbers)?, make.random(&[1, op.state_len()])?);
                let over = packed(make, graph, lengths)?;
                let inputs = [graph.state(&mixed), graph.state(&gates)];
                Ok((graph.gated_delta(op, inputs[0], inputs[1], &constants, over, &state), vec![mixed, gates]))
            }));
        }
    }
    all
}
