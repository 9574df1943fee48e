//! bayan-models
