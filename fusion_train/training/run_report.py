"""The report of a run: one page with settings, scores, wrong clips and curves, and every logged number as CSV.

The page opens from disk, fetches nothing and runs no script. It is a pure function of the run's files, and of the clips
whose answers are wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from featurecache.clips.clip_list import ClipList
from featurecache.files.publish import replace_bytes
from featurecache.outside_text import figure_text
from featurecache.tables import Cell
from fusion_train import checkpoint
from fusion_train.config import Config
from fusion_train.errors import ConfigError, DataError
from fusion_train.evaluation.benchmarks import BenchmarkSet
from fusion_train.evaluation.prediction_rows import read_predictions
from fusion_train.evaluation.score_report import add_set
from fusion_train.evaluation.scoring import score_set
from fusion_train.metric_lines import Row, read_metrics
from fusion_train.metrics.metric_result import MetricSettings
from fusion_train.report.page import Page
from fusion_train.report.tables import Table
from fusion_train.run import Run

SIZE_INCHES = (8.6, 3.0)
SPEEDS = (("samples_per_s", "samples/s"), ("tokens_per_s", "tokens/s"),
          ("supervised_tokens_per_s", "supervised tokens/s"))  # fmt: skip


def write_report(run: Run, out: Path | None = None, clips: ClipList | None = None) -> tuple[Path, Path]:
    """Write `report.html` and `metrics.csv`; returns both paths.

    Args:
        out: the page; default `report.html` in the run's folder. The CSV lies beside it.
        clips: the clip list of the run, whose media are shown where an answer is wrong; None shows none.

    Raises:
        CheckpointError: no such run.
        DataError: the run has logged nothing yet.
    """
    config, record = run.config(), run.record()
    rows = read_rows(run)
    if not rows:
        raise DataError(
            str(run.metrics),
            expected="logged steps",
            got="none",
            next_step=f"Go on: fusion-train resume {run.folder}; a line is written every {config.log.every} steps.",
        )
    page = Page(f"Run {run.name}", _lead(run, config, rows))
    if lost := damage(run):
        page.text(f"{Path(lost.partition(': ')[0]).name}: {lost.partition(': ')[2]}.", "warning")
    if record.list_changes:
        steps = ", ".join(str(change["step"]) for change in record.list_changes)
        page.text(f"The clip list was changed during the run, at step {steps}.", "warning")
    page.side_by_side(_settings(config), _read(record))
    for path in sorted(run.folder.glob("predictions-*.jsonl"), key=lambda path: path.stem):
        _add_answers(page, path, clips)
    step_rows, scored_rows = [row for row in rows if "loss" in row], [row for row in rows if "eval_loss" in row]
    page.heading("Loss")
    page.drawing(_losses(step_rows, scored_rows), "of a supervised token, mean over the steps since the last line")
    for kind in ("dataset", "task"):
        if len(names := _names(step_rows, f"loss/{kind}/")) > 1:
            curves = {name.rpartition("/")[2]: _series(step_rows, name) for name in names}
            page.drawing(_curves(curves, "loss", log=True), f"by {kind}")
    if scored_rows:
        page.heading("Held-out scores")
        page.drawing(_accuracies(scored_rows))
        page.table(_scores(run, scored_rows))
    page.heading("Optimizer")
    page.drawing(
        _curves({n.partition("/")[2] or "all": _series(step_rows, n) for n in _names(step_rows, "lr")}, "rate"),
        "learning rates",
    )
    norms = {n.partition("/")[2] or "all": _series(step_rows, n) for n in _names(step_rows, "grad_norm")}
    page.drawing(_curves(norms, "norm", log=True), "gradient norms by part, before clipping")
    page.heading("Speed")
    page.table(_speed(step_rows))
    shares = {
        "utilisation": _series(step_rows, "utilisation"),
        "waiting for data": _series(step_rows, "data_wait_share"),
    }
    page.drawing(_curves(shares, "share"), "of the matrix peak, and of the time")
    if absent := _absent(step_rows):
        page.heading("Modalities")
        page.table(absent)
    page.heading("Configuration")
    page.fold("config.yaml, as resolved", config.to_yaml())
    target = page.write(out or run.folder / "report.html")
    numbers = target.with_name("metrics.csv")
    replace_bytes(numbers, _csv(rows).encode())
    return target, numbers


def read_rows(run: Run) -> list[Row]:
    """Sound lines of `metrics.jsonl`."""
    return list(run.metric_rows())


def damage(run: Run) -> str | None:
    """Say which lines of `metrics.jsonl` are damaged and not shown; None where all are sound."""
    damaged = read_metrics(run.metrics).damaged
    if not damaged:
        return None
    named = ", ".join(map(str, damaged)) if len(damaged) <= 5 else f"{len(damaged)} lines"
    return f"{run.metrics}: damaged and not shown: line {named}"


def _lead(run: Run, config: Config, rows: Sequence[Row]) -> str:
    state = f"finished at step {run.result['step']}" if run.finished else "not finished"
    return f"Stage {config.stage}, {state}, {int(rows[-1]['step']):,} of {config.optim.steps:,} steps logged."


def _settings(config: Config) -> Table:
    model, optim = config.model, config.optim
    rows = [
        ["language model", Path(model.llm).name if model.llm else "none (probe)"],
        ["fusion", model.fusion.name],
        ["LoRA r / alpha", f"{model.lora.r} / {model.lora.alpha:g}" if model.llm else "–"],
        ["frozen parts", ", ".join(model.frozen) or "none"],
        ["tasks", ", ".join(config.data.tasks)],
        ["batch", f"{optim.batch_size} samples per step"],
        ["learning rate", f"{optim.lr:g}, {optim.warmup_steps:,} steps of warm-up"],
        ["moving average", f"{optim.ema_decay:g}" if optim.ema_decay else "none"],
        ["seed", str(config.seed)],
    ]
    return Table(["setting", "value"], rows)


def _read(record: Any) -> Table:
    rows = [[f"feature of {name}", fingerprint[:16] + "…"] for name, fingerprint in record.fingerprints.items()]
    if record.initial:
        rows += [
            ["started from", record.initial["run"]],
            ["its step", str(record.initial["step"])],
            ["its weights", record.initial["sha256"][:16] + "…"],
        ]
    rows += [[name, text] for name, text in record.versions.items()]
    return Table(["read", "what"], rows)


def _losses(steps: Sequence[Row], scored: Sequence[Row]) -> Figure:
    curves = {"training": _series(steps, "loss")}
    if scored:
        curves["held out"] = _series(scored, "eval_loss")
    return _curves(curves, "loss", log=True)


def _accuracies(scored: Sequence[Row]) -> Figure:
    names = _scored_names(scored)
    figure = _curves({name.partition("/")[2]: _series(scored, name) for name in names}, "accuracy or CCC", marker="o")
    figure.axes[0].set_ylim(0, 1.03)
    return figure


def _scores(run: Run, scored: Sequence[Row]) -> Table:
    names = [*_scored_names(scored), "eval_loss"]
    best = checkpoint.best(run.checkpoints)
    rows = [[int(row["step"]), *(row.get(name) for name in names)] for row in scored]
    best_rows = [place for place, row in enumerate(rows) if best is not None and best.name.endswith(f"{row[0]:08d}")]
    return Table(["step", *names], rows, "the best checkpoint in bold", emphasised=frozenset(best_rows))


def _speed(steps: Sequence[Row]) -> Table:
    rows = [[label, *_summary([row[name] for row in steps if name in row])] for name, label in SPEEDS]
    rows += [
        [label + ", %", *_summary([100 * row[name] for row in steps if name in row])]
        for name, label in (("utilisation", "utilisation"), ("data_wait_share", "waiting for data"))
    ]
    return Table(["", "median", "least", "most"], rows)


def _absent(steps: Sequence[Row]) -> Table | None:
    names = [name for kind in ("missing/", "hidden/") for name in _names(steps, kind)]
    rows: list[list[Cell]] = [[*name.split("/"), int(sum(row.get(name, 0) for row in steps))] for name in names]
    return (
        Table(["how", "modality", "samples"], rows, "samples whose clip lacks it, or that were not shown it")
        if rows
        else None
    )


def _add_answers(page: Page, path: Path, clips: ClipList | None) -> None:
    """Add the scores of one file of predictions, with classes, confusion matrix and wrong clips."""
    page.heading(f"Answers: {path.stem.removeprefix('predictions-')}")
    try:
        rows = read_predictions(path)
        benchmark_set = BenchmarkSet(task=str(rows[0].get("task") or "emotion"))
        if benchmark_set.chosen_metric is None:
            page.text(f"{len(rows):,} answers, for which there is no metric.", "note")
            return
        score = score_set(path.stem, benchmark_set, rows, MetricSettings())
    except (ConfigError, DataError) as error:
        page.text(f"{path.name}: not scored: {error}", "warning")
        return
    add_set(page, score, clips)
    if score.wrong and clips is None:
        page.text("Wrong clips are shown where the clip list is at hand: name it with --clips.", "note")


def _summary(values: Sequence[float]) -> list[float | None]:
    if not values:
        return [None, None, None]
    ordered = sorted(values)
    return [ordered[len(ordered) // 2], ordered[0], ordered[-1]]


def _scored_names(scored: Sequence[Row]) -> list[str]:
    return [*_names(scored, "accuracy/"), *_names(scored, "ccc/")]


def _names(rows: Sequence[Row], prefix: str) -> list[str]:
    return sorted({name for row in rows for name in row if name == prefix or name.startswith(prefix)})


def _series(rows: Sequence[Row], name: str) -> tuple[list[float], list[float]]:
    points = [(row["step"], row[name]) for row in rows if name in row]
    return [step for step, _ in points], [value for _, value in points]


def _curves(
    curves: Mapping[str, tuple[list[float], list[float]]], label: str, *, log: bool = False, marker: str = ""
) -> Figure:
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    for name, (steps, values) in curves.items():
        axes.plot(
            steps, values, marker=marker or ("o" if len(steps) < 3 else ""), label=figure_text(name), linewidth=1.4
        )
    positive = all(value > 0 for _, values in curves.values() for value in values)
    axes.set(xlabel="step", ylabel=label, yscale="log" if log and positive else "linear")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(fontsize=8, ncols=min(4, len(curves)))
    return figure


def _csv(rows: Sequence[Row]) -> str:
    names = ["step", *sorted({name for row in rows for name in row} - {"step"})]
    return Table(names, [[row.get(name) for name in names] for row in rows]).csv()
