"""Options that several commands of `fusion-train` share."""

from __future__ import annotations

from pathlib import Path

import click

from featurecache.cli.options import MEDIA_ROOT as MEDIA_ROOT
from featurecache.console_project import ProjectOption, project

STORE = click.option(
    "--store",
    cls=ProjectOption,
    project_key="store",
    default="features.zarr",
    show_default=True,
    help="Feature store: folder or URL.",
)
CLIPS = click.option(
    "--clips",
    cls=ProjectOption,
    project_key="clips",
    default="clips.jsonl",
    show_default=True,
    help="Clip list: JSONL, CSV or Parquet.",
)
RUN_STORE = click.option("--store", help="Feature store.  [default: that of the run]")
RUN_CLIPS = click.option("--clips", help="Clip list.  [default: that of the run]")
SET = click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override one setting; repeatable.")
CONFIG = click.option(
    "--config",
    cls=ProjectOption,
    project_key="model",
    fills=False,
    unless="config",
    help="YAML file or shipped preset.  [default: emotion_llama_v2]",
)
CALLBACK = click.option(
    "--callback",
    "callbacks",
    multiple=True,
    metavar="FILE.py:CLASS",
    help="Your own code in the training loop: a subclass of Callback; repeatable.",
)
INIT = click.option("--init", type=click.Path(path_type=Path), help="Run to start from.")


def project_model() -> str | None:
    """Return the language model that the project file names; None without one."""
    project_file = project()
    return None if project_file is None else project_file.model
