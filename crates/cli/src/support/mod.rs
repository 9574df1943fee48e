//! Code that subcommands share: flags, opening models and devices, the hub, and output.

pub mod config;
pub mod device;
pub mod device_split;
pub mod hub;
pub mod interrupt;
pub mod memory;
pub mod open;
pub mod options;
pub mod output;
pub mod random;
pub mod sampling;
pub mod speculation;
pub mod text;
pub mod tuning;
