//! bayan-weights
