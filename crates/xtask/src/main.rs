//! bayan
fn main() {}
