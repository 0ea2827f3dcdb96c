"""The metrics on pairs of recordings, in families that share their work (recognition, alignment, pitch tracking)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from unitkit import audio
from unitkit.manifest import Utterance
from unitkit.metrics import pitch, quality, speaker, spectral, text
from unitkit.metrics.base import Measure, Unavailable, mean
from unitkit.metrics.recognise import Recognizer
from unitkit.metrics.units import unit_error_rate

RATE = 16_000
Key = tuple[str, float | None, float | None]


@dataclass(frozen=True)
class Side:
    """What is judged: (judged, original) pairs of utterances, and the unit files of both where there are some."""

    pairs: tuple[tuple[Utterance, Utterance], ...]
    units: Path | None = None
    reference_units: Path | None = None


@dataclass
class Context:
    """What the metrics of one call share, so that no recording is recognised, embedded or tracked twice."""

    recognizer: Recognizer | str | Path | None = "auto"
    lang: str | None = None
    texts: dict[Key, str] = field(default_factory=dict)
    embeddings: dict[Key, np.ndarray | None] = field(default_factory=dict)
    tracks: dict[Key, np.ndarray] = field(default_factory=dict)
    distances: dict[tuple[Key, Key], spectral.SpectralDistance] = field(default_factory=dict)

    def language(self, utterance: Utterance) -> str:
        """Bare code of the utterance's language, else of the call's, else English."""
        return (utterance.lang or self.lang or "en").replace("_", "-").split("-")[0].lower()

    def judge(self) -> Recognizer:
        """The recogniser, opened at its first use."""
        if self.recognizer is None:
            raise Unavailable("no recogniser was asked for")
        if isinstance(self.recognizer, str | Path):
            self.recognizer = Recognizer.load(self.recognizer)
        return self.recognizer

    def transcribe(self, utterance: Utterance, lang: str) -> str:
        """What the recogniser hears."""
        key = _key(utterance)
        if key not in self.texts:
            self.texts[key] = self.judge()(_wav(utterance), lang=lang)
        return self.texts[key]

    def embed(self, utterance: Utterance) -> np.ndarray | None:
        """Speaker embedding; None of silence."""
        key = _key(utterance)
        if key not in self.embeddings:
            wav = _wav(utterance)
            self.embeddings[key] = speaker.embed(wav) if wav.any() else None
        return self.embeddings[key]

    def f0(self, utterance: Utterance) -> np.ndarray:
        """F0 (frames,) in Hz every 10 ms, 0 = unvoiced."""
        key = _key(utterance)
        if key not in self.tracks:
            wav = _wav(utterance)
            wav = np.pad(wav, (0, max(0, RATE // 10 - len(wav))))  # the tracker refuses a few samples
            try:
                self.tracks[key] = audio.f0(wav, RATE, hop_samples=spectral.HOP)
            except ImportError as error:
                raise Unavailable(str(error)) from error
        return self.tracks[key]

    def wav(self, utterance: Utterance) -> np.ndarray:
        """Its samples (samples,) at 16 kHz."""
        return _wav(utterance)

    def compare(self, judged: Utterance, original: Utterance) -> spectral.SpectralDistance:
        """Spectral distances and the path that aligns the two."""
        key = _key(judged), _key(original)
        if key not in self.distances:
            self.distances[key] = spectral.compare(_wav(judged), _wav(original))
        return self.distances[key]


def _key(utterance: Utterance) -> Key:
    return utterance.audio, utterance.start, utterance.duration


def _wav(utterance: Utterance) -> np.ndarray:
    """The utterance's samples (samples,) at 16 kHz; a duration without a start describes the whole file."""
    if utterance.start is None:
        return audio.read(utterance.audio, RATE)
    return audio.read(utterance.audio, RATE, start=utterance.start, duration=utterance.duration)


@dataclass(frozen=True)
class Texts:
    """Reference texts and what stands against them, one an utterance, with the references' languages."""

    references: list[str]
    hypotheses: list[str]
    langs: list[str]
    recognizer: str | None = None


