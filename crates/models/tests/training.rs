//! Every architecture can be trained: with LoRA pairs on all its linear layers, the kernels' gradients are compared
//! with the interpreter's, and these, along their own direction, with a difference quotient of the loss.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use bayan_gpu::{Gpu, GpuOptions, block_on};
use bayan_models::{Cache, CacheFormat, CacheShape, Decoder, LoadOptions, LoraPair, StepInputs};
use bayan_tensor::ops::Causality;
use bayan_tensor::{BackwardOptions, Dtype, Graph, Plan, State, Tensor, Tuning, Values, interpret, nmse};
use bayan_weights::{Checkpoint, DirectorySource, Policy, format_by_name};

/// Models that exist for GGUF's sake and have the architecture of another.
const LIKE_OTHERS: [&str; 4] = ["cohere2_even", "cohere_plain", "gemma4_even", "qwen3_5_even"];

/// The checkpoints of tests/fixtures/models, in order.
fn models() -> Vec<String> {
    let folders = std::fs::read_dir(fixtures()).unwrap();
    let mut names: Vec<String> = folders.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| !LIKE_OTHERS.contains(&name.as_str()));
    names.sort();
    assert!(names.len() >= bayan_models::supported().len());
    names
}

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models")
}

/// Two sequences in one step.
const LENGTHS: [usize; 2] = [5, 3];
const RANK: usize = 2;

struct Trained {
    graph: Graph,
    loss: Tensor,
    /// The parameters, and the states to which their gradients are added.
    pairs: Vec<(Arc<State>, Arc<State>)>,
}

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729 + 31) % 1009) as f32 / 504.5 - 1.0).collect()
}

fn decoder(name: &str, gpu: Option<&Gpu>) -> Box<dyn Decoder> {
    let path = fixtures().join(name);
    let checkpoint = block_on(Checkpoint::open(Rc::new(DirectorySource::new(path).unwrap()))).unwrap();
    let policy = Policy::for_format(format_by_name("f32").unwrap());
    block_on(bayan_models::open(&checkpoint, gpu, &LoadOptions { context: 16 }, Some(policy), &mut |_, _| {})).unwrap()
}

/// Attaches a pair to every module except the output head; returns the parameters.
fn attach(decoder: &mut dyn Decoder, gpu: Option<&Gpu>) -> Vec<Arc<State>> {
    let linears = decoder.linears_mut();
    let about = |linear: &&mut bayan_models::Linear| {
        let columns = linear.weight.columns();
        linear.modules.iter().map(|(name, rows)| (name.clone(), rows.len(), columns)).collect::<Vec<_>>()
    };
    let modules: Vec<_> = linears.iter().flat_map(about).filter(|(name, ..)| name != "lm_head").collect();
    let mut parameters = Vec::new();
    for (index, (name, rows, columns)) in modules.into_iter().enumerate() {
        let make = |shape: [usize; 2], seed| {
            let values = numbers(shape[0] * shape[1], seed).iter().map(|v| 0.2 * v).collect();
            State::new(gpu, "pair", &shape, Values::F32(values)).unwrap()
        };
        let (a, b) = (make([RANK, columns], 2 * index), make([rows, RANK], 2 * index + 1));
        decoder
            .attach(
                &name,
                LoraPair {
                    adapter: "test".into(),
                    rows: 0..0,
                    a: a.clone(),
                    b: b.clone(),
                    scale: 0.5,
                    dropout: None,
                    enabled: true,
                    factors: None,
                },
            )
            .unwrap();
        parameters.extend([a, b]);
    }
    parameters
}

