"""A tokenizer's directory: found, read, written in one step, and whose encoder it holds.

`tokenizer.json` says what the tokenizer is, `model.safetensors` holds the quantizer, `encoder/` the encoder, `card.md`
is for people.  A tokenizer that shares another's encoder has no `encoder/`: "encoder_of" in its tokenizer.json is the
path from it to the other's directory, or the name of a bundled one.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unitkit.tokenizer.fingerprint import FORMAT

DEFAULT = "mini"
BUNDLED = Path(__file__).parents[1] / "bundled"
FILES = {"tokenizer.json", "model.safetensors", "card.md", "encoder"}
NEEDED = {"fingerprint", "recipe", "quantizer", "provenance", "report"}


class TokenizerError(ValueError):
    """A tokenizer directory that cannot be used or must not be replaced."""


def bundled() -> list[str]:
    """Names of the tokenizers that come with unitkit."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/tokenizer.json"))


def bundled_as(fingerprint: str) -> str | None:
    """The name of the bundled tokenizer with this fingerprint, if there is one."""
    return next((name for name in bundled() if read_facts(BUNDLED / name)["fingerprint"] == fingerprint), None)


def find(name_or_dir: str | os.PathLike[str]) -> Path:
    """The directory of a bundled tokenizer or of any other."""
    name = os.fspath(name_or_dir)
    if name in (known := bundled()):
        return BUNDLED / name
    if (Path(name) / "tokenizer.json").is_file():
        return Path(name)
    what = "has no tokenizer.json" if Path(name).is_dir() else "is neither a directory nor a bundled tokenizer"
    raise TokenizerError(f"{name!r} {what}; bundled: {', '.join(known) or 'none'}")


def read_facts(directory: Path) -> dict[str, Any]:
    """What tokenizer.json says."""
    path = directory / "tokenizer.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        version = facts["unitkit_tokenizer"]
    except (ValueError, KeyError, TypeError) as error:
        raise TokenizerError(f"{path}: not a tokenizer's file: {error!r}") from error
    if version != FORMAT:
        raise TokenizerError(f"{path}: format {version!r}; this unitkit reads format {FORMAT}")
    if missing := NEEDED - set(facts):
        raise TokenizerError(f"{path}: lacks {', '.join(sorted(missing))}")
    return facts


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """The quantizer's tensors."""
    try:
        return load_file(directory / "model.safetensors")
    except (SafetensorError, OSError) as error:
        raise TokenizerError(f"{directory / 'model.safetensors'}: {error}") from error


# --------------------------------------------------------------------------------------------------- shared encoders


def encoder_owner(directory: Path, facts: dict[str, Any]) -> Path | None:
    """The directory of the tokenizer whose encoder/ this one uses, mostly its own; None where it needs no weights."""
    shared = facts.get("encoder_of")
    if shared is None:
        return directory if (directory / "encoder").is_dir() else None
    # A path to another directory always starts with "..": neither lies in the other.
    owner = directory / shared if str(shared).startswith("..") else BUNDLED / str(shared)
    if owner.parent == BUNDLED and owner.name not in bundled():
        raise TokenizerError(
            f"{directory} has the encoder of the bundled tokenizer {shared!r}, which this unitkit does not have; "
            f"bundled: {', '.join(bundled()) or 'none'}"
        )
    if not (owner / "encoder").is_dir():
        raise TokenizerError(
            f"{directory} has the encoder of {os.path.normpath(owner)}, where there is none: "
            "put the two directories where they were, or fit anew"
        )
    return owner


def way_to(owner: Path, target: Path) -> str:
    """What tokenizer.json of `target` says of the tokenizer whose encoder it shares."""
    there, here, inside = owner.resolve(), target.resolve(), BUNDLED.resolve()
    if there == here or there in here.parents or here in there.parents:
        raise TokenizerError(f"{target} cannot share the encoder of {owner}: save it beside that one")
    # Where unitkit is installed differs from machine to machine.
    if there.parent == inside and here.parent != inside:
        return there.name
    return Path(os.path.relpath(there, here)).as_posix()


# ----------------------------------------------------------------------------------------------------------- writing


def replace(target: Path, fingerprint: str, overwrite: bool, *, write: Callable[[Path], None]) -> None:
    """Make `target` what `write` puts into a directory, in one step; other files and tokenizers are not replaced."""
    _refuse_replacing(target, fingerprint, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir()
        write(scratch)
        _swap(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _refuse_replacing(target: Path, fingerprint: str, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir() or (foreign := {path.name for path in target.iterdir()} - FILES):
        what = "is a file" if not target.is_dir() else f"holds other files ({', '.join(sorted(foreign)[:3])})"
        raise TokenizerError(f"{target} {what}: save the tokenizer in a directory of its own")
    if (target / "tokenizer.json").exists() and not overwrite:
        found = str(read_facts(target)["fingerprint"])
        if found != fingerprint:
            raise TokenizerError(
                f"{target} holds tokenizer {found}, not {fingerprint}: save elsewhere, or overwrite=True (--overwrite)"
            )


def _swap(scratch: Path, target: Path) -> None:
    """Put `scratch` in the place of `target`, which is never half-written."""
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        os.replace(target, old)
    os.replace(scratch, target)
    shutil.rmtree(old, ignore_errors=True)


def write_facts(directory: Path, facts: dict[str, Any], card: str) -> None:
    """Write tokenizer.json and card.md, which has `card` in it."""
    text = json.dumps(facts, indent=2, ensure_ascii=False, default=str) + "\n"
    (directory / "tokenizer.json").write_text(text, encoding="utf-8")
    (directory / "card.md").write_text(_card(facts, card), encoding="utf-8")


def _card(facts: dict[str, Any], text: str) -> str:
    shared = f"The encoder's files are those of `{facts['encoder_of']}`." if "encoder_of" in facts else ""
    lines = [
        f"# Tokenizer {facts['fingerprint']}",
        "",
        f"{facts['n_units']} units × {facts['codebooks']} codebook(s) at {facts['rate_hz']:g} Hz from "
        f"{facts['sample_rate']} Hz mono speech; features: {facts['recipe']['features']}.",
        "",
        *([shared, ""] if shared else []),
        *([text.strip(), ""] if text.strip() else []),
    ]
    for title, rows in (("Made from", facts["provenance"]), ("Encoder", facts["encoder"]), ("Fit", facts["report"])):
        lines += [f"## {title}", ""]
        lines += [f"- {name}: {_shown(value)}" for name, value in rows.items() if name != "per_codebook"]
        lines += [""]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
