//! Writes a checkpoint that is either complete or absent.
//!
//! The tensors are declared first, because a safetensors header precedes the data; then rows are written in order, and
//! the bytes of each plane go to their offset in the shard. All files are written into a hidden sibling directory that
//! [`CheckpointWriter::finish`] renames; a writer that is dropped earlier removes it, so that a failure such as a full
//! disk leaves nothing behind. Rejected: writing planes to temporary files and joining them, because it takes twice the
//! disk space and traffic.

use super::io_error;
use crate::checkpoint::{METADATA_KEY, METADATA_VERSION};
use crate::dtype::Dtype;
use crate::error::WeightsError;
use crate::formats::{Format, Planes};
use crate::safetensors::encode_header;
use crate::source::{bad_name, is_plain_file_name};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A tensor to be written.
#[derive(Clone, Debug)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Logical shape, outermost first; quantized formats need at least one dimension.
    pub shape: Vec<usize>,
    /// The format of its rows.
    pub format: &'static dyn Format,
}

impl TensorSpec {
    fn rows(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, outer)| outer.iter().product())
    }

    fn k(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    fn plane_bytes(&self, plane: usize) -> u64 {
        self.format.row_bytes(plane, self.k()) * self.rows() as u64
    }

    fn size_bytes(&self) -> u64 {
        (0..self.format.planes().len()).map(|plane| self.plane_bytes(plane)).sum()
    }
}

/// Options of a writer.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// A shard is closed before it exceeds this size; a larger single tensor gets its own shard.
    pub max_shard_bytes: u64,
    /// Whether an existing checkpoint directory may be replaced.
    pub overwrite: bool,
    /// Weight files are named `<stem>.safetensors`.
    pub stem: String,
}

impl Default for WriteOptions {
    /// Shards of 2 GB, which every browser store and file system supports; no overwriting; `model`.
    fn default() -> Self {
        Self { max_shard_bytes: 2_000_000_000, overwrite: false, stem: "model".to_owned() }
    }
}

/// The place of one tensor.
#[derive(Debug)]
struct Placed {
    spec: TensorSpec,
    shard: usize,
    /// File offset of each plane.
    offsets: Vec<u64>,
}

/// Streams tensors into a new checkpoint directory.
#[derive(Debug)]
pub struct CheckpointWriter {
    target: PathBuf,
    partial: PathBuf,
    overwrite: bool,
    stem: String,
    shard_names: Vec<String>,
    placed: Vec<Placed>,
    /// The tensor that is being written, and how many of its rows are written.
    current: usize,
    rows_done: usize,
    file: Option<(usize, File)>,
    finished: bool,
}

static SERIAL: AtomicU32 = AtomicU32::new(0);

impl CheckpointWriter {
    /// Starts a checkpoint at `directory` with these tensors, in this order.
    ///
    /// Errors: the directory exists and is not empty (unless `overwrite` is set and it is a checkpoint), names repeat
    /// or clash, or a file operation was refused.
    pub fn create(
        directory: impl AsRef<Path>,
        tensors: Vec<TensorSpec>,
        options: &WriteOptions,
    ) -> Result<Self, WeightsError> {
        let target = directory.as_ref().to_owned();
        let Some(name) = target.file_name().and_then(|name| name.to_str()) else {
            return Err(WeightsError::Unsupported {
                what: format!("{}: writing a checkpoint there", target.display()),
                remedy: "give the name of a new directory".to_owned(),
            });
        };
        check_target(&target, options.overwrite)?;
        check_names(&tensors)?;
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(|source| io_error("create", parent, source))?;
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let partial = parent.join(format!(".{name}.partial-{}-{serial}", std::process::id()));
        fs::create_dir(&partial).map_err(|source| io_error("create", &partial, source))?;
        let mut writer = Self {
            target,
            partial,
            overwrite: options.overwrite,
            stem: options.stem.clone(),
            shard_names: Vec::new(),
            placed: Vec::new(),
            current: 0,
            rows_done: 0,
            file: None,
            finished: false,
        };
        writer.lay_out(tensors, options.max_shard_bytes)?;
        writer.skip_empty();
        Ok(writer)
    }

    /// Divides the tensors into shards, writes every header, and sets the length of every file.
    fn lay_out(&mut self, tensors: Vec<TensorSpec>, max_shard_bytes: u64) -> Result<(), WeightsError> {
        let mut shards: Vec<Vec<TensorSpec>> = vec![Vec::new()];
        let mut filled = 0u64;
        for tensor in tensors {
            let size = tensor.size_bytes();
            if filled > 0 && filled.saturating_add(size) > max_shard_bytes {
                shards.push(Vec::new());
                filled = 0;
            }
            filled += size;
            if let Some(shard) = shards.last_mut() {
                shard.push(tensor);
            }
        }
        let count = shards.len();
        for (shard, specs) in shards.into_iter().enumerate() {
            let file = match count {
                1 => format!("{}.safetensors", self.stem),
                _ => format!("{}-{:05}-of-{count:05}.safetensors", self.stem, shard + 1),
            };
            let arrays: Vec<(String, Dtype, Vec<usize>, u64)> = specs.iter().flat_map(arrays_of).collect();
            let borrowed: Vec<(&str, Dtype, &[usize], u64)> =
                arrays.iter().map(|(n, d, s, b)| (n.as_str(), *d, s.as_slice(), *b)).collect();
            let header = encode_header(&borrowed, &metadata_of(&specs));
            let mut offset = header.len() as u64;
            for spec in specs {
                let mut offsets = Vec::new();
                for plane in 0..spec.format.planes().len() {
                    offsets.push(offset);
                    offset += spec.plane_bytes(plane);
                }
                self.placed.push(Placed { spec, shard, offsets });
            }
            let path = self.partial.join(&file);
            let mut out = File::create(&path).map_err(|source| io_error("create", &path, source))?;
            out.write_all(&header).map_err(|source| io_error("write", &path, source))?;
            out.set_len(offset).map_err(|source| io_error("write", &path, source))?;
            self.shard_names.push(file);
        }
        Ok(())
    }

