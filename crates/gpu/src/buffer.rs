//! Buffers on the device and ranges of them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Bytes in live buffers, and the most there ever were.
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
    /// What was streamed into it last.
    holds: Mutex<Option<Contents>>,
}

/// Bytes in host memory that a buffer shared by several owners must hold while one of them is used.
pub type Contents = Arc<Vec<u8>>;

impl Drop for Inner {
    fn drop(&mut self) {
        self.allocated.now.fetch_sub(self.size_bytes, Ordering::Relaxed);
        // In a browser dropping the handle leaves the memory to the garbage collector, which does not see its size.
        #[cfg(target_arch = "wasm32")]
        self.raw.destroy();
    }
}

/// A storage buffer on the device. Cloning shares it; the memory is freed with the last clone.
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

    /// Takes note that the buffer gets these contents; false if it has them already.
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

    /// Whether two handles name the same buffer.
    pub fn same(&self, other: &Buffer) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// A range of a buffer.
#[derive(Debug, Clone)]
pub struct Slice {
    /// The buffer.
    pub buffer: Buffer,
    /// First byte.
    pub offset_bytes: u64,
    /// Number of bytes.
    pub size_bytes: u64,
    /// What the whole buffer must hold when a kernel reads this: brought there before the kernel runs.
    pub contents: Option<Contents>,
}
