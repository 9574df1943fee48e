//! A checkpoint as files: what is written to a directory by the command line, and to the browser's storage by the page.

use std::path::Path;
use std::rc::Rc;

use bayan_models::{ADAPTER_CONFIG, ADAPTER_MODEL, Adapter};
use bayan_weights::{Source, WeightsError};

use super::arrays::{NamedArray, check_finite, encode_arrays, read_arrays};
use super::{MODEL, OPTIMIZER, Resumed, STATE, TrainState, TrainedWeights, VERSION};
use crate::error::{Result, TrainError};

/// Names and contents of a checkpoint's files.
pub type CheckpointFiles = Vec<(&'static str, Vec<u8>)>;

/// Far more than the state of any run.
const LARGEST_STATE_BYTES: u64 = 64 << 20;

/// Encodes a checkpoint; `path` is for messages.
///
/// # Errors
/// NaN or infinity in an array; the error names it.
pub fn encode(
    path: &Path,
    state: &TrainState,
    weights: &TrainedWeights,
    optimizer: &[NamedArray],
) -> Result<CheckpointFiles> {
    let optimizer = encode_arrays(path, optimizer)?;
    let text = serde_json::to_vec_pretty(state)
        .map_err(|e| TrainError::checkpoint(path, "numbers", e.to_string(), "report this as a bug"))?;
    let mut files = match weights {
        TrainedWeights::Adapter(adapter) => {
            for (name, module) in &adapter.modules {
                check_finite(path, &format!("{name} (A)"), &module.a)?;
                check_finite(path, &format!("{name} (B)"), &module.b)?;
            }
            vec![(ADAPTER_CONFIG, adapter.encode_config()), (ADAPTER_MODEL, adapter.encode_weights()?)]
        }
        TrainedWeights::Full(arrays) => vec![(MODEL, encode_arrays(path, arrays)?)],
    };
    files.extend([(OPTIMIZER, optimizer), (STATE, text)]);
    Ok(files)
}

/// Reads the files of a checkpoint; `path` is for messages.
///
/// # Errors
/// A file is missing, damaged, or of another version.
pub async fn decode(source: Rc<dyn Source>, path: &Path) -> Result<Resumed> {
    let bad = |expected: &str, got: String| {
        TrainError::checkpoint(path, expected, got, "resume from an earlier checkpoint, or start a new run")
    };
    let unread = |error: WeightsError| bad("files that can be read", error.to_string());
    let size = source.size(STATE).await.map_err(unread)?;
    let size = size.ok_or_else(|| bad(&format!("the file {STATE}"), "no such file".to_owned()))?;
    if size > LARGEST_STATE_BYTES {
        return Err(bad(&format!("at most {LARGEST_STATE_BYTES} bytes in {STATE}"), size.to_string()));
    }
    let text = source.read(STATE, 0, size as usize).await.map_err(unread)?;
    let state: TrainState = serde_json::from_slice(&text).map_err(|e| bad("a state of this program", e.to_string()))?;
    if state.version != VERSION {
        return Err(bad(&format!("version {VERSION}"), format!("version {}", state.version)));
    }
    let weights = if source.size(ADAPTER_MODEL).await.map_err(unread)?.is_some() {
        TrainedWeights::Adapter(Box::new(Adapter::open(source.clone()).await?))
    } else {
        TrainedWeights::Full(read_arrays(source.clone(), path, MODEL).await?)
    };
    let optimizer = read_arrays(source, path, OPTIMIZER).await?;
    Ok(Resumed { state, weights, optimizer, path: path.to_owned() })
}
