"""A bench from end to end: ask a run every set, or read answers that lie in a folder; open judges; score.

FOLDER/SET.jsonl           answers, one row a clip
FOLDER/replies.jsonl       raw replies of language models that rated or read them
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
from fusion_train.evaluation.evaluate import EVAL_BATCH_SIZE, hidden_of, questions
from fusion_train.evaluation.judging import ModelJudge, extract_labels
from fusion_train.evaluation.prediction_rows import read_predictions, with_references
from fusion_train.evaluation.predictions import Asking, ask
from fusion_train.evaluation.scoring import BenchmarkScores, score_benchmark
from fusion_train.evaluation.text_models import Replies, open_text_model
from fusion_train.evaluation.wording import Answer, wording_of
from fusion_train.metrics.scored import Settings
from fusion_train.metrics.wheels import EmotionWheels
from fusion_train.processes import this_process
from fusion_train.run_context import RunContext

READ_AS_LABELS = ("hit", "open-vocabulary")
"""Metrics whose answers a language model may read as labels, in place of the list parser."""
Rows = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Helpers:
    """What scoring may use besides the answers."""

    wheels: Path | None = None
    """Folder of the emotion wheels; None for the small wheel."""
    judge: str | None = None
    """Language model that rates descriptions; None for lexical overlap."""
    labels_by: str | None = None
    """Language model that reads labels out of free text; None for the list parser."""
    key_file: Path | None = None
    """Holds the key of a server."""


def ask_bench(
    benchmark: Benchmark,
    context: RunContext,
    files: Mapping[str, Path],
    *,
    modalities: Sequence[str] | None = None,
    batch_size: int = EVAL_BATCH_SIZE,
    again: bool = False,
    answer: Answer | None = None,
    say: Callable[[str], None] = print,
) -> Rows:
    """Ask every set that the clip list has clips of; what was answered before is not asked again.

    Args:
        files: the file of each set's answers, by its name.
        answer: how one label is answered, whatever the bench and the configuration say.

    Raises:
        DataError: the clip list has no set of the bench.
        Interrupted: the same call goes on from there.
    """
    rows: Rows = {}
    absent = [name for name, asked in benchmark.sets.items() if not asked.chosen(context.clips)]
    if absent and len(absent) < len(benchmark.sets):
        say(f"not in the clip list: {', '.join(absent)}")
    with StopRequest() as stop:
        for name, asked in benchmark.sets.items():
            clips = asked.chosen(context.clips)
            if not clips:
                continue
            references = asked.references(clips)
            chosen = ClipList(clip for clip in clips if clip.id in references)
            usable = context.reader.usable(chosen, context.config.data.failed_clips)
            task = asked.question
            hidden = hidden_of(context, task, modalities)
            wording = wording_of(context.config, asked, {clip.dataset for clip in usable}, answer)
            here, probe = context, context.tokenizer is None
            if not probe:
                here = replace(context, collator=context.collator.asking(wording.prompts))
            samples = questions(here, list(usable), task, hidden=hidden, vocabulary=asked.vocabulary)
            samples = fitting_samples(samples, here.collator, name, say)
            asking = Asking(
                here,
                samples,
                references,
                files[name],
                "choose" if probe else wording.answer,
                batch_size,
                wording=None if probe else wording.by(),
            )
            with show_progress(name, shown=this_process().is_main_process) as progress:
                rows[name] = ask(asking, again=again, advance=progress, stop=lambda: stop.requested)
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


def read_benchmark(benchmark: Benchmark, folder: Path, clips: ClipList | None) -> Rows:
    """Read SET.jsonl or SET.csv of every set that a folder has; references come from `clips` where given.

    Raises:
        DataError: the folder has no set, or the answers do not fit the clips.
    """
    rows: Rows = {}
    for name, asked in benchmark.sets.items():
        path = next((p for p in (folder / f"{name}.jsonl", folder / f"{name}.csv") if p.is_file()), None)
        if path is not None:
            rows[name] = join_references(read_predictions(path), asked, clips)
    if not rows:
        expected = ", ".join(f"{name}.jsonl" for name in benchmark.sets)
        raise DataError(str(folder), expected="some of " + expected, got="none", next_step="Name a file and --metric.")
    return rows


def join_references(rows: list[dict[str, Any]], asked: BenchmarkSet, clips: ClipList | None) -> list[dict[str, Any]]:
    """Rows with the references of a clip list, where one is given."""
    return rows if clips is None else with_references(rows, asked.references(asked.chosen(clips)), clips)


def score_rows(
    benchmark: Benchmark, rows: Mapping[str, Sequence[dict[str, Any]]], helpers: Helpers, folder: Path
) -> BenchmarkScores:
    """Score answers; what language models reply is kept in `folder`.

    Raises:
        DataError, ModelError, ConfigError: see the functions called.
    """
    wheels = EmotionWheels.load(helpers.wheels) if helpers.wheels else EmotionWheels.small()
    with (
        _replies(helpers.judge, helpers, folder) as judged,
        _replies(helpers.labels_by, helpers, folder, "labels-") as read,
    ):
        settings = Settings(wheels=wheels)
        if judged is not None:
            settings = replace(settings, judge=ModelJudge(judged))
        taken = {}
        for name, answers in rows.items():
            as_labels = read is not None and benchmark.sets[name].chosen_metric in READ_AS_LABELS
            taken[name] = [
                {**row, "prediction": extract_labels(read, row["id"], row["prediction"])} if as_labels else row
                for row in answers
            ]
        return score_benchmark(benchmark, taken, settings)


@contextmanager
def _replies(model: str | None, helpers: Helpers, folder: Path, kind: str = "judge-") -> Iterator[Replies | None]:
    if model is None:
        yield None
        return
    with Replies(open_text_model(model, helpers.key_file), folder / f"{kind}replies.jsonl") as replies:
        yield replies
