"""`fusion-train sweep`: train variants on the same clips, compare them, write the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from featurecache.console import tables
from fusion_train.cli_options import CLIPS, CONFIG, INIT, SET, STORE

if TYPE_CHECKING:
    from fusion_train.sweeps.results import Results


@click.command()
@click.argument("file")
@CONFIG
@STORE
@CLIPS
@INIT
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the runs.  [default: sweeps/NAME]")
@click.option("--retry", is_flag=True, help="Take trials up again that failed.")
@click.option("--check", "check_only", is_flag=True, help="Check and count costs; start nothing.")
@SET
def sweep(
    file: str,
    config: str | None,
    store: str | None,
    clips: str | None,
    init: Path | None,
    out: Path | None,
    retry: bool,
    check_only: bool,
    overrides: tuple[str, ...],
) -> None:
    """Train and compare the variants of a sweep file (or of a shipped one by name).

    Variants that share a frozen language model train together, on the same clips in the same order. Stopped? The same
    command goes on. `fusion-train report FOLDER` writes the report again.

    \b
    fusion-train sweep pre_fusion --store features.zarr --clips clips.jsonl
    fusion-train sweep configs/sweeps/pre_fusion.yaml --config demo --set optim.steps=100
    """
    from fusion_train.run import Run
    from fusion_train.sweeps.check import check
    from fusion_train.sweeps.results import read_results
    from fusion_train.sweeps.running import run_sweep
    from fusion_train.sweeps.sweep_file import load_sweep

    asked = load_sweep(file, config, overrides)
    places = {"store": store or "features.zarr", "clips": clips or "clips.jsonl"}
    if check_only:
        check(asked, **places, say=click.echo)
        return
    folder = out or Path("sweeps") / asked.name
    outcomes = run_sweep(asked, **places, out=folder, initial=Run(init) if init else None, retry=retry, say=click.echo)
    print_report(read_results(folder))
    failed = [outcome for outcome in outcomes if outcome.error]
    for outcome in failed:
        click.echo(f"failed: {outcome.name}: {outcome.error}", err=True)
    if failed:
        raise SystemExit(1)


def print_report(results: Results, out: Path | None = None) -> None:
    """Write the report of a sweep's results, show its table."""
    from fusion_train.report.terminal import for_terminal
    from fusion_train.sweeps.report import SPREAD, VERDICT, variant_table, write_report

    page = write_report(results, out)
    table = variant_table(results)
    shown = table.only(["variant", results.measure.main, SPREAD, "seeds", "p (Holm)", "seconds"])
    tables().print(for_terminal(shown, results.about["name"]))
    for variant, verdict in table.only(["variant", VERDICT]).rows:
        click.echo(f"{variant}: {verdict}")
    click.echo(f"report: {page}; results.csv, results.tex and results.json beside {results.folder / 'sweep.json'}")
