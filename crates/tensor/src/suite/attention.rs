//! Cases of attention and the operations around it: rotary embedding, all cache formats, and whole steps.

use bayan_gpu::GpuError;

use crate::graph::{Graph, State, Values};
use crate::ops::{
    Attention, CacheElement, CacheRows, Causality, GatedDelta, HeadNorm, Projection, QUERY_TILE, Rope, ShortConv,
    StateSpace,
};
use crate::suite::case::{Case, RandomTensors, Recorded, case};

/// Sizes of one attention case.
#[derive(Clone, Copy)]
struct Heads {
    h: usize,
    k: usize,
    d: usize,
}

/// The sequences of a step: for each, the number of positions already cached and the number of new tokens.
type Sequences = &'static [(usize, usize)];

/// Positions per sequence.
const CONTEXT: usize = 512;

/// The options of a case.
#[derive(Clone, Copy, Default)]
struct Kind {
    element: CacheElement,
    window: Option<usize>,
    softcap: Option<f32>,
    alibi: Option<f32>,
    ring: Option<usize>,
    block: Option<usize>,
}

impl Kind {
    fn name(self) -> String {
        let flags = [
            (self.window.is_some(), " window"),
            (self.softcap.is_some(), " softcap"),
            (self.alibi.is_some(), " alibi"),
            (self.ring.is_some(), " ring"),
            (self.block.is_some(), " blocks"),
        ];
        self.element.name().to_string() + &flags.iter().filter(|f| f.0).map(|f| f.1).collect::<String>()
    }

    fn attention(self, heads: Heads) -> Attention {
        let Kind { element, window, softcap, alibi, ring, block } = self;
        let Heads { h, k, d } = heads;
        Attention {
            heads: h,
            kv_heads: k,
            head_dim: d,
            scale: 1.0 / (d as f32).sqrt(),
            softcap,
            window,
            context: CONTEXT,
            alibi,
            ring,
            block,
            element,
        }
    }

    fn rows(self) -> CacheRows {
        CacheRows { context: CONTEXT, ring: self.ring, block: self.block }
    }

    /// The blocks of each sequence: a shuffled table over twice as many blocks as are needed.
    fn table(self, make: &mut RandomTensors<'_>, sequences: usize) -> Vec<u32> {
        let needed = sequences * self.rows().blocks_per_sequence();
        let mut order: Vec<(u32, u32)> = make.numbers(2 * needed, false).iter().map(|v| v.to_bits()).zip(0..).collect();
        order.sort_unstable();
        order.into_iter().map(|(_, block)| block).take(needed).collect()
    }

    /// Number of cache rows of so many sequences.
    fn cache_rows(self, sequences: usize) -> usize {
        match self.block {
            Some(block) => 2 * sequences * self.rows().blocks_per_sequence() * block,
            None => sequences * self.rows().per_sequence(),
        }
    }
}

/// All cases.
pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    let heads = [
        Heads { h: 4, k: 4, d: 64 },
        Heads { h: 8, k: 2, d: 80 },
        Heads { h: 7, k: 1, d: 128 },
        Heads { h: 4, k: 2, d: 256 },
    ];
    let steps: [Sequences; 6] =
        [&[(0, 1)], &[(255, 1)], &[(300, 1), (17, 1)], &[(0, 20)], &[(37, 33)], &[(5, 30), (0, 3)]];
    let half = CacheElement::F16;
    for (index, head) in heads.into_iter().enumerate() {
        let capped = Kind { window: Some(16), softcap: Some(5.0), ..Kind::default() };
        let blocks = Kind { block: Some(64), ..Kind::default() };
        let mut kinds = vec![Kind::default(), Kind { element: half, ..capped }, blocks];
        if index < 2 {
            let ring = Kind { window: Some(40), ring: Some(75), ..Kind::default() };
            let element = [CacheElement::Q8_0, CacheElement::Q4_0][index];
            kinds.extend([Kind { element: half, ..Kind::default() }, capped, Kind { element, ..ring }]);
            kinds.push([ring, Kind { alibi: Some(0.5), ..Kind::default() }][index]);
            kinds.extend([
                Kind { block: Some(48), ..capped },
                Kind { element, ..blocks },
                Kind { element: half, ..blocks },
            ]);
        }
        for kind in kinds {
            for step in steps {
                let name = format!("attention {}/{}x{} {step:?} {}", head.h, head.k, head.d, kind.name());
                // A code that the device rounds in the other direction differs by one step of its block.
                let bound = if kind.element == half || kind.element == CacheElement::F32 { 1e-6 } else { 1e-5 };
                all.push(case(name, bound, move |make| attention_case(make, head, step, kind)));
            }
        }
        for (norm, eps, interleaved) in rope_kinds() {
            let name = format!(
                "rope {}/{}x{} {norm:?} {}{}",
                head.h,
                head.k,
                head.d,
                eps.is_some(),
                if interleaved { " interleaved" } else { "" }
            );
            all.push(case(name, 1e-7, move |make| rope_case(make, head, norm, eps, interleaved)));
            let name = format!(
                "decode {}/{}x{} {norm:?} {}{}",
                head.h,
                head.k,
                head.d,
                eps.is_some(),
                if interleaved { " interleaved" } else { "" }
            );
            let kind = [
                Kind::default(),
                Kind { window: Some(40), ring: Some(75), ..Kind::default() },
                Kind { alibi: Some(1.0), ..Kind::default() },
            ][all.len() % 3];
            all.push(case(name.clone(), 1e-6, move |make| decode_case(make, head, norm, eps, interleaved, kind)));
            let name = format!("{name} blocks");
            all.push(case(name, 1e-6, move |make| decode_case(make, head, norm, eps, interleaved, blocks)));
        }
    }
    all
}

