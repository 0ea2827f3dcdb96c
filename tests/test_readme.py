"""The README's bash and Python blocks run as they stand; blocks without a language are shown, not run, here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)


def test_the_readme_has_blocks_of_both_kinds() -> None:
    assert {kind for kind, _ in BLOCKS} == {"bash", "python"} and len(BLOCKS) >= 6


@pytest.fixture
def env(tmp_path: Path, first: Path) -> dict[str, str]:
    """The environment for commands run in a scratch folder that has samples and what the first block made of them."""
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    shutil.copytree(first, tmp_path / "exp")
    return _environment()


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first bash block leaves, which the others build on; made once, copied for each."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "samples").symlink_to(ROOT / "samples")
    _bash(BASH[0], folder, _environment())
    return folder / "exp"


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def _bash(block: str, folder: Path, env: dict[str, str]) -> None:
    subprocess.run(["bash", "-euc", block], cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)


BASH = [block for kind, block in BLOCKS if kind == "bash"]


@pytest.mark.parametrize("block", BASH, ids=[block.split("\n")[0][:40] for block in BASH])
def test_a_bash_block_runs_after_the_first(block: str, tmp_path: Path, env: dict[str, str]) -> None:
    _bash(block, tmp_path, env)  # the first one too: it finds its work done


def test_the_python_blocks_run_in_order(tmp_path: Path, env: dict[str, str]) -> None:
    """After the first bash block, whose units they read; the models they load are tiny ones trained here."""
    steps = ["fit.max_steps=2", "fit.tensorboard=false"]
    _train(tmp_path, env, ["model.istft.dim=16", "model.istft.blocks=1", *steps])
    _train_translator(tmp_path, env, ["model.dim=16", "model.attention_heads=2", "model.hidden=16", *steps])
    _train_recogniser(tmp_path, env, ["model.dim=16", "model.attention_heads=2", "text.kind=char", *steps])
    _make_converter(tmp_path)
    _make_speaking(tmp_path)
    python = "".join(block for kind, block in BLOCKS if kind == "python")
    subprocess.run([sys.executable, "-c", python], cwd=tmp_path, env=env, check=True)


def _train(folder: Path, env: dict[str, str], settings: list[str]) -> None:
    units, samples = "exp/readme/en.jsonl", "samples/en/dev.jsonl"
    files = [f"train_manifest={samples}", f"train_units={units}", f"dev_manifest={samples}", f"dev_units={units}"]
    subprocess.run(["unitkit", "encode", samples, "-o", units], cwd=folder, env=env, check=True)
    recipe = [sys.executable, str(ROOT / "recipes" / "train_vocoder.py"), "out=exp/vocoder"]
    subprocess.run([*recipe, *files, *settings], cwd=folder, env=env, check=True)


def _train_translator(folder: Path, env: dict[str, str], settings: list[str]) -> None:
    """From English to English, for want of a second language in the samples."""
    samples, units = "samples/en/dev.jsonl", "exp/readme/en.jsonl"
    files = [
        f"{split}_{side}={path}" for split in ("train", "dev") for side, path in (("source", samples), ("units", units))
    ]
    recipe = [sys.executable, str(ROOT / "recipes" / "train_s2ut.py"), "out=exp/s2ut", *files, *settings]
    subprocess.run(recipe, cwd=folder, env=env, check=True)


def _train_recogniser(folder: Path, env: dict[str, str], settings: list[str]) -> None:
    """Of the units that the vocoder was trained on; their tokenizer is found among the bundled ones."""
    samples, units = "samples/en/dev.jsonl", "exp/readme/en.jsonl"
    named = {"manifest": samples, "units": units}
    files = [f"{split}_{name}={path}" for split in ("train", "dev") for name, path in named.items()]
    recipe = [sys.executable, str(ROOT / "recipes" / "train_asr.py"), "out=exp/asr", *files, *settings]
    subprocess.run(recipe, cwd=folder, env=env, check=True)


def _make_speaking(folder: Path) -> None:
    """A model of text with two voices, untrained as well."""
    from unitkit.models.tts import TextToUnits, TtsConfig
    from unitkit.models.vocoder import UnitVocoder, VocoderConfig
    from unitkit.models.wave_cores import IstftConfig

    small = IstftConfig(dim=16, blocks=1, hidden=16)
    letters = TtsConfig("0123456789ab", 9, symbols=" .adehlops", langs=("en", "es"), dim=16)
    TextToUnits(letters).save(folder / "exp" / "tts")
    names = ("allison", "june")
    UnitVocoder(VocoderConfig("0123456789ab", n_units=9, istft=small, speakers=names)).save(
        folder / "exp" / "tts" / "vocoder"
    )


def _make_converter(folder: Path) -> None:
    """An untrained one; training is tests/test_train_vc.py's business."""
    from unitkit.models.frame import FrameConfig, FrameModel
    from unitkit.models.vocoder import UnitVocoder, VocoderConfig
    from unitkit.models.wave_cores import IstftConfig
    from unitkit.tokenizer import Tokenizer

    tok = Tokenizer.load(device="cpu")
    model = FrameModel(FrameConfig(tokenizer=tok.fingerprint, n_units=tok.n_units, dim=16, layers=1))
    model.save(folder / "exp" / "converter")
    mel = model.config.mel
    voice = VocoderConfig(
        mel.fingerprint, mel.rate_hz, 1, features_dim=mel.n_mels, istft=IstftConfig(dim=16, blocks=1, hidden=16)
    )
    UnitVocoder(voice).save(folder / "exp" / "converter" / "vocoder")
