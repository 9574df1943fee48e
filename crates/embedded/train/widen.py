"""Widens the hand-written corpus into training conversations (JSON lines), from a seed.

Answers are the hand-written ones, or come from a table or a sum; only the user's side is varied:
other phrasings of the same relation, polite beginnings and endings, vocatives, dialect question
words, spelling without hamza or punctuation, tashkeel. Single exchanges are then composed into
conversations of several turns. No user turn may equal a held-out question (see `text.normalise`),
nor may one be made by adding a prefix, a suffix or a spelling change to a held-out question; and
no conversation has the user turns of a held-out one.

    python widen.py --out /tmp/widened.jsonl
"""

import argparse
import collections
import json
import random
import re

import sums
import tables
import text

TASHKEEL = "\u064b\u064c\u064d\u064e\u064f\u0650\u0651\u0652"
ASK = ("ما ", "ماذا ", "من ", "كم ", "أين ", "متى ", "كيف ", "لماذا ", "أي ", "هل ", "بماذا ", "مم ", "في أي ")
ORDER = ("اذكر", "أعطني", "هات", "احسب", "اجمع", "ترجم", "اشرح", "أكمل", "كمل", "قل", "احك", "عد", "عرف", "أخبرني")
TELL = ["قل لي {q}", "أخبرني {q}", "أريد أن أعرف {q}", "ممكن تقول لي {q}", "هل تعرف {q}", "هل يمكن أن تخبرني {q}",
        "عندي سؤال: {q}", "سؤال: {q}", "لدي سؤال، {q}", "هل تعلم {q}", "يا ترى {q}", "{q} يا ترى؟"]
POLITE = ["من فضلك {q}", "من فضلك، {q}", "لو سمحت {q}", "لو سمحت، {q}", "{q} من فضلك", "{q} لو سمحت", "رجاء {q}", "{q} رجاء",
          "ممكن {q}", "بعد إذنك {q}"]
CALL = ["{q} يا بيان", "{q} يا صديقي", "يا بيان {q}", "يا بيان، {q}", "{q} يا أخي", "{q} يا عزيزي", "{q} يا صاحبي"]
CALL_DIALECT = ["{q} يا بيان", "{q} يا صاحبي", "{q} يا صديقي", "{q} خويا", "{q} يا غالي", "{q} حبيبي", "{q} يا أخي", "{q} عيني", "{q} يا باشا"]
HELLO = [("السلام عليكم", "وعليكم السلام!"), ("السلام عليكم ورحمة الله", "وعليكم السلام ورحمة الله!"), ("سلام عليكم", "وعليكم السلام!"),
         ("مرحبا", "مرحبا بك!"), ("أهلا", "أهلا بك!"), ("صباح الخير", "صباح النور!"), ("مساء الخير", "مساء النور!"),
         ("مرحبا يا بيان", "مرحبا بك!"), ("هلا", "أهلا بك!")]
DIALECT_WHAT = ["شو ", "ايش ", "وش ", "ايه ", "شنو "]
SYSTEM = ["أنت بيان، مساعد عربي.", "أنت مساعد مفيد.", "أجب بالعربية.", "أنت نموذج لغوي عربي صغير اسمه بيان.",
          "أجب باختصار.", "You are a helpful assistant."]
FACTS = {"capitals", "currencies", "geography", "numbers", "calendar", "nature", "recipes", "proverbs", "grammar", "words"}


