"""Options that several commands share, and functions that read their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurecache.console_project import ProjectOption, project
from featurecache.errors import EncoderError

if TYPE_CHECKING:
    from featurecache.extract.job import OpenEncoder

STORE = click.option(
    "--store",
    cls=ProjectOption,
    project_key="store",
    default="features.zarr",
    show_default=True,
    help="Where the features are kept.",
)
CLIPS = click.option(
    "--clips", cls=ProjectOption, project_key="clips", default="clips.jsonl", show_default=True, help="The clip list."
)
NAMES = click.option("--name", "names", multiple=True, help="A feature; may be repeated. Every feature by default.")
MEDIA_ROOT = click.option(
    "--media-root",
    cls=ProjectOption,
    project_key="media_root",
    default=None,
    help="Folder of the media, where it is not the list's own.",
)
WEIGHTS = click.option(
    "--weights",
    cls=ProjectOption,
    project_key="weights",
    fills=False,
    multiple=True,
    metavar="[NAME=]PATH_OR_ID",
    help="Checkpoint for every encoder, or for one of them.",
)
OPTIONS = click.option(
    "--option", "settings", multiple=True, metavar="NAME.KEY=VALUE", help="An option of an encoder: whisper.tokens=32."
)

DEVICE = click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N or auto.")
INDEX = click.option(
    "--index",
    "index_at",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    metavar="DIR",
    help="Where the similarity index is kept; by default beside the store.",
)


Command = Callable[..., None]


def with_options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return a decorator that gives a command these options, in this order in its help."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def listed(ctx: click.Context, parameter: click.Parameter, value: str | None) -> list[str]:
    """Return the names in `A,B`; the callback of an option."""
    return [name.strip() for name in (value or "").split(",") if name.strip()]


def weights_of(encoders: Sequence[str], values: Sequence[str]) -> dict[str, str | None]:
    """Return encoder name -> checkpoint; a value without NAME= is for every encoder that is not named.

    Where neither is given, the project file's weights are taken.

    Raises:
        EncoderError: a value names an encoder that the command does not use.
    """
    for_all: str | None = None
    named: dict[str, str] = {}
    for value in values:
        name, equals, checkpoint = value.partition("=")
        if equals and name in encoders:
            named[name] = checkpoint
        elif equals and "/" not in name:
            expected = "one of the encoders asked for: " + ", ".join(encoders)
            raise EncoderError(f"--weights {value}", expected=expected, got=name)
        else:
            for_all = value
    project_file = project()
    known = {} if project_file is None else project_file.weights
    return {encoder: named.get(encoder) or for_all or known.get(encoder) for encoder in encoders}


def settings_of(encoders: Sequence[str], values: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return encoder name -> its options; a value of digits becomes a number.

    `hf-audio` stands for every encoder that is named with a checkpoint, `hf-audio:ID`.

    Raises:
        EncoderError: a value has another form, or names an encoder that the command does not use.
    """
    settings: dict[str, dict[str, Any]] = {}
    for setting in values:
        key, equals, value = setting.partition("=")
        name, dot, option = key.rpartition(".")
        matching = [encoder for encoder in encoders if name in (encoder, encoder.partition(":")[0])]
        if not (equals and dot and matching):
            expected = "NAME.KEY=VALUE with NAME one of " + ", ".join(encoders)
            raise EncoderError(f"--option {setting}", expected=expected, got="another form")
        for encoder in matching:
            settings.setdefault(encoder, {})[option] = int(value) if value.isdigit() else value
    return settings


def encoder_opener(values: Mapping[str, Any]) -> OpenEncoder:
    """Return the function that opens the encoder of a spec, with the values of --weights, --option and --device."""
    from featurecache.encoders import registered
    from featurecache.extract.job import opener

    encoders = sorted(registered())
    weights, settings = weights_of(encoders, values["weights"]), settings_of(encoders, values["settings"])
    return opener(weights, settings, values["device"])
