"""Precision and engine of an encoder: what goes together, and what the settings say of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from reference_encoders import model_of, tiny, wav_of

from unitkit.encoders import engines, load_encoder

WAV = wav_of(40_000, seed=3)
FAST = ["hubert-base", "hubert-large", "wav2vec2-base", "wavlm-base", "wavlm-large", "data2vec-audio"]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.fixture
def saved(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    model_of(request.param).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def of(*names: str) -> Any:
    return pytest.mark.parametrize("saved", names, indirect=True)


@pytest.mark.parametrize("name", FAST)
def test_float32_is_the_same_on_every_engine_and_leaves_no_trace(name: str) -> None:
    plain, fast, auto = (tiny(name, engine=engine) for engine in ("plain", "fast", "auto"))
    assert (plain.engine, fast.engine, auto.engine) == ("plain", "fast", "fast")
    assert plain.settings() == fast.settings() == auto.settings()
    assert "arithmetic" not in plain.settings()
    found = fast(WAV)
    assert ((found - plain(WAV)).norm(dim=1) / plain(WAV).norm(dim=1)).max() < 1e-5
    assert torch.equal(auto(WAV), found)


@pytest.mark.parametrize("name", ["w2v-bert", "whisper", "mhubert"])
def test_auto_is_plain_where_the_fast_engine_covers_nothing(name: str) -> None:
    assert tiny(name, engine="auto").engine == "plain"


@pytest.mark.parametrize("name", ["hubert-base", "hubert-large", "mhubert", "wavlm-base", "w2v-bert", "whisper"])
def test_plain_bfloat16_is_close_and_another_tokenizer(name: str) -> None:
    full, half = tiny(name), tiny(name, precision="bfloat16")
    found = half(WAV)
    assert found.dtype == torch.float32
    assert 1e-4 < relative(found, full(WAV)) < 0.1
    assert half.settings() == {**full.settings(), "arithmetic": "plain bfloat16"}
    batched = half.batch([WAV, WAV[:9000]])
    assert relative(batched[0], full(WAV)) < 0.1 and not torch.equal(batched[1], full(WAV[:9000]))


@of("hubert-base")
def test_fast_bfloat16_saves_full_weights(saved: Path, tmp_path: Path) -> None:
    half = load_encoder(saved, layer=2, precision="bfloat16")
    full = load_encoder(saved, layer=2)
    assert half.settings() == {**full.settings(), "arithmetic": "fast bfloat16"}
    assert 1e-4 < relative(half(WAV), full(WAV)) < 0.1
    half.save(tmp_path / "again")
    again = load_encoder(tmp_path / "again")
    assert again.settings() == full.settings() and torch.equal(again(WAV), full(WAV))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float16"}, r"unknown precision 'float16'; known: float32, bfloat16, int8"),
        ({"engine": "quick"}, r"unknown engine 'quick'; known: auto, plain, fast, openvino"),
        ({"engine": "fast", "precision": "int8"}, r"engine 'fast' does not do int8; use openvino"),
        ({"engine": "plain", "precision": "int8"}, r"engine 'plain' does not do int8; use openvino"),
    ],
)
@of("hubert-base")
def test_what_is_unknown_is_refused(saved: Path, options: dict[str, str], message: str) -> None:
    for features in (saved, "mfcc"):
        with pytest.raises(ValueError, match=message):
            load_encoder(features, **options)


@pytest.mark.parametrize("options", [{"engine": "fast"}, {"engine": "openvino"}, {"precision": "int8"}])
@of("whisper", "w2v-bert")
def test_families_without_engines_of_their_own(saved: Path, options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"does not cover this .* model; .* hubert, wav2vec2, .* Use engine='plain'"):
        load_encoder(saved, **options)


def test_filterbanks_have_nothing_to_choose() -> None:
    assert load_encoder("mfcc", engine="plain").settings() == load_encoder("mfcc").settings()
    for options in ({"precision": "bfloat16"}, {"engine": "fast"}):
        with pytest.raises(ValueError, match="mfcc has no model to run in"):
            load_encoder("mfcc", **options)


def test_engines_of_the_cpu_stay_there() -> None:
    config, cuda = model_of("hubert-base").config, torch.device("cuda")
    assert engines.resolve(engines.FLOAT32, config, cuda) == "plain"
    with pytest.raises(ValueError, match="engine 'fast' runs on the CPU, not on cuda; use engine='plain'"):
        engines.resolve(engines.Arithmetic(engine="fast"), config, cuda)


def test_whisper_has_no_statistics_of_the_recording_and_the_others_say_so() -> None:
    assert tiny("hubert-base").settings()["statistics"] == "recording"
    assert tiny("w2v-bert").settings()["statistics"] == "recording"
    assert "statistics" not in tiny("whisper").settings() and "statistics" not in tiny("mfcc").settings()