def heard(context: Context, side: Side) -> Texts:
    """What the recogniser hears in the judged recordings, beside the originals' transcripts."""
    pairs = _transcribed(side)
    judge, langs = context.judge(), _languages(context, pairs)
    unknown = sorted(set(langs) - set(judge.languages))
    if unknown:
        raise Unavailable(f"the recogniser {judge.name} does not know {', '.join(unknown)}; use whisper-base")
    found = [context.transcribe(judged, lang) for (judged, _), lang in zip(pairs, langs, strict=True)]
    return Texts([original.text or "" for _, original in pairs], found, langs, judge.signature)


def written(context: Context, side: Side) -> Texts:
    """The texts of the judged manifest beside the originals' transcripts; a row without text has said nothing."""
    pairs = _transcribed(side)
    if all(judged.text is None for judged, _ in pairs):
        raise Unavailable("no texts in the judged manifest: the system writes none")
    if len(pairs) > 1 and all(judged.text == original.text for judged, original in pairs):
        raise Unavailable("the texts in the judged manifest are the reference's, letter for letter: nobody wrote them")
    return Texts(
        [original.text or "" for _, original in pairs],
        [judged.text or "" for judged, _ in pairs],
        _languages(context, pairs),
    )


def _transcribed(side: Side) -> list[tuple[Utterance, Utterance]]:
    """The pairs that have a reference text."""
    pairs = [(judged, original) for judged, original in side.pairs if original.text is not None]
    if not pairs:
        raise Unavailable("no transcripts in the reference manifest")
    return pairs


def _languages(context: Context, pairs: Sequence[tuple[Utterance, Utterance]]) -> list[str]:
    """Languages of the reference texts; what their normalisers lack shows here, before minutes of recognition."""
    langs = [context.language(original) for _, original in pairs]
    for lang in set(langs):
        text.normaliser(lang)
    return langs


def recognition(context: Context, side: Side) -> dict[str, Measure]:
    """WER and CER of the judged recordings against the originals' transcripts."""
    found = heard(context, side)
    texts, judge = (found.references, found.hypotheses), found.recognizer or "?"
    return {
        "wer": text.word_error_rate(*texts, langs=found.langs, recognizer=judge),
        "cer": text.character_error_rate(*texts, langs=found.langs, recognizer=judge),
    }


def translation_heard(context: Context, side: Side) -> dict[str, Measure]:
    """BLEU of what the recogniser hears against the reference texts."""
    text.bleu_metric()  # what is missing shows before minutes of recognition
    found = heard(context, side)
    return {"asr_bleu": text.bleu(found.references, found.hypotheses, langs=found.langs, recognizer=found.recognizer)}


def translation_written(context: Context, side: Side) -> dict[str, Measure]:
    """BLEU of the judged manifest's texts against the reference texts."""
    found = written(context, side)
    return {"text_bleu": text.bleu(found.references, found.hypotheses, langs=found.langs)}


def errors_written(context: Context, side: Side) -> dict[str, Measure]:
    """WER and CER of the judged manifest's texts against the reference texts."""
    found = written(context, side)
    texts = (found.references, found.hypotheses)
    return {
        "text_wer": text.word_error_rate(*texts, langs=found.langs, recognizer=None),
        "text_cer": text.character_error_rate(*texts, langs=found.langs, recognizer=None),
    }


def spectra(context: Context, side: Side) -> dict[str, Measure]:
    """Mel distance and mel-cepstral distortion."""
    found = [context.compare(judged, original) for judged, original in side.pairs]
    return {
        "mel": mean([distance.mel for distance in found], name=spectral.MEL_SIGNATURE),
        "mcd": mean([distance.mcd for distance in found], name=spectral.MCD_SIGNATURE),
    }


