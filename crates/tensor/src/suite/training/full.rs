//! Cases of training all parameters: gradients of matrices, tables, biases and norms, alone and together.

use std::sync::Arc;

use bayan_gpu::GpuError;

use super::gradient::{Differentiated, GradientCase, differentiate, gradient, zeros};
use super::ops::{joined_heads, packed, table};
use crate::graph::{Graph, State, Tensor};
use crate::ops::{Activation, Affine, Attention, CacheRows, HeadNorm, IGNORED, Rope};
use crate::passes::BackwardOptions;
use crate::suite::case::RandomTensors;

/// All gradients that only training of all parameters has.
pub(crate) fn cases() -> Vec<GradientCase> {
    let mut all = matrix_cases();
    all.extend(norm_cases());
    all.extend(table_cases());
    all.extend([false, true].map(|recompute| {
        let record = move |make: &mut RandomTensors<'_>| layers(make, recompute);
        GradientCase {
            name: format!("all parameters of layers, recompute {recompute}"),
            bound: 1e-9,
            small: true,
            record: Box::new(record),
        }
    }));
    all
}

fn matrix_cases() -> Vec<GradientCase> {
    let mut all = Vec::new();
    for (n, k, tokens) in [(5, 7, 3), (33, 100, 3), (130, 96, 40), (300, 160, 65), (64, 1056, 9), (40, 20, 700)] {
        let small = n * k < 100;
        all.push(gradient(format!("weight_gradient {n}x{k}, {tokens} tokens"), small, move |make, graph| {
            let (weight, numbers) = make.trained_matrix(n, k)?;
            let (x, z, bias) = (make.random(&[tokens, k])?, make.random(&[tokens, k])?, make.random(&[n])?);
            let (input, other) = (graph.state(&x), graph.state(&z));
            // The matrix is used twice, as a shared matrix would be.
            let (a, b) = (graph.linear(input, &weight, Some(&bias)), graph.linear(other, &weight, None));
            Ok((graph.add(a, b), vec![x, numbers, bias]))
        }));
    }
    all
}

fn norm_cases() -> Vec<GradientCase> {
    let mut all = Vec::new();
    for (rows, width) in [(2, 12), (3, 33), (5, 2304), (301, 64), (4100, 20)] {
        let small = rows * width < 100;
        all.push(gradient(format!("norm weights {rows}x{width}"), small, move |make, graph| {
            let (x, rms, weight, bias) =
                (make.random(&[rows, width])?, make.random(&[width])?, make.random(&[width])?, make.random(&[width])?);
            let input = graph.state(&x);
            let (a, b) = (graph.rms_norm(input, &rms, 1e-2), graph.layer_norm(input, &weight, Some(&bias), 0.1));
            Ok((graph.add(a, b), vec![x, rms, weight, bias]))
        }));
    }
    for (rows, width, factor, plus) in [(2, 12, 1.0, 1.0), (70, 96, 0.25, 0.0)] {
        all.push(gradient(
            format!("norm weights read as {factor} w + {plus}, {rows}x{width}"),
            width < 20,
            move |make, graph| {
                let x = make.random(&[rows, width])?;
                let mut weight = || {
                    Ok::<_, GpuError>(State::changed_part(
                        &make.random(&[width])?,
                        "weight",
                        &[width],
                        0,
                        Some(Affine { factor, plus }),
                    ))
                };
                let [rms, weight, bias] = [weight()?, weight()?, weight()?];
                let input = graph.state(&x);
                let (a, b) = (graph.rms_norm(input, &rms, 1e-2), graph.layer_norm(input, &weight, Some(&bias), 0.1));
                Ok((graph.add(a, b), vec![x, rms, weight, bias]))
            },
        ));
    }
    let kinds = [HeadNorm::Rms, HeadNorm::RmsWhole, HeadNorm::Layer];
    for (heads, kv_heads, head_dim, tokens) in [(2, 1, 8, 3), (8, 2, 80, 3), (4, 2, 64, 70)] {
        for norm in kinds {
            let name = format!("head norm weights {heads}/{kv_heads}x{head_dim} {norm:?}, {tokens} tokens");
            all.push(gradient(name, head_dim < 16, move |make, graph| {
                let x = make.random(&[tokens, (heads + 2 * kv_heads) * head_dim])?;
                let positions = make.indices(&[tokens], (0..tokens as u32).map(|t| t * 7 % 10).collect())?;
                let table = table(make, 10, head_dim)?;
                let widths = if norm.each() { [heads * head_dim, kv_heads * head_dim] } else { [head_dim; 2] };
                let (q, k) = (make.random(&widths[..1])?, make.random(&widths[1..])?);
                let (qkv, positions) = (graph.state(&x), graph.state(&positions));
                let rope = Rope {
                    heads,
                    kv_heads,
                    head_dim,
                    rotary_dim: head_dim,
                    norm_eps: Some(1e-2),
                    norm,
                    ..Default::default()
                };
                let rotated = graph.rope(rope, qkv, positions, &table, Some((&q, &k)));
                Ok((joined_heads(make, graph, rotated)?, vec![x, q, k]))
            }));
        }
    }
    all
}

