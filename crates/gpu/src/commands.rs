//! Submission of dispatch lists and read-back.

use crate::oneshot::{self, Receiver};
use crate::{Bindings, Buffer, Contents, Gpu, GpuError, Kernel};

/// One dispatch of a prepared list.
#[derive(Debug, Clone)]
pub struct Dispatch {
    /// The dispatch's name in profiles, more specific than the kernel's, which may serve several sizes.
    pub name: String,
    /// The kernel.
    pub kernel: Kernel,
    /// The buffers that are bound to the kernel.
    pub bindings: Bindings,
    /// Number of workgroups.
    pub grid: [u32; 3],
    /// The contents that buffers must have before the dispatch runs.
    pub uploads: Vec<(Buffer, Contents)>,
}

/// Bytes that may be streamed to the device before waiting for it; staging memory holds them until then.
const STREAM_BYTES: usize = 256 << 20;

/// A range that is read back after a submission.
#[derive(Debug, Clone)]
pub struct ReadRequest {
    /// The buffer.
    pub buffer: Buffer,
    /// Offset in bytes, a multiple of 4.
    pub offset_bytes: u64,
    /// Size in bytes, a multiple of 4.
    pub size_bytes: u64,
}

/// A range of a buffer that is copied to another place of the same buffer.
#[derive(Debug, Clone, Copy)]
pub struct BufferMove<'a> {
    /// The buffer.
    pub buffer: &'a Buffer,
    /// Offset in bytes, a multiple of 4.
    pub from_bytes: u64,
    /// Offset of the copy, in bytes, a multiple of 4.
    pub to_bytes: u64,
    /// Size in bytes, a multiple of 4.
    pub size_bytes: u64,
}

/// A read in progress. Its staging buffer returns to the pool when the read has been awaited.
pub struct PendingRead(Option<Running>);

/// A read of a device that runs kernels.
struct Running {
    gpu: Gpu,
    /// The submission that fills the staging buffer. Waiting for it leaves later submissions running.
    submission: wgpu::SubmissionIndex,
    staging: wgpu::Buffer,
    size_bytes: u64,
    mapped: Receiver<Result<(), wgpu::BufferAsyncError>>,
}

impl PendingRead {
    /// Waits for the read's own submission, not for later ones, and returns the bytes.
    ///
    /// # Errors
    /// The device was lost, or reported another error in the meantime, or was opened to compile only.
    pub async fn wait(self) -> Result<Vec<u8>, GpuError> {
        let nothing = || GpuError::Validation("a device that was opened to compile only has nothing to read".into());
        self.0.ok_or_else(nothing)?.wait().await
    }
}

impl Running {
    async fn wait(self) -> Result<Vec<u8>, GpuError> {
        let own = wgpu::PollType::Wait { submission_index: Some(self.submission), timeout: None };
        let polled = self.gpu.device().poll(own);
        self.gpu.check()?;
        polled.map_err(|e| GpuError::DeviceLost(e.to_string()))?;
        if let Err(error) = self.mapped.await {
            self.gpu.check()?;
            return Err(GpuError::DeviceLost(error.to_string()));
        }
        let bytes = match self.staging.slice(..self.size_bytes).get_mapped_range() {
            Ok(view) => view.to_vec(),
            Err(error) => return Err(GpuError::DeviceLost(format!("{error:?}"))),
        };
        self.staging.unmap();
        self.gpu.staging().push(self.staging.clone());
        Ok(bytes)
    }
}

