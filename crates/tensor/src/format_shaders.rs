//! What kernels link for a weight format: its own text and the functions around it.

use bayan_weights::{Codes, Format, Minimum};

use crate::graph::Matrix;

/// The WGSL that unpacks a format: it defines `codes32` and `scales32` and binds the planes in group 1.
///
/// # Panics
/// If no kernel reads the format. That is a programming error: the loader only creates matrices in formats of the
/// table.
pub fn shader(format: &dyn Format) -> &'static str {
    format.wgsl().unwrap_or_else(|| panic!("no kernel reads the format {}", format.name()))
}

/// The WGSL that every kernel on weights links after the format's own: `BLOCKS` (32-blocks in a row), `EIGHTS` (groups
/// of 8 of them), `slot` (index of a vector of a row's block within a plane) and `weights32`.
pub(crate) fn constants(matrix: &Matrix) -> String {
    let blocks = matrix.blocks();
    let eights = blocks.div_ceil(8);
    format!("const BLOCKS = {blocks}u;\nconst EIGHTS = {eights}u;\n{SLOT}{SHARED_SCALES}{WEIGHTS}{WEIGHTS_32}")
}

/// How a kernel unpacks byte codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unpacking {
    /// With WGSL's built-in unpacking functions.
    Plain,
    /// Each code keeps its bit position within the word (`spread.wgsl`). Neither `weights32` nor signed codes exist
    /// here.
    Spread,
    /// Without right shifts (`masked.wgsl`).
    Masked,
}

/// As [`constants`], but the kernel sets `BLOCKS` and `EIGHTS` at run time, so that one kernel serves matrices of all
/// sizes.
pub(crate) fn variables(unpacking: Unpacking) -> String {
    let text = match unpacking {
        Unpacking::Plain => [SLOT, WEIGHTS, WEIGHTS_32].concat(),
        Unpacking::Spread => [SLOT, SPREAD].concat(),
        Unpacking::Masked => [SLOT, MASKED, WEIGHTS_32].concat(),
    };
    format!("var<private> BLOCKS: u32;\nvar<private> EIGHTS: u32;\n{SHARED_SCALES}{text}")
}

/// Whether a format's codes are unsigned with a minimum to subtract. Only such codes support [`Unpacking::Spread`].
pub(crate) fn has_offset(format: &dyn Format) -> bool {
    matches!(format.codes(), Codes::Unsigned { .. })
}

/// Whether 8 blocks share scales: the format's text then has `eight`, which loads them, and `scales_in`.
pub(crate) fn has_shared_scales(format: &dyn Format) -> bool {
    format.planes().iter().any(|plane| plane.blocks == 8)
}

/// Formats with 4-bit codes only: byte j of a block holds codes j and j + 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nibbles {
    /// In every block, code 8 means zero.
    Centred,
    /// Every block stores its own offset.
    Offset,
}

/// The kind of a format's 4-bit codes; `None` for other formats.
pub(crate) fn nibbles(format: &dyn Format) -> Option<Nibbles> {
    match format.codes() {
        Codes::Unsigned { bits: 4, minimum: Minimum::Centred(8) } => Some(Nibbles::Centred),
        Codes::Unsigned { bits: 4, minimum: Minimum::Stored } => Some(Nibbles::Offset),
        _ => None,
    }
}

const SLOT: &str = wgsl!("lib/slot.wgsl");
const SHARED_SCALES: &str = wgsl!("lib/shared_scales.wgsl");
const WEIGHTS: &str = wgsl!("lib/weights.wgsl");
const WEIGHTS_32: &str = wgsl!("lib/weights32.wgsl");
const SPREAD: &str = wgsl!("lib/spread.wgsl");
const MASKED: &str = wgsl!("lib/masked.wgsl");
