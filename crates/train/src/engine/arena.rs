//! The arena: one buffer for all trained parameters. It stores the offset of each LoRA pair, or of each parameter of
//! the model, and uploads and reads the values.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bayan_gpu::Gpu;
use bayan_models::{Adapter, AdapterConfig, AdapterModule, Decoder, Extras, Parameter, Parameters};
use bayan_tensor::ops::Arenas;
use bayan_tensor::{Dtype, State, Values};

use super::EngineError;
use crate::{NamedArray, Rng, TrainedWeights};

/// 64 floats: storage bindings must start at multiples of 256 bytes.
const ALIGNMENT: usize = 64;

/// The offsets of one module's LoRA pair.
#[derive(Debug)]
pub(super) struct LoraSlot {
    pub name: String,
    pub scale: f32,
    rank: usize,
    in_features: usize,
    out_features: usize,
    a: usize,
    b: usize,
    pub parameters: [Arc<State>; 2],
    pub gradients: [Arc<State>; 2],
}

/// What is trained.
#[derive(Debug)]
enum Kind {
    /// LoRA pairs over a frozen base.
    Adapter { slots: Vec<LoraSlot>, config: Box<AdapterConfig> },
    /// All parameters of the model, which reads them from the arena.
    Full(Vec<Parameter>),
}

/// The trained parameters with their gradients and moments.
#[derive(Debug)]
pub(super) struct Arena {
    pub states: Arenas,
    kind: Kind,
    len: usize,
}

impl Arena {
    /// Lays out an adapter and uploads it.
    pub fn new(gpu: Option<&Gpu>, adapter: &Adapter) -> Result<Arena, EngineError> {
        let mut len = 0usize;
        let mut reserve = |count: usize| {
            let start = len;
            len = (start + count).next_multiple_of(ALIGNMENT);
            start
        };
        let offsets: Vec<(usize, usize)> =
            adapter.modules.values().map(|m| (reserve(m.a.len()), reserve(m.b.len()))).collect();
        let len = len.max(ALIGNMENT);
        let values = flattened(adapter, &offsets, len)?;
        let zeros = |label: &str| State::zeros(gpu, label, &[len], Dtype::F32);
        let parameters = State::new(gpu, "trained parameters", &[len], Values::F32(values))?;
        let states = Arenas {
            parameters,
            gradients: zeros("gradients")?,
            first: zeros("first moments")?,
            second: zeros("second moments")?,
            decayed: len,
        };
        let slot = |((name, m), &(a, b)): ((&String, &AdapterModule), &(usize, usize))| {
            let shapes = [([m.rank, m.in_features], a), ([m.out_features, m.rank], b)];
            let parts = |of: &Arc<State>| shapes.map(|(shape, offset)| State::part(of, name, &shape, offset));
            let (parameters, gradients) = (parts(&states.parameters), parts(&states.gradients));
            let AdapterModule { scale, rank, in_features, out_features, .. } = *m;
            LoraSlot { name: name.clone(), scale, rank, in_features, out_features, a, b, parameters, gradients }
        };
        let slots = adapter.modules.iter().zip(&offsets).map(slot).collect();
        Ok(Arena { states, kind: Kind::Adapter { slots, config: Box::new(adapter.config.clone()) }, len })
    }

    /// Wraps the parameters of a model that was loaded for full training.
    pub fn full(gpu: Option<&Gpu>, parameters: Parameters) -> Result<Arena, EngineError> {
        let len = parameters.parameters.shape()[0];
        let zeros = |label: &str| State::zeros(gpu, label, &[len], Dtype::F32);
        let (first, second) = (zeros("first moments")?, zeros("second moments")?);
        let Parameters { parameters, gradients, decayed, list, .. } = parameters;
        Ok(Arena { states: Arenas { parameters, gradients, first, second, decayed }, kind: Kind::Full(list), len })
    }

    /// The LoRA pairs to attach; none when all parameters are trained.
    pub fn slots(&self) -> &[LoraSlot] {
        match &self.kind {
            Kind::Adapter { slots, .. } => slots,
            Kind::Full(_) => &[],
        }
    }

    /// Replaces the trained values and resets moments and gradients.
    pub fn load(&self, gpu: Option<&Gpu>, weights: &TrainedWeights) -> Result<(), EngineError> {
        match (&self.kind, weights) {
            (Kind::Adapter { slots, .. }, TrainedWeights::Adapter(adapter)) => {
                let fits = |p: &LoraSlot| {
                    adapter.modules.get(&p.name).is_some_and(|m| {
                        (m.rank, m.in_features, m.out_features) == (p.rank, p.in_features, p.out_features)
                    })
                };
                if adapter.modules.len() != slots.len() || !slots.iter().all(fits) {
                    return Err(EngineError::input(
                        "adapter",
                        "the modules and ranks of the one in training",
                        "others",
                        "open a new trainer for it",
                    ));
                }
                let offsets: Vec<(usize, usize)> = slots.iter().map(|p| (p.a, p.b)).collect();
                let values = flattened(adapter, &offsets, self.len)?;
                self.states.parameters.write(gpu, 0, bytemuck::cast_slice(&values));
            }
            (Kind::Full(list), TrainedWeights::Full(arrays)) => {
                let by_name: HashMap<&str, &NamedArray> =
                    arrays.iter().map(|array| (array.name.as_str(), array)).collect();
                for parameter in list {
                    let values = parameter.pack(|name, shape| {
                        let found = by_name.get(name).filter(|array| {
                            array.shape == shape && array.values.len() == shape.iter().product::<usize>()
                        });
                        let expected = || {
                            EngineError::input(
                                "checkpoint",
                                format!("{name} of sizes {shape:?}"),
                                "no such array",
                                "resume with the model of the run",
                            )
                        };
                        found.map(|array| array.values.as_slice()).ok_or_else(expected)
                    })?;
                    parameter.parameter.write(gpu, 0, bytemuck::cast_slice(&values));
                }
            }
            (kind, _) => {
                let (expected, got) = if matches!(kind, Kind::Full(_)) {
                    ("all parameters", "an adapter")
                } else {
                    ("an adapter", "all parameters")
                };
                return Err(EngineError::input("checkpoint", expected, got, "resume with the recipe of the run"));
            }
        }
        for state in [&self.states.gradients, &self.states.first, &self.states.second] {
            clear(gpu, state);
        }
        Ok(())
    }

