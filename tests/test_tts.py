"""Text to units in one pass: a made-up language is learned with its alignment, voices and languages are heard."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from toy_language import LETTERS, N_UNITS, Sample, samples, say

from unitkit.frontends import FrontEnd
from unitkit.models.aligner import monotonic_durations
from unitkit.models.ctc import pad_targets
from unitkit.models.layers import FftBlock
from unitkit.models.tts import PAPER, Lines, TextToUnits, TtsConfig, TtsError
from unitkit.models.vocoder import n_parameters

torch.set_num_threads(1)
VOICES = np.eye(4, dtype=np.float32)[:2]
FRONT = FrontEnd("characters", LETTERS)
SMALL = TtsConfig(
    tokenizer="0123456789ab",
    n_units=N_UNITS,
    codebooks=2,
    symbols=LETTERS,
    longest=12,
    langs=("en", "es"),
    speakers={"ann": ["en"], "bob": ["es", "en"]},
    speaker_vector_dim=4,
    speaker_encoder="cafecafecafe",
    dim=48,
    encoder_layers=1,
    decoder_layers=3,
    kernel=3,
    dropout=0.0,
    lang_dim=8,
    aligner_dim=32,
    duration_dim=32,
)


def batch(some: list[Sample], *, texts: list[Sample] | None = None) -> Lines:
    """A batch; with `texts` each says what another one's text is."""
    tokens = pad_targets([FRONT.encode(one.word) for one in texts or some])
    units = nn.utils.rnn.pad_sequence([torch.from_numpy(one.units) for one in some], batch_first=True)
    lengths = torch.tensor([len(one.units) for one in some])
    langs = torch.tensor([one.lang for one in some])
    return Lines(*tokens, units, lengths, langs, torch.from_numpy(np.stack([VOICES[one.voice] for one in some])))


@pytest.fixture(scope="module")
def model() -> TextToUnits:
    """Trained for a few seconds."""
    torch.manual_seed(0)
    net, train = TextToUnits(SMALL), samples(160, 1)
    adam = torch.optim.AdamW(net.parameters(), 4e-3, betas=(0.9, 0.98))
    draw = np.random.default_rng(2)
    for step in range(150):
        losses = net(batch([train[i] for i in draw.permutation(160)[:16]]))
        total = losses["units"] + losses["align"] + losses["durations"] + (losses["bind"] if step > 40 else 0.0)
        adam.zero_grad()
        total.backward()
        adam.step()
    return net.eval()


def test_it_learns_what_is_said_and_when(model: TextToUnits) -> None:
    held = samples(40, 7)
    given = batch(held)
    with torch.no_grad():
        losses = model(given)
        text, _, condition = model.encode(given.tokens, given.token_lengths, given.lang, given.vector)
        scores = model.align(text, given.token_lengths, condition, given)
        control = model(batch(held, texts=held[1:] + held[:1]))
    found = monotonic_durations(scores, given.token_lengths, given.lengths)
    apart = [np.abs(row[: len(s.durations)].numpy() - s.durations).sum() for row, s in zip(found, held, strict=True)]
    assert sum(apart) / 2 < 0.1 * sum(len(one.units) for one in held)  # frames given to another token
    assert float(losses["accuracy"]) > 0.9
    assert float(control["units"]) > 2 * float(losses["units"]) + 1


def test_what_it_says(model: TextToUnits) -> None:
    """New words in the voice and language that are asked for, durations included."""
    right = frames = 0
    for one in samples(20, 9):
        ((units, durations),) = model.generate(
            [FRONT.encode(one.word)], langs=[SMALL.langs[one.lang]], vectors=VOICES[[one.voice]]
        )
        assert units.shape == (durations.sum(), 2) and len(durations) == len(one.durations)
        n = min(len(units), len(one.units))
        right += int((units[:n] == one.units[:n]).sum()) if len(units) == len(one.units) else 0
        frames += 2 * len(one.units)
    assert right / frames > 0.8


def test_voice_and_language_change_their_own_only(model: TextToUnits) -> None:
    tokens = [FRONT.encode("hagfb")]
    ann, bob = (model.generate(tokens, langs=["en"], vectors=VOICES[[i]])[0] for i in (0, 1))
    assert np.array_equal(ann[1], bob[1]) and (ann[0][:, 0] == bob[0][:, 0]).mean() > 0.8
    assert (ann[0][2:-2, 1] + 10 == bob[0][2:-2, 1]).mean() > 0.8
    (spanish,) = model.generate(tokens, langs=["es"], vectors=VOICES[[0]])
    assert 22 in spanish[0][:, 0] and 22 not in ann[0][:, 0]


def test_a_batch_gives_what_each_gives_alone(model: TextToUnits) -> None:
    words = ["ab", "jihgfedc", "cad"]
    given = [FRONT.encode(word) for word in words]
    vectors, langs = VOICES[[0, 1, 1]], ["en", "es", "en"]
    together = model.generate(given, langs=langs, vectors=vectors)
    assert len({len(units) for units, _ in together}) == 3
    for i, (units, durations) in enumerate(together):
        ((alone, own),) = model.generate(given[i : i + 1], langs=langs[i : i + 1], vectors=vectors[i : i + 1])
        assert np.array_equal(units, alone) and np.array_equal(durations, own)
    assert model.generate([]) == []


