#!/usr/bin/env python3
"""Writes the seeds of the fuzz targets: the smallest files that reach most of each parser. Needs gguf, numpy, torch, safetensors."""
import gzip
import io
import json
import os
import struct

import gguf
import numpy as np
import torch
from safetensors.numpy import save

HERE = os.path.dirname(os.path.abspath(__file__))
FIXTURES = os.path.join(HERE, "..", "tests", "fixtures")
SPLIT = b"\xff\xff"


def seed(target, name, data):
    d = os.path.join(HERE, "seeds", target)
    os.makedirs(d, exist_ok=True)
    with open(os.path.join(d, name), "wb") as f:
        f.write(data)


def tiny_gguf(arch, spm):
    path = os.path.join(HERE, "seeds", "tiny.gguf")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    g = gguf.GGUFWriter(path, arch)
    g.add_block_count(1)
    g.add_context_length(64)
    g.add_embedding_length(32)
    g.add_feed_forward_length(32)
    g.add_head_count(2)
    g.add_layer_norm_rms_eps(1e-5)
    g.add_rope_freq_base(10000.0)
    g.add_bos_token_id(1)
    g.add_eos_token_id(2)
    if spm:
        g.add_tokenizer_model("llama")
        g.add_token_list(["<unk>", "<s>", "</s>", "<0x41>", "\u2581", "a", "\u2581a"])
        g.add_token_scores([0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -0.5])
        g.add_token_types([2, 3, 3, 6, 1, 1, 1])
    else:
        g.add_tokenizer_model("gpt2")
        g.add_tokenizer_pre("llama-bpe")
        g.add_token_list(["a", "<s>", "</s>", "b", "ab"])
        g.add_token_types([1, 3, 3, 1, 1])
        g.add_token_merges(["a b"])
    g.add_chat_template("{{ messages[0].content }}")
    q8 = lambda n: gguf.quants.quantize(np.linspace(-1, 1, n * 32, dtype=np.float32).reshape(n, 32), gguf.GGMLQuantizationType.Q8_0)
    g.add_tensor("token_embd.weight", q8(7 if spm else 5), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    g.add_tensor("blk.0.attn_q.weight", q8(32), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    q4 = np.zeros((1, 144), np.uint8)
    g.add_tensor("blk.0.ffn_gate.weight", q4, raw_dtype=gguf.GGMLQuantizationType.Q4_K)
    g.add_tensor("output_norm.weight", np.ones(32, np.float32))
    g.write_header_to_file()
    g.write_kv_data_to_file()
    g.write_tensors_to_file()
    g.close()
    data = open(path, "rb").read()
    os.remove(path)
    return data


def varint(n):
    out = b""
    while n >= 128:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def sentencepiece():
    field = lambda number, data: varint(number << 3 | 2) + varint(len(data)) + data
    piece = lambda text, score, kind: field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + varint(kind))
    pieces = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3) + piece("<0x41>", 0, 6) + piece("\u2581", -1, 1) + piece("a", -2, 1) + piece("\u2581a", -0.5, 1)
    return pieces + field(2, b"\x18\x02" + varint(35 << 3) + b"\x01") + field(3, b"\x18\x01\x20\x00")


if __name__ == "__main__":
    seed("gguf", "llama-spm", tiny_gguf("llama", True))
    seed("gguf", "gemma-bpe", tiny_gguf("gemma", False))
    for name, state in [("plain", {"a": torch.ones(2, 3)}), ("kinds", {"state_dict": {"b": torch.ones(2).half(), "c": torch.nn.Parameter(torch.ones(1).bfloat16())}})]:
        out = io.BytesIO()
        torch.save(state, out)
        seed("torch", name, out.getvalue())
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": 3, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}],
        "normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
                  "byte_fallback": False, "vocab": {"a": 0, "b": 1, "ab": 2, "<s>": 3}, "merges": [["a", "b"]]},
    }
    seed("tokenizer", "bpe", json.dumps(tokenizer).encode() + SPLIT + b'{"bos_token": "<s>", "add_bos_token": true}')
    seed("sentencepiece", "bpe", sentencepiece())
    messages = b'[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'
    for name in ("llama2_mha", "qwen2_bias"):
        text = json.load(open(os.path.join(FIXTURES, "models", name, "tokenizer_config.json"), encoding="utf-8"))["chat_template"]
        seed("template", name, text.encode() + SPLIT + messages)
    for name in ("llama3_gqa", "qwen2_yarn", "gemma3_text", "mistral_swa"):
        seed("config", name, open(os.path.join(FIXTURES, "models", name, "config.json"), "rb").read())
    weights = save({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)})
    seed("safetensors", "two", weights)
    index = b'{"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}'
    parts = [b"{}", index, save({"a": np.ones((2, 3), np.float32)}), save({"b": np.ones(4, np.float16)})]
    seed("checkpoint", "shards", SPLIT.join(parts))
    config = json.dumps({"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32}}).encode()
    small = {"m.qweight": np.zeros((32, 1), np.int32), "m.qzeros": np.zeros((1, 1), np.int32), "m.scales": np.ones((1, 8), np.float16)}
    seed("checkpoint", "awq", SPLIT.join([config, b'{"weight_map": {"m.qweight": "a.safetensors", "m.qzeros": "a.safetensors", "m.scales": "a.safetensors"}}', save(small), b""]))
    adapter = b'{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}'
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    lora = {f"{prefix}.lora_A.weight": np.ones((1, 2), np.float32), f"{prefix}.lora_B.weight": np.ones((3, 1), np.float32)}
    seed("adapter", "one", adapter + SPLIT + save(lora))
    rows = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n{"prompt": "a", "completion": "b"}\n'
    seed("data", "messages", b"\x01" + rows)
    seed("data", "list", b"\x00" + b'[{"instruction": "a", "input": "", "output": "b", "history": [["c", "d"]]}]')
    seed("data", "table", b"\x02" + b'question,answer\na,"b ""c"""\n')
    seed("data", "squeezed", b"\x04" + gzip.compress(b'[{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]', mtime=0))
    seed("recipe", "toml", b"\x00" + b'rank = 8\ntarget_modules = ["q_proj"]\nlearning_rate = 1e-4\nrank_pattern = { "layers.0" = 4 }\n')
    seed("recipe", "yaml", b"\x01" + b"preset: barka\nepochs: 1\nlr_scheduler_type: linear\n")
