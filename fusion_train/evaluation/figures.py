"""Draw loss curves of runs with their held-out accuracy, and confusion matrices."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from featurecache.files.publish import replace_bytes
from featurecache.outside_text import figure_text
from fusion_train.metrics import ClassificationScores
from fusion_train.run import Run

SIZE_INCHES = (12.0, 4.6)
DPI = 120


def draw_runs(runs: Sequence[Run], scores: ClassificationScores, title: str, path: Path) -> None:
    """Write one PNG: the loss curves of `runs`, one run after the other, and the confusion matrix of `scores`."""
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    curves, matrix = figure.subplots(1, 2, width_ratios=(1.5, 1.0))
    _curves(curves, runs)
    draw_confusion(matrix, scores.confusion, scores.labels)
    matrix.set_title(f"{scores.num_clips} held-out clips, {scores.accuracy:.1%} right")
    figure.suptitle(figure_text(title))
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI)
    replace_bytes(path, png.getvalue())


def _curves(axes: Axes, runs: Sequence[Run]) -> None:
    """Draw losses and accuracies; the steps of a run are counted on from the end of the run before."""
    accuracy = axes.twinx()
    start = 0
    for number, run in enumerate(runs):
        rows = run.metric_rows()
        color = f"C{number}"
        losses = [(start + row["step"], row["loss"]) for row in rows if "loss" in row]
        axes.plot(*zip(*losses, strict=True), color=color, label=f"{run.config().stage}: loss")
        hits = [(start + row["step"], row["accuracy/emotion"]) for row in rows if "accuracy/emotion" in row]
        if hits:
            accuracy.plot(
                *zip(*hits, strict=True), "o--", color=color, label=f"{run.config().stage}: held-out accuracy"
            )
        start += max((int(row["step"]) for row in rows), default=0)
        if number + 1 < len(runs):
            axes.axvline(start, color="0.8", linewidth=1)
    axes.set(xlabel="step", ylabel="loss per supervised token", yscale="log")
    accuracy.set(ylabel="held-out accuracy", ylim=(0, 1.03))
    # matplotlib gives lines without a label, such as the borders between runs, a name that begins with "_".
    lines = [*axes.get_lines(), *accuracy.get_lines()]
    labelled = [line for line in lines if not str(line.get_label()).startswith("_")]
    axes.legend(labelled, [str(line.get_label()) for line in labelled], loc="center right", fontsize=8)
    axes.grid(alpha=0.3)


def draw_confusion(axes: Axes, confusion: np.ndarray, labels: Sequence[str]) -> None:
    """Draw counts (C, C + 1) of reference by answer, shaded by the share of the reference.

    The last column, "other", is left out if it is empty.
    """
    counts = confusion if confusion[:, -1].any() else confusion[:, :-1]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        if counts[row, column]:
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=9)
    labels = [figure_text(label) for label in labels]
    answers = [*labels, "(other)"][: counts.shape[1]]
    axes.set_xticks(range(len(answers)), answers, rotation=40, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="answer", ylabel="label")