def prosody(context: Context, side: Side) -> dict[str, Measure]:
    """F0 errors and voicing error: frame by frame if all lengths agree to 50 ms, else along the spectral alignment."""
    tracks = [(context.f0(judged), context.f0(original)) for judged, original in side.pairs]
    limit = pitch.FRAME_ALIGNED_WITHIN * RATE / spectral.HOP
    frames = all(abs(len(ours) - len(theirs)) <= limit for ours, theirs in tracks)
    errors = [
        pitch.pitch_errors(*pair, path=None if frames else context.compare(*utterances).path)
        for pair, utterances in zip(tracks, side.pairs, strict=True)
    ]
    align = "frames" if frames else "dtw"
    found = {"voicing": pitch.voicing_error(errors, align=align)}
    if any(error.both_voiced for error in errors):  # a synthesis may be unvoiced throughout
        found["f0_rmse"] = pitch.f0_rmse_hz(errors, align=align)
        found["f0_cents"] = pitch.f0_rmse_cents(errors, align=align)
    return found


def speakers(context: Context, side: Side) -> dict[str, Measure]:
    """Speaker similarity between each judged recording and its original; 0 for silence."""
    values = [_cosine(context, judged, original) for judged, original in side.pairs]
    return {"speaker": mean(values, name=speaker.speaker_signature())}


def speakers_of_originals(context: Context, side: Side) -> dict[str, Measure]:
    """For scale: similarity of each original to the next one by the same speaker."""
    groups: dict[str | None, list[Utterance]] = {}
    for _, original in side.pairs:
        groups.setdefault(original.speaker, []).append(original)
    neighbours = [(one, other) for group in groups.values() if len(group) > 1 for one, other in pairwise(group)]
    if not neighbours:
        raise Unavailable("no speaker has two recordings")
    values = [_cosine(context, one, other) for one, other in neighbours]
    return {"speaker": mean(values, name=speaker.speaker_signature("next-utterance-of-speaker"))}


def _cosine(context: Context, one: Utterance, other: Utterance) -> float:
    a, b = context.embed(one), context.embed(other)
    return 0.0 if a is None or b is None else speaker.similarity(a, b)


def dnsmos(context: Context, side: Side) -> dict[str, Measure]:
    """Mean DNSMOS of the judged recordings."""
    return {"dnsmos": mean([quality.dnsmos(_wav(judged)) for judged, _ in side.pairs], name=quality.dnsmos_signature())}


def distillmos(context: Context, side: Side) -> dict[str, Measure]:
    """Mean DistillMOS of the judged recordings."""
    values = [quality.distillmos(_wav(judged)) for judged, _ in side.pairs]
    return {"distillmos": mean(values, name=quality.distillmos_signature())}


def units(context: Context, side: Side) -> dict[str, Measure]:
    """Unit error rate of the synthesis encoded again."""
    if side.units is None or side.reference_units is None:
        raise Unavailable("the unit error rate needs the units of the synthesis (encoded again) and of the originals")
    ids = {original.id for _, original in side.pairs}
    return {"uer": unit_error_rate(side.units, side.reference_units, ids=ids)}


@dataclass(frozen=True)
class Family:
    """Metrics computed together, and, where it makes sense, how they are computed on the originals."""

    metrics: tuple[str, ...]
    measure: Callable[[Context, Side], dict[str, Measure]]
    originals: Callable[[Context, Side], dict[str, Measure]] | None = None


# `originals` gets the originals on both sides of its pairs; distances of a recording to itself say nothing.
FAMILIES = (
    Family(("wer", "cer"), recognition, recognition),
    Family(("mel", "mcd"), spectra),
    Family(("f0_rmse", "f0_cents", "voicing"), prosody),
    Family(("speaker",), speakers, speakers_of_originals),
    Family(("dnsmos",), dnsmos, dnsmos),
    Family(("distillmos",), distillmos, distillmos),
    Family(("uer",), units),
)

# Of translations, asked for by name: "all" is what a resynthesis is scored by.
TRANSLATION_FAMILIES = (
    Family(("asr_bleu",), translation_heard, translation_heard),
    Family(("text_bleu",), translation_written),
    Family(("text_wer", "text_cer"), errors_written),
)
