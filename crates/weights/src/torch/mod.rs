//! PyTorch's `pytorch_model.bin` and its shards, which repositories from LLaMA-2's time often have.
//!
//! The archive's directory and its pickle are read when opening; weights are streamed by rows, as from safetensors.
//! Nothing is executed: see [`pickle`].

mod pickle;
mod zip;

use crate::checkpoint::{Stored, TensorEntry, check_contents, read_exact};
use crate::contents::Expected;
use crate::error::WeightsError;
use crate::safetensors::{MAX_DIM, MAX_DIMS};
use crate::source::Source;
use pickle::Tensor;
use std::rc::Rc;
use zip::{Archive, Member};

const MAX_PICKLE_BYTES: u64 = 64 << 20;

/// Reads the tensors of one file.
pub(crate) async fn read(source: &dyn Source, file: &str) -> Result<Vec<TensorEntry>, WeightsError> {
    let size = source.size(file).await?.ok_or_else(|| WeightsError::MissingFile {
        file: file.to_owned(),
        place: source.describe(),
        remedy: "the index names this shard; download it too".to_owned(),
    })?;
    check_contents(source, file, size, Expected::Torch).await?;
    let first = read_exact(source, file, 0, size.min(2)).await?;
    if first == [0x80, 0x02] {
        return Err(WeightsError::Unsupported {
            what: format!("{file} (the form of torch.save before PyTorch 1.6)"),
            remedy: "load and save it again with a current PyTorch, or take the safetensors checkpoint".to_owned(),
        });
    }
    let archive = Archive::open(source, file, size).await?;
    let bad = |problem: String| WeightsError::malformed(file, problem);
    let root = archive
        .members
        .keys()
        .find_map(|name| name.strip_suffix("data.pkl"))
        .filter(|root| root.is_empty() || root.ends_with('/'));
    let root = root.ok_or_else(|| bad("expected a member data.pkl, found none".to_owned()))?.to_owned();
    if let Some(order) = archive.members.get(&format!("{root}byteorder")).map(|member| member.size) {
        let member = archive.resolve(&format!("{root}byteorder")).await?;
        let text = read_exact(source, file, member.offset, order.min(16)).await?;
        if text != b"little" {
            return Err(bad(format!("its numbers are {}, expected little-endian", String::from_utf8_lossy(&text))));
        }
    }
    let member = archive.resolve(&format!("{root}data.pkl")).await?;
    if member.size > MAX_PICKLE_BYTES {
        return Err(bad(format!("expected a pickle of at most {MAX_PICKLE_BYTES} bytes, got {}", member.size)));
    }
    let bytes = read_exact(source, file, member.offset, member.size).await?;
    let shared: Rc<str> = file.into();
    let mut entries = Vec::new();
    for (name, tensor) in pickle::state_dict(file, &bytes)? {
        let storage = archive.resolve(&format!("{root}data/{}", tensor.key)).await?;
        entries.push(entry(&shared, name, &tensor, &storage)?);
    }
    Ok(entries)
}

fn entry(file: &Rc<str>, name: String, tensor: &Tensor, storage: &Member) -> Result<TensorEntry, WeightsError> {
    let bad = |problem: String| WeightsError::malformed(file, format!("tensor {name:?}: {problem}"));
    if tensor.shape.len() > MAX_DIMS
        || tensor.shape.len() != tensor.strides.len()
        || tensor.shape.iter().any(|&size| size > MAX_DIM)
    {
        return Err(bad(format!(
            "expected up to {MAX_DIMS} sizes up to {MAX_DIM} and as many strides, got {:?}",
            tensor.shape
        )));
    }
    let mut count = 1u64;
    for (&size, &stride) in tensor.shape.iter().zip(&tensor.strides).rev() {
        if size > 1 && stride != count {
            return Err(WeightsError::Unsupported {
                what: format!("{file}: tensor {name:?} with strides {:?}", tensor.strides),
                remedy: "only rows one after another are read; call .contiguous() on the tensor and save again"
                    .to_owned(),
            });
        }
        count = count.checked_mul(size).ok_or_else(|| bad("its shape overflows".to_owned()))?;
    }
    let width = tensor.dtype.size_bytes() as u64;
    let range = tensor.offset.checked_mul(width).zip(count.checked_mul(width));
    let range = range.filter(|(start, length)| start.checked_add(*length).is_some_and(|end| end <= storage.size));
    let Some((start, _)) = range else {
        return Err(bad(format!("{count} elements from {} of a storage of {} bytes", tensor.offset, storage.size)));
    };
    let shape = tensor.shape.iter().map(|&size| size as usize).collect();
    Ok(TensorEntry {
        name,
        shape,
        stored: Stored::Dense(tensor.dtype),
        file: file.clone(),
        offsets: vec![storage.offset + start],
        reader: None,
    })
}