impl Gpu {
    /// Submits the dispatches in one compute pass, followed by the copies, in one command buffer. Where weights are
    /// streamed from host memory, every change of buffer contents starts a new command buffer. Returns the reads in
    /// order.
    pub fn submit<'a>(
        &self,
        dispatches: impl IntoIterator<Item = &'a Dispatch>,
        reads: &[ReadRequest],
    ) -> Vec<PendingRead> {
        if !self.runs() {
            return reads.iter().map(|_| PendingRead(None)).collect();
        }
        let mut part: Vec<&Dispatch> = Vec::new();
        let mut streamed = 0;
        for dispatch in dispatches {
            let missing: Vec<_> = dispatch.uploads.iter().filter(|(buffer, contents)| buffer.takes(contents)).collect();
            if !missing.is_empty() {
                self.queue().submit([self.encode(&part).finish()]);
                part.clear();
            }
            for (buffer, contents) in missing {
                if streamed + contents.len() > STREAM_BYTES {
                    // An error is reported by the next read.
                    let _ = self.device().poll(wgpu::PollType::wait_indefinitely());
                    streamed = 0;
                }
                self.write(buffer, 0, contents);
                streamed += contents.len();
            }
            part.push(dispatch);
        }
        let mut encoder = self.encode(&part);
        let staged: Vec<_> = reads
            .iter()
            .map(|read| {
                let staging = self.take_staging(read.size_bytes);
                encoder.copy_buffer_to_buffer(read.buffer.raw(), read.offset_bytes, &staging, 0, read.size_bytes);
                (staging, read.size_bytes)
            })
            .collect();
        let submission = self.queue().submit([encoder.finish()]);
        staged
            .into_iter()
            .map(|(staging, size_bytes)| {
                let (sender, mapped) = oneshot::channel();
                staging.slice(..size_bytes).map_async(wgpu::MapMode::Read, move |result| sender.send(result));
                let submission = submission.clone();
                PendingRead(Some(Running { gpu: self.clone(), submission, staging, size_bytes, mapped }))
            })
            .collect()
    }

    fn encode(&self, dispatches: &[&Dispatch]) -> wgpu::CommandEncoder {
        let mut encoder = self.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for dispatch in dispatches {
                record(&mut pass, dispatch);
            }
        }
        encoder
    }

    fn take_staging(&self, size_bytes: u64) -> wgpu::Buffer {
        let mut pool = self.staging();
        if let Some(index) = pool.iter().position(|b| b.size() >= size_bytes && b.size() <= size_bytes.max(4096) * 4) {
            return pool.swap_remove(index);
        }
        drop(pool);
        self.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("staging"),
            size: size_bytes.next_power_of_two().max(256),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }

    /// Reads a range back.
    ///
    /// # Errors
    /// The device was lost, or reported an error.
    pub async fn read(&self, buffer: &Buffer, offset_bytes: u64, size_bytes: u64) -> Result<Vec<u8>, GpuError> {
        let request = ReadRequest { buffer: buffer.clone(), offset_bytes, size_bytes };
        let reads = self.submit([], &[request]);
        let mut bytes = Vec::new();
        for read in reads {
            bytes = read.wait().await?;
        }
        Ok(bytes)
    }

    /// Writes bytes (a multiple of 4) into a buffer, before the next submission runs.
    pub fn write(&self, buffer: &Buffer, offset_bytes: u64, bytes: &[u8]) {
        if self.runs() {
            self.queue().write_buffer(buffer.raw(), offset_bytes, bytes);
        }
    }

    /// Copies ranges between buffers.
    pub fn copy(&self, from: &Buffer, from_bytes: u64, to: &Buffer, to_bytes: u64, size_bytes: u64) {
        if !self.runs() {
            return;
        }
        let mut encoder = self.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(from.raw(), from_bytes, to.raw(), to_bytes, size_bytes);
        self.queue().submit([encoder.finish()]);
    }

    /// Copies ranges within buffers, in one submission. A buffer cannot be copied to itself, so that each range passes
    /// through memory that is allocated for the largest.
    ///
    /// # Errors
    /// Out of memory.
    pub fn copy_within(&self, moves: &[BufferMove<'_>]) -> Result<(), GpuError> {
        let Some(largest) = moves.iter().map(|each| each.size_bytes).max() else { return Ok(()) };
        let between = self.allocate("copied range", largest)?;
        let mut encoder = self.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for BufferMove { buffer, from_bytes, to_bytes, size_bytes } in moves {
            encoder.copy_buffer_to_buffer(buffer.raw(), *from_bytes, between.raw(), 0, *size_bytes);
            encoder.copy_buffer_to_buffer(between.raw(), 0, buffer.raw(), *to_bytes, *size_bytes);
        }
        self.queue().submit([encoder.finish()]);
        Ok(())
    }

    /// Fills a buffer with zeros.
    pub fn clear(&self, buffer: &Buffer) {
        if !self.runs() {
            return;
        }
        let mut encoder = self.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.clear_buffer(buffer.raw(), 0, None);
        self.queue().submit([encoder.finish()]);
    }

    /// Sends pending writes to the device, so that their staging memory can be reused.
    ///
    /// # Errors
    /// Any error that the device reported in the meantime.
    pub async fn flush(&self) -> Result<(), GpuError> {
        if !self.runs() {
            return self.check();
        }
        let (sender, done) = oneshot::channel();
        self.queue().submit([]);
        self.queue().on_submitted_work_done(move || sender.send(()));
        let polled = self.device().poll(wgpu::PollType::wait_indefinitely());
        self.check()?;
        polled.map_err(|e| GpuError::DeviceLost(e.to_string()))?;
        done.await;
        self.check()
    }
}

