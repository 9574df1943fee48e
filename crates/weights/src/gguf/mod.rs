//! GGUF, llama.cpp's container, presented as the files of a Hugging Face checkpoint.
//!
//! `open` reads the header of one file, or of all parts of a split one, and provides tensors with Hugging Face's names
//! and order of rows, a `config.json`, and the tokenizer's files, so that no other module knows GGUF. Weights stay in
//! the file and are streamed by rows like all others. Rejected: reading GGUF's names and conventions in the model
//! files, because every architecture would need two loaders.
//!
//! [`blocks`] documents which format each block type is loaded as and what that changes.

pub mod adapter;
pub mod arch;
pub mod block_type;
pub mod blocks;
mod config;
#[cfg(not(target_arch = "wasm32"))]
mod copied;
#[cfg(not(target_arch = "wasm32"))]
pub mod export;
pub mod header;
pub mod names;
mod parts;
mod pretokenizers;
mod tensors;
mod tokenizer;
#[cfg(not(target_arch = "wasm32"))]
pub mod vocabulary;
#[cfg(not(target_arch = "wasm32"))]
pub mod writer;

#[cfg(test)]
mod tests;

#[cfg(not(target_arch = "wasm32"))]
pub use copied::tokenizer_entries;

use crate::checkpoint::{TensorEntry, read_exact};
use crate::contents::is_gguf;
use crate::error::WeightsError;
use crate::source::{LocalFuture, Source, is_plain_file_name};
use arch::{ARCHS, Arch};
use blocks::BlockType;
use config::Hints;
use header::{Header, TensorInfo, read_header};
use std::collections::BTreeMap;
use std::rc::Rc;
use tensors::{RowOrder, Values};

const MAX_PARTS: u64 = 1000;

/// The GGUF file to open from a source: the one the user named, or the only one where there is no other checkpoint.
///
/// Errors: there are several, and the user named none.
pub async fn find(source: &dyn Source) -> Result<Option<String>, WeightsError> {
    if let Some(file) = source.main_file() {
        return Ok(Some(file));
    }
    for name in ["model.safetensors", "model.safetensors.index.json"] {
        if source.size(name).await?.is_some() {
            return Ok(None);
        }
    }
    let mut files = Vec::new();
    for file in source.list() {
        let first = split_number(&file).is_none_or(|(_, number, _)| number == 1);
        if first && !file.starts_with("mmproj") && is_gguf_file(source, &file).await? {
            files.push(file);
        }
    }
    match files.len() {
        0 | 1 => Ok(files.pop()),
        _ => Err(WeightsError::Unsupported {
            what: format!("{} with several GGUF files, none named,", source.describe()),
            remedy: format!("name one of them: {}", files.join(", ")),
        }),
    }
}

/// Whether a file is GGUF: by its name, or by its first bytes if its name has the form of Ollama's (`sha256-…`) or no
/// ending.
async fn is_gguf_file(source: &dyn Source, file: &str) -> Result<bool, WeightsError> {
    let ending = file.rsplit_once('.').map(|(_, ending)| ending);
    match ending {
        Some(ending) => Ok(ending.eq_ignore_ascii_case("gguf")),
        None => match source.size(file).await? {
            Some(size) if size > 32 => Ok(is_gguf(&read_exact(source, file, 0, 4).await?)),
            _ => Ok(false),
        },
    }
}

/// The source of a checkpoint's files: `source` itself, or the files that a GGUF file replaces.
///
/// # Errors
/// A damaged GGUF file.
pub async fn files_of(source: Rc<dyn Source>) -> Result<Rc<dyn Source>, WeightsError> {
    match find(source.as_ref()).await? {
        Some(file) => Ok(open(source, &file).await?.source),
        None => Ok(source),
    }
}

/// The contents of a GGUF file.
pub(crate) struct Opened {
    pub config: serde_json::Value,
    pub tensors: Vec<TensorEntry>,
    pub source: Rc<dyn Source>,
}

