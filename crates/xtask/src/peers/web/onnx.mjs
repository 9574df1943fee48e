/**
 * A LLaMA checkpoint (safetensors in bf16) as ONNX with the operators that onnxruntime's own exporter uses for decoders: MatMulNBits of
 * 4 bits in blocks of 32, GroupQueryAttention with its rotation, SimplifiedLayerNormalization. Written by hand, protobuf included, because
 * the usual exporters need PyTorch; the file is what `transformers.js` expects as `onnx/model_q4.onnx`.
 */
import { closeSync, openSync, readFileSync, readSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

// Protobuf: fields of varints and of bytes.
function varint(value) {
  const bytes = [];
  for (let rest = BigInt.asUintN(64, BigInt(value)); ; rest >>= 7n) {
    if (rest < 128n) return Buffer.from([...bytes, Number(rest)]);
    bytes.push(Number(rest & 127n) | 128);
  }
}
const int = (field, value) => Buffer.concat([varint(field << 3), varint(value)]);
const bytes = (field, value) => [varint((field << 3) | 2), varint(size(value)), value];
const text = (field, value) => bytes(field, Buffer.from(value));
const float = (field, value) => { const four = Buffer.alloc(4); four.writeFloatLE(value); return Buffer.concat([varint((field << 3) | 5), four]); };
const size = (part) => (Array.isArray(part) ? part.reduce((sum, p) => sum + size(p), 0) : part.length);
const flat = (part) => (Array.isArray(part) ? part.flat(Infinity) : [part]);

const FLOAT = 1, UINT8 = 2, INT32 = 6, INT64 = 7;

const tensor = (name, type, dims, raw) => [dims.map((d) => int(1, d)), int(2, type), text(8, name), bytes(9, raw)];
const value = (name, type, dims) => [text(1, name), bytes(2, bytes(1, [int(1, type), bytes(2, dims.map((d) => bytes(1, typeof d === 'string' ? text(2, d) : int(1, d))))]))];

function attribute([name, value]) {
  if (Number.isInteger(value)) return [text(1, name), int(3, value), int(20, 2)];
  return [text(1, name), float(2, value.float), int(20, 1)];
}

class Graph {
  nodes = [];
  initializers = [];
  node(op, inputs, outputs, attributes = {}, domain = '') {
    const name = `${op}_${this.nodes.length}`;
    this.nodes.push([inputs.map((i) => text(1, i)), outputs.map((o) => text(2, o)), text(3, name), text(4, op), Object.entries(attributes).map((a) => bytes(5, attribute(a))), text(7, domain)]);
    return outputs[0];
  }
  constant(name, type, dims, raw) {
    this.initializers.push(tensor(name, type, dims, raw));
    return name;
  }
}

/** Tensors of a safetensors file as f32. */
class Weights {
  constructor(file) {
    this.file = openSync(file, 'r');
    const length = Buffer.alloc(8);
    readSync(this.file, length, 0, 8, 0);
    this.start = 8 + Number(length.readBigUInt64LE());
    const header = Buffer.alloc(this.start - 8);
    readSync(this.file, header, 0, header.length, 8);
    this.header = JSON.parse(header.toString());
  }
  get(name) {
    const { dtype, shape, data_offsets: [from, to] } = this.header[name];
    if (dtype !== 'BF16') throw new Error(`${name}: expected BF16, got ${dtype}`);
    const raw = Buffer.alloc(to - from);
    readSync(this.file, raw, 0, raw.length, this.start + from);
    const half = new Uint16Array(raw.buffer, raw.byteOffset, raw.length / 2);
    return { shape, values: new Float32Array(Uint32Array.from(half, (h) => h << 16).buffer) };
  }
}

const rawOf = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength);

/** Codes around 8 with one scale for 32 weights, two codes a byte. */
function quantize({ shape: [rows, columns], values }) {
  const blocks = (rows * columns) / 32;
  const [codes, scales] = [new Uint8Array(blocks * 16), new Float32Array(blocks)];
  for (let b = 0; b < blocks; b++) {
    let most = 0;
    for (let i = 0; i < 32; i++) if (Math.abs(values[b * 32 + i]) > Math.abs(most)) most = values[b * 32 + i];
    const scale = most / -8;
    scales[b] = scale;
    const code = (i) => (scale === 0 ? 8 : Math.min(15, Math.max(0, Math.round(values[b * 32 + i] / scale) + 8)));
    for (let i = 0; i < 16; i++) codes[b * 16 + i] = code(2 * i) | (code(2 * i + 1) << 4);
  }
  return { codes, scales, rows, columns };
}

