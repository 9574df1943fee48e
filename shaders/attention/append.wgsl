// Writes the keys and values of T tokens into the cache, each into its position's row. k, v [T, K, d]; cache [rows, K,
// d], as f32, or as pairs of f16 in u32.
@group(0) @binding(0) var<storage, read> k: array<${FROM}>;
@group(0) @binding(1) var<storage, read> v: array<${FROM}>;
@group(0) @binding(2) var<storage, read> positions: array<u32>;
@group(0) @binding(3) var<storage, read> bases: array<u32>;
@group(0) @binding(4) var<storage, read_write> k_cache: array<${TO}>;
@group(0) @binding(5) var<storage, read_write> v_cache: array<${TO}>;
const WIDTH = ${WIDTH}u; // elements per cache row

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let token = group.x;
  let row = cache_row(bases[token], positions[token]);
  for (var i = lane; i < WIDTH; i += ${THREADS}u) {
    let source = token * WIDTH + i;
    let to = row * WIDTH + i;
#if ELEMENT == f32
    k_cache[to] = k[source];
    v_cache[to] = v[source];
#endif
#if ELEMENT == f16
    k_cache[to] = pack2x16float(k[source]);
    v_cache[to] = pack2x16float(v[source]);
#endif
  }
}
