"""Training data: a manifest joined with its units, cut into aligned segments, in an order that is a pure function."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unitkit import audio
from unitkit.manifest import Utterance, read_manifest
from unitkit.models.vocoder import f0_stats, hop_samples, normalise_f0
from unitkit.units import Units, UnitsHeader, read_header, read_units
from unitkit.voices import Voices

Key = tuple[int, int]  # (epoch, item): all that a dataset needs to make an example
SLACK_SECONDS = 0.1  # units and audio may disagree by this much at the end (padding conventions), not more


class DataError(ValueError):
    """Training data that does not fit together; the text names the utterance or the file."""


@dataclass(frozen=True)
class Sampler:
    """Which examples micro-step `s` sees: a pure function of (seed, s, rank), so a resume repeats and skips nothing.

    With `lengths`, batches are made of neighbours in length (within pools of 50 batches), in random order.
    """

    n_items: int
    batch: int
    seed: int = 0
    rank: int = 0
    world: int = 1
    lengths: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.n_items < 1 or self.batch < 1:
            raise DataError(f"cannot sample batches of {self.batch} from {self.n_items} examples")

    @property
    def steps_per_epoch(self) -> int:
        """Micro-steps per epoch; the last incomplete batch is dropped (other examples fall there next time)."""
        return max(1, self.n_items // (self.batch * self.world))

    def keys(self, start: int) -> Iterator[list[Key]]:
        """Endless batches of (epoch, item) from micro-step `start` on, this rank's share of each."""
        epoch, order = -1, np.empty((0, 0), np.int64)
        step = start
        while True:
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = self._epoch(epoch)
            row = order[step % self.steps_per_epoch]
            yield [(epoch, int(item)) for item in row[self.rank :: self.world]]
            step += 1

    def _epoch(self, epoch: int) -> np.ndarray:
        random = np.random.default_rng([self.seed, epoch])
        size = self.batch * self.world
        order = np.resize(random.permutation(self.n_items), max(self.n_items, size))  # repeats when too few
        if self.lengths is None:
            return order[: self.steps_per_epoch * size].reshape(-1, size)
        lengths, pool = np.asarray(self.lengths), 50 * size
        parts = [order[i : i + pool] for i in range(0, len(order), pool)]
        order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
        return random.permutation(order[: self.steps_per_epoch * size].reshape(-1, size))


def loader(
    dataset: Dataset, sampler: Sampler, *, collate: Callable[[list], object], workers: int = 0
) -> Callable[[int], Iterator]:
    """What `fit` asks for: micro-step to start from -> endless batches."""

    def start(step: int) -> Iterator:
        return iter(
            DataLoader(
                dataset,
                batch_sampler=sampler.keys(step),
                collate_fn=collate,
                num_workers=workers,
                pin_memory=torch.cuda.is_available(),
                prefetch_factor=4 if workers else None,
            )
        )

    return start


def batches(
    dataset: Any,
    batch: int,
    *,
    collate: Callable[[list], object],
    seed: int,
    device: str = "auto",
    lengths: Sequence[int] | None = None,
    workers: int = 0,
) -> Callable[[int], Iterator]:
    """What `fit` asks for, of a dataset with a length: seeded batches, this process's share of each."""
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu")
    rank, world = state.process_index, state.num_processes
    sampler = Sampler(len(dataset), batch, seed=seed, rank=rank, world=world, lengths=lengths)
    return loader(dataset, sampler, collate=collate, workers=workers)


@dataclass(frozen=True)
class Example:
    """A segment: `wav` (frames * hop,), `units` (frames,) or (frames, codebooks), condition ids, what was cut off."""

    id: str
    wav: np.ndarray
    units: np.ndarray
    speaker: int
    lang: int
    cut: tuple[bool, bool]  # speech goes on before / after the segment
    features: np.ndarray | None = None  # (frames, dim): soft units
    f0: np.ndarray | None = None  # (frames, 2): normalised log F0 and voicing
    energy: np.ndarray | None = None  # (frames, 1): log energy
    vector: np.ndarray | None = None  # (n,): whose voice it is


