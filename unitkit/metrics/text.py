"""Word and character error rates after Whisper's text normalisation."""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from unitkit.metrics.base import Measure, package_version, ratio, require, signature

_ELLIPSIS = re.compile(r"\.{2,}|…")
# Written without spaces: words are not marked, so, as in the Whisper paper, every character counts as a word.
UNSPACED = frozenset({"zh", "yue", "ja", "th", "lo", "my"})


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
    references: Sequence[str], hypotheses: Sequence[str], *, langs: Sequence[str] | str = "en", recognizer: str = "?"
) -> Measure:
    """Corpus-level WER in percent; `langs` is one language or one an utterance; `recognizer` goes in the signature."""
    return _error_rate(references, hypotheses, langs=langs, recognizer=recognizer, words=True)


def character_error_rate(
    references: Sequence[str], hypotheses: Sequence[str], *, langs: Sequence[str] | str = "en", recognizer: str = "?"
) -> Measure:
    """Corpus-level CER in percent, spaces counted; arguments as `word_error_rate`."""
    return _error_rate(references, hypotheses, langs=langs, recognizer=recognizer, words=False)


def _error_rate(
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    langs: Sequence[str] | str,
    recognizer: str,
    words: bool,
) -> Measure:
    if isinstance(references, str) or isinstance(hypotheses, str):
        raise TypeError("references and hypotheses are lists of texts, one an utterance; got one string")
    per_utterance = [langs] * len(references) if isinstance(langs, str) else list(langs)
    if not len(references) == len(hypotheses) == len(per_utterance):
        raise ValueError(
            f"{len(references)} references, {len(hypotheses)} hypotheses, {len(per_utterance)} languages: "
            "one of each an utterance is needed"
        )
    errors, lengths = [], []
    for reference, hypothesis, lang in zip(references, hypotheses, per_utterance, strict=True):
        clean = normaliser(lang)
        wrong, length = count_errors(clean(reference), clean(hypothesis), words=words)
        errors.append(wrong)
        lengths.append(length)
    return ratio(errors, lengths, name=_signature(per_utterance, recognizer, words=words), scale=100.0)


def count_errors(reference: str, hypothesis: str, *, words: bool = True) -> tuple[int, int]:
    """(substitutions + deletions + insertions, reference length) of one pair of normalised texts."""
    jiwer = require("jiwer", package="jiwer")
    process = jiwer.process_words if words else jiwer.process_characters
    out = process(reference, hypothesis)
    return out.substitutions + out.deletions + out.insertions, out.hits + out.substitutions + out.deletions


def _signature(langs: Sequence[str], recognizer: str, *, words: bool) -> str:
    kinds = {"whisper-en,no-ellipsis" if lang == "en" else "whisper-basic-noaccent" for lang in langs}
    return signature(
        "wer" if words else "cer",
        {
            "asr": recognizer,
            "lang": "+".join(sorted(set(langs))),
            "norm": "+".join(sorted(kinds)),
            "jiwer": package_version("jiwer"),
        },
    )
