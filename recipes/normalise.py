"""Hear speech with a speech normaliser (recipes/train_ctc.py) and write units as the reference speaker would say them.

The unit file is at frame level, like any other: a blank takes the unit before it, those at the start the first unit, so
that merging the runs of a row gives exactly what CTC read; where it read nothing, the row is empty.  A run that was
stopped goes on where it was, as long as model and manifest are the same; a finished file is made anew.

Examples:
  python recipes/normalise.py exp/normaliser es.jsonl -o es.units.jsonl
  python recipes/normalise.py exp/normaliser dev.jsonl -o dev.norm.jsonl --reference taught.jsonl --before dev.jsonl
        also prints the unit error rate to the reference speaker of the units before and after
"""

import argparse
import os
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from unitkit.audio import AudioError
from unitkit.manifest import Utterance, read_manifest
from unitkit.metrics.base import Measure
from unitkit.metrics.units import unit_error_rate
from unitkit.models.ctc import CtcError, CtcModel, fill_blanks
from unitkit.models.listen import Listener
from unitkit.recording import read_speech
from unitkit.tokenizer import pick_device
from unitkit.units import Units, UnitsHeader, UnitsWriter, read_units


class Normaliser:
    """A model directory as a function: an utterance to frame-level units of the reference speaker's tokenizer."""

    def __init__(self, directory: Path, *, device: str) -> None:
        self.model = CtcModel.load(directory, device=device)
        if self.model.config.targets != "units":
            raise CtcError(f"{directory} writes {self.model.config.targets}, not units")
        self.listener = Listener.load(directory / "listener", device=device)
        c = self.model.config
        self.header = UnitsHeader(c.tokenizer, c.rate_hz, c.n_units)

    def __call__(self, utterance: Utterance) -> Units:
        """None of them where nothing but blanks is read; ValueError for a recording that cannot be, or is too short."""
        wav = read_speech(utterance, self.listener.sample_rate)
        frames = fill_blanks(self.model.greedy([self.listener(wav)])[0])
        return self.header.units(np.repeat(frames, self.model.config.repeat), utterance.id)


def normalise(normaliser: Normaliser, rows: Sequence[Utterance], *, out: Path, work: str) -> list[str]:
    """Writes `out`; returns what was left out and why.  `work` names model and manifest, whose partial is continued."""
    unfinished = out.with_name(f".{out.name}.{work}")
    left = []
    with UnitsWriter(unfinished, normaliser.header) as writer:
        for number, row in enumerate(rows, 1):
            if row.id in writer.done:
                continue
            try:
                units = normaliser(row)
                writer.append(units)
                if not len(units):
                    print(f"{row.id}: nothing but blanks was read; its row is empty", file=sys.stderr)
            except (AudioError, OSError, ValueError) as error:
                left.append(f"{row.id}: {error}")
            if number % 500 == 0:
                print(f"{number} of {len(rows)} utterances", file=sys.stderr)
    os.replace(unfinished, out)
    return left


def work_of(directory: Path, manifest: Path) -> str:
    """8 hex digits of a model's files and a manifest."""
    found = sha256(manifest.read_bytes())
    for path in (
        directory / "config.yaml",
        directory / "model.safetensors",
        *sorted((directory / "listener").iterdir()),
    ):
        found.update(sha256(path.read_bytes()).digest())
    return found.hexdigest()[:8]


def said(name: str, measure: Measure) -> str:
    """A line of the report."""
    return f"UER {name}: {measure.value:.1f} % [{measure.low:.1f}, {measure.high:.1f}], {measure.n} utterances"


def report(before: Path, after: Path, reference: Path) -> str:
    """Unit error rates to the reference speaker's units with 95 % intervals, over the utterances of all three files.

    Those that are the reference speaker's own, whose units are the reference, would only flatter both rates.
    """
    first, last, wanted = ({one.id: one for one in read_units(path)} for path in (before, after, reference))
    common = first.keys() & last.keys() & wanted.keys()
    own = {name for name in common if first[name] == wanted[name]}
    if common == own:
        raise ValueError(f"{before}, {after} and {reference} share no utterance of another speaker than the reference")
    rates = [unit_error_rate(path, reference, ids=common - own) for path in (before, after)]
    lines = [said("before", rates[0]), said("after ", rates[1]), rates[1].signature]
    return "\n".join(lines + [f"left out: {len(own)} utterances of the reference speaker"] * bool(own))


def main(words: Sequence[str]) -> int:
    """Command line; returns the exit code, 1 when a recording was left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="directory of a model by recipes/train_ctc.py")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument(
        "--reference", type=Path, help="units of the reference speaker saying the same, under these ids"
    )
    parser.add_argument("--before", type=Path, help="units of the manifest as its speakers say them")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    given = parser.parse_args(words)
    if (given.reference is None) != (given.before is None):
        parser.error("--reference and --before go together")
    rows = list(read_manifest(given.manifest))
    normaliser = Normaliser(given.model, device=pick_device(given.device))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    left = normalise(normaliser, rows, out=given.out, work=work_of(given.model, given.manifest))
    for line in left:
        print(f"left out: {line}", file=sys.stderr)
    print(f"{given.out}: {len(rows) - len(left)} of {len(rows)} utterances", file=sys.stderr)
    if given.reference is not None:
        print(report(given.before, given.out, given.reference))
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
