"""Round trips through the 32-weight block formats, in PyTorch, for training and evaluation."""

import torch


def q8_0(w):
    """Symmetric 8 bits: scale = max|w| / 127, kept in f16."""
    x = w.reshape(-1, 32)
    d = (x.abs().amax(1, keepdim=True) / 127).half().float()
    q = torch.where(d > 0, (x / d.clamp_min(1e-30)).round().clamp(-127, 127), torch.zeros_like(x))
    return (q * d).reshape(w.shape)


def q4_0(w):
    """4 bits, -8..7: the weight of largest magnitude takes -8, whichever its sign."""
    x = w.reshape(-1, 32)
    top = x.gather(1, x.abs().argmax(1, keepdim=True))
    d = (top / -8).half().float()
    q = torch.where(d != 0, (x / torch.where(d == 0, torch.ones_like(d), d)).round().clamp(-8, 7), torch.zeros_like(x))
    return (q * d).reshape(w.shape)


def round_trip(model, name):
    """{parameter: what it reads as from a checkpoint quantized to `name`}. The embedding (also the
    output head) is stored in q8_0 beside q4_0, as `bayan quantize` does; norms are not quantized."""
    linear = {"q8_0": q8_0, "q4_0": q4_0}[name]
    return {p: (q8_0 if "embed_tokens" in n else linear)(p.data) for n, p in model.named_parameters() if p.dim() == 2}
