"""`fusion-train zero-image`: the tokens that the released code shows in place of an absent picture."""

from __future__ import annotations

from pathlib import Path

import click

from featurecache.console import OutputPath, say
from fusion_train.cli.options import STORE


@click.command("zero-image")
@STORE
@click.option("--name", default="eva-global", show_default=True, help="The image feature in the store.")
@click.option("--weights", help="Checkpoint that made the feature, where the store does not know it.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto.")
@click.option("--out", type=OutputPath("file"), default="zero-image.safetensors", show_default=True)
def zero_image(store: str | None, name: str, weights: str | None, device: str, out: Path) -> None:
    """Encode an all-zero image once, for runs in which absent modalities are seen (--config released).

    \b
    fusion-train zero-image --weights eva_vit_g.pth
    """
    from fusion_train.export.zero_image import make_zero_image

    make_zero_image(store or "features.zarr", name, out, weights=weights, device=device, say=say)
