//! bayan-generate
