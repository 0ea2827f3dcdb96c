"""Log-mels of recordings, for a vocoder that speaks them: python recipes/mels.py train.jsonl -o exp/mels/train

The folder is one of soft units whose tokenizer is the fingerprint of the mels, with units.jsonl beside them, which the
vocoder's trainer reads for how many frames there are.  With --converter the mels are those that a converter makes of
the recordings with their own prosody, frame by frame beside them, for a vocoder to be fine-tuned on.

  python recipes/train_vocoder.py train_manifest=train.jsonl train_units=exp/mels/train/units.jsonl \\
      data.features_train=exp/mels/train dev_manifest=dev.jsonl dev_units=exp/mels/dev/units.jsonl \\
      data.features_dev=exp/mels/dev data.names=false out=exp/converter/vocoder

A recording whose file is there is not computed again, unless another converter is given.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from unitkit.audio import AudioError, Mel, spectra
from unitkit.cli.show import progress
from unitkit.manifest import Utterance, read_manifest
from unitkit.pipeline import VoiceConverter
from unitkit.pipeline.speak import same_settings
from unitkit.recording import read_speech
from unitkit.soft import SoftHeader, SoftUnits, begin_soft, path_of, write_soft
from unitkit.units import UnitsHeader, write_units

Make = Callable[[Utterance], np.ndarray]


def recorded(mel: Mel) -> Make:
    """Mels of the recordings themselves."""
    return lambda row: spectra(read_speech(row, mel.sample_rate), mel)[0]


def converted(converter: VoiceConverter) -> Make:
    """Mels that a converter makes of recordings, with their own vectors, durations, F0 and energy."""

    def make(row: Utterance) -> np.ndarray:
        made, _ = converter.convert(row, row, mode="copy", exact_pitch=True)
        return made.mel.cpu().numpy()

    return make


def write_mels(rows: Sequence[Utterance], make: Make, out: Path, mel: Mel) -> list[str]:
    """Writes the folder; returns what was left out and why."""
    header, lengths, left = UnitsHeader(mel.fingerprint, mel.rate_hz, 1), {}, []
    with progress("mels", len(rows)) as advance:
        for row in rows:
            try:
                path = path_of(out, row.id)
                if not path.exists():
                    write_soft(out, SoftUnits(make(row), mel.rate_hz, mel.fingerprint, row.id))
                lengths[row.id] = len(np.load(path, mmap_mode="r", allow_pickle=False))
            except (AudioError, OSError, ValueError) as error:
                left.append(f"{row.id}: {error}")
            advance(1)
    write_units(
        out / "units.jsonl", header, (header.units(np.zeros(n, np.int64), id) for id, n in lengths.items() if n)
    )
    return left


def main(words: Sequence[str]) -> int:
    """Command line; returns the exit code, 1 when a recording was left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--converter", type=Path, help="directory of recipes/train_vc.py, with a vocoder")
    for one in fields(Mel):
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=int, default=one.default)
    given = parser.parse_args(words)
    rows = list(read_manifest(given.manifest))
    mel = Mel(given.sample_rate, given.hop, given.n_mels, given.n_fft)
    make, settings = recorded(mel), {"mel": mel.fingerprint}
    if given.converter is not None:
        converter = VoiceConverter.load(given.converter)
        mel, make = converter.model.config.mel, converted(converter)
        model = {name: value for name, value in converter.settings().items() if name != "vocoder"}
        settings = {"mel": mel.fingerprint} | {name: str(value) for name, value in model.items()}
    header = SoftHeader(mel.fingerprint, mel.rate_hz, mel.n_mels)
    if not same_settings(given.out, dict(settings), files=("units.jsonl",)) or not (given.out / "header.json").exists():
        begin_soft(given.out, header)
    left = write_mels(rows, make, given.out, mel)
    for line in left:
        print(f"left out: {line}", file=sys.stderr)
    print(f"{given.out}: {len(rows) - len(left)} of {len(rows)} recordings, mels {mel.fingerprint}", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
