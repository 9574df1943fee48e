//! Measures how many loop iterations (turns) one invocation may execute before the device ends its loops.
//!
//! Mesa 22.3's llvmpipe silently ends all loops of an invocation after 65,535 iterations in total, which makes sums
//! incomplete. The failing test that ends a loop counts as an iteration as well. Mesa 26 has no such limit. The limit
//! is measured when a software device is opened, not looked up by the driver's name, so that drivers with other limits
//! are detected too. Hardware has no such limit and is not measured.

use crate::{Dispatch, Gpu, GpuError, ReadRequest};

/// Number of iterations that the measurement requests: more than the known limit, and executed in about a millisecond.
const WANTED: u32 = 200_000;

impl Gpu {
    /// The total number of iterations after which this device ends an invocation's loops, or `None` if it does not.
    ///
    /// # Errors
    /// The kernel does not compile, or the device fails.
    pub(crate) async fn measure_loop_turns(&self) -> Result<Option<u64>, GpuError> {
        let wanted = self.allocate("loop turns wanted", 16)?;
        self.write(&wanted, 0, bytemuck::cast_slice(&[WANTED, 0, 0, 0]));
        let taken = self.allocate("loop turns taken", 16)?;
        let kernel = self.kernel("loop_turns", include_str!("../../../shaders/probe/loop_turns.wgsl"))?;
        let bindings = self.bind("loop_turns", &kernel, &[vec![wanted.whole(), taken.whole()]])?;
        let dispatch = Dispatch { name: "loop_turns".into(), kernel, bindings, grid: [1, 1, 1], uploads: Vec::new() };
        let read = ReadRequest { buffer: taken, offset_bytes: 0, size_bytes: 16 };
        let mut found = 0;
        for pending in self.submit([&dispatch], &[read]) {
            let bytes = pending.wait().await?;
            found = bytes.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        }
        Ok((found < WANTED).then_some(u64::from(found)))
    }
}
