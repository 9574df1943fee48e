"""Arithmetic on small numbers and the calendar, generated: [(topic, question, answer)]."""

from tables import DAYS, GREGORIAN, HIJRI, LEVANT, OBLIQUE, ORDINALS, WORDS

EASTERN = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")

ADD = ["كم يساوي {a} + {b}؟", "{a} + {b}", "{a}+{b}", "{a} + {b} = ؟", "ما ناتج {a} + {b}؟",
       "احسب {a} + {b}", "لو سمحت احسب {a} + {b}", "من فضلك كم يساوي {a} + {b}؟", "كم {a} زائد {b}؟",
       "{a} زائد {b} كم", "اجمع {a} و {b}", "ما مجموع {a} و {b}؟", "ما حاصل جمع {a} و {b}؟",
       "ما ناتج جمع {a} و {b}؟", "كم ناتج {a} + {b}", "كم {a} + {b}", "{a} + {b} كم", "كم حاصل جمع {a} و {b}؟",
       "قل لي كم يساوي {a} + {b}", "احسب لي {a} + {b}", "ما ناتج {a} زائد {b}؟"]
SUB = ["كم يساوي {a} - {b}؟", "{a} - {b}", "{a}-{b}", "{a} - {b} = ؟", "ما ناتج {a} - {b}؟",
       "احسب {a} - {b}", "من فضلك كم يساوي {a} - {b}؟", "كم {a} ناقص {b}؟", "{a} ناقص {b} كم",
       "اطرح {b} من {a}", "ما الفرق بين {a} و {b}؟", "ما ناتج طرح {b} من {a}؟", "كم ناتج {a} - {b}",
       "كم {a} - {b}", "{a} - {b} كم", "احسب لي {a} - {b}", "ما ناتج {a} ناقص {b}؟"]
MUL = ["كم يساوي {a} × {b}؟", "{a} × {b}", "{a}×{b}", "ما ناتج {a} × {b}؟", "احسب {a} × {b}",
       "كم {a} ضرب {b}؟", "{a} ضرب {b} كم", "اضرب {a} في {b}", "ما حاصل ضرب {a} في {b}؟",
       "كم يساوي {a} * {b}؟", "{a} * {b}", "{a} في {b} كم", "ما ناتج ضرب {a} في {b}؟"]
DIV = ["كم يساوي {a} ÷ {b}؟", "{a} ÷ {b}", "ما ناتج {a} ÷ {b}؟", "احسب {a} ÷ {b}", "اقسم {a} على {b}",
       "ما ناتج {a} على {b}؟", "كم {a} تقسيم {b}؟", "ما ناتج قسمة {a} على {b}؟", "كم يساوي {a} / {b}؟"]
ADD_W = ["كم يساوي {a} زائد {b}؟", "{a} زائد {b}", "{a} زائد {b} كم", "ما ناتج {a} زائد {b}؟",
         "احسب {a} زائد {b}", "كم {a} زائد {b}؟", "من فضلك كم يساوي {a} زائد {b}؟", "ما مجموع {a} و{b}؟",
         "اجمع {a} و{b}"]
SUB_W = ["كم يساوي {a} ناقص {b}؟", "{a} ناقص {b}", "{a} ناقص {b} كم", "ما ناتج {a} ناقص {b}؟",
         "احسب {a} ناقص {b}", "كم {a} ناقص {b}؟", "اطرح {b} من {a}"]
MUL_W = ["كم يساوي {a} ضرب {b}؟", "{a} ضرب {b}", "{a} في {b} كم؟", "ما ناتج {a} ضرب {b}؟"]


