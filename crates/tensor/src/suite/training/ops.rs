//! Gradients of single operations.

use std::sync::Arc;

use bayan_gpu::GpuError;
use bayan_weights::{Codes, FORMATS, Format, format_by_name};

use super::gradient::{Differentiated, GradientCase, gradient, zeros};
use crate::graph::{Graph, State, Tensor};
use crate::ops::{
    Activation, Attention, CacheRows, Causality, Dropout, HeadNorm, QUERY_TILE, Rope, ShortConv, StateSpace,
};
use crate::suite::case::RandomTensors;

pub(super) fn element_cases() -> Vec<GradientCase> {
    let mut all = Vec::new();
    for (rows, width) in [(2, 12), (3, 33), (5, 2304)] {
        let small = width < 100;
        all.push(gradient(format!("rms_norm_backward {rows}x{width}"), small, move |make, graph| {
            let (x, weight) = (make.random(&[rows, width])?, make.random(&[width])?);
            let input = graph.state(&x);
            // Twice, so that the second contribution is added to the first.
            let (a, b) = (graph.rms_norm(input, &weight, 1e-5), graph.rms_norm(input, &weight, 0.1));
            Ok((graph.add(a, b), vec![x]))
        }));
        all.push(gradient(format!("layer_norm_backward {rows}x{width}"), small, move |make, graph| {
            let (x, weight, bias) = (make.random(&[rows, width])?, make.random(&[width])?, make.random(&[width])?);
            let input = graph.state(&x);
            let (a, b) =
                (graph.layer_norm(input, &weight, Some(&bias), 1e-2), graph.layer_norm(input, &weight, None, 0.1));
            Ok((graph.add(a, b), vec![x]))
        }));
        all.push(gradient(format!("activate_backward {rows}x{width}"), small, move |make, graph| {
            let (x, factors) = (make.random(&[rows, width])?, make.random(&[width])?);
            let input = graph.state(&x);
            let input = graph.scale_columns(input, &factors);
            Ok((graph.activate(input, Activation::Relu2), vec![x]))
        }));
        for activation in [Activation::Silu, Activation::GeluTanh] {
            all.push(gradient(
                format!("gated_backward {} {rows}x{width}", activation.name()),
                small,
                move |make, graph| {
                    let x = make.random(&[rows, 2 * width])?;
                    let input = graph.state(&x);
                    Ok((graph.gated(input, activation), vec![x]))
                },
            ));
        }
        all.push(gradient(format!("select_rows_backward {rows}x{width}"), small, move |make, graph| {
            let x = make.random(&[rows, width])?;
            let chosen = make.indices(&[4], vec![rows as u32 - 1, 0, 0, 1])?;
            let (input, chosen) = (graph.state(&x), graph.state(&chosen));
            Ok((graph.select_rows(input, chosen), vec![x]))
        }));
        all.push(gradient(format!("dropout_backward {rows}x{width}"), small, move |make, graph| {
            let x = make.random(&[rows, width])?;
            let seed = make.indices(&[1], vec![77])?;
            let input = graph.state(&x);
            Ok((graph.dropout(input, &Dropout { p: 0.3, salt: 5, seed }), vec![x]))
        }));
    }
    let norms = [Some(HeadNorm::Rms), None, Some(HeadNorm::RmsWhole), Some(HeadNorm::Layer)];
    for (index, (heads, kv_heads, head_dim)) in [(2, 1, 8), (4, 2, 8), (8, 2, 80), (4, 2, 256)].into_iter().enumerate()
    {
        for (interleaved, norm) in
            [(false, norms[index]), (true, norms[(index + 1) % 4]), (index > 1, norms[(index + 2) % 4])]
        {
            let name = format!(
                "rope_backward {heads}/{kv_heads}x{head_dim} {norm:?}{}",
                if interleaved { " interleaved" } else { "" }
            );
            all.push(gradient(name, head_dim < 16, move |make, graph| {
                rope(make, graph, [heads, kv_heads, head_dim], norm, interleaved)
            }));
        }
    }
    all
}

