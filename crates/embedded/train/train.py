"""Trains the demonstration model on the CPU and writes it as a Hugging Face checkpoint.

Batches hold whole conversations of similar length, right-padded: every conversation begins at
position 0, as it will in use, and causality alone keeps the padding out. (Packing several
conversations into one row saved no time here and lets each attend to strangers.) The loss covers
what the assistant says and the <|im_end|> that ends it. In the last part of the run every second
step sees the matrices through a q4_0 round trip (gradients pass straight through), so that the
weights settle where quantization does little harm.

Several single-threaded workers average their gradients once a step: on cores shared with other
work this loses far less than the threads of one process, which wait for each other at every
operation.

    python train.py --data /tmp/widened.jsonl --out /tmp/embedded-f16 --minutes 35

With `--start` a run goes on from another checkpoint's weights, at a lower `--rate`.
"""

import argparse
import json
import math
import random
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import quant
import text
from model import Qwen3

HERE = Path(__file__).resolve().parent


def encode(tok, conversation):
    """(ids, targets): the targets are -1 wherever the assistant is not speaking."""
    ids, own = [], []
    start, end = tok.token_to_id("<|im_start|>"), tok.token_to_id("<|im_end|>")
    newline = tok.encode("\n").ids
    for m in conversation["messages"]:
        head = [start] + tok.encode(m["role"] + "\n").ids
        body = tok.encode(m["content"]).ids + [end]
        speaking = m["role"] == "assistant"
        ids += head + body + newline
        own += [False] * len(head) + [speaking] * len(body) + [False] * len(newline)
    return ids, [i if o else -1 for i, o in zip(ids, own)]


def batches(rows, size, rng):
    """One epoch of right-padded batches of about `size` tokens, in random order."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i][0]) + rng.random() * 6))
    out, group, longest = [], [], 0
    for i in order:
        n = len(rows[i][0])
        if group and (len(group) + 1) * max(longest, n) > size:
            out.append(group)
            group, longest = [], 0
        group.append(i)
        longest = max(longest, n)
    out.append(group)
    rng.shuffle(out)
    return out


def tensors(rows, group):
    longest = max(len(rows[i][0]) for i in group)
    ids = torch.zeros(len(group), longest, dtype=torch.long)
    targets = torch.full((len(group), longest), -1, dtype=torch.long)
    for r, i in enumerate(group):
        n = len(rows[i][0])
        ids[r, :n] = torch.tensor(rows[i][0])
        targets[r, :n] = torch.tensor(rows[i][1])
    return ids[:, :-1], targets[:, 1:]


def export(model, config, out, tok):
    """config.json, generation_config.json and model.safetensors (f16) in `out`."""
    c = config["model"]
    state = {k: v.detach().half().contiguous() for k, v in model.state_dict().items()}
    save_file(state, str(out / "model.safetensors.part"), metadata={"format": "pt"})
    (out / "model.safetensors.part").chmod(0o644)
    (out / "model.safetensors.part").replace(out / "model.safetensors")
    end, text_end = tok.token_to_id("<|im_end|>"), tok.token_to_id("<|endoftext|>")
    (out / "config.json").write_text(json.dumps({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **c, "hidden_act": "silu",
        "attention_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": True, "use_sliding_window": False,
        "sliding_window": None, "max_window_layers": c["num_hidden_layers"], "rope_scaling": None,
        "initializer_range": 0.02, "use_cache": True, "bos_token_id": text_end, "eos_token_id": end,
        "pad_token_id": text_end, "torch_dtype": "float16"}, indent=2) + "\n")
    (out / "generation_config.json").write_text(json.dumps({
        "eos_token_id": [end, text_end], "pad_token_id": text_end, "do_sample": True, "temperature": 0.3,
        "top_k": 20, "top_p": 0.9, "max_new_tokens": 192}, indent=2) + "\n")


def optimizer(model, config):
    decay = [p for p in model.parameters() if p.dim() == 2]
    plain = [p for p in model.parameters() if p.dim() != 2]
    return torch.optim.AdamW([{"params": decay, "weight_decay": config["weight_decay"]}, {"params": plain, "weight_decay": 0.0}],
                             lr=config["learning_rate"], betas=tuple(config["betas"]), fused=True)


def rate(step, done, c):
    """Warm-up by steps, then a cosine over the part `done` of the run."""
    if step < c["warmup_steps"]:
        return c["learning_rate"] * (step + 1) / c["warmup_steps"]
    return c["final_learning_rate"] + (c["learning_rate"] - c["final_learning_rate"]) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def loss_of(model, ids, targets, bf16):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        hidden = model(ids)
        keep = targets.reshape(-1) >= 0
        scores = model.logits(hidden.reshape(-1, hidden.shape[-1])[keep])
    return F.cross_entropy(scores.float(), targets.reshape(-1)[keep])


def gather(model, world, progress):
    """Averages the gradients over the workers; gives worker 0's `progress` to all of them."""
    grads = [p.grad for p in model.parameters()]
    flat = torch.cat([g.reshape(-1) for g in grads] + [torch.tensor([progress if dist.get_rank() == 0 else 0.0])])
    dist.all_reduce(flat)
    at = 0
    for g in grads:
        g.copy_((flat[at:at + g.numel()] / world).view_as(g))
        at += g.numel()
    return float(flat[-1])