def numbers(rng):
    out = []

    def digits(forms, sign, a, b, c, times):
        for eastern in (False, True):
            for _ in range(times):
                q = rng.choice(forms).format(a=a, b=b)
                r = f"{a} {sign} {b} = {c}."
                out.append(("numbers",) + tuple(x.translate(EASTERN) if eastern else x for x in (q, r)))

    def words(forms, verb, a, b, c, times):
        for _ in range(times):
            q = rng.choice(forms).format(a=WORDS[a], b=rng.choice((WORDS[b], OBLIQUE[b])))
            out.append(("numbers", q, f"{WORDS[a]} {verb} {OBLIQUE[b] if verb != 'زائد' else WORDS[b]} يساوي {OBLIQUE[c]}."))

    for a in range(21):
        for b in range(21):
            small = 1 + (a <= 10 and b <= 10)
            if a + b <= 20:
                digits(ADD, "+", a, b, a + b, 1 + small)
                words(ADD_W, "زائد", a, b, a + b, small)
            if a >= b:
                digits(SUB, "-", a, b, a - b, 1 + small)
                words(SUB_W, "ناقص", a, b, a - b, small)
            if 1 <= a <= 10 and 1 <= b <= 10:
                digits(MUL, "×", a, b, a * b, 1)
                if a * b <= 20:
                    words(MUL_W, "ضرب", a, b, a * b, 1)
                    digits(DIV, "÷", a * b, b, a, 1)
    for _ in range(160):
        a, b, s = rng.randint(30, 9999), rng.randint(21, 9999), rng.choice("+-×÷")
        q = rng.choice(["كم يساوي {}؟", "احسب {}", "{}", "ما ناتج {}؟"]).format(f"{a} {s} {b}")
        out.append(("numbers", q.translate(EASTERN) if rng.random() < 0.5 else q,
                    "عذرا، أحسب الأعداد الصغيرة فقط."))
    out += properties(rng)
    return out


def properties(rng):
    """Parity, neighbours, comparison, halves and doubles of 0..20."""
    out = []
    for n in range(31):
        for eastern in (False, True):
            rows = [(rng.choice(["هل العدد {n} زوجي أم فردي؟", "هل {n} عدد زوجي؟", "العدد {n} فردي أم زوجي؟", "{n} زوجي أم فردي؟", "العدد {n} زوجي ام فردي", "هل {n} عدد فردي؟"]),
                     f"العدد {n} عدد {'زوجي' if n % 2 == 0 else 'فردي'}.") for _ in range(4)]
            rows.append((rng.choice(["ما العدد الذي بعد {n}؟", "ما العدد الذي يأتي بعد {n}؟", "ما العدد الذي يلي {n}؟", "أي عدد بعد {n}؟"]), f"العدد الذي بعد {n} هو {n + 1}."))
            if n:
                rows.append((rng.choice(["ما العدد الذي قبل {n}؟", "ما العدد الذي يسبق {n}؟", "أي عدد قبل {n}؟"]), f"العدد الذي قبل {n} هو {n - 1}."))
                rows.append((rng.choice(["ما ضعف {n}؟", "كم ضعف {n}", "ما هو ضعف {n}؟"]), f"ضعف {n} هو {2 * n}."))
                rows.append((rng.choice(["ما نصف {n}؟", "كم نصف {n}", "ما هو نصف {n}؟", "كم هو نصف {n}؟"]).format(n=2 * n), f"نصف {2 * n} هو {n}."))
            m = rng.choice([x for x in range(31) if x != n])
            a, b = rng.sample([n, m], 2)
            big, little = max(n, m), min(n, m)
            rows.append((rng.choice([f"أيهما أكبر {a} أم {b}؟", f"ايهما اكبر {a} ام {b}", f"أي العددين أكبر: {a} أم {b}؟"]), f"العدد {big} أكبر من {little}."))
            rows.append((rng.choice([f"أيهما أصغر {a} أم {b}؟", f"ايهما اصغر {a} ام {b}"]), f"العدد {little} أصغر من {big}."))
            for q, r in rows:
                q = q.format(n=n)
                out.append(("numbers",) + ((q.translate(EASTERN), r.translate(EASTERN)) if eastern else (q, r)))
    nouns = {2: "الاثنين", 4: "الأربعة", 6: "الستة", 8: "الثمانية", 10: "العشرة"}
    for n, w in nouns.items():
        for f in ["ما نصف {w}؟", "كم نصف {w}", "ما هو نصف {w}؟", "كم هو نصف {w}؟", "نصف {w} كم؟", "كم يساوي نصف {w}؟"]:
            out.append(("numbers", f.format(w=rng.choice((w, WORDS[n] if n != 2 else "اثنين"))), f"نصف {w} {WORDS[n // 2]}."))
    return out


def sequence(names, what, after, before, one):
    """Questions about the neighbour of each name in a cyclic sequence."""
    out = []
    for i, x in enumerate(names):
        nxt, prv = names[(i + 1) % len(names)], names[i - 1]
        for f in after:
            out.append(("calendar", f.format(x=x), f"{what} الذي بعد {x} هو {nxt}."))
        for f in before:
            out.append(("calendar", f.format(x=x), f"{what} الذي قبل {x} هو {prv}."))
    return out


