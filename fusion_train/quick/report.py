"""The page of a quick run: scores on the test clips, answers, fusions, the exported model, clips, encoders, times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import featurecache
from featurecache.clips.clip_list import ClipList
from fusion_train.evaluation.append_only import read_lines
from fusion_train.evaluation.benchmark_runs import ScoringResources, score_rows
from fusion_train.evaluation.benchmarks import Benchmark, BenchmarkSet
from fusion_train.evaluation.prediction_rows import read_predictions
from fusion_train.evaluation.score_report import overview_table, page_of
from fusion_train.evaluation.scoring import BenchmarkScores
from fusion_train.quick.request import QuickRun
from fusion_train.quick.steps import trained_run
from fusion_train.remote.integrity import PAGE_NAME, read_certificate
from fusion_train.report.tables import Table
from fusion_train.sweeps.report import SPREAD, VERDICT, variant_table
from fusion_train.sweeps.results import read_results


def scores_of(run: QuickRun) -> tuple[BenchmarkScores, list[dict[str, Any]]]:
    """Return the scores on the test clips, as `fusion-train score` computes them, and the answers.

    Raises:
        DataError: there are no predictions.
    """
    task = run.request.task
    sets = {task: BenchmarkSet(split="test", task=task)}
    rows = read_predictions(run.predictions)  # each with its reference
    benchmark = Benchmark(title=f"{Path(run.request.source).name}: {task}", sets=sets)
    return score_rows(benchmark, {task: rows}, ScoringResources(None, None, None, None), run.folder), rows


def write_report(run: QuickRun) -> Path:
    """Write report.html: the scores on the test clips, the fusions, the clips, the encoders, and the time by part.

    Raises:
        DataError: a step has left nothing to read.
    """
    clips, task, trained = run.load_clips(), run.request.task, trained_run(run)
    scores, rows = scores_of(run)
    page = page_of(scores, overview_table(scores), clips)
    page.heading("Test clips")
    unanswered = sorted(
        {clip.id for clip in clips.in_split("test") if task in clip.labels} - {row["id"] for row in rows}
    )
    if unanswered:
        shown = ", ".join(unanswered[:3]) + (", …" if len(unanswered) > 3 else "")
        page.text(f"Without an answer, since no encoder could read them: {len(unanswered)} ({shown}).", "warning")
    page.table(_answers(rows))
    if not run.has_llm:
        page.heading("Fusions compared")
        results = read_results(run.fusions)
        page.table(variant_table(results).only(["variant", results.measure.main, SPREAD, "seeds", "seconds", VERDICT]))
        page.text(
            f"The test clips were scored with {trained.folder.name}. Whole report: {run.fusions}/report.html.", "note"
        )
    if run.answers.exists():
        page.heading("Exported model")
        page.text(f"{run.model}: {agreement(run)}. Its own measurements: {run.model}/{PAGE_NAME}.")
        page.table(_certified(run))
    page.heading("Clips")
    page.table(_classes(clips, task))
    page.heading("Encoders")
    store = featurecache.open_store(str(run.store))
    table = Table(["reads", "encoder", "weights", "why", "tokens", "fingerprint"])
    for choice in run.encoders:
        feature = store[choice.encoder]
        shape = " × ".join(map(str, feature.shape))
        table.add([choice.reads, choice.encoder, choice.weights, choice.why, shape, feature.fingerprint[:12]])
    page.table(table)
    page.heading("Steps")
    page.table(time_table(run))
    return page.write(run.folder / "report.html")


def agreement(run: QuickRun) -> str:
    """Return how many raw test clips the exported model answers as the run does from the store."""
    predicted = {row["id"]: row["prediction"] for row in read_predictions(run.predictions)}
    answers = {row["id"]: row.get("answer") for row in read_lines(run.answers)}
    equal = sum(answers.get(clip_id) == answer for clip_id, answer in predicted.items())
    return f"{equal} of {len(predicted)} raw test clips are answered as by the run"


def _certified(run: QuickRun) -> Table:
    table = Table(["measured on raw clips", "largest", "bound"])
    for figure in read_certificate(run.model)["figures"]:
        table.add([figure["name"], f"{figure['measured']:.2e}", f"{figure['bound']:.2e}"])
    return table


def time_table(run: QuickRun) -> Table:
    """Return the seconds of each step, and its command."""
    table = Table(["part", "seconds", "command"])
    for title, step in run.steps.items():
        table.add([title, step.seconds, step.command])
    table.add(["in all", sum(step.seconds for step in run.steps.values()), ""])
    table.emphasised = frozenset({len(table.rows) - 1})
    return table


def _answers(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the answer to each test clip, wrong ones first."""
    table = Table(["clip", "label", "answer", "probability"])
    for row in sorted(rows, key=lambda row: (row["prediction"] == row.get("reference"), row["id"])):
        probability = (row.get("probabilities") or {}).get(row["prediction"])
        table.add([row["id"], str(row.get("reference")), row["prediction"], probability])
    return table


def _classes(clips: ClipList, task: str) -> Table:
    splits = sorted({clip.split or "" for clip in clips}, key=lambda name: ("train", "val", "test", name).index(name))
    counts = Counter((clip.labels.get(task, "(no label)"), clip.split or "") for clip in clips)
    table = Table([task, *splits])
    for label in sorted(
        {label for label, _ in counts}, key=lambda label: -sum(counts[label, split] for split in splits)
    ):
        table.add([label, *(counts[label, split] for split in splits)])
    return table