/// Opens `file` and the other parts of a split file.
pub(crate) async fn open(source: Rc<dyn Source>, file: &str) -> Result<Opened, WeightsError> {
    if !is_plain_file_name(file) {
        return Err(crate::source::bad_name(&source.describe(), file));
    }
    let (first, parts) = read_parts(source.as_ref(), file).await?;
    if first.text("general.type") == Some("adapter") {
        return Err(WeightsError::Contents {
            file: file.to_owned(),
            found: "a LoRA adapter, not a model".to_owned(),
            remedy: "give its base model with --model, and this file with --adapter".to_owned(),
        });
    }
    let arch = architecture(file, &first)?;
    let all: Vec<(&Rc<str>, &TensorInfo)> =
        parts.iter().flat_map(|(file, infos)| infos.iter().map(move |info| (file, info))).collect();
    let hints = hints(source.as_ref(), &all).await?;
    let config = config::config(file, &first, arch, &hints)?;
    let head_dim = config.get("head_dim").and_then(serde_json::Value::as_u64).or_else(|| {
        let of = |key: &str| config.get(key).and_then(serde_json::Value::as_u64);
        of("hidden_size")?.checked_div(of("num_attention_heads")?)
    });
    let mut tensors = Vec::new();
    for (file, info) in all {
        if let Some(entry) = entry_of(arch, file, info, head_dim.unwrap_or(0) as usize)? {
            tensors.push(entry);
        }
    }
    let mut notes = Vec::new();
    let mut files = tokenizer::files(file, &first, arch, &mut notes)?;
    files.insert("config.json".to_owned(), config.to_string().into_bytes());
    let parts = parts.into_iter().map(|(file, _)| file).collect();
    let source = Rc::new(GgufSource { inner: source, main: file.to_owned(), parts, files, notes });
    Ok(Opened { config, tensors, source })
}

/// The header of the file itself, and the tensors of every part.
async fn read_parts(
    source: &dyn Source,
    file: &str,
) -> Result<(Header, Vec<(Rc<str>, Vec<TensorInfo>)>), WeightsError> {
    let mut first = read_header(source, file).await?;
    let count = first.integer("split.count").unwrap_or(1).max(1);
    let mut parts = vec![(Rc::from(file), std::mem::take(&mut first.tensors))];
    if count == 1 {
        return Ok((first, parts));
    }
    let bad = |problem: String| WeightsError::malformed(file, problem);
    let Some((stem, 1, named)) = split_number(file) else {
        return Err(bad(format!(
            "it is one of {count} parts: expected a name that ends in -00001-of-{count:05}.gguf; open the first part"
        )));
    };
    if count > MAX_PARTS || named != count {
        return Err(bad(format!("it is said to have {count} parts, its name says {named}")));
    }
    for number in 2..=count {
        let name = format!("{stem}-{number:05}-of-{count:05}.gguf");
        let header = read_header(source, &name).await?;
        if header.integer("split.no") != Some(number - 1) {
            return Err(WeightsError::malformed(
                &name,
                format!("expected part {} by split.no, got {:?}", number - 1, header.integer("split.no")),
            ));
        }
        parts.push((Rc::from(name.as_str()), header.tensors));
    }
    let found: usize = parts.iter().map(|(_, infos)| infos.len()).sum();
    match first.integer("split.tensors.count") {
        Some(told) if told != found as u64 => Err(bad(format!("the parts hold {found} tensors, expected {told}"))),
        _ => Ok((first, parts)),
    }
}

/// `stem`, `number` and `count` of `stem-00001-of-00003.gguf`.
fn split_number(file: &str) -> Option<(&str, u64, u64)> {
    let (rest, count) = file.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| (text.len() == 5).then(|| text.parse().ok()).flatten();
    Some((stem, digits(number)?, digits(count)?))
}

fn architecture(file: &str, header: &Header) -> Result<&'static Arch, WeightsError> {
    let name = header.text("general.architecture").unwrap_or("none");
    Arch::by_gguf(name).ok_or_else(|| WeightsError::Unsupported {
        what: format!("{file}: the architecture {name:?}"),
        remedy: format!("read from GGUF are {}", ARCHS.iter().map(|arch| arch.gguf).collect::<Vec<_>>().join(", ")),
    })
}

