//! Kernel shapes for a device: defaults that need no measurement. [`crate::measure_rows`] finds the fastest of a few.

use bayan_gpu::Capabilities;

/// The shape of the by-rows linear kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RowsShape {
    /// Invocations (lanes) that share a group of 32 rows; a divisor of 32.
    pub lanes: usize,
    /// Sets of lanes, each of which sums over a part of K.
    pub parts: usize,
    /// Tokens per workgroup.
    pub columns: usize,
    /// Groups of 32 rows per workgroup, one from each of as many equal sections of the matrix: 2 with a gate, and 1
    /// where the rows cannot be divided evenly.
    pub sets: usize,
    /// Each input is read once per subgroup and passed around by shuffles; requires lanes = subgroup size, and one
    /// part.
    pub shuffle: bool,
}

impl RowsShape {
    /// The WGSL function that broadcasts one invocation's value to the subgroup, for `shuffle`.
    pub(crate) fn broadcast(&self) -> &'static str {
        if self.lanes == 4 { "quadBroadcast" } else { "subgroupShuffle" }
    }
}

/// The chosen kernel shapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuning {
    /// Whether operations are rewritten into fused ones.
    pub fuse: bool,
    /// The shape of the by-rows linear kernel; `None`: the device's default.
    pub rows: Option<RowsShape>,
}

impl Tuning {
    /// Default shapes for this device, without measuring.
    pub fn defaults(_capabilities: &Capabilities) -> Tuning {
        Tuning { fuse: true, rows: None }
    }

    /// The shape of the by-rows linear kernel.
    ///
    /// On software devices the cost is load instructions (each is a loop over the lanes) and barriers, not bytes. They
    /// use the lanes of one subgroup, eight rows per lane, and pass inputs around by shuffles. Measured on Mesa 22.3
    /// (subgroups of 8): 0.09 ns per weight and token, against 0.24 with one row per invocation. On SwiftShader
    /// (subgroups of 4) passing an input around costs 2.6 ns, its product with a weight 0.18 and unpacking a weight
    /// 0.8; there, this shape is for few tokens, and `linear/sweep.wgsl` handles more. Hardware uses one row per
    /// invocation, so that neighbours read neighbouring words, and splits K to have enough invocations.
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