@dataclass(frozen=True)
class Batch:
    """Padded segments; `mask` (batch, frames) is true on real frames, `wav` is (batch, frames * hop)."""

    ids: list[str]
    wav: Tensor
    units: Tensor
    mask: Tensor
    speaker: Tensor
    lang: Tensor
    cut: Tensor
    features: Tensor | None = None
    f0: Tensor | None = None
    energy: Tensor | None = None
    vector: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch on `device`."""
        moved = {
            f.name: value.to(device, non_blocking=non_blocking)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory."""
        moved = {f.name: value.pin_memory() for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **moved)


def collate(examples: Sequence[Example]) -> Batch:
    """Pads examples at the end to the longest one."""
    n_frames = max(len(e.units) for e in examples)
    return Batch(
        ids=[e.id for e in examples],
        wav=_pad([e.wav for e in examples], n_frames * (len(examples[0].wav) // len(examples[0].units))),
        units=_pad([e.units for e in examples], n_frames),
        mask=_pad([np.ones(len(e.units), bool) for e in examples], n_frames),
        speaker=torch.tensor([e.speaker for e in examples]),
        lang=torch.tensor([e.lang for e in examples]),
        cut=torch.tensor([e.cut for e in examples]),
        features=_pad_optional([e.features for e in examples], n_frames),
        f0=_pad_optional([e.f0 for e in examples], n_frames),
        energy=_pad_optional([e.energy for e in examples], n_frames),
        vector=stacked([e.vector for e in examples]),
    )


def _pad(arrays: Sequence[np.ndarray], length: int) -> Tensor:
    out = np.zeros((len(arrays), length, *arrays[0].shape[1:]), arrays[0].dtype)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(out)


def stacked(arrays: Sequence[np.ndarray | None]) -> Tensor | None:
    """Vectors (n,) of all examples as (examples, n); None where they have none."""
    present = [a for a in arrays if a is not None]
    return torch.from_numpy(np.stack(present)) if len(present) == len(arrays) and present else None


def _pad_optional(arrays: Sequence[np.ndarray | None], length: int) -> Tensor | None:
    present = [a for a in arrays if a is not None]
    return _pad(present, length) if len(present) == len(arrays) and present else None


@dataclass(frozen=True)
class Row:
    """One utterance with its units."""

    utterance: Utterance
    units: np.ndarray


@dataclass(frozen=True)
class Corpus:
    """A manifest joined with a unit file by id; `missing` are the manifest's ids that have no units."""

    header: UnitsHeader
    rows: list[Row]
    missing: list[str]

    @property
    def speakers(self) -> tuple[str, ...]:
        """Names of the speakers, sorted; empty when the manifest does not say for every row."""
        return _names(row.utterance.speaker for row in self.rows)

    @property
    def langs(self) -> tuple[str, ...]:
        """Names of the languages, sorted; empty when the manifest does not say for every row."""
        return _names(row.utterance.lang for row in self.rows)


def _names(values: Iterator[str | None]) -> tuple[str, ...]:
    found = set(values)
    return () if None in found else tuple(sorted(name for name in found if name is not None))


def read_corpus(manifest: str | os.PathLike[str], units: str | os.PathLike[str], *, tokenizer: str = "") -> Corpus:
    """Joins a manifest and its units; with `tokenizer`, units of another one are an error."""
    units = Path(units)
    header = read_header(units)
    stored = {u.id: u.ids.astype(np.int32) for u in read_units(units, tokenizer=tokenizer or None)}
    rows, missing = [], []
    for utterance in read_manifest(manifest):
        ids = stored.get(utterance.id)
        if ids is None or not len(ids):
            missing.append(utterance.id)
        else:
            rows.append(Row(utterance, ids))
    if not rows:
        raise DataError(f"no id of {manifest} has units in {units}; missing: {', '.join(missing[:5])} ...")
    return Corpus(header, rows, missing)


class AudioCache:
    """Audio of a corpus at one rate, kept in memory as int16 while it stays under `limit_bytes`."""

    def __init__(self, rate: int, *, limit_bytes: int = 2 << 30) -> None:
        self.rate = rate
        self._left = limit_bytes
        self._kept: dict[str, np.ndarray] = {}

    def read(self, utterance: Utterance, start: int, n_samples: int) -> np.ndarray:
        """(n_samples,) float32 from sample `start`; fewer when the recording ends before."""
        wav = self._kept.get(utterance.id)
        if wav is None and self._left <= 0:
            begin = (utterance.start or 0.0) + start / self.rate
            end = n_samples / self.rate
            if utterance.duration is not None:
                end = min(end, utterance.duration - start / self.rate)
            return audio.read(utterance.audio, self.rate, start=begin, duration=end)[:n_samples]
        if wav is None:
            wav = self._load(utterance)
        return wav[start : start + n_samples].astype(np.float32) / 32768.0

    def _load(self, utterance: Utterance) -> np.ndarray:
        cut = utterance.start is not None
        wav = audio.read(
            utterance.audio, self.rate, start=utterance.start or 0.0, duration=utterance.duration if cut else None
        )
        wav = np.clip(np.round(wav * 32768.0), -32768, 32767).astype(np.int16)
        self._left -= wav.nbytes
        self._kept[utterance.id] = wav
        return wav


@dataclass(frozen=True)
class Prosody:
    """Frame-level F0 in Hz (0 = unvoiced) and log energy of every utterance, and each speaker's log-F0 statistics."""

    f0: dict[str, np.ndarray]
    energy: dict[str, np.ndarray]
    stats: dict[str, list[float]]  # speaker -> [mean, std] of log F0 over voiced frames

    def normalised_f0(self, utterance: Utterance) -> np.ndarray:
        """(frames, 2): log F0 in standard deviations from the speaker's mean (0 where unvoiced), and voicing."""
        return normalise_f0(self.f0[utterance.id], self.stats.get(utterance.speaker or ""))


def measure_prosody(
    corpus: Corpus,
    cache: AudioCache,
    *,
    hop_samples: int,
    f0: bool,
    energy: bool,
    stats: dict[str, list[float]] | None = None,
    threads: int = 1,
) -> Prosody:
    """Measures F0 and energy of a corpus; `stats` of a training set are used for its dev set."""

    def measure(row: Row) -> tuple[np.ndarray, np.ndarray]:
        n_frames = len(row.units)
        wav = _aligned(cache, row.utterance, 0, n_frames, hop_samples)
        pitch = audio.f0(wav, cache.rate, hop_samples=hop_samples) if f0 else np.zeros(n_frames)
        power = audio.energy(wav, hop_samples=hop_samples) if energy else np.ones(n_frames)
        return _fit_frames(pitch, n_frames), np.log(_fit_frames(power, n_frames) + 1e-4)

    with ThreadPoolExecutor(threads) as pool:
        measured = list(pool.map(measure, corpus.rows))
    by_id = {row.utterance.id: m for row, m in zip(corpus.rows, measured, strict=True)}
    if stats is None:
        by_speaker: dict[str, list[np.ndarray]] = {}
        for row in corpus.rows:
            by_speaker.setdefault(row.utterance.speaker or "", []).append(by_id[row.utterance.id][0])
        stats = {speaker: f0_stats(contours) for speaker, contours in by_speaker.items()}
    return Prosody({i: m[0] for i, m in by_id.items()}, {i: m[1] for i, m in by_id.items()}, stats)


def _fit_frames(values: np.ndarray, n_frames: int) -> np.ndarray:
    values = np.asarray(values, np.float32)[:n_frames]
    return np.pad(values, (0, n_frames - len(values)), mode="edge" if len(values) else "constant")


def _aligned(cache: AudioCache, utterance: Utterance, start: int, n_frames: int, hop: int) -> np.ndarray:
    """Audio of frames [start, start + n_frames), zero-padded at the end of the recording by a few samples."""
    wanted = n_frames * hop
    wav = cache.read(utterance, start * hop, wanted)
    if wanted - len(wav) > SLACK_SECONDS * cache.rate + hop:
        raise DataError(
            f"{utterance.id}: its units last {(start + n_frames) * hop / cache.rate:.2f} s, its audio "
            f"{(start * hop + len(wav)) / cache.rate:.2f} s; encode again, or check the manifest's start and duration"
        )
    return np.pad(wav, (0, wanted - len(wav)))


class Segments(Dataset):
    """Random aligned segments: item (epoch, i) is always the same one; an utterance counts once per segment length.

    An utterance shorter than a segment comes whole (`collate` pads and masks it); with segment_frames=0 all do.
    `features_dir` holds one `<id>.npy` (frames, dim) of soft units per utterance.  With `voices`, vectors of the
    utterances, a segment comes with that of any utterance of its speaker, so that it says no more than the voice.
    """

    def __init__(
        self,
        corpus: Corpus,
        cache: AudioCache,
        *,
        segment_frames: int,
        speakers: Sequence[str] = (),
        langs: Sequence[str] = (),
        prosody: Prosody | None = None,
        use_f0: bool = False,
        use_energy: bool = False,
        features_dir: str | os.PathLike[str] | None = None,
        voices: Voices | None = None,
        seed: int = 0,
    ) -> None:
        self.corpus, self.cache = corpus, cache
        self.segment_frames, self.seed = segment_frames, seed
        self.hop = hop_samples(cache.rate, corpus.header.rate_hz)
        self.speakers = _indices(speakers, what="speaker")
        self.langs = _indices(langs, what="language")
        self.prosody, self.use_f0, self.use_energy = prosody, use_f0, use_energy
        self.features_dir = Path(features_dir) if features_dir else None
        self.voices = voices
        if voices and (nameless := [row.utterance.id for row in corpus.rows if row.utterance.id not in voices]):
            what = f"{len(nameless)} utterances have no speaker vector"
            raise DataError(f"{what} ({', '.join(nameless[:10])}): make theirs, or leave them out of the manifest")
        self.mates = same_speaker([row.utterance for row in corpus.rows]) if voices else {}
        shares = [max(1, round(len(r.units) / segment_frames)) if segment_frames else 1 for r in corpus.rows]
        self.items = np.repeat(np.arange(len(corpus.rows)), shares)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: Key) -> Example:
        epoch, item = key
        row = self.corpus.rows[self.items[item]]
        total = len(row.units)
        length = min(total, self.segment_frames or total)
        draw = np.random.default_rng([self.seed, epoch, item])
        start = int(draw.integers(total - length + 1))
        return self.segment(
            row, start, length, voice=str(draw.choice(self.mates[row.utterance.id])) if self.mates else None
        )

    def segment(self, row: Row, start: int, length: int, *, voice: str | None = None) -> Example:
        """Frames [start, start + length) of a row, with the speaker vector of the utterance `voice`, or its own."""
        frames, utterance = slice(start, start + length), row.utterance
        return Example(
            id=utterance.id,
            wav=_aligned(self.cache, utterance, start, length, self.hop),
            units=row.units[frames].astype(np.int64),
            speaker=_index(self.speakers, utterance.speaker, utterance.id, what="speaker"),
            lang=_index(self.langs, utterance.lang, utterance.id, what="language"),
            cut=(start > 0, start + length < len(row.units)),
            features=self._features(utterance.id, frames),
            f0=self.prosody.normalised_f0(utterance)[frames] if self.use_f0 and self.prosody else None,
            energy=self.prosody.energy[utterance.id][frames, None] if self.use_energy and self.prosody else None,
            vector=self.voices[voice or utterance.id] if self.voices else None,
        )

    def _features(self, id: str, frames: slice) -> np.ndarray | None:
        if self.features_dir is None:
            return None
        path = self.features_dir / f"{id}.npy"
        if not path.is_file():
            raise DataError(f"{id}: no soft units at {path}")
        features = np.load(path, mmap_mode="r", allow_pickle=False)[frames]
        if len(features) != frames.stop - frames.start:
            raise DataError(f"{path}: too short for frames {frames.start}..{frames.stop} of its units")
        return np.asarray(features, np.float32)


def same_speaker(utterances: Sequence[Utterance]) -> dict[str, list[str]]:
    """For each id the ids of all utterances of its speaker; one whose speaker is not named has only itself."""
    groups: dict[str, list[str]] = {}
    for one in utterances:
        groups.setdefault(one.speaker or f"id {one.id}", []).append(one.id)
    return {one.id: groups[one.speaker or f"id {one.id}"] for one in utterances}


def _indices(names: Sequence[str], *, what: str) -> dict[str, int]:
    if len(set(names)) != len(names):
        raise DataError(f"a {what} is named twice: {', '.join(names)}")
    return {name: index for index, name in enumerate(names)}


def _index(known: dict[str, int], name: str | None, id: str, *, what: str) -> int:
    if not known:
        return 0
    if name not in known:
        raise DataError(f"{id}: {what} {name!r} is unknown; known: {', '.join(known)}")
    return known[name]


def shuffled_rows(corpus: Corpus, seed: int) -> list[Row]:
    """The control: every row's units in random frame order."""
    h = corpus.header
    return [Row(r.utterance, Units(r.units, h.rate_hz, h.n_units, h.tokenizer).shuffled(seed).ids) for r in corpus.rows]
