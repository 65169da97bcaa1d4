"""Options that several commands of `fusion-train` share."""

from __future__ import annotations

from pathlib import Path

import click

STORE = click.option("--store", help="Feature store: folder or URL.  [default: features.zarr]")
CLIPS = click.option("--clips", help="Clip list: JSONL, CSV or Parquet.  [default: clips.jsonl]")
SET = click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override one setting; repeatable.")
CONFIG = click.option("--config", help="YAML file or shipped preset.  [default: emotion_llama_v2]")
CALLBACK = click.option(
    "--callback",
    "callbacks",
    multiple=True,
    metavar="FILE.py:CLASS",
    help="Your own code in the training loop: a subclass of Callback; repeatable.",
)
INIT = click.option("--init", type=click.Path(path_type=Path), help="Run to start from.")