/// Layers with a state of fixed size: new and continued prompts, and single tokens of several sequences.
pub(crate) fn recurrent_cases() -> Vec<Case> {
    let mut all = Vec::new();
    let steps: [Sequences; 5] = [&[(0, 1)], &[(0, 2)], &[(37, 20)], &[(7, 1), (0, 1), (100, 1)], &[(0, 17), (4, 3)]];
    for step in steps {
        for (channels, kernel, gated, bias) in [(64, 3, true, false), (100, 4, false, true), (33, 2, true, true)] {
            let name = format!("short_conv {channels}x{kernel} {step:?}{}", if gated { " gated" } else { "" });
            all.push(case(name, 1e-7, move |make| {
                let mut graph = Graph::new();
                let (tokens, over) = sequences(make, &mut graph, step, Kind::default())?;
                let width = 5 + channels * if gated { 3 } else { 2 };
                let (x, weight, last) = (
                    make.random(&[tokens, width])?,
                    make.random(&[channels, kernel])?,
                    make.random(&[step.len(), channels * (kernel - 1)])?,
                );
                let bias = if bias { Some(make.random(&[channels])?) } else { None };
                let x = graph.state(&x);
                let op = ShortConv { channels, kernel, first: 5, gated, bias: false, context: CONTEXT };
                let y = graph.short_conv(op, x, &weight, bias.as_ref(), over, &last);
                let last = graph.state(&last);
                Ok((graph, vec![y, last]))
            }));
        }
        for (heads, value_dim, key_heads, key_dim) in [(4, 16, 2, 32), (6, 20, 2, 7), (3, 33, 3, 128)] {
            let name = format!("gated_delta {heads}x{value_dim} {key_heads}x{key_dim} {step:?}");
            all.push(case(name, 1e-7, move |make| {
                let mut graph = Graph::new();
                let (tokens, over) = sequences(make, &mut graph, step, Kind::default())?;
                let op = GatedDelta { heads, value_dim, key_heads, key_dim, tiled: heads == 6, context: CONTEXT };
                let (mixed, gates) = (make.random(&[tokens, op.width()])?, make.random(&[tokens, 2 * heads])?);
                let numbers = make.numbers(2 * heads, false);
                let numbers = numbers.iter().enumerate().map(|(i, v)| if i < heads { -v.abs() } else { *v }).collect();
                let (constants, state) =
                    (make.state(&[2, heads], numbers)?, make.random(&[step.len(), op.state_len()])?);
                let (mixed, gates) = (graph.state(&mixed), graph.state(&gates));
                let y = graph.gated_delta(op, mixed, gates, &constants, over, &state);
                let state = graph.state(&state);
                Ok((graph, vec![y, state]))
            }));
        }
        for (heads, head_dim, groups, state_size) in [(6, 16, 1, 32), (4, 20, 2, 7)] {
            let name = format!("state_space {heads}x{head_dim} {groups}x{state_size} {step:?}");
            all.push(case(name, 1e-7, move |make| {
                let mut graph = Graph::new();
                let (tokens, over) = sequences(make, &mut graph, step, Kind::default())?;
                let inner = heads * head_dim;
                let op =
                    StateSpace { heads, head_dim, groups, state_size, steps: inner + 3, scale: 0.7, context: CONTEXT };
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
                let (constants, state) =
                    (make.state(&[3, heads], numbers)?, make.random(&[step.len(), op.state_len()])?);
                let (mixed, projection) = (graph.state(&mixed), graph.state(&projection));
                let y = graph.state_space(op, mixed, projection, &constants, over, &state);
                let state = graph.state(&state);
                Ok((graph, vec![y, state]))
            }));
        }
    }
    all
}

