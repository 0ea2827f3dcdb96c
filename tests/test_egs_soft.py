"""The recipe of discrete and soft units calls what it should, in an order in which everything is there."""

from pathlib import Path

import pytest
from recipe_calls import EGS, Run, after, of, recorder
from recipe_files import recipe

from unitkit import config


@pytest.fixture
def made(tmp_path: Path) -> Run:
    return recorder(tmp_path, f"data={tmp_path}/d", "exp=e")


def values(call: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in call if "=" in word and not word.startswith("-"))


def test_each_system_hears_its_own_units_and_speaks_one_voice(made) -> None:
    calls = made("prompts/soft", "fit.max_steps=7", "voice=june", "lang=fr")
    (pairs,) = of(calls, "conversions.py")
    assert [after(pairs, f"--{side}") for side in ("sources", "references")] == [
        ["e/data/sources.jsonl"],
        ["e/data/dev.jsonl"],
    ]
    (soft,) = of(calls, "train_soft.py")
    assert values(soft) | {"train_manifest": "d/train.jsonl", "train_units": "e/units/train.jsonl"} == values(soft)
    mels, discrete, straight = (values(call) for call in of(calls, "train_vocoder.py"))
    assert mels["out"] == "e/vocoder" and mels["data.names"] == "false"
    assert mels["train_manifest"] == "e/data/train.jsonl" and mels["data.features_dev"] == "e/mels/dev"
    assert discrete["train_units"] == "e/units/train.jsonl" and "data.features_train" not in discrete
    assert straight["out"] == "e/soft" and straight["data.features_train"] == "e/units/train.soft"
    acoustic = [values(call) for call in of(calls, "train_acoustic.py")]
    assert [(one["out"], one["dev_units"]) for one in acoustic] == [
        ("e/discrete-mel", "e/units/dev.jsonl"),
        ("e/soft-mel", "e/units/dev.soft"),
    ]
    assert {one["fit.max_steps"] for one in acoustic} == {"7"}
    spoken = {call[call.index("-o") + 1]: call for call in of(calls, "vocode")}
    assert {out: (call[0], *after(call, "-m")) for out, call in spoken.items()} == {
        "e/synth/discrete": ("e/units/test.jsonl", "e/discrete"),
        "e/synth/soft": ("e/units/test.soft", "e/soft"),
        "e/synth/discrete-mel": ("e/units/test.jsonl", "e/discrete-mel"),
        "e/synth/soft-mel": ("e/units/test.soft", "e/soft-mel"),
        "e/synth/shuffled": ("e/units/test.jsonl", "e/discrete"),
    }
    words, voice = of(calls, "score")
    assert after(words, "--reference") == ["e/source.jsonl"] and after(voice, "--reference") == ["e/reference.jsonl"]
    assert after(voice, "--metrics") == ["speaker"] and after(words, "--lang") == ["fr"]


def test_one_system_trains_only_what_it_needs(made) -> None:
    calls = made("prompts/soft", "systems=soft-mel")
    assert [values(call)["out"] for call in of(calls, "train_vocoder.py")] == ["e/vocoder"]
    assert [values(call)["out"] for call in of(calls, "train_acoustic.py")] == ["e/soft-mel"]
    control = of(calls, "vocode")[-1]
    assert after(control, "--shuffle") == ["0"] and control[0] == "e/units/test.soft"


@pytest.mark.parametrize("name", ["soft", "acoustic", "vocoder"])
def test_the_configs_are_of_their_recipes(name: str) -> None:
    module = recipe(f"train_{name}")
    loaded = config.load(module.Config, EGS / "prompts" / "soft" / "conf" / f"{name}.yaml")
    assert loaded.fit.max_steps > 500
