"""PNMI, purities, use of units: against scikit-learn, by hand, and beside the shuffled control."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import homogeneity_score, mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from unitkit.manifest import Utterance
from unitkit.metrics.alignments import Phone
from unitkit.metrics.base import Unavailable
from unitkit.metrics.items import alignment_items
from unitkit.metrics.phones import entropy, label_frames, phone_measures, phone_scores, score_phones
from unitkit.metrics.rows import UNIT_METRICS, ScoreError, table
from unitkit.metrics.unit_scores import AbxTask, check_metrics, score_features, score_units
from unitkit.metrics.usage import corpus_use, unit_use, usage_measures
from unitkit.units import Units, UnitsHeader, write_units

LABELS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=60)


def units(ids: object, id_: str = "u", *, k: int = 10, rate: float = 50.0) -> Units:
    return Units(np.asarray(ids), rate, k, "0123456789ab", id_)


def spoken(labels: str, *, seconds: float = 0.02) -> list[Phone]:
    """One phone a letter, `seconds` long; "." is silence."""
    names = ["SIL" if letter == "." else letter for letter in labels]
    return [Phone(n * seconds, (n + 1) * seconds, name) for n, name in enumerate(names)]


@settings(max_examples=200, deadline=None)
@given(LABELS)
def test_scores_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    phones, ours = map(np.array, zip(*pairs, strict=True))
    found = phone_scores(contingency_matrix(phones, ours))
    assert found.pnmi == pytest.approx(homogeneity_score(phones, ours), abs=1e-9)
    shared = mutual_info_score(phones, ours) / np.log(2)
    assert found.pnmi * found.phone_entropy == pytest.approx(shared, abs=1e-9)
    assert found.phone_entropy + found.unit_entropy >= shared - 1e-9
    best_phone = {u: max(np.mean((phones == p) & (ours == u)) for p in phones) for u in set(ours.tolist())}
    best_unit = {p: max(np.mean((phones == p) & (ours == u)) for u in ours) for p in set(phones.tolist())}
    assert found.phone_purity == pytest.approx(sum(best_phone.values()))
    assert found.cluster_purity == pytest.approx(sum(best_unit.values()))
    assert (found.n_frames, found.n_phones, found.n_units) == (len(pairs), len(best_unit), len(best_phone))


def test_scores_by_hand() -> None:
    """a a b b over units 0 0 0 1: unit 1 is always b, unit 0 mostly a."""
    found = phone_scores(np.array([[2, 0], [1, 1]]))
    assert found.phone_purity == pytest.approx(3 / 4)  # unit 0: 2 of 3 frames are a; unit 1: its one frame is b
    assert found.cluster_purity == pytest.approx(3 / 4)  # a: both in unit 0; b: 1 of 2
    left = 3 / 4 * entropy(np.array([2 / 3, 1 / 3]))  # H(phone | unit), with H(phone) = 1 bit
    assert found.pnmi == pytest.approx(1 - left)
    assert found.phone_entropy == 1 and found.unit_entropy == pytest.approx(entropy(np.array([3 / 4, 1 / 4])))


def test_perfect_and_empty_units() -> None:
    assert phone_scores(np.eye(3)).pnmi == pytest.approx(1)
    assert phone_scores(np.ones((3, 3))).pnmi == pytest.approx(0, abs=1e-12)
    with pytest.raises(Unavailable):
        phone_scores(np.zeros((2, 2)))


def test_many_random_units_score_well_so_the_control_does_too() -> None:
    """The trap the control is for: units without meaning, nearly one a frame."""
    generator = np.random.default_rng(0)
    labels = "".join("abcdefgh"[i] for i in generator.integers(0, 8, 2000))
    known = {"u": spoken(labels)}
    random = label_frames({"u": units(generator.integers(0, 1000, 2000), k=1000)}, known)
    own, control = score_phones(random)
    assert own.pnmi > 0.4 and control.pnmi == pytest.approx(own.pnmi, abs=0.03)
    good = label_frames({"u": units(["abcdefgh".index(letter) for letter in labels])}, known)
    own, control = score_phones(good)
    assert own.pnmi == pytest.approx(1) and control.pnmi < 0.02
    assert control.unit_entropy == pytest.approx(own.unit_entropy)  # the same units, in another order


def test_frames_get_the_phone_at_their_centre_and_others_are_left_out() -> None:
    phones = [Phone(0.0, 0.03, "a"), Phone(0.03, 0.05, "SIL"), Phone(0.06, 0.10, "b")]
    frames = label_frames({"u": units([1, 2, 3, 4, 5, 6])}, {"u": phones})  # centres .01 .03 .05 .07 .09 .11
    assert frames.phones.tolist() == [1, 0, 2, 2]  # SIL, a, b in order of label; .05 and .11 have none
    assert frames.units.tolist() == [0, 1, 2, 3]
    quiet = label_frames({"u": units([1, 2, 3, 4, 5, 6])}, {"u": phones}, silence=False)
    assert quiet.phones.tolist() == [0, 1, 1]


def test_rows_of_several_codebooks_are_one_unit() -> None:
    frames = label_frames({"u": units([[0, 1], [1, 0], [0, 1]])}, {"u": spoken("aba")})
    assert frames.units.tolist() == [0, 1, 0] and frames.n_units == 2


def test_measures_name_what_they_are() -> None:
    corpus = {f"u{n}": units([0, 0, 1, 1, 2, 2], f"u{n}") for n in range(4)} | {"empty": units([], "empty")}
    known = {f"u{n}": spoken("aabbc.") for n in range(3)} | {"empty": spoken("a")}
    found = phone_measures(corpus, known)
    measure, control = found["pnmi"]
    assert measure.value > control and measure.low <= measure.value <= measure.high and measure.n == 4
    assert measure.signature == (
        "pnmi|tokenizer:0123456789ab|K:10|codebooks:1|rate:50|label:frame-centre|phones:4|sil:phone|frames:18|"
        "control:shuffled-over-corpus,seed0|v:0.1"
    )
    with pytest.raises(Unavailable, match="alignment"):
        phone_measures(corpus, {})
    with pytest.raises(Unavailable, match="no frame has a phone"):
        phone_measures(corpus, {"u0": [Phone(5, 6, "a")]})


def test_intervals_are_reproducible_and_shrink() -> None:
    generator = np.random.default_rng(0)

    def width(n: int) -> float:
        corpus = {f"u{i}": units(generator.integers(0, 3, 30), f"u{i}") for i in range(n)}
        found = phone_measures(corpus, {id_: spoken("aaabbbcccd" * 3) for id_ in corpus})["phone_purity"][0]
        return found.high - found.low

    assert 0 < width(100) < width(10)


# ------------------------------------------------------------------------------------------------------------- use


def test_use_of_units_by_hand() -> None:
    use = unit_use(np.array([2, 1, 1, 0]))
    assert use.perplexity == pytest.approx(2**1.5)
    assert (use.active, use.used, use.dead, use.top_share, use.n_frames) == (3, 0.75, 0.25, 0.5, 4)
    assert not use.collapsed and unit_use(np.array([99, *[0] * 99])).collapsed
    assert unit_use(np.full(7, 5)).perplexity == pytest.approx(7)
    with pytest.raises(Unavailable):
        unit_use(np.zeros(3))


def test_use_is_of_the_corpus_and_of_each_codebook() -> None:
    corpus = [units([[0, 0], [1, 0]], "a", k=4), units([[2, 0], [3, 1]], "b", k=4)]
    first, second = corpus_use(corpus)
    assert first.perplexity == pytest.approx(4) and second.top_share == 0.75
    found = usage_measures({one.id: one for one in corpus})
    assert found["used"].value == pytest.approx((1 + 0.5) / 2)


# -------------------------------------------------------------------------------------------------- rows of scores


def material() -> tuple[dict[str, Units], dict[str, list[Phone]], list[Utterance]]:
    """Two speakers, three sentences; ann's units follow the phones, bob's in half of the frames."""
    sentences, generator = ["abcab", "cabba", "bcaac"], np.random.default_rng(0)
    corpus, known, utterances = {}, {}, []
    for number, sentence in enumerate(sentences):
        for who in ("ann", "bob"):
            id_ = f"{who}-{number}"
            ids = np.repeat(["abc".index(letter) for letter in sentence], 4)
            if who == "bob":
                ids = np.where(generator.random(len(ids)) < 0.5, ids, generator.integers(3, 10, len(ids)))
            corpus[id_] = units(ids, id_)
            known[id_] = spoken(sentence, seconds=0.08)
            utterances.append(Utterance(id_, f"{id_}.wav", duration=0.4, speaker=who, text=sentence))
    return corpus, known, utterances


def test_every_metric_gives_a_row_with_its_control() -> None:
    corpus, known, utterances = material()
    rows = score_units(corpus, known, manifest=utterances, system="tiny", split="dev")
    assert [row.metric for row in rows] == list(UNIT_METRICS)
    by = {row.metric: row for row in rows}
    assert all(row.value is not None and row.system == "tiny" and row.split == "dev" for row in rows)
    assert by["pnmi"].value > by["pnmi"].control
    assert by["abx_within"].value < 25 < by["abx_within"].control
    assert by["ued"].value < by["ued"].control
    assert by["bitrate"].value == pytest.approx(50 * np.log2(10))
    assert "tokenizer:0123456789ab|K:10" in by["abx_across"].signature
    assert table(rows).row_count == len(rows)
    assert score_units(corpus, known, manifest=utterances, system="tiny", split="dev") == rows  # seeded throughout


def test_what_cannot_be_scored_says_why() -> None:
    corpus, known, utterances = material()
    rows = {row.metric: row for row in score_units(corpus)}
    assert rows["perplexity"].value is not None
    for metric, why in (("pnmi", "alignments"), ("boundary_f1", "alignments"), ("abx_within", "item file"),
                        ("ued", "manifest")):  # fmt: skip
        assert rows[metric].value is None and why in (rows[metric].note or "")
    (row,) = score_units(corpus, known, metrics="abx_across")
    assert row.value is None and "speakers" in (row.note or "")
    (row,) = score_units(corpus, known, manifest=utterances[:1], metrics=["ued"])
    assert row.value is None and "two speakers" in (row.note or "")
    with pytest.raises(ScoreError, match="no units"):
        score_units(corpus, manifest=[Utterance("x", "x.wav")])
    with pytest.raises(ScoreError, match="unknown metric wer; known: all, pnmi"):
        check_metrics("pnmi,wer")


def test_unit_files_and_tables_are_read(tmp_path: Path) -> None:
    corpus, known, _ = material()
    path, table_path = tmp_path / "units.jsonl", tmp_path / "phones.tsv"
    write_units(path, UnitsHeader("0123456789ab", 50.0, 10), corpus.values())
    rows = "".join(f"{id_}\t{p.start}\t{p.end}\t{p.label}\n" for id_, phones in known.items() for p in phones)
    table_path.write_text("id\tstart\tend\tphone\n" + rows)
    metrics = ["pnmi", "boundary_r"]
    assert score_units(path, table_path, metrics=metrics) == score_units(corpus, known, metrics=metrics)


def test_features_are_scored_by_abx() -> None:
    _, known, utterances = material()
    items = list(alignment_items(known, {one.id: one.speaker for one in utterances}))
    clean = {id_: np.eye(3, dtype=np.float32)[["abc".index(p.label) for p in rows for _ in range(4)]]
             for id_, rows in known.items()}  # fmt: skip
    within, across = score_features(clean, items, rate_hz=50, system="phones", task=AbxTask(kind="phoneme"))
    assert (within.metric, within.value, across.metric, across.value) == ("abx_within", 0, "abx_across", 0)
    alone = [item for item in items if item.speaker == "ann"]
    assert score_features(clean, alone, rate_hz=50)[1].value is None