def neighbours(noun, bare):
    after = ["ما {n} الذي بعد {{x}}؟", "ما هو {n} الذي بعد {{x}}؟", "ما {n} الذي يأتي بعد {{x}}؟", "ما هو {n} الذي يأتي بعد {{x}}؟",
             "أي {b} بعد {{x}}؟", "أي {b} يأتي بعد {{x}}؟", "أي {b} يلي {{x}}؟", "ما {n} التالي بعد {{x}}؟", "شو {n} اللي بعد {{x}}",
             "ايه {n} اللي بعد {{x}}", "ماذا بعد {b} {{x}}؟", "ما {n} الذي يلي {{x}}؟", "ايش بعد {b} {{x}}"]
    before = ["ما {n} الذي قبل {{x}}؟", "ما هو {n} الذي قبل {{x}}؟", "ما {n} الذي يأتي قبل {{x}}؟", "ما {n} الذي يسبق {{x}}؟",
              "أي {b} قبل {{x}}؟", "أي {b} يأتي قبل {{x}}؟", "أي {b} يسبق {{x}}؟", "شو {n} اللي قبل {{x}}", "ماذا قبل {b} {{x}}؟",
              "ما هو {n} الذي يسبق {{x}}؟"]
    return [f.format(n=noun, b=bare) for f in after], [f.format(n=noun, b=bare) for f in before]


def calendar(rng):
    out = []
    days = sequence(DAYS, "اليوم", *neighbours("اليوم", "يوم"), None)
    months = []
    for names in (GREGORIAN, HIJRI, LEVANT):
        months += sequence(names, "الشهر", *neighbours("الشهر", "شهر"), None)
    out += days + days + rng.sample(months, len(months) * 6 // 10)
    for i, x in enumerate(DAYS):
        for k, answer, forms in (
            (1, "إذا كان اليوم {x} فغدًا {y}.", ["إذا كان اليوم {x} فما الغد؟", "اليوم {x}، فما يوم غد؟", "اليوم {x} فماذا غدا؟", "إذا كان اليوم {x} فأي يوم غدا؟"]),
            (2, "إذا كان اليوم {x} فبعد غد هو {y}.", ["إذا كان اليوم {x} فما بعد غد؟", "اليوم {x}، فما اليوم بعد غد؟"]),
            (-1, "إذا كان اليوم {x} فأمس كان {y}.", ["إذا كان اليوم {x} فماذا كان أمس؟", "اليوم {x}، فأي يوم كان أمس؟", "اليوم {x} فماذا كان البارحة؟"])):
            for f in forms:
                out += [("calendar", f.format(x=x), answer.format(x=x, y=DAYS[(i + k) % 7]))] * 2
    for names, year in ((GREGORIAN, "الميلادية"), (HIJRI, "الهجرية")):
        bare = "ميلادي" if year == "الميلادية" else "هجري"
        for i, x in enumerate(names):
            a = f"{x} هو الشهر {ORDINALS[i]} من السنة {year}."
            for f in ("ما ترتيب شهر {x}؟", "ما ترتيب {x} بين الأشهر؟", "ما هو ترتيب شهر {x}؟", "ما ترتيب شهر {x} بين الشهور؟", "ما هو ترتيب {x} بين الشهور؟", "شهر {x} رقم كم؟", "{x} هو الشهر رقم كم؟"):
                out.append(("calendar", f.format(x=x), a))
            if 0 < i < 11:
                for f in (f"ما الشهر {ORDINALS[i]} في السنة {year}؟", f"ما هو الشهر ال{bare} {ORDINALS[i]}؟"):
                    out.append(("calendar", f, a))
        for word, x in (("أول", names[0]), ("آخر", names[-1])):
            for f in ("ما {w} شهر {b}؟", "ما هو {w} شهر في السنة {y}؟", "ما {w} شهر في السنة {y}؟", "ما {w} الشهور {y}؟", "ما هو {w} الشهور {y}؟", "ايش {w} شهر {b}", "شو {w} شهر في السنة {y}", "ما اسم {w} شهر {b}؟", "ما هو {w} الأشهر {y}؟"):
                out += [("calendar", f.format(w=word, b=bare, y=year), f"{word} شهر في السنة {year} هو {x}.")] * 2
    for x, y in zip(LEVANT, GREGORIAN):
        for f in ("{x} هو أي شهر؟", "ما اسم شهر {y} في بلاد الشام؟", "ماذا يسمى {y} في الشام؟", "ما شهر {x}؟", "ما معنى شهر {x}؟"):
            out.append(("calendar", f.format(x=x, y=y), f"{x} هو شهر {y}."))
    return out