/// Projections of other heads than queries, keys and values, with and without norms of the values.
pub(crate) fn projection_cases() -> Vec<Case> {
    let kinds = [
        (Projection::Separate, true),
        (Projection::ValuesAreKeys, true),
        (Projection::ValuesAreKeys, false),
        (Projection::GatedQueries, false),
    ];
    let mut all = Vec::new();
    for heads in [Heads { h: 4, k: 2, d: 64 }, Heads { h: 3, k: 1, d: 36 }, Heads { h: 2, k: 1, d: 512 }] {
        let Heads { h, k, d } = heads;
        for (projection, norm_values) in kinds {
            let name = format!("rope {h}/{k}x{d} {projection:?}{}", if norm_values { " norm of values" } else { "" });
            all.push(case(name, 1e-7, move |make| {
                let mut graph = Graph::new();
                let (rope, [_, positions], table, weights) =
                    rotated(make, &mut graph, heads, HeadNorm::Rms, Some(1e-6), false, vec![0, 9, 4])?;
                let rope = Rope { projection, norm_values, ..rope };
                let qkv = make.random(&[3, rope.width()])?;
                let qkv = graph.state(&qkv);
                let outputs = graph.rope(rope, qkv, positions, &table, weights.as_ref().map(|[q, k]| (q, k)));
                Ok((graph, outputs.to_vec()))
            }));
        }
        for eps in [Some(1e-6), None] {
            let name = format!("rope {h}/{k}x{d} queries {}", eps.is_some());
            all.push(case(name, 1e-7, move |make| {
                let mut graph = Graph::new();
                let (rope, [_, positions], table, weights) =
                    rotated(make, &mut graph, heads, HeadNorm::Rms, eps, false, vec![0, 9, 4])?;
                let rope = Rope { projection: Projection::Queries, ..rope };
                let queries = make.random(&[3, rope.width()])?;
                let queries = graph.state(&queries);
                let norm = weights.as_ref().map(|[q, _]| q);
                let q = graph.rope_queries(rope, queries, positions, &table, norm);
                Ok((graph, vec![q]))
            }));
        }
    }
    all
}

fn rope_kinds() -> [(HeadNorm, Option<f32>, bool); 6] {
    [
        (HeadNorm::Rms, None, false),
        (HeadNorm::Rms, Some(1e-6), false),
        (HeadNorm::RmsWhole, Some(1e-6), false),
        (HeadNorm::Layer, Some(1e-5), true),
        (HeadNorm::Rms, None, true),
        (HeadNorm::Layer, Some(1e-5), false),
    ]
}

/// The rotary embedding and its inputs: qkv, positions, table, and the weights of the norms.
type RotatedCase = (Rope, [crate::graph::Tensor; 2], std::sync::Arc<State>, Option<[std::sync::Arc<State>; 2]>);

fn rotated(
    make: &mut RandomTensors<'_>,
    graph: &mut Graph,
    heads: Heads,
    norm: HeadNorm,
    eps: Option<f32>,
    interleaved: bool,
    at: Vec<u32>,
) -> Result<RotatedCase, GpuError> {
    let Heads { h, k, d } = heads;
    let rotary = if eps.is_some() { d } else { d / 2 };
    let tokens = at.len();
    let qkv = make.random(&[tokens, (h + 2 * k) * d])?;
    let positions = make.indices(&[tokens], at)?;
    let angles = (0..CONTEXT).flat_map(|p| {
        (0..rotary / 2)
            .flat_map(move |i| [(p as f32 * 0.3f32.powi(i as i32)).cos(), (p as f32 * 0.3f32.powi(i as i32)).sin()])
    });
    let table = make.state(&[CONTEXT, rotary], angles.collect())?;
    let sizes = if norm.each() { [h * d, k * d] } else { [d, d] };
    let weights = if eps.is_some() { Some([make.random(&sizes[..1])?, make.random(&sizes[1..])?]) } else { None };
    let rope = Rope {
        heads: h,
        kv_heads: k,
        head_dim: d,
        rotary_dim: rotary,
        interleaved,
        norm_eps: eps,
        norm,
        ..Default::default()
    };
    Ok((rope, [graph.state(&qkv), graph.state(&positions)], table, weights))
}

fn rope_case(
    make: &mut RandomTensors<'_>,
    heads: Heads,
    norm: HeadNorm,
    eps: Option<f32>,
    interleaved: bool,
) -> Result<Recorded, GpuError> {
    let mut graph = Graph::new();
    let (rope, [qkv, positions], table, weights) =
        rotated(make, &mut graph, heads, norm, eps, interleaved, vec![0, 9, 4])?;
    let outputs = graph.rope(rope, qkv, positions, &table, weights.as_ref().map(|[q, k]| (q, k)));
    Ok((graph, outputs.to_vec()))
}

