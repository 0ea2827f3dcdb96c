"""Speech or units to text: the recogniser as a whole system.  The judge of scores is `unitkit.metrics.recognise`."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
from torch import Tensor, from_numpy

from unitkit.audio import AudioError, quiet_cuts
from unitkit.models.storage import checksum
from unitkit.pieces import Pieces
from unitkit.pipeline.given import (
    Heard,
    Speech,
    as_utterance,
    by_length,
    check_sizes,
    hear,
    model_folder,
    wav_of,
)
from unitkit.recording import checked_wav
from unitkit.tokenizer import Tokenizer, bundled_as, pick_device
from unitkit.units import Units, check_fingerprint

if TYPE_CHECKING:
    from unitkit.models.listen import Listener
    from unitkit.models.seq2seq import Seq2Seq, Seq2SeqConfig
    from unitkit.models.unit_input import UnitInput

Said: TypeAlias = Speech | Units
DEFAULT = "recognizer"  # name of the bundled model
BATCH = 8  # utterances decoded together
EXTRA = 50  # tokens of a text beyond the positions of what was heard, for models that pack much into one


@dataclass(frozen=True)
class Transcript:
    """What was said: its text, the score of the search, and the language where the model tells languages apart."""

    text: str
    score: float
    lang: str | None = None


@dataclass(frozen=True)
class Recognizer:
    """Speech or units to text: `Recognizer.load("exp/asr")("call.wav")` gives a string, a list gives a list."""

    model: "Seq2Seq"
    pieces: Pieces
    listener: "Listener | None"  # of a model that hears features
    units: "UnitInput | None"  # of a model that reads units …
    tokenizer: Tokenizer | None  # … and what makes them of speech, where it is known

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        c = self.model.config
        if c.target != "text":
            raise ValueError(f"this model writes {c.target}, not text: it is a translator (unitkit translate)")
        if self.listener is not None and self.listener.dim != c.features_dim:
            raise ValueError(
                f"the listener gives {self.listener.dim} numbers a frame, the model takes {c.features_dim}: "
                "they do not belong together"
            )
        if self.tokenizer is not None:
            check_fingerprint(c.source_tokenizer, self.tokenizer.fingerprint, what="the tokenizer for this recogniser")

    @classmethod
    def load(
        cls, directory: str | Path = DEFAULT, *, tokenizer: Tokenizer | str | Path | None = None, device: str = "auto"
    ) -> "Recognizer":
        """Load a model directory of `recipes/train_asr.py`; without one, the recogniser that is bundled.

        A model of units takes speech by its own tokenizer/, by the bundled one it was trained with, or by `tokenizer`;
        without any of them it takes units.
        """
        from unitkit.models.listen import Listener
        from unitkit.models.seq2seq import Seq2Seq
        from unitkit.models.unit_input import UnitInput

        folder, where = model_folder(directory), pick_device(device)
        model = Seq2Seq.load(folder, device=where)
        c = model.config
        if c.target != "text" or c.source == "text":
            raise ValueError(
                f"{folder} turns {c.source} into {c.target}: a recogniser turns features or units into text"
            )
        pieces = Pieces.load(folder, langs=c.langs, fingerprint=c.tokenizer)
        if c.source == "features":
            if tokenizer is not None:
                raise ValueError(f"{folder} hears features, not units: leave the tokenizer out")
            return cls(model, pieces, Listener.load(folder / "listener", device=where), None, None)
        units = UnitInput.load(folder, c.units_header(), reduced=c.source_reduced, bpe=c.source_bpe)
        return cls(model, pieces, None, units, _tokenizer(folder, c, given=tokenizer, device=where))

    @property
    def langs(self) -> tuple[str, ...]:
        """Languages that the model tells apart; none: it does not ask."""
        return self.pieces.langs

    @overload
    def __call__(
        self,
        speech: list[Any] | tuple[Any, ...],
        *,
        beam: int = 10,
        ctc_weight: float | None = None,
        lang: str | None = None,
        longest: float | None = None,
        batch: int = BATCH,
        rate: int | None = None,
    ) -> list[str]: ...
    @overload
    def __call__(
        self,
        speech: Said,
        *,
        beam: int = 10,
        ctc_weight: float | None = None,
        lang: str | None = None,
        longest: float | None = None,
        batch: int = BATCH,
        rate: int | None = None,
    ) -> str: ...
    def __call__(
        self,
        speech: Any,
        *,
        beam: int = 10,
        ctc_weight: float | None = None,
        lang: str | None = None,
        longest: float | None = None,
        batch: int = BATCH,
        rate: int | None = None,
    ) -> str | list[str]:
        """Write down a recording or units, or a list of them with the same results as one by one.

        Args:
            speech: path, `Utterance`, wav (samples,) at `rate` Hz, or `Units` of the model's tokenizer.
            beam: hypotheses kept in the search.
            ctc_weight: how much CTC counts beside the decoder, 0 to 1; left out: as much as in training.
            lang: the language spoken, of a model that tells languages apart; left out: it finds out.
            longest: seconds; longer recordings are cut where they are quietest, and each part is written down by
                itself; 0: never; left out: as long as 19 of 20 that the model learned from.  Units are not cut:
                nothing says where they are quiet.
            batch: utterances decoded together.
            rate: of wavs; by default the model's own.

        Raises:
            AudioError: a recording is damaged, too short or, uncut, too long; names it.
            FingerprintError: units of another tokenizer than the model's.
        """
        check_sizes(beam, batch)
        given = list(speech) if isinstance(speech, list | tuple) else [speech]
        heard = [self.hear(one, rate, longest=longest) for one in given]
        found = self.write(heard, beam=beam, ctc_weight=ctc_weight, lang=lang, batch=batch)
        texts = [one.text for one in found]
        return texts if isinstance(speech, list | tuple) else texts[0]

    def hear(self, speech: Said, rate: int | None = None, *, longest: float | None = None) -> list[Heard]:
        """What the model takes of a recording, part by part, or of units."""
        if isinstance(speech, Units):
            self.check(speech)
            return [self._read(speech)]
        c = self.model.config
        longest = c.longest if longest is None else longest
        if longest < 0:
            raise ValueError(f"longest {longest:g}: seconds, 0 for recordings of any length uncut")
        if self.listener is not None:
            most, hz = c.max_positions * 2 ** len(c.conv_kernels), self.listener.rate_hz
            whole = hear(self.listener, speech, rate=rate, most=most if not longest else sys.maxsize)
            parts = self._parts(speech, rate, longest, hz=hz, n=len(whole.features), at=self.listener.sample_rate)
            return [replace(whole, features=whole.features[a:b]) for a, b in parts]
        units = self._encode(speech, rate)
        assert self.tokenizer is not None
        parts = self._parts(speech, rate, longest, hz=units.rate_hz, n=len(units), at=self.tokenizer.sample_rate)
        return [self._read(replace(units, ids=units.ids[a:b])) for a, b in parts]

    def _parts(
        self, speech: Speech, rate: int | None, longest: float, *, hz: float, n: int, at: int
    ) -> list[tuple[int, int]]:
        """First frame and end of each part of a recording of `n` frames at `hz`, whose wav is read `at` Hz."""
        if not longest or n <= longest * hz:
            return [(0, n)]
        ends = [min(n, round(cut / at * hz)) for cut in quiet_cuts(wav_of(speech, at, rate=rate), at, longest)]
        return [(a, b) for a, b in zip([0, *ends], [*ends, n], strict=True) if a < b]

    def _read(self, one: Units) -> Heard:
        """Units as the model's tokens."""
        c = self.model.config
        assert self.units is not None
        tokens = self.units.tokens(one)
        if not len(tokens):
            raise ValueError(f"{one.id!r} has no units")
        if len(tokens) > (most := c.max_positions * 2 ** len(c.unit_kernels)):
            named = one.id or "the wav"
            raise AudioError(named, f"too long: {len(tokens)} tokens of units, but this model takes {most} at most")
        return Heard(from_numpy(np.ascontiguousarray(tokens, np.int64)), one.id, one.id)

    def check(self, units: Units) -> None:
        """Refuse units that this model does not read."""
        if self.units is None:
            raise ValueError(f"{units.id!r}: this model hears {self.model.config.features}, not units: give it speech")
        check_fingerprint(self.units.header.tokenizer, units.tokenizer, what=f"units {units.id!r} for this recogniser")

    def _encode(self, speech: Speech, rate: int | None) -> Units:
        if self.tokenizer is None:
            raise ValueError(
                f"this model reads units of tokenizer {self.model.config.source_tokenizer!r}, which is not beside it: "
                "name that tokenizer with tokenizer= (--tokenizer), or give units"
            )
        if isinstance(speech, np.ndarray | Tensor):
            hz = self.tokenizer.sample_rate
            return self.tokenizer.encode(checked_wav(speech, rate or hz, hz), rate=hz)
        return self.tokenizer.encode(as_utterance(speech))

    def write(
        self,
        heard: Sequence[Sequence[Heard]],
        *,
        beam: int = 10,
        ctc_weight: float | None = None,
        lang: str | None = None,
        batch: int = BATCH,
    ) -> list[Transcript]:
        """What was said in each, decoded in batches of similar length; the texts of its parts are joined by spaces.

        A recording is in one language: where its parts are not, all are written in that in which they score best.
        """

        def search(parts: Sequence[Heard], lang: str | None) -> list[Transcript]:
            return self._search(parts, beam=beam, ctc_weight=ctc_weight, lang=lang, batch=batch)

        found = iter(search([part for one in heard for part in one], lang))
        written = [[next(found) for _ in one] for one in heard]
        for n, one in enumerate(heard):
            if len(langs := dict.fromkeys(part.lang for part in written[n])) > 1:
                tried = [search(one, known) for known in langs]
                written[n] = max(tried, key=lambda parts: sum(part.score for part in parts))
        return [_joined(parts) for parts in written]

    def _search(
        self, heard: Sequence[Heard], *, beam: int, ctc_weight: float | None, lang: str | None, batch: int
    ) -> list[Transcript]:
        """What was said in each part."""
        first = None if lang is None else self.pieces.token_of(lang)
        joint = (self.model.config.ctc if ctc_weight is None else ctc_weight) > 0
        found: dict[int, Transcript] = {}
        for group in by_length([len(one.features) for one in heard], batch):
            made = self.model.generate(
                [heard[i].features for i in group],
                beam=beam,
                extra=EXTRA,
                # CTC says how long a text is; without it short ones would win by having fewer factors
                length_penalty=0.0 if joint else 1.0,
                ctc_weight=ctc_weight,
                first=None if first is None else [first] * len(group),
            )
            for i, one in zip(group, made, strict=True):
                tokens = one.units + self.pieces.first
                found[i] = Transcript(self.pieces.decode(tokens), one.score, self.pieces.lang_of(tokens))
        return [found[i] for i in range(len(heard))]

    def settings(self) -> dict[str, object]:
        """All that changes a transcript, but for the arguments of the call; fit for JSON."""
        c = self.model.config
        hears = self.listener.settings() if self.listener is not None else c.source_tokenizer
        facts = {
            "model": checksum(self.model.config, self.model.state_dict()),
            "pieces": self.pieces.fingerprint,
            "hears": hears,
        }
        return dict(json.loads(json.dumps(facts, default=str)))


def _joined(parts: Sequence[Transcript]) -> Transcript:
    """One transcript of the parts of a recording."""
    text = " ".join(part.text for part in parts if part.text)
    return Transcript(text, sum(part.score for part in parts), parts[0].lang)


def _tokenizer(
    folder: Path, config: "Seq2SeqConfig", *, given: Tokenizer | str | os.PathLike[str] | None, device: str
) -> Tokenizer | None:
    """What makes a model's units of speech: given, in its directory, or bundled."""
    if isinstance(given, Tokenizer):
        return given
    if given is None:
        inside = folder / "tokenizer"
        given = inside if inside.is_dir() else bundled_as(config.source_tokenizer)
    return None if given is None else Tokenizer.load(given, device=device)
