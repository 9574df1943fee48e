"""Greedy answers to the held-out questions, checked for their facts, topic by topic.

An answer is right when, for each fact, one of its alternatives occurs in it (both normalised).
Run on the checkpoint as stored, and after simulated q8_0 and q4_0 round trips of its matrices.

    python evaluate.py --model /tmp/embedded-f16 [--json scores.json] [--show] [--reference]
"""

import argparse
import collections
import json
import random
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import quant
import text
from model import Qwen3


def load(directory):
    directory = Path(directory)
    c = json.loads((directory / "config.json").read_text())
    model = Qwen3(c)
    state = {k: v.float() for k, v in load_file(str(directory / "model.safetensors")).items()}
    model.load_state_dict(state, strict=True)
    return model.eval(), Tokenizer.from_file(str(directory / "tokenizer.json"))


def prompt(tok, messages):
    body = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return tok.encode(body + "<|im_start|>assistant\n").ids


def answer(model, tok, messages):
    stop = {tok.token_to_id("<|im_end|>"), tok.token_to_id("<|endoftext|>")}
    return tok.decode(model.greedy(prompt(tok, messages), stop), skip_special_tokens=True)


def right(reply, facts):
    reply = text.normalise(reply)
    return all(any(text.normalise(x) in reply for x in alternatives) for alternatives in facts)


def score(model, tok, items):
    """({"part/topic": [right, asked]}, [(part, question, reply)] of the wrong ones)."""
    table, wrong = collections.OrderedDict(), []
    for part, item in items:
        reply = answer(model, tok, item["messages"])
        good = right(reply, item["facts"])
        for key in (f"{part}/{item['topic']}", part, "all"):
            cell = table.setdefault(key, [0, 0])
            cell[0] += good
            cell[1] += 1
        if not good:
            wrong.append((part, item["messages"][-1]["content"], reply))
    return table, wrong


def conversations(model, tok):
    """Number of held-out conversations whose answers are all right, each after the model's own earlier ones."""
    good = 0
    for turns in text.heldout_conversations():
        messages, fine = [], True
        for turn in turns:
            messages.append({"role": "user", "content": turn["content"]})
            messages.append({"role": "assistant", "content": answer(model, tok, messages)})
            fine = fine and right(messages[-1]["content"], turn["facts"])
        good += fine
    return good


def after_others(model, tok, items, before, seed=1):
    """Number of questions answered right after `before` others, with the model's own answers to them."""
    rng, good = random.Random(seed), 0
    for _, item in items:
        messages = []
        for _, other in rng.sample(items, before):
            messages += other["messages"]
            messages.append({"role": "assistant", "content": answer(model, tok, messages)})
        good += right(answer(model, tok, messages + item["messages"]), item["facts"])
    return good


def reference(directory, model, tok):
    """Largest difference between these logits and transformers' on one prompt."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    hf = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ht = AutoTokenizer.from_pretrained(directory)
    messages = [{"role": "user", "content": "ما عاصمةُ مِصرَ؟ ١٢ and 34"}]
    ids = prompt(tok, messages)
    assert ht.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False) == ids
    with torch.no_grad():
        ours, theirs = model.logits(model(torch.tensor([ids]))), hf(torch.tensor([ids])).logits
    return float((ours - theirs).abs().max())


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", required=True)
    p.add_argument("--json")
    p.add_argument("--show", action="store_true", help="print the wrong answers")
    p.add_argument("--after", type=int, nargs="*", help="also ask each question after so many others")
    p.add_argument("--reference", action="store_true", help="also compare with transformers")
    p.add_argument("--only", help="one of f32, q8_0, q4_0")
    p.add_argument("--ask", nargs="*", help="answer these instead")
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    model, tok = load(a.model)
    if a.ask:
        for q in a.ask:
            print(q, "→", answer(model, tok, [{"role": "user", "content": q}]))
        return
    if a.reference:
        print("largest logit difference from transformers:", reference(a.model, model, tok))
    items, results = text.heldout(), {}
    if a.after is not None:
        print("conversations right:", conversations(model, tok), "of", len(text.heldout_conversations()), flush=True)
        for before in a.after:
            print("after", before, "others:", after_others(model, tok, items, before), "of", len(items), flush=True)
    stored = {p: p.data for p in model.parameters()}
    for name in [a.only] if a.only else ["f32", "q8_0", "q4_0"]:
        for q, data in (quant.round_trip(model, name) if name != "f32" else stored).items():
            q.data = data
        table, wrong = score(model, tok, items)
        for q, data in stored.items():
            q.data = data
        results[name] = {k: {"right": v[0], "asked": v[1], "percent": round(100 * v[0] / v[1], 1)} for k, v in table.items()}
        print(name, {k: f"{v['right']}/{v['asked']}" for k, v in results[name].items()}, flush=True)
        for w in wrong if a.show else []:
            print("  ", *w, sep=" | ")
    if a.json:
        Path(a.json).write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(main())