    /// Appends rows to the tensor `name`, which must be the next unfinished one.
    ///
    /// Errors: another tensor, format or width, more rows than declared, or a refused write.
    pub fn write(&mut self, name: &str, planes: &Planes) -> Result<(), WeightsError> {
        let Some(placed) = self.placed.get(self.current) else {
            return Err(request(
                name,
                "no more rows: every declared tensor is written".to_owned(),
                "more rows".to_owned(),
            ));
        };
        let spec = &placed.spec;
        let left = spec.rows() - self.rows_done;
        let fits = spec.name == name
            && spec.format.name() == planes.format.name()
            && spec.k() == planes.k
            && planes.rows <= left
            && planes
                .bytes
                .iter()
                .enumerate()
                .all(|(i, bytes)| bytes.len() as u64 == spec.format.row_bytes(i, spec.k()) * planes.rows as u64);
        if !fits {
            return Err(request(
                name,
                format!("up to {left} rows of {} {} for {:?}", spec.k(), spec.format.name(), spec.name),
                format!("{} rows of {} {}, {} bytes", planes.rows, planes.k, planes.format.name(), planes.size_bytes()),
            ));
        }
        let offsets: Vec<u64> = (0..planes.bytes.len())
            .map(|i| placed.offsets[i] + self.rows_done as u64 * spec.format.row_bytes(i, planes.k))
            .collect();
        let path = self.partial.join(&self.shard_names[placed.shard]);
        let mut file = match self.file.take() {
            Some((shard, file)) if shard == placed.shard => file,
            _ => File::options().write(true).open(&path).map_err(|source| io_error("open", &path, source))?,
        };
        for (offset, bytes) in offsets.into_iter().zip(&planes.bytes) {
            let written = file.seek(SeekFrom::Start(offset)).and_then(|_| file.write_all(bytes));
            written.map_err(|source| io_error("write", &path, source))?;
        }
        self.file = Some((placed.shard, file));
        self.rows_done += planes.rows;
        self.skip_empty();
        Ok(())
    }

    /// Advances past tensors that have all their rows.
    fn skip_empty(&mut self) {
        while let Some(placed) = self.placed.get(self.current)
            && self.rows_done >= placed.spec.rows()
        {
            self.current += 1;
            self.rows_done = 0;
        }
    }

    /// Writes a side file: `config.json`, a tokenizer, a template.
    pub fn write_file(&mut self, name: &str, bytes: &[u8]) -> Result<(), WeightsError> {
        if !is_plain_file_name(name) || self.shard_names.iter().any(|shard| shard == name) {
            return Err(bad_name(&self.target.display().to_string(), name));
        }
        let path = self.partial.join(name);
        let mut file = File::create(&path).map_err(|source| io_error("create", &path, source))?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|source| io_error("write", &path, source))
    }

    /// The `quantization_config` for `config.json`; `None` when every tensor is dense.
    pub fn quantization_config(&self) -> Option<Value> {
        let mut formats: BTreeMap<&str, u64> = BTreeMap::new();
        for placed in self.placed.iter().filter(|placed| !placed.spec.format.is_dense()) {
            *formats.entry(placed.spec.format.name()).or_default() += 1;
        }
        if formats.is_empty() {
            return None;
        }
        Some(json!({"quant_method": "bayan", "version": METADATA_VERSION, "formats": formats}))
    }

    /// Completes the checkpoint: index, flush to disk, rename into place.
    ///
    /// Errors: rows are missing, or a file operation was refused; the old directory is then unchanged and the partial
    /// one is removed.
    pub fn finish(mut self) -> Result<(), WeightsError> {
        if let Some(placed) = self.placed.get(self.current) {
            return Err(request(
                &placed.spec.name,
                format!("{} rows before the checkpoint is finished", placed.spec.rows()),
                format!("{} rows", self.rows_done),
            ));
        }
        self.file = None;
        if self.shard_names.len() > 1 {
            let index = serde_json::to_vec_pretty(&self.index())
                .map_err(|error| io_error("write", &self.target, error.into()))?;
            let name = format!("{}.safetensors.index.json", self.stem);
            self.write_file(&name, &index)?;
        }
        for shard in &self.shard_names {
            let path = self.partial.join(shard);
            let synced = File::options().write(true).open(&path).and_then(|file| file.sync_all());
            synced.map_err(|source| io_error("write", &path, source))?;
        }
        self.move_into_place()?;
        self.finished = true;
        Ok(())
    }

    fn index(&self) -> Value {
        let mut map = Map::new();
        let mut total = 0u64;
        for placed in &self.placed {
            for (name, _, _, bytes) in arrays_of(&placed.spec) {
                map.insert(name, Value::from(self.shard_names[placed.shard].as_str()));
                total += bytes;
            }
        }
        json!({"metadata": {"total_size": total}, "weight_map": map})
    }

    fn move_into_place(&self) -> Result<(), WeightsError> {
        check_target(&self.target, self.overwrite)?; // another process may have created it meanwhile
        let rename = |from: &Path, to: &Path| fs::rename(from, to).map_err(|source| io_error("rename", from, source));
        if !self.target.exists() {
            return rename(&self.partial, &self.target);
        }
        let mut old = self.partial.clone().into_os_string();
        old.push("-old");
        let old = PathBuf::from(old);
        rename(&self.target, &old)?;
        if let Err(error) = rename(&self.partial, &self.target) {
            rename(&old, &self.target)?;
            return Err(error);
        }
        fs::remove_dir_all(&old).map_err(|source| io_error("remove", &old, source))
    }
}

