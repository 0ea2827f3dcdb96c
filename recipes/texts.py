"""Write sentences of our own, each in English, Spanish, French and Italian, for a synthesiser to speak.

A row of the output is one sentence in all languages: {"id", "en", "es", "fr", "it"}; the id comes from its words, so it
stays the same when the grammar (texts.txt) grows.  The same seed gives the same sentences.

Examples:
  python recipes/texts.py data/texts.jsonl
  python recipes/texts.py data/menus.jsonl --grammar recipes/menus.txt
  python recipes/texts.py data/texts.jsonl --n 8000 --seed 1 --forbid data/en/test.jsonl --forbid data/es/test.jsonl
  python recipes/texts.py data/prompts.jsonl --prompts data/en/train.jsonl data/es/train.jsonl    what recordings say
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from unitkit.manifest import atomic_text, read_manifest

LANGS = ("en", "es", "fr", "it")
GRAMMAR = Path(__file__).with_name("texts.txt")
SLOT = re.compile(r"\{(\w+)(?:\.(?P<form>\d)|@(?P<agrees>\w+)|\?(?P<choice>[^}]*))?\}")

TENS = {
    "en": "ten twenty thirty forty fifty sixty seventy eighty ninety",
    "es": "diez veinte treinta cuarenta cincuenta sesenta setenta ochenta noventa",
    "fr": "dix vingt trente quarante cinquante soixante soixante quatre-vingt quatre-vingt",
    "it": "dieci venti trenta quaranta cinquanta sessanta settanta ottanta novanta",
}
SMALL = {
    "en": "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen",
    "es": "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis "
    "diecisiete dieciocho diecinueve veinte veintiuno veintidós veintitrés veinticuatro veinticinco veintiséis "
    "veintisiete veintiocho veintinueve",
    "fr": "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix-sept "
    "dix-huit dix-neuf",
    "it": "zero uno due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici quindici sedici "
    "diciassette diciotto diciannove",
}
HUNDREDS_ES = "cien doscientos trescientos cuatrocientos quinientos seiscientos setecientos ochocientos novecientos"
ORDINALS = (  # English only
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth twentieth"
)
MONTHS = {
    "en": "January February March April May June July August September October November December",
    "es": "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
    "fr": "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
    "it": "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre",
}


class TextsError(ValueError):
    """A grammar that does not hold together, or more sentences asked for than it has."""


@dataclass(frozen=True)
class Cell:
    """One meaning in one language: its forms, and its gender where it has one."""

    forms: tuple[str, ...]
    gender: str = ""


Row = dict[str, Cell]  # language -> cell


@dataclass
class Grammar:
    """Lists of rows by name, and the patterns of sentences in all languages."""

    lists: dict[str, list[Row]] = field(default_factory=dict)
    patterns: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Sentence:
    """One meaning in every language, named by a hash of the English words."""

    id: str
    texts: dict[str, str]


# ---------------------------------------------------------------- grammar


def read_grammar(path: Path = GRAMMAR) -> Grammar:
    """Read texts.txt; raises TextsError with the line where a column or a slot is wrong."""
    grammar, section = Grammar(), ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("["):
            section = line.strip("[] ")
            continue
        columns = [column.strip() for column in line.split(" | ")]
        if len(columns) != len(LANGS) or not all(columns):
            raise TextsError(f"{path}:{number}: {len(columns)} columns, expected one for each of {', '.join(LANGS)}")
        row = dict(zip(LANGS, columns, strict=True))
        if section in ("say", "fixed"):
            _check_slots(row, grammar, place=f"{path}:{number}")
            grammar.patterns.append(row)
        else:
            grammar.lists.setdefault(section, []).append({lang: _cell(text) for lang, text in row.items()})
    return grammar


def slots(pattern: str) -> set[str]:
    """The slots of a pattern, those that only choose a word by another's gender left out."""
    return {match[1] for match in SLOT.finditer(pattern) if match["choice"] is None}


def _cell(text: str) -> Cell:
    marked = re.match(r"([mf]):", text)
    return Cell(tuple(text[2:].split("/") if marked else text.split("/")), marked[1] if marked else "")