    /// Sets the gradients to zero.
    pub fn clear_gradients(&self, gpu: Option<&Gpu>) {
        match gpu {
            Some(_) => clear(gpu, &self.states.gradients),
            // The interpreter has a separate allocation for each part.
            None => self.pairs().iter().for_each(|(_, gradient)| clear(None, gradient)),
        }
    }

    /// (parameter, gradient) of each trained tensor.
    pub fn pairs(&self) -> Vec<(Arc<State>, Arc<State>)> {
        match &self.kind {
            Kind::Adapter { slots, .. } => {
                slots.iter().flat_map(|p| p.parameters.iter().cloned().zip(p.gradients.iter().cloned())).collect()
            }
            Kind::Full(list) => list.iter().map(|p| (p.parameter.clone(), p.gradient.clone())).collect(),
        }
    }

    /// Reads the trained values, or with `gradients` their gradients, by name.
    pub async fn read(&self, gpu: Option<&Gpu>, gradients: bool) -> Result<TrainedWeights, EngineError> {
        let whole = if gradients { &self.states.gradients } else { &self.states.parameters };
        let whole = if gpu.is_some() { Some(whole.read(gpu).await?) } else { None };
        let values = |part: &Arc<State>, offset: usize| match &whole {
            Some(values) => values.f32()[offset..offset + part.shape().iter().product::<usize>()].to_vec(),
            None => part.host().map(|v| v.f32().to_vec()).unwrap_or_default(),
        };
        let (slots, config) = match &self.kind {
            Kind::Adapter { slots, config } => (slots, config),
            Kind::Full(list) => {
                let arrays = list
                    .iter()
                    .flat_map(|p| p.unpack(&values(if gradients { &p.gradient } else { &p.parameter }, p.offset)));
                return Ok(TrainedWeights::Full(
                    arrays.map(|(name, shape, values)| NamedArray { name, shape, values }).collect(),
                ));
            }
        };
        let mut modules = BTreeMap::new();
        for slot in slots {
            let parts = if gradients { &slot.gradients } else { &slot.parameters };
            let module = AdapterModule {
                rank: slot.rank,
                in_features: slot.in_features,
                out_features: slot.out_features,
                scale: slot.scale,
                a: values(&parts[0], slot.a),
                b: values(&parts[1], slot.b),
            };
            modules.insert(slot.name.clone(), module);
        }
        let config = AdapterConfig::clone(config);
        Ok(TrainedWeights::Adapter(Box::new(Adapter { config, modules, extras: Extras::default() })))
    }
}

fn clear(gpu: Option<&Gpu>, state: &Arc<State>) {
    match gpu {
        Some(gpu) => gpu.clear(state.buffer()),
        None => state.write(None, 0, &vec![0; state.size_bytes() as usize]),
    }
}

fn flattened(adapter: &Adapter, offsets: &[(usize, usize)], len: usize) -> Result<Vec<f32>, EngineError> {
    adapter.require_plain()?;
    let mut values = vec![0.0f32; len];
    for ((name, m), &(a, b)) in adapter.modules.iter().zip(offsets) {
        if m.a.len() != m.rank * m.in_features || m.b.len() != m.out_features * m.rank {
            let expected = format!("A [{}, {}] and B [{}, {}]", m.rank, m.in_features, m.out_features, m.rank);
            return Err(EngineError::input(
                name,
                expected,
                format!("{} and {} numbers", m.a.len(), m.b.len()),
                "read the adapter again",
            ));
        }
        values[a..a + m.a.len()].copy_from_slice(&m.a);
        values[b..b + m.b.len()].copy_from_slice(&m.b);
    }
    Ok(values)
}

/// A new adapter with PEFT's initialization: A uniform within ±1/√in, B zero, so that it changes nothing at first. As
/// in PEFT, `all-linear` does not include the output head.
///
/// # Errors
/// A pattern is not valid, or no module matches the targets.
pub fn new_adapter(decoder: &mut dyn Decoder, config: AdapterConfig, rng: &mut Rng) -> Result<Adapter, EngineError> {
    let rules = config.rules()?;
    let mut modules = BTreeMap::new();
    for linear in decoder.linears_mut() {
        for (name, rows) in linear.modules.iter().filter(|(name, _)| name != "lm_head") {
            if !rules.is_target(name)? {
                continue;
            }
            let (rank, in_features, out_features) = (rules.rank(name)?, linear.weight.columns(), rows.len());
            let bound = 1.0 / (in_features as f64).sqrt();
            let a = (0..rank * in_features).map(|_| ((rng.uniform() * 2.0 - 1.0) * bound) as f32).collect();
            let module = AdapterModule {
                rank,
                in_features,
                out_features,
                scale: rules.scale(name)?,
                a,
                b: vec![0.0; out_features * rank],
            };
            modules.insert(name.clone(), module);
        }
    }
    if modules.is_empty() {
        return Err(EngineError::input(
            "target_modules",
            "at least one linear module of this model",
            "none",
            "name modules such as q_proj, or all-linear",
        ));
    }
    Ok(Adapter { config, modules, extras: Extras::default() })
}