impl Drop for CheckpointWriter {
    fn drop(&mut self) {
        if !self.finished {
            self.file = None;
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

fn request(tensor: &str, expected: String, got: String) -> WeightsError {
    WeightsError::Request { tensor: tensor.to_owned(), expected, got }
}

/// The stored arrays of a tensor: name, type, shape, bytes.
fn arrays_of(spec: &TensorSpec) -> Vec<(String, Dtype, Vec<usize>, u64)> {
    if spec.format.is_dense() {
        let dtype = spec.format.planes()[0].dtype;
        return vec![(spec.name.clone(), dtype, spec.shape.clone(), spec.plane_bytes(0))];
    }
    let planes = spec.format.planes().iter().enumerate();
    let array = planes.map(|(i, plane)| {
        let per_row = spec.format.row_bytes(i, spec.k()) as usize / plane.dtype.size_bytes();
        (format!("{}.{}", spec.name, plane.name), plane.dtype, vec![spec.rows(), per_row], spec.plane_bytes(i))
    });
    array.collect()
}

fn metadata_of(specs: &[TensorSpec]) -> BTreeMap<String, String> {
    let mut metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let quantized: Map<String, Value> = specs
        .iter()
        .filter(|spec| !spec.format.is_dense())
        .map(|spec| (spec.name.clone(), json!({"format": spec.format.name(), "shape": spec.shape})))
        .collect();
    if !quantized.is_empty() {
        let description = json!({"version": METADATA_VERSION, "tensors": quantized});
        metadata.insert(METADATA_KEY.to_owned(), description.to_string());
    }
    metadata
}

/// Checks that names are unique among tensors and among stored arrays, and that tensors of block formats have a last
/// dimension.
fn check_names(tensors: &[TensorSpec]) -> Result<(), WeightsError> {
    let mut seen = HashSet::new();
    for spec in tensors {
        if spec.shape.is_empty() && !spec.format.is_dense() {
            return Err(request(&spec.name, "a dimension to quantize along".to_owned(), "a scalar".to_owned()));
        }
        for (name, ..) in arrays_of(spec) {
            if !seen.insert(name.clone()) {
                return Err(request(&spec.name, "every stored name once".to_owned(), format!("{name:?} twice")));
            }
        }
    }
    Ok(())
}

/// Checks that `target` may be created or replaced. Only a directory that is certainly a checkpoint is replaced: it has
/// only files, among them a config.
fn check_target(target: &Path, overwrite: bool) -> Result<(), WeightsError> {
    let refuse = |why: &str| WeightsError::Unsupported {
        what: format!("writing a checkpoint to {}: {why}", target.display()),
        remedy: "name another directory, or remove this one first".to_owned(),
    };
    let data = match fs::symlink_metadata(target) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(io_error("inspect", target, source)),
        Ok(data) => data,
    };
    if !data.is_dir() {
        return Err(refuse("it exists and is not a directory"));
    }
    let mut is_checkpoint = false;
    let mut is_empty = true;
    for entry in fs::read_dir(target).map_err(|source| io_error("list", target, source))? {
        let entry = entry.map_err(|source| io_error("list", target, source))?;
        is_empty = false;
        if entry.file_type().map_err(|source| io_error("inspect", target, source))?.is_dir() {
            return Err(refuse("it exists and holds directories, so it is not only a checkpoint"));
        }
        let name = entry.file_name();
        is_checkpoint |= name == "config.json" || name == "adapter_config.json";
    }
    match (is_empty, overwrite, is_checkpoint) {
        (true, ..) | (_, true, true) => Ok(()),
        (_, true, false) => Err(refuse("it exists and is not a checkpoint")),
        _ => Err(refuse("it exists and is not empty, and overwriting was not asked for")),
    }
}