/// A table that is used both for embeddings and as the output head.
fn table_cases() -> Vec<GradientCase> {
    let mut all = Vec::new();
    for (tokens, width, vocabulary, budget) in [(5, 6, 9, 1 << 20), (70, 100, 613, 70 * 256), (40, 64, 300, 1)] {
        let record = move |make: &mut RandomTensors<'_>| {
            let mut graph = Graph::new();
            let (weight, numbers) = make.trained_matrix(vocabulary, width)?;
            // Several tokens are equal.
            let ids = make.indices(&[tokens], (0..tokens).map(|t| (t * t * 31 % vocabulary) as u32).collect())?;
            let mut targets: Vec<u32> = (0..tokens).map(|t| (t * 7919 % vocabulary) as u32).collect();
            targets[1] = IGNORED;
            let (targets, weights) = (make.indices(&[tokens], targets)?, make.random(&[tokens])?);
            let norm = make.random(&[width])?;
            let [ids, targets, weights] = [&ids, &targets, &weights].map(|state| graph.state(state));
            let x = graph.embed(ids, &weight, 1.5);
            let x = graph.rms_norm(x, &norm, 0.1);
            let logits = graph.linear(x, &weight, None);
            let Some(sweep) = graph.cross_entropy(logits, targets, budget) else {
                unreachable!("straight from a linear layer")
            };
            let (loss, _) = graph.weighted_loss(sweep.statistics, targets, weights);
            let by = [numbers, norm];
            let gradients = [zeros(make, by[0].shape())?, zeros(make, by[1].shape())?];
            let parameters: Vec<_> = by.into_iter().zip(gradients).collect();
            let dx = graph.cross_entropy_backward(&sweep, weights, &parameters);
            walk(&mut graph, (sweep.hidden(), dx), &parameters, false);
            let gradients = parameters.iter().map(|(state, gradient)| (state.clone(), graph.state(gradient))).collect();
            Ok(Differentiated { graph, y: loss, cotangent: None, gradients })
        };
        let name = format!("tied table {vocabulary}x{width}, {tokens} tokens, {budget} at a time");
        all.push(GradientCase { name, bound: 1e-10, small: tokens < 10, record: Box::new(record) });
    }
    all
}

fn walk(graph: &mut Graph, seed: (Tensor, Tensor), parameters: &[(Arc<State>, Arc<State>)], recompute: bool) {
    if let Err(error) = graph.backward(&[seed], parameters, BackwardOptions { recompute }) {
        unreachable!("cases are differentiable: {error}");
    }
}

/// Two pre-norm layers with all parameters trained. The epsilon is large, so that finite differences do not span the
/// strong curvature of a norm near zero.
fn layers(make: &mut RandomTensors<'_>, recompute: bool) -> Result<Differentiated, GpuError> {
    let mut graph = Graph::new();
    let (width, heads, head_dim) = (8, 2, 4);
    let (embedding, numbers) = make.trained_matrix(11, width)?;
    let mut by = vec![numbers];
    let tokens = make.indices(&[7], vec![3, 1, 4, 1, 5, 9, 2])?;
    let tokens = graph.state(&tokens);
    let over = packed(make, &mut graph, &[4, 3])?;
    let table = table(make, 8, head_dim)?;
    let mut x = graph.embed(tokens, &embedding, 2.0);
    for _ in 0..2 {
        let [qkv, gate, down] = [(16, 8), (12, 8), (8, 6)].map(|(n, k)| make.trained_matrix(n, k));
        let (qkv, gate, down) = (qkv?, gate?, down?);
        let [input_norm, second_norm, bias, q_norm, k_norm] =
            [width, width, 16, head_dim, head_dim].map(|n| make.random(&[n]));
        let (input_norm, second_norm, bias, q_norm, k_norm) = (input_norm?, second_norm?, bias?, q_norm?, k_norm?);
        let h = graph.rms_norm(x, &input_norm, 0.3);
        let y = graph.linear(h, &qkv.0, Some(&bias));
        let rope =
            Rope { heads, kv_heads: 1, head_dim, rotary_dim: head_dim, norm_eps: Some(0.3), ..Default::default() };
        let [q, k, v] = graph.rope(rope, y, over.positions, &table, Some((&q_norm, &k_norm)));
        let cache = [zeros(make, &[7, head_dim])?, zeros(make, &[7, head_dim])?];
        let (keys, values) =
            graph.append(CacheRows::direct(8), k, v, over.positions, over.bases, [&cache[0], &cache[1]]);
        let attention = Attention { heads, kv_heads: 1, head_dim, scale: 0.5, context: 8, ..Default::default() };
        let y = graph.attention(attention, q, keys, values, over);
        let y = graph.flatten(y);
        x = graph.add(x, y);
        let h = graph.rms_norm(x, &second_norm, 0.3);
        let h = graph.linear(h, &gate.0, None);
        let h = graph.gated(h, Activation::Silu);
        let y = graph.linear(h, &down.0, None);
        x = graph.add(x, y);
        by.extend([qkv.1, gate.1, down.1, input_norm, second_norm, bias, q_norm, k_norm]);
    }
    let (seed, sizes) = (make.indices(&[1], vec![77])?, make.random(&[7])?);
    let sizes = graph.state(&sizes);
    if !graph.noise_on_embeddings(&seed, sizes) {
        unreachable!("tokens are looked up");
    }
    differentiate(make, graph, x, by, recompute)
}
