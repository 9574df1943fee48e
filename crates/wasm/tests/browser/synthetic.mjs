/**
 * A checkpoint of any size that is stored nowhere: each read computes the bytes it returns. The weights are small
 * numbers that repeat; tokenizer and template are the embedded model's.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

const BLOCK = 1 << 20;

/** Random bf16 numbers around 0, the same in every run. */
function noise() {
  const values = new Uint16Array(BLOCK / 2);
  let state = 1;
  for (let i = 0; i < values.length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    // Sign, an exponent of about 2^-6, and some mantissa.
    values[i] = ((state >>> 31) << 15) | (0x3c80 + ((state >>> 16) & 0x7f));
  }
  return Buffer.from(values.buffer);
}

export function synthetic(embedded, { hidden, intermediate, layers, heads, vocabulary }) {
  const config = {
    model_type: 'llama',
    architectures: ['LlamaForCausalLM'],
    hidden_size: hidden,
    intermediate_size: intermediate,
    num_hidden_layers: layers,
    num_attention_heads: heads,
    num_key_value_heads: heads,
    vocab_size: vocabulary,
    max_position_embeddings: 512,
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    tie_word_embeddings: true,
    hidden_act: 'silu',
    torch_dtype: 'bfloat16',
  };
  const shapes = {
    'model.embed_tokens.weight': [vocabulary, hidden],
    'model.norm.weight': [hidden],
  };
  for (let layer = 0; layer < layers; layer++) {
    const name = `model.layers.${layer}`;
    for (const norm of ['input_layernorm', 'post_attention_layernorm']) shapes[`${name}.${norm}.weight`] = [hidden];
    for (const m of ['q', 'k', 'v', 'o']) shapes[`${name}.self_attn.${m}_proj.weight`] = [hidden, hidden];
    for (const m of ['gate', 'up']) shapes[`${name}.mlp.${m}_proj.weight`] = [intermediate, hidden];
    shapes[`${name}.mlp.down_proj.weight`] = [hidden, intermediate];
  }
  let end = 0;
  const tensors = Object.entries(shapes).map(([name, shape]) => {
    const from = end;
    end += 2 * shape.reduce((a, b) => a * b, 1);
    return [name, { dtype: 'BF16', shape, data_offsets: [from, end] }];
  });
  let json = JSON.stringify(Object.fromEntries(tensors));
  json += ' '.repeat((8 - (json.length % 8)) % 8);
  const header = Buffer.alloc(8 + json.length);
  header.writeBigUInt64LE(BigInt(json.length));
  header.write(json, 8);
  const block = noise();
  const small = Object.fromEntries(
    ['tokenizer.json', 'tokenizer_config.json'].map((name) => [name, readFileSync(join(embedded, name))]),
  );
  small['config.json'] = Buffer.from(JSON.stringify(config));
  const weights = (from, to) => {
    const out = Buffer.alloc(to - from);
    if (from < header.length) header.copy(out, 0, from, Math.min(to, header.length));
    for (let at = Math.max(from, header.length); at < to;) {
      const inside = (at - header.length) % BLOCK;
      at += block.copy(out, at - from, inside, inside + Math.min(BLOCK - inside, to - at));
    }
    return out;
  };
  return {
    sizes: {
      ...Object.fromEntries(Object.entries(small).map(([name, bytes]) => [name, bytes.length])),
      'model.safetensors': header.length + end,
    },
    largestTensorBytes: 2 * vocabulary * hidden,
    read: (file, from, to) => (file === 'model.safetensors' ? weights(from, to) : small[file].subarray(from, to)),
  };
}