def worker(rank, world, a, meeting):
    config = json.loads((HERE / "config.json").read_text())
    if a.f32:
        config["bf16_autocast"] = False
    if a.rate:
        config["learning_rate"] = a.rate
    if a.start:
        config["quantized_from"] = 0.0
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    torch.manual_seed(config["seed"])
    rng, out = random.Random(config["seed"]), Path(a.out)
    tok = Tokenizer.from_file(str(out / "tokenizer.json"))
    rows = [encode(tok, c) for c in text.read(a.data)]
    rows = [r for r in rows if len(r[0]) <= config["model"]["max_position_embeddings"]]
    model = Qwen3(config["model"], config["dropout"])
    if a.start:
        state = load_file(str(Path(a.start) / "model.safetensors"))
        model.load_state_dict({k: v.float() for k, v in state.items()}, strict=True)
    torch.manual_seed(config["seed"] + rank)
    opt = optimizer(model, config)
    log = open(a.log, "w") if rank == 0 else None

    def note(**row):
        if log:
            log.write(json.dumps(row) + "\n")
            log.flush()

    per_epoch = len(batches(rows, config["tokens_per_batch"], random.Random(0))) // world
    note(conversations=len(rows), tokens=sum(len(r[0]) for r in rows), own=sum(t >= 0 for r in rows for t in r[1]),
         parameters=sum(p.numel() for p in model.parameters()), workers=world, steps_per_epoch=per_epoch)
    began, step, done, seen, recent, saved, queue = time.time(), 0, 0.0, 0, [], 0.0, []
    while done < 1.0:
        if len(queue) < world:
            queue = batches(rows, config["tokens_per_batch"], rng)
        group, queue = queue[rank], queue[world:]
        for g in opt.param_groups:
            g["lr"] = rate(step, done, config)
        ids, targets = tensors(rows, group)
        kept = []
        for w, rounded in (quant.round_trip(model, "q4_0") if done >= config["quantized_from"] and step % 2 else {}).items():
            kept.append((w, w.data))
            w.data = rounded
        loss = loss_of(model, ids, targets, config["bf16_autocast"])
        loss.backward()
        for w, data in kept:
            w.data = data
        passed = time.time() - began
        done = gather(model, world, (step + 1) / a.steps if a.steps else passed / (60 * a.minutes))
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config["gradient_clip"])
        opt.step()
        opt.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + ids.numel() * world
        recent.append(loss.item())
        if step % 50 == 0 or done >= 1.0:
            note(step=step, epoch=round(step / per_epoch, 2), done=round(done, 4), loss=round(sum(recent) / len(recent), 4),
                 norm=round(float(norm), 3), lr=round(rate(step, done, config), 6), positions=seen, seconds=round(passed, 1))
            recent = []
        if rank == 0 and (time.time() - saved > 120 or done >= 1.0):
            export(model, config, out, tok)
            saved = time.time()
    dist.destroy_process_group()


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--data", required=True)
    p.add_argument("--out", required=True, help="checkpoint directory; tokenizer.json is already in it")
    p.add_argument("--log", default=str(HERE / "log.jsonl"))
    p.add_argument("--minutes", type=float, help="fit the schedule to this time")
    p.add_argument("--steps", type=int, help="or to this many steps (then the run repeats exactly)")
    p.add_argument("--workers", type=int, default=3)
    p.add_argument("--start", help="checkpoint in f16 or f32 whose weights the run begins with; rounded ones are seen from its first step on")
    p.add_argument("--f32", action="store_true", help="compute in f32: far quicker on processors without bf16 products")
    p.add_argument("--rate", type=float, help="highest learning rate, instead of config.json's")
    a = p.parse_args()
    if (a.minutes is None) == (a.steps is None):
        p.error("give either --minutes or --steps")
    with tempfile.TemporaryDirectory() as d:
        torch.multiprocessing.spawn(worker, (a.workers, a, d + "/meet"), nprocs=a.workers)


if __name__ == "__main__":
    main()
