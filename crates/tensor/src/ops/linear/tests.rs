//! Which kernel computes a linear layer, on kinds of devices and for numbers of tokens.

use bayan_gpu::Capabilities;
use bayan_weights::FORMATS;

use super::*;
use crate::plan::Tuning;
use crate::suite::RandomTensors;

/// A device of which only what the choice depends on is given; `subgroups` is 0 where there are none.
fn device(software: bool, subgroups: u32, dot: bool) -> Capabilities {
    Capabilities {
        name: "device".into(),
        driver: String::new(),
        backend: "Vulkan".into(),
        device_type: "Other".into(),
        software,
        f16: false,
        subgroups: subgroups > 0,
        subgroup_size: (subgroups, subgroups),
        dot,
        matrix_size: None,
        timestamps: false,
        unchecked: false,
        browser: false,
        memory_bytes: None,
        max_binding_bytes: 1 << 30,
        max_buffer_bytes: 1 << 30,
        max_workgroup_bytes: 32 << 10,
        max_workgroup_size: 256,
        max_workgroups: 65_535,
        max_storage_buffers: 8,
        max_loop_turns: None,
        offset_alignment: 256,
        instructions: None,
        missing: Vec::new(),
    }
}

fn layer(format: &str, rows: usize, columns: usize) -> Linear {
    let format = FORMATS.iter().find(|found| found.name() == format).expect("a format");
    let weight = RandomTensors { gpu: None, seed: 0 }.matrix(*format, rows, columns).expect("a matrix on the host");
    Linear { weight, norm: None, bias: false, gate: None, activation: None, residual: false, rounded: None }
}

fn variant(linear: &Linear, device: &Capabilities, tokens: usize) -> &'static str {
    let target = Target::new(device, &Tuning::defaults(device), tokens);
    Variant::first(VARIANTS, linear, &target).map_or("none", |variant| variant.name)
}

/// The variants for 1, 8, 9, 32, 33 and 65 tokens.
fn variants(linear: &Linear, device: &Capabilities) -> [&'static str; 6] {
    [1, 8, 9, 32, 33, 65].map(|tokens| variant(linear, device, tokens))
}

#[test]
fn hardware_takes_rows_for_few_tokens_and_tiles_for_many() {
    for (format, columns) in [("f32", 64), ("q4_0", 64), ("q8_0", 100)] {
        let linear = layer(format, 64, columns);
        assert_eq!(variants(&linear, &device(false, 32, true)), ["rows", "rows", "rows", "rows", "tiles", "tiles"]);
        assert_eq!(variants(&linear, &device(false, 0, false)), ["rows", "rows", "rows", "rows", "tiles", "tiles"]);
    }
}

#[test]
fn software_goes_by_rows_and_sweeps_with_subgroups_of_four() {
    let (whole, ragged) = (layer("q4_0", 64, 64), layer("q4_0", 64, 100));
    assert_eq!(variants(&whole, &device(true, 0, true)), ["rows"; 6]);
    assert_eq!(variants(&whole, &device(true, 16, true)), ["rows"; 6]);
    assert_eq!(variants(&whole, &device(true, 8, true)), ["lanes"; 6]);
    assert_eq!(variants(&whole, &device(true, 4, true)), ["lanes", "lanes", "sweep", "sweep", "sweep", "sweep"]);
    assert_eq!(variants(&ragged, &device(true, 4, true)), ["lanes"; 6]);
}

#[test]
fn int8_is_for_many_tokens_and_quantized_whole_blocks() {
    let order = |linear: &Linear, device: &Capabilities, tokens| {
        let rounding = linear.rounding(&Target::new(device, &Tuning::defaults(device), tokens))?;
        let Rounding::Int8(order) = rounding else { panic!("f16 without matrices") };
        Some((order, variant(&Linear { rounded: Some(rounding), ..linear.clone() }, device, tokens)))
    };
    let (hardware, four) = (device(false, 32, true), device(true, 4, true));
    let (q4_0, q8_0) = (layer("q4_0", 64, 64), layer("q8_0", 64, 64));
    assert_eq!(order(&q4_0, &hardware, 33), Some((Int8Order::Sequential, "dot")));
    assert_eq!(order(&q8_0, &hardware, 33), Some((Int8Order::Sequential, "dot")));
    assert_eq!(order(&q4_0, &four, 9), Some((Int8Order::HalvesSwapped, "pairs")));
    assert_eq!(order(&q8_0, &four, 9), None, "pairs are for codes of 4 bits");
    for (linear, device, tokens) in [
        (&q4_0, &hardware, 32),
        (&q4_0, &four, 8),
        (&q4_0, &device(false, 32, false), 33),
        (&q4_0, &device(true, 4, false), 9),
        (&q4_0, &device(true, 8, true), 9),
        (&layer("f16", 64, 64), &hardware, 33),
        (&layer("q4_0", 64, 100), &hardware, 33),
    ] {
        assert_eq!(order(linear, device, tokens), None, "{} of {:?}", tokens, device.subgroup_size);
    }
}

