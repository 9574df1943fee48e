//! Buffers on the device and ranges of them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Bytes in live buffers, now and at the peak.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    pub now: AtomicU64,
    pub peak: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    raw: wgpu::Buffer,
    size_bytes: u64,
    allocated: Arc<Meter>,
    /// The contents that were last streamed into the buffer.
    holds: Mutex<Option<Contents>>,
}

/// Contents, in host memory, of a buffer that several owners share: the buffer must hold them while their owner is
/// used.
pub type Contents = Arc<Vec<u8>>;

impl Drop for Inner {
    fn drop(&mut self) {
        self.allocated.now.fetch_sub(self.size_bytes, Ordering::Relaxed);
        // In a browser, dropping the handle would leave the memory to the garbage collector, which does not see its
        // size.
        #[cfg(target_arch = "wasm32")]
        self.raw.destroy();
    }
}

/// A storage buffer on the device. Clones share it; the memory is freed with the last clone.
#[derive(Debug, Clone)]
pub struct Buffer(Arc<Inner>);

impl Buffer {
    pub(crate) fn new(raw: wgpu::Buffer, size_bytes: u64, allocated: Arc<Meter>) -> Buffer {
        let now = allocated.now.fetch_add(size_bytes, Ordering::Relaxed) + size_bytes;
        allocated.peak.fetch_max(now, Ordering::Relaxed);
        Buffer(Arc::new(Inner { raw, size_bytes, allocated, holds: Mutex::default() }))
    }

    pub(crate) fn raw(&self) -> &wgpu::Buffer {
        &self.0.raw
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.0.size_bytes
    }

    /// The whole buffer as a binding.
    pub fn whole(&self) -> Slice {
        self.slice(0, self.size_bytes())
    }

    /// A range of the buffer as a binding; the offset must be a multiple of the device's alignment.
    pub fn slice(&self, offset_bytes: u64, size_bytes: u64) -> Slice {
        assert!(
            offset_bytes + size_bytes <= self.size_bytes(),
            "slice {offset_bytes}+{size_bytes} of a buffer of {} bytes",
            self.size_bytes()
        );
        Slice { buffer: self.clone(), offset_bytes, size_bytes, contents: None }
    }

    /// Records that the buffer is about to hold these contents; returns false if it already does.
    pub(crate) fn takes(&self, contents: &Contents) -> bool {
        let mut holds = self.0.holds.lock().unwrap_or_else(|e| e.into_inner());
        let new = !holds.as_ref().is_some_and(|held| Arc::ptr_eq(held, contents));
        if new {
            *holds = Some(contents.clone());
        }
        new
    }

    pub(crate) fn meter(&self) -> &Arc<Meter> {
        &self.0.allocated
    }

    /// Whether two handles refer to the same buffer.
    pub fn same(&self, other: &Buffer) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// A range of a buffer.
#[derive(Debug, Clone)]
pub struct Slice {
    /// The buffer.
    pub buffer: Buffer,
    /// Offset in bytes.
    pub offset_bytes: u64,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Contents that the whole buffer must have when a kernel reads the range; they are uploaded before the kernel
    /// runs.
    pub contents: Option<Contents>,
}
