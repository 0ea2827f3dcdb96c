"""Speech and units written down, with one call and from the command line: small models that have learnt a few tones."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_files import recipe
from spoken_letters import utterances

from unitkit import audio, cli
from unitkit.audio import AudioError
from unitkit.config import load
from unitkit.manifest import Utterance, read_manifest, write_manifest
from unitkit.metrics.rows import read_scores
from unitkit.metrics.text import count_errors
from unitkit.models.seq2seq import Seq2Seq, Seq2SeqConfig
from unitkit.pieces import PiecesError
from unitkit.pipeline import Recognizer, Source, Written, describe, sources_of_units, transcribe
from unitkit.tokenizer import Tokenizer
from unitkit.units import FingerprintError, read_units, write_units

torch.set_num_threads(1)
SMALL = [
    "model.dim=32", "model.hidden=64", "model.attention_heads=2", "model.encoder_layers=2", "model.decoder_layers=1",
    "model.conv_channels=32", "model.branch_hidden=64", "model.branch_kernel=5", "model.dropout=0", "text.kind=char",
    "fit.device=cpu", "fit.precision=fp32", "fit.tensorboard=false", "fit.validate_every=1000", "data.batch=12",
    "optim.warmup=10", "optim.lr=4e-3", "fit.ema=0", "fit.max_steps=130", "data.dev_utterances=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of two languages, a tokenizer of theirs, and their units."""
    folder = tmp_path_factory.mktemp("corpus")
    for split, n, seed in (("train", 60, 1), ("dev", 4, 2), ("test", 8, 3)):
        write_manifest(folder / f"{split}.jsonl", utterances(folder, n, seed=seed, langs=("en", "es")))
    tokenizer = Tokenizer.fit(folder / "train.jsonl", features="logmel", units=14, device="cpu", max_frames=4000)
    tokenizer.save(folder / "tokenizer")
    for split in ("train", "dev", "test"):
        found = [tokenizer.encode(row) for row in read_manifest(folder / f"{split}.jsonl")]
        write_units(folder / f"{split}.units.jsonl", tokenizer.header(), found)
    return folder


def trained(corpus: Path, *words: str) -> Path:
    module, out = recipe("train_asr"), corpus / "model" / str(abs(hash(words)))
    manifests = [f"{split}_manifest={corpus}/{split}.jsonl" for split in ("train", "dev")]
    module.train(load(module.Config, None, [*manifests, *SMALL, f"data.cache={corpus}/f", f"out={out}", *words]))
    return out


@pytest.fixture(scope="module")
def model(corpus: Path) -> Path:
    """A model of units in pieces, of two languages, with its tokenizer."""
    units = [f"{split}_units={corpus}/{split}.units.jsonl" for split in ("train", "dev")]
    return trained(corpus, *units, f"tokenizer={corpus}/tokenizer", "units.pieces=24", "text.langs=true")


@pytest.fixture(scope="module")
def recognizer(model: Path) -> Recognizer:
    return Recognizer.load(model, device="cpu")


@pytest.fixture(scope="module")
def rows(corpus: Path) -> list[Utterance]:
    return list(read_manifest(corpus / "test.jsonl"))


# ---------------------------------------------------------------- one call


def test_what_is_said_is_written_down(recognizer: Recognizer, rows: list[Utterance]) -> None:
    texts = recognizer(rows, beam=4)
    wrong, of = np.sum([count_errors(r.text or "", t, words=False) for r, t in zip(rows, texts, strict=True)], axis=0)
    assert wrong / of < 0.3
    other = [rows[i - 1].text or "" for i in range(len(rows))]
    chance = np.sum([count_errors(r.text or "", t, words=False)[0] for r, t in zip(rows, other, strict=True)])
    assert wrong < chance / 2
    assert recognizer.langs == ("en", "es")


