//! An HTTP server for language models with OpenAI's interface.
//!
//! The engine runs on a thread of its own, because it waits for the device; requests reach it through a channel, and
//! each has a channel back. A client that goes away closes its channel, and its row is free one step later. Axum and
//! tokio do the rest. Rejected: a pool of engines, because one step for many answers reads the weights once.

mod access;
mod constraint;
mod error;
mod exchange;
mod fields;
mod handlers;
mod limits;
mod metrics;
mod model_metrics;
mod protocol;
mod serve;
mod worker;

pub use limits::{Limits, ServerOptions};
pub use serve::{ServeError, Server};
pub use worker::Opened;
