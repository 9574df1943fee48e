//! What the roofline knows of devices: their data sheets.

/// A device. Rates are what its data sheet says for the boost clock, without sparsity.
#[derive(Debug, Clone, Copy)]
pub struct Device {
    /// The name.
    pub name: &'static str,
    /// Memory, in GB/s.
    pub bandwidth_gb_s: f64,
    /// f32 outside of matrices, in TFLOP/s.
    pub f32_tflops: f64,
    /// Packed dot products of four int8, in 10¹² operations (a multiplication or an addition) per second; 0 if they are
    /// not instructions.
    pub dot_tops: f64,
    /// Matrices with f16 factors and f32 sums, in TFLOP/s; 0 if wgpu offers no square ones of 8 or 16.
    pub matrix_tflops: f64,
    /// Processors that hold workgroups.
    pub processors: usize,
}

/// Intel's matrices are of 8 x 16 x 16, which wgpu 30 does not offer. Apple's run on the units that compute f32.
pub const DEVICES: &[Device] = &[
    Device {
        name: "RTX 4090",
        bandwidth_gb_s: 1008.0,
        f32_tflops: 82.6,
        dot_tops: 165.0,
        matrix_tflops: 165.2,
        processors: 128,
    },
    Device {
        name: "RTX 5090",
        bandwidth_gb_s: 1792.0,
        f32_tflops: 104.8,
        dot_tops: 210.0,
        matrix_tflops: 209.5,
        processors: 170,
    },
    Device {
        name: "H200",
        bandwidth_gb_s: 4800.0,
        f32_tflops: 66.9,
        dot_tops: 134.0,
        matrix_tflops: 989.0,
        processors: 132,
    },
    Device {
        name: "RX 7900 XTX",
        bandwidth_gb_s: 960.0,
        f32_tflops: 61.4,
        dot_tops: 123.0,
        matrix_tflops: 122.8,
        processors: 96,
    },
    Device {
        name: "RX 9070 XT",
        bandwidth_gb_s: 644.0,
        f32_tflops: 48.7,
        dot_tops: 97.0,
        matrix_tflops: 195.0,
        processors: 64,
    },
    Device {
        name: "Arc B580",
        bandwidth_gb_s: 456.0,
        f32_tflops: 14.6,
        dot_tops: 58.0,
        matrix_tflops: 0.0,
        processors: 20,
    },
    Device {
        name: "M4 Max",
        bandwidth_gb_s: 546.0,
        f32_tflops: 18.4,
        dot_tops: 0.0,
        matrix_tflops: 18.4,
        processors: 40,
    },
];
