"""Measure: `python tools/bench.py store-read [--json]`. One module of tools/benchmarks a subject, found by its name.

A module offers `measure(**options) -> dict` and `OPTIONS`, a list of click options. With `--json` the last line of the
output is one JSON object of figures and ratios; without it they are printed one a line.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path
from typing import Any

import click

from featurecache.console import say
from featurecache.outside_text import json_text

sys.path.insert(0, str(Path(__file__).parent))

import benchmarks


class Subjects(click.Group):
    """Commands are the modules of the package `benchmarks`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(benchmarks.__path__))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.list_commands(ctx):
            return None
        module = importlib.import_module("benchmarks." + name.replace("-", "_"))
        options = [*module.OPTIONS, click.Option(["--json", "as_json"], is_flag=True, help="End with one JSON line.")]
        return click.Command(name, params=options, callback=_runner(module.measure), help=module.__doc__)


def _runner(measure: Any) -> Any:
    def run(as_json: bool, **options: Any) -> None:
        figures = measure(**options)
        for key, value in figures.items():
            say(f"{key}: {value}")
        if as_json:
            say(json_text(figures, sort_keys=True))

    return run


@click.command(cls=Subjects)
def main() -> None:
    """Measure this machine and this release."""


if __name__ == "__main__":
    main()
