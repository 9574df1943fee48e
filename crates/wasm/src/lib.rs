//! The engine for browsers: the same crates and shaders as natively, with functions for JavaScript.
//!
//! It implements the interface `EngineModule` of `web/package/src/engine.ts`: one engine in each worker, one model in
//! each engine. Structured values are passed as JSON text, bulk bytes as `Uint8Array`. Rejected: exported classes,
//! because JavaScript would have to manage their lifetimes, and a pending call would keep its object borrowed while
//! `abort` and `info` are called.
//!
//! The crate is empty on other targets.

#[cfg(target_arch = "wasm32")]
mod adapter;
#[cfg(target_arch = "wasm32")]
mod answer;
#[cfg(target_arch = "wasm32")]
mod api;
#[cfg(target_arch = "wasm32")]
mod browser;
#[cfg(target_arch = "wasm32")]
mod device;
#[cfg(target_arch = "wasm32")]
mod error;
#[cfg(target_arch = "wasm32")]
mod helpers;
#[cfg(target_arch = "wasm32")]
mod options;
#[cfg(target_arch = "wasm32")]
mod pause;
#[cfg(target_arch = "wasm32")]
mod promise;
#[cfg(target_arch = "wasm32")]
mod session;
#[cfg(target_arch = "wasm32")]
mod source;
#[cfg(target_arch = "wasm32")]
mod state;
#[cfg(target_arch = "wasm32")]
mod suite;
#[cfg(target_arch = "wasm32")]
mod training;
