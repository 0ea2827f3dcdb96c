"""The bundled tokenizers: size, speed and, on voices they have not heard, the margins over k-means of log-mels.

The full measurement is egs/prompts/pretrain/README.md; here an excerpt of the same test split guards the shipped files.
"""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

import unitkit
from unitkit import Tokenizer, audio
from unitkit.manifest import read_manifest
from unitkit.metrics.unit_scores import score_units
from unitkit.tokenizer import BUNDLED

torch.set_num_threads(1)
HERE = Path(__file__).parent
HELD_OUT = HERE / "held_out"
SAMPLES = HERE.parents[0] / "samples"
NAMES = {"mini": 500, "mini-100": 100}


@pytest.fixture(scope="module")
def wavs() -> list[np.ndarray]:
    return [audio.read(row.audio, 16000) for row in read_manifest(SAMPLES / "en" / "test.jsonl")]


def scores(tokenizer: Tokenizer) -> dict[str, float]:
    rows = list(read_manifest(HELD_OUT / "manifest.jsonl"))
    units = {row.id: one for row, one in zip(rows, tokenizer.encode(rows), strict=True)}
    found = score_units(units, HELD_OUT / "phones.tsv", manifest=rows, metrics="pnmi,abx_across,ued")
    return {row.metric: row.value for row in found if row.value is not None}


def test_they_are_small_and_say_what_they_are():
    total = sum(path.stat().st_size for name in NAMES for path in (BUNDLED / name).rglob("*") if path.is_file())
    assert total <= 12e6
    for name, k in NAMES.items():
        tokenizer = Tokenizer.load(name)
        assert (tokenizer.n_units, tokenizer.rate_hz, tokenizer.codebooks) == (k, 50.0, 1)
        card = (BUNDLED / name / "card.md").read_text()
        assert all(word in card for word in ("Licence", "Whisper", "seed", "command", "control", "Limits")), card
    assert unitkit.Tokenizer.load().fingerprint == Tokenizer.load("mini").fingerprint
    assert Tokenizer.load("mini").encoder.settings() == Tokenizer.load("mini-100").encoder.settings()


def test_units_are_those_of_the_file_alone(wavs):
    tokenizer = Tokenizer.load("mini")
    alone = [tokenizer.encode(wav, rate=16000).ids for wav in wavs]
    batched = tokenizer.encode([torch.from_numpy(wav) for wav in wavs], rate=16000, batched=True)
    assert all(np.array_equal(one, other.ids) for one, other in zip(alone, batched, strict=True))
    assert len({int(unit) for ids in alone for unit in ids}) > 100


@pytest.mark.slow
@pytest.mark.parametrize(("name", "k"), NAMES.items())
def test_margins_on_unheard_voices(name, k):
    """Beside k-means of log-mels, fitted on other speech too: 500 centroids of this excerpt would know it by heart."""
    rows = [row for lang in ("en", "es") for row in read_manifest(SAMPLES / lang / "train.jsonl")]
    plain = scores(Tokenizer.fit(rows, features="logmel", units=k))
    ours = scores(Tokenizer.load(name))
    print(name, ours, "log-mel", plain)
    assert ours["pnmi"] >= plain["pnmi"] + 0.10
    assert ours["ued"] <= 0.6 * plain["ued"]
    assert ours["abx_across"] <= 0.6 * plain["abx_across"]


@pytest.mark.slow
def test_faster_than_speech(wavs):
    """Processor time of one core, all of it: reading is not counted, the first call is."""
    tokenizer = Tokenizer.load("mini")
    start = time.process_time()
    for wav in wavs:
        tokenizer.encode(wav, rate=16000)
    assert sum(map(len, wavs)) / 16000 / (time.process_time() - start) >= 25
