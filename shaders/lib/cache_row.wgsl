// The cache row of a position. `base` is the number of the sequence times CONTEXT. RING: a sequence has that many rows,
// and positions go around. BLOCK: rows are in blocks of that many positions; the last TABLE words of the bases have
// TABLE_PITCH numbers of blocks for each sequence. Counting from the end, the text is the same for steps of any size.
#if RING == 0
#if BLOCK == 0
fn cache_row(base: u32, position: u32) -> u32 { return base + position; }
#else
fn cache_row(base: u32, position: u32) -> u32 {
  let block = bases[arrayLength(&bases) - ${TABLE}u + base / ${CONTEXT}u * ${TABLE_PITCH}u + position / ${BLOCK}u];
  return block * ${BLOCK}u + position % ${BLOCK}u;
}
#endif
#else
fn cache_row(base: u32, position: u32) -> u32 { return base / ${CONTEXT}u * ${RING}u + position % ${RING}u; }
#endif
