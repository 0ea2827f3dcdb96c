import itertools

import numpy as np
import pytest
import soundfile
import torch

from unitkit import data
from unitkit.manifest import Utterance, write_manifest
from unitkit.units import FingerprintError, Units, UnitsHeader, write_units

HOP = 320
HEADER = UnitsHeader("abcabcabcabc", 50.0, 100)


def take(sampler: data.Sampler, start: int, count: int) -> list[list[tuple[int, int]]]:
    return list(itertools.islice(sampler.keys(start), count))


@pytest.mark.parametrize("lengths", [None, [7, 3, 9, 1, 4, 4, 2, 8, 6, 5, 3]])
def test_an_epoch_holds_every_item_once_and_starting_anywhere_gives_the_same(lengths):
    sampler = data.Sampler(11, 3, seed=5, lengths=lengths)
    steps = take(sampler, 0, 9)
    assert sampler.steps_per_epoch == 3
    for epoch in range(3):
        items = [item for batch in steps[3 * epoch : 3 * epoch + 3] for _, item in batch]
        assert len(set(items)) == 9
        assert {e for batch in steps[3 * epoch : 3 * epoch + 3] for e, _ in batch} == {epoch}
    for start in range(9):
        assert take(sampler, start, 9 - start) == steps[start:]
    assert steps[:3] != steps[3:6]
    assert take(data.Sampler(11, 3, seed=6, lengths=lengths), 0, 9) != steps


def test_ranks_share_each_batch_without_overlap():
    whole = take(data.Sampler(20, 6), 0, 7)
    shares = [take(data.Sampler(20, 2, rank=rank, world=3), 0, 7) for rank in range(3)]
    for step, batch in enumerate(whole):
        assert sorted(key for share in shares for key in share[step]) == sorted(batch)


def test_more_batch_than_items_repeats_items():
    assert sorted(item for _, item in take(data.Sampler(2, 5), 0, 1)[0]) in ([0, 0, 0, 1, 1], [0, 0, 1, 1, 1])
    with pytest.raises(data.DataError, match="from 0 examples"):
        data.Sampler(0, 5)


def test_batches_by_length_hold_neighbours():
    lengths = np.random.default_rng(0).integers(1, 1000, 400)
    spread = [np.ptp([lengths[i] for _, i in b]) for b in take(data.Sampler(400, 8, lengths=lengths), 0, 50)]
    assert np.mean(spread) < 50
    plain = [np.ptp([lengths[i] for _, i in b]) for b in take(data.Sampler(400, 8), 0, 50)]
    assert np.mean(plain) > 500


@pytest.fixture
def corpus_files(tmp_path):
    """Audio whose samples say which frame they lie in, and units that say the same."""
    frames = {"a": 40, "b": 7, "long": 90, "cut": 20}
    rows, units = [], []
    for number, (name, n) in enumerate(frames.items()):
        extra = 30 if name == "cut" else 0
        wav = np.repeat(np.arange(n + extra) / 128, HOP)[: -100 if name == "a" else None]
        soundfile.write(tmp_path / f"{name}.wav", wav, 16000, subtype="PCM_16")
        start = extra * HOP / 16000 if extra else None
        speaker = "odd" if number % 2 else "even"
        rows.append(
            Utterance(name, str(tmp_path / f"{name}.wav"), duration=n / 50, start=start, speaker=speaker, lang="en")
        )
        units.append(Units(np.arange(n) + extra, 50.0, 100, HEADER.tokenizer, name))
    rows.append(Utterance("unencoded", str(tmp_path / "x.wav")))
    write_manifest(tmp_path / "m.jsonl", rows)
    write_units(tmp_path / "u.jsonl", HEADER, units)
    return tmp_path / "m.jsonl", tmp_path / "u.jsonl"


