//! Kernel shapes for a device.

use bayan_gpu::Capabilities;

/// The shape of the linear kernel that works by rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowsShape {
    /// Invocations that share a group of 32 rows: a divisor of 32.
    pub lanes: usize,
    /// Sets of lanes that share K.
    pub parts: usize,
    /// Tokens of one workgroup.
    pub columns: usize,
    /// Inputs are read once a subgroup and passed around; needs lanes = subgroup size and one part.
    pub shuffle: bool,
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
    /// Software devices pay for each load instruction (a loop over the lanes) and each barrier, not for bytes: eight lanes, one subgroup,
    /// four rows each, inputs passed around by shuffles. Measured on Mesa 22.3 against one row an invocation: 0.09 to 0.24 ns a weight.
    /// Real devices want one row an invocation, so that neighbours read neighbouring words, and K split to have enough of them.
    pub fn rows_shape(&self, capabilities: &Capabilities) -> RowsShape {
        let (smallest, largest) = capabilities.subgroup_size;
        self.rows.unwrap_or(match capabilities.software {
            true if capabilities.subgroups && smallest == largest && matches!(smallest, 4 | 8) => {
                RowsShape { lanes: smallest as usize, parts: 1, columns: 8, shuffle: true }
            }
            true => RowsShape { lanes: 8, parts: 1, columns: 8, shuffle: false },
            false => RowsShape { lanes: 32, parts: 8, columns: 8, shuffle: false },
        })
    }
}
