//! Kernel times, as `bayan bench` shows them with and without `--train`.

use crate::support::output::{self};
use anyhow::Result;
use bayan_gpu::KernelTime;

/// The time of all dispatches of one kernel.
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Number of dispatches.
    pub dispatches: usize,
    /// Sum of their times.
    pub elapsed_ms: f64,
}

/// Sums the times by kernel, longest first.
pub fn by_kernel(times: Vec<KernelTime>) -> Vec<Kernel> {
    let mut kernels: Vec<Kernel> = Vec::new();
    for time in times {
        match kernels.iter_mut().find(|kernel| kernel.name == time.name) {
            Some(kernel) => {
                kernel.dispatches += 1;
                kernel.elapsed_ms += time.elapsed_ms;
            }
            None => kernels.push(Kernel { name: time.name, dispatches: 1, elapsed_ms: time.elapsed_ms }),
        }
    }
    kernels.sort_by(|a, b| b.elapsed_ms.total_cmp(&a.elapsed_ms));
    kernels
}

/// Prints a table of kernels.
pub fn print_kernels(title: &str, kernels: &[Kernel]) -> Result<()> {
    let total: f64 = kernels.iter().map(|k| k.elapsed_ms).sum();
    let row = |k: &Kernel| {
        vec![
            k.name.clone(),
            k.dispatches.to_string(),
            format!("{:.3}", k.elapsed_ms),
            format!("{:.1}", 100.0 * k.elapsed_ms / total.max(f64::MIN_POSITIVE)),
        ]
    };
    output::line(&format!("{title}: {total:.3} ms in kernels"))?;
    output::line(&output::table(&["kernel", "dispatches", "ms", "%"], &kernels.iter().map(row).collect::<Vec<_>>()))
}
