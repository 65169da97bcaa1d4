"""`fusion-train sweep`: train variants on the same clips, compare them, write the report."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurecache.cli.options import listed
from featurecache.console import OutputPath, command, json_result, note, print_table, report_error, say
from fusion_train.cli.options import CLIPS, CONFIG, INIT, SET, STORE, project_model

if TYPE_CHECKING:
    from fusion_train.sweeps.results import Results
    from fusion_train.sweeps.running import OpenExecutor


def _budget(ctx: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    """Parse KEY=VALUE; `sweep_file` checks the keys and values."""
    pairs = [part.partition("=") for text in texts for part in text.split(",")]
    wrong = [key for key, equals, value in pairs if not equals or not value]
    if wrong:
        raise click.BadParameter(f"expected hours=H or trials=N, got {wrong[0]}")
    return {key.strip(): value.strip() for key, _, value in pairs}


@command()
@click.argument("file")
@CONFIG
@STORE
@CLIPS
@INIT
@click.option("--out", type=OutputPath("folder"), help="Folder of the runs.  [default: sweeps/NAME]")
@click.option("--retry", is_flag=True, help="Run failed trials again.")
@click.option("--clips-changed", is_flag=True, help="Continue although the clip list changed; trials record it.")
@click.option(
    "--budget",
    "budget",
    multiple=True,
    callback=_budget,
    metavar="hours=H|trials=N",
    help="Limit on all runs of this command together: device time, trials. Repeatable.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray", "here"]),
    default="local",
    show_default=True,
    help="Worker processes on this machine, a Ray cluster, or this process (to debug).",
)
@click.option(
    "--devices", callback=listed, metavar="D,D…", help="One worker per device: cuda:0,cuda:1.  [default: auto]"
)
@click.option(
    "--ray-address", default=None, help="A running Ray cluster.  [default: one that is found, or a local one]"
)
@click.option(
    "--ray-actors",
    type=click.IntRange(1),
    default=None,
    help="Number of workers.  [default: one per GPU, or one per node]",
)
@click.option("--check", "check_only", is_flag=True, help="Check the sweep and predict its costs; start nothing.")
@SET
def sweep(
    file: str,
    config: str | None,
    store: str,
    clips: str,
    init: Path | None,
    out: Path | None,
    retry: bool,
    clips_changed: bool,
    budget: dict[str, Any],
    engine: str,
    devices: list[str],
    ray_address: str | None,
    ray_actors: int | None,
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
    from fusion_train.sweeps.results import read_results
    from fusion_train.sweeps.running import run_sweep
    from fusion_train.sweeps.sweep_file import load_sweep

    definition = load_sweep(file, config, overrides, budget, project_model())
    places = {"store": store, "clips": clips}
    if check_only:
        from fusion_train.sweeps.check import check

        check(definition, **places, say=say)
        return
    folder = out or Path("sweeps") / definition.name
    outcomes = run_sweep(
        definition,
        **places,
        out=folder,
        initial=Run(init) if init else None,
        retry=retry,
        clips_changed=clips_changed,
        open_executor=_executor(engine, devices, ray_address, ray_actors),
        say=note,
    )
    print_report(read_results(folder))
    failed = [outcome for outcome in outcomes if outcome.error]
    for outcome in failed:
        report_error(f"failed: {outcome.name}: {outcome.error}")
    if failed:
        raise SystemExit(1)


def _executor(engine: str, devices: list[str], ray_address: str | None, ray_actors: int | None) -> OpenExecutor:
    """Return the factory of the executor that the options name."""
    from fusion_train.errors import ConfigError

    ray_options = [f"--ray-{name}" for name, value in (("address", ray_address), ("actors", ray_actors)) if value]
    wrong = (ray_options if engine != "ray" else []) + (["--devices"] if devices and engine != "local" else [])
    if wrong:
        raise ConfigError(
            ", ".join(wrong),
            expected="--engine local" if "--devices" in wrong else "--engine ray",
            got=f"--engine {engine}",
        )
    if engine == "here":
        from fusion_train.sweeps.engines import here

        return here.executor
    if engine == "ray":
        from fusion_train.sweeps.engines import ray

        return partial(ray.executor, address=ray_address, actors=ray_actors)
    from fusion_train.sweeps.engines import processes

    return partial(processes.executor, devices=devices or ["auto"])


def print_report(results: Results, out: Path | None = None) -> None:
    """Write the report of a sweep and print its table."""
    from fusion_train.sweeps.report import SPREAD, VERDICT, as_json, variant_table, write_report

    page = write_report(results, out)
    table = variant_table(results)
    short_table = table.only(["variant", results.measure.main, SPREAD, "seeds", "p (Holm)", "seconds"])
    print_table(short_table, results.about["name"])
    json_result({**as_json(results), "report": str(page)})
    for variant, verdict in table.only(["variant", VERDICT]).rows:
        say(f"{variant}: {verdict}")
    say(f"report: {page}; results.csv, results.tex and results.json beside {results.folder / 'sweep.json'}")
