//! Cases at the sizes of real models, for failures that small sizes cannot show: vocabularies of 262,144 entries, rows
//! of 28,672 values, contexts of 70,000 positions, thousands of tokens in a step.
//!
//! They are separate from the other cases because their references take seconds each.

use bayan_gpu::GpuError;
use bayan_weights::{FORMATS, format_by_name};

use super::case::{Case, RandomTensors, Recorded, case};
use super::sampling::{LOG_PROBS_BOUND, log_probs_case, sample_case};
use super::training;
use crate::graph::{Dtype, Graph, State};
use crate::ops::{Attention, Causality, QUERY_TILE, SampleSettings, StateSpace};

/// All cases.
pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    let q8_0 = format_by_name("q8_0").unwrap_or(FORMATS[0]);
    let q4_0 = format_by_name("q4_0").unwrap_or(FORMATS[0]);
    // The budget of logits that training uses; it gives one chunk or several.
    let budget = 16 << 20;
    let losses = [
        (FORMATS[0], 134, 32, 100_000),
        (FORMATS[0], 30, 32, 100_000),
        (FORMATS[0], 134, 32, 151_936),
        (FORMATS[0], 15, 32, 262_144),
        (q8_0, 70, 32, 262_144),
    ];
    for (format, rows, width, vocabulary) in losses {
        all.push(training::kernels(training::ops::loss_case(format, rows, width, vocabulary, budget, None)));
    }
    for vocabulary in [151_936, 262_144] {
        let settings =
            SampleSettings { temperature: 0.9, top_k: 50, top_p: 0.9, min_p: 0.01, seed: 7, ..Default::default() };
        let name = format!("sample all of {vocabulary}");
        all.push(case(name, 1e-12, move |make| sample_case(make, vocabulary, settings)));
        let name = format!("log_probs of {vocabulary} logits");
        all.push(case(name, LOG_PROBS_BOUND, move |make| log_probs_case(make, vocabulary, false)));
    }
    for (format, rows, columns, tokens) in
        [(q4_0, 64, 28_672, 1), (q8_0, 64, 28_672, 20), (q8_0, 28_672, 64, 70), (FORMATS[0], 151_936, 32, 3)]
    {
        let name = format!("linear {} {rows}x{columns}, {tokens} tokens", format.name());
        all.push(case(name, 1e-10, move |make| {
            let mut graph = Graph::new();
            let x = make.random(&[tokens, columns])?;
            let x = graph.state(&x);
            let y = graph.linear(x, &make.matrix(format, rows, columns)?, None);
            Ok((graph, vec![y]))
        }));
        let name = format!("linear_backward {} {rows}x{columns}, {tokens} tokens", format.name());
        all.push(case(name, 1e-10, move |make| {
            let mut graph = Graph::new();
            let dy = make.random(&[tokens, rows])?;
            let dy = graph.state(&dy);
            let dx = graph.tensor(&[tokens, columns], Dtype::F32);
            graph.linear_backward(dy, &make.matrix(format, rows, columns)?, dx, false);
            Ok((graph, vec![dx]))
        }));
    }
    for (before, tokens, context) in [(69_990, 1, 70_016), (6_000, 40, 8_192)] {
        let name = format!("attention of {tokens} tokens after {before}");
        let record = move |make: &mut RandomTensors<'_>| attention_case(make, before, tokens, context);
        all.push(Case { cached: before + tokens, ..case(name, 1e-6, record) });
    }
    all.push(case("state_space of 700 tokens, 128 numbers of state", 1e-7, state_space_case));
    all.push(case("embed_backward of 4096 tokens", 1e-10, |make| {
        let (tokens, width, rows) = (4096, 256, 1000);
        let mut graph = Graph::new();
        let dy = make.random(&[tokens, width])?;
        // One token makes up most of the batch, so that its row sums thousands of gradients.
        let ids = (0..tokens).map(|t| if t % 4 == 0 { (t * 7 % rows) as u32 } else { 5 }).collect();
        let ids = make.indices(&[tokens], ids)?;
        let gradient = State::zeros(make.gpu, "gradient", &[crate::graph::packed_len(rows, width)], Dtype::F32)?;
        let [dy, ids, into] = [&dy, &ids, &gradient].map(|state| graph.state(state));
        graph.embed_backward(dy, ids, into, 1.5);
        Ok((graph, vec![into]))
    }));
    all.push(case("select_rows_backward of 4096 rows", 1e-10, |make| {
        let (rows, width, tokens) = (4096, 512, 40);
        let mut graph = Graph::new();
        let dy = make.random(&[rows, width])?;
        let chosen =
            make.indices(&[rows], (0..rows).map(|r| if r % 3 == 0 { (r % 40) as u32 } else { 9 }).collect())?;
        let [dy, chosen] = [&dy, &chosen].map(|state| graph.state(state));
        let dx = graph.select_rows_backward(dy, chosen, tokens);
        Ok((graph, vec![dx]))
    }));
    all.push(case("add of 20 million numbers", 1e-12, |make| {
        let mut graph = Graph::new();
        let (a, b) = (make.random(&[2, 10_000_003])?, make.random(&[2, 10_000_003])?);
        let (a, b) = (graph.state(&a), graph.state(&b));
        let y = graph.add(a, b);
        Ok((graph, vec![y]))
    }));
    all.push(training::kernels(training::ops::long_attention_case(3000)));
    all
}

