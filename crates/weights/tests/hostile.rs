//! Files made to break the reader: every case must be an error, never a panic, a wrong read or a large allocation.

use bayan_weights::formats::Q8_0;
use bayan_weights::safetensors::{MAX_HEADER_BYTES, encode_header, header_length, parse_header};
use bayan_weights::{Checkpoint, Dtype, MemorySource, WeightsError};
use pollster::block_on;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::rc::Rc;

/// A file from a header text and a number of zero bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn open(bytes: Vec<u8>) -> Result<Checkpoint, WeightsError> {
    let source = MemorySource::new().with("config.json", &b"{}"[..]).with("model.safetensors", bytes);
    block_on(Checkpoint::open(Rc::new(source)))
}

/// Opens, and reads every tensor in two ways. The result may be an error, but never a panic.
fn open_and_read_all(source: MemorySource) {
    let Ok(checkpoint) = block_on(Checkpoint::open(Rc::new(source))) else { return };
    for entry in checkpoint.tensors() {
        let rows = entry.rows();
        let _ = block_on(checkpoint.read_rows_f32(&entry.name, 0..rows));
        let _ = block_on(checkpoint.read_planes(&entry.name, 0..rows, &Q8_0));
        let _ = block_on(checkpoint.read_planes(&entry.name, rows / 2..rows, bayan_weights::FORMATS[0]));
    }
}