pub(crate) fn table(make: &mut RandomTensors<'_>, positions: usize, rotary: usize) -> Result<Arc<State>, GpuError> {
    let angle = |p: usize, i: usize| p as f32 * 0.3f32.powi(i as i32);
    let values = (0..positions).flat_map(|p| (0..rotary / 2).flat_map(move |i| [angle(p, i).cos(), angle(p, i).sin()]));
    make.state(&[positions, rotary], values.collect())
}

fn rope(
    make: &mut RandomTensors<'_>,
    graph: &mut Graph,
    sizes: [usize; 3],
    norm: Option<HeadNorm>,
    interleaved: bool,
) -> Result<(Tensor, Vec<Arc<State>>), GpuError> {
    let [heads, kv_heads, head_dim] = sizes;
    let rotary_dim = if norm.is_some() { head_dim } else { head_dim / 2 };
    let x = make.random(&[3, (heads + 2 * kv_heads) * head_dim])?;
    let positions = make.indices(&[3], vec![0, 9, 4])?;
    let table = table(make, 10, rotary_dim)?;
    let each = norm.is_some_and(HeadNorm::each);
    let widths = if each { [heads * head_dim, kv_heads * head_dim] } else { [head_dim; 2] };
    let weights = if norm.is_some() { Some((make.random(&widths[..1])?, make.random(&widths[1..])?)) } else { None };
    let (qkv, positions) = (graph.state(&x), graph.state(&positions));
    let rope = Rope {
        heads,
        kv_heads,
        head_dim,
        rotary_dim,
        interleaved,
        norm_eps: norm.map(|_| 1e-2),
        norm: norm.unwrap_or_default(),
        ..Default::default()
    };
    let rotated = graph.rope(rope, qkv, positions, &table, weights.as_ref().map(|(q, k)| (q, k)));
    Ok((joined_heads(make, graph, rotated)?, vec![x]))
}

/// Combines all three in one tensor: scaled keys and values are added to some columns of the queries.
pub(crate) fn joined_heads(
    make: &mut RandomTensors<'_>,
    graph: &mut Graph,
    [q, k, v]: [Tensor; 3],
) -> Result<Tensor, GpuError> {
    let tokens = graph.shape(q)[0];
    let (y, inner) = (graph.flatten(q), graph.shape(k)[1] * graph.shape(k)[2]);
    let width = graph.width(y);
    let ones = make.state(&[inner, 3], (0..3 * inner).map(|i| (i % 7) as f32 - 2.5).collect())?;
    let ones = graph.state(&ones);
    for (part, offset) in [(k, 0), (v, 2)] {
        let part = graph.flatten(part);
        let view = |width| crate::ops::View::of(width);
        let c = crate::ops::View { offset, ..view(width) };
        graph.product(
            crate::ops::Product {
                m: tokens,
                n: 3,
                k: inner,
                a: view(inner),
                b: view(3),
                c,
                alpha: 0.5,
                add: true,
                packed: false,
            },
            part,
            ones,
            y,
        );
    }
    Ok(y)
}

pub(super) fn linear_cases() -> Vec<GradientCase> {
    let mut all = Vec::new();
    for &format in FORMATS {
        for (n, k, tokens) in [(7, 32, 2), (33, 100, 3), (130, 96, 40), (300, 160, 65), (64, 1056, 9)] {
            let small = tokens < 4 && matches!(format.codes(), Codes::Values | Codes::Signed { .. });
            all.push(gradient(
                format!("linear_backward {} {n}x{k}, {tokens} tokens", format.name()),
                small,
                move |make, graph| {
                    let weight = make.matrix(format, n, k)?;
                    let x = make.random(&[tokens, k])?;
                    let input = graph.state(&x);
                    let (a, b) = (graph.linear(input, &weight, None), graph.linear(input, &weight, None));
                    Ok((graph.add(a, b), vec![x]))
                },
            ));
        }
    }
    all.push(gradient("linear_backward stacked q4_k q6_k f16, 9 tokens".to_string(), false, move |make, graph| {
        let weight = make.stacked(&["q4_k", "q6_k", "f16"], 96)?;
        let x = make.random(&[9, 96])?;
        let input = graph.state(&x);
        let (a, b) = (graph.linear(input, &weight, None), graph.linear(input, &weight, None));
        Ok((graph.add(a, b), vec![x]))
    }));
    all
}

