//! The limit of loop iterations that is measured when a device is opened is the limit that the device has.

use bayan_gpu::{Dispatch, Gpu, GpuOptions, ReadRequest, block_on};

/// Runs nested loops with `wanted` iterations; returns the number that the device executes.
fn turns_taken(gpu: &Gpu, wanted: u32) -> u32 {
    let text = "@group(0) @binding(0) var<storage, read> n: array<u32>;\n\
                @group(0) @binding(1) var<storage, read_write> y: array<u32>;\n\
                @compute @workgroup_size(1) fn main() {\n\
                  var c = 0u;\n\
                  for (var i = 0u; i < n[0]; i++) {\n\
                    for (var j = 0u; j < n[1]; j++) { c += 1u + (c ^ i) * n[2]; }\n\
                  }\n\
                  y[0] = c;\n\
                }";
    // With the failing tests that end them, the inner loops have 99 iterations, and the outer loop one for each of
    // them.
    let outer = wanted / 100;
    let input = gpu.allocate("n", 16).unwrap();
    gpu.write(&input, 0, bytemuck::cast_slice(&[outer, 98, 0, 0]));
    let output = gpu.allocate("y", 16).unwrap();
    let kernel = gpu.kernel("loops", text).unwrap();
    let bindings = gpu.bind("loops", &kernel, &[vec![input.whole(), output.whole()]]).unwrap();
    let dispatch = Dispatch { name: "loops".into(), kernel, bindings, grid: [1, 1, 1], uploads: Vec::new() };
    let reads = gpu.submit([&dispatch], &[ReadRequest { buffer: output, offset_bytes: 0, size_bytes: 16 }]);
    let bytes = block_on(reads.into_iter().next().unwrap().wait()).unwrap();
    u32::from_le_bytes(bytes[..4].try_into().unwrap()) + 2 * outer
}

#[test]
fn loops_end_where_the_measured_limit_says() {
    let gpu = block_on(Gpu::open(&GpuOptions::default())).expect("a device");
    match gpu.capabilities().max_loop_turns {
        None => assert_eq!(turns_taken(&gpu, 1_000_000), 1_000_000),
        Some(limit) => {
            let below = limit as u32 / 100 * 100;
            assert_eq!(turns_taken(&gpu, below), below, "the limit is {limit}");
            assert!(turns_taken(&gpu, 2 * below) < 2 * below, "the limit is {limit}");
        }
    }
}
