//! Every kernel of the op suite, compiled as for kinds of devices that are not available: naga accepts it, and it stays
//! within the limits of that kind. Nothing is run.

use bayan_gpu::{Capabilities, Gpu, GpuOptions, block_on};
use bayan_tensor::suite;
use naga::AddressSpace;
use naga::proc::Layouter;
use naga::valid::{ValidationFlags, Validator};

/// Bytes of workgroup memory, number of storage bindings, and invocations per workgroup of the entry point.
fn needs(module: &naga::Module) -> (u32, usize, u32) {
    let mut layouter = Layouter::default();
    layouter.update(module.to_ctx()).expect("sizes");
    let of = |space: fn(AddressSpace) -> bool| {
        module.global_variables.iter().filter(move |(_, variable)| space(variable.space))
    };
    let shared = of(|space| space == AddressSpace::WorkGroup)
        .map(|(_, variable)| layouter[variable.ty].size.next_multiple_of(16))
        .sum();
    let storage = of(|space| matches!(space, AddressSpace::Storage { .. })).count();
    (shared, storage, module.entry_points[0].workgroup_size.iter().product())
}

fn compile_all(override_capabilities: fn(&mut Capabilities)) {
    let gpu =
        block_on(Gpu::open(&GpuOptions { override_capabilities: Some(override_capabilities), ..Default::default() }))
            .expect("a device");
    for case in suite::cases() {
        suite::compile(&gpu, &case).unwrap_or_else(|error| panic!("{}: {error}", case.name));
    }
    let capabilities = gpu.capabilities();
    let texts = gpu.kernel_texts();
    assert!(texts.len() > 100, "{} kernels", texts.len());
    let mut beyond = std::collections::BTreeSet::new();
    for (name, text) in texts {
        let module = naga::front::wgsl::parse_str(&text)
            .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(&text)));
        let validated = Validator::new(ValidationFlags::all(), naga::valid::Capabilities::all()).validate(&module);
        assert!(validated.is_ok(), "{name}: {validated:?}");
        let (shared, storage, invocations) = needs(&module);
        let limits = [
            (shared, capabilities.max_workgroup_bytes),
            (storage as u32, capabilities.max_storage_buffers),
            (invocations, capabilities.max_workgroup_size),
        ];
        for ((need, limit), what) in
            limits.into_iter().zip(["bytes of workgroup memory", "storage bindings", "invocations"])
        {
            if need > limit {
                beyond.insert(format!("{name}: {need} {what}, {limit} allowed"));
            }
        }
        assert!(capabilities.f16 || !text.contains("f16>"), "{name}: f16 where there is none");
        assert!(capabilities.subgroups || !text.contains("subgroupAdd"), "{name}: subgroups where there are none");
        assert!(capabilities.dot || !text.contains("dot4I8Packed"), "{name}: packed products where there are none");
    }
    assert!(beyond.is_empty(), "{beyond:#?}");
}

fn hardware(capabilities: &mut Capabilities, subgroup_size: (u32, u32)) {
    (capabilities.software, capabilities.f16, capabilities.subgroups, capabilities.dot) = (false, true, true, true);
    capabilities.subgroup_size = subgroup_size;
    capabilities.max_workgroup_bytes = 32 << 10;
    capabilities.max_workgroup_size = 1024;
}

#[test]
fn nvidia_and_apple() {
    compile_all(|capabilities| hardware(capabilities, (32, 32)));
}

#[test]
fn amd() {
    compile_all(|capabilities| hardware(capabilities, (32, 64)));
}

#[test]
fn intel() {
    compile_all(|capabilities| hardware(capabilities, (8, 32)));
}

/// The minimum that every WebGPU implementation offers: 16 KiB, 256 invocations, 8 storage buffers.
#[test]
fn the_least_that_webgpu_allows() {
    compile_all(|capabilities| {
        hardware(capabilities, (1, 1));
        (capabilities.f16, capabilities.subgroups, capabilities.dot) = (false, false, false);
        capabilities.max_workgroup_bytes = 16 << 10;
        capabilities.max_workgroup_size = 256;
        capabilities.max_storage_buffers = 8;
        capabilities.max_binding_bytes = 128 << 20;
    });
}