pub(super) fn product_cases() -> Vec<GradientCase> {
    let mut all = Vec::new();
    for (tokens, k, n, rank) in [
        (3, 8, 6, 2),
        (4, 8, 12, 4),
        (36, 40, 20, 4),
        (40, 96, 130, 8),
        (70, 1000, 300, 16),
        (300, 64, 33, 64),
        (1, 512, 256, 8),
    ] {
        all.push(gradient(format!("lora {tokens} tokens {n}x{k} rank {rank}"), tokens == 3, move |make, graph| {
            let weight = make.matrix(FORMATS[0], n, k)?;
            let (x, a, b, b2) = (
                make.random(&[tokens, k])?,
                make.random(&[rank, k])?,
                make.random(&[n, rank])?,
                make.random(&[n / 2, rank])?,
            );
            let input = graph.state(&x);
            let y = graph.linear(input, &weight, None);
            graph.lora(input, y, 0, &a, &b, 0.5);
            graph.lora(input, y, n / 2, &a, &b2, 1.5);
            Ok((y, vec![x, a, b, b2]))
        }));
    }
    all
}

/// Layers with a state, over consecutive sequences.
pub(super) fn recurrent_cases() -> Vec<GradientCase> {
    let mut all = Vec::new();
    let steps: [&[usize]; 3] = [&[5, 1, 4], &[40, 30], &[130]];
    for lengths in steps {
        let tokens: usize = lengths.iter().sum();
        all.extend([false, true].into_iter().flat_map(|trained| convolutions(lengths, trained)));
        for (heads, head_dim, groups, state_size) in [(4, 4, 2, 8), (3, 5, 1, 3)] {
            all.push(gradient(
                format!("state_space {heads}x{head_dim} {groups}x{state_size} {lengths:?}"),
                tokens == 10,
                move |make, graph| {
                    let inner = heads * head_dim;
                    let op = StateSpace {
                        heads,
                        head_dim,
                        groups,
                        state_size,
                        steps: inner + 3,
                        scale: 0.7,
                        context: tokens,
                    };
                    let (mixed, projection) = (
                        make.random(&[tokens, inner + 2 * groups * state_size])?,
                        make.random(&[tokens, inner + 3 + heads])?,
                    );
                    let numbers = make
                        .numbers(3 * heads, false)
                        .iter()
                        .enumerate()
                        .map(|(i, v)| if i < heads { -v.abs() } else { *v })
                        .collect();
                    let (constants, state) = (make.state(&[3, heads], numbers)?, make.random(&[1, op.state_len()])?);
                    let over = packed(make, graph, lengths)?;
                    let inputs = [graph.state(&mixed), graph.state(&projection)];
                    Ok((graph.state_space(op, inputs[0], inputs[1], &constants, over, &state), vec![mixed, projection]))
                },
            ));
        }
    }
    all
}

/// Short convolutions: the gradient of the input and, with `trained`, of weight and bias.
fn convolutions(lengths: &'static [usize], trained: bool) -> impl Iterator<Item = GradientCase> {
    let tokens: usize = lengths.iter().sum();
    [(6, 3, true, true), (10, 4, false, true), (7, 2, false, false)].into_iter().map(
        move |(channels, kernel, gated, bias)| {
            let (what, after) = (if trained { " weights" } else { "" }, if gated { " gated" } else { "" });
            gradient(
                format!("short_conv{what} {channels}x{kernel} {lengths:?}{after}"),
                tokens == 10,
                move |make, graph| {
                    let width = 3 + channels * if gated { 3 } else { 2 };
                    let (x, weight, last) = (
                        make.random(&[tokens, width])?,
                        make.random(&[channels, kernel])?,
                        make.random(&[1, channels * (kernel - 1)])?,
                    );
                    let bias = if bias { Some(make.random(&[channels])?) } else { None };
                    let over = packed(make, graph, lengths)?;
                    let input = graph.state(&x);
                    let op = ShortConv { channels, kernel, first: 3, gated, bias: false, context: tokens };
                    let y = graph.short_conv(op, input, &weight, bias.as_ref(), over, &last);
                    let by = [Some(x), Some(weight).filter(|_| trained), bias.filter(|_| trained)];
                    Ok((y, by.into_iter().flatten().collect()))
                },
            )
        },
    )
}