export function writeOnnx(checkpoint, file) {
  const config = JSON.parse(readFileSync(join(checkpoint, 'config.json'), 'utf8'));
  const { hidden_size: hidden, num_hidden_layers: layers, num_attention_heads: heads, num_key_value_heads: kvHeads, vocab_size: vocabulary } = config;
  const [head, positions, epsilon] = [hidden / heads, config.max_position_embeddings, { float: config.rms_norm_eps }];
  const weights = new Weights(join(checkpoint, 'model.safetensors'));
  const graph = new Graph();
  const ms = 'com.microsoft';

  const linear = (input, name, label) => {
    const { codes, scales, rows, columns } = quantize(weights.get(name));
    const b = graph.constant(`${label}.codes`, UINT8, [rows, columns / 32, 16], rawOf(codes));
    const s = graph.constant(`${label}.scales`, FLOAT, [rows * (columns / 32)], rawOf(scales));
    return graph.node('MatMulNBits', [input, b, s], [`${label}.out`], { K: columns, N: rows, bits: 4, block_size: 32, accuracy_level: 4 }, ms);
  };
  const vector = (name) => { const { shape, values } = weights.get(name); return graph.constant(name, FLOAT, shape, rawOf(values)); };
  const angles = (of) => Float32Array.from({ length: positions * (head / 2) }, (_, i) => of(Math.floor(i / (head / 2)) * config.rope_theta ** (-2 * (i % (head / 2)) / head)));
  const cos = graph.constant('cos', FLOAT, [positions, head / 2], rawOf(angles(Math.cos)));
  const sin = graph.constant('sin', FLOAT, [positions, head / 2], rawOf(angles(Math.sin)));
  const one = graph.constant('one', INT64, [1], rawOf(BigInt64Array.of(1n)));
  const axis = graph.constant('axis', INT64, [], rawOf(BigInt64Array.of(1n)));

  const counted = graph.node('Sub', [graph.node('ReduceSum', ['attention_mask', one], ['mask.sum'], { keepdims: 0 }), one], ['mask.last']);
  const lengths = graph.node('Cast', [counted], ['lengths'], { to: INT32 });
  const total = graph.node('Cast', [graph.node('Gather', [graph.node('Shape', ['attention_mask'], ['mask.shape']), axis], ['mask.width'], { axis: 0 })], ['total'], { to: INT32 });

  const embedding = weights.get('model.embed_tokens.weight');
  let stream = graph.node('Gather', [graph.constant('embedding', FLOAT, embedding.shape, rawOf(embedding.values)), 'input_ids'], ['embedded']);
  let normed = graph.node('SimplifiedLayerNormalization', [stream, vector('model.layers.0.input_layernorm.weight')], ['norm.0'], { axis: -1, epsilon, stash_type: 1 });
  const addNorm = (added, weight, label) => {
    graph.node('SkipSimplifiedLayerNormalization', [stream, added, weight], [`${label}.norm`, '', '', `${label}.sum`], { epsilon }, ms);
    stream = `${label}.sum`;
    return `${label}.norm`;
  };
  const [inputs, outputs] = [[value('input_ids', INT64, ['batch_size', 'sequence_length']), value('attention_mask', INT64, ['batch_size', 'total_sequence_length'])], [value('logits', FLOAT, ['batch_size', 'sequence_length', vocabulary])]];
  for (let layer = 0; layer < layers; layer++) {
    const name = `model.layers.${layer}`;
    const [q, k, v] = ['q', 'k', 'v'].map((m) => linear(normed, `${name}.self_attn.${m}_proj.weight`, `${layer}.${m}`));
    const [past, present] = [['key', 'value'].map((m) => `past_key_values.${layer}.${m}`), ['key', 'value'].map((m) => `present.${layer}.${m}`)];
    inputs.push(...past.map((p) => value(p, FLOAT, ['batch_size', kvHeads, 'past_sequence_length', head])));
    outputs.push(...present.map((p) => value(p, FLOAT, ['batch_size', kvHeads, 'total_sequence_length', head])));
    const attended = graph.node('GroupQueryAttention', [q, k, v, ...past, lengths, total, cos, sin], [`${layer}.attention`, ...present], { num_heads: heads, kv_num_heads: kvHeads, do_rotary: 1, rotary_interleaved: 0 }, ms);
    normed = addNorm(linear(attended, `${name}.self_attn.o_proj.weight`, `${layer}.o`), vector(`${name}.post_attention_layernorm.weight`), `${layer}.post`);
    const [gate, up] = ['gate', 'up'].map((m) => linear(normed, `${name}.mlp.${m}_proj.weight`, `${layer}.${m}`));
    const silu = graph.node('Mul', [gate, graph.node('Sigmoid', [gate], [`${layer}.sigmoid`])], [`${layer}.silu`]);
    const down = linear(graph.node('Mul', [silu, up], [`${layer}.product`]), `${name}.mlp.down_proj.weight`, `${layer}.down`);
    const next = layer + 1 < layers ? `model.layers.${layer + 1}.input_layernorm.weight` : 'model.norm.weight';
    normed = addNorm(down, vector(next), `${layer}.end`);
  }
  const head4 = linear(normed, 'model.embed_tokens.weight', 'head');
  graph.node('Identity', [head4], ['logits']);

  const parts = [graph.nodes.map((n) => bytes(1, n)), text(2, 'decoder'), graph.initializers.map((t) => bytes(5, t)), inputs.map((v) => bytes(11, v)), outputs.map((v) => bytes(12, v))];
  const model = [int(1, 10), text(2, 'bayan peers'), bytes(7, parts), bytes(8, [text(1, ''), int(2, 21)]), bytes(8, [text(1, ms), int(2, 1)])];
  closeSync(weights.file);
  writeFileSync(file, Buffer.concat(flat(model)));
}