/// New tokens of one sequence after many cached ones; 2 query heads and 1 key-value head of 64 values.
fn attention_case(
    make: &mut RandomTensors<'_>,
    before: usize,
    tokens: usize,
    context: usize,
) -> Result<Recorded, GpuError> {
    let mut graph = Graph::new();
    let (heads, head_dim) = (2, 64);
    let q = make.random(&[tokens, heads, head_dim])?;
    let (keys, values) = (make.random(&[context, head_dim])?, make.random(&[context, head_dim])?);
    let positions = make.indices(&[tokens], (before..before + tokens).map(|p| p as u32).collect())?;
    let bases = make.indices(&[tokens], vec![0; tokens])?;
    let tiles: Vec<u32> = (0..tokens)
        .step_by(QUERY_TILE)
        .flat_map(|start| [start as u32, QUERY_TILE.min(tokens - start) as u32])
        .collect();
    let tiles = make.indices(&[tiles.len() / 2, 2], tiles)?;
    let over = Causality { positions: graph.state(&positions), bases: graph.state(&bases), tiles: graph.state(&tiles) };
    let [q, keys, values] = [&q, &keys, &values].map(|state| graph.state(state));
    let attention = Attention {
        heads,
        kv_heads: 1,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        context,
        ..Default::default()
    };
    let y = graph.attention(attention, q, keys, values, over);
    Ok((graph, vec![y]))
}

fn state_space_case(make: &mut RandomTensors<'_>) -> Result<Recorded, GpuError> {
    let (tokens, heads, head_dim, groups, state_size) = (700, 2, 16, 1, 128);
    let mut graph = Graph::new();
    let inner = heads * head_dim;
    let op = StateSpace { heads, head_dim, groups, state_size, steps: inner, scale: 1.0, context: 1024 };
    let mixed = make.random(&[tokens, inner + 2 * groups * state_size])?;
    let projection = make.random(&[tokens, inner + heads])?;
    let mut numbers = make.numbers(3 * heads, false);
    numbers[..heads].iter_mut().for_each(|a| *a = -a.abs());
    let (constants, state) = (make.state(&[3, heads], numbers)?, make.random(&[1, op.state_len()])?);
    let positions = make.indices(&[tokens], (0..tokens as u32).collect())?;
    let (bases, tiles) = (make.indices(&[tokens], vec![0; tokens])?, make.indices(&[1, 2], vec![0, 1])?);
    let over = Causality { positions: graph.state(&positions), bases: graph.state(&bases), tiles: graph.state(&tiles) };
    let (mixed, projection) = (graph.state(&mixed), graph.state(&projection));
    let y = graph.state_space(op, mixed, projection, &constants, over, &state);
    let state = graph.state(&state);
    Ok((graph, vec![y, state]))
}
