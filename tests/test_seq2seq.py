"""Seq2Seq: the papers' sizes, padding that changes nothing, heads, stacked units, learning, what is kept on disk."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unitkit.models.front import inside, sinusoids
from unitkit.models.heads import HeadConfig, SideHead, ctc_loss, diagonal_loss, smoothed
from unitkit.models.seq2seq import (
    PAPER,
    PAPER_BART,
    PAPER_ENHANCED,
    Pairs,
    Seq2Seq,
    Seq2SeqConfig,
    Seq2SeqError,
    stacked,
    with_eos,
)
from unitkit.models.vocoder import n_parameters
from unitkit.text import Letters
from unitkit.units import Vocab

TINY = Seq2SeqConfig(
    tokenizer="0123456789ab",
    n_units=12,
    features_dim=8,
    dim=32,
    encoder_layers=2,
    decoder_layers=2,
    attention_heads=2,
    hidden=64,
    conv_channels=32,
    dropout=0.0,
    max_positions=256,
    label_smoothing=0.0,
)
TEXTS = {"source_letters": " ab", "target_letters": " cd"}


def tiny(**changes: object) -> Seq2Seq:
    torch.manual_seed(0)
    return Seq2Seq(replace(TINY, **changes)).eval()


def batch_of(sources: list[Tensor], targets: list[list[int]], texts: dict[str, list[list[int]]] | None = None) -> Pairs:
    def pad(rows: list[Tensor]) -> Tensor:
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    lengths = torch.tensor([len(s) for s in sources])
    named = {name: pad([torch.tensor(r) for r in rows]) for name, rows in (texts or {}).items()}
    return Pairs(pad(sources), lengths, pad([torch.tensor(t) for t in targets]), named)


# ---------------------------------------------------------------- the papers' sizes


def test_fisher_size_is_that_of_speech2text_and_takes_a_step() -> None:
    import transformers

    filled = replace(PAPER, n_units=100, features_dim=80, max_positions=1024, **TEXTS)
    model = Seq2Seq(filled)
    theirs = transformers.Speech2TextForConditionalGeneration(
        transformers.Speech2TextConfig(
            vocab_size=103,
            d_model=256,
            encoder_layers=12,
            decoder_layers=6,
            encoder_ffn_dim=2048,
            decoder_ffn_dim=2048,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            conv_channels=1024,
            num_conv_layers=2,
            conv_kernel_sizes=(5, 5),
        )
    )
    own = sum(p.numel() for p in (*model.front.parameters(), *model.inner.parameters()) if p.requires_grad)
    other = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert own == pytest.approx(other, rel=0.001)  # MBart has two layer norms more
    assert own == pytest.approx(27.0e6, rel=0.01)  # the size in the paper's code
    texts = {"source_text": [[3, 4, 5]], "target_text": [[4, 5, 4]]}
    losses = model(batch_of([torch.randn(100, 80)], [[3, 9, 4, 7, 5, 8, 6]], texts))
    assert set(losses) == {"units", "accuracy", "source", "target", "text", "loss"}
    total = losses["units"] + 8 * losses["source"] + 8 * losses["target"] + 1.6 * losses["text"]
    assert torch.isclose(losses["loss"], total)
    losses["loss"].backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if p.requires_grad and "shared" not in n)


@pytest.mark.parametrize("config", [PAPER_ENHANCED, PAPER_BART], ids=["enhanced", "unit mBART"])
def test_enhanced_sizes_take_a_step(config: Seq2SeqConfig) -> None:
    model = Seq2Seq(replace(config, n_units=1000, features_dim=1024, source_units=1000))
    source = torch.randn(20, 1024) if config.source == "features" else torch.tensor([3, 4, 5, 6])
    model(batch_of([source], [[3, 4, 5]]))["loss"].backward()
    assert n_parameters(model) > 200e6
    assert model.inner.lm_head.weight.grad is not None


# ---------------------------------------------------------------- parts


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=4))
def test_a_padded_batch_encodes_as_each_alone(lengths: list[int]) -> None:
    model = tiny()
    sources = [torch.randn(n, 8) for n in lengths]
    batch = batch_of(sources, [[3]] * len(sources))
    memory, mask = model.encode(batch.source, batch.lengths)
    for row, keep, source in zip(memory, mask, sources, strict=True):
        (alone,), _ = model.encode(source[None], torch.tensor([len(source)]))
        assert torch.allclose(row[keep], alone, atol=1e-5)
        assert len(alone) == ((len(source) - 1) // 2 + 1 - 1) // 2 + 1


@given(st.lists(st.lists(st.integers(3, 9), max_size=6), min_size=1, max_size=4))
def test_labels_end_with_one_eos(rows: list[list[int]]) -> None:
    longest = max(map(len, rows))
    target = torch.tensor([row + [0] * (longest - len(row)) for row in rows]).reshape(len(rows), longest)
    for label, row in zip(with_eos(target).tolist(), rows, strict=True):
        assert label == row + [Vocab.eos] + [0] * (longest - len(row))


def test_stacking_loses_no_tail() -> None:
    labels = torch.arange(3, 10)[None]
    assert stacked(labels, 3).tolist() == [[[3, 4, 5], [6, 7, 8], [9, 0, 0]]]
    assert stacked(labels[:, :6], 3).tolist() == [[[3, 4, 5], [6, 7, 8]]]


def test_sinusoids_are_those_of_the_first_transformer() -> None:
    table = sinusoids(50, 8)
    assert torch.allclose(table[7, :4], torch.sin(7 / 10000 ** (torch.arange(4) / 3)), atol=1e-6)
    assert torch.allclose(table[7, 4:], torch.cos(7 / 10000 ** (torch.arange(4) / 3)), atol=1e-6)
    model = tiny()
    assert not model.inner.model.encoder.embed_positions.weight.requires_grad
    assert tiny(positions="learned").inner.model.encoder.embed_positions.weight.requires_grad


def test_label_smoothing_against_its_definition() -> None:
    logits, labels = torch.randn(2, 3, 5), torch.tensor([[1, 4, 0], [2, 0, 0]])
    logs, total, n = logits.log_softmax(-1), 0.0, 0
    for b in range(2):
        for i in range(3):
            if labels[b, i]:
                total += -(0.8 * float(logs[b, i, labels[b, i]]) + 0.2 / 5 * float(logs[b, i].sum()))
                n += 1
    assert float(smoothed(logits, labels, smoothing=0.2)) == pytest.approx(total / n, rel=1e-5)


def test_labels_are_smoothed_in_training_only() -> None:
    model = tiny(label_smoothing=0.3, heads={"h": HeadConfig(layer=1, label_smoothing=0.3, dropout=0.0)}, **TEXTS)
    batch = batch_of([torch.randn(40, 8)], [[3, 4, 5]], {"target_text": [[3, 4]]})
    judged, learnt = model.eval()(batch), model.train()(batch)
    labels = with_eos(batch.target)
    logits, _, _ = model.eval()._decoded(*model.encode(batch.source, batch.lengths), labels)
    for smoothing, found in ((0.0, judged), (0.3, learnt)):
        assert torch.isclose(found["units"], smoothed(logits, labels, smoothing=smoothing), rtol=1e-4)
    assert not torch.isclose(judged["h"], learnt["h"], rtol=1e-3)


def test_ctc_by_adding_up_all_paths() -> None:
    from itertools import product

    logits, target = torch.randn(1, 4, 3), [1, 1]
    probs, total = logits[0].softmax(-1), 0.0
    for path in product(range(3), repeat=4):
        collapsed = [t for i, t in enumerate(path) if t and (i == 0 or t != path[i - 1])]
        if collapsed == target:
            total += float(torch.stack([probs[i, t] for i, t in enumerate(path)]).prod())
    loss = ctc_loss(logits, torch.tensor([4]), torch.tensor([target]))
    assert float(loss) == pytest.approx(-np.log(total) / 2, rel=1e-4)
    assert float(ctc_loss(logits[:, :2], torch.tensor([2]), torch.tensor([[1, 1]]))) == 0  # cannot fit


def test_off_the_diagonal_by_its_definition() -> None:
    attentions = torch.softmax(torch.randn(2, 3, 4, 5), dim=-1)
    steps, positions, total = [4, 2], [5, 3], 0.0
    for b in range(2):
        for i in range(steps[b]):
            for j in range(5):
                far = 1 - np.exp(-((i / steps[b] - j / positions[b]) ** 2) / (2 * 0.2**2))
                total += far * float(attentions[b, :, i, j].mean())
    found = diagonal_loss(attentions, torch.tensor(steps), torch.tensor(positions))
    assert float(found) == pytest.approx(total / sum(steps), rel=1e-4)
    straight = torch.eye(6)[None, None]
    assert float(diagonal_loss(straight, torch.tensor([6]), torch.tensor([6]))) < 1e-6


def test_the_guide_is_there_while_it_trains_and_then_gone() -> None:
    model = tiny(guide=2.0, guide_until=0.5).train()
    batch = batch_of([torch.randn(40, 8)], [[3, 4, 5]])
    early, late = model(batch, 0.25), model(batch, 0.6)
    assert torch.isclose(early["loss"], early["units"] + 1.0 * early["guide"])  # half of its way down from 2
    assert "guide" not in late and torch.isclose(late["loss"], late["units"])
    assert "guide" not in model.eval()(batch, 0.0)
    assert "guide" in tiny(guide=1.0, stack=2).train()(batch, 0.0)


def test_a_heads_weight_goes_down_a_line() -> None:
    head = HeadConfig(weight=8.0, final_weight=2.0)
    assert [head.weight_at(p) for p in (0.0, 0.5, 1.0)] == [8.0, 5.0, 2.0]
    assert HeadConfig(weight=8.0).weight_at(0.7) == 8.0


def test_ctc_greedy_collapses_before_it_drops_blanks() -> None:
    head = SideHead(HeadConfig(kind="ctc"), 4, 4)
    head.norm = nn.Identity()  # type: ignore[assignment]
    head.output.weight.data, head.output.bias.data = torch.eye(4), torch.zeros(4)
    assert head.greedy(torch.eye(4)[[0, 3, 3, 0, 3, 2]]) == [3, 3, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "video"}, "known are features"),
        ({"positions": "none"}, "known are sinusoidal"),
        ({"dim": 33}, "multiple"),
        ({"conv_kernels": (4,)}, "odd"),
        ({"n_units": 0}, "at least 2 units"),
        ({"features_dim": 0}, "listener"),
        ({"heads": {"x": HeadConfig(layer=3)}, **TEXTS}, "layers 1 to 2"),
        ({"heads": {"x": HeadConfig(layer=1)}}, "needs texts"),
        ({"heads": {"x": HeadConfig(at="decoder")}, "stack": 2, **TEXTS}, "stack 1"),
    ],
)
def test_what_cannot_be_built(changes: dict[str, object], message: str) -> None:
    with pytest.raises(Seq2SeqError, match=message):
        tiny(**changes)


@pytest.mark.parametrize("name", ["kind", "at", "target"])
def test_unknown_heads(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} 'other': known are"):
        HeadConfig(**{name: "other"})


def test_a_source_longer_than_the_positions_is_an_error() -> None:
    model = tiny(max_positions=10)
    with pytest.raises(Seq2SeqError, match="this model has 10"):
        model.encode(torch.zeros(1, 80, 8), torch.tensor([80]))


# ---------------------------------------------------------------- a language that can be learnt


def words(n: int, seed: int, *, width: int = 8) -> list[tuple[Tensor, list[int], list[int]]]:
    """Sentences of 4 words: features of ten frames a word; units that say the words backwards; letters likewise."""
    draw = np.random.default_rng(seed)
    shapes = torch.from_numpy(np.random.default_rng(99).normal(size=(4, 10, width)).astype(np.float32))
    spoken = {0: [3, 4, 5], 1: [6, 7], 2: [8, 9, 10], 3: [11, 12, 13, 14]}
    out = []
    for _ in range(n):
        said = draw.integers(4, size=int(draw.integers(2, 5))).tolist()
        features = torch.cat([shapes[word] for word in said])
        features = features + 0.1 * torch.from_numpy(draw.normal(size=features.shape).astype(np.float32))
        target = [unit for word in reversed(said) for unit in spoken[word]]
        out.append((features, target, [4 + word % 2 for word in reversed(said)]))
    return out


def taught(config: Seq2SeqConfig, steps: int) -> Seq2Seq:
    torch.manual_seed(0)
    model = Seq2Seq(config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for step in range(steps):
        some = words(24, step)
        texts = {"target_text": [t for _, _, t in some]}
        loss = model(batch_of([f for f, _, _ in some], [t for _, t, _ in some], texts))["loss"]
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 20) * min(1.0, 2 * (1 - step / steps))
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def learnt() -> Seq2Seq:
    head = HeadConfig(kind="ctc", at="decoder", layer=2, target="target_text", weight=0.3)
    return taught(replace(TINY, heads={"text": head}, **TEXTS), 200)


def test_it_learns_to_translate_and_to_write_in_one_pass(learnt: Seq2Seq) -> None:
    heard = words(40, 10_001)
    found = learnt.generate([f for f, _, _ in heard], beam=3)
    right = [h.units.tolist() == [t - 3 for t in target] for h, (_, target, _) in zip(found, heard, strict=True)]
    letters = Letters(TEXTS["target_letters"])
    read = [h.texts["target_text"] == letters.decode(text) for h, (_, _, text) in zip(found, heard, strict=True)]
    assert np.mean(right) > 0.9
    assert np.mean(read) > 0.8


def test_our_search_gives_what_transformers_gives(learnt: Seq2Seq) -> None:
    heard = [f for f, _, _ in words(12, 10_002)]
    for beam in (1, 4):
        ours, theirs = (learnt.generate(heard, beam=beam, method=m) for m in ("fast", "transformers"))
        assert [h.units.tolist() for h in ours] == [h.units.tolist() for h in theirs]
    assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], rel=1e-4)
    assert len({unit for h in ours for unit in h.units}) > 8


def test_a_hypothesis_is_the_same_alone_and_in_a_batch(learnt: Seq2Seq) -> None:
    heard = [f for f, _, _ in words(8, 10_003)]
    together = learnt.generate(heard, beam=5)
    alone = [learnt.generate([f], beam=5)[0] for f in heard]
    assert [h.units.tolist() for h in together] == [h.units.tolist() for h in alone]


def test_stacked_units_learn_and_keep_their_tail() -> None:
    model = taught(replace(TINY, stack=3), 200)
    heard = words(40, 10_004)
    found = model.generate([f for f, _, _ in heard], beam=4)
    right = [h.units.tolist() == [t - 3 for t in target] for h, (_, target, _) in zip(found, heard, strict=True)]
    assert np.mean(right) > 0.8
    assert {len(target) % 3 for _, target, _ in heard} == {0, 1, 2}  # tails of every length were there to be lost


def test_no_more_units_than_the_limit(learnt: Seq2Seq) -> None:
    (found,) = learnt.generate([words(1, 1)[0][0]], beam=2, ratio=0.0, extra=3)
    assert len(found.units) <= 3
    assert learnt.generate([]) == []


def test_a_saved_model_is_the_same(learnt: Seq2Seq, tmp_path: Path) -> None:
    learnt.save(tmp_path, card="# card\n")
    again = Seq2Seq.load(tmp_path)
    heard = [f for f, _, _ in words(3, 5)]
    for one, other in zip(learnt.generate(heard, beam=2), again.generate(heard, beam=2), strict=True):
        assert one.units.tolist() == other.units.tolist()
        assert one.texts == other.texts
    assert again.config == learnt.config
    assert (tmp_path / "card.md").read_text() == "# card\n"
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(Seq2SeqError, match=r"no config\.yaml"):
        Seq2Seq.load(tmp_path)


def test_beginning_with_another_models_decoder() -> None:
    other = tiny(source="units", source_units=12)
    model = tiny(dim=32)
    for parameter in model.inner.model.decoder.parameters():
        parameter.data.zero_()
    taken = model.start_from(other, parts=["decoder"])
    for name, value in other.inner.model.decoder.state_dict().items():
        assert torch.equal(model.inner.model.decoder.state_dict()[name], value)
    assert all("encoder.layers" not in name for name in taken)
    assert torch.equal(model.inner.model.shared.weight, other.inner.model.shared.weight)
    with pytest.raises(Seq2SeqError, match=r"layers\.1.* is not in the other model"):
        model.start_from(tiny(source="units", source_units=12, decoder_layers=1), parts=["decoder"])
    with pytest.raises(Seq2SeqError, match="cannot begin"):
        model.start_from(tiny(tokenizer="ba9876543210"))
    with pytest.raises(Seq2SeqError, match="known are"):
        model.start_from(other, parts=["tail"])
    with pytest.raises(Seq2SeqError, match="sizes"):
        model.start_from(tiny(dim=16), parts=["encoder"])


def test_inside() -> None:
    assert inside(torch.tensor([0, 2]), 3).tolist() == [[False] * 3, [True, True, False]]
