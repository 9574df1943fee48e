//! Checkpoints with matrices packed by GPTQ, AWQ or MLX: the several arrays of a matrix are joined into one tensor
//! `X.weight` [N, K].
//!
//! | form | becomes | change |
//! | --- | --- | --- |
//! | GPTQ, symmetric | q4_0 | none |
//! | GPTQ with zero points, AWQ | q4_1 | the minimum, scale times zero point, is rounded to f16 |
//! | GPTQ with activation order | q8_0 | quantized again, as its groups are scattered over the columns |
//! | MLX, 4 bits | q4_1 | none (scales and biases in bf16 are f16 numbers but for extremes) |
//! | MLX, 8 bits | f16 | rounded to f16: no format of ours has 8 bits and a minimum |
//!
//! `f32` rows are exactly `scale · (code − zero)` or `scale · code + bias`. Some arrays are stored across the rows of
//! the matrix; then only the needed columns of each of their rows are read, so that no matrix is whole in memory.

mod columns;

use crate::checkpoint::{Stored, TensorEntry};
use crate::dtype::Dtype;
use crate::error::WeightsError;
use crate::foreign::{Foreign, RowReader};
use crate::formats::{self, Planes, push_half, push_nibbles, round_half};
use crate::source::{LocalFuture, Source};
use columns::Array;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

/// The packing of the matrices, from the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    /// `plus_one`: zero points are stored minus one.
    Gptq {
        symmetric: bool,
        ordered: bool,
        plus_one: bool,
    },
    Awq,
    Mlx {
        bits: u32,
    },
}

/// The tensors of a checkpoint with the packed arrays joined, if its configuration declares any.
///
/// Errors: an unsupported method or number of bits, or arrays that do not fit together.
pub(crate) fn join(config: &Value, tensors: Vec<TensorEntry>) -> Result<Vec<TensorEntry>, WeightsError> {
    let Some((packing, group)) = packing(config)? else { return Ok(tensors) };
    let mut by_name: BTreeMap<String, TensorEntry> =
        tensors.into_iter().map(|entry| (entry.name.clone(), entry)).collect();
    let marker = if matches!(packing, Packing::Mlx { .. }) { ".scales" } else { ".qweight" };
    let modules: Vec<String> = by_name.keys().filter_map(|name| name.strip_suffix(marker)).map(str::to_owned).collect();
    for module in modules {
        let entry = match packing {
            Packing::Mlx { .. } if !by_name.contains_key(&format!("{module}.biases")) => continue,
            Packing::Mlx { .. } => mlx(&module, packing, group, &mut by_name)?,
            _ => four_bit(&module, packing, group, &mut by_name)?,
        };
        by_name.insert(entry.name.clone(), entry);
    }
    let mut tensors: Vec<TensorEntry> = by_name.into_values().collect();
    tensors.sort_by(|a, b| (&a.file, a.offsets.first(), &a.name).cmp(&(&b.file, b.offsets.first(), &b.name)));
    Ok(tensors)
}

fn unsupported(what: String, remedy: &str) -> WeightsError {
    WeightsError::Unsupported { what, remedy: remedy.to_owned() }
}

const ORIGINAL: &str = "take the original checkpoint in BF16, F16 or F32 and quantize it with --quantize; of a model \
                        of your own, save the dequantized one with transformers (model.dequantize(), save_pretrained)";

