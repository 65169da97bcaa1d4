"""`fusion-train report`: one page with the curves of a run, or with what a sweep found."""

from __future__ import annotations

from pathlib import Path

import click

from featurecache.console import OutputPath, say


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=OutputPath("file"), help="The page.  [default: report.html in the run's folder]")
def report(run: Path, out: Path | None) -> None:
    """Write a run's curves and tables as one HTML page that opens from disk, and its numbers as CSV.

    Of a sweep: tables, differences with intervals, curves and costs, and the same as CSV, LaTeX and JSON.

    \b
    fusion-train report runs/perception
    fusion-train report sweeps/pre_fusion
    """
    if (run / "sweep.json").is_file():
        from fusion_train.cli.sweep import print_report
        from fusion_train.sweeps.results import read_results

        print_report(read_results(run), out)
        return
    from fusion_train.run import Run
    from fusion_train.training.run_report import damage, write_report

    page, numbers = write_report(Run(run), out)
    if lost := damage(Run(run)):
        say(f"note: {lost}", err=True)
    say(f"{page}, {numbers}")