/// The options of an attention case.
#[derive(Debug, Clone, Copy)]
struct Heads {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    softcap: Option<f32>,
    alibi: Option<f32>,
}

/// The tokens of consecutive sequences: positions, bases and tiles.
pub(crate) fn packed(
    make: &mut RandomTensors<'_>,
    graph: &mut Graph,
    sequences: &[usize],
) -> Result<Causality, GpuError> {
    let (mut positions, mut bases, mut tiles) = (Vec::new(), Vec::new(), Vec::new());
    for &len in sequences {
        let first = positions.len();
        tiles.extend(
            (0..len).step_by(QUERY_TILE).flat_map(|start| [(first + start) as u32, QUERY_TILE.min(len - start) as u32]),
        );
        positions.extend((0..len).map(|p| p as u32));
        bases.extend(std::iter::repeat_n(first as u32, len));
    }
    let tokens = positions.len();
    let (positions, bases) = (make.indices(&[tokens], positions)?, make.indices(&[tokens], bases)?);
    let tiles = make.indices(&[tiles.len() / 2, 2], tiles)?;
    Ok(Causality { positions: graph.state(&positions), bases: graph.state(&bases), tiles: graph.state(&tiles) })
}

pub(super) fn attention_cases() -> Vec<GradientCase> {
    let plain = Heads { heads: 2, kv_heads: 1, head_dim: 4, window: None, softcap: None, alibi: None };
    let mut all = Vec::new();
    let shapes: [(Heads, &'static [usize]); 10] = [
        (Heads { heads: 3, kv_heads: 3, alibi: Some(0.7), ..plain }, &[6, 2]),
        (Heads { heads: 6, kv_heads: 3, head_dim: 64, alibi: Some(1.0), ..plain }, &[37, 20]),
        (plain, &[5]),
        (Heads { heads: 4, kv_heads: 2, window: Some(3), softcap: Some(2.0), ..plain }, &[6, 1, 4]),
        (Heads { heads: 4, kv_heads: 4, head_dim: 64, ..plain }, &[40]),
        (Heads { heads: 8, kv_heads: 2, head_dim: 80, ..plain }, &[33, 17, 1]),
        (Heads { heads: 7, kv_heads: 1, head_dim: 128, window: Some(16), ..plain }, &[70]),
        (Heads { heads: 4, kv_heads: 2, head_dim: 256, softcap: Some(5.0), ..plain }, &[20, 20]),
        (Heads { heads: 4, kv_heads: 2, head_dim: 36, window: Some(20), softcap: Some(5.0), ..plain }, &[50, 3]),
        (Heads { heads: 2, kv_heads: 2, head_dim: 512, ..plain }, &[18]),
    ];
    all.extend(shapes.into_iter().map(|(shape, sequences)| attention_case(shape, sequences.to_vec())));
    all
}

/// One sequence of `tokens` tokens.
pub(crate) fn long_attention_case(tokens: usize) -> GradientCase {
    let shape = Heads { heads: 2, kv_heads: 1, head_dim: 32, window: None, softcap: None, alibi: None };
    attention_case(shape, vec![tokens])
}

fn attention_case(shape: Heads, sequences: Vec<usize>) -> GradientCase {
    let tokens: usize = sequences.iter().sum();
    let name = format!("attention_backward {shape:?} {sequences:?}");
    gradient(name, tokens < 12, move |make, graph| {
        let Heads { heads, kv_heads, head_dim, window, softcap, alibi } = shape;
        let q = make.random(&[tokens, heads, head_dim])?;
        let (k, v) = (make.random(&[tokens, kv_heads, head_dim])?, make.random(&[tokens, kv_heads, head_dim])?);
        let over = packed(make, graph, &sequences)?;
        let cache = [zeros(make, &[tokens, kv_heads * head_dim])?, zeros(make, &[tokens, kv_heads * head_dim])?];
        let [tq, tk, tv] = [&q, &k, &v].map(|state| graph.state(state));
        let (keys, values) =
            graph.append(CacheRows::direct(tokens), tk, tv, over.positions, over.bases, [&cache[0], &cache[1]]);
        let attention = Attention {
            heads,
            kv_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            softcap,
            window,
            alibi,
            context: tokens,
            ..Default::default()
        };
        let y = graph.attention(attention, tq, keys, values, over);
        Ok((y, vec![q, k, v]))
    })
}

pub(super) fn loss_cases() -> Vec<GradientCase> {
    let mut all = Vec::new();
    let q8: &'static dyn Format = format_by_name("q8_0").unwrap_or(FORMATS[0]);
    let sizes = [(FORMATS[0], 3, 8, 20, 1 << 20), (FORMATS[0], 4, 8, 600, 1), (q8, 33, 64, 1003, 33 * 512)];
    for ((format, rows, width, vocabulary, budget), cap) in
        sizes.into_iter().flat_map(|sizes| [(sizes, None), (sizes, Some(1.5))])
    {
        all.push(loss_case(format, rows, width, vocabulary, budget, cap));
    }
    for (rows, pairs) in [(12, 2), (150, 3)] {
        let record = move |make: &mut RandomTensors<'_>| {
            let (mut graph, hidden) = (Graph::new(), make.random(&[rows, 8])?);
            let weight = make.matrix(FORMATS[0], 20, 8)?;
            let targets = make.indices(&[rows], (0..rows).map(|r| (r * 13 % 20) as u32).collect())?;
            let sequence_of_row =
                (0..rows).map(|r| if r % 11 == 10 { crate::ops::IGNORED } else { (r % (2 * pairs)) as u32 });
            let sequence_of_row = make.indices(&[rows], sequence_of_row.collect())?;
            let (reference, settings) = (make.random(&[pairs, 2])?, make.state(&[4], vec![0.3, 0.5, 0.0, 0.0])?);
            let [h, targets, sequence_of_row, reference, settings] =
                [&hidden, &targets, &sequence_of_row, &reference, &settings].map(|state| graph.state(state));
            let logits = graph.linear(h, &weight, None);
            let Some(sweep) = graph.cross_entropy(logits, targets, 1 << 20) else {
                unreachable!("straight from a linear layer")
            };
            let [_, weights, _, loss] = graph.preference_loss(sweep.statistics, sequence_of_row, reference, settings);
            let dh = graph.cross_entropy_backward(&sweep, weights, &[]);
            Ok(Differentiated { graph, y: loss, cotangent: None, gradients: vec![(hidden, dh)] })
        };
        all.push(GradientCase {
            name: format!("preference_loss {rows} rows, {pairs} pairs"),
            bound: 1e-10,
            small: rows < 20,
            record: Box::new(record),
        });
    }
    all
}