#[test]
fn an_op_is_fused_only_where_the_kernel_stays() {
    let stays = |linear: &Linear, fused: &Linear, device: &Capabilities| {
        let limit = if device.software { 8 } else { 32 };
        [limit, limit + 1]
            .map(|tokens| linear.same_variant(fused, &Target::new(device, &Tuning::defaults(device), tokens)))
    };
    let devices = [device(false, 32, true), device(true, 0, true), device(true, 8, true), device(true, 4, true)];
    let linear = layer("q4_0", 64, 64);
    let norm = Linear { norm: Some(1e-6), ..linear.clone() };
    let gate = Linear { gate: Some(Activation::Silu), ..linear.clone() };
    let activation = Linear { activation: Some(Activation::Relu2), ..linear.clone() };
    let by = |fused: &Linear| devices.each_ref().map(|device| stays(&linear, fused, device));
    assert_eq!(by(&norm), [[true, false], [true, true], [true, true], [true, false]]);
    assert_eq!(by(&gate), [[true, false], [true, true], [true, true], [true, true]]);
    assert_eq!(by(&activation), by(&gate));

    let ragged = layer("q4_0", 64, 100);
    let norm = Linear { norm: Some(1e-6), ..ragged.clone() };
    assert!(devices.iter().all(|device| stays(&ragged, &norm, device) == [false, false]), "a norm of whole blocks");
    let uneven = layer("q4_0", 66, 64);
    let gate = Linear { gate: Some(Activation::Silu), ..uneven.clone() };
    assert!(devices.iter().all(|device| stays(&uneven, &gate, device) == [false, false]), "halves of whole groups");
}

#[test]
fn matrices_are_for_many_tokens_on_hardware_that_has_them() {
    let with = |size: Option<u32>, subgroups: u32| {
        let mut device = device(false, subgroups, true);
        (device.f16, device.matrix_size) = (true, size);
        device
    };
    let taken = |linear: &Linear, device: &Capabilities, tokens| {
        let rounding = linear.rounding(&Target::new(device, &Tuning::defaults(device), tokens));
        (rounding, variant(&Linear { rounded: rounding, ..linear.clone() }, device, tokens))
    };
    let by_matrices = (Some(Rounding::F16), "matrices");
    for (format, columns) in [("f32", 64), ("f16", 100), ("q4_k", 64), ("q8_0", 100)] {
        let linear = layer(format, 70, columns);
        for (size, subgroups) in [(16, 32), (16, 64), (8, 32), (8, 8)] {
            for max_workgroup_bytes in [32 << 10, 48 << 10] {
                let device = Capabilities { max_workgroup_bytes, ..with(Some(size), subgroups) };
                assert_eq!(taken(&linear, &device, 33), by_matrices, "{format}, {size}, {max_workgroup_bytes}");
            }
        }
        assert_eq!(taken(&linear, &with(Some(16), 32), 32), (None, "rows"), "few tokens");
        assert_ne!(taken(&linear, &with(None, 32), 33), by_matrices);
        let gradient = LinearBackward { weight: linear.weight.clone(), add: false, f16: false };
        for (device, takes) in [(with(Some(16), 32), true), (with(Some(8), 8), true), (with(None, 32), false)] {
            let target = Target::new(&device, &Tuning::defaults(&device), 33);
            assert_eq!(gradient.takes_f16(&target), takes, "{format}");
        }
    }
    let mut wide = with(Some(16), 128);
    assert_ne!(taken(&layer("f16", 64, 64), &wide, 33), by_matrices, "subgroups beyond the tile's rows");
    (wide.subgroup_size, wide.max_workgroup_bytes) = ((32, 64), 16 << 10);
    assert_ne!(taken(&layer("f16", 64, 64), &wide, 33), by_matrices, "too little workgroup memory");
}
