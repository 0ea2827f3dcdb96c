"""Real speech with units for the pre-training tests, and slow, obvious versions of the objectives' losses."""

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unitkit import audio
from unitkit.encoders import load_encoder
from unitkit.manifest import read_manifest
from unitkit.quantizers import KMeans

ROOT = Path(__file__).parents[1]
N_UNITS = 20


@lru_cache(maxsize=1)
def recordings() -> list[np.ndarray]:
    """Twelve prompts of the samples, 1.7 s of each."""
    rows = [u for u in read_manifest(ROOT / "samples" / "en" / "train.jsonl") if (u.duration or 0) > 1.75][:12]
    return [audio.read(u.audio, 16000)[:27200] for u in rows]


def speech(n_frames: int, *, hop: int, field: int) -> Tensor:
    """Wavs (12, samples) of n_frames frames."""
    return torch.from_numpy(np.stack([wav[: (n_frames - 1) * hop + field] for wav in recordings()]))


@lru_cache(maxsize=1)
def mfcc_units() -> Tensor:
    """MFCC k-means units at 50 Hz of the recordings: (12, frames)."""
    mfcc = load_encoder("mfcc")
    frames = [mfcc(wav) for wav in recordings()]
    quantizer = KMeans.fit(torch.cat(frames), N_UNITS, seed=0)
    return torch.stack([quantizer.assign(one) for one in frames]).long()


def learn(model: torch.nn.Module, batch: tuple, *, steps: int, lr: float) -> list[dict[str, float]]:
    """Trains on one batch with a short warm-up; the losses of every step, and the last hits under "counts"."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, betas=(0.9, 0.98))
    model.train()
    rows = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 20)
        model.advance(step)
        losses, counts = model(*batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rows.append({name: float(value.detach()) for name, value in losses.items()})
    rows[-1]["counts"] = counts
    return rows


def late(rows: list[dict[str, float]], name: str, last: int = 10) -> float:
    """Mean of the last steps."""
    return sum(row[name] for row in rows[-last:]) / last


def slow_cosine_loss(projected: Tensor, units: Tensor, targets: list[int], *, temperature: float) -> float:
    """Cross entropy of cosines over a temperature, number by number."""
    total = 0.0
    for row, target in zip(projected.tolist(), targets, strict=True):
        scores = []
        for unit in units.tolist():
            dot = sum(a * b for a, b in zip(row, unit, strict=True))
            scores.append(dot / math.sqrt(sum(a * a for a in row)) / math.sqrt(sum(b * b for b in unit)) / temperature)
        total += math.log(sum(math.exp(s) for s in scores)) - scores[target]
    return total / len(targets)


def slow_contrast(predicted: list[Tensor], truth: Tensor, others: Tensor, *, offset: int) -> tuple[float, float]:
    """wav2vec's loss and accuracy, pair by pair."""
    losses, wins = [], []
    batch, _, frames = truth.shape
    for step, guess in enumerate(predicted):
        for row in range(batch):
            for now in range(frames - offset - step):
                then = now + offset + step
                true = float(guess[row, :, now] @ truth[row, :, then])
                false = [float(guess[row, :, now] @ truth[row, :, other]) for other in others[row, :, then].tolist()]
                loss = math.log1p(math.exp(-true)) + sum(math.log1p(math.exp(f)) for f in false) / len(false)
                losses.append(loss)
                wins.append(true > max(false))
    return sum(losses) / len(losses), sum(wins) / len(wins)
