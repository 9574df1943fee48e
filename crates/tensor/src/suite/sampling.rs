//! Cases of the choice of the next token, and of log-probabilities.

use bayan_gpu::GpuError;

use super::case::{Case, RandomTensors, Recorded, case};
use crate::graph::Graph;
use crate::ops::{SETTINGS, SampleSettings, SampleStates};

pub(super) fn cases() -> Vec<Case> {
    let base = SampleSettings { seed: 0x1234_5678_9abc_def0, ..Default::default() };
    let settings = [
        ("greedy", base),
        (
            "greedy with penalties",
            SampleSettings { repeat_penalty: 1.3, presence_penalty: 0.5, frequency_penalty: 0.2, biased: true, ..base },
        ),
        ("temperature", SampleSettings { temperature: 0.8, ..base }),
        ("top-k", SampleSettings { temperature: 1.5, top_k: 40, ..base }),
        ("top-p", SampleSettings { temperature: 1.0, top_p: 0.7, ..base }),
        ("min-p", SampleSettings { temperature: 1.0, min_p: 0.1, ..base }),
        ("narrow top-p", SampleSettings { temperature: 1.0, top_p: 0.001, ..base }),
        ("top-k of one", SampleSettings { temperature: 1.0, top_k: 1, ..base }),
        ("large top-k", SampleSettings { temperature: 1.0, top_k: 3000, top_p: 0.99, ..base }),
        ("all", SampleSettings { temperature: 0.7, top_k: 50, top_p: 0.9, min_p: 0.02, repeat_penalty: 1.1, ..base }),
    ];
    // 20,000 logits are 79 chunks of the kernel for hardware, which then finds the 40 largest without a search.
    let sized = [97, 5000, 20_000].into_iter().flat_map(move |v| settings.into_iter().map(move |s| (v, s)));
    let samples = sized.map(|(vocabulary, (name, settings))| {
        case(format!("sample {name} of {vocabulary}"), 1e-12, move |make| sample_case(make, vocabulary, settings))
    });
    let scores = [97, 5000, 20_000].into_iter().flat_map(|vocabulary| {
        [("", false), (", many equal ones", true)].map(|(what, equal)| {
            let name = format!("log_probs of {vocabulary} logits{what}");
            case(name, LOG_PROBS_BOUND, move |make| log_probs_case(make, vocabulary, equal))
        })
    });
    samples.chain(scores).collect()
}

/// A sum that is off by 3e-6 of itself makes an error of this size, and one of 3e-6 in its logarithm.
pub(super) const LOG_PROBS_BOUND: f64 = 1e-11;

/// Log-probabilities of three rows, of which different numbers of most likely tokens are wanted.
pub(super) fn log_probs_case(
    make: &mut RandomTensors<'_>,
    vocabulary: usize,
    equal: bool,
) -> Result<Recorded, GpuError> {
    let mut graph = Graph::new();
    let mut values = make.numbers(3 * vocabulary, false);
    // The second row is wide, as those of real models.
    let scaled = |(i, value): (usize, &mut f32)| {
        let wide = if i / vocabulary == 1 { 8.0 } else { 2.0 };
        *value = if equal { (*value * 2.0).round() } else { *value * wide };
    };
    values.iter_mut().enumerate().for_each(scaled);
    let (logits, chosen) = (make.state(&[3, vocabulary], values)?, vec![5, vocabulary as u32 - 1, 0]);
    let (chosen, wanted) = (make.indices(&[3], chosen)?, make.indices(&[3], vec![20, 5, 0])?);
    let (logits, chosen, wanted) = (graph.state(&logits), graph.state(&chosen), graph.state(&wanted));
    let outputs = graph.log_probs(logits, chosen, wanted);
    Ok((graph, outputs.to_vec()))
}

pub(super) fn sample_case(
    make: &mut RandomTensors<'_>,
    vocabulary: usize,
    settings: SampleSettings,
) -> Result<Recorded, GpuError> {
    let rows = 3;
    let mut graph = Graph::new();
    // An intermediate tensor, because sampling changes the logits in place.
    let (a, b) = (make.random(&[rows, vocabulary])?, make.random(&[rows, vocabulary])?);
    let (a, b) = (graph.state(&a), graph.state(&b));
    let logits = graph.add(a, b);
    let seen = (0..rows * vocabulary).map(|i| u32::from(i % 3 == 0) * (i % 5) as u32).collect();
    let states = SampleStates {
        settings: make.state(&[rows, SETTINGS], (0..rows).flat_map(|_| settings.row()).collect())?,
        counts: make.indices(&[rows, vocabulary], seen)?,
        bias: make.random(&[rows, vocabulary])?,
    };
    let (tokens, positions) = (make.indices(&[rows], vec![0; rows])?, make.indices(&[rows], vec![7, 300, 12])?);
    let (tokens, positions) = (graph.state(&tokens), graph.state(&positions));
    graph.sample(logits, tokens, positions, &states);
    let counts = graph.state(&states.counts);
    Ok((graph, vec![logits, tokens, positions, counts]))
}
