//! bayan-tensor