def test_a_path_a_wav_an_utterance_and_units_are_the_same(
    recognizer: Recognizer, corpus: Path, rows: list[Utterance]
) -> None:
    path, wav = rows[0].audio, audio.read(rows[0].audio, 16000)
    units = next(iter(read_units(corpus / "test.units.jsonl")))
    said = [recognizer(x, beam=2) for x in (path, Path(path), rows[0], wav, torch.from_numpy(wav), units)]
    assert len(set(said)) == 1 and said[0]
    assert recognizer(units.dedup()[0], beam=2) == said[0]  # the model reads runs
    low = audio.resample(wav, 16000, 8000)
    assert recognizer(low, rate=8000, beam=2) == recognizer(audio.resample(low, 8000, 16000), beam=2)


def test_a_list_gives_what_each_gives_alone_in_order(recognizer: Recognizer, rows: list[Utterance]) -> None:
    for weight in (0.0, 0.3, 1.0):
        alone = [recognizer(row, beam=3, ctc_weight=weight) for row in rows]
        assert len(set(alone)) > 4
        for batch in (1, 3, 8):
            assert recognizer(rows, beam=3, ctc_weight=weight, batch=batch) == alone
    assert recognizer([]) == []


def test_long_recordings_are_cut_where_they_are_quiet(recognizer: Recognizer, rows: list[Utterance]) -> None:
    """Three recordings after each other, cut at the pauses between them, give the three texts."""
    texts, rate = recognizer(rows[:3], beam=3), 16000
    pause, parts = np.zeros(rate // 2, np.float32), [audio.read(row.audio, rate) for row in rows[:3]]
    wav = np.concatenate([x for part in parts for x in (pause, part, pause)])
    ends = np.cumsum([len(part) + rate for part in parts])
    longest = max(len(part) for part in parts) / rate + 1.2
    cuts = audio.quiet_cuts(wav, rate, longest)
    assert [min(abs(cut - end) for end in ends) < rate // 2 for cut in cuts] == [True] * len(cuts) and len(cuts) == 2
    assert count_errors(" ".join(texts), recognizer(wav, beam=3, longest=longest, rate=rate), words=False)[0] <= 1
    assert recognizer(wav, beam=3, longest=0, rate=rate) == recognizer(wav, beam=3, longest=99, rate=rate)
    with pytest.raises(ValueError, match="longest -1"):
        recognizer(wav, longest=-1, rate=rate)


def test_a_model_knows_how_long_a_recording_may_be(recognizer: Recognizer, corpus: Path) -> None:
    known = recognizer.model.config.longest
    lengths = [row.duration or 0 for row in read_manifest(corpus / "train.jsonl")]
    assert known == round(known, 1) and 0.9 <= np.mean(np.array(lengths) <= known + 0.05) < 1
    wav = np.random.default_rng(0).normal(0, 0.1, round(3.3 * known * 16000)).astype(np.float32)
    assert len(recognizer.hear(wav)) > 3 and len(recognizer.hear(wav, longest=0)) == 1
    whole = recognizer.hear(wav[: int(known * 16000)])
    assert len(whole) == 1


def test_parts_of_a_recording_are_in_one_language(recognizer: Recognizer, rows: list[Utterance]) -> None:
    """In that in which they score best together, as if it had been told."""
    mixed = [next(row for row in rows if row.lang == lang) for lang in ("en", "es", "en")]
    parts = [recognizer.hear(row, longest=0)[0] for row in mixed]
    assert len({one.lang for one in recognizer.write([[part] for part in parts], beam=2)}) == 2
    (found,) = recognizer.write([parts], beam=2)
    told = {lang: recognizer.write([parts], beam=2, lang=lang)[0] for lang in ("en", "es")}
    best = max(told.values(), key=lambda one: one.score)
    assert found == best and found.lang in told


def test_a_language_that_is_told(recognizer: Recognizer, rows: list[Utterance]) -> None:
    heard = [recognizer.hear(row) for row in rows]
    for lang in ("en", "es"):
        assert {one.lang for one in recognizer.write(heard, beam=2, lang=lang)} == {lang}
    assert all(one.score < 0 and one.lang in ("en", "es") for one in recognizer.write(heard, beam=2))
    with pytest.raises(PiecesError, match="language 'fr': known are en, es"):
        recognizer(rows[0], lang="fr")


def test_a_model_of_features(corpus: Path, rows: list[Utterance]) -> None:
    hears = Recognizer.load(trained(corpus, "fit.max_steps=5"), device="cpu")
    assert hears.langs == () and hears([rows[0].audio], beam=2) == [hears(rows[0], beam=2)]
    units = next(iter(read_units(corpus / "test.units.jsonl")))
    with pytest.raises(ValueError, match="hears logmel@100, not units"):
        hears(units)
    with pytest.raises(ValueError, match="without languages"):
        hears(rows[0], lang="en")
    with pytest.raises(ValueError, match="leave the tokenizer out"):
        Recognizer.load(corpus / "model" / str(abs(hash(("fit.max_steps=5",)))), tokenizer="mini-100")


# ---------------------------------------------------------------- whose units


def test_the_wrong_tokenizer_is_refused(model: Path, corpus: Path, rows: list[Utterance], tmp_path: Path) -> None:
    own = Seq2Seq.load(model).config.source_tokenizer
    other = Tokenizer.load("mini-100", device="cpu")
    with pytest.raises(FingerprintError, match=f"{other.fingerprint}.*{own}"):
        Recognizer.load(model, tokenizer=other, device="cpu")
    units = next(iter(read_units(corpus / "test.units.jsonl")))
    with pytest.raises(FingerprintError, match=f"0123456789ab.*{own}"):
        Recognizer.load(model, device="cpu")(replace(units, tokenizer="0123456789ab"))
    deaf = tmp_path / "deaf"
    shutil.copytree(model, deaf)
    shutil.rmtree(deaf / "tokenizer")
    alone = Recognizer.load(deaf, device="cpu")
    assert alone(units, beam=2) == Recognizer.load(model, device="cpu")(units, beam=2)
    with pytest.raises(ValueError, match=f"reads units of tokenizer '{own}', which is not beside it.*--tokenizer"):
        alone(rows[0])
    told = Recognizer.load(deaf, tokenizer=corpus / "tokenizer", device="cpu")
    assert told(rows[0], beam=2) == alone(units, beam=2)


def test_a_bundled_tokenizer_is_found_by_its_fingerprint(model: Path, tmp_path: Path) -> None:
    """No copy of it is kept: the fingerprint in the config is enough."""
    from unitkit.tokenizer import bundled_as

    known = Tokenizer.load("mini-100", device="cpu")
    assert bundled_as(known.fingerprint) == "mini-100" and bundled_as("0123456789ab") is None
    reader = Seq2SeqConfig(
        target="text", tokenizer=Recognizer.load(model, device="cpu").pieces.fingerprint, source="units", dim=16,
        pieces=Seq2Seq.load(model).config.pieces, langs=("en", "es"), source_tokenizer=known.fingerprint,
        source_units=known.n_units, source_rate_hz=known.rate_hz, attention_heads=2, hidden=16, encoder_layers=1,
        decoder_layers=1,
    )  # fmt: skip
    Seq2Seq(reader).save(tmp_path)
    shutil.copy(model / "text.model", tmp_path)
    found = Recognizer.load(tmp_path, device="cpu").tokenizer
    assert found is not None and found.fingerprint == known.fingerprint


def test_directories_that_are_no_recogniser(model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "text.model").unlink()
    with pytest.raises(PiecesError, match=r"has no text\.model"):
        Recognizer.load(broken, device="cpu")
    Seq2Seq(Seq2SeqConfig(n_units=5, features_dim=8, dim=16, encoder_layers=1, decoder_layers=1)).save(
        tmp_path / "s2ut"
    )
    with pytest.raises(ValueError, match="turns features into units"):
        Recognizer.load(tmp_path / "s2ut", device="cpu")
    title, facts = describe(str(model))
    assert title == "recogniser" and facts["beside it"] == "tokenizer, unit_bpe, text.model"


def test_recordings_that_cannot_be_heard(recognizer: Recognizer, tmp_path: Path) -> None:
    audio.write(tmp_path / "short.wav", np.zeros(30, np.float32), 16000)
    with pytest.raises(AudioError, match=r"short\.wav.*too short"):
        recognizer(tmp_path / "short.wav")
    (tmp_path / "torn.wav").write_bytes(b"RIFF")
    with pytest.raises(AudioError, match=r"torn\.wav"):
        recognizer(tmp_path / "torn.wav")
    with pytest.raises(ValueError, match="NaN"):
        recognizer(np.full(16000, np.nan, np.float32))
    with pytest.raises(ValueError, match="beam 0"):
        recognizer(tmp_path / "short.wav", beam=0)


# ---------------------------------------------------------------- many


def test_a_manifest_with_texts_resumed_after_a_stop(
    recognizer: Recognizer, rows: list[Utterance], tmp_path: Path
) -> None:
    out, done = tmp_path / "texts.jsonl", []

    def stop(step: Written) -> None:
        done.append(step)
        if len(done) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transcribe(recognizer, rows, out, beam=2, batch=1, on_progress=stop)
    assert not out.exists()
    with open(f"{out}.partial", "a") as file:
        file.write('{"torn')
    steps: list[Written] = []
    found = transcribe(recognizer, rows, out, beam=2, on_progress=steps.append)
    assert (found.made, found.kept, found.bad) == (5, 3, []) and len(steps) == 8
    written = list(read_manifest(out))
    assert written == found.rows and [row.id for row in written] == [row.id for row in rows]
    assert [row.text for row in written] == recognizer(rows, beam=2)
    assert all(replace(row, text=None) == replace(old, text=None) for row, old in zip(written, rows, strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.jsonl", "texts.transcription.json"]
    os.utime(rows[2].audio)  # as if it had been recorded again
    again = transcribe(recognizer, rows, out, beam=2)
    assert (again.made, again.kept) == (1, 7) and again.rows == written
    other = transcribe(recognizer, rows, out, beam=3)  # another search is another text
    assert (other.made, other.kept) == (8, 0)


def test_bad_recordings_are_listed_and_the_rest_goes_on(
    recognizer: Recognizer, rows: list[Utterance], tmp_path: Path
) -> None:
    (tmp_path / "torn.wav").write_bytes(b"RIFF")
    given = [
        rows[0],
        Utterance("torn", str(tmp_path / "torn.wav")),
        Utterance("gone", str(tmp_path / "gone.wav")),
        rows[1],
    ]
    found = transcribe(recognizer, given, tmp_path / "texts.jsonl", beam=2)
    assert [row.id for row in found.rows] == [rows[0].id, rows[1].id]
    assert [utterance.id for utterance, _ in found.bad] == ["torn", "gone"] and "torn.wav" in found.bad[0][1]
    listed = (tmp_path / "texts.rejects.jsonl").read_text()
    assert "torn.wav" in listed and "gone.wav" in listed
    mended = transcribe(recognizer, [rows[0], rows[1]], tmp_path / "texts.jsonl", beam=2)
    assert mended.kept == 2 and not (tmp_path / "texts.rejects.jsonl").exists()


def test_what_others_made_is_not_written_over(recognizer: Recognizer, corpus: Path, rows: list[Utterance]) -> None:
    before = (corpus / "test.jsonl").read_text()
    with pytest.raises(ValueError, match="was not made by transcribe"):
        transcribe(recognizer, rows, corpus / "test.jsonl")
    assert (corpus / "test.jsonl").read_text() == before


def test_units_in_place_of_recordings(
    recognizer: Recognizer, corpus: Path, rows: list[Utterance], tmp_path: Path
) -> None:
    named = sources_of_units(corpus / "test.units.jsonl", like=rows)
    found = transcribe(recognizer, named, tmp_path / "texts.jsonl", beam=2)
    assert [row.audio for row in found.rows] == [row.audio for row in rows]
    assert [row.text for row in found.rows] == recognizer(rows, beam=2, longest=0)  # units are never cut
    assert transcribe(recognizer, named, tmp_path / "texts.jsonl", beam=2).kept == 8
    bare = transcribe(recognizer, sources_of_units(corpus / "test.units.jsonl"), beam=2)
    assert {row.audio for row in bare.rows} == {str(corpus / "test.units.jsonl")}
    assert [row.text for row in bare.rows] == [row.text for row in found.rows]
    foreign = [Source(one.utterance, replace(one.units, tokenizer="0123456789ab")) for one in named if one.units]
    with pytest.raises(FingerprintError, match="0123456789ab"):
        transcribe(recognizer, foreign, tmp_path / "other.jsonl")
    assert not (tmp_path / "other.jsonl").exists()


# ---------------------------------------------------------------- the command line


@pytest.fixture
def unitkit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run `unitkit ARGS` here: exit status and all it printed."""

    def run(*args: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["unitkit", *map(str, args)])
        capsys.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        both = capsys.readouterr()
        return status, both.out + both.err

    return run


def test_one_recording_is_printed(
    unitkit: Callable[..., tuple[int, str]], model: Path, rows: list[Utterance], recognizer: Recognizer
) -> None:
    status, said = unitkit("transcribe", rows[0].audio, "-m", model, "--beam", 2, "--device", "cpu")
    assert status == 0 and recognizer(rows[0], beam=2) in said.splitlines()


def test_a_manifest_is_written_scored_and_kept(
    unitkit: Callable[..., tuple[int, str]], model: Path, corpus: Path, tmp_path: Path
) -> None:
    words = ["transcribe", corpus / "test.jsonl", "-m", model, "-o", tmp_path / "joint.jsonl", "--beam", 2]
    status, said = unitkit(*words, "--batch", 3)
    assert status == 0 and "8 transcribed, 0 kept, 0 bad" in said.replace("\n", " ")
    assert "0 transcribed, 8 kept" in unitkit(*words, "--batch", 8)[1].replace("\n", " ")
    status, said = unitkit(
        "transcribe", corpus / "test.units.jsonl", "--like", corpus / "test.jsonl", "-m", model, "--ctc-weight", 1,
        "-o", tmp_path / "ctc.jsonl", "--verbose",
    )  # fmt: skip
    assert status == 0 and "en/3-0: " in said
    words = ["score", tmp_path / "joint.jsonl", tmp_path / "ctc.jsonl", "--reference", corpus / "test.jsonl"]
    status, said = unitkit(*words, "--metrics", "text_cer,text_wer", "-o", tmp_path / "scores.jsonl")
    assert status == 0, said
    scores = read_scores(tmp_path / "scores.jsonl")
    assert [(row.system, row.metric) for row in scores] == [
        (system, metric) for system in ("joint", "ctc") for metric in ("text_cer", "text_wer")
    ]
    assert all(row.value is not None and 0 <= row.value < 60 and row.n == 8 for row in scores[::2])


def test_what_goes_wrong_on_the_command_line(
    unitkit: Callable[..., tuple[int, str]], model: Path, corpus: Path, rows: list[Utterance], tmp_path: Path
) -> None:
    (tmp_path / "torn.wav").write_bytes(b"RIFF")
    status, said = unitkit("transcribe", rows[0].audio, tmp_path / "torn.wav", "-m", model, "--beam", 1)
    assert status == 1 and "torn.wav" in said and Path(rows[0].audio).stem in said
    header = json.dumps({"unitkit": 1, "tokenizer": "0123456789ab", "rate_hz": 50.0, "n_units": 14, "codebooks": 1})
    (tmp_path / "other.jsonl").write_text(header.replace(" ", "") + '\n{"id":"a","units":[1,2]}\n')
    status, said = unitkit("transcribe", tmp_path / "other.jsonl", "-m", model)
    assert status == 2 and "0123456789ab" in said
    status, said = unitkit("transcribe", rows[0].audio, "-m", model, "--like", corpus / "test.jsonl")
    assert status == 2 and "is for unit files" in said.replace("\n", " ")
    status, said = unitkit("transcribe", rows[0].audio, "-m", model, "--ctc-weight", 2)
    assert status == 2 and "ctc_weight 2" in said
    assert unitkit("transcribe", "--help")[0] == 0
