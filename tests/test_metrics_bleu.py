"""BLEU of translations: heard by a recogniser or written beside the speech, and short texts left out."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from unitkit import audio
from unitkit.cli import app
from unitkit.manifest import Utterance, read_manifest, write_manifest
from unitkit.metrics import base, families, text
from unitkit.metrics.recognise import Recognizer
from unitkit.metrics.rows import METRICS, TRANSLATION_METRICS, markdown, read_scores
from unitkit.metrics.score import ScoreError, System, score, score_systems

sacrebleu = pytest.importorskip("sacrebleu")
pytest.importorskip("whisper_normalizer.english")

REFERENCES = [
    "Please enter your password, followed by the pound key.",
    "You have twenty-one new messages.",
    "Goodbye!",
    "The conference is now locked: nobody else can enter it.",
]
HYPOTHESES = [
    "please enter the password followed by the pound sign",
    "You have 21 new messages",
    "good bye",
    "The conference is now closed and nobody can enter.",
]
CLEAN = (
    [  # what the two should be after normalising, written by hand
        "please enter your password followed by the pound key",
        "you have 21 new messages",
        "goodbye",
        "the conference is now locked nobody else can enter it",
    ],
    [
        "please enter the password followed by the pound sign",
        "you have 21 new messages",
        "good bye",
        "the conference is now closed and nobody can enter",
    ],
)


# ------------------------------------------------------------------------------------------------------- measures


def test_bleu_is_sacrebleus_on_normalised_texts() -> None:
    found = text.bleu(REFERENCES, HYPOTHESES)
    assert found.value == pytest.approx(sacrebleu.corpus_bleu(CLEAN[1], [CLEAN[0]]).score)
    assert found.value == pytest.approx(sacrebleu.corpus_bleu(CLEAN[1], [CLEAN[0]], tokenize="none").score)
    assert found.n == 4 and 20 < found.value < 80
    assert found.low < found.value < found.high


def test_bleu_by_hand() -> None:
    # 8 words against 10: 7 of 8 words, 5 of 7, 3 of 6 and 2 of 5 runs are right, and two words are missing
    found = text.bleu(["a b c d e f g h i j"], ["a b c d e x g h"])
    expected = math.exp(1 - 10 / 8) * (7 / 8 * 5 / 7 * 3 / 6 * 2 / 5) ** 0.25
    assert found.value == pytest.approx(100 * expected)


def test_the_interval_is_of_sacrebleus_draws_and_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    first = text.bleu(REFERENCES, HYPOTHESES)
    theirs = sacrebleu.BLEU(tokenize="none").corpus_score(CLEAN[1], [CLEAN[0]], n_bootstrap=1000)
    shown = re.search(r"μ = [\d.]+ ± ([\d.]+)", theirs.format(width=4))
    assert shown is not None
    assert (first.high - first.low) / 2 == pytest.approx(float(shown[1]), abs=1e-3)
    monkeypatch.setenv("SACREBLEU_SEED", "7")
    second = text.bleu(REFERENCES, HYPOTHESES)
    assert (first.low, first.high, first.signature) == (second.low, second.high, second.signature)


def test_draws_of_short_texts_are_0_and_the_interval_shows_it() -> None:
    found = text.bleu([*REFERENCES[1:3], "yes please"], [*REFERENCES[1:3], "yes please"])
    assert (found.low, found.high) == (0, 100) and found.value == 100


def test_more_utterances_narrow_the_interval() -> None:
    few, many = (text.bleu(REFERENCES * times, HYPOTHESES * times) for times in (2, 50))
    assert many.value == pytest.approx(few.value)
    assert many.high - many.low < (few.high - few.low) / 3


def test_identical_texts_score_100_and_others_0() -> None:
    same = text.bleu(REFERENCES, [one.upper() for one in REFERENCES])
    assert (same.value, same.low, same.high) == (pytest.approx(100), pytest.approx(100), pytest.approx(100))
    assert same.value <= 100 and same.high <= 100
    nothing = text.bleu(REFERENCES, ["", "", "", ""])
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)
    assert text.bleu(["one two three four five"], ["x y z w v"]).value == 0


def test_numbers_case_and_marks_do_not_count_but_words_do() -> None:
    assert text.bleu(["Press twenty-one, now or later."], ["press 21 now or later"]).value == 100
    assert text.bleu(["Press twenty-one, now or later."], ["press 22 now or later"]).value < 60
    spanish = text.bleu(["¿Cuál es su número de teléfono?"], ["cual es su numero de telefono"], langs="es")
    assert spanish.value == 100


def test_characters_are_the_words_of_unspaced_languages() -> None:
    assert text.bleu(["你好吗朋友"], ["你好吗朋"], langs="zh").value == pytest.approx(100 * math.exp(-1 / 4))


def test_languages_may_differ() -> None:
    references, hypotheses = ["twenty one is my number", "mi número es ese"], ["21 is my number", "mi numero es ese"]
    found = text.bleu(references, hypotheses, langs=["en", "es"])
    assert found.value == 100 and "lang:en+es" in found.signature


def test_the_signature_holds_sacrebleus() -> None:
    heard = text.bleu(REFERENCES, HYPOTHESES, recognizer="whisper-base.ct2@905e5bf8|beam:5")
    assert re.fullmatch(
        r"asr_bleu\|asr:whisper-base\.ct2@905e5bf8\|beam:5\|lang:en\|norm:whisper-en,no-ellipsis\|sacrebleu:BLEU\|nrefs:1"
        r"\|bs:1000\|seed:12345\|case:mixed\|eff:no\|tok:none\|smooth:exp\|version:[\d.]+\|v:[\d.]+",
        heard.signature,
    )
    assert text.bleu(REFERENCES, HYPOTHESES).signature.startswith("text_bleu|lang:en|norm:")


def test_bad_lists_and_names_are_refused() -> None:
    with pytest.raises(ValueError, match="1 references, 2 hypotheses"):
        text.bleu(["a"], ["a", "b"])
    with pytest.raises(TypeError, match="lists of texts"):
        text.bleu("a", "a")
    with pytest.raises(base.Unavailable, match="empty"):
        text.bleu(["...", "!"], ["thank you", "bye"])


def test_words_are_counted_as_written() -> None:
    assert text.count_words("...to exit the menu.") == 4
    assert text.count_words("This message lasts ...") == 3
    assert text.count_words("press twenty one") == 3  # the normaliser would make two of them
    assert text.count_words("你好吗。", lang="zh") == 3 and text.count_words("", lang="en") == 0


# ------------------------------------------------------------------------------------------- scores of directories


class Heard:
    """Stands in for a recogniser: answers by the length of the recording, and counts how often it is asked."""

    name, languages, signature = "heard", ("en", "es"), "heard|beam:1"

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}
        self.asked = 0

    def __call__(self, wav: object, *, lang: str) -> str:
        assert lang == "en"  # the language of the reference manifest
        self.asked += 1
        return self.texts[len(wav)]  # type: ignore[arg-type]


@pytest.fixture
def judge() -> Heard:
    return Heard()


def speech(path: Path, rows: list[tuple[str, str | None]], said: list[str], judge: Heard, *, lang: str) -> Path:
    """A manifest of recordings by whose lengths the recogniser knows what was said."""
    manifest = []
    for id_, words in rows:
        length = 4_000 + 10 * len(judge.texts)
        judge.texts[length] = said[len(manifest)]
        wav = path.parent / f"{path.stem}-{id_}.wav"
        audio.write(wav, np.linspace(-0.5, 0.5, length, dtype=np.float32), 16_000)
        manifest.append(Utterance(id_, str(wav), lang=lang, text=words))
    write_manifest(path, manifest)
    return path


@pytest.fixture
def english(tmp_path: Path, judge: Heard) -> Path:
    """Original English recordings of which the recogniser understands all but one word."""
    said = [*REFERENCES[:3], "The conference is now blocked: nobody else can enter it."]
    return speech(tmp_path / "en.jsonl", [(str(i), one) for i, one in enumerate(REFERENCES)], said, judge, lang="en")


@pytest.fixture
def translation(tmp_path: Path, judge: Heard) -> Path:
    """The system's speech, heard as HYPOTHESES; its own text is right."""
    (tmp_path / "system").mkdir()
    rows = [(str(i), one.upper()) for i, one in enumerate(REFERENCES)][::-1]
    return speech(tmp_path / "system/manifest.jsonl", rows, HYPOTHESES[::-1], judge, lang="es")


