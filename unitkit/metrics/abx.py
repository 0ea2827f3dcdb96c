"""ABX error: are two tokens of one phone nearer to each other than to a token of another phone?

Of A and X tokens of one phone, B of another: an error where d(X, A) > d(X, B), half an error where they are equal.
Chance is 50 %, whatever the features.  Definitions follow the ZeroSpeech 2021 code (Libri-Light) as fastabx restates
it (Poli et al., "fastabx", 2025):

    slicing   the frames whose centre lies in [onset, offset], both ends included (see `alignments`); `libri_light`
              leaves out the last of them, as the Libri-Light code does.  Frames past the end of the utterance are cut
              off (encoders may give a frame less); items without any frame are dropped, and counted.
    distance  dynamic time warping, mean over the path, of angular (arccos(cosine)/pi; a zero vector is at 1 from all
              others), euclidean, or identical (0/1, for units; the mean over codebooks where there are several).
    speaker   within: A, B, X of one speaker.  across: A and B of one, X of another.
    context   within: A, B, X between the same two phones.  any: no condition.
    limits    of each (phone, context, speaker) at most `max_size_group` tokens are kept, and each A meets the X of at
              most `max_x_across` other speakers; seeded.  The published settings are 10 and 5, 50 Hz triphones.
    average   triplets of a cell (phone of A, phone of B, context, speaker, speaker of X); then cells over contexts
              and speakers of X; then over speakers; then over ordered pairs of phones: all get the same weight.

Numbers with different limits, kinds of item or contexts are not comparable; the signature names them.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import pi

import numpy as np
import torch
from torch import Tensor

from unitkit.metrics.alignments import first_frame, last_frame
from unitkit.metrics.base import Unavailable, signature
from unitkit.metrics.dtw import Pairs, dtw
from unitkit.metrics.items import Item
from unitkit.metrics.triplets import Job, groups, jobs

DISTANCES = ("angular", "euclidean", "identical")
MODES = ("within", "across")
CONTEXTS = ("within", "any")
FLUSH = 1 << 23  # frame distances held at once (32 MB)

Features = Mapping[str, np.ndarray | Tensor] | Callable[[str], np.ndarray | Tensor]
Phones = tuple[str, str]


@dataclass(frozen=True)
class Segments:
    """Items cut out of their utterances: item k is frames[starts[k] : starts[k] + lengths[k]] of (frames, dim)."""

    items: tuple[Item, ...]
    frames: Tensor
    starts: np.ndarray
    lengths: np.ndarray
    rate_hz: float
    dropped: int
    libri_light: bool


@dataclass(frozen=True)
class Abx:
    """ABX error in percent, over phone pairs, from so many cells, triplets and items; items without frames."""

    value: float
    phone_pairs: int
    cells: int
    triplets: int
    items: int
    dropped: int
    signature: str


@dataclass
class _Cell:
    phones: Phones
    speaker: str
    error: float
    triplets: int


def frame_span(onset: float, offset: float, *, rate_hz: float, libri_light: bool = False) -> tuple[int, int]:
    """First frame and the one after the last whose centres lie in [onset, offset] seconds."""
    return first_frame(onset, rate_hz), last_frame(offset, rate_hz) + (0 if libri_light else 1)


def cut(items: Iterable[Item], features: Features, *, rate_hz: float, libri_light: bool = False) -> Segments:
    """Cut items out of features (frames, dim), or units (frames,) or (frames, codebooks), given by utterance id.

    `features` is a mapping or a function; each utterance is asked for once.
    """
    by_file: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_file[item.file].append(item)
    kept: list[Item] = []
    pieces: list[Tensor] = []
    for file, group in by_file.items():
        whole = torch.as_tensor(features(file) if callable(features) else features[file])
        whole = whole[:, None] if whole.ndim == 1 else whole
        if whole.is_floating_point() and not whole.isfinite().all():
            raise ValueError(f"the features of {file!r} hold values that are not finite")
        for item in group:
            start, stop = frame_span(item.onset, item.offset, rate_hz=rate_hz, libri_light=libri_light)
            if len(piece := whole[start:stop]):
                kept.append(item)
                pieces.append(piece)
    if not pieces:
        raise Unavailable("no item has a frame: no items, or their times lie outside the utterances")
    lengths = np.array([len(piece) for piece in pieces])
    dropped = sum(map(len, by_file.values())) - len(kept)
    starts = np.cumsum(lengths) - lengths
    return Segments(tuple(kept), torch.cat(pieces), starts, lengths, rate_hz, dropped, libri_light)


def abx(
    segments: Segments,
    *,
    speaker: str = "within",
    context: str = "within",
    distance: str = "angular",
    kind: str = "triphone",
    max_size_group: int | None = 10,
    max_x_across: int | None = 5,
    seed: int = 0,
) -> Abx:
    """ABX error of cut-out items; `kind` only says in the signature what the items are.  None lifts a limit."""
    for what, given, known in (
        ("speaker", speaker, MODES), ("context", context, CONTEXTS), ("distance", distance, DISTANCES)
    ):  # fmt: skip
        if given not in known:
            raise ValueError(f"unknown {what} {given!r}; known: {', '.join(known)}")
    generator = np.random.default_rng(seed)
    kept = groups(segments.items, context, limit=max_size_group, generator=generator)
    tasks = jobs(kept, speaker, limit=max_x_across, generator=generator)
    cells = [cell for batch in _batches(tasks, segments.lengths) for cell in _score(batch, segments, distance)]
    if not cells:
        raise Unavailable(f"no ABX triplet, {speaker} speaker and {context} context: too few items of too few phones")
    value, pairs = average([(cell.phones, cell.speaker, cell.error) for cell in cells])
    facts = {
        "speaker": speaker,
        "context": context,
        "item": kind,
        "distance": distance,
        "dtw": "path-mean",
        "rate": f"{segments.rate_hz:g}",
        "slice": "libri-light" if segments.libri_light else "centres",
        "group": max_size_group or "all",
        **({"x": max_x_across or "all"} if speaker == "across" else {}),
        "seed": seed,
    }
    triplets = sum(cell.triplets for cell in cells)
    name = signature("abx", facts)
    return Abx(100 * value, pairs, len(cells), triplets, len(segments.items), segments.dropped, name)


def average(cells: Iterable[tuple[Phones, str, float]]) -> tuple[float, int]:
    """Mean error of (phone pair, speaker, error) cells: over each pair's and speaker's, speakers, pairs; and the pairs.

    Cells of one pair and speaker differ in context and in X's speaker.
    """
    by_speaker: dict[Phones, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for phones, speaker, error in cells:
        by_speaker[phones][speaker].append(error)
    pairs = [np.mean([np.mean(errors) for errors in speakers.values()]) for speakers in by_speaker.values()]
    return float(np.mean(pairs)), len(pairs)


def _batches(tasks: Iterable[Job], lengths: np.ndarray) -> Iterator[list[Job]]:
    """Jobs gathered until their tables of frame distances fill the memory meant for them."""
    batch: list[Job] = []
    held = 0
    for job in tasks:
        batch.append(job)
        held += int(lengths[job.rows].sum()) * sum(int(lengths[some].sum()) for some in job.columns)
        if held >= FLUSH:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _score(batch: Sequence[Job], segments: Segments, distance: str) -> Iterator[_Cell]:
    """Cells of some jobs: their frame distances in one flat tensor, all their pairs of tokens warped together."""
    tables, pairs, base = [], [], 0
    for job in batch:
        rows, columns = job.rows, np.concatenate(job.columns)
        table = frame_distances(_frames(segments, rows), _frames(segments, columns), distance)
        heights, widths = segments.lengths[rows], segments.lengths[columns]
        down, along = np.cumsum(heights) - heights, np.cumsum(widths) - widths
        shape = (len(rows), len(columns))
        pairs.append(
            (
                (base + down[:, None] * table.shape[1] + along).ravel(),
                np.full(shape, table.shape[1]).ravel(),
                np.broadcast_to(heights[:, None], shape).ravel(),
                np.broadcast_to(widths, shape).ravel(),
            )
        )
        tables.append(table.reshape(-1))
        base += table.numel()
    flat = torch.cat(tables)
    joined = Pairs(*(torch.from_numpy(np.concatenate(column)).to(flat.device) for column in zip(*pairs, strict=True)))
    found = dtw(flat, joined).cpu().numpy()
    start = 0
    for job in batch:
        shape = (len(job.rows), sum(map(len, job.columns)))
        yield from _cells(job, found[start : start + shape[0] * shape[1]].reshape(shape))
        start += shape[0] * shape[1]


def _cells(job: Job, distances: np.ndarray) -> Iterator[_Cell]:
    """One cell a phone B from the (X, A and all B) distances of a job."""
    size = len(job.columns[0])
    to_a, start = distances[:, :size], size
    if job.symmetric:  # X is A's group: one direction for each two tokens, and no token is compared with itself
        to_a = np.triu(to_a, 1) + np.triu(to_a, 1).T
        to_a = to_a[~np.eye(size, dtype=bool)].reshape(size, size - 1)
    for other, tokens in zip(job.others, job.columns[1:], strict=True):
        to_b = distances[:, start : start + len(tokens)]
        start += len(tokens)
        signs = np.sign(to_a[:, :, None] - to_b[:, None, :])
        yield _Cell((job.phone, other), job.speaker, float((1 + signs.mean(dtype=np.float64)) / 2), signs.size)


def _frames(segments: Segments, tokens: np.ndarray) -> Tensor:
    """Frames of some items, one after the other (frames, dim)."""
    lengths = segments.lengths[tokens]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    places = torch.from_numpy(np.repeat(segments.starts[tokens], lengths) + within)
    return segments.frames[places.to(segments.frames.device)]


def frame_distances(ours: Tensor, theirs: Tensor, distance: str) -> Tensor:
    """(n, m) float32 distances between frames (n, dim) and (m, dim)."""
    if distance == "identical":
        if ours.is_floating_point():
            raise ValueError("identical is a distance between units, not between features; take angular or euclidean")
        return torch.stack([a[:, None] != b[None] for a, b in zip(ours.T, theirs.T, strict=True)]).float().mean(dim=0)
    if not ours.is_floating_point():
        raise ValueError(f"{distance} is a distance between features; units are compared with identical")
    ours, theirs = ours.float(), theirs.float()
    if distance == "euclidean":
        return torch.cdist(ours, theirs, compute_mode="donot_use_mm_for_euclid_dist")
    cosine = torch.nn.functional.normalize(ours, dim=1) @ torch.nn.functional.normalize(theirs, dim=1).T
    angle = torch.acos(cosine.clamp(-1, 1)) / pi
    none, also = ~ours.any(dim=1), ~theirs.any(dim=1)
    if not (none.any() or also.any()):
        return angle
    return torch.where(none[:, None] & also, 0.0, torch.where(none[:, None] | also, 1.0, angle))