def test_corpus_joins_by_id_and_names_what_is_missing(corpus_files):
    corpus = data.read_corpus(*corpus_files)
    assert [r.utterance.id for r in corpus.rows] == ["a", "b", "long", "cut"]
    assert corpus.missing == ["unencoded"] and corpus.header == HEADER
    assert corpus.speakers == ("even", "odd") and corpus.langs == ("en",)
    with pytest.raises(FingerprintError, match="other"):
        data.read_corpus(*corpus_files, tokenizer="other")


def test_corpus_without_a_common_id_is_an_error(corpus_files, tmp_path):
    write_units(tmp_path / "v.jsonl", HEADER, [Units(np.arange(3), 50.0, 100, HEADER.tokenizer, "else")])
    with pytest.raises(data.DataError, match="missing: a, b, long"):
        data.read_corpus(corpus_files[0], tmp_path / "v.jsonl")


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_segments_are_aligned_and_the_same_for_the_same_key(corpus_files, limit):
    corpus = data.read_corpus(*corpus_files)
    cache = data.AudioCache(16000, limit_bytes=limit)
    segments = data.Segments(corpus, cache, segment_frames=10, speakers=corpus.speakers, langs=("en",))
    assert len(segments) == 4 + 1 + 9 + 2  # an utterance counts once per segment length, a short one once
    starts = set()
    for epoch, item in itertools.product(range(3), range(len(segments))):
        example = segments[epoch, item]
        n = len(example.units)
        assert n == (7 if example.id == "b" else 10) and example.wav.shape == (n * HOP,)
        heard = np.round(example.wav.reshape(n, HOP)[:, 0] * 128).astype(int)
        np.testing.assert_array_equal(heard, example.units)
        first = 30 if example.id == "cut" else 0
        total = {"a": 40, "b": 7, "long": 90, "cut": 20}[example.id]
        assert example.cut == (example.units[0] > first, example.units[-1] + 1 < first + total)
        assert example.speaker == (0 if example.id in ("a", "long") else 1)
        starts.add((epoch, int(example.units[0])))
        again = segments[epoch, item]
        np.testing.assert_array_equal(again.wav, example.wav)
    assert len(starts) > 20


def test_collate_pads_and_masks(corpus_files):
    corpus = data.read_corpus(*corpus_files)
    segments = data.Segments(corpus, data.AudioCache(16000), segment_frames=0)
    batch = data.collate([segments[0, i] for i in range(len(segments))])
    assert batch.ids == ["a", "b", "long", "cut"] and batch.mask.sum(1).tolist() == [40, 7, 90, 20]
    assert batch.wav.shape == (4, 90 * HOP) and batch.units.shape == (4, 90) and batch.units.dtype == torch.int64
    assert not batch.wav[1, 7 * HOP :].any() and not batch.units[1, 7:].any() and batch.wav[1, : 7 * HOP].any()
    assert not batch.cut.any() and batch.f0 is None
    assert batch.to("cpu").mask.equal(batch.mask)


def test_audio_much_shorter_than_its_units_is_an_error_by_name(corpus_files, tmp_path):
    corpus = data.read_corpus(*corpus_files)
    soundfile.write(tmp_path / "a.wav", np.zeros(20 * HOP), 16000)
    segments = data.Segments(corpus, data.AudioCache(16000), segment_frames=0)
    with pytest.raises(data.DataError, match=r"a: its units last 0\.80 s, its audio 0\.40 s"):
        segments[0, 0]


def test_unknown_speaker_is_an_error_by_name(corpus_files):
    segments = data.Segments(
        data.read_corpus(*corpus_files), data.AudioCache(16000), segment_frames=5, speakers=("even",)
    )
    with pytest.raises(data.DataError, match=r"b: speaker 'odd' is unknown; known: even"):
        [segments[0, i] for i in range(len(segments))]


def test_loader_starts_where_it_is_told_with_and_without_workers(corpus_files):
    segments = data.Segments(data.read_corpus(*corpus_files), data.AudioCache(16000), segment_frames=10)
    sampler = data.Sampler(len(segments), 4, seed=1)
    batches = list(itertools.islice(data.loader(segments, sampler, collate=data.collate)(0), 6))
    later = list(itertools.islice(data.loader(segments, sampler, collate=data.collate, workers=2)(4), 2))
    for a, b in zip(batches[4:], later, strict=True):
        assert a.ids == b.ids and a.wav.equal(b.wav) and a.units.equal(b.units)


