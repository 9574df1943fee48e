//! The engine on this machine's device, on tiny checkpoints with random weights: kernels compared with the interpreter
//! node by node, several sequences in one step, the cost of a token, cached prefixes, shards, limits.

mod adapters;
mod blocks;
mod cache;
mod cpu;
mod devices;
mod likelihood;
mod mixing;
mod prefixes;
mod schema;
mod serving;
mod speculation;
mod state;
mod steps;
mod structured;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::rc::Rc;

use bayan_generate::{Engine, EngineOptions, SampleSettings};
use bayan_gpu::{Gpu, GpuOptions, block_on};
use bayan_models::{Cache, CacheFormat, CacheShape, Decoder, LayerCacheSpec, LoadOptions, StepInputs};
use bayan_tensor::ops::{Causality, QUERY_TILE};
use bayan_tensor::{Dtype, Graph, Plan, State, Tuning, Values};
use bayan_weights::{Checkpoint, DirectorySource, Policy, format_by_name};

/// The checkpoints of tests/fixtures/models, by name.
fn models() -> Vec<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models");
    let mut names: Vec<String> =
        std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The models with a layer that has such cache needs.
fn described(layer: impl Fn(&LayerCacheSpec) -> bool) -> Vec<String> {
    let has = |name: &String| {
        let described = bayan_models::describe(checkpoint(name).config()).expect("a description");
        described.cache.iter().any(&layer)
    };
    let found: Vec<String> = models().into_iter().filter(has).collect();
    assert!(found.len() > 1, "only {found:?}");
    found
}

#[test]
fn every_architecture_has_a_checkpoint_here() {
    let types: Vec<String> =
        models().iter().map(|name| checkpoint(name).config()["model_type"].as_str().unwrap().to_string()).collect();
    for architecture in bayan_models::supported() {
        assert!(types.iter().any(|found| found == architecture), "{architecture}");
    }
}

fn checkpoint(name: &str) -> Checkpoint {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models").join(name);
    block_on(Checkpoint::open(Rc::new(DirectorySource::new(path).unwrap()))).unwrap()
}

fn gpu(options: GpuOptions) -> Gpu {
    block_on(Gpu::open(&options)).expect("a device")
}

fn policy(format: &str) -> Option<Policy> {
    Some(Policy::for_format(format_by_name(format).unwrap()))
}

fn engine(name: &str, gpu: &Gpu, options: EngineOptions) -> Engine {
    block_on(Engine::open(&checkpoint(name), gpu, &options, &mut |_, _| {})).unwrap()
}

fn exact() -> EngineOptions {
    EngineOptions { cache: CacheFormat::F32, policy: policy("f32"), ..Default::default() }
}

fn ids(count: usize, vocabulary: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * 7919 + 13) % vocabulary) as u32).collect()
}

fn greedy(engine: &mut Engine, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut tokens = Vec::new();
    let mut collect = |token| {
        tokens.push(token);
        ControlFlow::Continue(())
    };
    block_on(engine.generate(prompt, &SampleSettings::default(), &[], &[], count, &mut collect)).unwrap();
    tokens
}

/// A model with a cache, on the device or in the interpreter.
struct Loaded {
    decoder: Box<dyn Decoder>,
    cache: Cache,
    gpu: Option<Gpu>,
}

fn load(name: &str, gpu: Option<&Gpu>, sequences: usize, format: &str) -> Loaded {
    let context = 64;
    let decoder =
        block_on(bayan_models::open(&checkpoint(name), gpu, &LoadOptions { context }, policy(format), &mut |_, _| {}))
            .unwrap();
    let shape = CacheShape { sequences, context, format: CacheFormat::F32, step: None, positions: None };
    let cache = Cache::new(gpu, shape, &decoder.cache_specs()).unwrap();
    Loaded { decoder, cache, gpu: gpu.cloned() }
}

/// Records a step of tokens of several sequences: (sequence, first position, ids).
fn record(model: &Loaded, parts: &[(usize, usize, Vec<u32>)]) -> (Graph, bayan_tensor::Tensor) {
    let gpu = model.gpu.as_ref();
    let (mut tokens, mut positions, mut bases, mut tiles) = (vec![], vec![], vec![], vec![]);
    for (sequence, first, ids) in parts {
        for start in (0..ids.len()).step_by(QUERY_TILE) {
            tiles.extend([(tokens.len() + start) as u32, QUERY_TILE.min(ids.len() - start) as u32]);
        }
        tokens.extend_from_slice(ids);
        positions.extend((*first..first + ids.len()).map(|p| p as u32));
        bases.extend(ids.iter().map(|_| (sequence * model.cache.shape.context) as u32));
    }
    let state = |values: Vec<u32>, shape: &[usize]| State::new(gpu, "step", shape, Values::U32(values)).unwrap();
    let count = tokens.len();
    let tile_count = tiles.len() / 2;
    let mut graph = Graph::new();
    let [tokens, positions, bases] = [tokens, positions, bases].map(|values| state(values, &[count]));
    let tiles = state(tiles, &[tile_count, 2]);
    let causality =
        Causality { positions: graph.state(&positions), bases: graph.state(&bases), tiles: graph.state(&tiles) };
    let inputs = StepInputs { tokens: graph.state(&tokens), causality, rows: None };
    let logits = model.decoder.forward(&mut graph, inputs, &model.cache);
    (graph, logits)
}

fn run(model: &Loaded, parts: &[(usize, usize, Vec<u32>)]) -> Vec<f32> {
    let gpu = model.gpu.as_ref().unwrap();
    let (graph, logits) = record(model, parts);
    let plan = Plan::new(gpu, graph, &[logits], &Tuning::defaults(gpu.capabilities())).unwrap();
    let reads = plan.submit(gpu, 64, &[plan.read_request(logits)]);
    let bytes = reads.into_iter().map(|read| block_on(read.wait()).unwrap()).next().unwrap();
    Values::from_bytes(&bytes, Dtype::F32).f32().to_vec()
}