/// The cross-entropy of random rows [rows, width] over a vocabulary, with `budget` logits at a time.
pub(crate) fn loss_case(
    format: &'static dyn Format,
    rows: usize,
    width: usize,
    vocabulary: usize,
    budget: usize,
    cap: Option<f32>,
) -> GradientCase {
    let record = move |make: &mut RandomTensors<'_>| {
        let (mut graph, hidden) = (Graph::new(), make.random(&[rows, width])?);
        let weight = make.matrix(format, vocabulary, width)?;
        let mut targets: Vec<u32> = (0..rows).map(|r| (r * 7919 % vocabulary) as u32).collect();
        targets[1] = crate::ops::IGNORED;
        let (targets, weights) = (make.indices(&[rows], targets)?, make.random(&[rows])?);
        let [h, targets, weights] = [&hidden, &targets, &weights].map(|state| graph.state(state));
        let logits = graph.linear(h, &weight, None);
        let logits = cap.map_or(logits, |cap| graph.softcap(logits, cap));
        let Some(sweep) = graph.cross_entropy(logits, targets, budget) else {
            unreachable!("straight from a linear layer")
        };
        let (loss, _) = graph.weighted_loss(sweep.statistics, targets, weights);
        let dh = graph.cross_entropy_backward(&sweep, weights, &[]);
        Ok(Differentiated { graph, y: loss, cotangent: None, gradients: vec![(hidden, dh)] })
    };
    let name = format!(
        "cross_entropy {} {rows}x{width}, {vocabulary} entries, {budget} at a time{}",
        format.name(),
        if cap.is_some() { ", capped" } else { "" }
    );
    GradientCase { name, bound: 1e-10, small: rows < 10, record: Box::new(record) }
}
