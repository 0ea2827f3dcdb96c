"""verify: every promise checked on tiny checkpoints of all families, and broken promises found."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference_encoders import CHECKPOINTS, model_of
from torch import Tensor

from unitkit import audio, cli, verify
from unitkit.encoders import load_encoder
from unitkit.encoders.families import WaveformEncoder
from unitkit.encoders.filterbanks import FilterbankEncoder
from unitkit.manifest import Utterance
from unitkit.quantizers import KMeans
from unitkit.stream import Stream
from unitkit.tokenizer import Tokenizer
from unitkit.units import FingerprintError, Units, write_units

torch.set_num_threads(1)
RATE = 16000
EXACT = ("again", "chunked", "batched", "plain")


def noise(seconds: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE)) / RATE
    tone = np.sin(2 * np.pi * np.cumsum(300 + 200 * np.sin(2 * np.pi * 1.7 * t)) / RATE)
    return ((0.05 + 0.2 * np.abs(np.sin(3 * t))) * (tone + 0.3 * rng.standard_normal(len(t)))).astype(np.float32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    root = tmp_path_factory.mktemp("corpus")
    rows = []
    for seed in range(6):
        audio.write(root / f"u{seed}.wav", noise(1.0 + 0.7 * seed, seed), RATE)
        rows.append(Utterance(f"u{seed}", str(root / f"u{seed}.wav")))
    return rows


def saved(directory: Path, features: str, layer: int | None = None) -> Path:
    """A tokenizer whose centroids are frames of other audio."""
    encoder = load_encoder(features, layer=layer)
    frames = encoder(noise(20, 99))
    chosen = torch.randperm(len(frames), generator=torch.Generator().manual_seed(0))[:40]
    quantizer = KMeans(frames[chosen][None], torch.zeros(encoder.dim), torch.ones(encoder.dim))
    Tokenizer(encoder, quantizer, recipe={"features": features, "layer": layer, "padding": "none"}).save(directory)
    return directory


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved tokenizer of every family of transformers, and of MFCCs."""
    root = tmp_path_factory.mktemp("tokenizers")
    found = {"mfcc": saved(root / "mfcc", "mfcc")}
    for name in CHECKPOINTS:
        model_of(name).save_pretrained(root / "checkpoints" / name)
        found[name] = saved(root / name, str(root / "checkpoints" / name), layer=2)
    return found


def by_mode(checks: Sequence[verify.Check]) -> dict[str, verify.Check]:
    return {check.mode: check for check in checks}


# ------------------------------------------------------------------------------------------------ promises kept


def test_a_filterbank_keeps_every_promise(tokenizers: dict[str, Path], corpus: list[Utterance]) -> None:
    heard: list[str] = []
    checks = by_mode(verify.verify(tokenizers["mfcc"], corpus, on_progress=heard.append))
    assert heard == ["reference", *verify.MODES]
    frames = sum(Tokenizer.load(tokenizers["mfcc"]).encode(u).n_frames for u in corpus)
    for mode in ("again", "chunked", "batched", "streamed"):
        assert (checks[mode].verdict, checks[mode].frames, checks[mode].changed) == ("ok", frames, 0), checks[mode]
    assert (checks["windows"].verdict, checks["windows"].frames) == ("ok", 180 * 50 - 1)
    assert all(checks[mode].verdict == "skipped" and checks[mode].note for mode in ("plain", "bfloat16", "openvino"))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_family_keeps_its_promises(name: str, tokenizers: dict[str, Path], corpus: list[Utterance]) -> None:
    modes = [*EXACT, "streamed", "bfloat16"]
    checks = by_mode(verify.verify(tokenizers[name], corpus, modes=modes))
    for mode in EXACT:
        assert checks[mode].verdict == "ok" and checks[mode].promised and checks[mode].frames > 800, checks[mode]
    for mode in ("streamed", "bfloat16"):
        assert checks[mode].verdict == "reported" and checks[mode].frames == checks["again"].frames, checks[mode]
    assert checks["bfloat16"].share < 0.2 and "tokenizer" in checks["bfloat16"].note


