"""Verbs between tokenizers and what peers publish: import-kmeans, export-kmeans, import-fairseq."""

from pathlib import Path
from typing import Annotated

import typer

from unitkit.cli.show import Device, app, console


@app.command("import-kmeans")
def import_kmeans(
    path: Annotated[Path, typer.Argument(help="Centroids: scikit-learn's .bin/.joblib/.km, .npy, .npz, torch, ...")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the new tokenizer.")],
    name: Annotated[
        str | None, typer.Option(help="Published name, e.g. hubert-base-ls960-km100: gives features and layer.")
    ] = None,
    features: Annotated[str | None, typer.Option(help="Known SSL name, hub id, or local directory.")] = None,
    layer: Annotated[int | None, typer.Option(help="Layer the centroids were fitted to, 1-based.")] = None,
    padding: Annotated[str | None, typer.Option(help="none (fairseq, textless) or center (bshall, slamkit).")] = None,
    normalize: Annotated[
        bool | None, typer.Option("--normalize/--no-normalize", help="Overrides what the encoder's checkpoint says.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a different tokenizer at --out.")] = False,
    device: Device = "auto",
) -> None:
    """Make a tokenizer of a peer's centroids.  Pickles are read without running anything in them.

    Examples:

      unitkit import-kmeans km.bin --name hubert-base-ls960-km100 -o exp/tok

      unitkit import-kmeans kmeans.npy --features hubert-base --layer 6 -o exp/tok
    """
    from unitkit.kmeans_files import tokenizer_from_kmeans

    tokenizer = tokenizer_from_kmeans(
        path, name=name, features=features, layer=layer, padding=padding, normalize=normalize, device=device
    )
    tokenizer.save(out, overwrite=overwrite)
    recipe = tokenizer.recipe
    where = recipe["features"] if recipe["layer"] is None else f"{recipe['features']} layer {recipe['layer']}"
    console.print(f"{out}: tokenizer {tokenizer.fingerprint}, {tokenizer.n_units} units of {where}", soft_wrap=True)


@app.command("export-kmeans")
def export_kmeans(
    tokenizer: Annotated[str, typer.Argument(help="Directory or bundled name.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write; its suffix says the form.")],
    form: Annotated[
        str | None, typer.Option("--format", "-f", help="npy, npz, safetensors, torch (bshall) or sklearn (fairseq).")
    ] = None,
) -> None:
    """Write a tokenizer's centroids for a peer.

    Example: unitkit export-kmeans exp/tok -o km.npy
    """
    from unitkit.kmeans_files import write_kmeans
    from unitkit.tokenizer import Tokenizer

    quantizer = Tokenizer.load(tokenizer, device="cpu").quantizer
    write_kmeans(quantizer, out, form=form)
    console.print(f"{out}: {quantizer.n_units} centroids of {quantizer.dim} dimensions", soft_wrap=True)


@app.command("import-fairseq")
def import_fairseq(
    checkpoint: Annotated[Path, typer.Argument(help="fairseq's HuBERT or wav2vec 2.0, pretrained or fine-tuned.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the converted model.")],
    family: Annotated[str | None, typer.Option(help="hubert or wav2vec2, where the checkpoint does not say.")] = None,
    normalize: Annotated[
        bool | None,
        typer.Option("--normalize/--no-normalize", help="Scale recordings, where the checkpoint does not say."),
    ] = None,
) -> None:
    """Convert a fairseq checkpoint to the transformers layout, without fairseq and without running its pickles.

    Example: unitkit import-fairseq hubert_base_ls960.pt -o exp/hubert && unitkit fit train.jsonl --features exp/hubert
    """
    from unitkit.encoders.fairseq import convert_fairseq

    converted = convert_fairseq(checkpoint, out, family=family, normalize=normalize)
    console.print(f"{converted}: give it as --features, with a --layer", soft_wrap=True)
