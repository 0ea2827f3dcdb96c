"""Beam decoding: our search beside transformers' `generate` on the same model; one thread, sides in turn.

    python tools/bench/decode.py [--quick] [--model DIR [--speech MANIFEST]]

Tokens are compared before anything is timed.  Without --model a small decoder (256 wide, 4 layers) is trained here
until its outputs vary and end by themselves: an untrained one repeats a few tokens and hides faults.  --model takes a
directory of `unitkit.models.seq2seq.Seq2Seq`; its sources are eight recordings of --speech, spread over it, or random.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from side_by_side import Row, interleaved, parser, report

import numpy as np  # isort: skip  # after side_by_side, which sets the threads
import torch  # isort: skip
import torch.nn.functional as F  # isort: skip
from torch import Tensor  # isort: skip

from unitkit.models.beam import beam_search
from unitkit.units import Vocab

DIM, N_UNITS, SOURCE, KEYS = 256, 200, 80, 8
MAX_NEW = 120
Found = list[np.ndarray]


def untrained() -> Any:
    """A decoder of the size that a small S2UT model has."""
    import transformers

    config = transformers.MBartConfig(
        vocab_size=len(Vocab(N_UNITS)),
        d_model=DIM,
        encoder_layers=1,
        decoder_layers=4,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=256,
        decoder_ffn_dim=1024,
        max_position_embeddings=256,
        dropout=0.0,
        pad_token_id=Vocab.pad,
        bos_token_id=Vocab.bos,
        eos_token_id=Vocab.eos,
        decoder_start_token_id=Vocab.bos,
        forced_eos_token_id=None,
    )
    torch.manual_seed(0)
    return transformers.MBartForConditionalGeneration(config)


def task(keys: Sequence[int], *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Memory (batch, positions, DIM), its mask, and labels that end with an eos.

    Each key has a sentence of random units, 60 to 80 long; its memory is a vector of the key and noise.
    """
    draw, fixed = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(1)
    vectors, sentences = (
        torch.randn(KEYS, DIM, generator=fixed),
        torch.randint(N_UNITS, (KEYS, SOURCE), generator=fixed),
    )
    lengths = torch.tensor([SOURCE - 20 * key // KEYS for key in keys])
    width = int(lengths.max())
    mask = torch.arange(width) < lengths[:, None]
    memory = vectors[list(keys)][:, None] + torch.randn(len(keys), width, DIM, generator=draw) / 2
    labels = (sentences[list(keys), :width] + Vocab.first).masked_fill(~mask, Vocab.pad)
    return memory, mask, F.pad(labels, (0, 1)).scatter(1, lengths[:, None], Vocab.eos)


def trained(steps: int) -> Any:
    """`untrained`, taught the task; not to the end, so that beams compete."""
    from transformers.modeling_outputs import BaseModelOutput

    inner = untrained()
    optimizer = torch.optim.AdamW(inner.parameters(), lr=1e-3)
    for step in range(steps):
        memory, mask, labels = task(range(KEYS), seed=step)
        before = F.pad(labels[:, :-1], (1, 0), value=Vocab.bos)
        targets = labels.masked_fill(labels == Vocab.pad, -100)
        given = {"encoder_outputs": BaseModelOutput(memory), "attention_mask": mask.long()}
        loss = inner(**given, decoder_input_ids=before, labels=targets).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss after {steps} steps: {loss.item():.2f}", flush=True)
    return inner.eval()


def heard(directory: Path, speech: Path) -> tuple[Any, Tensor, Tensor]:
    """The decoder of a saved model, and memories of eight recordings."""
    from unitkit.manifest import read_manifest
    from unitkit.models.listen import Listener
    from unitkit.models.seq2seq import Seq2Seq
    from unitkit.recording import read_speech

    model, listener = Seq2Seq.load(directory).eval(), Listener.load(directory / "listener")
    rows = sorted(read_manifest(speech), key=lambda row: (row.duration or 0.0, row.id))
    spread = [rows[(2 * i + 1) * len(rows) // 16] for i in range(8)]
    chosen = spread[1::2] + spread[::2]  # the first four are of all lengths
    features = [listener(read_speech(row, listener.sample_rate)) for row in chosen]
    padded = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
    with torch.inference_mode():
        return model.inner, *model.encode(padded, torch.tensor([len(one) for one in features]))


def loaded(directory: Path) -> tuple[Any, Tensor, Tensor]:
    """The decoder of a saved model, and memories of random sources."""
    from unitkit.models.seq2seq import Seq2Seq, source_size

    model = Seq2Seq.load(directory).eval()
    if model.stack is not None:
        raise SystemExit(f"{directory}: transformers has no search for a stack of {model.config.stack}")
    draw = torch.Generator().manual_seed(0)
    if model.config.source == "features":
        frames = SOURCE * 2 ** len(model.config.conv_kernels)
        source = torch.randn(8, frames, model.config.features_dim, generator=draw)
    else:
        source = torch.randint(Vocab.first, source_size(model.config), (8, SOURCE), generator=draw)
    with torch.inference_mode():
        return model.inner, *model.encode(source, torch.full((8,), source.shape[1]))


def ours(inner: Any, memory: Tensor, mask: Tensor, beam: int) -> Found:
    """Tokens of each row."""
    return [tokens for tokens, _ in beam_search(inner, memory, mask, beam=beam, max_new=[MAX_NEW] * len(memory))]


def theirs(inner: Any, memory: Tensor, mask: Tensor, beam: int) -> Found:
    """Tokens of each row, by transformers."""
    from transformers.modeling_outputs import BaseModelOutput

    out = inner.generate(
        encoder_outputs=BaseModelOutput(memory),
        attention_mask=mask.long(),
        num_beams=beam,
        max_new_tokens=MAX_NEW,
        early_stopping=False,
        do_sample=False,
    )
    rows = [row[1:].numpy() for row in out]
    return [row[: np.flatnonzero(row == Vocab.eos)[0]] if Vocab.eos in row else row for row in rows]


def each(side: Callable[..., Found], inner: Any, memory: Tensor, mask: Tensor, *, beam: int, batch: int) -> Found:
    """All rows, `batch` at a time."""
    parts = zip(memory.split(batch), mask.split(batch), strict=True)
    return [tokens for rows, seen in parts for tokens in side(inner, rows, seen, beam)]


def compared(inner: Any, memory: Tensor, mask: Tensor, *, repeats: int) -> list[Row]:
    """Rows for beams 1, 5 and 10, one utterance and eight at a time."""
    rows = []
    for batch in (1, 8):
        few = slice(4 if batch == 1 else 8)
        for beam in (1, 5, 10):
            run = partial(each, inner=inner, memory=memory[few], mask=mask[few], beam=beam, batch=batch)
            sides: dict[str, Callable[[], Found]] = {
                "unitkit": partial(run, ours),
                "transformers": partial(run, theirs),
            }
            own, peer = (side() for side in sides.values())
            differ = sum(a.tolist() != b.tolist() for a, b in zip(own, peer, strict=True))
            if differ:
                raise SystemExit(f"beam {beam}, batch {batch}: {differ} of {len(own)} utterances have other tokens")
            units, distinct = sum(map(len, own)), len(set(np.concatenate(own).tolist()))
            seconds = interleaved(sides, repeats=repeats, warmup=False)  # the comparison was the first run
            speed = {name: units / value for name, value in seconds.items()}
            rows.append(
                Row(
                    f"decode, beam {beam}, {batch} at a time",
                    f"{speed['unitkit']:.0f} units per CPU s",
                    f"transformers generate {speed['transformers']:.0f}",
                    speed["unitkit"] / speed["transformers"],
                    f"all tokens ({len(own)} utterances, {units} units, {distinct} distinct)",
                    "≥ 2×" if beam == 10 and batch == 1 else "",
                )
            )
    return rows


def main() -> None:
    """Both sides on one model."""
    options = parser(__doc__)
    options.add_argument("--model", type=Path, help="a saved Seq2Seq model; without it, a small one is trained")
    options.add_argument("--speech", type=Path, help="manifest of recordings for a model that hears")
    args = options.parse_args()
    torch.set_num_threads(1)
    if args.model is None:
        inner = trained(25 if args.quick else 45)
        memory, mask, _ = task(range(KEYS), seed=-1)
    else:
        inner, memory, mask = heard(args.model, args.speech) if args.speech else loaded(args.model)
    with torch.inference_mode():
        report(compared(inner, memory, mask, repeats=1 if args.quick else 3), args.json)


if __name__ == "__main__":
    main()