fn packing(config: &Value) -> Result<Option<(Packing, Option<usize>)>, WeightsError> {
    if let Some(mlx) = config.get("quantization").filter(|value| value.get("bits").is_some()) {
        let (bits, group) = (mlx.get("bits").and_then(Value::as_u64), mlx.get("group_size").and_then(Value::as_u64));
        if mlx.get("mode").and_then(Value::as_str).is_some_and(|mode| mode != "affine") {
            return Err(unsupported(format!("MLX quantization in mode {}", mlx["mode"]), ORIGINAL));
        }
        return match (bits, group) {
            (Some(bits @ (4 | 8)), Some(group @ (32 | 64 | 128))) => {
                Ok(Some((Packing::Mlx { bits: bits as u32 }, Some(group as usize))))
            }
            _ => Err(unsupported(
                format!("MLX quantization {mlx}"),
                "4 and 8 bits in groups of 32, 64 or 128 are read; convert the model with these",
            )),
        };
    }
    let Some(quantization) = config.get("quantization_config").filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let text = |key: &str| quantization.get(key).and_then(Value::as_str);
    let flag = |key: &str, default: bool| quantization.get(key).and_then(Value::as_bool).unwrap_or(default);
    let method = text("quant_method").unwrap_or("none");
    if method == "bayan" {
        return Ok(None);
    }
    if !matches!(method, "gptq" | "awq") {
        return Err(unsupported(format!("quantization by {}", other_method(method, quantization)), ORIGINAL));
    }
    let bits = quantization.get("bits").and_then(Value::as_u64);
    let group = match quantization.get("group_size").and_then(Value::as_i64) {
        Some(-1) => None,
        Some(group @ (32 | 64 | 128 | 256 | 512 | 1024)) => Some(group as usize),
        other => {
            return Err(unsupported(
                format!("quantization by {method} with group_size {other:?}"),
                "groups of 32, 64 or 128, or whole rows, are read",
            ));
        }
    };
    let packing = match method {
        "gptq" => Packing::Gptq {
            symmetric: flag("sym", false),
            ordered: flag("desc_act", false),
            plus_one: text("checkpoint_format") != Some("gptq_v2"),
        },
        "awq" if matches!(text("version").unwrap_or("gemm"), "gemm" | "GEMM") => Packing::Awq,
        "awq" => {
            return Err(unsupported(
                format!("AWQ in the packing {:?}", text("version")),
                "the packing \"gemm\" is read",
            ));
        }
        _ => return Err(unsupported(format!("quantization by {method}"), ORIGINAL)),
    };
    match bits {
        Some(4) => Ok(Some((packing, group))),
        _ => Err(unsupported(
            format!("{method} with {bits:?} bits"),
            "4 bits are read; take another quantization of this model",
        )),
    }
}

/// A method that is not read, in words.
fn other_method(method: &str, quantization: &Value) -> String {
    let flag = |key: &str| quantization.get(key).and_then(Value::as_bool) == Some(true);
    let words = match method {
        "bitsandbytes" if flag("load_in_8bit") || flag("_load_in_8bit") => "bitsandbytes (8 bits, LLM.int8)",
        "bitsandbytes" => "bitsandbytes (4 bits, NF4 or FP4)",
        "fp8" | "fbgemm_fp8" | "finegrained_fp8" => "fp8 (numbers of 8 bits with scales beside them)",
        "compressed-tensors" => "compressed-tensors (llm-compressor)",
        "mxfp4" => "MXFP4",
        "none" => "an unnamed method (quant_method is missing)",
        _ => return format!("{method:.60?}"),
    };
    words.to_owned()
}

/// Fails for a quantization that is not read, before any file of weights is opened: their element types may be unknown.
pub(crate) fn check_method(config: &Value) -> Result<(), WeightsError> {
    packing(config).map(drop)
}

/// What all readers have in common.
#[derive(Debug)]
struct PackedMatrix {
    packing: Packing,
    /// N
    rows: usize,
    /// K
    k: usize,
    /// Columns per scale.
    group: usize,
    codes: Array,
    scales: Array,
    /// Zero points, or MLX's biases.
    zeros: Array,
    /// The group of each column, where they are not consecutive (activation order).
    order: Option<Array>,
    size_bytes: u64,
}

fn take(by_name: &mut BTreeMap<String, TensorEntry>, name: &str) -> Result<TensorEntry, WeightsError> {
    by_name.remove(name).ok_or_else(|| {
        unsupported(
            format!("a packed matrix without {name:?}"),
            "download the checkpoint again; some of its files may be missing",
        )
    })
}

