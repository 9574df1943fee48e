//! bayan-gpu