/// One token through rope, append and attention, which a rewrite fuses.
fn decode_case(
    make: &mut RandomTensors<'_>,
    heads: Heads,
    norm: HeadNorm,
    eps: Option<f32>,
    interleaved: bool,
    kind: Kind,
) -> Result<Recorded, GpuError> {
    let mut graph = Graph::new();
    let (rope, [qkv, positions], table, weights) = rotated(make, &mut graph, heads, norm, eps, interleaved, vec![301])?;
    let [k_cache, v_cache] = caches(make, heads, 1, kind)?;
    let bases = CacheRows::with_table(&[0], &kind.table(make, 1));
    let (bases, tiles) = (make.indices(&[bases.len()], bases)?, make.indices(&[1, 2], vec![0, 1])?);
    let over = Causality { positions, bases: graph.state(&bases), tiles: graph.state(&tiles) };
    let [q, k, v] = graph.rope(rope, qkv, positions, &table, weights.as_ref().map(|[q, k]| (q, k)));
    let rows = kind.rows();
    let (keys, values) = graph.append(rows, k, v, over.positions, over.bases, [&k_cache, &v_cache]);
    let y = graph.attention(kind.attention(heads), q, keys, values, over);
    Ok((graph, vec![y, keys, values]))
}

fn caches(
    make: &mut RandomTensors<'_>,
    heads: Heads,
    sequences: usize,
    kind: Kind,
) -> Result<[std::sync::Arc<State>; 2], GpuError> {
    let width = heads.k * heads.d;
    let rows = kind.cache_rows(sequences);
    let mut cache = || {
        let numbers = make.numbers(rows * width, false);
        let mut values = Values::zeros(rows * kind.element.words(width), kind.element.dtype());
        numbers
            .chunks_exact(width)
            .enumerate()
            .for_each(|(row, numbers)| kind.element.write(&mut values, row, numbers));
        State::new(make.gpu, "cache", &[rows, kind.element.words(width)], values)
    };
    Ok([cache()?, cache()?])
}

/// The tokens of a step: their number, and their positions, bases and tiles.
fn sequences(
    make: &mut RandomTensors<'_>,
    graph: &mut Graph,
    step: Sequences,
    kind: Kind,
) -> Result<(usize, Causality), GpuError> {
    let (mut positions, mut bases, mut tiles) = (Vec::new(), Vec::new(), Vec::new());
    for (sequence, &(before, new)) in step.iter().enumerate() {
        for start in (0..new).step_by(QUERY_TILE) {
            tiles.extend([(positions.len() + start) as u32, QUERY_TILE.min(new - start) as u32]);
        }
        positions.extend((before..before + new).map(|p| p as u32));
        bases.extend(std::iter::repeat_n((sequence * CONTEXT) as u32, new));
    }
    let tokens = positions.len();
    let bases = CacheRows::with_table(&bases, &kind.table(make, step.len()));
    let (positions, bases) = (make.indices(&[tokens], positions)?, make.indices(&[bases.len()], bases)?);
    let tiles = make.indices(&[tiles.len() / 2, 2], tiles)?;
    Ok((
        tokens,
        Causality { positions: graph.state(&positions), bases: graph.state(&bases), tiles: graph.state(&tiles) },
    ))
}

fn attention_case(
    make: &mut RandomTensors<'_>,
    heads: Heads,
    step: Sequences,
    kind: Kind,
) -> Result<Recorded, GpuError> {
    let Heads { h, k, d } = heads;
    let mut graph = Graph::new();
    let (tokens, over) = sequences(make, &mut graph, step, kind)?;
    let [k_cache, v_cache] = caches(make, heads, step.len(), kind)?;
    let (q, new_k, new_v) =
        (make.random(&[tokens, h, d])?, make.random(&[tokens, k, d])?, make.random(&[tokens, k, d])?);
    let (q, new_k, new_v) = (graph.state(&q), graph.state(&new_k), graph.state(&new_v));
    let rows = kind.rows();
    let (k_cache, v_cache) = graph.append(rows, new_k, new_v, over.positions, over.bases, [&k_cache, &v_cache]);
    let y = graph.attention(kind.attention(heads), q, k_cache, v_cache, over);
    // In other formats the caches may differ where a value lies between two representable ones.
    let caches = if kind.element == CacheElement::F32 { vec![k_cache, v_cache] } else { vec![] };
    Ok((graph, [vec![y], caches].concat()))
}
