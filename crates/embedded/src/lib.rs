//! bayan-embedded
