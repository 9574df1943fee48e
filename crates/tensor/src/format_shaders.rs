//! What kernels link for a weight format: its own text and the functions around it.

use bayan_weights::{Codes, Format, Minimum};

use crate::graph::Matrix;

/// The text that unpacks a format: `codes32` and `scales32`, planes in group 1.
///
/// # Panics
/// If no kernel reads the format: a mistake of ours, as the loader gives matrices only formats of the table.
pub fn shader(format: &dyn Format) -> &'static str {
    format.wgsl().unwrap_or_else(|| panic!("no kernel reads the format {}", format.name()))
}

/// What every kernel on weights links beside the format's text: `BLOCKS`, the number of 32-blocks in a row, `slot`,
/// where a part of a block of a row stands in a plane, and `weights32`.
pub(crate) fn constants(matrix: &Matrix) -> String {
    format!("const BLOCKS = {}u;\n{SLOT}{WEIGHTS}{WEIGHTS_32}", matrix.blocks())
}

/// How a kernel unpacks codes of a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unpacking {
    /// By the device's own functions.
    Plain,
    /// Left where they stand in their word (`spread.wgsl`); there is no `weights32`, and no signed code.
    Spread,
    /// Without shifts to the right (`masked.wgsl`).
    Masked,
}

/// As [`constants`], with `BLOCKS` as a variable that the kernel sets, so that one kernel serves matrices of all sizes.
pub(crate) fn variables(unpacking: Unpacking) -> String {
    let text = match unpacking {
        Unpacking::Plain => [SLOT, WEIGHTS, WEIGHTS_32].concat(),
        Unpacking::Spread => [SLOT, SPREAD].concat(),
        Unpacking::Masked => [SLOT, MASKED, WEIGHTS_32].concat(),
    };
    format!("var<private> BLOCKS: u32;\n{text}")
}

/// Whether codes of a format are unsigned, with a minimum to subtract: these can be spread.
pub(crate) fn has_offset(format: &dyn Format) -> bool {
    matches!(format.codes(), Codes::Unsigned { .. })
}

/// Codes of 4 bits: byte j of a block holds codes j and j + 16, and nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nibbles {
    /// Zero is code 8 in every block.
    Centred,
    /// Every block has its own offset.
    Offset,
}

/// How a format has codes of 4 bits, where it does.
pub(crate) fn nibbles(format: &dyn Format) -> Option<Nibbles> {
    match format.codes() {
        Codes::Unsigned { bits: 4, minimum: Minimum::Centred(8) } => Some(Nibbles::Centred),
        Codes::Unsigned { bits: 4, minimum: Minimum::Stored } => Some(Nibbles::Offset),
        _ => None,
    }
}

const SLOT: &str = wgsl!("lib/slot.wgsl");
const WEIGHTS: &str = wgsl!("lib/weights.wgsl");
const WEIGHTS_32: &str = wgsl!("lib/weights32.wgsl");
const SPREAD: &str = wgsl!("lib/spread.wgsl");
const MASKED: &str = wgsl!("lib/masked.wgsl");
