// Where a part of a block of a row stands in a plane: rows stand in groups of 32, one block of all of them after the
// other. Without shifts to the right, which some software devices do lane by lane.
fn slot(row: u32, block: u32, parts: u32, part: u32) -> u32 { return (row & 0xffffffe0u) * BLOCKS * parts + (block * parts + part) * 32u + (row & 31u); }
