// Index of a part of a row's block within a plane: rows are stored in groups of 32, one block of all of them after the
// other. Uses no right shifts, which some software devices execute lane by lane.
fn slot(row: u32, block: u32, parts: u32, part: u32) -> u32 {
  return (row & 0xffffffe0u) * BLOCKS * parts + (block * parts + part) * 32u + (row & 31u);
}
