//! Block types compared with reference values, and false headers.

use super::blocks::BlockType;
use super::header::read_header;
use super::*;
use crate::formats::Planes;
use crate::source::MemorySource;
use crate::{Checkpoint, Stored};
use pollster::block_on;
use proptest::prelude::*;

/// Writes headers, valid and invalid.
#[derive(Default)]
struct File {
    keys: u64,
    tensors: u64,
    metadata: Vec<u8>,
    infos: Vec<u8>,
    data: Vec<u8>,
}

fn text(out: &mut Vec<u8>, value: &str) {
    out.extend((value.len() as u64).to_le_bytes());
    out.extend(value.as_bytes());
}

impl File {
    fn key(mut self, name: &str, kind: u32, value: &[u8]) -> Self {
        text(&mut self.metadata, name);
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(value);
        self.keys += 1;
        self
    }

    fn text(self, name: &str, value: &str) -> Self {
        let mut bytes = Vec::new();
        text(&mut bytes, value);
        self.key(name, 8, &bytes)
    }

    fn number(self, name: &str, value: u32) -> Self {
        self.key(name, 4, &value.to_le_bytes())
    }

    fn tensor(mut self, name: &str, shape: &[u64], kind: u32, offset: u64, bytes: usize) -> Self {
        text(&mut self.infos, name);
        self.infos.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|size| self.infos.extend(size.to_le_bytes()));
        self.infos.extend(kind.to_le_bytes());
        self.infos.extend(offset.to_le_bytes());
        self.tensors += 1;
        self.data.resize(self.data.len() + bytes, 0);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend(self.tensors.to_le_bytes());
        out.extend(self.keys.to_le_bytes());
        out.extend(&self.metadata);
        out.extend(&self.infos);
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }
}

fn header(bytes: Vec<u8>) -> Result<Header, WeightsError> {
    block_on(read_header(&MemorySource::new().with("m.gguf", bytes), "m.gguf"))
}

fn tiny() -> File {
    File::default()
        .text("general.architecture", "llama")
        .number("llama.block_count", 1)
        .number("llama.embedding_length", 32)
        .number("llama.feed_forward_length", 32)
        .number("llama.attention.head_count", 2)
}

fn vectors() -> safetensors::SafeTensors<'static> {
    static BYTES: &[u8] = include_bytes!("../../../../tests/fixtures/gguf/dequant_vectors.safetensors");
    safetensors::SafeTensors::deserialize(BYTES).expect("vectors")
}

const QUANTIZED: [BlockType; 12] = {
    use BlockType::*;
    [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS]
};