def test_windows_are_measured_against_the_whole(
    tokenizers: dict[str, Path], corpus: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "CLIP_SECONDS", 76.0)
    (check,) = verify.verify(tokenizers["hubert-base"], corpus, modes=["windows"])
    assert check.verdict == "reported" and check.frames == pytest.approx(76 * 50, abs=2)
    assert check.share < 0.5 and "in windows of 60 s and whole; within 1 s of a joint" in check.note
    tok = Tokenizer.load(tokenizers["hubert-base"])
    clip = np.concatenate([audio.read(u.audio, RATE) for u in corpus] * 10)[: 76 * RATE]
    tok.encoder.window_s = 90  # type: ignore[attr-defined]
    whole = tok.quantizer.assign(tok.encoder(clip))
    tok.encoder.window_s = 60  # type: ignore[attr-defined]
    assert check.changed == int((tok.quantizer.assign(tok.encoder(clip)) != whole).sum())


def test_where_there_is_nothing_to_compare_it_says_why(
    tokenizers: dict[str, Path], corpus: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    (check,) = verify.verify(tokenizers["whisper"], corpus[:1], modes=["windows"])
    assert check.verdict == "skipped" and "30 s" in check.note
    monkeypatch.setattr(verify, "_affordable_seconds", lambda session: 61.0)
    (check,) = verify.verify(tokenizers["hubert-base"], corpus[:1], modes=["windows"])
    assert check.verdict == "skipped" and "not enough memory" in check.note


def test_seconds_bound_the_audio(tokenizers: dict[str, Path], corpus: list[Utterance]) -> None:
    (check,) = verify.verify(tokenizers["mfcc"], corpus, modes=["again"], seconds=2.0)
    assert check.frames == 49 + 49 and check.verdict == "ok"  # all of u0, the first second of u1
    (check,) = verify.verify(tokenizers["mfcc"], corpus, modes=["again"], seconds=1.0)
    assert check.frames == 49


# ---------------------------------------------------------------------------------------------- promises broken


def naive_batch(self: WaveformEncoder, wavs: Sequence[Any], *, max_frames: int | None = None) -> list[Tensor]:
    """What other toolkits do: zeros to the longest, no mask, and the group norm over all of it."""
    longest = max(len(wav) for wav in wavs)
    return [
        self(np.pad(wav, (0, longest - len(wav))))[: self.n_frames(len(wav))] for wav in wavs
    ]  # fmt: skip


def test_naive_padding_is_found(
    tokenizers: dict[str, Path], corpus: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WaveformEncoder, "batch", naive_batch)
    (check,) = verify.verify(tokenizers["hubert-base"], corpus, modes=["batched"])
    assert check.verdict == "FAIL" and check.changed > 0 and any(line.startswith("u0: ") for line in check.details)


def test_a_batch_off_by_more_than_it_says_is_found_even_if_no_unit_changed(
    tokenizers: dict[str, Path], corpus: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    def rough(self: FilterbankEncoder, wavs: Sequence[Any], *, max_frames: int | None = None) -> list[Tensor]:
        return [self(wav) * (1 + 5e-5) for wav in wavs]

    monkeypatch.setattr(FilterbankEncoder, "batch", rough)
    (check,) = verify.verify(tokenizers["mfcc"], corpus[:2], modes=["batched"])
    assert check.broken and check.verdict == "FAIL" and "1e-05 allowed" in check.note


def test_another_unit_or_length_anywhere_is_found(
    tokenizers: dict[str, Path], corpus: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Tokenizer._ids

    def one_more(self: Tokenizer, recording: Any) -> np.ndarray:
        ids = whole(self, recording)
        return np.concatenate([ids, ids[-1:]]) if recording.label == "u3" else ids

    def other(self: Tokenizer, recording: Any) -> np.ndarray:
        ids = whole(self, recording)
        return np.concatenate([(ids[:1] + 1) % 40, ids[1:]]) if recording.label == "u3" else ids

    def finish(self: Stream) -> Units:
        return replace(real(self), ids=np.zeros(0, np.int64))

    real = Stream.finish
    monkeypatch.setattr(Tokenizer, "_ids", one_more)
    (check,) = verify.verify(tokenizers["mfcc"], corpus, modes=["again"])
    assert check.verdict == "FAIL" and check.changed == 1 and check.details == ("u3: 155 frames, 154 expected",)
    monkeypatch.setattr(Tokenizer, "_ids", other)
    (check,) = verify.verify(tokenizers["mfcc"], corpus, modes=["again"])
    assert check.verdict == "FAIL" and check.details == ("u3: 1 of 154 units changed",)
    monkeypatch.setattr(Stream, "finish", finish)
    (check,) = verify.verify(tokenizers["hubert-base"], corpus[:1], modes=["streamed"])
    assert check.verdict == "FAIL" and not check.promised and check.broken  # a lost frame is no disagreement


# --------------------------------------------------------------------------------------------------- unit files


def unit_file(path: Path, tokenizer: Path, corpus: list[Utterance]) -> list[Units]:
    tok = Tokenizer.load(tokenizer)
    units = tok.encode(corpus)
    write_units(path, tok.header(), units)
    return units


def test_a_unit_file_is_recomputed(tokenizers: dict[str, Path], corpus: list[Utterance], tmp_path: Path) -> None:
    path = tmp_path / "units.jsonl"
    units = unit_file(path, tokenizers["hubert-base"], corpus)
    (check,) = verify.verify(tokenizers["hubert-base"], corpus, against=path)
    assert check.verdict == "ok" and check.frames == sum(map(len, units)) and check.note == "6 utterances compared"
    (check,) = verify.verify(tokenizers["hubert-base"], corpus[:2], against=path)
    assert check.verdict == "ok" and "4 row(s) whose audio was not given" in check.note
    both = verify.verify(tokenizers["hubert-base"], corpus[:1], against=path, modes=["again"])
    assert [check.mode for check in both] == ["against", "again"]


def test_one_changed_unit_in_a_file_is_found_and_named(
    tokenizers: dict[str, Path], corpus: list[Utterance], tmp_path: Path
) -> None:
    path = tmp_path / "units.jsonl"
    units = unit_file(path, tokenizers["mfcc"], corpus)
    ids = units[4].ids.copy()
    ids[17] = (ids[17] + 1) % 40
    header = Tokenizer.load(tokenizers["mfcc"]).header()
    write_units(path, header, [*units[:4], replace(units[4], ids=ids), units[5]])
    (check,) = verify.verify(tokenizers["mfcc"], corpus, against=path)
    assert (check.verdict, check.changed) == ("FAIL", 1)
    assert check.details == (f"u4: 1 of {len(ids)} units changed",)


def test_missing_short_and_foreign_rows_are_named(
    tokenizers: dict[str, Path], corpus: list[Utterance], tmp_path: Path
) -> None:
    path = tmp_path / "units.jsonl"
    units = unit_file(path, tokenizers["mfcc"], corpus)
    header = Tokenizer.load(tokenizers["mfcc"]).header()
    short, foreign = replace(units[1], ids=units[1].ids[:-2]), replace(units[2], id="nobody")
    write_units(path, header, [units[0], short, foreign, *units[3:]])
    (check,) = verify.verify(tokenizers["mfcc"], corpus, against=path)
    assert check.verdict == "FAIL" and check.changed == 2
    assert check.details == ("u2: no row", f"u1: {len(short)} frames, {len(units[1])} expected")
    assert "1 without a row" in check.note and "1 row(s) whose audio was not given" in check.note


def test_bad_audio_is_listed_and_breaks_no_promise(
    tokenizers: dict[str, Path], corpus: list[Utterance], tmp_path: Path
) -> None:
    (tmp_path / "text.wav").write_text("no audio")
    bad = Utterance("bad", str(tmp_path / "text.wav"))
    path = tmp_path / "units.jsonl"
    unit_file(path, tokenizers["mfcc"], corpus[:2])
    checks = verify.verify(tokenizers["mfcc"], [bad, *corpus[:2]], against=path, modes=["again"])
    assert [(check.mode, check.verdict) for check in checks] == [
        ("against", "ok"), ("reading", "skipped"), ("again", "ok")
    ]  # fmt: skip
    assert all("text.wav" in checks[row].details[0] for row in (0, 1))
    with pytest.raises(ValueError, match=r"no audio that can be verified: .*text\.wav"):
        verify.verify(tokenizers["mfcc"], [bad])


def test_what_cannot_be_checked_is_refused(
    tokenizers: dict[str, Path], corpus: list[Utterance], tmp_path: Path
) -> None:
    path = tmp_path / "units.jsonl"
    unit_file(path, tokenizers["mfcc"], corpus[:1])
    with pytest.raises(FingerprintError, match=r"units\.jsonl"):
        verify.verify(tokenizers["hubert-base"], corpus, against=path)
    with pytest.raises(ValueError, match="unknown mode 'twice'; known: again, chunked"):
        verify.verify(tokenizers["mfcc"], corpus, modes=["twice"])


# ------------------------------------------------------------------------------------------------------ command


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of `unitkit verify ARGUMENTS`, in this process."""
    monkeypatch.setattr(sys, "argv", ["unitkit", "verify", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0), *capsys.readouterr()


def test_the_command_prints_a_table_and_its_status_tells(
    tokenizers: dict[str, Path],
    corpus: list[Utterance],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mfcc, folder, path = tokenizers["mfcc"], Path(corpus[0].audio).parent, tmp_path / "units.jsonl"
    code, out, _ = command(monkeypatch, capsys, mfcc, folder, "--modes", "again,streamed,bfloat16", "--minutes", "0.1")
    assert code == 0
    rows = {line.split()[0]: line.split() for line in out.splitlines()}
    assert rows["streamed"][2:6] == ["0", "0.000%", "0", "ok"] and rows["bfloat16"][1] == "skipped"
    assert "2 promise(s) kept" in out
    units = unit_file(path, mfcc, corpus)
    lines = path.read_text().splitlines()
    row = json.loads(lines[3])
    key = next(name for name, value in row.items() if isinstance(value, list))
    row[key][5] = (row[key][5] + 1) % 40
    path.write_text("\n".join([*lines[:3], json.dumps(row), *lines[4:]]) + "\n")
    code, out, errors = command(monkeypatch, capsys, mfcc, folder, "--against", path)
    assert code == 1 and "FAIL: against" in out
    assert f"u2: 1 of {len(units[2])} units changed" in errors
    code, _, errors = command(monkeypatch, capsys, tokenizers["hubert-base"], folder, "--against", path)
    assert code == 2 and "different tokenizers do not mix" in " ".join(errors.split())


def test_encode_tells_what_windows_change(
    tokenizers: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    audio.write(tmp_path / "long.wav", noise(75.0, 3), RATE)

    def encoded(name: str) -> str:
        command = ["unitkit", "encode", tmp_path / "long.wav", "-t", tokenizers[name], "-o", tmp_path / f"{name}.jsonl"]
        monkeypatch.setattr(sys, "argv", [*map(str, command), "--overwrite"])
        cli.app(standalone_mode=False)
        return " ".join(capsys.readouterr().out.split())

    assert "which changes no unit" in encoded("mfcc")
    assert "1 recording(s) longer than 60 s were encoded in windows; `unitkit verify" in encoded("hubert-base")
    monkeypatch.setattr("unitkit.cli.encode.WORTH_MEASURING", 0)
    assert "% of units differ from whole" in encoded("hubert-base")
