//! Graphs of operations on tensors: recording, planning for a device, and interpretation on the host.
//!
//! A model file records small operations once per shape. [`Plan`] gives them buffers and kernels and replays them.
//! [`interpret`] runs the same list through each op's plain-Rust reference: running both and comparing finds the first
//! node whose kernel is wrong.

/// The text of a file in `shaders/`.
macro_rules! wgsl {
    ($path:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shaders/", $path))
    };
}

mod cpu;
mod format_shaders;
mod graph;
mod measure;
pub mod ops;
mod passes;
mod plan;
pub mod suite;

pub use cpu::{CHANNEL_BYTES, Channel, Cpu, CpuPlan, CpuStep, Helper};
pub use graph::{
    Dtype, ELEMENT_BYTES, GROUP, Graph, Matrix, MatrixBuilder, Move, Node, Op, Operand, Shard, Slots, State,
    StateRange, Tensor, TensorInfo, Trained, Values, copy_within, interpret, nmse, pack_rows, packed_len, row_bytes,
    unpacked_rows,
};
pub use measure::{Measured, measure_rows};
pub use passes::{
    Backward, BackwardError, BackwardOptions, Stage, Transfer, count_ops, fuse, partition, store_activations_f16,
};
pub use plan::{
    Cost, Extent, KernelText, Lowering, Plan, PlannedDispatch, PlannedKernel, Pool, RowsShape, Tuning, TurnCounter,
    Turns, grid_2d,
};