fn case(kind: BlockType) -> (Vec<u8>, Vec<f32>) {
    let file = vectors();
    let blocks = file.tensor(&format!("{}.blocks", kind.name())).expect("blocks").data().to_vec();
    let values = file.tensor(&format!("{}.values", kind.name())).expect("values");
    (blocks, values.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

#[test]
fn every_type_has_the_reference_s_values() {
    for kind in QUANTIZED {
        let (blocks, wanted) = case(kind);
        let mut found = vec![0.0; wanted.len()];
        kind.decode(&blocks, &mut found);
        let differ = found.iter().zip(&wanted).filter(|(a, b)| a != b).count();
        assert_eq!(differ, 0, "{}: {differ} of {} values differ", kind.name(), wanted.len());
    }
}

/// The planes hold the same numbers where the table says so; otherwise only a scale is rounded to f16.
#[test]
fn planes_keep_the_values() {
    for kind in QUANTIZED.into_iter().filter(|kind| *kind != BlockType::Q2_K) {
        let (blocks, wanted) = case(kind);
        let mut planes = Planes::new(kind.native(), kind.block());
        for row in blocks.chunks_exact(kind.bytes()) {
            kind.push_planes(row, &mut planes.bytes).expect("the scales fit");
            planes.rows += 1;
        }
        let found = planes.dequantize();
        // Rounding to f16 changes a number by at most 2^-11 of itself, and by 2^-25 near zero; codes go up to 127, and
        // a minimum can be as large as its block.
        for (block, (found, wanted)) in found.chunks(32).zip(wanted.chunks(32)).enumerate() {
            let peak = wanted.iter().fold(0f32, |most, value| most.max(value.abs()));
            let least = wanted.iter().fold(peak, |least, value| least.min(*value)).abs();
            let bound =
                if kind.change().is_some() { (peak + least) * 2f32.powi(-10) + 127.0 * 2f32.powi(-24) } else { 0.0 };
            for (a, b) in found.iter().zip(wanted) {
                assert!((a - b).abs() <= bound, "{} block {block}: {a} for {b}, bound {bound}", kind.name());
            }
        }
    }
}

/// Types of 256 weights that a format of ours writes are read and written back without a changed bit.
#[test]
fn blocks_are_written_as_they_were_read() {
    for kind in [BlockType::Q4_K, BlockType::Q5_K, BlockType::Q6_K] {
        let (blocks, _) = case(kind);
        let format = kind.native();
        assert!(format.block_types().written.contains(&kind), "{}", kind.name());
        let mut planes = Planes::new(format, kind.block());
        kind.push_planes(&blocks, &mut planes.bytes).expect("the scales fit");
        let mut back = Vec::new();
        let rows: Vec<&[u8]> = planes.bytes.iter().map(Vec::as_slice).collect();
        format.write_row(kind, &rows, &mut back).expect("the scales fit");
        let differ = back.iter().zip(&blocks).filter(|(a, b)| a != b).count();
        assert_eq!((back.len(), differ), (blocks.len(), 0), "{}", kind.name());
    }
}

/// Blocks of llama.cpp's unevenly spaced levels take no more memory on the device than in the file, except for the
/// 6-bit scales of IQ4_XS.
#[test]
fn iq4_does_not_grow() {
    for (kind, growth) in [(BlockType::IQ4_NL, 0), (BlockType::IQ4_XS, 8)] {
        let (blocks, _) = case(kind);
        let mut planes = Planes::new(kind.native(), kind.block());
        for row in blocks.chunks_exact(kind.bytes()) {
            kind.push_planes(row, &mut planes.bytes).expect("the scales fit");
        }
        assert_eq!(planes.size_bytes(), blocks.len() + blocks.len() / kind.bytes() * growth, "{}", kind.name());
    }
}

#[test]
fn mxfp4_is_integers_times_a_power_of_two() {
    let mut block = [0u8; 17];
    block[0] = 127; // 2^-1 times twice the value
    block[1..].copy_from_slice(&[0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut values = [0.0; 32];
    BlockType::MXFP4.decode(&block, &mut values);
    assert_eq!(values[..8], [0.0, 1.0, 2.0, 4.0, -0.0, -1.0, -2.0, -4.0]);
    assert_eq!(values[16..24], [0.5, 1.5, 3.0, 6.0, -0.5, -1.5, -3.0, -6.0]);
    let mut planes = Planes::new(BlockType::MXFP4.native(), 32);
    BlockType::MXFP4.push_planes(&block, &mut planes.bytes).expect("fits");
    planes.rows = 1;
    assert_eq!(planes.dequantize(), values);
    block[0] = 10; // 2^-118 is not representable in f16
    assert!(BlockType::MXFP4.push_planes(&block, &mut planes.bytes).is_err());
    block[1..].fill(0);
    assert!(BlockType::MXFP4.push_planes(&block, &mut planes.bytes).is_ok(), "zeros need no scale");
}

#[test]
fn a_file_without_lies_opens() {
    let file = tiny().tensor("token_embd.weight", &[4, 32], 0, 0, 512).tensor(
        "blk.0.attn_q.weight",
        &[32, 32],
        8,
        512,
        32 * 34,
    );
    let source = MemorySource::new().with("m.gguf", file.bytes());
    let checkpoint = block_on(Checkpoint::open(Rc::new(source))).expect("opens");
    assert_eq!(checkpoint.config()["model_type"], "llama");
    assert_eq!(checkpoint.config()["vocab_size"], 4);
    assert_eq!(checkpoint.config()["tie_word_embeddings"], true);
    let q = checkpoint.require("model.layers.0.self_attn.q_proj.weight").expect("there");
    assert!(matches!(q.stored, Stored::Foreign(foreign) if foreign.name == "Q8_0"));
    assert_eq!((q.size_bytes(), checkpoint.size_bytes()), (32 * 34, 512 + 32 * 34));
    assert_eq!(block_on(checkpoint.read_f32("model.layers.0.self_attn.q_proj.weight")).expect("reads").len(), 1024);
}

#[test]
fn lies_are_refused_by_name() {
    let error = |file: File| header(file.bytes()).expect_err("a lie").to_string();
    // Modelled on the CVEs of other readers: sizes and offsets beyond the file, products that overflow, counts without
    // bytes.
    assert!(error(tiny().tensor("t", &[1 << 40], 0, 0, 0)).contains("sizes up to"));
    assert!(error(tiny().tensor("t", &[1 << 30, 1 << 30, 1 << 30], 0, 0, 0)).contains("overflows"));
    assert!(error(tiny().tensor("t", &[64], 0, u64::MAX - 31, 256)).contains("overflows"));
    assert!(error(tiny().tensor("t", &[64], 0, 1 << 20, 256)).contains("the file has"));
    assert!(error(tiny().tensor("t", &[65], 0, 0, 256)).contains("the file has"));
    assert!(error(tiny().tensor("t", &[64], 0, 4, 512)).contains("not a multiple of 32"));
    assert!(error(tiny().tensor("t", &[64], 0, 0, 256).tensor("u", &[64], 0, 224, 256)).contains("overlaps"));
    assert!(error(tiny().tensor("t", &[64], 0, 0, 256).tensor("t", &[64], 0, 256, 256)).contains("twice"));
    assert!(error(tiny().tensor("t", &[33], 8, 0, 256)).contains("whole Q8_0 blocks"));
    assert!(error(tiny().tensor("t", &[64], 16, 0, 256)).contains("IQ2_XXS"));
    assert!(error(tiny().tensor("t", &[1; 9], 0, 0, 256)).contains("dimensions"));
    assert!(error(tiny().number("general.alignment", 0)).contains("power of two"));
    assert!(error(tiny().number("general.alignment", 33)).contains("power of two"));
    assert!(error(tiny().text("general.architecture", "llama")).contains("twice"));
    assert!(error(tiny().key("a", 99, &[])).contains("metadata type 99"));
    let array = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes()[..]].concat();
    assert!(error(tiny().key("a", 9, &array(9, 1))).contains("array of metadata type 9"));
    assert!(error(tiny().key("a", 9, &array(8, u64::MAX))).contains("bytes are left"));
    assert!(error(tiny().key("a", 9, &array(4, u64::MAX / 2))).contains("bytes are left"));
    assert!(error(tiny().key("a", 8, &u64::MAX.to_le_bytes())).contains("bytes"));
    assert!(error(tiny().key("a", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff])).contains("UTF-8"));
}

#[test]
fn versions_and_counts_are_checked() {
    let with = |at: usize, bytes: &[u8]| {
        let mut file = tiny().bytes();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        header(file).expect_err("a lie").to_string()
    };
    assert!(with(0, b"GGML").contains("begin with"));
    assert!(with(4, &1u32.to_le_bytes()).contains("version 1"));
    assert!(with(4, &9u32.to_le_bytes()).contains("version 9"));
    assert!(with(4, &3u32.to_be_bytes()).contains("big-endian"));
    assert!(with(8, &u64::MAX.to_le_bytes()).contains("tensors are declared"));
    assert!(with(16, &u64::MAX.to_le_bytes()).contains("metadata keys are declared"));
    assert!(header(b"GG".to_vec()).is_err());
}

#[test]
fn parts_belong_together() {
    let part = |number: u32, name: &str| {
        let file = if number == 0 { tiny() } else { File::default() };
        let file = file.key("split.count", 2, &2u16.to_le_bytes()).key("split.no", 2, &(number as u16).to_le_bytes());
        file.tensor(name, &[4, 32], 0, 0, 512).bytes()
    };
    let open = |second: Option<Vec<u8>>| {
        let mut source = MemorySource::new().with("m-00001-of-00002.gguf", part(0, "token_embd.weight"));
        second.into_iter().for_each(|bytes| source.insert("m-00002-of-00002.gguf", bytes));
        block_on(Checkpoint::open(Rc::new(source)))
    };
    assert_eq!(open(Some(part(1, "output.weight"))).expect("two parts").tensors().len(), 2);
    assert!(open(None).expect_err("one part").to_string().contains("m-00002-of-00002.gguf"));
    assert!(open(Some(part(0, "output.weight"))).expect_err("the wrong part").to_string().contains("split.no"));
    assert!(open(Some(part(1, "token_embd.weight"))).expect_err("a name twice").to_string().contains("also in"));
}

#[test]
fn one_of_several_must_be_named() {
    let two = MemorySource::new().with("a.gguf", tiny().bytes()).with("b.gguf", tiny().bytes());
    let error = block_on(Checkpoint::open(Rc::new(two))).expect_err("which?").to_string();
    assert!(error.contains("a.gguf, b.gguf"), "{error}");
    let beside = MemorySource::new().with("a.gguf", tiny().bytes()).with("mmproj-a.gguf", tiny().bytes());
    assert!(block_on(Checkpoint::open(Rc::new(beside))).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Damage anywhere gives an error, or a file whose tensors lie inside it, never a panic.
    #[test]
    fn any_damage_is_survived(
        changes in prop::collection::vec((0usize..1000, any::<u8>()), 1..6),
        cut in 0usize..1200,
    ) {
        let file = tiny().text("tokenizer.ggml.model", "gpt2").tensor("token_embd.weight", &[4, 32], 0, 0, 512).tensor("output_norm.weight", &[32], 0, 512, 128);
        let mut bytes = file.bytes();
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.truncate(cut.max(64));
        let size = bytes.len() as u64;
        let source = MemorySource::new().with("m.gguf", bytes);
        if let Ok(checkpoint) = block_on(Checkpoint::open(Rc::new(source))) {
            prop_assert!(checkpoint.size_bytes() <= size);
            for entry in checkpoint.tensors() {
                let _ = block_on(checkpoint.read_rows_f32(&entry.name, 0..entry.rows().min(64)));
            }
        }
    }
}

fn opened(file: &File) -> Result<Checkpoint, WeightsError> {
    let file = MemorySource::new().with("m.gguf", file.bytes());
    block_on(Checkpoint::open(Rc::new(file)))
}

impl File {
    fn float(self, name: &str, value: f32) -> Self {
        self.key(name, 6, &value.to_le_bytes())
    }

    fn texts(self, name: &str, values: &[&str]) -> Self {
        let mut bytes = 8u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| text(&mut bytes, value));
        self.key(name, 9, &bytes)
    }

    /// A byte-level BPE of three tokens and one merge.
    fn bpe(self) -> Self {
        self.text("tokenizer.ggml.model", "gpt2")
            .texts("tokenizer.ggml.tokens", &["a", "b", "ab"])
            .texts("tokenizer.ggml.merges", &["a b"])
    }
}

fn embedding(file: File) -> File {
    file.tensor("token_embd.weight", &[4, 32], 0, 0, 512)
}

#[test]
fn unknown_rotary_scaling_is_refused() {
    for kind in ["longrope", "dynamic", "something"] {
        let file = tiny().text("llama.rope.scaling.type", kind).float("llama.rope.scaling.factor", 4.0);
        let error = opened(&embedding(file)).expect_err("not read").to_string();
        assert!(error.contains(kind) && error.contains("llama.rope.scaling.type"), "{error}");
    }
    let none = opened(&embedding(tiny().text("llama.rope.scaling.type", "none"))).expect("no scaling");
    assert_eq!(none.config().get("rope_scaling"), None);
}

#[test]
fn yarn_is_read_with_all_its_keys() {
    let yarn = || {
        let file = tiny().text("llama.rope.scaling.type", "yarn").float("llama.rope.scaling.factor", 4.0);
        file.number("llama.rope.scaling.original_context_length", 512)
    };
    let file = yarn()
        .float("llama.rope.scaling.yarn_beta_fast", 24.0)
        .float("llama.rope.scaling.yarn_beta_slow", 0.5)
        .float("llama.rope.scaling.yarn_ext_factor", -1.0)
        .float("llama.rope.scaling.yarn_attn_factor", 0.5);
    let checkpoint = opened(&embedding(file)).expect("yarn");
    let rope = &checkpoint.config()["rope_scaling"];
    assert_eq!((&rope["beta_fast"], &rope["beta_slow"]), (&24.0.into(), &0.5.into()));
    assert_eq!(rope["original_max_position_embeddings"], 512);
    let attention = rope["attention_factor"].as_f64().expect("a number");
    assert!((attention - 0.5 * (0.1 * 4f64.ln() + 1.0)).abs() < 1e-9, "{attention}");
    for key in ["yarn_ext_factor", "yarn_log_multiplier"] {
        let file = yarn().float(&format!("llama.rope.scaling.{key}"), 0.7);
        assert!(opened(&embedding(file)).expect_err("another method").to_string().contains(key));
    }
}

#[test]
fn a_file_that_does_not_say_how_to_cut_is_noted() {
    let pre = |checkpoint: &Checkpoint| -> serde_json::Value {
        let text = block_on(checkpoint.text("tokenizer.json")).expect("reads").expect("made");
        serde_json::from_str::<serde_json::Value>(&text).expect("JSON")["pre_tokenizer"].clone()
    };
    let gpt2 = pretokenizers::by_name("gpt-2").expect("known").json();
    for file in [tiny().bpe(), tiny().bpe().text("tokenizer.ggml.pre", "default")] {
        let checkpoint = opened(&embedding(file)).expect("opens");
        assert_eq!(pre(&checkpoint), gpt2);
        let notes = checkpoint.notes();
        assert!(
            matches!(&notes[..], [note] if note.contains("tokenizer.ggml.pre") && note.contains("GPT-2")),
            "{notes:?}"
        );
    }
    let named = opened(&embedding(tiny().bpe().text("tokenizer.ggml.pre", "llama-bpe"))).expect("opens");
    assert_eq!((named.notes().len(), pre(&named)), (0, pretokenizers::by_name("llama-bpe").expect("known").json()));
    // Qwen's files are cut as Qwen, which their architecture tells.
    let qwen = File::default()
        .text("general.architecture", "qwen2")
        .number("qwen2.block_count", 1)
        .number("qwen2.embedding_length", 32)
        .number("qwen2.feed_forward_length", 32)
        .number("qwen2.attention.head_count", 2);
    let checkpoint = opened(&embedding(qwen.bpe())).expect("opens");
    assert_eq!(pre(&checkpoint), pretokenizers::by_name("qwen2").expect("known").json());
    assert!(checkpoint.notes()[0].contains("qwen2"), "{:?}", checkpoint.notes());
    let error = opened(&embedding(tiny().bpe().text("tokenizer.ggml.pre", "new-bpe"))).expect_err("unknown");
    assert!(error.to_string().contains("new-bpe"), "{error}");
}

#[test]
fn known_vocabularies_tell_how_to_cut() {
    let header = Header::default();
    let mut tokens = vec![String::new(); 128_256];
    tokens[128_000] = "<|begin_of_text|>".to_owned();
    let (arch, mut notes) = (Arch::by_gguf("llama").expect("known"), Vec::new());
    assert_eq!(pretokenizers::name_in("m.gguf", &header, arch, &tokens, &mut notes), "llama-bpe");
    assert!(notes[0].contains("<|begin_of_text|>"), "{notes:?}");
}

#[test]
fn the_magic_tells_gguf_whatever_its_name() {
    let bytes = embedding(tiny()).bytes();
    for name in ["sha256-6a0746a1ec1aef3e7ec53868f220ff6e389f6f8ef87a01d77c96807de94ca2aa", "UPPER.GGUF"] {
        let source = MemorySource::new().with(name, bytes.clone()).with("params", &b"{}"[..]);
        assert!(block_on(Checkpoint::open(Rc::new(source))).is_ok(), "{name}");
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join(name), &bytes).expect("a file");
        let source = crate::DirectorySource::new(folder.path().join(name)).expect("a GGUF file");
        assert_eq!(block_on(Checkpoint::open(Rc::new(source))).expect("opens").tensors().len(), 1, "{name}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("noext.bin");
    std::fs::write(&path, &bytes).expect("a file");
    assert!(crate::DirectorySource::new(&path).is_ok(), "the first bytes count, not the ending");
}

#[test]
fn adapters_and_models_are_told_apart() {
    let adapter = tiny().text("general.type", "adapter").text("adapter.type", "lora");
    let error = opened(&adapter).expect_err("no model").to_string();
    assert!(error.contains("--adapter"), "{error}");
    let read = |file: &File| {
        let source = MemorySource::new().with("a.gguf", file.bytes());
        block_on(adapter::read_adapter(&source, "a.gguf", 16)).map_err(|error| error.to_string())
    };
    assert!(read(&embedding(tiny())).expect_err("a model").contains("--model"));
    let pair = || {
        let file = tiny().text("general.type", "adapter").text("adapter.type", "lora");
        file.tensor("blk.0.attn_q.weight.lora_a", &[2, 32], 0, 0, 256)
    };
    let whole = || pair().tensor("blk.0.attn_q.weight.lora_b", &[32, 2], 0, 256, 256);
    assert!(read(&whole()).expect_err("no alpha").contains("adapter.lora.alpha"));
    let alpha = |file: File| file.float("adapter.lora.alpha", 4.0);
    let found = read(&alpha(whole())).expect("an adapter");
    assert_eq!((found.alpha, found.pairs["model.layers.0.self_attn.q_proj"].rank), (4.0, 2));
    assert!(read(&alpha(pair())).expect_err("half of a pair").contains("lora_b"));
    let whole_weight = whole().tensor("output_norm.weight", &[32], 0, 512, 128);
    assert!(read(&alpha(whole_weight)).expect_err("a whole weight").contains("output_norm.weight"));
    let activated = whole().key("adapter.alora.invocation_tokens", 4, &1u32.to_le_bytes());
    assert!(read(&alpha(activated)).expect_err("another kind").contains("alora"));
}

/// llama.cpp reorders or multiplies these matrices by the model's own sizes, which an adapter's file does not have.
#[test]
fn pairs_of_changed_matrices_are_refused() {
    for (arch, tensor) in [("qwen35", "ssm_out"), ("falcon-h1", "attn_q"), ("jais", "output")] {
        let base = if tensor == "output" { "output".to_owned() } else { format!("blk.0.{tensor}") };
        let file = File::default()
            .text("general.architecture", arch)
            .text("general.type", "adapter")
            .text("adapter.type", "lora")
            .float("adapter.lora.alpha", 4.0)
            .tensor(&format!("{base}.weight.lora_a"), &[2, 32], 0, 0, 256)
            .tensor(&format!("{base}.weight.lora_b"), &[32, 2], 0, 256, 256);
        let source = MemorySource::new().with("a.gguf", file.bytes());
        let error = block_on(adapter::read_adapter(&source, "a.gguf", 16)).expect_err(arch).to_string();
        assert!(error.contains(tensor) && error.contains("safetensors"), "{arch}: {error}");
    }
}

#[test]
fn tokens_without_text_and_repeated_ones_are_read() {
    let file = tiny()
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "llama-bpe")
        .texts("tokenizer.ggml.tokens", &["a", "b", "ab", "", "b"])
        .texts("tokenizer.ggml.merges", &["a b"]);
    let checkpoint = opened(&embedding(file)).expect("opens");
    let text = block_on(checkpoint.text("tokenizer.json")).expect("reads").expect("made");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(json["model"]["vocab"], serde_json::json!({"a": 0, "ab": 2, "b": 4}));
    let notes = checkpoint.notes().join("; ");
    assert!(notes.contains("without text (ids 3)") && notes.contains("a later token has, too (ids 1)"), "{notes}");
}
