"""Seq2Seq that writes text: CTC alone, attention alone and both, of features and units; learning, sizes, files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unitkit import config as configs
from unitkit.models.branchformer import Branchformer
from unitkit.models.heads import ctc_loss
from unitkit.models.seq2seq import PAPER_ASR, Pairs, Seq2Seq, Seq2SeqConfig, Seq2SeqError, mask_token, source_size
from unitkit.models.vocoder import n_parameters

PIECES = 8
TINY = Seq2SeqConfig(
    target="text",
    tokenizer="aaaaaaaaaaaa",
    pieces=PIECES,
    source="units",
    source_tokenizer="0123456789ab",
    source_units=12,
    source_rate_hz=50.0,
    dim=32,
    encoder_layers=2,
    decoder_layers=1,
    attention_heads=2,
    hidden=64,
    conv_channels=32,
    blocks="branchformer",
    branch_hidden=64,
    branch_kernel=5,
    dropout=0.0,
    max_positions=128,
    ctc=0.3,
)
SPELT = {3: [3, 4, 5], 4: [6, 7], 5: [8, 9, 10], 6: [11, 12], 7: [13, 14, 3], 8: [4, 9]}  # token: units that say it


def tiny(**changes: object) -> Seq2Seq:
    torch.manual_seed(0)
    return Seq2Seq(replace(TINY, **changes)).eval()


def batch_of(sources: list[Tensor], targets: list[list[int]]) -> Pairs:
    padded = nn.utils.rnn.pad_sequence(sources, batch_first=True)
    lengths = torch.tensor([len(source) for source in sources])
    return Pairs(padded, lengths, nn.utils.rnn.pad_sequence([torch.tensor(t) for t in targets], batch_first=True))


def words(n: int, seed: int) -> list[tuple[Tensor, list[int]]]:
    """Unit tokens of random texts, now and then with a unit that says nothing."""
    draw, out = np.random.default_rng(seed), []
    for _ in range(n):
        text = draw.integers(3, 9, size=int(draw.integers(2, 7))).tolist()
        units = [unit for token in text for unit in [*SPELT[token], *[5] * int(draw.integers(2))]]
        out.append((torch.tensor(units), text))
    return out


def taught(config: Seq2SeqConfig, steps: int = 220, *, shuffled: bool = False) -> Seq2Seq:
    torch.manual_seed(0)
    model = Seq2Seq(config).plain_attention()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for step in range(steps):
        some = words(24, step)
        sources = [source for source, _ in some]
        if shuffled:
            draw = torch.Generator().manual_seed(step)
            sources = [source[torch.randperm(len(source), generator=draw)] for source in sources]
        loss = model(batch_of(sources, [text for _, text in some]))["loss"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * min(1.0, (step + 1) / 20) * min(1.0, 2 * (1 - step / steps))
        optimizer.step()
    return model.eval()


def right(model: Seq2Seq, *, seed: int = 10_001, **search: object) -> float:
    """The share of new texts that are found whole."""
    heard = words(40, seed)
    found = model.generate([source for source, _ in heard], beam=3, length_penalty=0.0, **search)  # type: ignore[arg-type]
    return float(
        np.mean([h.units.tolist() == [t - 3 for t in text] for h, (_, text) in zip(found, heard, strict=True)])
    )


@pytest.fixture(scope="module")
def joint() -> Seq2Seq:
    return taught(TINY)


def test_units_are_written_down_by_both_by_each_and_not_when_shuffled(joint: Seq2Seq) -> None:
    assert right(joint) > 0.9
    assert right(joint, ctc_weight=1.0) > 0.8 and right(joint, ctc_weight=0.0) > 0.8
    assert right(taught(TINY, 120, shuffled=True)) < 0.3


def test_ctc_alone_has_no_decoder(tmp_path: Path) -> None:
    model = taught(replace(TINY, ctc=1.0, blocks="transformer"))
    assert right(model) > 0.8
    assert not any("decoder" in name or "shared" in name or "lm_head" in name for name in model.state_dict())
    assert set(model(batch_of([torch.tensor([3, 4, 5])], [[3]]))) == {"ctc", "loss"}
    model.save(tmp_path)
    again = Seq2Seq.load(tmp_path)
    heard = [source for source, _ in words(4, 3)]
    assert [h.units.tolist() for h in again.generate(heard)] == [h.units.tolist() for h in model.generate(heard)]


def test_attention_alone_has_no_ctc() -> None:
    model = tiny(ctc=0.0, blocks="transformer")
    assert model.ctc is None and set(model(batch_of([torch.tensor([3, 4])], [[3]]))) == {
        "attention",
        "accuracy",
        "loss",
    }
    fast, theirs = (
        model.generate([torch.tensor([3, 4, 5, 6])], beam=3, method=m, extra=9) for m in ("fast", "transformers")
    )
    assert fast[0].units.tolist() == theirs[0].units.tolist()


def test_the_loss_is_shared_out(joint: Seq2Seq) -> None:
    batch = batch_of([source for source, _ in words(3, 1)], [text for _, text in words(3, 1)])
    losses = joint(batch)
    assert set(losses) == {"attention", "accuracy", "ctc", "loss"}
    assert torch.isclose(losses["loss"], 0.7 * losses["attention"] + 0.3 * losses["ctc"])
    memory, mask = joint.encode(batch.source, batch.lengths)
    assert joint.ctc is not None
    assert torch.isclose(losses["ctc"], ctc_loss(joint.ctc(memory), mask.sum(1), batch.target))


def test_alone_and_in_a_batch(joint: Seq2Seq) -> None:
    heard = [source for source, _ in words(9, 77)]
    for weight in (0.0, 0.3, 1.0):
        together = joint.generate(heard, beam=4, ctc_weight=weight, length_penalty=0.0)
        alone = [joint.generate([one], beam=4, ctc_weight=weight, length_penalty=0.0)[0] for one in heard]
        assert [h.units.tolist() for h in together] == [h.units.tolist() for h in alone]
        assert [h.score for h in together] == pytest.approx([h.score for h in alone], abs=1e-4)


def test_a_text_begins_as_told(joint: Seq2Seq) -> None:
    heard = [source for source, _ in words(3, 5)]
    found = joint.generate(heard, beam=3, first=[9, -1, 10], length_penalty=0.0)
    assert [found[0].units[0], found[2].units[0]] == [6, 7]
    assert found[1].units.tolist() == joint.generate(heard[1:2], beam=3, length_penalty=0.0)[0].units.tolist()


def test_a_saved_model_is_the_same(joint: Seq2Seq, tmp_path: Path) -> None:
    joint.save(tmp_path)
    again, heard = Seq2Seq.load(tmp_path), [source for source, _ in words(5, 6)]
    assert again.config == joint.config
    assert [h.units.tolist() for h in again.generate(heard)] == [h.units.tolist() for h in joint.generate(heard)]


def test_models_from_before_there_was_text_still_load(tmp_path: Path) -> None:
    old = Seq2SeqConfig(tokenizer="0123456789ab", n_units=9, features_dim=8, dim=16, encoder_layers=1, decoder_layers=1,
                        attention_heads=2, hidden=32, conv_channels=16)  # fmt: skip
    torch.manual_seed(1)
    model = Seq2Seq(old).eval()
    model.save(tmp_path)
    new = {"target", "pieces", "langs", "source_codebooks", "source_rate_hz", "source_reduced", "source_pieces",
           "source_bpe", "ctc", "embedding_dim", "unit_kernels", "blocks", "branch_hidden", "branch_kernel",
           "decoder_hidden"}  # fmt: skip
    lines = (tmp_path / "config.yaml").read_text().splitlines()
    kept = [line for line in lines if line.partition(":")[0] not in new]
    assert len(lines) - len(kept) == len(new)
    (tmp_path / "config.yaml").write_text("\n".join(kept) + "\n")
    heard = [torch.randn(40, 8)]
    assert Seq2Seq.load(tmp_path).generate(heard)[0].units.tolist() == model.generate(heard)[0].units.tolist()
    assert configs.load(Seq2SeqConfig, tmp_path / "config.yaml") == old


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ctc": 1.0},
        {"ctc": 0.0, "blocks": "transformer"},
        {"source_codebooks": 2, "unit_kernels": (3,), "embedding_dim": 6},
        {"source": "features", "features_dim": 8},
        {"source_pieces": 40},
    ],
    ids=["joint", "ctc", "attention", "codebooks", "features", "pieces"],
)
def test_a_padded_batch_is_each_alone(changes: dict[str, object]) -> None:
    model = tiny(**changes)
    draw = torch.Generator().manual_seed(0)
    codebooks = model.config.source_codebooks
    shape: tuple[int, ...] = (8,) if model.config.source == "features" else () if codebooks == 1 else (codebooks,)
    lengths = [23, 9, 1]
    sources = [
        torch.randn(n, *shape, generator=draw)
        if model.config.source == "features"
        else torch.randint(3, source_size(model.config), (n, *shape), generator=draw)
        for n in lengths
    ]
    batch = batch_of(sources, [[3]] * 3)
    memory, mask = model.encode(batch.source, batch.lengths)
    for row, keep, source in zip(memory, mask, sources, strict=True):
        (alone,), _ = model.encode(source[None], torch.tensor([len(source)]))
        assert torch.allclose(row[keep], alone, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 9))
def test_branchformer_rows_do_not_see_each_other_nor_their_padding(lengths: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    blocks = Branchformer(8, layers=2, heads=2, hidden=16, gated=12, kernel=7).eval()
    for parameter in blocks.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # the gates' convolutions begin as nothing
    x = torch.randn(len(lengths), max(lengths), 8)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    together, layers = blocks(x, mask)
    assert len(layers) == 3
    for i, n in enumerate(lengths):
        alone, _ = blocks(x[i : i + 1, :n], mask[i : i + 1, :n])
        assert torch.allclose(together[i, :n], alone[0], atol=1e-4)


def test_the_papers_size_takes_a_step() -> None:
    """ESPnet's: twelve E-Branchformer blocks and six decoder layers; 6000 pieces of 2000 units to 5000 of text."""
    filled = replace(PAPER_ASR, tokenizer="a", pieces=5000, source_tokenizer="b", source_units=2000, source_pieces=6000)
    model = Seq2Seq(filled).plain_attention()
    batch = batch_of([torch.randint(3, 6003, (30,)), torch.randint(3, 6003, (12,))], [[5, 900, 4000, 7], [3, 3]])
    losses = model(batch)
    losses["loss"].backward()
    lacking = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not [name for name in lacking if "model.encoder" not in name]  # MBart's own encoder has no blocks
    assert len(model.blocks.blocks) == 12 and model.front.table.weight.shape == (6004, 512)  # type: ignore[union-attr]
    assert n_parameters(model) == pytest.approx(49.1e6, rel=0.01)
    assert mask_token(filled) == 6003


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "song"}, "target 'song': known are units, text"),
        ({"blocks": "lstm"}, "blocks 'lstm': known are transformer, branchformer"),
        ({"pieces": 0}, "pieces 0: targets need at least 2 pieces"),
        ({"ctc": 1.5}, r"ctc 1\.5 is a share"),
        ({"stack": 2}, "needs stack 1"),
        ({"unit_kernels": (2,)}, "odd"),
    ],
)
def test_what_cannot_be_built(changes: dict[str, object], message: str) -> None:
    with pytest.raises(Seq2SeqError, match=message):
        tiny(**changes)


