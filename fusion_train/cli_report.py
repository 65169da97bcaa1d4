"""`fusion-train report`: one page with the curves of a run."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The page.  [default: report.html in the run's folder]")
def report(run: Path, out: Path | None) -> None:
    """Write a run's curves and tables as one HTML page that opens from disk, and its numbers as CSV.

    \b
    fusion-train report runs/perception
    """
    from fusion_train.run import Run
    from fusion_train.run_report import write_report

    page, numbers = write_report(Run(run), out)
    click.echo(f"{page}, {numbers}")
