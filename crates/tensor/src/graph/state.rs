//! Storage that outlives a step: parameters, the key-value cache, the step's inputs.

use std::sync::{Arc, Mutex};

use bayan_gpu::{Buffer, BufferMove, Gpu, GpuError};

use super::values::{Dtype, ELEMENT_BYTES, Values};

/// y = factor · x + plus.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Affine {
    /// The multiplier.
    pub factor: f32,
    /// The summand.
    pub plus: f32,
}

/// A named buffer on the device, or in host memory when there is no device.
#[derive(Debug)]
pub struct State {
    label: String,
    shape: Vec<usize>,
    dtype: Dtype,
    buffer: Option<Buffer>,
    offset_bytes: u64,
    host: Mutex<Option<Values>>,
    read_as: Option<Affine>,
}

impl State {
    /// Zeros of the given sizes on the device, or on the host when `gpu` is `None`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn zeros(gpu: Option<&Gpu>, label: &str, shape: &[usize], dtype: Dtype) -> Result<Arc<State>, GpuError> {
        let len: usize = shape.iter().product();
        let buffer = gpu.map(|gpu| gpu.allocate(label, len as u64 * ELEMENT_BYTES)).transpose()?;
        let host = if gpu.is_none() { Some(Values::zeros(len, dtype)) } else { None };
        Ok(Arc::new(State {
            label: label.to_string(),
            shape: shape.to_vec(),
            dtype,
            buffer,
            offset_bytes: 0,
            host: Mutex::new(host),
            read_as: None,
        }))
    }

    /// A state without storage, which must never be run: for describing a model by names and sizes alone.
    pub fn without_storage(label: &str, shape: &[usize]) -> Arc<State> {
        Arc::new(State {
            label: label.to_string(),
            shape: shape.to_vec(),
            dtype: Dtype::F32,
            buffer: None,
            offset_bytes: 0,
            host: Mutex::new(None),
            read_as: None,
        })
    }

    /// A part of a state, from element `offset` on. On the device it shares the parent's buffer, so that one kernel can
    /// update many parameters together. On the host it gets a copy of the parent's values.
    ///
    /// # Panics
    /// If the part does not lie within the parent.
    pub fn part(parent: &Arc<State>, label: &str, shape: &[usize], offset: usize) -> Arc<State> {
        State::changed_part(parent, label, shape, offset, None)
    }

    /// As [`State::part`], for a weight to which the model applies `read_as` whenever it reads it.
    ///
    /// # Panics
    /// As [`State::part`].
    pub fn changed_part(
        parent: &Arc<State>,
        label: &str,
        shape: &[usize],
        offset: usize,
        read_as: Option<Affine>,
    ) -> Arc<State> {
        let len: usize = shape.iter().product();
        let whole: usize = parent.shape.iter().product();
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= whole),
            "{label}: {shape:?} from {offset} on in {whole} elements"
        );
        let host = parent.host().map(|values| match values {
            Values::F32(v) => Values::F32(v[offset..offset + len].to_vec()),
            Values::U32(v) => Values::U32(v[offset..offset + len].to_vec()),
        });
        let offset_bytes = parent.offset_bytes + offset as u64 * ELEMENT_BYTES;
        Arc::new(State {
            label: label.to_string(),
            shape: shape.to_vec(),
            dtype: parent.dtype,
            buffer: parent.buffer.clone(),
            offset_bytes,
            host: Mutex::new(host),
            read_as,
        })
    }

    /// Values of the given sizes.
    ///
    /// # Errors
    /// Out of memory.
    ///
    /// # Panics
    /// If the number of values does not fit the sizes.
    pub fn new(gpu: Option<&Gpu>, label: &str, shape: &[usize], values: Values) -> Result<Arc<State>, GpuError> {
        assert_eq!(values.len(), shape.iter().product::<usize>(), "{label}: values for {shape:?}");
        let state = State::zeros(gpu, label, shape, values.dtype())?;
        state.write(gpu, 0, values.bytes());
        Ok(state)
    }

    /// The name, for error messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The transformation that the model applies when it reads the values, if any.
    pub fn read_as(&self) -> Option<Affine> {
        self.read_as
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64 * ELEMENT_BYTES
    }

    /// The device's buffer.
    ///
    /// # Panics
    /// If the state lives on the host.
    pub fn buffer(&self) -> &Buffer {
        self.buffer.as_ref().unwrap_or_else(|| panic!("state `{}` has no device buffer", self.label))
    }

    /// Offset in the device's buffer, in bytes.
    pub fn offset_bytes(&self) -> u64 {
        self.offset_bytes
    }

    /// Whether the state is stored on a device.
    pub fn on_device(&self) -> bool {
        self.buffer.is_some()
    }

    /// Whether the state is stored on this device.
    pub fn is_on(&self, gpu: &Gpu) -> bool {
        self.buffer.as_ref().is_some_and(|buffer| gpu.owns(buffer))
    }

    /// Writes bytes at an element offset.
    pub fn write(&self, gpu: Option<&Gpu>, offset: usize, bytes: &[u8]) {
        if let (Some(buffer), Some(gpu)) = (&self.buffer, gpu) {
            gpu.write(buffer, self.offset_bytes + offset as u64 * ELEMENT_BYTES, bytes);
        }
        if let Some(values) = self.host.lock().unwrap_or_else(|e| e.into_inner()).as_mut() {
            let start = offset * ELEMENT_BYTES as usize;
            values.bytes_mut()[start..start + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// A copy of the host's values.
    pub fn host(&self) -> Option<Values> {
        self.host.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Calls `look` with the host's values, if there are any.
    pub fn with_host<T>(&self, look: impl FnOnce(&Values) -> T) -> Option<T> {
        self.host.lock().unwrap_or_else(|e| e.into_inner()).as_ref().map(look)
    }

    /// Takes the host's values, which [`State::set_host`] puts back.
    pub(crate) fn take_host(&self) -> Option<Values> {
        self.host.lock().unwrap_or_else(|e| e.into_inner()).take()
    }

    /// Replaces the host's values.
    pub(crate) fn set_host(&self, values: Values) {
        *self.host.lock().unwrap_or_else(|e| e.into_inner()) = Some(values);
    }

    /// Reads the values back from the device or the host.
    ///
    /// # Errors
    /// The device failed.
    pub async fn read(&self, gpu: Option<&Gpu>) -> Result<Values, GpuError> {
        if let (Some(buffer), Some(gpu)) = (&self.buffer, gpu) {
            let bytes = gpu.read(buffer, self.offset_bytes, self.size_bytes()).await?;
            return Ok(Values::from_bytes(&bytes, self.dtype));
        }
        Ok(self.host().unwrap_or_else(|| Values::zeros(0, self.dtype)))
    }
}

/// Elements of a state that follow each other.
#[derive(Debug, Clone, Copy)]
pub struct StateRange<'a> {
    /// The state.
    pub state: &'a State,
    /// The first element.
    pub from: usize,
    /// Number of elements.
    pub len: usize,
}

impl StateRange<'_> {
    /// Their size in bytes.
    pub fn size_bytes(&self) -> usize {
        self.len * ELEMENT_BYTES as usize
    }

    /// Reads them, from that of the devices that stores the state, or from the host.
    ///
    /// # Errors
    /// The device failed.
    pub async fn read(&self, gpus: &[Gpu]) -> Result<Vec<u8>, GpuError> {
        let start = self.from * ELEMENT_BYTES as usize;
        if let (Some(buffer), Some(gpu)) = (&self.state.buffer, gpus.iter().find(|gpu| self.state.is_on(gpu))) {
            return gpu.read(buffer, self.state.offset_bytes + start as u64, self.size_bytes() as u64).await;
        }
        let bytes = self.state.with_host(|values| values.bytes()[start..start + self.size_bytes()].to_vec());
        Ok(bytes.unwrap_or_default())
    }

    /// Replaces them with bytes of the same size.
    pub fn write(&self, gpus: &[Gpu], bytes: &[u8]) {
        self.state.write(gpus.iter().find(|gpu| self.state.is_on(gpu)), self.from, bytes);
    }
}

/// A range of a state's elements that is copied to another place of the same state, where the two do not overlap.
#[derive(Debug, Clone, Copy)]
pub struct Move<'a> {
    /// The state.
    pub state: &'a State,
    /// The first element.
    pub from: usize,
    /// The element that it is copied to.
    pub to: usize,
    /// Number of elements.
    pub len: usize,
}

