//! Time of each dispatch by timestamps. Every dispatch has a pass of its own, which makes the list slower than in a
//! normal run, but gives each kernel's own time.

use crate::commands::record;
use crate::{Dispatch, Gpu, GpuError};

/// Time of one dispatch.
#[derive(Debug, Clone)]
pub struct KernelTime {
    /// The dispatch's name.
    pub name: String,
    /// Time on the device.
    pub elapsed_ms: f64,
}

impl Gpu {
    /// Runs the dispatches with a pair of timestamps around each.
    ///
    /// # Errors
    /// The device has no timestamps, or fails.
    pub async fn profile(&self, dispatches: &[Dispatch]) -> Result<Vec<KernelTime>, GpuError> {
        if !self.runs() {
            return Err(GpuError::Validation("a device that was opened to compile only times nothing".into()));
        }
        if !self.capabilities().timestamps {
            return Err(GpuError::Validation(
                "this device has no timestamp queries; use `bench` without --profile".into(),
            ));
        }
        let mut times = Vec::with_capacity(dispatches.len());
        for chunk in dispatches.chunks(1024) {
            times.extend(self.profile_chunk(chunk).await?);
        }
        Ok(times)
    }

    async fn profile_chunk(&self, dispatches: &[Dispatch]) -> Result<Vec<KernelTime>, GpuError> {
        let count = 2 * dispatches.len() as u32;
        let queries = self.device().create_query_set(&wgpu::QuerySetDescriptor {
            label: None,
            ty: wgpu::QueryType::Timestamp,
            count,
        });
        let size_bytes = u64::from(count) * 8;
        let resolved = self.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("timestamps"),
            size: size_bytes,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let target = self.allocate("timestamps", size_bytes)?;
        let mut encoder = self.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for (index, dispatch) in dispatches.iter().enumerate() {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: None,
                timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                    query_set: &queries,
                    beginning_of_pass_write_index: Some(2 * index as u32),
                    end_of_pass_write_index: Some(2 * index as u32 + 1),
                }),
            });
            record(&mut pass, dispatch);
        }
        encoder.resolve_query_set(&queries, 0..count, &resolved, 0);
        encoder.copy_buffer_to_buffer(&resolved, 0, target.raw(), 0, size_bytes);
        self.queue().submit([encoder.finish()]);
        let bytes = self.read(&target, 0, size_bytes).await?;
        let ticks: Vec<u64> =
            bytes.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().unwrap_or([0; 8]))).collect();
        let period_ms = f64::from(self.queue().get_timestamp_period()) * 1e-6;
        let name = |i: usize| dispatches[i].name.clone();
        Ok(ticks
            .chunks_exact(2)
            .enumerate()
            .map(|(i, t)| KernelTime { name: name(i), elapsed_ms: t[1].saturating_sub(t[0]) as f64 * period_ms })
            .collect())
    }
}