@pytest.mark.parametrize("blocks", ["conv", "fft"])
def test_padding_has_no_loss(blocks: str) -> None:
    torch.manual_seed(0)
    net = TextToUnits(replace(SMALL, blocks=blocks, attention_heads=2, hidden=64)).eval()
    short, long = say("cab", 0, 1), say("jihgfedc", 1, 0)
    alone, together = net(batch([short])), net(batch([short, long]))
    other = net(batch([long]))
    frames, tokens = (len(short.units), len(long.units)), (len(short.word) + 2, len(long.word) + 2)
    for name, weights in {
        "units": frames,
        "accuracy": frames,
        "bind": frames,
        "durations": tokens,
        "align": (1, 1),
    }.items():
        mean = np.average([float(alone[name].detach()), float(other[name].detach())], weights=weights)
        assert float(together[name].detach()) == pytest.approx(mean, rel=1e-4, abs=1e-6), name


def test_speed_divides_durations(model: TextToUnits) -> None:
    tokens, vectors = [FRONT.encode("jihgfedc")], VOICES[:1]
    lengths = [
        len(model.generate(tokens, langs=["en"], vectors=vectors, speed=speed)[0][0]) for speed in (0.5, 1.0, 1.5, 100)
    ]
    assert all(a > b for a, b in pairwise(lengths))
    assert lengths[0] == pytest.approx(2 * lengths[1], rel=0.15) and lengths[3] == len(tokens[0])


def test_the_papers_size_takes_a_step() -> None:
    torch.manual_seed(0)
    langs = ("de", "en", "fr", "it", "pt", "sv")
    config = replace(PAPER, symbols=LETTERS, langs=langs, speaker_vector_dim=192)
    net = TextToUnits(config)
    assert len(net.encoder.blocks) == 4 and len(net.decoder.blocks) == 6
    assert all(isinstance(block, FftBlock) for block in (*net.encoder.blocks, *net.decoder.blocks))
    assert net.units.out_features == 640 and config.condition_dim == 256
    assert n_parameters(net.decoder) == pytest.approx(6 * (4 * 256**2 + 10 * 256 * 1024), rel=0.01)
    one = say("cab", 0, 0)
    given = replace(batch([one]), vector=torch.randn(1, 192))
    adam = torch.optim.Adam(net.parameters(), 1e-4)
    first = net(given)
    assert float(first["units"].detach()) == pytest.approx(2 * math.log(320), rel=0.15)
    sum(value for name, value in first.items() if name != "accuracy").backward()
    assert all(p.grad is not None for name, p in net.named_parameters())
    adam.step()
    with torch.no_grad():
        second = net.eval()(given)
    assert float(second["units"]) < float(first["units"].detach())


def test_what_is_saved_says_the_same(model: TextToUnits, tmp_path) -> None:
    model.save(tmp_path / "m", card="a card")
    loaded = TextToUnits.load(tmp_path / "m")
    assert loaded.config == SMALL and (tmp_path / "m" / "card.md").read_text() == "a card"
    tokens = [FRONT.encode("bad")]
    for one, other in zip(
        model.generate(tokens, langs=["es"], vectors=VOICES[:1]),
        loaded.generate(tokens, langs=["es"], vectors=VOICES[:1]),
        strict=True,
    ):
        assert np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])


def test_one_voice_one_language_one_book() -> None:
    torch.manual_seed(0)
    net = TextToUnits(TtsConfig(n_units=9, front="bytes", dim=16, encoder_layers=1, decoder_layers=1)).eval()
    assert net.config.condition_dim == 0 and net.colour is None
    tokens = FrontEnd("bytes").encode("ñ")
    ((units, durations),) = net.generate([tokens])
    assert units.shape == (durations.sum(),) and len(durations) == 4
    given = Lines(
        torch.from_numpy(tokens)[None],
        torch.tensor([4]),
        torch.arange(6)[None],
        torch.tensor([6]),
        torch.zeros(1).long(),
    )
    assert all(math.isfinite(float(value.detach())) for value in net(given).values())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"blocks": "lstm"}, "known are conv, fft"),
        ({"blocks": "fft", "dim": 49}, "attention_heads"),
        ({"kernel": 4}, "not an odd"),
        ({"front": "runes"}, "known are characters, bytes, phonemes"),
        ({"symbols": ""}, "come from the training data"),
        ({"n_units": 0}, "come from the training data"),
    ],
)
def test_refused(change: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        TextToUnits(replace(SMALL, **change))


def test_a_voice_and_a_known_language_are_needed(model: TextToUnits) -> None:
    with pytest.raises(TtsError, match="give speaker vectors"):
        model.generate([FRONT.encode("ab")], langs=["en"])
    with pytest.raises(TtsError, match="'fr': this model knows en, es"):
        model.generate([FRONT.encode("ab")], langs=["fr"], vectors=VOICES[:1])