fn shape_error(entry: &TensorEntry, expected: String) -> WeightsError {
    WeightsError::Request {
        tensor: entry.name.clone(),
        expected,
        got: format!("{} {:?}", entry.stored.name(), entry.shape),
    }
}

/// Checks an array's type and shape.
fn array(entry: &TensorEntry, kinds: &[Dtype], shape: &[usize]) -> Result<Array, WeightsError> {
    match entry.stored {
        Stored::Dense(dtype) if kinds.contains(&dtype) && entry.shape == shape => Ok(Array::of(entry, dtype)),
        _ => Err(shape_error(
            entry,
            format!("{} {shape:?}", kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(" or ")),
        )),
    }
}

const WORDS: &[Dtype] = &[Dtype::I32, Dtype::U32];
const FLOATS: &[Dtype] = &[Dtype::F16, Dtype::Bf16, Dtype::F32];

fn four_bit(
    module: &str,
    packing: Packing,
    group: Option<usize>,
    by_name: &mut BTreeMap<String, TensorEntry>,
) -> Result<TensorEntry, WeightsError> {
    let codes = take(by_name, &format!("{module}.qweight"))?;
    let (scales, zeros) = (take(by_name, &format!("{module}.scales"))?, take(by_name, &format!("{module}.qzeros"))?);
    let order = by_name.remove(&format!("{module}.g_idx"));
    let [outer, inner] = codes.shape[..] else { return Err(shape_error(&codes, "two dimensions".to_owned())) };
    let (k, rows) =
        if packing == Packing::Awq { (outer, inner.saturating_mul(8)) } else { (outer.saturating_mul(8), inner) };
    let group = group.unwrap_or(k);
    if group == 0 || !group.is_multiple_of(32) || !k.is_multiple_of(group) || !rows.is_multiple_of(8) {
        return Err(shape_error(&codes, format!("whole groups of {group} columns and a multiple of 8 rows")));
    }
    let ordered = matches!(packing, Packing::Gptq { ordered: true, .. });
    let size_bytes = [&codes, &scales, &zeros].iter().map(|entry| entry.size_bytes()).sum::<u64>()
        + order.as_ref().map_or(0, TensorEntry::size_bytes);
    let packed = PackedMatrix {
        packing,
        rows,
        k,
        group,
        codes: array(&codes, WORDS, &codes.shape)?,
        scales: array(&scales, FLOATS, &[k / group, rows])?,
        zeros: array(&zeros, WORDS, &[k / group, rows / 8])?,
        order: order.filter(|_| ordered).map(|entry| array(&entry, WORDS, &[k])).transpose()?,
        size_bytes,
    };
    let foreign = match packing {
        Packing::Awq => Foreign { name: "awq", native: &formats::Q4_1, change: Some("minima rounded to f16") },
        _ if packed.order.is_some() => Foreign {
            name: "gptq",
            native: &formats::Q8_0,
            change: Some("quantized again to 8 bits, for its activation order"),
        },
        Packing::Gptq { symmetric: true, .. } => Foreign { name: "gptq", native: &formats::Q4_0, change: None },
        _ => Foreign { name: "gptq", native: &formats::Q4_1, change: Some("minima rounded to f16") },
    };
    Ok(entry(module, &codes, packed, foreign))
}

