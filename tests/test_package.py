"""The package from outside: public names, import cost, licence and metadata agree."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import unitkit

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = {
    "AudioError",
    "FingerprintError",
    "SoftTokenizer",
    "SoftUnits",
    "Recognizer",
    "TTS",
    "Tokenizer",
    "Translation",
    "Translator",
    "UnitBPE",
    "Units",
    "Utterance",
    "Vocab",
    "Vocoder",
    "VoiceConverter",
    "bitrate",
    "read_manifest",
    "read_units",
    "segment",
    "write_manifest",
    "write_units",
}


def test_public_names_are_pinned_and_load() -> None:
    assert set(unitkit.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(unitkit, name).__module__.startswith("unitkit.")
    with pytest.raises(AttributeError, match="Tokenizer"):
        _ = unitkit.Tokeniser


def test_the_type_stub_names_the_same() -> None:
    stub = (ROOT / "unitkit" / "__init__.pyi").read_text()
    assert {line.split()[-1] for line in stub.splitlines() if line.startswith("from")} == PUBLIC


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, unitkit; print([m for m in ('torch', 'numpy', 'transformers', 'faiss') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_lower_bounds_are_met_by_the_tested_set() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == unitkit.__version__
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    pinned = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    wanted = project["dependencies"] + [
        r for extra in ("eval", "dev", "lhotse") for r in project["optional-dependencies"][extra]
    ]
    for requirement in wanted:
        name, bound = requirement.split(">=")
        numbers = [[int(x) for x in v.split(".")[:3] if x.isdigit()] for v in (pinned[name.lower()], bound)]
        assert numbers[0] >= numbers[1], requirement
