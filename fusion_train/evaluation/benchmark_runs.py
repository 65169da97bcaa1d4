"""Run a benchmark end to end: ask a run every set, or read answers from a folder; open language models; score.

FOLDER/SET.jsonl             answers, one row per clip
FOLDER/judge-replies.jsonl   raw replies of the language model that rated descriptions
FOLDER/labels-replies.jsonl  raw replies of the language model that read labels out of free text
FOLDER/scores.json, report.html, scores.csv, scores.tex
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featurecache.clips.clip_list import ClipList
from featurecache.interrupt import StopRequest
from featurecache.terminal import show_progress
from fusion_train.data.too_long import fitting_samples
from fusion_train.errors import DataError
from fusion_train.evaluation.benchmarks import Benchmark, BenchmarkSet
from fusion_train.evaluation.evaluate import hidden_modalities, questions
from fusion_train.evaluation.prediction_rows import read_predictions, with_references
from fusion_train.evaluation.predictions import QuestionSet, ask
from fusion_train.evaluation.scoring import BenchmarkScores, score_benchmark
from fusion_train.evaluation.text_models import ModelJudge, Replies, extract_labels, open_text_model
from fusion_train.evaluation.wording import AnswerMode, wording_of
from fusion_train.metrics.metric_result import MetricSettings
from fusion_train.metrics.wheels import EmotionWheels
from fusion_train.processes import this_process
from fusion_train.run_context import RunContext

READ_AS_LABELS = ("hit", "open-vocabulary")
"""Metrics for which a language model may read labels out of the answers, instead of the list parser."""
SetRows = dict[str, list[dict[str, Any]]]
"""Set name -> its answer rows."""


@dataclass(frozen=True)
class ScoringResources:
    """Files and language models that scoring uses besides the answers."""

    wheels: Path | None = None
    """Folder of the emotion wheels; None uses the small wheel of this project."""
    judge: str | None = None
    """Language model that rates descriptions; None uses lexical overlap."""
    labels_by: str | None = None
    """Language model that reads labels out of free text; None uses the list parser."""
    key_file: Path | None = None
    """File with the API key of a server."""


def ask_benchmark(
    benchmark: Benchmark,
    context: RunContext,
    files: Mapping[str, Path],
    *,
    modalities: Sequence[str] | None = None,
    batch_size: int | None = None,
    again: bool = False,
    answer: AnswerMode | None = None,
    say: Callable[[str], None] = print,
) -> SetRows:
    """Ask every set of which the clip list has clips; clips that were answered before are not asked again.

    Args:
        files: set name -> file of its answers.
        modalities: as of `evaluate.hidden_modalities`.
        batch_size: as of `evaluate.evaluate`.
        again: discard existing answers.
        answer: how one label is answered; overrides the benchmark and the configuration.

    Raises:
        DataError: the clip list has no set of the benchmark.
        Interrupted: the user stopped it; the same call continues.
    """
    rows: SetRows = {}
    absent = [name for name, benchmark_set in benchmark.sets.items() if not benchmark_set.chosen(context.clips)]
    if absent and len(absent) < len(benchmark.sets):
        say(f"not in the clip list: {', '.join(absent)}")
    with StopRequest() as stop:
        for name, benchmark_set in benchmark.sets.items():
            clips = benchmark_set.chosen(context.clips)
            if not clips:
                continue
            references = benchmark_set.references(clips)
            with_reference = ClipList(clip for clip in clips if clip.id in references)
            usable = context.reader.usable(with_reference, context.config.data.failed_clips)
            task = benchmark_set.question
            hidden = hidden_modalities(context, task, modalities)
            datasets = {benchmark_set.as_dataset or clip.dataset for clip in usable}
            wording = wording_of(context.config, benchmark_set, datasets, answer)
            # A probe has no prompt; a language model is asked in the wording of this set.
            is_probe = context.tokenizer is None
            set_context = context
            if not is_probe:
                set_context = replace(context, collator=context.collator.with_prompts(wording.prompts))
            asked = [replace(clip, dataset=benchmark_set.as_dataset or clip.dataset) for clip in usable]
            samples = questions(set_context, asked, task, hidden=hidden, vocabulary=benchmark_set.vocabulary)
            samples = fitting_samples(samples, set_context.collator, name, say)
            question_set = QuestionSet(
                set_context,
                samples,
                references,
                files[name],
                "choose" if is_probe else wording.answer,
                batch_size,
                wording=None if is_probe else wording.as_json(),
            )
            with show_progress(name, shown=this_process().is_main_process) as progress:
                rows[name] = ask(question_set, again=again, advance=progress, stop=lambda: stop.requested)
            unasked = len(clips) - len(usable)
            say(f"{name}: {len(samples)} clips" + (f", {unasked} without a reference or features" if unasked else ""))
    if not rows:
        raise DataError(
            benchmark.title,
            expected="clips of one of its sets",
            got="none in the clip list",
            next_step="Import a set: fcache import NAME SRC.",
        )
    return rows


def read_benchmark(benchmark: Benchmark, folder: Path, clips: ClipList | None) -> SetRows:
    """Read SET.jsonl or SET.csv of every set that a folder has; references come from `clips`, or else from the rows.

    Raises:
        DataError: the folder has no set, or the answers do not fit the clips.
    """
    rows: SetRows = {}
    for name, benchmark_set in benchmark.sets.items():
        path = next((p for p in (folder / f"{name}.jsonl", folder / f"{name}.csv") if p.is_file()), None)
        if path is not None:
            rows[name] = join_references(read_predictions(path), benchmark_set, clips)
    if not rows:
        expected = ", ".join(f"{name}.jsonl" for name in benchmark.sets)
        raise DataError(str(folder), expected="some of " + expected, got="none", next_step="Name a file and --metric.")
    return rows


def join_references(
    rows: list[dict[str, Any]], benchmark_set: BenchmarkSet, clips: ClipList | None
) -> list[dict[str, Any]]:
    """Return rows with the references of a clip list; without a clip list, the rows as they are."""
    if clips is None:
        return rows
    return with_references(rows, benchmark_set.references(benchmark_set.chosen(clips)), clips)


def score_rows(
    benchmark: Benchmark, rows: Mapping[str, Sequence[dict[str, Any]]], resources: ScoringResources, folder: Path
) -> BenchmarkScores:
    """Score answers; the replies of language models are kept in `folder`.

    Raises:
        DataError, ModelError, ConfigError: see the functions called.
    """
    wheels = EmotionWheels.load(resources.wheels) if resources.wheels else EmotionWheels.small()
    with (
        _open_replies(resources.judge, resources, folder / "judge-replies.jsonl") as judge_replies,
        _open_replies(resources.labels_by, resources, folder / "labels-replies.jsonl") as label_replies,
    ):
        settings = MetricSettings(wheels=wheels)
        if judge_replies is not None:
            settings = replace(settings, judge=ModelJudge(judge_replies))
        scored_rows: dict[str, Sequence[dict[str, Any]]] = dict(rows)
        if label_replies is not None:
            for name, answers in rows.items():
                if benchmark.sets[name].chosen_metric in READ_AS_LABELS:
                    scored_rows[name] = [
                        {**row, "prediction": extract_labels(label_replies, row["id"], row["prediction"])}
                        for row in answers
                    ]
        return score_benchmark(benchmark, scored_rows, settings)


@contextmanager
def _open_replies(model: str | None, resources: ScoringResources, path: Path) -> Iterator[Replies | None]:
    """Open a language model whose replies are kept in `path`; give None if no model is named."""
    if model is None:
        yield None
        return
    with Replies(open_text_model(model, resources.key_file), path) as replies:
        yield replies