def as_judge(judge: Heard) -> Recognizer:
    return judge  # type: ignore[return-value]


def test_heard_and_written_beside_originals_and_control(
    english: Path, translation: Path, judge: Heard, tmp_path: Path
) -> None:
    control = speech(tmp_path / "control.jsonl", [(str(i), "no") for i in range(4)], ["nothing"] * 4, judge, lang="en")
    rows = score_systems(
        [System("s2ut", translation, control=control)],
        english,
        metrics="asr_bleu,text_bleu,wer",
        recognizer=as_judge(judge),
    )
    heard, written, errors = rows
    assert heard.value == pytest.approx(sacrebleu.corpus_bleu(CLEAN[1], [CLEAN[0]]).score)
    assert heard.control == 0 and heard.n == 4 and heard.low is not None
    ceiling = [*CLEAN[0][:3], "the conference is now blocked nobody else can enter it"]
    assert heard.reference == pytest.approx(sacrebleu.corpus_bleu(ceiling, [CLEAN[0]]).score)
    assert heard.value < heard.reference < 100
    assert written.value == 100 and written.reference is None and written.control == 0
    assert errors.value is not None and errors.value > 0
    assert judge.asked == 12  # 4 judged, 4 originals, 4 of the control: error rates and BLEU share what was heard
    assert "asr:heard|beam:1|lang:en" in heard.signature