async fn hints<'a>(source: &dyn Source, all: &[(&Rc<str>, &'a TensorInfo)]) -> Result<Hints<'a>, WeightsError> {
    let find = |name: &str| all.iter().find(|(_, info)| info.name == name).copied();
    let floats = |name: &'static str| async move {
        let Some((file, info)) = find(name) else { return Ok(None) };
        if info.kind != BlockType::F32 || info.size_bytes > 1 << 20 {
            return Err(WeightsError::malformed(
                file,
                format!(
                    "tensor {name:?}: expected some F32 numbers, got {} bytes of {}",
                    info.size_bytes,
                    info.kind.name()
                ),
            ));
        }
        let bytes = read_exact(source, file, info.offset, info.size_bytes).await?;
        let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        match values.iter().all(|value| value.is_finite() && *value > 0.0) {
            true => Ok(Some(values)),
            false => Err(WeightsError::malformed(file, format!("tensor {name:?}: expected positive finite numbers"))),
        }
    };
    let long = (floats("rope_factors_short.weight").await?, floats("rope_factors_long.weight").await?);
    Ok(Hints {
        vocab_size: find("token_embd.weight").and_then(|(_, info)| info.shape.first().copied()).unwrap_or(0),
        names: all.iter().map(|(_, info)| info.name.as_str()).collect(),
        rope_factors: floats("rope_freqs.weight").await?,
        long_rope: long.0.zip(long.1),
    })
}

/// The tensor with its Hugging Face name; `None` for those that are in the configuration instead.
fn entry_of(
    arch: &Arch,
    file: &Rc<str>,
    info: &TensorInfo,
    head_dim: usize,
) -> Result<Option<TensorEntry>, WeightsError> {
    if matches!(info.name.as_str(), "rope_freqs.weight" | "rope_factors_short.weight" | "rope_factors_long.weight") {
        return Ok(None);
    }
    let name = arch.to_hugging_face(&info.name).ok_or_else(|| WeightsError::Unsupported {
        what: format!("{file}: the tensor {:?} in the architecture {:?}", info.name, arch.gguf),
        remedy: "this model differs from those of its name; take its safetensors checkpoint".to_owned(),
    })?;
    let (shape, values) = match (arch.stored)(&name, &info.shape) {
        Some(stored) => stored,
        None if arch.norm_plus_one && name.ends_with("norm.weight") => (info.shape.clone(), Values::PlusOne),
        None => (info.shape.clone(), Values::Same),
    };
    let order = if arch.is_interleaved(&name) { RowOrder::Interleaved(head_dim) } else { RowOrder::Same };
    let ordered = if shape.len() == 1 { shape[0] } else { shape.first().copied().unwrap_or(0) };
    if order != RowOrder::Same && (head_dim < 2 || !head_dim.is_multiple_of(2) || !ordered.is_multiple_of(head_dim)) {
        return Err(WeightsError::malformed(
            file,
            format!("tensor {:?}: its {ordered} rows are no whole heads of {head_dim}", info.name),
        ));
    }
    Ok(Some(tensors::entry(file, info, name, shape, order, values)))
}

/// A source with an opened GGUF file: the file and its parts, and the files made from its metadata.
struct GgufSource {
    inner: Rc<dyn Source>,
    main: String,
    parts: Vec<Rc<str>>,
    files: BTreeMap<String, Vec<u8>>,
    notes: Vec<String>,
}

impl GgufSource {
    fn is_part(&self, file: &str) -> bool {
        self.parts.iter().any(|part| part.as_ref() == file)
    }

    fn read_made(&self, file: &str, offset: u64, length: usize) -> Result<Vec<u8>, WeightsError> {
        let fail = |reason: &str| WeightsError::Source {
            file: file.to_owned(),
            place: self.describe(),
            reason: reason.to_owned(),
        };
        let bytes = self.files.get(file).ok_or_else(|| fail("no such file"))?;
        let range = usize::try_from(offset).ok().and_then(|start| Some(start..start.checked_add(length)?));
        range
            .and_then(|range| bytes.get(range))
            .map(<[u8]>::to_vec)
            .ok_or_else(|| fail("asked for bytes beyond its end"))
    }
}

impl Source for GgufSource {
    fn describe(&self) -> String {
        let place = self.inner.describe();
        if self.inner.main_file().is_some() { place } else { format!("{place}/{}", self.main) }
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    fn size<'a>(&'a self, file: &'a str) -> LocalFuture<'a, Result<Option<u64>, WeightsError>> {
        if self.is_part(file) {
            return self.inner.size(file);
        }
        Box::pin(std::future::ready(Ok(self.files.get(file).map(|bytes| bytes.len() as u64))))
    }

    fn read<'a>(&'a self, file: &'a str, offset: u64, length: usize) -> LocalFuture<'a, Result<Vec<u8>, WeightsError>> {
        if self.is_part(file) {
            return self.inner.read(file, offset, length);
        }
        Box::pin(std::future::ready(self.read_made(file, offset, length)))
    }

    fn list(&self) -> Vec<String> {
        self.parts.iter().map(|part| part.to_string()).chain(self.files.keys().cloned()).collect()
    }
}
