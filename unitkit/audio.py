"""Audio in and out as mono float32 in -1..1, plus the few signal measures shared by features, vocoders and scores."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

# Frames read at a time: hours of stereo never sit in memory at their own rate. The same for all: libsndfile's mp3
# samples differ in the last bit with the size of reads.
BLOCK = 1 << 18
INEXACT_SEEK = (
    "OGG",
    "MP3",
)  # libsndfile 1.2 lands beside the sample (the last page of a Vorbis file, some mp3 frames)
UNKNOWN_LENGTH = 0x7FFF0000  # bytes; a wav of this length or more in its header was written to a pipe
FALLBACK_SUFFIXES = {".g722": "g722"}  # headerless formats ffmpeg cannot guess from the content


class AudioError(ValueError):
    """An audio file that cannot be used; str(error) is "path: reason"."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        """Keep the path and the reason apart, so that a batch job can list them."""
        self.path = os.fspath(path)
        self.reason = reason
        super().__init__(f"{self.path}: {reason}")

    def __reduce__(self) -> tuple[type["AudioError"], tuple[str, str]]:
        """Pickle with both arguments, so that the error survives the way back from a worker process."""
        return type(self), (self.path, self.reason)


@dataclass(frozen=True)
class AudioInfo:
    """What a file holds: duration in seconds, rate in Hz, channels, and n_samples per channel."""

    duration: float
    rate: int
    channels: int
    n_samples: int


@dataclass(frozen=True)
class _Source:
    """An open recording: its rate and a stream of (frames, channels) float32 blocks."""

    rate: int
    blocks: Iterator[np.ndarray]


def info(path: str | os.PathLike[str]) -> AudioInfo:
    """Duration (seconds), rate (Hz), channels and samples of a file, from its header where the format has one."""
    _check_file(path)
    soundfile = _soundfile()
    try:
        header = soundfile.info(os.fspath(path))
    except (soundfile.LibsndfileError, RuntimeError) as error:
        return _info_pyav(path, str(error))
    if header.frames == 0:
        raise AudioError(path, "holds no samples")
    return AudioInfo(header.frames / header.samplerate, header.samplerate, header.channels, header.frames)


def read(
    path: str | os.PathLike[str],
    rate: int,
    *,
    start: float = 0.0,
    duration: float | None = None,
    channel: int | None = None,
) -> np.ndarray:
    """Mono float32 wav (samples,) at `rate` Hz; `start` and `duration` in seconds pick a segment (cut at the end).

    Channels are averaged, or one is taken by number (0 = first). Raises AudioError naming the file and the reason.
    """
    return np.concatenate(list(blocks(path, rate, start=start, duration=duration, channel=channel)))


def blocks(
    path: str | os.PathLike[str],
    rate: int,
    *,
    start: float = 0.0,
    duration: float | None = None,
    channel: int | None = None,
    seconds: float = 30.0,
) -> Iterator[np.ndarray]:
    """What `read` gives, sample for sample, as blocks (samples,) of `seconds` (the last may be shorter).

    A file of any length takes the memory of a few blocks. A bad file raises AudioError at the block where it is met.
    """
    _check_file(path)
    _check_segment(path, rate, start, duration)
    source = _open(path, start, duration)
    mono = (_mix(path, block, channel) for block in source.blocks)
    empty = True
    for block in _equal_blocks(_resample_blocks(mono, source.rate, rate), max(1, round(seconds * rate))):
        empty = False
        yield block
    if empty:
        where = "holds no samples" if start == 0 else f"holds no samples from {start:g} s on"
        raise AudioError(path, where)


def write(path: str | os.PathLike[str], wav: np.ndarray, rate: int) -> None:
    """Write wav (samples,) as 16-bit .wav or .flac by suffix, clipped to -1..1; atomically, making the folder."""
    target = Path(path)
    formats = {".wav": "WAV", ".flac": "FLAC"}
    if target.suffix.lower() not in formats:
        raise AudioError(path, f"cannot write {target.suffix or 'a name without suffix'}; known: {', '.join(formats)}")
    data = np.asarray(wav, dtype=np.float32)
    if data.ndim != 1 or not np.isfinite(data).all():
        raise AudioError(path, f"expected finite mono samples of shape (samples,), got shape {data.shape}")
    # Scaled by 2**15, the inverse of reading, so that 16-bit audio survives read and write unchanged.
    pcm = np.clip(np.rint(data.astype(np.float64) * 32768), -32768, 32767).astype(np.int16)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        _soundfile().write(temporary, pcm, rate, format=formats[target.suffix.lower()], subtype="PCM_16")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def resample(wav: np.ndarray, source: int, target: int) -> np.ndarray:
    """Wav (samples,) float32 from `source` to `target` Hz with soxr HQ; unchanged when the rates agree."""
    import soxr

    data = np.asarray(wav, dtype=np.float32)
    if source <= 0 or target <= 0:
        raise ValueError(f"cannot resample from {source} Hz to {target} Hz: rates are positive")
    return data if source == target else soxr.resample(data, source, target, quality="HQ")


def mel_filters(rate: int, *, n_fft: int, n_mels: int, fmin: float = 0.0, fmax: float | None = None) -> np.ndarray:
    """Slaney mel filters (n_mels, n_fft // 2 + 1) float32, each of equal area, as librosa and Whisper use them."""
    top = rate / 2 if fmax is None else fmax
    if not 0 <= fmin < top <= rate / 2:
        raise ValueError(f"mel band {fmin}..{top} Hz must lie inside 0..{rate / 2} Hz")
    bins = np.linspace(0, rate / 2, n_fft // 2 + 1)
    edges = _mel_to_hz(np.linspace(_hz_to_mel(fmin), _hz_to_mel(top), n_mels + 2))
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - lower) / (centre - lower), (upper - bins) / (upper - centre)
    triangles = np.maximum(0, np.minimum(rising, falling))
    return (triangles * (2 / (upper - lower))).astype(np.float32)


def f0(wav: np.ndarray, rate: int, *, hop_samples: int) -> np.ndarray:
    """F0 in Hz per hop (len(wav) // hop_samples,) float32, 0 = unvoiced; frame k is centred on sample (k + .5) hop.

    Each frame takes the swift-f0 value (every 16 ms) nearest in time.
    """
    n_frames = len(wav) // hop_samples
    if n_frames == 0:
        return np.zeros(0, dtype=np.float32)
    result = _pitch_detector().detect(np.asarray(wav, dtype=np.float32), rate)
    centres = (np.arange(n_frames) + 0.5) * hop_samples / rate
    step = 0.016  # seconds between swift-f0 frames; frame i lies at i * step
    nearest = np.clip(np.rint(centres / step).astype(int), 0, len(result.pitch_hz) - 1)
    return np.where(result.confidence[nearest] >= 0.5, result.pitch_hz[nearest], 0.0).astype(np.float32)


def energy(wav: np.ndarray, *, hop_samples: int) -> np.ndarray:
    """Root mean square per hop (len(wav) // hop_samples,) float32; frame k spans samples k hop .. (k + 1) hop."""
    n_frames = len(wav) // hop_samples
    frames = np.asarray(wav[: n_frames * hop_samples], dtype=np.float64).reshape(n_frames, hop_samples)
    return np.sqrt(np.mean(frames**2, axis=1)).astype(np.float32)


def quiet_cuts(wav: np.ndarray, rate: int, longest: float) -> list[int]:
    """Samples at which a wav is cut into parts of at most `longest` seconds, each where it is quietest.

    A part is at least half as long, the last one a quarter; how quiet a place is, a fifth of a second around it says.
    """
    hop = rate // 50
    around = np.convolve(np.square(energy(wav, hop_samples=hop)), np.ones(10), mode="same")
    most = max(2, int(longest * rate / hop))  # frames
    cuts: list[int] = []
    while len(wav) - (start := cuts[-1] if cuts else 0) > longest * rate:
        first, last = start // hop + (most + 1) // 2, min(start // hop + most, len(around) - most // 4)
        cuts.append(hop * (first + int(np.argmin(around[first : last + 1]))))
    return cuts


@dataclass(frozen=True)
class Mel:
    """How log-mel spectra are made; `fingerprint` names it, so that a model and the vocoder it speaks through agree."""

    sample_rate: int = 16000
    hop: int = 200  # samples between frames
    n_mels: int = 80
    n_fft: int = 1024

    def __post_init__(self) -> None:
        if not 0 < self.hop <= self.n_fft or (self.n_fft - self.hop) % 2:
            raise ValueError(
                f"mel.hop={self.hop}: frames of n_fft={self.n_fft} samples are centred on hops, so the hop is at most "
                "that long and differs from it by an even number"
            )

    @property
    def rate_hz(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop

    @property
    def fingerprint(self) -> str:
        """12 hex digits of all that changes the frames."""
        text = f"log-mel {self.sample_rate} {self.hop} {self.n_mels} {self.n_fft} hann slaney ln floor 1e-5"
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def spectra(wav: np.ndarray, mel: Mel, *, block: int = 4096) -> tuple[np.ndarray, np.ndarray]:
    """Natural log of mel magnitudes (len(wav) // hop, n_mels), and the length (frames,) of each frame's spectrum.

    Frame k is centred on sample (k + .5) hop, as in `f0` and `energy`; beyond the ends there is silence.
    """
    n_frames, side = len(wav) // mel.hop, (mel.n_fft - mel.hop) // 2
    window = np.hanning(mel.n_fft + 1)[:-1].astype(np.float32)
    filters = _mel_filters(mel)
    padded = np.pad(np.asarray(wav, np.float32), (side, mel.n_fft))
    frames = np.lib.stride_tricks.sliding_window_view(padded, mel.n_fft)[:: mel.hop][:n_frames]
    mels, lengths = np.empty((n_frames, mel.n_mels), np.float32), np.empty(n_frames, np.float32)
    for start in range(0, n_frames, block):
        magnitude = np.abs(np.fft.rfft(frames[start : start + block] * window, axis=1)).astype(np.float32)
        mels[start : start + block] = np.log(np.maximum(magnitude @ filters.T, 1e-5))
        lengths[start : start + block] = np.linalg.norm(magnitude, axis=1)
    return mels, lengths


@lru_cache(maxsize=4)
def _mel_filters(mel: Mel) -> np.ndarray:
    return mel_filters(mel.sample_rate, n_fft=mel.n_fft, n_mels=mel.n_mels)


def _soundfile() -> Any:
    import soundfile

    return soundfile


def _check_file(path: str | os.PathLike[str]) -> None:
    """Name the plain faults before a decoder words them its own way."""
    target = Path(path)
    if target.is_dir():
        raise AudioError(path, "is a directory, not an audio file")
    try:
        size = target.stat().st_size
    except FileNotFoundError:
        raise AudioError(path, "no such file") from None
    except OSError as error:
        raise AudioError(path, f"cannot be opened ({error.strerror})") from None
    if size == 0:
        raise AudioError(path, "is empty (0 bytes)")
    if target.suffix.lower() in (".wav", ".wave") and (missing := _missing_wav_bytes(target, size)) > 0:
        raise AudioError(path, f"is truncated ({missing} bytes of those its header promises are missing)")


def _missing_wav_bytes(path: Path, size: int) -> int:
    """How much shorter a RIFF file is than its data chunk says; libsndfile would read what is there and say nothing."""
    with open(path, "rb") as file:
        if file.read(4) != b"RIFF" or file.read(8)[4:] != b"WAVE":
            return 0
        while len(header := file.read(8)) == 8:
            length = int.from_bytes(header[4:], "little")
            if header[:4] == b"data":
                # Programs that write to a pipe do not know the length: they write about the largest there is.
                return 0 if length >= UNKNOWN_LENGTH else file.tell() + length - size
            file.seek(length + length % 2, os.SEEK_CUR)
    return 0


def _check_segment(path: str | os.PathLike[str], rate: int, start: float, duration: float | None) -> None:
    if rate <= 0:
        raise AudioError(path, f"cannot be resampled to {rate} Hz")
    if not (np.isfinite(start) and start >= 0):
        raise AudioError(path, f"segment start {start} s must be 0 or more")
    if duration is not None and not (np.isfinite(duration) and duration > 0):
        raise AudioError(path, f"segment duration {duration} s must be positive")


def _open(path: str | os.PathLike[str], start: float, duration: float | None) -> _Source:
    """Blocks of the segment, by soundfile where it knows the format, else by PyAV."""
    soundfile = _soundfile()
    try:
        file = soundfile.SoundFile(os.fspath(path))
    except (soundfile.LibsndfileError, RuntimeError) as error:
        rate, blocks = _open_pyav(path, str(error))
        return _Source(rate, _cut(path, blocks, rate, start, duration))
    first = round(start * file.samplerate)
    if first and first >= file.frames:
        length = file.frames / file.samplerate
        file.close()
        raise AudioError(path, f"segment start {start:g} s is past the end ({length:.3f} s)")
    if first and file.format in INEXACT_SEEK:
        return _Source(
            file.samplerate, _cut(path, _soundfile_blocks(path, file, 0, None), file.samplerate, start, duration)
        )
    wanted = None if duration is None else max(1, round(duration * file.samplerate))
    return _Source(file.samplerate, _soundfile_blocks(path, file, first, wanted))


def _soundfile_blocks(path: str | os.PathLike[str], file: Any, first: int, wanted: int | None) -> Iterator[np.ndarray]:
    """Blocks of (frames, channels) from sample `first`; a file that ends before its header says is an error."""
    left = file.frames - first if wanted is None else min(wanted, file.frames - first)
    exact = file.format != "MP3"  # the length of an mp3 may be an estimate
    with file:
        try:
            if first:
                file.seek(first)
            while left > 0:
                block = file.read(min(BLOCK, left), dtype="float32", always_2d=True)
                if len(block) == 0:
                    break
                left -= len(block)
                yield block
        except (RuntimeError, OSError) as error:
            raise AudioError(path, f"is corrupt ({error})") from error
    if left > 0 and exact:
        raise AudioError(path, f"is truncated ({left} samples of those its header promises are missing)")


def _import_pyav(path: str | os.PathLike[str], why: str) -> Any:
    try:
        import av
    except ImportError:
        hint = "if it is m4a, webm, g722 or another container: pip install unitkit[video]"
        raise AudioError(path, f"is not audio that soundfile can read ({why}); {hint}") from None
    return av


def _open_pyav(path: str | os.PathLike[str], why: str) -> tuple[int, Iterator[np.ndarray]]:
    """Rate and float32 (frames, channels) blocks of the first audio stream; `why` says what soundfile disliked."""
    av = _import_pyav(path, why)
    try:
        container = av.open(os.fspath(path), format=FALLBACK_SUFFIXES.get(Path(path).suffix.lower()))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise AudioError(path, f"is not audio that soundfile or PyAV can read ({error})") from None
    if not container.streams.audio or not container.streams.audio[0].rate:
        container.close()
        raise AudioError(path, "is not audio that soundfile or PyAV can read (no audio stream)")
    return container.streams.audio[0].rate, _pyav_blocks(path, av, container)


def _pyav_blocks(path: str | os.PathLike[str], av: Any, container: Any) -> Iterator[np.ndarray]:
    planar = av.AudioResampler(format="fltp")
    with container:
        try:
            for frame in container.decode(audio=0):
                for converted in planar.resample(frame):
                    yield converted.to_ndarray().T
            for converted in planar.resample(None):
                yield converted.to_ndarray().T
        except (av.FFmpegError, ValueError) as error:
            raise AudioError(path, f"is corrupt ({error})") from error


def _cut(
    path: str | os.PathLike[str], blocks: Iterator[np.ndarray], rate: int, start: float, duration: float | None
) -> Iterator[np.ndarray]:
    """The segment of a stream that cannot seek to a sample: earlier blocks are decoded and dropped."""
    first = round(start * rate)
    stop = None if duration is None else first + max(1, round(duration * rate))
    position = 0
    for block in blocks:
        lower, upper = max(0, first - position), len(block) if stop is None else min(len(block), stop - position)
        position += len(block)
        if upper > lower:
            yield block[lower:upper]
        if stop is not None and position >= stop:
            return
    if first and position <= first:
        raise AudioError(path, f"segment start {start:g} s is past the end ({position / rate:.3f} s)")


def _info_pyav(path: str | os.PathLike[str], why: str) -> AudioInfo:
    """Containers only estimate their length, so the stream is decoded and counted."""
    rate, blocks = _open_pyav(path, why)
    n_samples = channels = 0
    for block in blocks:
        n_samples, channels = n_samples + len(block), block.shape[1]
    if n_samples == 0:
        raise AudioError(path, "holds no samples")
    return AudioInfo(n_samples / rate, rate, channels, n_samples)


def _mix(path: str | os.PathLike[str], block: np.ndarray, channel: int | None) -> np.ndarray:
    """(frames, channels) to (frames,): the mean, or one channel."""
    channels = block.shape[1]
    if channel is not None and not 0 <= channel < channels:
        raise AudioError(path, f"has no channel {channel}; known: 0..{channels - 1}")
    if not np.isfinite(block).all():
        raise AudioError(path, f"holds NaN or infinite samples ({np.count_nonzero(~np.isfinite(block))} in one block)")
    if channel is not None:
        return np.ascontiguousarray(block[:, channel])
    return block[:, 0] if channels == 1 else block.mean(axis=1, dtype=np.float32)


def _resample_blocks(blocks: Iterator[np.ndarray], source: int, target: int) -> Iterator[np.ndarray]:
    """Mono blocks at the target rate; soxr's stream gives bit for bit what one call on the whole would give."""
    if source == target:
        yield from blocks
        return
    import soxr

    stream = soxr.ResampleStream(source, target, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(np.ascontiguousarray(block))
    yield stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True)


def _equal_blocks(blocks: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same samples cut anew, `size` at a time; what is left comes last."""
    held: list[np.ndarray] = []
    n_held = 0
    for block in blocks:
        while n_held + len(block) >= size:
            taken = size - n_held
            yield np.concatenate([*held, block[:taken]]).astype(np.float32, copy=False)
            held, n_held, block = [], 0, block[taken:]
        if len(block):
            held.append(block)
            n_held += len(block)
    if held:
        yield np.concatenate(held).astype(np.float32, copy=False)


def _hz_to_mel(frequency: float) -> float:
    """Slaney's scale: linear to 1 kHz, logarithmic above."""
    return 3 * frequency / 200 if frequency < 1000 else 15 + 27 * np.log(frequency / 1000) / np.log(6.4)


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, 200 * mel / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


@lru_cache(maxsize=1)
def _pitch_detector() -> Any:
    try:
        from swift_f0 import SwiftF0
    except ImportError as error:
        raise ImportError(f"F0 needs swift-f0 ({error}): pip install unitkit[eval]") from error
    # One sleeping thread: workers run one process per core, and a spinning pool would take the others' time.
    return SwiftF0(threads=1, spin=False)
