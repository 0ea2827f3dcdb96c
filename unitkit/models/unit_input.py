"""Units as what a model reads: runs merged or not, in pieces or not, each codebook with tokens of its own."""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unitkit.bpe import UnitBPE
from unitkit.quantizers import KMeans
from unitkit.units import Units, UnitsError, UnitsHeader, Vocab, check_fingerprint

FOLDER = "unit_bpe"  # of the pieces, in a model's directory


@dataclass(frozen=True)
class UnitInput:
    """Units of one tokenizer to tokens: pad 0, then from 3 on the units, codebook after codebook, or the pieces."""

    header: UnitsHeader
    reduced: bool = True  # runs of equal units are one
    bpe: UnitBPE | None = None

    def __post_init__(self) -> None:
        """Refuse pieces of other units."""
        if self.bpe is not None:
            check_fingerprint(self.header.tokenizer, self.bpe.tokenizer, what="the unit BPE of this model")
            if self.bpe.reduced != self.reduced:
                kinds = {True: "reduced", False: "frame-level"}
                raise UnitsError(f"a BPE of {kinds[self.bpe.reduced]} units does not fit {kinds[self.reduced]} ones")

    @property
    def n_symbols(self) -> int:
        """Different units, of all codebooks, or pieces."""
        return len(self.bpe) if self.bpe is not None else self.header.n_units * self.header.codebooks

    @property
    def mask(self) -> int:
        """The token that hides others."""
        return Vocab.first + self.n_symbols

    def tokens(self, units: Units, *, dropout: float = 0.0, seed: int | None = None) -> np.ndarray:
        """Tokens (n,), or (n, codebooks) where there are several, of units of this tokenizer.

        Reduced units are taken as they are where the model reads such.  `dropout` and `seed` are those of
        `UnitBPE.encode`.
        """
        h = self.header
        check_fingerprint(h.tokenizer, units.tokenizer, what=f"units {units.id!r} for this model")
        if (units.n_units, units.codebooks) != (h.n_units, h.codebooks):
            raise UnitsError(
                f"{units.id!r} has {units.codebooks} × {units.n_units} units, not {h.codebooks} × {h.n_units}"
            )
        if units.reduced and not self.reduced:
            raise UnitsError(f"{units.id!r} is reduced, but this model reads units at frame level: expand them first")
        units = units.dedup()[0] if self.reduced and not units.reduced else units
        if self.bpe is not None:
            return self.bpe.encode(units, dropout=dropout, seed=seed) + Vocab.first
        offsets = h.n_units * np.arange(h.codebooks)
        return units.ids + Vocab.first + (0 if h.codebooks == 1 else offsets)

    def rates(self, units: Iterable[Units]) -> tuple[float, float]:
        """Rows of tokens a second, and their bits: each symbol costs log2 of how many there are, runs' lengths nothing.

        Of a corpus of units at frame level, all of it counted at once; the fixed rate of `unitkit.bitrate`, of what the
        model reads.
        """
        rows, frames = 0, 0
        for one in units:
            rows += len(self.tokens(one))
            frames += one.n_frames
        if not frames:
            raise UnitsError("the rate of no units at all")
        a_second = rows * self.header.rate_hz / frames
        books = 1 if self.bpe is not None else self.header.codebooks
        return a_second, a_second * books * math.log2(self.n_symbols / books)

    def vectors(self, quantizer: KMeans) -> Tensor:
        """Centroids of the units (n_symbols, dim); a piece has the mean of its units'."""
        units = centroid_vectors(quantizer)
        if self.bpe is None:
            return units
        return torch.stack([units[self.bpe.decode([piece]).ids].mean(0) for piece in range(len(self.bpe))])

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the pieces, if any, below a model's directory; the rest stands in its config."""
        if self.bpe is not None:
            self.bpe.save(Path(directory) / FOLDER)

    @classmethod
    def load(
        cls, directory: str | os.PathLike[str], header: UnitsHeader, *, reduced: bool, bpe: str = ""
    ) -> "UnitInput":
        """Read what `save` wrote; `bpe`: the fingerprint of the pieces that the model reads, "" = units."""
        if not bpe:
            return cls(header, reduced)
        found = UnitBPE.load(Path(directory) / FOLDER, tokenizer=header.tokenizer)
        if found.fingerprint != bpe:
            raise UnitsError(
                f"{directory}: its model reads the pieces of {bpe!r}, but {FOLDER} is {found.fingerprint!r}: "
                "put back the one that it was trained with"
            )
        return cls(header, reduced, found)


def centroid_vectors(quantizer: KMeans) -> Tensor:
    """The centroid of each unit (codebooks × n_units, dim), standardised; of a product, at its part's place."""
    books = quantizer.centroids.detach().cpu()
    if quantizer.kind != "product":
        return books.flatten(0, 1)
    count, n_units, part = books.shape
    placed = torch.zeros(count, n_units, count * part)
    for book in range(count):
        placed[book, :, book * part : (book + 1) * part] = books[book]
    return placed.flatten(0, 1)
