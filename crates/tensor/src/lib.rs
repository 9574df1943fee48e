//! Graphs of operations on tensors: recording, planning for a device, and interpretation on the host.
//!
//! A model file records small operations once per shape. [`Plan`] gives them buffers and kernels and replays them;
//! [`interpret`] runs the same list through each op's plain-Rust reference, so that a wrong kernel is found by running
//! both and naming the first node that differs.

mod autodiff;
pub mod cases;
mod cases_attention;
mod cases_full;
mod cases_half;
pub mod cases_training;
mod fuse;
mod graph;
mod interpret;
mod keep;
mod lower;
mod matrix;
mod op;
pub mod ops;
mod place;
mod plan;
mod quant;
mod split;
mod state;
mod tune;
mod values;

pub use autodiff::{Backward, BackwardError, BackwardOptions};
pub use fuse::{census, fuse};
pub use graph::{Dtype, ELEMENT_BYTES, Graph, Node, Tensor, TensorInfo};
pub use interpret::{interpret, nmse};
pub use keep::keep_in_f16;
pub use lower::{Extent, KernelText, Lowering, Planned, grid_2d};
pub use matrix::{
    GROUP, Matrix, MatrixBuilder, Shard, Slots, Trained, pack_rows, packed_len, row_bytes, unpacked_rows,
};
pub use op::{Op, Operand};
pub use plan::{Cost, Plan, Pool};
pub use split::{HandOver, Part, split};
pub use state::State;
pub use tune::{Measured, RowsShape, Tuning, measure_rows};
pub use values::Values;
