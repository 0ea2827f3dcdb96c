"""Error rates of what a system wrote: no recogniser, each language by its own rules, manifests as systems."""

from dataclasses import replace
from pathlib import Path

import jiwer
import pytest

from unitkit.manifest import Utterance, write_manifest
from unitkit.metrics.score import ScoreError, score, score_directories

pytest.importorskip("whisper_normalizer.english")
SAID = [("a", "en", "Please, hang up."), ("b", "es", "Adiós, señor"), ("c", "ru", "Добрый день!")]
WRITTEN = ["please hang", "adios senor", "добрый вечер"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [Utterance(id_, f"{id_}.wav", lang=lang, text=text) for id_, lang, text in SAID]
    write_manifest(tmp_path / "said.jsonl", rows)
    write_manifest(tmp_path / "asr.jsonl", (replace(r, text=t) for r, t in zip(rows, WRITTEN, strict=True)))
    write_manifest(tmp_path / "others.jsonl", (replace(r, text=t) for r, t in zip(rows, WRITTEN[::-1], strict=True)))
    return tmp_path


def test_errors_of_texts_beside_a_control(folder: Path) -> None:
    wer, cer = score_directories(
        [folder / "asr.jsonl"], folder / "said.jsonl", control=folder / "others.jsonl", metrics="text_wer,text_cer"
    )
    clean = ["please hang up", "adios senor", "добрыи день"]  # accents are no errors
    found = ["please hang", "adios senor", "добрыи вечер"]
    assert wer.value == pytest.approx(100 * jiwer.wer(clean, found)) and wer.value == pytest.approx(100 * 2 / 7)
    assert cer.value == pytest.approx(100 * jiwer.cer(clean, found))
    assert (wer.system, wer.metric, wer.n) == ("asr", "text_wer", 3)
    assert wer.value is not None and wer.control is not None and wer.control > 2 * wer.value and wer.reference is None
    assert wer.signature.startswith("text_wer|lang:en+es+ru|") and "asr:" not in wer.signature


def test_a_row_without_text_has_said_nothing(folder: Path) -> None:
    write_manifest(folder / "mute.jsonl", (Utterance(id_, f"{id_}.wav", text="") for id_, _, _ in SAID))
    (row,) = score(folder / "mute.jsonl", folder / "said.jsonl", metrics="text_cer")
    assert row.value == 100
    write_manifest(folder / "none.jsonl", (Utterance(id_, f"{id_}.wav") for id_, _, _ in SAID))
    (row,) = score(folder / "none.jsonl", folder / "said.jsonl", metrics="text_cer")
    assert row.value is None and "writes none" in (row.note or "")


def test_manifests_have_names_of_their_own(folder: Path) -> None:
    (folder / "asr").mkdir()
    with pytest.raises(ScoreError, match="have one name"):
        score_directories([folder / "asr.jsonl", folder / "asr"], folder / "said.jsonl", metrics="text_cer")
