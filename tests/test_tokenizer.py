"""The tokenizer artefact: its fingerprint, its files, and the same units however it is asked."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from unitkit import audio, recording, tokenizer
from unitkit.audio import AudioError
from unitkit.encoders import load_encoder
from unitkit.manifest import Utterance, write_manifest
from unitkit.quantizers import KMeans, QuantizerError
from unitkit.tokenizer import Tokenizer, TokenizerError, core, files
from unitkit.units import FingerprintError, Units, UnitsHeader

RATE = 16000


def wave(seconds: float, seed: int, rate: int = RATE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    pitch = 120 + 60 * seed + 40 * np.sin(2 * np.pi * 1.5 * t)
    return (0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / rate) + 0.03 * rng.standard_normal(len(t))).astype(np.float32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    root = tmp_path_factory.mktemp("corpus")
    rows = []
    for seed in range(5):
        audio.write(root / f"u{seed}.wav", wave(1.2 + 0.3 * seed, seed), RATE)
        rows.append(Utterance(f"u{seed}", str(root / f"u{seed}.wav")))
    write_manifest(root / "train.jsonl", rows)
    return rows


@pytest.fixture(scope="module")
def mfcc(corpus: list[Utterance]) -> Tokenizer:
    return Tokenizer.fit(corpus, units=16, seed=1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random HuBERT with three layers."""
    return tiny_hubert(tmp_path_factory.mktemp("hubert"), seed=0)