/// Copies ranges within states, each on the device that stores the state, or on the host. What was submitted before has
/// run when the copies are made, and they are made before what is submitted later.
///
/// # Errors
/// A device's memory is exhausted.
pub fn copy_within(gpus: &[Gpu], moves: &[Move<'_>]) -> Result<(), GpuError> {
    for gpu in gpus {
        let own = moves.iter().filter(|each| each.state.is_on(gpu) && each.len > 0);
        let ranges = own.map(|each| BufferMove {
            buffer: each.state.buffer(),
            from_bytes: each.state.offset_bytes + each.from as u64 * ELEMENT_BYTES,
            to_bytes: each.state.offset_bytes + each.to as u64 * ELEMENT_BYTES,
            size_bytes: each.len as u64 * ELEMENT_BYTES,
        });
        gpu.copy_within(&ranges.collect::<Vec<_>>())?;
    }
    for Move { state, from, to, len } in moves {
        if let Some(values) = state.host.lock().unwrap_or_else(|e| e.into_inner()).as_mut() {
            let [from, to, len] = [from, to, len].map(|count| count * ELEMENT_BYTES as usize);
            values.bytes_mut().copy_within(from..from + len, to);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_copied_within_a_state() {
        let state = State::new(None, "state", &[3, 4], Values::U32((0..12).collect())).unwrap();
        copy_within(&[], &[Move { state: &state, from: 1, to: 8, len: 3 }]).unwrap();
        assert_eq!(state.host().unwrap().u32(), [0, 1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 11]);
    }
}
