"""One LoRA training step after the other with PEFT on PyTorch's CPU backend, in f32; prints tokens a second as JSON.

python peft_step.py CHECKPOINT TOKENS RANK REPETITIONS THREADS CHECKPOINTING
"""

import json
import sys
import time

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model

directory, tokens, rank, repetitions, threads, recompute = sys.argv[1], *map(int, sys.argv[2:])
torch.set_num_threads(threads)
torch.manual_seed(1)
model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"))
if recompute:
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable()
model.train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
vocabulary = model.config.vocab_size
ids = torch.tensor([[n * 2654435761 % vocabulary for n in range(tokens)]])
samples = []
for repetition in range(repetitions + 1):
    started = time.perf_counter()
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if repetition > 0:  # the first one warms up
        samples.append(tokens / (time.perf_counter() - started))
print(json.dumps({"samples": samples, "loss": float(loss), "version": f"PEFT {peft.__version__}, PyTorch {torch.__version__}, {threads} threads"}))