def tiny_hubert(directory: Path, seed: int) -> Path:
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(seed)
    config = HubertConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    HubertModel(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def hubert(corpus: list[Utterance], checkpoint: Path) -> Tokenizer:
    return Tokenizer.fit(corpus, features=str(checkpoint), layer=2, units=12)


# ---------------------------------------------------------------------------------------------------------- encode


def test_units_say_what_they_are(mfcc: Tokenizer, corpus: list[Utterance]) -> None:
    units = mfcc.encode(corpus[0])
    assert isinstance(units, Units) and units.tokenizer == mfcc.fingerprint and units.id == "u0"
    assert (units.rate_hz, units.n_units, units.codebooks) == (50.0, 16, 1)
    assert units.n_frames == mfcc.encoder.n_frames(round(1.2 * RATE)) and len(np.unique(units.ids)) > 2
    assert mfcc.header() == UnitsHeader(mfcc.fingerprint, 50.0, 16, 1)
    assert mfcc.sample_rate == RATE


@pytest.mark.parametrize("which", ["mfcc", "hubert"])
def test_same_answer_alone_in_a_list_from_a_path_or_an_array(
    which: str, corpus: list[Utterance], request: pytest.FixtureRequest
) -> None:
    tok: Tokenizer = request.getfixturevalue(which)
    alone = [tok.encode(u) for u in corpus]
    assert tok.encode(corpus) == alone and tok.encode(tuple(reversed(corpus))) == alone[::-1]
    assert tok.encode([]) == []
    for utterance, units in zip(corpus, alone, strict=True):
        assert tok.encode(utterance.audio) == units == tok.encode(Path(utterance.audio))
        wav = audio.read(utterance.audio, RATE)
        for array in (wav, wav.astype(np.float64), torch.from_numpy(wav)):
            assert tok.encode(array, rate=RATE) == replace(units, id="")


def test_start_and_duration_cut_and_duration_alone_does_not(mfcc: Tokenizer, corpus: list[Utterance]) -> None:
    whole = audio.read(corpus[4].audio, RATE)
    part = Utterance("part", corpus[4].audio, start=0.5, duration=0.8)
    assert np.array_equal(mfcc.encode(part).ids, mfcc.encode(whole[8000:20800], rate=RATE).ids)
    tail = Utterance("tail", corpus[4].audio, start=0.5)
    assert np.array_equal(mfcc.encode(tail).ids, mfcc.encode(whole[8000:], rate=RATE).ids)
    rounded = Utterance("u4", corpus[4].audio, duration=2.3)  # the file has 2.4 s
    assert mfcc.encode(rounded) == mfcc.encode(corpus[4])


def test_any_rate_and_two_channels(mfcc: Tokenizer, tmp_path: Path) -> None:
    import soundfile

    wav = wave(1.5, 3, rate=44100)
    soundfile.write(tmp_path / "stereo.wav", np.stack([wav * 1.5, wav * 0.5], axis=1), 44100, subtype="FLOAT")
    soundfile.write(tmp_path / "mono.wav", wav, 44100, subtype="FLOAT")
    mono = mfcc.encode(tmp_path / "mono.wav")
    assert np.mean(mfcc.encode(tmp_path / "stereo.wav").ids == mono.ids) > 0.97  # averaging rounds
    assert np.array_equal(mfcc.encode(wav, rate=44100).ids, mono.ids)
    assert abs(mono.duration - 1.5) < 0.05


@pytest.mark.parametrize(
    ("wav", "rate", "message"),
    [
        (np.zeros(RATE, np.float32), None, r"encode\(wav, rate=16000\)"),
        (np.zeros((2, RATE), np.float32), RATE, "mono"),
        (np.zeros(RATE, np.int16), RATE, "int16"),
        (np.full(RATE, np.nan, np.float32), RATE, "NaN"),
        (np.zeros(100, np.float32), RATE, r"array: too short: 0\.0063 s, .* at least 0\.0250 s"),
    ],
)
def test_bad_arrays_are_refused(mfcc: Tokenizer, wav: np.ndarray, rate: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mfcc.encode(wav, rate=rate)


def test_bad_files_are_named(mfcc: Tokenizer, corpus: list[Utterance], tmp_path: Path) -> None:
    audio.write(tmp_path / "short.wav", np.zeros(300, np.float32), RATE)
    with pytest.raises(AudioError, match=r"short\.wav: too short: 0\.0187 s, but one frame takes at least 0\.0250 s"):
        mfcc.encode([corpus[0], tmp_path / "short.wav"])
    (tmp_path / "text.wav").write_text("not audio")
    with pytest.raises(AudioError, match=r"text\.wav"):
        mfcc.encode(tmp_path / "text.wav")
    with pytest.raises(AudioError, match=r"missing\.wav"):
        mfcc.encode(str(tmp_path / "missing.wav"))


def test_embed_gives_the_centroids(mfcc: Tokenizer, corpus: list[Utterance]) -> None:
    units = mfcc.encode(corpus[1])
    vectors = mfcc.embed(units)
    assert vectors.shape == (len(units), mfcc.encoder.dim)
    assert np.array_equal(mfcc.quantizer.assign(vectors), units.ids)
    assert torch.equal(mfcc.embed(units.dedup()[0]), vectors[np.r_[True, np.diff(units.ids) != 0]])
    with pytest.raises(FingerprintError, match="other"):
        mfcc.embed(replace(units, tokenizer="other"))


def test_batches_give_the_same_units_and_close_calls_are_encoded_alone(
    corpus: list[Utterance], hubert: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tok = Tokenizer(load_encoder(hubert.recipe["features"], layer=2, engine="plain"), hubert.quantizer, recipe={})
    alone = tok.encode(corpus)
    assert tok.encode(corpus, batched=True) == alone == hubert.encode(corpus)
    calls: list[str] = []
    whole = Tokenizer._ids
    monkeypatch.setattr(Tokenizer, "_ids", lambda self, x: (calls.append(x.label), whole(self, x))[1])
    assert tok.encode(corpus[:3], batched=True) == alone[:3] and calls == []  # no close call among these
    # A centroid beside another one: where the two are nearest, no batch may decide.
    quantizer = KMeans(tok.quantizer.centroids.clone(), tok.quantizer.mean, tok.quantizer.std)
    quantizer.centroids[0, 1] = quantizer.centroids[0, 0] * (1 + 1e-6)
    close = Tokenizer(tok.encoder, quantizer, recipe={})
    units = [close.encode(u) for u in corpus]
    calls.clear()
    assert close.encode(corpus, batched=True) == units
    assert set(calls) == {u.id for u in units if np.isin(u.ids, (0, 1)).any()} != set()


def test_a_batch_keeps_order_beside_long_recordings(
    corpus: list[Utterance], mfcc: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "BLOCK_SECONDS", 0.5)
    monkeypatch.setattr(recording, "HELD_BLOCKS", 3)  # only u0 (1.2 s) and u1 (1.5 s) are held
    monkeypatch.setattr(recording, "GROUP_SECONDS", 2.0)
    mixed = [corpus[4], corpus[0], corpus[1], corpus[2], corpus[0]]
    held = [recording.of_utterance(u, RATE, seconds=0.5).hold(mfcc.encoder) for u in mixed]
    assert held == [False, True, True, False, True]
    assert mfcc.encode(mixed, batched=True) == [mfcc.encode(u) for u in mixed]
    wav = audio.read(corpus[3].audio, RATE)
    assert mfcc.encode([wav, corpus[0]], rate=RATE, batched=True)[0] == replace(mfcc.encode(corpus[3]), id="")


@pytest.mark.parametrize("which", ["mfcc", "hubert"])
def test_long_files_are_encoded_in_pieces_to_the_same_units(
    which: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    tok: Tokenizer = request.getfixturevalue(which)
    wav = np.concatenate([wave(25, seed) for seed in range(3)])  # longer than a window
    audio.write(tmp_path / "long.wav", wav, RATE)
    whole = tok.encode(audio.read(tmp_path / "long.wav", RATE), rate=RATE)
    assert tok.encode(tmp_path / "long.wav") == replace(whole, id="long")
    monkeypatch.setattr(recording, "HELD_BLOCKS", 1)  # read anew for every pass
    assert tok.encode(tmp_path / "long.wav") == replace(whole, id="long")
    assert tok.encode([tmp_path / "long.wav"], batched=True) == [replace(whole, id="long")]


def test_fit_takes_long_files_in_pieces_and_nothing_of_one_that_breaks_off(
    corpus: list[Utterance], mfcc: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "HELD_BLOCKS", 0)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 40 * RATE).astype(np.float32)
    audio.write(tmp_path / "cut.flac", noise, RATE)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "cut.flac").read_bytes()[:-20000])
    errors: list[str] = []
    mixed = [Utterance("cut", str(tmp_path / "cut.flac")), *corpus]
    tok = Tokenizer.fit(mixed, units=16, seed=1, on_error=lambda u, e: errors.append(u.id))
    assert errors == ["cut"] and tok.fingerprint == mfcc.fingerprint
    assert tok.provenance["seconds"] == pytest.approx(9.0)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the kernel's count of memory")
def test_an_hour_takes_little_more_memory_than_a_minute(tmp_path: Path) -> None:
    """The bundled tokenizer in a process of its own: how far the hour raises the peak that a minute left."""
    rng = np.random.default_rng(0)
    minute = (rng.uniform(-0.3, 0.3, 60 * RATE) * np.abs(np.sin(np.arange(60 * RATE) / 9000))).astype(np.float32)
    audio.write(tmp_path / "minute.wav", minute, RATE)
    with soundfile.SoundFile(tmp_path / "hour.wav", "w", RATE, 1, "PCM_16") as file:
        for _ in range(60):
            file.write((minute * 32767).astype(np.int16))
    code = (
        "import re, sys, torch; torch.set_num_threads(1); from unitkit.tokenizer import Tokenizer\n"
        # not getrusage, which starts a child at the peak of its parent
        "def peak(): return re.findall('VmHWM: *\\t* *(\\\\d+)', open('/proc/self/status').read())[0]\n"
        "tok = Tokenizer.load('prompts-mfcc100', device='cpu')\n"
        "for path in sys.argv[1:]: "
        "print(tok.encode(path).n_frames, peak())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "minute.wav"), str(tmp_path / "hour.wav")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    few, before, many, after = map(int, printed)
    assert (few, many) == (2999, 179999)
    assert (after - before) / 1024 < 100, f"{(after - before) / 1024:.0f} MiB more; an hour of samples has 220"


# ------------------------------------------------------------------------------------------------------- precision


def test_another_precision_is_another_tokenizer(hubert: Tokenizer, corpus: list[Utterance], tmp_path: Path) -> None:
    hubert.save(tmp_path / "tok")
    assert hubert.exact and hubert.recipe["precision"] == "float32"
    for engine in ("plain", "fast", "auto"):
        same = Tokenizer.load(tmp_path / "tok", device="cpu", engine=engine, precision="float32")
        assert same.fingerprint == hubert.fingerprint and same.encode(corpus) == hubert.encode(corpus)
    half = Tokenizer.load(tmp_path / "tok", device="cpu", precision="bfloat16")
    plain = Tokenizer.load(tmp_path / "tok", device="cpu", precision="bfloat16", engine="plain")
    assert len({hubert.fingerprint, half.fingerprint, plain.fingerprint}) == 3
    assert not half.exact and half.recipe["precision"] == "bfloat16" and half.recipe["engine"] == "fast"
    units = half.encode(corpus[0])
    assert units.tokenizer == half.fingerprint
    assert np.mean(units.ids == hubert.encode(corpus[0]).ids) > 0.8
    with pytest.raises(FingerprintError):
        hubert.embed(units)
    with pytest.raises(ValueError, match=r"fast bfloat16: its units would depend .* batched=False"):
        half.encode(corpus, batched=True)


def test_a_saved_precision_comes_back_and_cannot_be_hidden(
    hubert: Tokenizer, corpus: list[Utterance], tmp_path: Path
) -> None:
    hubert.save(tmp_path / "tok")
    half = Tokenizer.load(tmp_path / "tok", device="cpu", precision="bfloat16")
    half.save(tmp_path / "half")
    again = Tokenizer.load(tmp_path / "half", device="cpu")
    assert again.fingerprint == half.fingerprint and again.encode(corpus[1]) == half.encode(corpus[1])
    full = Tokenizer.load(tmp_path / "half", device="cpu", precision="float32")
    assert full.fingerprint == hubert.fingerprint and full.encode(corpus[1]) == hubert.encode(corpus[1])
    tamper_json("recipe.precision", "float32")(tmp_path / "half")
    with pytest.raises(FingerprintError, match="differ in fingerprint, encoder"):
        Tokenizer.load(tmp_path / "half", device="cpu")
    tamper_tensors(tmp_path / "tok")
    with pytest.raises(FingerprintError, match=r"tok: tokenizer\.json says .* differ in"):
        Tokenizer.load(tmp_path / "tok", device="cpu", precision="bfloat16")


def test_fit_in_another_precision(corpus: list[Utterance], hubert: Tokenizer, tmp_path: Path) -> None:
    source = hubert.recipe["features"]
    tok = Tokenizer.fit(corpus, features=source, layer=2, units=12, precision="bfloat16", device="cpu")
    assert tok.recipe["precision"] == "bfloat16" and tok.fingerprint != hubert.fingerprint
    tok.save(tmp_path / "tok")
    assert Tokenizer.load(tmp_path / "tok", device="cpu").encode(corpus[0]) == tok.encode(corpus[0])
    for precision, engine in (("float16", "auto"), ("float32", "quick"), ("int8", "fast")):
        with pytest.raises(ValueError, match="unknown|does not do"):
            Tokenizer.fit(corpus, features=source, layer=2, units=12, precision=precision, engine=engine)
    with pytest.raises(ValueError, match="mfcc"):
        Tokenizer.fit(corpus, units=16, precision="bfloat16")


# ------------------------------------------------------------------------------------------------------------- fit


def test_fit_is_seeded_and_takes_a_manifest_path(mfcc: Tokenizer, corpus: list[Utterance]) -> None:
    path = Path(corpus[0].audio).with_name("train.jsonl")
    seen: list[str] = []
    same = Tokenizer.fit(path, units=16, seed=1, progress=lambda u: seen.append(u.id))
    assert same.fingerprint == mfcc.fingerprint and seen == [u.id for u in corpus]
    assert same.provenance["data"] == str(path) and same.provenance["utterances"] == 5
    assert same.provenance["seconds"] == pytest.approx(9.0)
    assert same.quantizer.report["units_used"] == 16


def test_fit_keeps_to_max_frames(corpus: list[Utterance]) -> None:
    tok = Tokenizer.fit(iter(corpus), units=8, max_frames=60)
    assert tok.quantizer.report["frames"] == 60


@pytest.mark.parametrize(("kind", "codebooks"), [("residual", 2), ("product", 3)])
def test_several_codebooks(corpus: list[Utterance], tmp_path: Path, kind: str, codebooks: int) -> None:
    tok = Tokenizer.fit(corpus, units=6, kind=kind, codebooks=codebooks)
    units = tok.encode(corpus[0])
    assert units.ids.shape == (units.n_frames, codebooks) and tok.header().codebooks == codebooks
    tok.save(tmp_path / "tok")
    assert Tokenizer.load(tmp_path / "tok").encode(corpus[0]) == units


def test_fit_stops_at_a_bad_file_unless_told_otherwise(
    corpus: list[Utterance], mfcc: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "text.wav").write_text("not audio")
    audio.write(tmp_path / "short.wav", np.zeros(300, np.float32), RATE)
    bad = [Utterance("t", str(tmp_path / "text.wav")), Utterance("s", str(tmp_path / "short.wav"))]
    mixed = [bad[0], *corpus[:2], bad[1], *corpus[2:]]
    with pytest.raises(AudioError, match=r"text\.wav"):
        Tokenizer.fit(mixed, units=16, seed=1)
    errors: list[tuple[str, str]] = []
    tok = Tokenizer.fit(mixed, units=16, seed=1, on_error=lambda u, e: errors.append((u.id, str(e))))
    assert tok.fingerprint == mfcc.fingerprint and tok.provenance["skipped"] == 2
    assert [name for name, _ in errors] == ["t", "s"] and "too short" in errors[1][1]


def test_too_little_data_names_both_numbers(corpus: list[Utterance]) -> None:
    with pytest.raises(QuantizerError, match=r"1000 units cannot be fitted to 4\d\d frames"):
        Tokenizer.fit(corpus, units=1000)
    with pytest.raises(QuantizerError, match="no frames"):
        Tokenizer.fit([], units=4)


# ----------------------------------------------------------------------------------------------------- fingerprint


def test_every_setting_that_changes_units_changes_the_fingerprint(
    corpus: list[Utterance], mfcc: Tokenizer, hubert: Tokenizer, checkpoint: Path, tmp_path: Path
) -> None:
    other_weights = tiny_hubert(tmp_path / "other", seed=1)
    ssl = str(checkpoint)
    fits: dict[str, Callable[[], Tokenizer]] = {
        "seed": lambda: Tokenizer.fit(corpus, units=16, seed=2),
        "units": lambda: Tokenizer.fit(corpus, units=15, seed=1),
        "padding": lambda: Tokenizer.fit(corpus, units=16, seed=1, padding="center"),
        "features": lambda: Tokenizer.fit(corpus, features="logmel", units=16, seed=1),
        "kind": lambda: Tokenizer.fit(corpus, units=16, seed=1, kind="residual", codebooks=2),
        "layer": lambda: Tokenizer.fit(corpus, features=ssl, layer=1, units=12),
        "ssl padding": lambda: Tokenizer.fit(corpus, features=ssl, layer=2, units=12, padding="center"),
        "weights": lambda: Tokenizer.fit(corpus, features=str(other_weights), layer=2, units=12),
    }
    prints = {name: fit().fingerprint for name, fit in fits.items()} | {"a": mfcc.fingerprint, "b": hubert.fingerprint}
    assert len(set(prints.values())) == len(prints), prints
    assert all(len(p) == 12 and set(p) <= set("0123456789abcdef") for p in prints.values())


def test_layer_padding_and_weights_count_even_with_the_same_centroids(
    hubert: Tokenizer, checkpoint: Path, tmp_path: Path
) -> None:
    """Centroids held fixed, so that nothing but the encoder's own settings can tell these apart."""

    def fingerprint(source: Path, layer: int, padding: str) -> str:
        encoder = load_encoder(str(source), layer=layer, padding=padding)
        return Tokenizer(encoder, hubert.quantizer, recipe={}).fingerprint

    same = fingerprint(checkpoint, 2, "none")
    assert same == hubert.fingerprint
    other = tiny_hubert(tmp_path / "other", seed=1)
    changed = {fingerprint(checkpoint, 1, "none"), fingerprint(checkpoint, 2, "center"), fingerprint(other, 2, "none")}
    assert len(changed | {same}) == 4


def test_one_bit_of_any_tensor_changes_the_fingerprint(mfcc: Tokenizer) -> None:
    for name in ("centroids", "mean", "std"):
        state = {key: tensor.clone() for key, tensor in mfcc.quantizer.state().items()}
        flat = state[name].view(-1)
        flat[-1] = torch.nextafter(flat[-1], torch.tensor(1e9))
        changed = KMeans.from_state(mfcc.quantizer.settings(), state)
        assert Tokenizer(mfcc.encoder, changed, recipe={}).fingerprint != mfcc.fingerprint


def test_conventions_count(mfcc: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(core.CONVENTIONS, "channels", "left")
    assert Tokenizer(mfcc.encoder, mfcc.quantizer, recipe={}).fingerprint != mfcc.fingerprint


class Constant:
    """Stands in for an encoder whose settings never change."""

    sample_rate, rate_hz = RATE, 50

    def settings(self) -> dict[str, Any]:
        return {"features": "constant", "floor": 1e-10, "größe": [1, None, True]}


def test_the_fingerprint_is_a_fixed_function() -> None:
    """If this number changes, every published fingerprint does: then FORMAT must change with it."""
    centroids = torch.arange(12, dtype=torch.float32).reshape(1, 4, 3) / 8
    encoder: Any = Constant()
    tok = Tokenizer(encoder, KMeans(centroids, torch.zeros(3), torch.ones(3)), recipe={})
    assert tok.fingerprint == "87a6797bf302"


def test_another_process_makes_the_same_fingerprint_and_units(
    mfcc: Tokenizer, corpus: list[Utterance], tmp_path: Path
) -> None:
    mfcc.save(tmp_path / "tok")
    code = (
        "import sys; from unitkit.tokenizer import Tokenizer; t = Tokenizer.load(sys.argv[1], device='cpu'); "
        "print(t.fingerprint, *t.encode(sys.argv[2]).ids)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "tok"), corpus[2].audio]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert printed == [mfcc.fingerprint, *map(str, mfcc.encode(corpus[2]).ids)]


# ----------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("which", ["mfcc", "hubert"])
def test_save_move_load(which: str, corpus: list[Utterance], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tok: Tokenizer = request.getfixturevalue(which)
    tok.save(tmp_path / "a" / "tok", card="For tests.")
    shutil.move(tmp_path / "a" / "tok", tmp_path / "moved")
    again = Tokenizer.load(tmp_path / "moved")
    assert again.fingerprint == tok.fingerprint and again.encode(corpus) == tok.encode(corpus)
    assert again.quantizer.report == tok.quantizer.report and again.provenance == tok.provenance
    again.save(tmp_path / "copy")
    assert Tokenizer.load(str(tmp_path / "copy")).fingerprint == tok.fingerprint
    assert [p.name for p in (tmp_path / "a").iterdir()] == []
    names = {path.name for path in (tmp_path / "moved").iterdir()}
    assert names == {"tokenizer.json", "model.safetensors", "card.md"} | ({"encoder"} if which == "hubert" else set())


def test_a_saved_ssl_tokenizer_needs_its_source_no_more(corpus: list[Utterance], tmp_path: Path) -> None:
    source = tiny_hubert(tmp_path / "source", seed=5)
    tok = Tokenizer.fit(corpus, features=str(source), units=6)  # the default layer
    tok.save(tmp_path / "tok")
    units = tok.encode(corpus)
    shutil.rmtree(source)
    assert Tokenizer.load(tmp_path / "tok").encode(corpus) == units


def test_the_files_can_be_read_by_people(mfcc: Tokenizer, tmp_path: Path) -> None:
    mfcc.save(tmp_path / "tok", card="Fitted on sweeps, CC0.")
    facts = json.loads((tmp_path / "tok" / "tokenizer.json").read_text())
    assert facts["fingerprint"] == mfcc.fingerprint and facts["n_units"] == 16 and facts["provenance"]["seed"] == 1
    assert (tmp_path / "tok" / "tokenizer.json").read_text().count("\n") > 20
    card = (tmp_path / "tok" / "card.md").read_text()
    for part in (
        mfcc.fingerprint,
        "Fitted on sweeps, CC0.",
        "seed: 1",
        "inertia_per_frame",
        "command: ",
        "utterances: 5",
    ):
        assert part in card


def tamper_json(key: str, value: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        facts = json.loads((directory / "tokenizer.json").read_text())
        inner = facts
        *path, last = key.split(".")
        for name in path:
            inner = inner[name]
        inner[last] = value
        (directory / "tokenizer.json").write_text(json.dumps(facts))

    return change


def tamper_tensors(directory: Path) -> None:
    raw = bytearray((directory / "model.safetensors").read_bytes())
    raw[-5] ^= 1
    (directory / "model.safetensors").write_bytes(raw)


def tamper_encoder(directory: Path) -> None:
    path = directory / "encoder" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    "tamper",
    [
        tamper_tensors,
        tamper_encoder,
        tamper_json("fingerprint", "0123456789ab"),
        tamper_json("recipe.layer", 1),
        tamper_json("recipe.padding", "center"),
        tamper_json("encoder.weights", "0"),
        tamper_json("quantizer.distance", "cosine"),
        tamper_json("rate_hz", 25.0),
        tamper_json("sample_rate", 8000),
        tamper_json("n_units", 100),
        tamper_json("codebooks", 2),
        tamper_json("conventions.channels", "left"),
    ],
)
def test_a_changed_directory_is_refused(hubert: Tokenizer, tmp_path: Path, tamper: Callable[[Path], None]) -> None:
    hubert.save(tmp_path / "tok")
    Tokenizer.load(tmp_path / "tok")
    tamper(tmp_path / "tok")
    with pytest.raises(FingerprintError, match=r"tok: tokenizer\.json says .* differ in"):
        Tokenizer.load(tmp_path / "tok")


def test_broken_directories_are_named(mfcc: Tokenizer, tmp_path: Path) -> None:
    def broken(name: str, text: bytes | None) -> Path:
        mfcc.save(tmp_path / "tok", overwrite=True)
        path = tmp_path / "tok" / name
        path.unlink() if text is None else path.write_bytes(text)
        return tmp_path / "tok"

    for name, text, message in [
        ("tokenizer.json", b"{", r"tokenizer\.json: not a tokenizer"),
        ("tokenizer.json", b'{"unitkit_tokenizer": 9}', "format 9"),
        ("tokenizer.json", b'{"unitkit_tokenizer": 1}', "lacks fingerprint"),
        ("tokenizer.json", None, r"has no tokenizer\.json"),
        ("model.safetensors", b"short", r"model\.safetensors"),
        ("model.safetensors", None, r"model\.safetensors"),
    ]:
        with pytest.raises(TokenizerError, match=message):
            Tokenizer.load(broken(name, text))
        shutil.rmtree(tmp_path / "tok")


def test_save_replaces_only_itself_unless_told(mfcc: Tokenizer, hubert: Tokenizer, tmp_path: Path) -> None:
    mfcc.save(tmp_path / "tok")
    mfcc.save(tmp_path / "tok", card="again")
    assert "again" in (tmp_path / "tok" / "card.md").read_text()
    with pytest.raises(TokenizerError, match=f"holds tokenizer {mfcc.fingerprint}, not {hubert.fingerprint}"):
        hubert.save(tmp_path / "tok")
    assert Tokenizer.load(tmp_path / "tok").fingerprint == mfcc.fingerprint
    hubert.save(tmp_path / "tok", overwrite=True)
    mfcc.save(tmp_path / "tok", overwrite=True)
    assert not (tmp_path / "tok" / "encoder").exists() and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "tok" / "thesis.tex").write_text("do not delete")
    with pytest.raises(TokenizerError, match=r"holds other files \(thesis\.tex\)"):
        hubert.save(tmp_path / "tok", overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(TokenizerError, match="is a file"):
        mfcc.save(tmp_path / "file", overwrite=True)


def test_a_failed_save_leaves_nothing_and_keeps_the_old(
    mfcc: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError("disk full")

    mfcc.save(tmp_path / "tok")
    monkeypatch.setattr(core, "serialize", full)
    for name in ("tok", "new"):
        with pytest.raises(OSError, match="disk full"):
            mfcc.save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["tok"]
    assert Tokenizer.load(tmp_path / "tok").fingerprint == mfcc.fingerprint


def test_bundled_ones_go_by_name_and_unknown_names_list_them(
    mfcc: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BUNDLED", tmp_path / "bundled")
    mfcc.save(tmp_path / "bundled" / "mini")
    assert tokenizer.bundled() == ["mini"]
    assert Tokenizer.load("mini").fingerprint == mfcc.fingerprint
    with pytest.raises(TokenizerError, match="'nano' is neither a directory nor a bundled tokenizer; bundled: mini"):
        Tokenizer.load("nano")


def test_pick_device() -> None:
    assert tokenizer.pick_device("cpu") == "cpu"
    assert tokenizer.pick_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
