//! Reads a checkpoint's tensors and writes them to the device, a few MiB at a time.

use std::sync::Arc;

use bayan_gpu::Gpu;
use bayan_tensor::ops::Affine;
use bayan_tensor::{GROUP, Matrix, MatrixBuilder, Slots, State, Values};
use bayan_weights::{Checkpoint, F32, Format, Policy, joined_format};

use super::parameters::{Group, Parameters, untrainable};
use super::placement::{Placement, device_after};
use crate::ModelError;
use crate::adapter::layer_of;

/// Approximate number of bytes of a tensor that are in host memory at a time.
const CHUNK_BYTES: usize = 4 << 20;

/// Bytes written to the device before waiting for it; the driver may hold that much in staging memory.
const FLUSH_BYTES: usize = 32 << 20;

/// Bytes of a tensor, as f32, that are held in memory to transpose it.
const TRANSPOSED_BYTES: usize = 64 << 20;

/// Called with the number of bytes read so far, and the total.
pub type OnProgress<'a> = &'a mut dyn FnMut(u64, u64);

/// Reads the tensors of one model; [`Loader`](super::Loader) documents the methods.
pub(super) struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    placement: Placement<'a>,
    /// The device of the tensors that are being loaded; `after` is that of the tensors after the layers.
    device: usize,
    after: usize,
    in_layers: bool,
    policy: Option<Policy>,
    read_bytes: u64,
    unflushed_bytes: usize,
    on_progress: OnProgress<'a>,
    slots: Slots,
    parameters: Option<Parameters>,
}

