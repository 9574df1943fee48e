"""Trains the byte-level BPE of the demonstration model on the widened conversations.

No normaliser: bytes in, the same bytes out. The pre-tokenizer is the GPT-2 family's, with one
difference that matters for Arabic: combining marks (\\p{M}) stay with their letters, so tashkeel
does not cut a word into pieces. Digits stand alone, so that sums are read digit by digit.

    python tokenizer.py --data /tmp/widened.jsonl --out /tmp/embedded-f16
"""

import argparse
import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import text

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}"
           r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEMPLATE = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
            "+ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--data", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--vocab", type=int, default=4096)
    a = p.parse_args()
    tok = Tokenizer(models.BPE(unk_token=None, byte_fallback=False))
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    # The hand-written text counts four times: generated phrasings repeat the same words.
    texts = [m["content"] for c in text.read(a.data) for m in c["messages"]]
    texts += [m["content"] for c in text.corpus() for m in c["messages"]] * 4
    tok.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=a.vocab, special_tokens=SPECIAL, min_frequency=2, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    assert tok.get_vocab_size() == a.vocab, tok.get_vocab_size()
    out = Path(a.out)
    out.mkdir(parents=True, exist_ok=True)
    tok.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, "add_bos_token": False,
        "add_prefix_space": False, "bos_token": None, "unk_token": None, "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>", "clean_up_tokenization_spaces": False, "errors": "replace",
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "added_tokens_decoder": {str(tok.token_to_id(s)): {
            "content": s, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": True} for s in SPECIAL},
        "chat_template": TEMPLATE}
    (out / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    n = sum(len(tok.encode(t).ids) for t in texts)
    words = sum(len(t.split()) for t in texts)
    for t in texts[:200]:
        assert tok.decode(tok.encode(t).ids, skip_special_tokens=False) == t
    print(f"{a.vocab} tokens; {n / words:.3f} tokens a word, {sum(map(len, texts)) / n:.2f} characters a token")


if __name__ == "__main__":
    main()
