//! Checks that cooperative matrices multiply as expected: the interface is young, in drivers and in wgpu.
//!
//! Rejected: trusting what the driver lists, because a wrong product makes wrong text without an error.

use crate::shader::{Defines, link};
use crate::{Dispatch, Gpu, GpuError, ReadRequest};

const TEXT: &str = include_str!("../../../shaders/probe/matrices.wgsl");

/// The factors of the check, as the kernel computes them: small integers, whose products and sums f16 and f32 represent
/// exactly.
fn factors(row: u32, column: u32) -> (f32, f32) {
    let small = |a: u32, b: u32| ((a * 3 + b * 5) % 7) as f32 - 3.0;
    (small(row, column), small(column, row + 1))
}

/// 1 + 2 Σ_k a[i, k] b[k, j], the first product with b by rows, the second with b by columns.
fn expected(size: u32) -> Vec<f32> {
    let sum = |i, j| (0..size).map(|k| factors(i, k).0 * factors(k, j).1).sum::<f32>();
    (0..size * size).map(|at| 1.0 + 2.0 * sum(at / size, at % size)).collect()
}

impl Gpu {
    /// Whether this device's matrices give the right results; true if it does not use any. A kernel that does not
    /// compile is a wrong result.
    ///
    /// # Errors
    /// The device fails.
    pub(crate) async fn multiplies_matrices(&self) -> Result<bool, GpuError> {
        let Some(size) = self.capabilities().matrix_size else { return Ok(true) };
        let results = self.allocate("matrices", u64::from(size * size * 4))?;
        let threads = self.capabilities().subgroup_size.1;
        let defines = Defines::new().set("SIZE", size).set("VALUES", size * size).set("THREADS", threads);
        let text = link(&[TEXT], &defines).map_err(|reason| GpuError::Kernel { kernel: "matrices".into(), reason })?;
        let kernel = match self.kernel("matrices", &text) {
            Ok(kernel) => kernel,
            Err(GpuError::Kernel { reason, .. }) => {
                tracing::warn!("cooperative matrices are not used: {reason}");
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let bindings = self.bind("matrices", &kernel, &[vec![results.whole()]])?;
        let dispatch = Dispatch { name: "matrices".into(), kernel, bindings, grid: [1, 1, 1], uploads: Vec::new() };
        let read = ReadRequest { buffer: results.clone(), offset_bytes: 0, size_bytes: results.size_bytes() };
        let mut right = false;
        for pending in self.submit([&dispatch], &[read]) {
            right = pending.wait().await? == bytemuck::cast_slice::<f32, u8>(&expected(size));
        }
        Ok(right)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_tells_rows_from_columns() {
        for size in [8, 16] {
            let right = expected(size);
            let transposed: Vec<f32> =
                (0..size * size).map(|at| right[(at % size * size + at / size) as usize]).collect();
            assert_ne!(right, transposed);
            assert!(right.iter().all(|v| v.fract() == 0.0 && v.abs() < 2048.0));
        }
    }
}