impl<'a> Reader<'a> {
    /// A reader to the devices of `placement`, or to the host for the interpreter if there are none. With a policy,
    /// dense matrices are quantized while they are read; without one, they keep their stored format, except that bf16
    /// becomes f16.
    ///
    /// # Errors
    /// Invalid sizes in the configuration.
    pub fn new(
        checkpoint: &'a Checkpoint,
        placement: Placement<'a>,
        policy: Option<Policy>,
        on_progress: OnProgress<'a>,
    ) -> Result<Reader<'a>, ModelError> {
        let after = if placement.gpus.len() > 1 { device_after(checkpoint, &placement)? } else { 0 };
        Ok(Reader {
            checkpoint,
            placement,
            device: 0,
            after,
            in_layers: false,
            policy,
            read_bytes: 0,
            unflushed_bytes: 0,
            on_progress,
            slots: Slots::default(),
            parameters: None,
        })
    }

    /// Loads all tensors into an arena, in which they are trained.
    pub fn train(&mut self, parameters: Parameters) {
        self.parameters = Some(parameters);
    }

    /// The arena with the loaded tensors.
    pub fn take_parameters(&mut self) -> Option<Parameters> {
        self.parameters.take()
    }

    /// Fails if all parameters are trained, for a tensor that the model does not read as it is stored.
    fn only_frozen(&self, name: &str, how: &str) -> Result<(), ModelError> {
        if self.parameters.is_none() {
            return Ok(());
        }
        Err(untrainable(name, "a tensor that the model reads as it is stored, to train all parameters", how))
    }

    /// Selects the device of the tensor with this name. Tensors that belong to no layer are on the first device if they
    /// come before the layers.
    fn go_to(&mut self, name: &str) {
        match layer_of(name) {
            Some(layer) => (self.in_layers, self.device) = (true, self.placement.of_layer(layer)),
            None if self.in_layers => self.device = self.after,
            None => {}
        }
    }

    fn builder(
        &mut self,
        name: &str,
        format: &'static dyn Format,
        rows: usize,
        columns: usize,
    ) -> Result<MatrixBuilder<'a>, ModelError> {
        self.go_to(name);
        let layer = layer_of(name).filter(|layer| self.placement.gpu_layers.is_some_and(|kept| *layer >= kept));
        let cpu = self.placement.cpu;
        Ok(match (self.gpu(), layer) {
            (Some(gpu), Some(layer)) => {
                // The device holds two streamed layers at a time, and layers alternate between the two slots: one can
                // be written while the other is read.
                let slot =
                    format!("{} {}{}", self.device, layer % 2, name.rsplit('.').take(3).collect::<Vec<_>>().join("."));
                MatrixBuilder::streamed(gpu, &mut self.slots, &slot, name, format, rows, columns)?
            }
            (gpu, _) => match cpu {
                Some(cpu) if gpu.is_none() => MatrixBuilder::on_cpu(cpu, name, format, rows, columns),
                _ => MatrixBuilder::new(gpu, name, format, rows, columns)?,
            },
        })
    }

    /// A builder of matrices stacked by rows; a trained matrix is stored in the arena in f32.
    fn stacked_builder(
        &mut self,
        parts: &[(String, usize)],
        columns: usize,
        transposed: bool,
        format: &'static dyn Format,
    ) -> Result<MatrixBuilder<'a>, ModelError> {
        let (first, rows) = (&parts[0].0, parts.iter().map(|(_, rows)| rows).sum());
        let Some(parameters) = &mut self.parameters else { return self.builder(first, format, rows, columns) };
        let tensors = parts
            .iter()
            .map(|(name, rows)| (name.clone(), if transposed { vec![columns, *rows] } else { vec![*rows, columns] }))
            .collect();
        let state = parameters.place(Group { tensors, columns: Some(columns), transposed, read_as: None })?;
        Ok(MatrixBuilder::trained(self.placement.gpus.first(), first, rows, columns, &state)?)
    }

    /// The device of the tensors that are being loaded.
    pub fn gpu(&self) -> Option<&'a Gpu> {
        self.placement.gpus.get(self.device).or(self.placement.gpus.first())
    }

    fn format(&self, name: &str) -> Result<&'static dyn Format, ModelError> {
        let entry = self.checkpoint.require(name)?;
        Ok(entry.loaded_format(self.policy.as_ref()))
    }

    fn check_shape(&self, name: &str, shape: &[usize]) -> Result<(), ModelError> {
        let entry = self.checkpoint.require(name)?;
        if entry.shape == shape {
            return Ok(());
        }
        Err(ModelError::Config {
            field: name.to_string(),
            expected: format!("a tensor of sizes {shape:?} by config.json"),
            got: format!("{:?}", entry.shape),
        })
    }

    /// Matrices stacked by rows into one. Parts are (tensor name, rows), each [rows, columns].
    ///
    /// # Errors
    /// A tensor that is missing, has other sizes, is damaged, or does not fit the device.
    pub async fn matrix(&mut self, parts: &[(String, usize)], columns: usize) -> Result<Arc<Matrix>, ModelError> {
        for (name, rows) in parts {
            self.check_shape(name, &[*rows, columns])?;
        }
        let mut formats = Vec::with_capacity(parts.len());
        for (name, _) in parts {
            let format = self.format(name)?;
            // Trained matrices are f32, whatever their stored format.
            formats.push(if self.parameters.is_some() { &F32 as &dyn Format } else { format });
        }
        // Parts keep their own formats, and kernels process one format after the other. If a part other than the last
        // has an incomplete group of rows, all parts are converted to one format.
        let whole_groups = parts[..parts.len() - 1].iter().all(|(_, rows)| rows.is_multiple_of(GROUP));
        if whole_groups && formats.iter().any(|format| format.name() != formats[0].name()) {
            let runs = formats.chunk_by(|a, b| a.name() == b.name()).map(<[_]>::len);
            let (mut stacked, mut start) = (Vec::new(), 0);
            for count in runs {
                stacked.push(self.matrix_in(&parts[start..start + count], columns, formats[start]).await?);
                start += count;
            }
            return Ok(Matrix::stacked(stacked));
        }
        let format = formats[1..].iter().fold(formats[0], |all, format| joined_format(all, *format));
        self.matrix_in(parts, columns, format).await
    }

    async fn matrix_in(
        &mut self,
        parts: &[(String, usize)],
        columns: usize,
        format: &'static dyn Format,
    ) -> Result<Arc<Matrix>, ModelError> {
        let mut builder = self.stacked_builder(parts, columns, false, format)?;
        if self.gpu().is_some_and(|gpu| !gpu.runs()) {
            return Ok(builder.without_values());
        }
        for (name, rows) in parts {
            let entry = self.checkpoint.require(name)?.clone();
            let stored_row = entry.size_bytes() / (entry.rows() as u64).max(1);
            let step = entry.rows_per_chunk(format, CHUNK_BYTES);
            let importance = self.policy.as_ref().and_then(|p| p.importance.get(name)).cloned();
            for start in (0..*rows).step_by(step) {
                let range = start..(start + step).min(*rows);
                let planes =
                    self.checkpoint.read_planes_weighted(name, range.clone(), format, importance.as_deref()).await?;
                self.unflushed_bytes += planes.bytes.iter().map(Vec::len).sum::<usize>();
                builder.push(&planes);
                self.advance(stored_row * range.len() as u64).await?;
            }
        }
        Ok(builder.finish())
    }

    /// As [`Reader::matrix`], from tensors that are stored as [columns, rows] (GPT-2's `Conv1D`), unless the checkpoint
    /// already transposes them. As many columns of the stored tensor are processed at a time as fit into
    /// `TRANSPOSED_BYTES`; each time, the whole tensor is read.
    ///
    /// # Errors
    /// As [`Reader::matrix`].
    pub async fn transposed_matrix(
        &mut self,
        parts: &[(String, usize)],
        columns: usize,
    ) -> Result<Arc<Matrix>, ModelError> {
        let (first, _) = &parts[0];
        if !self.checkpoint.is_transposed(self.checkpoint.require(first)?) {
            return self.matrix(parts, columns).await;
        }
        let format = if self.parameters.is_some() { &F32 as &dyn Format } else { self.format(first)? };
        let mut builder = self.stacked_builder(parts, columns, true, format)?;
        if self.gpu().is_some_and(|gpu| !gpu.runs()) {
            return Ok(builder.without_values());
        }
        for (name, rows) in parts {
            self.check_shape(name, &[columns, *rows])?;
            let entry = self.checkpoint.require(name)?.clone();
            let importance = self.policy.as_ref().and_then(|p| p.importance.get(name)).cloned();
            let step = (TRANSPOSED_BYTES / (4 * columns)).max(1);
            for start in (0..*rows).step_by(step) {
                let taken = start..(start + step).min(*rows);
                let planes =
                    self.checkpoint.read_planes_transposed(name, taken.clone(), format, importance.as_deref()).await?;
                self.unflushed_bytes += planes.bytes.iter().map(Vec::len).sum::<usize>();
                builder.push(&planes);
                self.advance(entry.size_bytes() * taken.len() as u64 / *rows as u64).await?;
            }
        }
        Ok(builder.finish())
    }

    /// The values of one tensor of these sizes.
    ///
    /// # Errors
    /// As [`Reader::vector`].
    pub async fn values(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        self.only_frozen(name, "one that is changed when it is loaded")?;
        self.read(name, shape).await
    }

    async fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        self.check_shape(name, shape)?;
        let values = self.checkpoint.read_f32(name).await?;
        self.advance(4 * values.len() as u64).await?;
        Ok(values)
    }

    /// Vectors concatenated into one f32 state. Parts are (tensor name, length). `plus` is added to every value (Gemma
    /// stores w − 1 for its norms).
    ///
    /// # Errors
    /// A tensor that is missing, has another length, is damaged, or does not fit the device.
    pub async fn vector(&mut self, parts: &[(String, usize)], plus: f32) -> Result<Arc<State>, ModelError> {
        let mut values = Vec::new();
        for (name, length) in parts {
            values.extend(self.read(name, &[*length]).await?);
        }
        self.vector_state(
            parts.iter().map(|(name, length)| (name.clone(), vec![*length])).collect(),
            values,
            Affine { factor: 1.0, plus },
        )
    }

    /// One tensor of these sizes as an f32 state \[its number of values\], times `factor`.
    ///
    /// # Errors
    /// As [`Reader::vector`].
    pub async fn scaled_vector(&mut self, name: &str, shape: &[usize], factor: f32) -> Result<Arc<State>, ModelError> {
        let values = self.read(name, shape).await?;
        self.vector_state(vec![(name.to_string(), shape.to_vec())], values, Affine { factor, plus: 0.0 })
    }

    /// A state to which the model applies `read`: a frozen one is transformed here, a trained one whenever it is read.
    fn vector_state(
        &mut self,
        tensors: Vec<(String, Vec<usize>)>,
        mut values: Vec<f32>,
        read: Affine,
    ) -> Result<Arc<State>, ModelError> {
        let changed = read != Affine { factor: 1.0, plus: 0.0 };
        let Some(parameters) = &mut self.parameters else {
            self.go_to(&tensors[0].0);
            if changed {
                values.iter_mut().for_each(|v| *v = read.factor * *v + read.plus);
            }
            return Ok(State::new(self.gpu(), &tensors[0].0, &[values.len()], Values::F32(values))?);
        };
        let state =
            parameters.place(Group { tensors, columns: None, transposed: false, read_as: changed.then_some(read) })?;
        state.write(self.placement.gpus.first(), 0, Values::F32(values).bytes());
        Ok(state)
    }

    async fn advance(&mut self, bytes: u64) -> Result<(), ModelError> {
        self.read_bytes += bytes;
        if let (Some(gpu), true) = (self.gpu(), self.unflushed_bytes >= FLUSH_BYTES) {
            gpu.flush().await?;
            self.unflushed_bytes = 0;
        }
        if let Some(cpu) = self.placement.cpu {
            cpu.check()?;
        }
        (self.on_progress)(self.read_bytes.min(self.checkpoint.size_bytes()), self.checkpoint.size_bytes());
        Ok(())
    }
}
