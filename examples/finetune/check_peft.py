"""Holds an adapter trained by Bayan against PEFT: the same logits from transformers + PEFT as from `bayan conformance`.

    bayan merge embedded BASE --adapter ADAPTER:0 --format f32     # the base as transformers can read it
    python check_peft.py --bayan BAYAN --base BASE --adapter ADAPTER

Needs torch, transformers and peft. Prints the largest difference of a logit, the normalised mean squared error and the difference to
the base alone, which shows that the adapter does something; ends with 1 where the error is above 1e-6.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
arguments.add_argument("--bayan", default="bayan")
arguments.add_argument("--base", required=True)
arguments.add_argument("--adapter", required=True)
arguments = arguments.parse_args()

base = AutoModelForCausalLM.from_pretrained(arguments.base, dtype=torch.float32, attn_implementation="eager").eval()
vocabulary = base.config.vocab_size
ids = [(7 + 2654435761 * n) % vocabulary for n in range(48)]
with torch.no_grad():
    alone = base(torch.tensor([ids])).logits[0, -1]
    want = PeftModel.from_pretrained(base, arguments.adapter).eval()(torch.tensor([ids])).logits[0, -1]

request = {"version": 1, "model": os.path.abspath(arguments.base), "adapter": os.path.abspath(arguments.adapter)}
request["requests"] = [{"id": "a", "op": "logits", "ids": ids, "full_last": True}]
with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
    json.dump(request, file)
    file.flush()
    command = [arguments.bayan, "conformance", "--disable", "f16,dot", "--cache", "f32", "--request", file.name]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
got = torch.tensor(json.loads(output.splitlines()[-1])["responses"][0]["last_logits"])


def nmse(x, y):
    return float(((x - y) ** 2).sum() / (y**2).sum())


error = nmse(got, want)
print(f"largest difference {float((got - want).abs().max()):.2e}, nmse {error:.2e}; the base alone: nmse {nmse(alone, want):.2e}")
sys.exit(error > 1e-6)
