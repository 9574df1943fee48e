//! Kernel shapes for a device: sensible ones without measuring. [`crate::measure_rows`] finds the best of a few.

use bayan_gpu::Capabilities;

/// The shape of the linear kernel that works by rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RowsShape {
    /// Invocations that share a group of 32 rows: a divisor of 32.
    pub lanes: usize,
    /// Sets of lanes that share K.
    pub parts: usize,
    /// Tokens of one workgroup.
    pub columns: usize,
    /// Sets of 32 rows of one workgroup, from as many equal parts of the matrix; 1 where its rows cannot be so divided,
    /// 2 with a gate.
    pub sets: usize,
    /// Inputs are read once a subgroup and passed around; needs lanes = subgroup size and one part.
    pub shuffle: bool,
}

impl RowsShape {
    /// The WGSL function that passes a value around, for `shuffle`.
    pub(crate) fn pass(&self) -> &'static str {
        if self.lanes == 4 { "quadBroadcast" } else { "subgroupShuffle" }
    }
}

/// The chosen shapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuning {
    /// Rewrite operations into fused ones.
    pub fuse: bool,
    /// Chosen shape of the linear kernel by rows; `None`: the default of the device.
    pub rows: Option<RowsShape>,
}

impl Tuning {
    /// Sensible shapes for this device, without measuring.
    pub fn defaults(_capabilities: &Capabilities) -> Tuning {
        Tuning { fuse: true, rows: None }
    }

    /// The shape of the linear kernel by rows.
    ///
    /// Software devices pay for each load instruction (a loop over the lanes) and each barrier, not for bytes: the
    /// lanes of one subgroup, eight rows each, inputs passed around by shuffles. Measured on Mesa 22.3 (subgroups of
    /// 8): 0.09 ns a weight and token against 0.24 with one row an invocation. On SwiftShader (subgroups of 4) passing
    /// an input around costs 2.6 ns, its product with a weight 0.18 and unpacking a weight 0.8; this is for few tokens
    /// there, more are swept over (`linear/sweep.wgsl`). Real devices want one row an invocation, so that neighbours
    /// read neighbouring words, and K split to have enough of them.
    pub fn rows_shape(&self, capabilities: &Capabilities) -> RowsShape {
        let (smallest, largest) = capabilities.subgroup_size;
        self.rows.unwrap_or(match capabilities.software {
            true if capabilities.subgroups && smallest == largest && matches!(smallest, 4 | 8) => {
                RowsShape { lanes: smallest as usize, parts: 1, columns: 8, sets: smallest as usize / 4, shuffle: true }
            }
            true => RowsShape { lanes: 8, parts: 1, columns: 8, sets: 1, shuffle: false },
            false => RowsShape { lanes: 32, parts: 8, columns: 8, sets: 1, shuffle: false },
        })
    }
}