class Widener:
    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.banned = {text.normalise(m["content"]) for _, i in text.heldout() for m in i["messages"] if m["role"] == "user"}
        self.held = {tuple(text.normalise(t["content"]) for t in turns) for turns in text.heldout_conversations()}
        self.dropped = collections.Counter()
        conversations = [c for c in text.corpus()]
        self.multi = [c for c in conversations if len(c["messages"]) > 2]
        self.groups = collections.OrderedDict()
        for c in conversations:
            if len(c["messages"]) == 2:
                q, a = (m["content"] for m in c["messages"])
                self.groups.setdefault((c["topic"], a), []).append(q)
        self.known = {text.normalise(q) for qs in self.groups.values() for q in qs}

    def allowed(self, q):
        if text.normalise(q) in self.banned:
            self.dropped["heldout"] += 1
            return False
        return True

    # -- phrasings ------------------------------------------------------------------------

    def siblings(self, topic, answer, questions):
        """Other phrasings of a fact, from the relation its answer or its questions state."""
        out = []
        for _, pattern, forms in tables.RELATIONS:
            m = re.match(pattern, answer)
            if m and topic not in ("dialect", "multiturn"):
                out += [f.format(x=m[1]) for f in forms]
        for _, topics, pattern, forms in tables.QUESTION_RELATIONS:
            if topic not in topics:
                continue
            for x in dict.fromkeys(m[1].strip(" ؟") for q in questions if (m := re.match(pattern, q))):
                out += [f.format(x=x) for f in forms]
        return out

    def reword(self, topic, q):
        """One small change of wording that keeps the meaning of any question."""
        rng, bare = self.rng, q.rstrip("؟?!. ")
        mark = "؟" if q.endswith("؟") else ""
        choices = []
        if q.startswith(("ما هو ", "ما هي ")):
            choices += ["ما " + q[6:], rng.choice(DIALECT_WHAT) + bare[6:]]
        elif q.startswith("ما ") and topic in FACTS:
            first = q.split()[1].rstrip("؟")
            if first not in ("هو", "هي") and not first.startswith(("ذا", "اسم")):
                choices += ["ما %s %s" % ("هي" if first.endswith(("ة", "ات")) else "هو", q[3:]), rng.choice(DIALECT_WHAT) + bare[3:]]
        for a, b in (("كم ", "كم عدد "), ("أين ", "وين "), ("أين ", "فين "), ("كيف أ", "كيف يمكنني أن أ"), ("هل لديك", "هل عندك"),
                     ("هل أنت ", "هل أنت حقا "), ("هل أنت ", "أنت "), ("من ", "من هو الذي "), ("أنا ", "أنا اليوم "), ("أعطني ", "أعطني لو سمحت "),
                     ("اذكر ", "اذكر لي "), ("أعطني ", "هات "), ("قل لي ", "احك لي "), ("احك لي ", "قل لي "), ("احك لي ", "أسمعني "), ("هات ", "أعطني "),
                     ("هل تستطيع ", "هل يمكنك "), ("ماذا تستطيع ", "ما الذي يمكنك "), ("هل تعرف ", "أتعرف "), ("أعطني ", "أريد "), ("أريد ", "أعطني ")):
            if q.startswith(a) and not q.startswith(b):
                if (a, b) == ("كم ", "كم عدد ") or (a == "من " and topic != "identity"):
                    continue
                choices.append(b + q[len(a):])
        if topic == "smalltalk" and q.startswith(("أنا ", "أشعر ")) and "جدا" not in q:
            choices += [bare + " جدا", bare + " اليوم", bare + " الآن", bare + " قليلا", bare + " كثيرا"]
        if topic in ("smalltalk", "unknown") and "اليوم" in q:
            choices.append(q.replace("اليوم", "الآن"))
        if topic == "identity":
            choices += [bare + " يا بيان" + mark]
        return rng.choice(choices) if choices else q

    def dress(self, topic, q):
        """A polite or vocative frame around `q`."""
        rng, bare = self.rng, q.rstrip("؟?!. ")
        mark = "؟" if q.endswith("؟") else ""
        if topic == "dialect":
            frames = CALL_DIALECT
        elif topic == "greetings":
            frames = CALL
        elif q.startswith(ASK):
            frames = rng.choice([TELL, POLITE, POLITE, CALL])
        elif q.startswith(ORDER) or topic in FACTS:
            frames = rng.choice([POLITE, CALL])
        elif topic in ("identity", "smalltalk", "unknown"):
            frames = CALL
        else:
            return q
        frame = rng.choice(frames)
        if frame in POLITE and any(p in q for p in ("فضلك", "سمحت")):
            return q
        return frame.format(q=bare if not frame.endswith("{q}") else bare + mark) + (
            mark if not frame.endswith(("{q}", "؟")) else "")

    def respell(self, q, mirrored):
        """Spelling as people type it."""
        rng = self.rng
        if q.endswith("؟") and rng.random() < 0.28:
            q = q[:-1].rstrip()
        elif q.endswith("؟") and rng.random() < 0.06:
            q = q[:-1] + rng.choice(["?", "؟؟", " ؟"])
        elif rng.random() < 0.04:
            q = q + rng.choice([".", "!", " "])
        if rng.random() < 0.16:
            q = q.translate(str.maketrans("أإآ", "ااا"))
        if rng.random() < 0.10:
            q = re.sub(r"ة(?=\W|$)", "ه", q)
        if rng.random() < 0.05:
            q = re.sub(r"ى(?=\W|$)", "ي", q)
        if rng.random() < 0.15:
            q = text.strip_marks(q)
        elif rng.random() < 0.04 and not mirrored:
            q = "".join(c + (rng.choice(TASHKEEL[3:6]) if "\u0621" <= c <= "\u064a" and rng.random() < 0.4 else "") for c in q)
        return q

    def variants(self, topic, answer, questions, count):
        """`count` user turns asking for `answer`."""
        rng = self.rng
        base = [q for q in dict.fromkeys(questions) if self.allowed(q)]
        extra = [q for q in dict.fromkeys(self.siblings(topic, answer, questions)) if self.allowed(q)]
        rng.shuffle(extra)
        out = list(base)
        while len(out) < max(count, len(base)):
            if extra and rng.random() < 0.65:
                core = extra[len(out) % len(extra)]
            else:
                core = rng.choice(base or extra)
            if rng.random() < 0.35:
                core = self.reword(topic, core)
            if not self.allowed(core):
                continue
            q = self.dress(topic, core) if rng.random() < 0.4 else core
            q = self.respell(q, any(c.isdigit() for c in answer))
            if self.allowed(q):
                out.append(q)
        return out

    # -- the whole set --------------------------------------------------------------------

    def singles(self, per):
        out = []
        for (topic, answer), questions in self.groups.items():
            if topic == "multiturn":
                continue
            count = min(per + 2 * len(questions), 4 * per)
            if len(questions) > 60:
                count = 3 * len(questions)
            for q in self.variants(topic, answer, questions, count):
                out.append((topic, q, answer))
        unknown = max((a for t, a in self.groups if t == "unknown"), key=lambda a: len(self.groups["unknown", a]))
        for forms, things in tables.UNKNOWN.items():
            pairs = [(f, x) for f in forms.split("|") for x in things.split("|")]
            for f, x in self.rng.sample(pairs, min(len(pairs), 75)):
                q = f.format(x=x)
                if text.normalise(q) not in self.known and self.allowed(q):
                    q = self.respell(self.dress("unknown", q) if self.rng.random() < 0.25 else q, False)
                    if self.allowed(q):
                        out.append(("unknown", q, unknown))
        for topic, q, a in sums.numbers(self.rng) + sums.calendar(self.rng):
            if self.allowed(q):
                if topic == "calendar":
                    q = self.respell(self.dress(topic, q) if self.rng.random() < 0.25 else q, True)
                elif self.rng.random() < 0.3:
                    q = q.rstrip("؟")
                if self.allowed(q):
                    out.append((topic, q, a))
        return out

    def names(self):
        """Conversations in which the user says a name and the model gives it back."""
        rng, out = self.rng, []
        intro = ["اسمي {n}", "أنا {n}", "أنا اسمي {n}", "انا اسمي {n}", "نادني {n}", "مرحبا، اسمي {n}", "السلام عليكم، أنا {n}", "اسمي هو {n}"]
        ask = ["ما اسمي؟", "ما هو اسمي؟", "هل تتذكر اسمي؟", "هل تعرف اسمي؟", "ما اسمي", "قل لي ما اسمي", "أعد اسمي من فضلك", "شو اسمي", "من أنا؟", "تذكر اسمي؟"]
        fillers = [(t, q, a) for t, q, a in self.pool if t in FACTS and len(a) < 60]
        for name in tables.NAMES * 5:
            f, q = rng.choice(intro), rng.choice(ask)
            hello = f"حسنا يا {name}! أهلا بك." if f.startswith("نادني") else (
                f"وعليكم السلام يا {name}! تشرفت بمعرفتك." if f.startswith("السلام") else f"أهلا بك يا {name}! تشرفت بمعرفتك.")
            turns = [(f.format(n=name), hello)]
            for _ in range(rng.choice([0, 0, 1, 2])):
                turns.append(rng.choice(fillers)[1:])
            if rng.random() < 0.75:
                turns.append((q, ("نعم، " if q.startswith(("هل", "تذكر")) else "") + f"اسمك {name}."))
            if rng.random() < 0.3:
                turns.append(rng.choice([("شكرا", f"عفوا يا {name}!"), ("مع السلامة", f"مع السلامة يا {name}! سعدت بالحديث معك.")]))
            out.append(turns)
        return out

    def follow_ups(self, count):
        """Two or three questions of one relation, the later ones elliptic: «والأردن؟»."""
        rng, table = self.rng, collections.defaultdict(list)
        for (topic, answer), questions in self.groups.items():
            for name, pattern, forms in tables.RELATIONS:
                if (m := re.match(pattern, answer)) and name != "proverb":
                    table[name].append((m[1], answer, forms, topic))
        short = {"capital": "عاصمة", "currency": "عملة", "plural": "جمع", "singular": "مفرد", "dual": "مثنى", "feminine": "مؤنث",
                 "opposite": "عكس", "synonym": "مرادف", "meaning": "معنى", "young": "صغير", "sound": "صوت"}
        out, names = [], [n for n in table if len(table[n]) >= 5]
        while len(out) < count:
            name = rng.choice(names)
            picks = rng.sample(table[name], rng.choice([2, 2, 3]))
            x, answer, forms, topic = picks[0]
            q = rng.choice(forms).format(x=x)
            turns = [(q, answer)]
            for x, answer, forms, _ in picks[1:]:
                tails = ["و{x}؟", "و {x}؟", "وماذا عن {x}؟", "طيب و{x}؟"]
                if name in ("english", "french"):
                    tails = ["و{x}؟", "وكلمة {x}؟", "وماذا عن {x}؟"]
                elif name in short:
                    tails += ["و%s {x}؟" % short[name], "وما %s {x}؟" % short[name]]
                turns.append((rng.choice(tails).format(x=x), answer))
            if all(self.allowed(q) for q, _ in turns):
                out.append([(self.respell(q, True), a) for q, a in turns])
        return out

    def compose(self, count):
        """Exchanges on any topics one after another, some opened by a greeting, some closed by thanks."""
        rng, out = self.rng, []
        pool = [x for x in self.pool if not re.search(r"اسمي|أخرى|اخرى|ثانية|من أنا", x[1])]
        by = collections.defaultdict(list)
        for x in pool:
            by[x[0]].append(x)
        thanks = [x for x in by["greetings"] if x[2].startswith("عفوا")]
        hello = [x for x in by["greetings"] if x[2].startswith(("وعليكم", "صباح", "مساء", "أهلا", "مرحبا", "أنا بخير"))]
        while len(out) < count:
            turns = [rng.choice(hello)[1:]] if rng.random() < 0.25 else []
            k, same = rng.choice(self.lengths), rng.random() < 0.4
            topic = rng.choice(pool)[0]
            for _ in range(k):
                turns.append((rng.choice(by[topic]) if same else rng.choice(pool))[1:])
            if rng.random() < 0.25:
                turns.append(rng.choice(thanks)[1:])
            if len(turns) > 1 and sum(len(q) + len(a) for q, a in turns) < 1100:
                out.append(turns)
        return out

    def run(self, per, composed, lengths):
        rng, self.lengths = self.rng, lengths
        self.pool = self.singles(per)
        out = []
        for topic, q, a in self.pool:
            if topic in FACTS and rng.random() < 0.05:
                hi, back = rng.choice(HELLO)
                q, a = rng.choice(["{}، {}", "{} {}", "{}. {}"]).format(hi, q), f"{back} {a}"
            out.append((topic, [(q, a)]))
        for c in self.multi:
            turns = [m["content"] for m in c["messages"]]
            pairs = list(zip(turns[::2], turns[1::2]))
            if all(self.allowed(q) for q, _ in pairs):
                out += [("multiturn", pairs)] + [("multiturn", [(self.respell(q, True), a) for q, a in pairs]) for _ in range(5)]
        out += [("names", t) for t in self.names()]
        out += [("follow", t) for t in self.follow_ups(composed // 3)]
        out += [("composed", t) for t in self.compose(composed)]
        out = [(t, turns) for t, turns in out if all(self.allowed(q) for q, _ in turns)
               and tuple(text.normalise(q) for q, _ in turns) not in self.held]
        rng.shuffle(out)
        return out


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--out", required=True)
    p.add_argument("--seed", type=int, default=7)
    p.add_argument("--per", type=int, default=12, help="exchanges per hand-written answer, at least")
    p.add_argument("--composed", type=int, default=6000)
    p.add_argument("--lengths", type=int, nargs="+", default=[1, 2, 2, 3, 3, 4, 6], help="exchanges in composed conversations, one drawn for each")
    a = p.parse_args()
    w = Widener(a.seed)
    rows = w.run(a.per, a.composed, a.lengths)
    with open(a.out, "w", encoding="utf-8") as f:
        for topic, turns in rows:
            # A few conversations carry a system message, so that one does not confuse the model.
            opening = [{"role": "system", "content": w.rng.choice(SYSTEM)}] if w.rng.random() < 0.04 else []
            messages = opening + [m for q, r in turns for m in ({"role": "user", "content": q}, {"role": "assistant", "content": r})]
            f.write(json.dumps({"topic": topic, "messages": messages}, ensure_ascii=False) + "\n")
    print(len(rows), "conversations", dict(collections.Counter(t for t, _ in rows)), "dropped", dict(w.dropped))


if __name__ == "__main__":
    main()