def test_what_cannot_be_searched(joint: Seq2Seq) -> None:
    heard = [torch.tensor([3, 4])]
    for model, weight, message in (
        (joint, 1.2, r"ctc_weight 1\.2: this model has both"),
        (tiny(ctc=0.0), 0.3, "no CTC, so 0"),
        (tiny(ctc=1.0), 0.5, "CTC only, so 1"),
    ):
        with pytest.raises(Seq2SeqError, match=message):
            model.generate(heard, ctc_weight=weight)
    with pytest.raises(Seq2SeqError, match="without CTC"):
        joint.generate(heard, method="transformers")


def test_an_encoder_begins_another_models(joint: Seq2Seq) -> None:
    model = tiny(pieces=20, tokenizer="bbbbbbbbbbbb")
    taken = model.start_from(joint, parts=["encoder", "front"])
    assert any(name.startswith("blocks.") for name in taken) and "front.table.weight" in taken
    assert torch.equal(model.blocks.norm.weight, joint.blocks.norm.weight)  # type: ignore[union-attr]
    with pytest.raises(Seq2SeqError, match="cannot begin"):
        model.start_from(joint, parts=["ctc"])
    other = tiny(pieces=20, tokenizer="bbbbbbbbbbbb", source_tokenizer="cccccccccccc")  # as many units, other ones
    with pytest.raises(Seq2SeqError, match=r"front of units 0123456789ab cannot begin one of units c+: leave"):
        other.start_from(joint, parts=["encoder", "front"])
    assert other.start_from(joint, parts=["encoder"])
