//! The choice among the kernels of an op.
//!
//! An op with more than one kernel lists them in one table; the first variant that fits computes the op. Rewrites ask
//! the same table, so that they never make an op that no kernel computes. Rejected: a `match` on the device's features
//! in each op and each rewrite, because places that had to agree were far apart; and a trait with a type for each
//! variant, which says in ten lines what the three fields say.

use bayan_gpu::{Capabilities, GpuError};

use super::lower::Lowering;
use super::tuning::{RowsShape, Tuning};
use crate::graph::Op;
use crate::ops::{FEW_TOKENS, FEW_TOKENS_HARDWARE};

/// One way of computing an op of type `O`: the kernel, or the sequence of kernels, for some devices and sizes.
pub(crate) struct Variant<O> {
    /// The variant's name; the names of its kernels contain it.
    pub name: &'static str,
    /// Whether the kernels compute this op on this device at all, and suit it if no earlier variant of the table fits.
    pub fits: fn(&O, &Target<'_>) -> bool,
    /// Emits the kernels with their sizes, grids and stated turns.
    pub emit: fn(&O, &mut Lowering<'_>) -> Result<(), GpuError>,
}

/// What the choice depends on, besides the op itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    /// The device's features and limits.
    pub capabilities: &'a Capabilities,
    /// The shape of the by-rows linear kernels on this device.
    pub rows_shape: RowsShape,
    /// Tokens of the step: the first size of the op's first output.
    pub tokens: usize,
}

impl<'a> Target<'a> {
    /// A device with the kernel shapes that were chosen for it, and a number of tokens.
    pub(crate) fn new(capabilities: &'a Capabilities, tuning: &Tuning, tokens: usize) -> Target<'a> {
        Target { capabilities, rows_shape: tuning.rows_shape(capabilities), tokens }
    }

    /// The same device with another number of tokens.
    pub(crate) fn with_tokens(self, tokens: usize) -> Target<'a> {
        Target { tokens, ..self }
    }

    /// Whether the device is hardware. Software devices have no fast workgroup memory, and barriers cost them much.
    pub(crate) fn hardware(&self) -> bool {
        !self.capabilities.software
    }

    /// Whether the step has so few tokens that kernels of their own pay.
    pub(crate) fn few_tokens(&self) -> bool {
        self.tokens <= if self.hardware() { FEW_TOKENS_HARDWARE } else { FEW_TOKENS }
    }

    /// Number of invocations of a subgroup, on devices where kernels should share values by subgroup broadcasts instead
    /// of workgroup memory and barriers; `None` elsewhere.
    pub(crate) fn lanes(&self) -> Option<usize> {
        self.rows_shape.shuffle.then_some(self.rows_shape.lanes)
    }
}

impl<O> Variant<O> {
    /// The first variant of the table that fits.
    pub(crate) fn first<'t>(table: &'t [Variant<O>], op: &O, target: &Target<'_>) -> Option<&'t Variant<O>> {
        table.iter().find(|variant| (variant.fits)(op, target))
    }
}

impl<'a> Lowering<'a> {
    /// What the choice of this node's variant depends on.
    pub(crate) fn target(&self) -> Target<'a> {
        Target::new(self.capabilities(), self.tuning(), self.output_shape(0)[0])
    }

    /// Emits the first variant of the table that fits.
    ///
    /// # Errors
    /// No variant fits, or a kernel that does not compile, or a device that fails.
    pub(crate) fn emit_first<O: Op>(&mut self, table: &[Variant<O>], op: &O) -> Result<(), GpuError> {
        match Variant::first(table, op, &self.target()) {
            Some(variant) => (variant.emit)(op, self),
            None => {
                let names: Vec<&str> = table.iter().map(|variant| variant.name).collect();
                let reason = format!(
                    "expected that one of the variants {} fits, but none does for {} tokens on this device",
                    names.join(", "),
                    self.target().tokens
                );
                Err(GpuError::Kernel { kernel: op.name().to_owned(), reason })
            }
        }
    }
}