/// Records one dispatch into a pass.
pub(crate) fn record(pass: &mut wgpu::ComputePass<'_>, dispatch: &Dispatch) {
    pass.set_pipeline(dispatch.kernel.pipeline());
    for (index, group) in dispatch.bindings.groups.iter().enumerate() {
        pass.set_bind_group(index as u32, group, &[]);
    }
    pass.dispatch_workgroups(dispatch.grid[0], dispatch.grid[1], dispatch.grid[2]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GpuOptions, block_on};
    use std::task::{Context, Poll, Waker};

    /// Adds up `n[0]` numbers in each of many workgroups.
    const WORK: &str = "@group(0) @binding(0) var<storage, read> n: array<u32>;\n\
                        @group(0) @binding(1) var<storage, read_write> y: array<u32>;\n\
                        @compute @workgroup_size(1) fn main(@builtin(workgroup_id) group: vec3<u32>) {\n\
                          var c = group.x;\n\
                          for (var i = 0u; i < n[0]; i++) { c = c * 1664525u + i; }\n\
                          y[group.x % 4u] = c;\n\
                        }";

    #[test]
    fn a_read_returns_before_a_later_submission_ends() {
        let gpu = block_on(Gpu::open(&GpuOptions::default())).expect("a device");
        let kernel = gpu.kernel("work", WORK).expect("a kernel");
        let turns = gpu.allocate("turns", 16).expect("memory");
        gpu.write(&turns, 0, bytemuck::cast_slice(&[20_000u32, 0, 0, 0]));
        let work = |groups| {
            let y = gpu.allocate("y", 16).expect("memory");
            let bindings = gpu.bind("work", &kernel, &[vec![turns.whole(), y.whole()]]).expect("bindings");
            let dispatch = Dispatch {
                name: "work".into(),
                kernel: kernel.clone(),
                bindings,
                grid: [groups, 1, 1],
                uploads: vec![],
            };
            (dispatch, ReadRequest { buffer: y, offset_bytes: 0, size_bytes: 16 })
        };
        // One workgroup takes milliseconds on a software device; the second submission takes 200 times as long.
        let (short, read_short) = work(1);
        let (long, read_long) = work(200);
        let mut first = gpu.submit([&short], &[read_short]);
        let mut second = gpu.submit([&long], &[read_long]);
        block_on(first.remove(0).wait()).expect("the first read");
        gpu.device().poll(wgpu::PollType::Poll).expect("a poll");
        let mut second = second.remove(0);
        let running = second.0.as_mut().expect("a read");
        let mapped = std::pin::Pin::new(&mut running.mapped).poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(mapped, Poll::Pending), "the first read came only after the second submission had ended");
        assert_eq!(block_on(second.wait()).expect("the second read").len(), 16);
    }
}
