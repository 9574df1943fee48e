//! The engine for browsers: the same crates and the same shaders as natively, behind functions that JavaScript can
//! call.
//!
//! It implements the interface `EngineModule` of `web/package/src/engine.ts`: one engine in each worker, one model in
//! each engine. Structured values cross as JSON text, bulk bytes as `Uint8Array`. Exported classes lost: their
//! lifetimes would have to be managed on the JavaScript side, and a call that waits would keep its object borrowed
//! while `abort` and `info` come in.
//!
//! The crate is empty on other targets.

#[cfg(target_arch = "wasm32")]
mod adapter;
#[cfg(target_arch = "wasm32")]
mod api;
#[cfg(target_arch = "wasm32")]
mod browser;
#[cfg(target_arch = "wasm32")]
mod device;
#[cfg(target_arch = "wasm32")]
mod error;
#[cfg(target_arch = "wasm32")]
mod options;
#[cfg(target_arch = "wasm32")]
mod promise;
#[cfg(target_arch = "wasm32")]
mod session;
#[cfg(target_arch = "wasm32")]
mod source;
#[cfg(target_arch = "wasm32")]
mod suite;
