//! Named arrays in f32, and the safetensors files that hold them.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use bayan_weights::safetensors::encode_header;
use bayan_weights::{Bf16, Checkpoint as Tensors, Dtype, Format, Source};

use super::STATE;
use crate::error::{Result, TrainError};
use crate::recipe::SaveDtype;

/// A named array in f32, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedArray {
    /// Its name: a tensor's name, or for the optimizer `exp_avg.NAME`, `exp_avg_sq.NAME`.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// The values.
    pub values: Vec<f32>,
}

/// Polls a future over local files, which is always ready, to its end.
#[cfg(not(target_arch = "wasm32"))]
pub(super) fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}

/// Checks that all numbers are finite.
pub(super) fn check_finite(path: &Path, name: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(at) => {
            let got = format!("{} at index {at} of {name}", values[at]);
            Err(TrainError::checkpoint(
                path,
                "finite numbers",
                got,
                "lower the learning rate, or resume from the last checkpoint",
            ))
        }
    }
}

/// Encodes f32 arrays as a safetensors file, sorted by name.
pub(crate) fn encode_arrays(path: &Path, arrays: &[NamedArray]) -> Result<Vec<u8>> {
    encode_arrays_as(path, arrays, SaveDtype::Float32)
}

/// Encodes arrays as a safetensors file with the number type of `save`, sorted by name.
pub(crate) fn encode_arrays_as(path: &Path, arrays: &[NamedArray], save: SaveDtype) -> Result<Vec<u8>> {
    let mut sorted: Vec<&NamedArray> = arrays.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    for array in &sorted {
        check_finite(path, &array.name, &array.values)?;
        if array.shape.iter().try_fold(1usize, |n, size| n.checked_mul(*size)) != Some(array.values.len()) {
            let got = format!("{} numbers for {:?}", array.values.len(), array.shape);
            return Err(TrainError::checkpoint(
                path,
                format!("as many numbers as the sizes of {} say", array.name),
                got,
                "report this as a bug",
            ));
        }
    }
    let (dtype, size_bytes) = match save {
        SaveDtype::Float32 => (Dtype::F32, 4),
        SaveDtype::Bfloat16 => (Dtype::Bf16, 2),
    };
    let described: Vec<(&str, Dtype, &[usize], u64)> = sorted
        .iter()
        .map(|a| (a.name.as_str(), dtype, a.shape.as_slice(), size_bytes * a.values.len() as u64))
        .collect();
    let mut bytes = encode_header(&described, &BTreeMap::from([("format".to_owned(), "pt".to_owned())]));
    for array in sorted {
        match save {
            SaveDtype::Float32 => bytes.extend(array.values.iter().flat_map(|v| v.to_le_bytes())),
            SaveDtype::Bfloat16 => {
                let mut rounded = [Vec::with_capacity(2 * array.values.len())];
                let fits = Bf16.quantize_row(&array.values, None, &mut rounded);
                fits.map_err(|bad| {
                    TrainError::checkpoint(
                        path,
                        "numbers that bfloat16 holds",
                        bad.value.to_string(),
                        "save in float32",
                    )
                })?;
                bytes.append(&mut rounded[0]);
            }
        }
    }
    Ok(bytes)
}

/// Reads the arrays of a safetensors file of a checkpoint, sorted by name; `path` is for messages.
pub(super) async fn read_arrays(source: Rc<dyn Source>, path: &Path, file: &str) -> Result<Vec<NamedArray>> {
    let bad = |e: bayan_weights::WeightsError| {
        TrainError::checkpoint(&path.join(file), "arrays in f32", e.to_string(), "resume from an earlier checkpoint")
    };
    let stem = file.strip_suffix(".safetensors").unwrap_or(file);
    let tensors = Tensors::open_as(source, STATE, stem).await.map_err(bad)?;
    let mut arrays = vec![];
    for entry in tensors.tensors() {
        let values = tensors.read_f32(&entry.name).await.map_err(bad)?;
        arrays.push(NamedArray { name: entry.name.clone(), shape: entry.shape.clone(), values });
    }
    arrays.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(arrays)
}