fn mlx(
    module: &str,
    packing: Packing,
    group: Option<usize>,
    by_name: &mut BTreeMap<String, TensorEntry>,
) -> Result<TensorEntry, WeightsError> {
    let Packing::Mlx { bits } = packing else { return Err(unsupported("this packing".to_owned(), ORIGINAL)) };
    let codes = take(by_name, &format!("{module}.weight"))?;
    let (scales, biases) = (take(by_name, &format!("{module}.scales"))?, take(by_name, &format!("{module}.biases"))?);
    let [rows, words] = codes.shape[..] else { return Err(shape_error(&codes, "two dimensions".to_owned())) };
    let (k, group) = (words.saturating_mul(32 / bits as usize), group.unwrap_or(64));
    if k == 0 || !k.is_multiple_of(group) {
        return Err(shape_error(&codes, format!("whole groups of {group} columns of {bits} bits")));
    }
    let packed = PackedMatrix {
        packing,
        rows,
        k,
        group,
        codes: array(&codes, WORDS, &codes.shape)?,
        scales: array(&scales, FLOATS, &[rows, k / group])?,
        zeros: array(&biases, FLOATS, &[rows, k / group])?,
        order: None,
        size_bytes: codes.size_bytes() + scales.size_bytes() + biases.size_bytes(),
    };
    let foreign = if bits == 4 {
        Foreign { name: "mlx 4-bit", native: &formats::Q4_1, change: Some("scales outside f16's range are refused") }
    } else {
        Foreign { name: "mlx 8-bit", native: &formats::F16, change: Some("rounded to f16") }
    };
    Ok(entry(module, &codes, packed, foreign))
}

fn entry(module: &str, first: &TensorEntry, packed: PackedMatrix, foreign: Foreign) -> TensorEntry {
    TensorEntry {
        name: format!("{module}.weight"),
        shape: vec![packed.rows, packed.k],
        stored: Stored::Foreign(foreign),
        file: first.file.clone(),
        offsets: Vec::new(),
        reader: Some(Rc::new(packed)),
    }
}

/// Some rows, unpacked: codes `[rows, K]`, scales and zeros (or biases) `[rows, groups]`.
struct Unpacked {
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<f32>,
}

/// AWQ's order of the 8 rows in a word.
const AWQ_ORDER: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

impl PackedMatrix {
    async fn unpack(&self, source: &dyn Source, rows: &Range<usize>) -> Result<Unpacked, WeightsError> {
        let (count, groups) = (rows.len(), self.k / self.group);
        if let Packing::Mlx { bits } = self.packing {
            let words = self.codes.rows(source, rows.clone()).await?;
            let codes = if bits == 8 { words } else { words.iter().flat_map(|byte| [byte & 15, byte >> 4]).collect() };
            let (scales, zeros) = (
                self.scales.floats(&self.scales.rows(source, rows.clone()).await?),
                self.zeros.floats(&self.zeros.rows(source, rows.clone()).await?),
            );
            return Ok(Unpacked { codes, scales, zeros });
        }
        let (first, last) = (rows.start / 8, rows.end.div_ceil(8));
        let transposed = |values: Vec<f32>| {
            (0..count * groups).map(|i| values[i % groups * count + i / groups]).collect::<Vec<f32>>()
        };
        let scales = transposed(self.scales.floats(&self.scales.columns(source, rows.clone()).await?));
        let lane = |row: usize| if self.packing == Packing::Awq { AWQ_ORDER[row % 8] } else { row % 8 };
        let nibble = |words: &[u8], line: usize, row: usize| {
            let word = (line * (last - first) + row / 8 - first) * 4;
            words[word + lane(row) / 2] >> (4 * (lane(row) % 2)) & 15
        };
        let plus = if matches!(self.packing, Packing::Gptq { plus_one: true, .. }) { 1.0 } else { 0.0 };
        let words = self.zeros.columns(source, first..last).await?;
        let zeros = rows
            .clone()
            .flat_map(|row| (0..groups).map(move |group| (group, row)))
            .map(|(group, row)| f32::from(nibble(&words, group, row)) + plus)
            .collect();
        let mut codes = vec![0; count * self.k];
        if self.packing == Packing::Awq {
            let words = self.codes.columns(source, first..last).await?;
            for (index, row) in rows.clone().enumerate() {
                for column in 0..self.k {
                    codes[index * self.k + column] = nibble(&words, column, row);
                }
            }
        } else {
            let words = self.codes.columns(source, rows.clone()).await?;
            for index in 0..count {
                for column in 0..self.k {
                    let word = (column / 8 * count + index) * 4;
                    codes[index * self.k + column] = words[word + column % 8 / 2] >> (4 * (column % 2)) & 15;
                }
            }
        }
        Ok(Unpacked { codes, scales, zeros })
    }