def test_prosody_is_normalised_by_the_speaker(corpus_files, monkeypatch):
    corpus = data.read_corpus(*corpus_files)
    base = {"a": 100.0, "long": 200.0, "b": 300.0, "cut": 310.0}
    names = iter(base)
    by_row = {row.utterance.id: base[row.utterance.id] for row in corpus.rows}
    order = iter([row.utterance.id for row in corpus.rows])

    def pitch(wav, rate, *, hop_samples):
        n = len(wav) // hop_samples - 1  # one frame short: padded with its last value
        return np.where(np.arange(n) % 4 == 3, 0.0, by_row[next(order)]).astype(np.float32)

    del names
    monkeypatch.setattr(data.audio, "f0", pitch)
    prosody = data.measure_prosody(corpus, data.AudioCache(16000), hop_samples=HOP, f0=True, energy=True)
    assert set(prosody.stats) == {"even", "odd"}
    voiced = np.concatenate([prosody.f0["a"], prosody.f0["long"]])
    logs = np.log(voiced[voiced > 0])
    assert prosody.stats["even"] == pytest.approx([logs.mean(), logs.std()], rel=1e-5)
    segments = data.Segments(
        corpus, data.AudioCache(16000), segment_frames=0, prosody=prosody, use_f0=True, use_energy=True
    )
    batch = data.collate([segments[0, i] for i in range(4)])
    assert batch.f0.shape == (4, 90, 2) and batch.energy.shape == (4, 90, 1)
    both = torch.cat([batch.f0[0, :40], batch.f0[2, :90]])
    assert both[both[:, 1] > 0, 0].mean() == pytest.approx(0, abs=1e-4)
    assert both[both[:, 1] > 0, 0].std() == pytest.approx(1, abs=0.02)
    assert not batch.f0[0, 3].any() and batch.f0[0, 39, 1] == batch.f0[0, 38, 1]


def test_soft_units_come_from_files(corpus_files, tmp_path):
    corpus = data.read_corpus(*corpus_files)
    for row in corpus.rows:
        np.save(tmp_path / f"{row.utterance.id}.npy", np.repeat(row.units[:, None], 3, axis=1).astype(np.float32))
    segments = data.Segments(corpus, data.AudioCache(16000), segment_frames=10, features_dir=tmp_path)
    example = segments[0, 3]
    np.testing.assert_array_equal(example.features[:, 2], example.units)
    assert data.collate([example, segments[0, 4]]).features.shape[2] == 3
    (tmp_path / "b.npy").unlink()
    with pytest.raises(data.DataError, match="b: no soft units"):
        [segments[0, i] for i in range(len(segments))]


def test_shuffled_control_keeps_the_units_but_not_their_order(corpus_files):
    corpus = data.read_corpus(*corpus_files)
    for row, control in zip(corpus.rows, data.shuffled_rows(corpus, seed=1), strict=True):
        assert sorted(row.units) == sorted(control.units) and row.utterance == control.utterance
        assert not np.array_equal(row.units, control.units)


def test_utterances_of_a_speaker_find_each_other():
    rows = [Utterance("a1", "x", speaker="ann"), Utterance("b1", "x", speaker="bob"), Utterance("n", "x")]
    found = data.same_speaker([*rows, Utterance("a2", "x", speaker="ann"), Utterance("m", "x")])
    assert found == {"a1": ["a1", "a2"], "a2": ["a1", "a2"], "b1": ["b1"], "n": ["n"], "m": ["m"]}


def test_vectors_stand_side_by_side_where_all_have_one():
    both = data.stacked([np.ones(3, np.float32), np.zeros(3, np.float32)])
    assert both.shape == (2, 3) and both[0].sum() == 3
    assert data.stacked([np.ones(3), None]) is None and data.stacked([]) is None