def _check_slots(row: dict[str, str], grammar: Grammar, *, place: str) -> None:
    wanted = slots(row["en"])
    for lang, text in row.items():
        if slots(text) != wanted:
            raise TextsError(f"{place}: {lang} has the slots {sorted(slots(text))}, en has {sorted(wanted)}")
    for slot in wanted:
        if slot.rstrip("23") not in grammar.lists and slot.rstrip("23") not in MADE:
            raise TextsError(f"{place}: unknown slot {slot!r}; known: {', '.join([*grammar.lists, *MADE])}")


# ---------------------------------------------------------------- numbers in words


def number_words(n: int, lang: str) -> str:
    """The cardinal number n (0 to 9999) in words."""
    if not 0 <= n <= 9999:
        raise TextsError(f"{n}: numbers in words go from 0 to 9999")
    small = SMALL[lang].split()
    if n < len(small):
        return small[n]
    if n < 100:
        return _tens(n, lang)
    size = 1000 if n >= 1000 else 100
    head, rest = divmod(n, size)
    word = _thousands(head, lang) if size == 1000 else _hundreds(head, rest, lang)
    if not rest:
        return word
    return word + ("" if lang == "it" else " ") + number_words(rest, lang)


def _tens(n: int, lang: str) -> str:
    small, ten, unit = SMALL[lang].split(), TENS[lang].split()[n // 10 - 1], n % 10
    if lang == "fr":
        unit = n % 20 if n >= 60 else unit
        if n == 80:
            return "quatre-vingts"
        if unit in (1, 11) and n < 80:
            return f"{ten} et {small[unit]}"
    if not unit:
        return ten
    if lang == "es":
        return f"{ten} y {small[unit]}"
    if lang == "it":
        return (ten[:-1] if unit in (1, 8) else ten) + ("tré" if unit == 3 else small[unit])
    return f"{ten}-{small[unit]}"


def _hundreds(head: int, rest: int, lang: str) -> str:
    one = SMALL[lang].split()[head]
    if lang == "es":
        return "ciento" if head == 1 and rest else HUNDREDS_ES.split()[head - 1]
    if lang == "fr":
        return "cent" if head == 1 else f"{one} cent" if rest else f"{one} cents"
    if lang == "it":
        return "cento" if head == 1 else f"{one}cento"
    return f"{one} hundred"


def _thousands(head: int, lang: str) -> str:
    one = SMALL[lang].split()[head]
    if lang == "en":
        return f"{one} thousand"
    if lang == "it":
        return "mille" if head == 1 else f"{one}mila"
    return {"es": "mil", "fr": "mille"}[lang] if head == 1 else f"{one} {'mil' if lang == 'es' else 'mille'}"


def count_words(n: int, lang: str) -> str:
    """The number as it stands before a masculine noun: Spanish veintiún euros."""
    word = number_words(n, lang)
    if lang != "es":
        return word
    return re.sub("uno$", "un", re.sub("veintiuno$", "veintiún", word))


def _clock(draw: np.random.Generator) -> dict[str, str]:
    hour, part = int(draw.integers(2, 13)), int(draw.integers(8))
    said = {lang: number_words(hour, lang) for lang in LANGS}
    forms = [
        ("{} o'clock", "las {}", "{} heures", "le {}"),
        ("quarter past {}", "las {} y cuarto", "{} heures et quart", "le {} e un quarto"),
        ("half past {}", "las {} y media", "{} heures et demie", "le {} e mezza"),
        ("quarter to {}", "las {} menos cuarto", "{} heures moins le quart", "le {} meno un quarto"),
        ("ten past {}", "las {} y diez", "{} heures dix", "le {} e dieci"),
        ("twenty past {}", "las {} y veinte", "{} heures vingt", "le {} e venti"),
        ("ten to {}", "las {} menos diez", "{} heures moins dix", "le {} meno dieci"),
        ("twenty-five to {}", "las {} menos veinticinco", "{} heures moins vingt-cinq", "le {} meno venticinque"),
    ]
    return {lang: form.format(said[lang]) for lang, form in zip(LANGS, forms[part], strict=True)}


def _date(draw: np.random.Generator) -> dict[str, str]:
    day, month = int(draw.integers(1, 32)), int(draw.integers(12))
    day = min(day, 28) if month == 1 else day
    name = {lang: MONTHS[lang].split()[month] for lang in LANGS}
    said = {lang: number_words(day, lang) for lang in LANGS}
    article = "l'" if day in (8, 11) else "il "
    return {
        "en": f"the {_ordinal(day)} of {name['en']}",
        "es": f"el {'primero' if day == 1 else said['es']} de {name['es']}",
        "fr": f"le {'premier' if day == 1 else said['fr']} {name['fr']}",
        "it": f"{article}{'primo' if day == 1 else said['it']} {name['it']}",
    }


def _ordinal(day: int) -> str:
    if day <= 20:
        return ORDINALS.split()[day - 1]
    return "thirtieth" if day == 30 else f"{'twenty' if day < 30 else 'thirty'}-{ORDINALS.split()[day % 10 - 1]}"


def _year(draw: np.random.Generator) -> dict[str, str]:
    year = int(draw.integers(1700, 2040))
    said = {lang: number_words(year, lang) for lang in LANGS}
    century, rest = divmod(year, 100)
    if year < 2000 or year >= 2010:
        tail = "hundred" if rest == 0 else f"oh {number_words(rest, 'en')}" if rest < 10 else number_words(rest, "en")
        said["en"] = f"{number_words(century, 'en')} {tail}"
    return said


def _price(draw: np.random.Generator) -> dict[str, str]:
    euros, cents = int(draw.integers(2, 100)), int(draw.integers(1, 10)) * 10
    whole = {lang: count_words(euros, lang) for lang in LANGS}
    part = {lang: count_words(cents, lang) for lang in LANGS}
    return {
        "en": f"{whole['en']} euros and {part['en']} cents",
        "es": f"{whole['es']} euros con {part['es']} céntimos",
        "fr": f"{whole['fr']} euros et {part['fr']} centimes",
        "it": f"{whole['it']} euro e {part['it']} centesimi",
    }


def _digits(draw: np.random.Generator) -> dict[str, str]:
    figures = draw.integers(0, 10, size=int(draw.integers(4, 8)))
    half = len(figures) // 2

    def said(lang: str) -> str:
        words = [number_words(int(one), lang) for one in figures]
        return f"{' '.join(words[:half])}, {' '.join(words[half:])}"

    return {lang: said(lang) for lang in LANGS}


def _counted(low: int, high: int) -> Callable[[np.random.Generator], dict[str, str]]:
    def made(draw: np.random.Generator) -> dict[str, str]:
        n = int(draw.integers(low, high))
        return {lang: count_words(n, lang) for lang in LANGS}

    return made


def _number(draw: np.random.Generator) -> dict[str, str]:
    n = int(draw.integers(1, (100, 1000, 10000)[int(draw.integers(3))]))
    return {lang: number_words(n, lang) for lang in LANGS}


MADE: dict[str, Callable[[np.random.Generator], dict[str, str]]] = {
    "clock": _clock,
    "date": _date,
    "year": _year,
    "price": _price,
    "digits": _digits,
    "number": _number,
    "count": _counted(2, 100),
    "degrees": _counted(2, 40),
}


# ---------------------------------------------------------------- sentences


def sentences(
    n: int, *, seed: int = 0, forbidden: Iterable[str] = (), words: int = 3, grammar: Grammar | None = None
) -> list[Sentence]:
    """The first `n` sentences of a seed, distinct in every language; none is or holds a text of `forbidden`.

    Those of fewer than `words` words may be held. A sentence with a forbidden text in one language is dropped in all. A
    smaller n gives the beginning of a larger.
    """
    grammar, draw = grammar or read_grammar(), np.random.default_rng(seed)
    barred, seen, out = Forbidden(forbidden, words=words), set[tuple[str, str]](), list[Sentence]()
    misses = 0
    while len(out) < n:
        pattern = grammar.patterns[int(draw.integers(len(grammar.patterns)))]
        texts = spoken(pattern, grammar, draw)
        keys = {(lang, plain(text)) for lang, text in texts.items()}
        if keys & seen or any(barred.holds(text) for text in texts.values()):
            misses += 1
            if misses > 50 * n + 1000:
                raise TextsError(
                    f"only {len(out)} distinct sentences found, {n} asked for: the grammar needs more rows"
                )
            continue
        seen |= keys
        out.append(Sentence(hashlib.sha256(texts["en"].encode()).hexdigest()[:10], texts))
    return out


def spoken(pattern: dict[str, str], grammar: Grammar, draw: np.random.Generator) -> dict[str, str]:
    """Fill the slots of a pattern, with the same meaning in every language."""
    rows: dict[str, Row] = {}
    for slot in sorted(slots(pattern["en"])):
        name = slot.rstrip("23")
        if name in MADE:
            rows[slot] = {lang: Cell((text,)) for lang, text in MADE[name](draw).items()}
            continue
        taken = [row for other, row in rows.items() if other.rstrip("23") == name]
        free = [row for row in grammar.lists[name] if not any(row is one for one in taken)]
        rows[slot] = free[int(draw.integers(len(free)))]
    return {lang: polish(_fill(text, rows, lang), lang) for lang, text in pattern.items()}


def _fill(text: str, rows: dict[str, Row], lang: str) -> str:
    def gender(slot: str) -> int:
        return int(rows[slot][lang].gender == "f")

    def put(match: re.Match[str]) -> str:
        if match["choice"] is not None:
            return match["choice"].split("/")[gender(match[1])]
        forms = rows[match[1]][lang].forms
        index = gender(match["agrees"]) if match["agrees"] else int(match["form"] or 1) - 1
        return forms[min(index, len(forms) - 1)]

    return SLOT.sub(put, text)


def polish(text: str, lang: str) -> str:
    """Contractions, elisions and the capital of a sentence: de el → del, de Anne → d'Anne, di il → del."""
    text = RULES[lang](text)
    return re.sub(r"\w", lambda first: first[0].upper(), text, count=1)


def _spanish(text: str) -> str:
    text = re.sub(r"\b([Dd]e|[Aa]) el\b", lambda m: m[1] + "l", text)
    text = re.sub(r"\by (?=h?[ií](?!e))", "e ", text, flags=re.IGNORECASE)
    return re.sub(r"\bo (?=h?[oó])", "u ", text, flags=re.IGNORECASE)


def _french(text: str) -> str:
    for loose, tied in (("de le ", "du "), ("de les ", "des "), ("à le ", "au "), ("à les ", "aux ")):
        text = re.sub(rf"\b{loose}", tied, text)
    vowel = r"(?=[aeiouâàéèêëîïôûœh])"
    aspirated = r"(?!huit|onze|haricot|homard)"  # no elision before these
    text = re.sub(rf"\ble {vowel}{aspirated}(?!un\b)", "l'", text, flags=re.IGNORECASE)
    text = re.sub(rf"\bla {vowel}(?!h|onz|une?\b)", "l'", text, flags=re.IGNORECASE)
    text = re.sub(rf"(?<!-)\b(ce) {vowel}{aspirated}(?!est\b)", r"\1t ", text, flags=re.IGNORECASE)
    return re.sub(rf"\b(d|qu|n|j|m|s|t)e {vowel}{aspirated}", r"\1'", text, flags=re.IGNORECASE)


def _italian(text: str) -> str:
    joined = {"di": "de", "a": "a", "da": "da", "in": "ne", "su": "su"}
    tails = {"il ": "l ", "lo ": "llo ", "la ": "lla ", "l'": "ll'", "i ": "i ", "gli ": "gli ", "le ": "lle "}
    text = re.sub(r"\b(il|la) (?=[aeiouàèéìòù])", "l'", text, flags=re.IGNORECASE)
    text = re.sub(r"\b(di|a|da|in|su) (il |lo |la |l'|i |gli |le )", lambda m: joined[m[1]] + tails[m[2]], text)
    return re.sub(r"\b([ae]) (?=\1)", r"\1d ", text, flags=re.IGNORECASE)


RULES: dict[str, Callable[[str], str]] = {"en": str, "es": _spanish, "fr": _french, "it": _italian}


# ---------------------------------------------------------------- texts that must not be said


def plain(text: str) -> str:
    """Lower-case words without accents and punctuation, one space apart."""
    letters = unicodedata.normalize("NFD", text.lower().replace("œ", "oe"))
    kept = "".join(one for one in letters if not unicodedata.combining(one))
    return " ".join(re.findall(r"\w+", kept))


class Forbidden:
    """Texts that no sentence may equal, nor hold as part when they have `words` words or more.

    Where the held-out texts are prompts, three words may be a mere phrase: "mot de passe" is one of them, and would
    forbid all that is said of passwords.
    """

    def __init__(self, texts: Iterable[str], *, words: int = 3) -> None:
        """Keep the plain form of each text."""
        self.whole = {plain(text) for text in texts} - {""}
        self.parts = [f" {text} " for text in sorted(self.whole) if text.count(" ") >= words - 1]

    def holds(self, text: str) -> bool:
        """Whether a sentence is, or says, one of the texts."""
        said = plain(text)
        return said in self.whole or any(part in f" {said} " for part in self.parts)


# ---------------------------------------------------------------- what recordings say


def prompt_texts(paths: Sequence[Path], *, max_seconds: float, forbidden: Iterable[str] = ()) -> list[dict[str, str]]:
    """The texts of parallel recordings: {"id", language: text, ...} rows, in the order in which they are met.

    The id is the recording's without its language ("es/digits/1" is "digits.1"). Recordings that last longer than
    `max_seconds` are left out, and rows of which one text is forbidden.
    """
    barred, rows, dropped = Forbidden(forbidden), dict[str, dict[str, str]](), set[str]()
    for path in paths:
        for row in read_manifest(path):
            if not row.lang or not row.text:
                raise TextsError(f"{path}: {row.id} has no {'text' if row.lang else 'lang'}, which --prompts needs")
            name = row.id.removeprefix(f"{row.lang}/").replace("/", ".")
            if plain(row.text) in barred.whole:
                dropped.add(name)
            if (row.duration or 0.0) <= max_seconds:
                rows.setdefault(name, {"id": name})[row.lang] = " ".join(row.text.split())
    return [row for name, row in rows.items() if name not in dropped]


# ---------------------------------------------------------------- program


def coverage(rows: Sequence[dict[str, str]]) -> dict[str, tuple[int, int, float]]:
    """Per language: distinct sentences, distinct words, words per sentence."""
    counts = {}
    for lang in dict.fromkeys(key for row in rows for key in row if key != "id"):
        texts = {plain(row[lang]) for row in rows if lang in row}
        words = [word for text in sorted(texts) for word in text.split()]
        counts[lang] = (len(texts), len(set(words)), len(words) / max(1, len(texts)))
    return counts


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns 0, or 2 when nothing could be written."""
    parser = argparse.ArgumentParser(
        prog="texts.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the .jsonl to write")
    parser.add_argument("--n", type=int, default=6000, help="how many sentences (default 6000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grammar", type=Path, default=GRAMMAR, help="menus.txt: telephone menus (default texts.txt)")
    parser.add_argument("--forbid", type=Path, action="append", default=[], help="manifest with texts never to say")
    parser.add_argument("--part-words", type=int, default=3, help="forbidden ones of so many are no part (default 3)")
    parser.add_argument("--prompts", type=Path, nargs="+", help="manifests of recordings: their texts, no grammar")
    parser.add_argument("--max-seconds", type=float, default=12.0, help="of a recording of --prompts (default 12)")
    given = parser.parse_args(argv)
    try:
        rows = _rows(given)
        with atomic_text(given.out) as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except (ValueError, OSError) as error:
        print(f"texts.py: {error}", file=sys.stderr)
        return 2
    for lang, (distinct, words, mean) in coverage(rows).items():
        print(f"{lang}: {distinct} sentences, {words} different words, {mean:.1f} words a sentence", file=sys.stderr)
    return 0


def _rows(given: argparse.Namespace) -> list[dict[str, str]]:
    forbidden = [row.text for path in given.forbid for row in read_manifest(path) if row.text]
    if given.prompts:
        return prompt_texts(given.prompts, max_seconds=given.max_seconds, forbidden=forbidden)
    grammar = read_grammar(given.grammar)
    made = sentences(given.n, seed=given.seed, forbidden=forbidden, words=given.part_words, grammar=grammar)
    return [{"id": row.id, **row.texts} for row in made]


if __name__ == "__main__":
    sys.exit(main())