def test_only_long_enough_texts(english: Path, translation: Path, judge: Heard) -> None:
    rows = score(translation, english, metrics="asr_bleu,wer", recognizer=as_judge(judge), min_words=6)
    kept = [0, 3]
    expected = sacrebleu.corpus_bleu([CLEAN[1][i] for i in kept], [[CLEAN[0][i] for i in kept]]).score
    assert rows[0].value == pytest.approx(expected) and rows[0].n == 2 and rows[0].note is None
    assert judge.asked == 4
    assert all(re.search(r"\|min-words:6\|v:[\d.]+$", row.signature) for row in rows)
    (plain,) = score(translation, english, metrics="asr_bleu", recognizer=as_judge(judge))
    assert "min-words" not in plain.signature and plain.n == 4


def test_a_missing_long_one_is_missed_a_missing_short_one_is_not(
    english: Path, translation: Path, tmp_path: Path
) -> None:
    rows = {row.id: row for row in read_manifest(translation)}
    write_manifest(tmp_path / "without-short.jsonl", (rows[id_] for id_ in "013"))
    write_manifest(tmp_path / "without-long.jsonl", (rows[id_] for id_ in "012"))
    (row,) = score(tmp_path / "without-short.jsonl", english, metrics="text_bleu", min_words=4)
    assert row.n == 3 and row.value == 100
    with pytest.raises(ScoreError, match=r"1 \(3\) missing"):
        score(tmp_path / "without-long.jsonl", english, metrics="text_bleu", min_words=4)


def test_no_text_so_long_is_an_error(english: Path, translation: Path) -> None:
    with pytest.raises(ScoreError, match=r"en\.jsonl: no utterance has a text of at least 40 words"):
        score(translation, english, metrics="text_bleu", min_words=40)
    with pytest.raises(ScoreError, match="min_words -1"):
        score(translation, english, metrics="text_bleu", min_words=-1)


def test_a_system_that_writes_no_text_is_left_out_one_missing_text_counts(
    english: Path, translation: Path, tmp_path: Path
) -> None:
    rows = list(read_manifest(translation))
    write_manifest(tmp_path / "mute.jsonl", (replace(row, text=None) for row in rows))
    (row,) = score(tmp_path / "mute.jsonl", english, metrics="text_bleu")
    assert row.value is None and row.note == "left out: no texts in the judged manifest: the system writes none"
    (row,) = score(english, english, metrics="text_bleu")  # as of speech from units, whose texts `--like` brought along
    assert row.value is None and row.note.startswith("left out: the texts in the judged manifest are the reference's")
    write_manifest(tmp_path / "half.jsonl", (replace(row, text=None if row.id == "0" else row.text) for row in rows))
    (row,) = score(tmp_path / "half.jsonl", english, metrics="text_bleu")
    found = ["", *CLEAN[0][1:]]
    assert row.n == 4 and row.value == pytest.approx(sacrebleu.corpus_bleu(found, [CLEAN[0]]).score)
    assert row.value < 70


def test_known_by_name_but_no_part_of_all(english: Path, translation: Path) -> None:
    assert not set(TRANSLATION_METRICS) & set(METRICS)
    named = [name for family in families.TRANSLATION_FAMILIES for name in family.metrics]
    assert sorted(named) == sorted(TRANSLATION_METRICS)
    with pytest.raises(ScoreError, match=r"unknown metric bleu; known: all, wer, .*asr_bleu, text_bleu"):
        score(translation, english, metrics="bleu")


def test_the_command_line_and_its_table(english: Path, translation: Path, tmp_path: Path) -> None:
    words = ["score", translation.parent, "--reference", english, "--metrics", "text_bleu"]
    done = CliRunner().invoke(app, [*map(str, words), "--min-words", "4", "-o", str(tmp_path / "scores.jsonl")])
    assert done.exit_code == 0, done.output
    rows = read_scores(tmp_path / "scores.jsonl")
    assert [(row.system, row.metric, row.value, row.n) for row in rows] == [("system", "text_bleu", 100, 3)]
    assert "| system | test | text BLEU ↑ | 100.0 | 100.0–100.0 | – | – | 3 |" in markdown(rows)
