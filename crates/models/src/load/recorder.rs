//! A model's tensors, cache needs and sizes, determined from its configuration alone.
//!
//! The architecture's `load` function runs with a loader that reads nothing.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bayan_tensor::{Matrix, State};
use serde_json::Value;

use super::loader::Loader;
use crate::arch::architecture;
use crate::cache::LayerCacheSpec;
use crate::config::{Fields, Sizes};
use crate::{LoadOptions, ModelError};

/// A model, as its configuration describes it.
#[derive(Debug, Clone)]
pub struct Description {
    /// The model's sizes.
    pub sizes: Sizes,
    /// What each layer stores in the cache.
    pub cache: Vec<LayerCacheSpec>,
    /// All tensors that are read when the model is opened, in that order.
    pub tensors: Vec<DescribedTensor>,
    /// Names of tensors that checkpoints may hold besides, and that change nothing.
    pub left_out: Vec<String>,
}

/// A tensor of a checkpoint.
#[derive(Debug, Clone)]
pub struct DescribedTensor {
    /// Hugging Face's name.
    pub name: String,
    /// The stored sizes, outermost first.
    pub shape: Vec<usize>,
    /// The values before training.
    pub first: FirstValues,
}

/// The initial values of a tensor in a model that is trained from scratch, as in transformers.
#[derive(Debug, Clone, Copy)]
pub enum FirstValues {
    /// Random values; `initializer_range` of the configuration is their standard deviation.
    Random,
    /// The same value for all elements.
    All(f32),
    /// The value of each element, as a function of its index.
    Each(fn(usize) -> f32),
}

/// Describes a model from its configuration, without a checkpoint.
///
/// # Errors
/// An unknown architecture, or a field that is missing or impossible.
pub fn describe(config: &Value) -> Result<Description, ModelError> {
    let fields = Fields(config);
    let load = architecture(&fields)?;
    let mut loader = Loader::recording(config);
    // The sizes of a model do not depend on the context.
    let options = LoadOptions { context: 2 };
    let polled = load(&fields, &options, &mut loader).as_mut().poll(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(decoder) = polled else { unreachable!("a loader that reads nothing waits for nothing") };
    let decoder = decoder?;
    let (tensors, left_out) = loader.recorded();
    Ok(Description { sizes: decoder.sizes().clone(), cache: decoder.cache_specs(), tensors, left_out })
}

/// Records the tensors that an architecture requests.
pub(super) struct Recorder<'a> {
    config: &'a Value,
    pub tensors: Vec<DescribedTensor>,
    pub left_out: Vec<String>,
}

impl<'a> Recorder<'a> {
    pub fn new(config: &'a Value) -> Recorder<'a> {
        Recorder { config, tensors: Vec::new(), left_out: Vec::new() }
    }

    fn add(&mut self, name: &str, shape: &[usize], first: FirstValues) {
        self.tensors.push(DescribedTensor { name: name.to_owned(), shape: shape.to_vec(), first });
    }

    /// Stacked matrices; with `conv1d` they are stored as [columns, rows], unless the configuration says otherwise.
    pub fn matrix(&mut self, parts: &[(String, usize)], columns: usize, conv1d: bool) -> Arc<Matrix> {
        let transposed = conv1d && bayan_weights::stores_transposed(self.config);
        for (name, rows) in parts {
            let shape = if transposed { [columns, *rows] } else { [*rows, columns] };
            self.add(name, &shape, FirstValues::Random);
        }
        Matrix::without_storage(&parts[0].0, parts.iter().map(|(_, rows)| rows).sum(), columns)
    }

    pub fn vector(&mut self, parts: &[(String, usize)], plus: f32) -> Arc<State> {
        for (name, length) in parts {
            // A norm's initial weight is 1, which is stored minus `plus`.
            let first = if name.ends_with(".bias") { 0.0 } else { 1.0 - plus };
            self.add(name, &[*length], FirstValues::All(first));
        }
        State::without_storage(&parts[0].0, &[parts.iter().map(|(_, length)| length).sum()])
    }

    /// A norm, a bias, or a convolution; only a convolution has three dimensions.
    pub fn shaped_vector(&mut self, name: &str, shape: &[usize]) -> Arc<State> {
        let first = match shape.len() {
            3 => FirstValues::Random,
            _ if name.ends_with(".bias") => FirstValues::All(0.0),
            _ => FirstValues::All(1.0),
        };
        self.add(name, shape, first);
        State::without_storage(name, shape)
    }

    pub fn values(&mut self, name: &str, shape: &[usize], first: fn(usize) -> f32) {
        self.add(name, shape, FirstValues::Each(first));
    }
}
