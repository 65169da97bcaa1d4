"""`fusion-train export`: one model that answers on raw clips, with the proof that it computes what was trained.

What is measured and how it is bounded: fusion_train/export.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featurecache.console import OutputPath, command, note, print_table
from featurecache.console_project import ProjectOption
from featurecache.tables import Table
from fusion_train.cli.options import MEDIA_ROOT, RUN_CLIPS, RUN_STORE
from fusion_train.cli.predict import encoder_places
from fusion_train.cli.run_weights import project_weights


@command()
@click.option("--run", "folder", type=click.Path(path_type=Path), help="Run to export.")
@click.option("--out", type=OutputPath("folder"), help="Folder to write; must not hold anything.")
@click.option("--verify", type=click.Path(path_type=Path), help="Measure an exported folder again; writes nothing.")
@click.option(
    "--weights",
    cls=ProjectOption,
    project_key="weights",
    fills=False,
    multiple=True,
    metavar="NAME=PATH_OR_ID",
    help="Checkpoint of an encoder, by its name or modality, where it is not the hub id in its spec; repeatable.",
)
@click.option(
    "--require",
    "required",
    multiple=True,
    metavar="ENCODER",
    help="Name the package of this encoder, which the folder then needs, and do not copy its code; repeatable.",
)
@click.option("--checkpoint", default="best", show_default=True, help="best, last or a step.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="Dtype of the exported language model.  [default: the run's]",
)
@click.option(
    "--merge/--adapter",
    default=True,
    show_default=True,
    help="One whole model, or the trained parts with base and encoders by reference.",
)
@click.option(
    "--check",
    default="32",
    show_default=True,
    metavar="N|LIST",
    help="Raw clips to compare on: how many of the split, or a clip list of them.",
)
@click.option("--split", help="Split that they are of.  [default: the run's data.eval_split]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@RUN_STORE
@RUN_CLIPS
@MEDIA_ROOT
def export(folder: Path | None, out: Path | None, verify: Path | None, weights: tuple[str, ...], **given: Any) -> None:
    """Export a run with its encoders attached, or verify an exported folder.

    \b
    fusion-train export --run runs/cognition --out exported
    fusion-train export --run runs/cognition --out exported --weights whisper=models/whisper
    fusion-train export --run runs/cognition --out adapter --adapter
    fusion-train export --run runs/cognition --out exported --require log-mel
    fusion-train export --verify exported
    """
    if (verify is None) == (out is None) or (out is not None and folder is None):
        raise click.UsageError("give --run RUN --out DIR, or --verify DIR")
    named = encoder_places(weights)
    number = given["check"].isdigit()
    if number and not int(given["check"]):
        raise click.UsageError("--check: expected at least 1")
    from fusion_train.export.export_run import NUM_CHECKED, ExportSources, export_run, verify_export
    from fusion_train.run import Run

    run = Run(folder) if folder else None
    if run is not None and verify is None:
        named = {**project_weights(run, given["store"]), **named}
    sources = ExportSources(
        given["store"],
        given["clips"],
        given["checkpoint"],
        given["split"],
        int(given["check"]) if number else NUM_CHECKED,
        given["dtype"],
        given["device"],
        not given["merge"],
        None if number else given["check"],
        given["required"],
        given["media_root"],
    )
    figures = verify_export(verify, sources, run, note, named) if verify else export_run(run, out, named, sources, note)  # type: ignore[arg-type]
    rows = [[figure.name, f"{figure.measured:.2e}", f"{figure.bound:.2e}"] for figure in figures]
    print_table(Table(["what", "measured", "bound"], rows, f"{verify or out}: every bound holds"))