fn train(name: &str, gpu: Option<&Gpu>) -> Trained {
    let mut decoder = decoder(name, gpu);
    let parameters = attach(decoder.as_mut(), gpu);
    let tokens: usize = LENGTHS.iter().sum();
    let vocabulary = decoder.sizes().vocab_size;
    let cache = Cache::new(
        gpu,
        CacheShape { sequences: 1, context: tokens, format: CacheFormat::F32, step: None, positions: None },
        &decoder.cache_specs(),
    )
    .unwrap();
    let integers = |values: Vec<u32>, shape: &[usize]| State::new(gpu, "step", shape, Values::U32(values)).unwrap();
    let mut graph = Graph::new();
    let [first, second] = LENGTHS.map(|n| n as u32);
    let ids = integers((0..tokens).map(|i| (i * 37 % vocabulary) as u32).collect(), &[tokens]);
    let positions = integers((0..first).chain(0..second).collect(), &[tokens]);
    let bases = integers([vec![0; LENGTHS[0]], vec![first; LENGTHS[1]]].concat(), &[tokens]);
    let tiles = integers(vec![0, first, first, second], &[2, 2]);
    let targets = integers((0..tokens).map(|i| (i * 53 % vocabulary) as u32).collect(), &[tokens]);
    let weights = State::new(gpu, "weights", &[tokens], Values::F32(vec![1.0 / tokens as f32; tokens])).unwrap();
    let causality =
        Causality { positions: graph.state(&positions), bases: graph.state(&bases), tiles: graph.state(&tiles) };
    let (ids, targets, weights) = (graph.state(&ids), graph.state(&targets), graph.state(&weights));
    let logits = decoder.forward(&mut graph, StepInputs { tokens: ids, causality, rows: None }, &cache);
    let sweep = graph.cross_entropy(logits, targets, 1 << 20).expect("an output head without a bias");
    let (loss, _) = graph.weighted_loss(sweep.statistics, targets, weights);
    let gradient = graph.cross_entropy_backward(&sweep, weights, &[]);
    let zeros = |state: &Arc<State>| State::zeros(gpu, "gradient", state.shape(), Dtype::F32).unwrap();
    let pairs: Vec<_> =
        parameters.into_iter().map(|state| (zeros(&state), state)).map(|(gradient, state)| (state, gradient)).collect();
    graph
        .backward(&[(sweep.hidden(), gradient)], &pairs, BackwardOptions { recompute: false })
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    Trained { graph, loss, pairs }
}

/// Runs on the host; returns the loss and all gradients.
fn on_host(trained: &Trained) -> (f64, Vec<Vec<f32>>) {
    trained.pairs.iter().for_each(|(_, gradient)| gradient.write(None, 0, &vec![0; gradient.size_bytes() as usize]));
    let values = interpret(&trained.graph);
    let loss = f64::from(values[trained.loss.index()].as_ref().unwrap().f32()[0]);
    (loss, trained.pairs.iter().map(|(_, gradient)| gradient.host().unwrap().f32().to_vec()).collect())
}

#[test]
fn gradients_of_every_architecture() {
    // Each kernel runs once, and Mesa's software driver takes longer to optimise it.
    // SAFETY: the only test of this process, before a device is opened.
    unsafe { std::env::set_var("GALLIVM_PERF", "nopt") };
    let gpu = block_on(Gpu::open(&GpuOptions::default())).expect("a device");
    for name in models().iter().map(String::as_str) {
        let host = train(name, None);
        let (_, expected) = on_host(&host);
        // The difference quotient of the loss in the gradient's direction equals the gradient's length.
        let length = expected.iter().flatten().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        assert!(length > 1e-3, "{name}: no gradient");
        let before: Vec<Vec<f32>> = host.pairs.iter().map(|(state, _)| state.host().unwrap().f32().to_vec()).collect();
        let moved = |distance: f64| {
            for ((state, _), (from, gradient)) in host.pairs.iter().zip(before.iter().zip(&expected)) {
                let values = from
                    .iter()
                    .zip(gradient)
                    .map(|(v, g)| (f64::from(*v) + distance * f64::from(*g) / length) as f32)
                    .collect();
                state.write(None, 0, Values::F32(values).bytes());
            }
            on_host(&host).0
        };
        // Extrapolated from two steps: where the loss is steep, its third derivative counts at a step that f32 allows.
        let quotient = |step: f64| (moved(step) - moved(-step)) / (2.0 * step);
        let slope = (4.0 * quotient(0.01) - quotient(0.02)) / 3.0;
        assert!((slope / length - 1.0).abs() < 5e-3, "{name}: slope {slope}, length of the gradient {length}");
        // The kernels' gradients.
        let device = train(name, Some(&gpu));
        let tuning = Tuning { fuse: false, ..Tuning::defaults(gpu.capabilities()) };
        let plan = Plan::new(&gpu, device.graph.clone(), &[device.loss], &tuning).unwrap();
        plan.submit(&gpu, 16, &[]);
        for (index, ((_, gradient), expected)) in device.pairs.iter().zip(&expected).enumerate() {
            let found = block_on(gradient.read(Some(&gpu))).unwrap();
            let error = nmse(expected, found.f32());
            assert!(error < 1e-8, "{name}: gradient {index}, NMSE {error:.1e}");
        }
    }
}
