"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from featurecache.errors import EncoderError

STORE = click.option("--store", default="features.zarr", show_default=True, help="Where the features are kept.")
CLIPS = click.option("--clips", default="clips.jsonl", show_default=True, help="The clip list.")
NAMES = click.option("--name", "names", multiple=True, help="A feature; may be repeated. Every feature by default.")
MEDIA_ROOT = click.option("--media-root", default=None, help="Folder of the media, where it is not the list's own.")
WEIGHTS = click.option(
    "--weights", multiple=True, metavar="[NAME=]PATH_OR_ID", help="Checkpoint for every encoder, or for one of them."
)
OPTIONS = click.option(
    "--option", "settings", multiple=True, metavar="NAME.KEY=VALUE", help="An option of an encoder: whisper.tokens=32."
)

INDEX = click.option(
    "--index",
    "index_at",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    metavar="DIR",
    help="Where the similarity index is kept; by default beside the store.",
)


def listed(ctx: click.Context, parameter: click.Parameter, value: str | None) -> list[str]:
    """Read `A,B`, as the callback of an option."""
    return [name.strip() for name in (value or "").split(",") if name.strip()]


def weights_of(encoders: Sequence[str], given: Sequence[str]) -> dict[str, str | None]:
    """Return encoder name -> checkpoint; a value without NAME= stands for every encoder not named."""
    for_all: str | None = None
    named: dict[str, str] = {}
    for value in given:
        name, equals, place = value.partition("=")
        if equals and name in encoders:
            named[name] = place
        elif equals and "/" not in name:
            expected = "one of the encoders asked for: " + ", ".join(encoders)
            raise EncoderError(f"--weights {value}", expected=expected, got=name)
        else:
            for_all = value
    return {encoder: named.get(encoder, for_all) for encoder in encoders}


def settings_of(encoders: Sequence[str], given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return encoder name -> its options; a value of digits is a number.

    An encoder named with its checkpoint, `hf-audio:ID`, may be called `hf-audio` here: all such get the option.
    """
    settings: dict[str, dict[str, Any]] = {}
    for setting in given:
        key, equals, value = setting.partition("=")
        name, dot, option = key.rpartition(".")
        meant = [encoder for encoder in encoders if name in (encoder, encoder.partition(":")[0])]
        if not (equals and dot and meant):
            expected = "NAME.KEY=VALUE with NAME one of " + ", ".join(encoders)
            raise EncoderError(f"--option {setting}", expected=expected, got="another form")
        for encoder in meant:
            settings.setdefault(encoder, {})[option] = int(value) if value.isdigit() else value
    return settings
