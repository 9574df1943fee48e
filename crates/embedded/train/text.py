"""Reading the corpus and comparing Arabic text without its spelling variants.

Two texts are the same question here when they differ only in tashkeel, punctuation, the seat
of the hamza on alef, alef maqsura against ya, ta marbuta against ha, digit style or spacing.
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_MARKS = re.compile("[\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0640]")
_FOLD = str.maketrans("أإآٱىةئؤ٠١٢٣٤٥٦٧٨٩", "اااايهيو0123456789")
_OTHER = re.compile(r"[^\w]+")


def normalise(text):
    """`text` reduced to what two spellings of the same words share."""
    text = _MARKS.sub("", text.lower()).translate(_FOLD)
    return _OTHER.sub(" ", text).strip()


def strip_marks(text):
    return _MARKS.sub("", text)


def read(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f if line.strip()]


def corpus():
    """Every hand-written conversation, in file order."""
    out = []
    for path in sorted((ROOT / "corpus").glob("*.jsonl")):
        out += read(path)
    return out


def heldout():
    """The held-out questions: [(part, item)]."""
    out = []
    for path in sorted((ROOT / "heldout").glob("?.jsonl")):
        out += [(path.stem, item) for item in read(path)]
    return out


def heldout_conversations():
    """The held-out conversations: of each, its turns, with "content" and "facts"."""
    return [item["turns"] for item in read(ROOT / "heldout" / "conversations.jsonl")]