    async fn values(&self, source: &dyn Source, tensor: &str, rows: Range<usize>) -> Result<Vec<f32>, WeightsError> {
        let unpacked = self.unpack(source, &rows).await?;
        let groups = self.k / self.group;
        let order = match &self.order {
            None => None,
            Some(order) => {
                let bytes = order.rows(source, 0..1).await?;
                let order: Vec<usize> =
                    bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b) as usize).collect();
                if order.iter().any(|group| *group >= groups) {
                    return Err(WeightsError::Request {
                        tensor: tensor.to_owned(),
                        expected: format!("groups below {groups} in g_idx"),
                        got: "others".to_owned(),
                    });
                }
                Some(order)
            }
        };
        let mlx = matches!(self.packing, Packing::Mlx { .. });
        let value = |(index, &code): (usize, &u8)| {
            let (row, column) = (index / self.k, index % self.k);
            let group = row * groups + order.as_ref().map_or(column / self.group, |order| order[column]);
            let (scale, zero) = (unpacked.scales[group], unpacked.zeros[group]);
            if mlx { scale * f32::from(code) + zero } else { scale * (f32::from(code) - zero) }
        };
        Ok(unpacked.codes.iter().enumerate().map(value).collect())
    }

    /// Planes of q4_0 or q4_1; each group's scale is repeated for its blocks of 32.
    async fn planes(
        &self,
        source: &dyn Source,
        tensor: &str,
        rows: Range<usize>,
    ) -> Result<Option<Planes>, WeightsError> {
        let symmetric = matches!(self.packing, Packing::Gptq { symmetric: true, .. });
        if self.order.is_some() || self.packing == (Packing::Mlx { bits: 8 }) {
            return Ok(None);
        }
        let unpacked = self.unpack(source, &rows).await?;
        let mut planes = Planes::new(if symmetric { &formats::Q4_0 } else { &formats::Q4_1 }, self.k);
        planes.rows = rows.len();
        for (block, codes) in unpacked.codes.as_chunks::<32>().0.iter().enumerate() {
            let group = block * 32 / self.k * (self.k / self.group) + block * 32 % self.k / self.group;
            let (scale, zero) = (unpacked.scales[group], unpacked.zeros[group]);
            let half = |value: f32| {
                let index = (rows.start * self.k + block * 32) as u64;
                round_half(value).ok_or_else(|| WeightsError::Unrepresentable {
                    tensor: tensor.to_owned(),
                    index,
                    value,
                    format: planes.format.name(),
                })
            };
            if symmetric {
                if zero != 8.0 {
                    let expected =
                        "zero points of 8, as config.json says the quantization is symmetric (sym)".to_owned();
                    return Err(WeightsError::Request { tensor: tensor.to_owned(), expected, got: format!("{zero}") });
                }
                let scale = half(scale)?;
                push_nibbles(codes, &mut planes.bytes[0]);
                push_half(&mut planes.bytes[1], scale);
                continue;
            }
            let min = if matches!(self.packing, Packing::Mlx { .. }) { -zero } else { scale * zero };
            let (scale, min) = (half(scale)?, half(min)?);
            push_nibbles(codes, &mut planes.bytes[0]);
            push_half(&mut planes.bytes[1], scale);
            push_half(&mut planes.bytes[1], min);
        }
        Ok(Some(planes))
    }
}

impl RowReader for PackedMatrix {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_f32<'a>(
        &'a self,
        source: &'a dyn Source,
        tensor: &'a str,
        rows: Range<usize>,
    ) -> LocalFuture<'a, Result<Vec<f32>, WeightsError>> {
        Box::pin(self.values(source, tensor, rows))
    }

    fn read_planes<'a>(
        &'a self,
        source: &'a dyn Source,
        tensor: &'a str,
        rows: Range<usize>,
    ) -> LocalFuture<'a, Result<Option<Planes>, WeightsError>> {
        Box::pin(self.planes(source, tensor, rows))
    }
}
