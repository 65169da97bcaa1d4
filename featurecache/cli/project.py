"""`fcache init`: write the project file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from featurecache.console import command, say
from featurecache.errors import ProjectError
from featurecache.project import FILE_NAME, project_text, read_project


@command()
@click.option("--store", default=None, help="Where the features are kept.")
@click.option("--clips", default=None, help="The clip list.")
@click.option("--media-root", default=None, help="Folder of the media, where it is not the list's own.")
@click.option("--model", default=None, metavar="PATH_OR_ID", help="Language model that runs train on.")
@click.option("--encoder", "encoders", multiple=True, help="What `fcache extract` runs; may be repeated.")
@click.option("--weights", multiple=True, metavar="NAME=PATH_OR_ID", help="Checkpoint of an encoder; may be repeated.")
@click.option("--overwrite", is_flag=True, help="Replace a project file that is there.")
def init(overwrite: bool, weights: tuple[str, ...], **values: Any) -> None:
    """Write featurecache.toml, which holds what all commands in this folder use: weights, store, clip list, model.

    Options of a command still win. Keys that get no value here are comments to fill in.

    \b
    Example: fcache init --encoder whisper --weights whisper=openai/whisper-base
    """
    from featurecache.encoders import encoder_class
    from featurecache.files.publish import replace_bytes

    path = Path(FILE_NAME)
    if path.exists() and not overwrite:
        raise ProjectError(
            FILE_NAME,
            expected="a new file",
            got="one that is there",
            next_step="Edit it, or replace it with --overwrite.",
        )
    pairs = dict(text.split("=", 1) for text in weights if "=" in text)
    if len(pairs) != len(weights):
        raise ProjectError("--weights", expected="NAME=PATH_OR_ID, each name once", got=" ".join(weights))
    for encoder in values["encoders"]:
        encoder_class(encoder.rpartition("=")[2].partition(":")[0])
    for name, place in pairs.items():
        if place.startswith((".", "/", "~")) and not os.path.exists(os.path.expanduser(place)):
            raise ProjectError(f"--weights {name}", expected="a checkpoint that is there, or a hub id", got=place)
    text = project_text({**values, "weights": pairs})
    replace_bytes(path, text.encode())
    read_project(path)
    say(text.rstrip())
    say(f"written to {path}")


COMMANDS = [init]
