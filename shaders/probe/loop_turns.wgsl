// Counts the loop iterations that the device really executes: some software drivers silently end loops early.
@group(0) @binding(0) var<storage, read> wanted: array<u32>;
@group(0) @binding(1) var<storage, read_write> taken: array<u32>;

@compute @workgroup_size(1)
fn main() {
  var turns = 0u;
  // The body depends on a buffer, so that the compiler cannot replace the loop by its result.
  for (var i = 0u; i < wanted[0]; i++) { turns += 1u + (turns ^ i) * wanted[1]; }
  taken[0] = turns;
}
