//! Every kernel of the op suite, compiled as for kinds of devices that are not available: naga accepts it, and it stays
//! within the limits of that kind. Nothing is run.

use bayan_gpu::{Capabilities, Gpu, GpuOptions, Purpose, block_on};
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
    check_all(Purpose::Run, override_capabilities);
}

/// As `compile_all`, for features that this machine's device need not have: kernels are only linked, and naga makes the
/// SPIR-V that drivers would get.
fn link_all(override_capabilities: fn(&mut Capabilities)) {
    check_all(Purpose::Link, override_capabilities);
}

fn check_all(purpose: Purpose, override_capabilities: fn(&mut Capabilities)) {
    let options = GpuOptions { purpose, override_capabilities: Some(override_capabilities), ..Default::default() };
    let gpu = block_on(Gpu::open(&options)).expect("a device");
    // Matrices are in linear layers only.
    for case in suite::cases().iter().filter(|case| purpose == Purpose::Run || case.name.starts_with("linear")) {
        suite::compile(&gpu, case).unwrap_or_else(|error| panic!("{}: {error}", case.name));
    }
    let capabilities = gpu.capabilities();
    let texts = gpu.kernel_texts();
    assert!(texts.len() > 100, "{} kernels", texts.len());
    let mut beyond = std::collections::BTreeSet::new();
    let mut by_matrices = std::collections::BTreeSet::new();
    for (name, text) in texts {
        let module = naga::front::wgsl::parse_str(&text)
            .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(&text)));
        let validated = Validator::new(ValidationFlags::all(), naga::valid::Capabilities::all()).validate(&module);
        let info = validated.unwrap_or_else(|error| panic!("{name}: {error:?}"));
        if purpose == Purpose::Link {
            let spirv = naga::back::spv::write_vec(&module, &info, &naga::back::spv::Options::default(), None);
            assert!(spirv.is_ok(), "{name}: {spirv:?}");
        }
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
        let matrices = text.contains("coopMultiplyAdd");
        assert!(capabilities.matrix_size.is_some() || !matrices, "{name}: matrices where there are none");
        by_matrices.extend(matrices.then(|| name.split(' ').next().unwrap_or("").to_string()));
        assert!(capabilities.f16 || !text.contains("f16>"), "{name}: f16 where there is none");
        assert!(capabilities.subgroups || !text.contains("subgroupAdd"), "{name}: subgroups where there are none");
        assert!(capabilities.dot || !text.contains("dot4I8Packed"), "{name}: packed products where there are none");
    }
    assert!(beyond.is_empty(), "{beyond:#?}");
    let expected = if capabilities.matrix_size.is_some() { 2 } else { 0 };
    assert_eq!(by_matrices.len(), expected, "forward and backward products by matrices: {by_matrices:?}");
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

/// As AMD's and NVIDIA's, with 48 KiB of workgroup memory, and as with 32 KiB.
#[test]
fn matrices_of_16() {
    link_all(|capabilities| {
        hardware(capabilities, (32, 64));
        (capabilities.matrix_size, capabilities.max_workgroup_bytes) = (Some(16), 48 << 10);
    });
    link_all(|capabilities| {
        hardware(capabilities, (32, 32));
        capabilities.matrix_size = Some(16);
    });
}

/// As Apple's.
#[test]
fn matrices_of_8() {
    link_all(|capabilities| {
        hardware(capabilities, (32, 32));
        capabilities.matrix_size = Some(8);
    });
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