#[test]
fn lying_headers_are_refused() {
    let cases: &[(&str, &str, usize)] = &[
        ("a gap", r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8),
        (
            "an overlap",
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
            8,
        ),
        (
            "the same bytes twice",
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            4,
        ),
        ("beyond the end", r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#, 8),
        ("bytes left over", r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 8),
        ("data without tensors", r#"{}"#, 8),
        ("shape against length", r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8),
        ("dtype against length", r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,8]}}"#, 8),
        ("end before begin", r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8),
        (
            "a shape product beyond 64 bits",
            r#"{"a":{"dtype":"F32","shape":[2147483647,2147483647,2147483647],"data_offsets":[0,8]}}"#,
            8,
        ),
        (
            "a shape product that wraps to the length",
            r#"{"a":{"dtype":"F32","shape":[1073741824,1073741824,16,2],"data_offsets":[0,0]}}"#,
            0,
        ),
        ("a huge dimension", r#"{"a":{"dtype":"F32","shape":[0,18446744073709551615],"data_offsets":[0,0]}}"#, 0),
        ("a negative dimension", r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4),
        ("a fractional dimension", r#"{"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}}"#, 4),
        (
            "a number beyond 64 bits",
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,99999999999999999999999]}}"#,
            4,
        ),
        (
            "offsets at the top",
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[18446744073709551611,18446744073709551615]}}"#,
            4,
        ),
        ("too many dimensions", r#"{"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}"#, 1),
        (
            "a name twice",
            r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
            2,
        ),
        ("an unknown type", r#"{"a":{"dtype":"Q9","shape":[1],"data_offsets":[0,1]}}"#, 1),
        ("a list", r#"[1]"#, 0),
        ("leading space", r#" {}"#, 0),
        ("two values", r#"{}{}"#, 0),
        ("metadata of the wrong type", r#"{"__metadata__":{"a":1}}"#, 0),
        ("missing offsets", r#"{"a":{"dtype":"U8","shape":[0]}}"#, 0),
        ("unfinished", r#"{"a":{"dtype":"U8""#, 0),
    ];
    for (what, header, data) in cases {
        let error = open(file(header, *data)).expect_err(what);
        assert!(matches!(error, WeightsError::Malformed { .. } | WeightsError::Unsupported { .. }), "{what}: {error}");
    }
    let deep = format!("{{\"a\":{}", "[".repeat(100_000));
    assert!(open(file(&deep, 0)).is_err());
    let mut not_utf8 = file("{\"a\":1}", 0);
    not_utf8[10] = 0xff;
    assert!(open(not_utf8).is_err());
}

#[test]
fn header_lengths_are_checked_before_reading() {
    for (length, size) in [(u64::MAX, 100), (MAX_HEADER_BYTES + 1, u64::MAX), (93, 100), (0, 100), (1, 100)] {
        assert!(header_length("f", &u64::to_le_bytes(length), size).is_err(), "{length} of {size}");
    }
    assert_eq!(header_length("f", &92u64.to_le_bytes(), 100).expect("fits"), 92);
    for short in 0..8 {
        assert!(open(vec![0; short]).is_err(), "{short} bytes");
    }
}

#[test]
fn sound_oddities_are_accepted() {
    let empty = open(file("{}", 0)).expect("no tensors is sound");
    assert_eq!(empty.names().count(), 0);
    let zero = r#"{"z":{"dtype":"F32","shape":[0,5],"data_offsets":[0,0]},"wide":{"dtype":"F32","shape":[2147483647,0],"data_offsets":[0,0]},
        "s":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"i":{"dtype":"I64","shape":[1],"data_offsets":[4,12]}}"#;
    let checkpoint = open(file(zero, 12)).expect("zero sizes and scalars are sound");
    assert_eq!(block_on(checkpoint.read_f32("s")).expect("read"), [0.0]);
    assert!(block_on(checkpoint.read_f32("z")).expect("read").is_empty());
    let wide = block_on(checkpoint.read_planes("wide", 0..2_147_483_647, &Q8_0)).expect("read");
    assert!(wide.dequantize().is_empty());
    assert!(matches!(block_on(checkpoint.read_f32("i")), Err(WeightsError::Request { .. })));
}

#[test]
fn bad_configs_are_refused() {
    for config in [&b""[..], b"[]", b"3", b"{", b"\xff{}"] {
        let source = MemorySource::new().with("config.json", config).with("model.safetensors", file("{}", 0));
        let error = block_on(Checkpoint::open(Rc::new(source))).expect_err("not a config");
        assert!(matches!(error, WeightsError::Malformed { .. }), "{error}");
    }
    let source = MemorySource::new().with("model.safetensors", file("{}", 0));
    assert!(matches!(block_on(Checkpoint::open(Rc::new(source))), Err(WeightsError::MissingFile { .. })));
}

fn shard(name: &str) -> Vec<u8> {
    let header = format!(r#"{{"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#);
    file(&header, 1)
}

#[test]
fn indices_must_agree_with_their_shards() {
    let open = |index: &str| {
        let source = MemorySource::new()
            .with("config.json", &b"{}"[..])
            .with("a.safetensors", shard("x"))
            .with("b.safetensors", shard("y"))
            .with("c.safetensors", shard("x"))
            .with("model.safetensors.index.json", index.as_bytes().to_vec());
        block_on(Checkpoint::open(Rc::new(source)))
    };
    let sound = open(r#"{"metadata":{},"weight_map":{"x":"a.safetensors","y":"b.safetensors"}}"#).expect("sound");
    assert_eq!(sound.names().collect::<Vec<_>>(), ["x", "y"]);
    for (what, index) in [
        ("no shard holds it", r#"{"weight_map":{"x":"a.safetensors","z":"b.safetensors"}}"#),
        ("swapped", r#"{"weight_map":{"x":"b.safetensors","y":"a.safetensors"}}"#),
        ("in two shards", r#"{"weight_map":{"x":"a.safetensors","y":"c.safetensors"}}"#),
        ("a tensor not named", r#"{"weight_map":{"z":"a.safetensors"}}"#),
        ("no such shard", r#"{"weight_map":{"x":"d.safetensors"}}"#),
        ("a path upward", r#"{"weight_map":{"x":"../a.safetensors"}}"#),
        ("an absolute path", r#"{"weight_map":{"x":"/etc/passwd"}}"#),
        ("empty", r#"{"weight_map":{}}"#),
        ("no map", r#"{}"#),
        ("not JSON", r#"x"#),
    ] {
        assert!(open(index).is_err(), "{what}");
    }
}

/// A file with one q8_0 tensor of [2, 40], described as `description` says.
fn quantized(description: &str) -> Vec<u8> {
    let metadata = BTreeMap::from([("bayan".to_owned(), description.to_owned())]);
    let arrays: &[(&str, Dtype, &[usize], u64)] =
        &[("w.codes", Dtype::I8, &[2, 64], 128), ("w.scales", Dtype::F16, &[2, 2], 8)];
    let mut bytes = encode_header(arrays, &metadata);
    bytes.resize(bytes.len() + 136, 0x11);
    bytes
}

#[test]
fn quantized_descriptions_are_checked() {
    for description in [
        r#"{"version":1,"tensors":{"w":{"format":"q8_0","shape":[2,40]}}}"#,
        r#"{"version":2,"tensors":{"w":{"format":"q8_0","shape":[2,40]}}}"#,
        r#"{"version":3,"tensors":{"w":{"format":"q8_0","shape":[2,40]}}}"#,
    ] {
        let good = open(quantized(description)).expect("sound");
        assert_eq!(good.names().collect::<Vec<_>>(), ["w"]);
        assert_eq!(block_on(good.read_f32("w")).expect("read").len(), 80);
    }
    for (what, description) in [
        ("an earlier version", r#"{"version":0,"tensors":{}}"#),
        ("a later version", r#"{"version":4,"tensors":{}}"#),
        ("an unknown format", r#"{"version":1,"tensors":{"w":{"format":"q9","shape":[2,40]}}}"#),
        ("a dense format", r#"{"version":1,"tensors":{"w":{"format":"f32","shape":[2,40]}}}"#),
        ("another format", r#"{"version":1,"tensors":{"w":{"format":"q4_0","shape":[2,40]}}}"#),
        ("more rows", r#"{"version":1,"tensors":{"w":{"format":"q8_0","shape":[3,40]}}}"#),
        ("wider", r#"{"version":1,"tensors":{"w":{"format":"q8_0","shape":[2,65]}}}"#),
        ("no shape", r#"{"version":1,"tensors":{"w":{"format":"q8_0","shape":[]}}}"#),
        ("overflow", r#"{"version":1,"tensors":{"w":{"format":"q8_0","shape":[2147483647,2147483647,2147483647,2]}}}"#),
        ("huge", r#"{"version":1,"tensors":{"w":{"format":"q8_0","shape":[2,18446744073709551615]}}}"#),
        ("a tensor that is not there", r#"{"version":1,"tensors":{"v":{"format":"q8_0","shape":[2,40]}}}"#),
        (
            "the planes of another",
            r#"{"version":1,"tensors":{"w":{"format":"q8_0","shape":[2,40]},"w.codes":{"format":"q8_0","shape":[2,40]}}}"#,
        ),
        ("not JSON", r#"]"#),
    ] {
        assert!(open(quantized(description)).is_err(), "{what}");
    }
    let mut nan = quantized(r#"{"version":1,"tensors":{"w":{"format":"q8_0","shape":[2,40]}}}"#);
    let end = nan.len();
    nan[end - 2..].copy_from_slice(&half::f16::NAN.to_le_bytes());
    let checkpoint = open(nan).expect("the header is sound");
    assert!(block_on(checkpoint.read_rows_f32("w", 0..1)).is_ok());
    assert!(matches!(block_on(checkpoint.read_planes("w", 0..2, &Q8_0)), Err(WeightsError::NotFinite { .. })));
}

/// Checks that whatever our parser accepts, the `safetensors` crate accepts and reads identically.
fn agrees_with_the_crate(bytes: &[u8]) {
    let Some(first) = bytes.get(..8) else { return };
    let Ok(length) = header_length("f", first, bytes.len() as u64) else { return };
    let Ok(ours) = parse_header("f", &bytes[8..8 + length as usize], bytes.len() as u64) else { return };
    let theirs = safetensors::SafeTensors::deserialize(bytes).expect("what we accept is sound");
    assert_eq!(theirs.len(), ours.arrays.len());
    for array in &ours.arrays {
        let view = theirs.tensor(&array.name).expect("the same names");
        assert_eq!(view.shape(), array.shape);
        let range = array.offset as usize..(array.offset + array.length) as usize;
        assert_eq!(view.data(), &bytes[range]);
    }
}

fn sound_file() -> Vec<u8> {
    let arrays: &[(&str, Dtype, &[usize], u64)] = &[
        ("a.weight", Dtype::F32, &[2, 3], 24),
        ("b.weight", Dtype::Bf16, &[4], 8),
        ("c", Dtype::I64, &[1], 8),
        ("d.codes", Dtype::I8, &[1, 32], 32),
        ("d.scales", Dtype::F16, &[1, 1], 2),
    ];
    let description = r#"{"version":1,"tensors":{"d":{"format":"q8_0","shape":[1,20]}}}"#;
    let mut bytes = encode_header(arrays, &BTreeMap::from([("bayan".to_owned(), description.to_owned())]));
    bytes.resize(bytes.len() + 74, 7);
    bytes
}

#[test]
fn the_sound_file_is_sound() {
    assert_eq!(open(sound_file()).expect("sound").names().count(), 4);
    agrees_with_the_crate(&sound_file());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        open_and_read_all(MemorySource::new().with("config.json", &b"{}"[..]).with("model.safetensors", bytes));
    }

    #[test]
    fn damaged_files_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        cut_it in any::<bool>(),
    ) {
        let mut bytes = sound_file();
        for (index, value) in edits {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        if cut_it {
            let cut = cut.index(bytes.len());
            prop_assert!(cut == 0 || parse_whole(&bytes[..cut]).is_err());
            bytes.truncate(cut);
        }
        agrees_with_the_crate(&bytes);
        open_and_read_all(MemorySource::new().with("config.json", &b"{}"[..]).with("model.safetensors", bytes));
    }

    /// Headers of plausible words with arbitrary numbers.
    #[test]
    fn random_headers_never_panic(
        tensors in prop::collection::vec(
            ("[abw](\\.codes|\\.scales)?", "F32|F16|BF16|I8|U8|F4",
             prop::collection::vec(prop_oneof![0u64..4, Just(32), any::<u64>()], 0..4),
             prop_oneof![0u64..64, any::<u64>()], prop_oneof![0u64..128, any::<u64>()]), 0..4),
        format in "q8_0|q4_0|q4_k|q6_k|f32",
        k in prop_oneof![0u64..70, any::<u64>()],
        data in 0usize..256,
    ) {
        let mut parts = vec![format!(
            r#""__metadata__":{{"bayan":"{{\"version\":1,\"tensors\":{{\"w\":{{\"format\":\"{format}\",\"shape\":[1,{k}]}}}}}}"}}"#
        )];
        for (name, dtype, shape, begin, length) in tensors {
            let end = begin.saturating_add(length);
            parts.push(format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#));
        }
        let bytes = file(&format!("{{{}}}", parts.join(",")), data);
        agrees_with_the_crate(&bytes);
        open_and_read_all(MemorySource::new().with("config.json", &b"{}"[..]).with("model.safetensors", bytes));
    }
}

fn parse_whole(bytes: &[u8]) -> Result<(), WeightsError> {
    let length = header_length("f", &bytes[..bytes.len().min(8)], bytes.len() as u64)? as usize;
    parse_header("f", &bytes[8..8 + length], bytes.len() as u64).map(|_| ())
}
