#!/usr/bin/env python3
"""The same training in PyTorch: same first weights, same tokens in the same order, same optimizer; and the two curves side by side.

    python pytorch.py prepare DIR              # DIR/model (config.json, tokenizer) and DIR/train.jsonl, the corpus in a random order
    bayan finetune --config recipe.toml --model DIR/model --data DIR/train.jsonl --output DIR/run
    bayan finetune --config recipe.toml --model DIR/model --data DIR/train.jsonl --dry-run=100000 --json > DIR/tokens.jsonl
    python pytorch.py compare DIR [--svg FILE]

`compare` begins from DIR/run/initial, which the run has left, takes ids and labels from the dry run, and the recipe from the run.
Needs torch and transformers.
"""
import argparse
import json
import math
import random
import shutil
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
EMBEDDED = HERE.parent.parent / "crates" / "embedded"


def prepare(place):
    model = place / "model"
    model.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "config.json", model)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(EMBEDDED / "checkpoint" / name, model)
    rows = [line for file in sorted((EMBEDDED / "corpus").glob("*.jsonl")) for line in file.read_text(encoding="utf-8").splitlines() if line]
    random.Random(7).shuffle(rows)
    (place / "train.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    print(f"{len(rows)} conversations in {place / 'train.jsonl'}")


def rate(step, recipe):
    """The learning rate of transformers' get_cosine_schedule_with_warmup."""
    warm, total = recipe["warmup_steps"], recipe["max_steps"]
    if step < warm:
        return recipe["learning_rate"] * step / max(warm, 1)
    return recipe["learning_rate"] * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(total - warm, 1)))


def batches(rows, size):
    import torch

    while True:
        for start in range(0, len(rows), size):
            group = rows[start:start + size]
            longest = max(len(row["ids"]) for row in group)
            pad = lambda key, value: torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in group])
            mask = torch.tensor([[1] * len(row["ids"]) + [0] * (longest - len(row["ids"])) for row in group])
            yield pad("ids", 0), pad("labels", -100), mask


def train(place, recipe, steps, double=False):
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(place / "run" / "initial", dtype=torch.float64 if double else torch.float32).train()
    lines = (json.loads(line) for line in open(place / "tokens.jsonl", encoding="utf-8"))
    rows = [line for line in lines if line.get("event") == "example"]
    params = list(model.parameters())
    decay = [p for p in params if p.dim() == 2]
    plain = [p for p in params if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": recipe["weight_decay"]}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe["learning_rate"], betas=(recipe["adam_beta1"], recipe["adam_beta2"]), eps=recipe["adam_epsilon"])
    data, losses = batches(rows, recipe["batch_size"]), []
    for step in range(steps):
        ids, labels, mask = next(data)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, recipe["max_grad_norm"])
        for group in optimizer.param_groups:
            group["lr"] = rate(step, recipe)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, sum(p.numel() for p in params)


def svg(ours, theirs):
    width, height, left, bottom = 640, 300, 40, 24
    top = max(ours + theirs)
    at = lambda i, v: f"{left + i * (width - left - 10) / max(len(ours) - 1, 1):.1f},{10 + (1 - v / top) * (height - bottom - 10):.1f}"
    line = lambda values, style: f'<polyline fill="none" {style} points="{" ".join(at(i, v) for i, v in enumerate(values))}"/>'
    ticks = "".join(f'<text x="{left - 6}" y="{10 + (1 - v / top) * (height - bottom - 10) + 4:.0f}" text-anchor="end">{v}</text>' for v in range(0, int(top) + 1, 2))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>{ticks}<text x="{left}" y="{height - 6}">step 0</text>'
        f'<text x="{width - 10}" y="{height - 6}" text-anchor="end">step {len(ours) - 1}</text>'
        + line(theirs, 'stroke="#e8a33d" stroke-width="5"') + line(ours, 'stroke="#1f5fa8" stroke-width="1.5"')
        + f'<text x="{width - 180}" y="30" fill="#b87a1d">PyTorch (wide)</text><text x="{width - 180}" y="48" fill="#1f5fa8">Bayan (narrow)</text></svg>\n')


def compare(place, file, steps):
    recipe = tomllib.loads((place / "run" / "recipe.toml").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in open(place / "run" / "train_log.jsonl", encoding="utf-8")]
    ours = [entry["loss"] for entry in log if entry.get("loss") is not None][:steps]
    theirs, count = train(place, recipe, len(ours))
    exact, _ = train(place, recipe, len(ours), double=True)
    print(f"{count} parameters, {len(ours)} steps of {recipe['batch_size']} conversations")
    print("| step | Bayan (f32) | PyTorch (f32) | PyTorch (f64) | Bayan − f64 | PyTorch f32 − f64 |\n| --- | --- | --- | --- | --- | --- |")
    shown = sorted({0, 1, 2, 5, 10, 20, 30, 50, 75, 100, 125, len(ours) - 1})
    for step in (step for step in shown if step < len(ours)):
        a, b, c = ours[step], theirs[step], exact[step]
        print(f"| {step} | {a:.6f} | {b:.6f} | {c:.6f} | {a - c:+.1e} | {b - c:+.1e} |")
    for name, values in (("Bayan", ours), ("PyTorch in f32", theirs)):
        off = [abs(a - b) for a, b in zip(values, exact)]
        print(f"{name} and PyTorch in f64: largest difference {max(off):.1e} (step {off.index(max(off))}), mean {sum(off) / len(off):.1e}")
    if file:
        Path(file).write_text(svg(ours, exact), encoding="utf-8")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["prepare", "compare"])
    p.add_argument("place", type=Path)
    p.add_argument("--svg", help="compare: a picture of the two curves")
    p.add_argument("--steps", type=int, help="compare: only so many steps, each of which PyTorch computes in f32 and in f64")
    a = p.parse_args()
    prepare(a.place) if a.what == "prepare" else compare(a.place, a.svg, a.steps)


if __name__ == "__main__":
    main()
