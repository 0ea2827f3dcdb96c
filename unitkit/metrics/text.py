"""Error rates of transcripts and BLEU of translations, after Whisper's text normalisation."""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from unitkit.metrics.base import Measure, Unavailable, package_version, ratio, require, signature

_ELLIPSIS = re.compile(r"\.{2,}|…")
# Written without spaces: words are not marked, so, as in the Whisper paper, every character counts as a word.
UNSPACED = frozenset({"zh", "yue", "ja", "th", "lo", "my"})


DRAWS, SEED = 1000, 12345  # of the bootstrap, as sacrebleu has them


@lru_cache(maxsize=16)
def normaliser(lang: str) -> Callable[[str], str]:
    """Whisper's normaliser: the English one for "en"; else the basic one, which also strips accents.

    Unlike the original, the English one drops an ellipsis whole: it would leave one dot of it, and count it as a word.
    """
    if lang == "en":
        module = require("whisper_normalizer.english", package="whisper-normalizer more-itertools")
        english = module.EnglishTextNormalizer()
        return lambda text: english(_ELLIPSIS.sub(" ", text)).strip()
    module = require("whisper_normalizer.basic", package="whisper-normalizer")
    basic = module.BasicTextNormalizer(remove_diacritics=True, split_letters=lang in UNSPACED)
    return lambda text: basic(text).strip()


def word_error_rate(
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    langs: Sequence[str] | str = "en",
    recognizer: str | None = "?",
) -> Measure:
    """Corpus-level WER in percent; `langs` is one language or one an utterance; `recognizer` goes in the signature.

    None: nobody heard the hypotheses, the system wrote them.
    """
    return _error_rate(references, hypotheses, langs=langs, recognizer=recognizer, words=True)


def character_error_rate(
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    langs: Sequence[str] | str = "en",
    recognizer: str | None = "?",
) -> Measure:
    """Corpus-level CER in percent, spaces counted; arguments as `word_error_rate`."""
    return _error_rate(references, hypotheses, langs=langs, recognizer=recognizer, words=False)


def _error_rate(
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    langs: Sequence[str] | str,
    recognizer: str | None,
    words: bool,
) -> Measure:
    per_utterance = _languages(references, hypotheses, langs)
    errors, lengths = [], []
    for reference, hypothesis, lang in zip(references, hypotheses, per_utterance, strict=True):
        clean = normaliser(lang)
        wrong, length = count_errors(clean(reference), clean(hypothesis), words=words)
        errors.append(wrong)
        lengths.append(length)
    return ratio(errors, lengths, name=_signature(per_utterance, recognizer, words=words), scale=100.0)


def _languages(references: Sequence[str], hypotheses: Sequence[str], langs: Sequence[str] | str) -> list[str]:
    """A language an utterance, once the lists agree."""
    if isinstance(references, str) or isinstance(hypotheses, str):
        raise TypeError("references and hypotheses are lists of texts, one an utterance; got one string")
    per_utterance = [langs] * len(references) if isinstance(langs, str) else list(langs)
    if not len(references) == len(hypotheses) == len(per_utterance):
        raise ValueError(
            f"{len(references)} references, {len(hypotheses)} hypotheses, {len(per_utterance)} languages: "
            "one of each an utterance is needed"
        )
    return per_utterance


def count_errors(reference: str, hypothesis: str, *, words: bool = True) -> tuple[int, int]:
    """(substitutions + deletions + insertions, reference length) of one pair of normalised texts."""
    jiwer = require("jiwer", package="jiwer")
    process = jiwer.process_words if words else jiwer.process_characters
    out = process(reference, hypothesis)
    return out.substitutions + out.deletions + out.insertions, out.hits + out.substitutions + out.deletions


def _signature(langs: Sequence[str], recognizer: str | None, *, words: bool) -> str:
    spoken = {} if recognizer is None else {"asr": recognizer}
    name = ("" if spoken else "text_") + ("wer" if words else "cer")
    return signature(name, {**spoken, **_norms(langs), "jiwer": package_version("jiwer")})


def _norms(langs: Sequence[str]) -> dict[str, str]:
    """What signatures say of languages and normalisation."""
    kinds = {"whisper-en,no-ellipsis" if lang == "en" else "whisper-basic-noaccent" for lang in langs}
    return {"lang": "+".join(sorted(set(langs))), "norm": "+".join(sorted(kinds))}


def bleu(
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    langs: Sequence[str] | str = "en",
    recognizer: str | None = None,
) -> Measure:
    """Corpus BLEU (0 to 100) of normalised texts by sacrebleu; `recognizer`: what heard the hypotheses, if any did.

    Its words are those that the error rates count: what stands between spaces once the texts are normalised.  It counts
    runs of up to four words, so of texts that are all shorter it is 0.
    """
    metric, per_utterance = bleu_metric(), _languages(references, hypotheses, langs)
    wanted, found = (
        [normaliser(lang)(text) for text, lang in zip(texts, per_utterance, strict=True)]
        for texts in (references, hypotheses)
    )
    if not any(wanted):
        raise Unavailable("nothing to count: the references are empty after normalisation")
    value = min(metric.corpus_score(found, [wanted]).score, 100.0)  # it may pass 100 by rounding
    low, high = _bleu_interval(metric, wanted, found)
    spoken = {} if recognizer is None else {"asr": recognizer}
    name = signature(
        "text_bleu" if recognizer is None else "asr_bleu",
        {**spoken, **_norms(per_utterance), "sacrebleu": f"BLEU|{metric.get_signature()}"},
    )
    return Measure(value, low, high, len(wanted), name)


def bleu_metric() -> Any:
    """sacrebleu's BLEU as we ask it; Unavailable where it is not installed."""
    metric = require("sacrebleu.metrics", package="'sacrebleu>=2.4'").BLEU(tokenize="none")
    metric.n_bootstrap, metric.seed = DRAWS, str(SEED)  # for its signature
    return metric


def _bleu_interval(metric: Any, references: Sequence[str], hypotheses: Sequence[str]) -> tuple[float, float]:
    """Ends of the middle 95 % of sacrebleu's own draws of utterances.

    sacrebleu prints the mean of the draws and half of the distance between these ends.  Of a few short texts that need
    not hold the value: a draw of nothing but texts under four words is 0, and pulls the mean down.
    """
    pairs = zip(hypotheses, references, strict=True)
    alone = [metric.corpus_score([hypothesis], [[reference]]) for hypothesis, reference in pairs]
    counts = np.array([[one.sys_len, one.ref_len, *one.counts, *one.totals] for one in alone])  # (utterances, 2 + 2n)
    draws = np.random.default_rng(SEED).choice(len(counts), size=(DRAWS, len(counts)), replace=True)
    scores = []
    for picks in draws:
        sums = counts[picks].sum(axis=0).tolist()
        correct, total = sums[2 : len(sums) // 2 + 1], sums[len(sums) // 2 + 1 :]
        scores.append(metric.compute_bleu(correct, total, *sums[:2], smooth_method=metric.smooth_method).score)
    low, high = np.sort(scores)[[DRAWS // 40, -DRAWS // 40 - 1]].clip(0, 100)
    return float(low), float(high)


def count_words(text: str, *, lang: str = "en") -> int:
    """Words as written, marks that stand alone left out; characters in languages written without spaces."""
    pieces = text if lang in UNSPACED else text.split()
    return sum(any(char.isalnum() for char in piece) for piece in pieces)
