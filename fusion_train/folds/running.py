"""Train every fold as a run of its own and ask it about the clips it was not trained on; a stopped command continues.

    runs/probe-speaker/
        folds.json                     what was asked: column, task, configuration, hashes of the clip list and features
        fold-03/linear.jsonl           answers of the linear baseline, trained on all clips outside the fold
        fold-03/seed-0/                an ordinary run: eval, report, resume and export take it
        fold-03/seed-0/clips.jsonl     its clip list: train, val (scores the run while it trains), test (held out);
                                       media have their paths in the list that was named
        fold-03/seed-0/predictions.jsonl
        predictions-seed-0.jsonl       answers about all clips, each by the run that did not train on it
        predictions-linear.jsonl       the same by the linear baseline
        report.html, scores.json, …    see `report`

Files are published whole; finished parts are not computed again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from featurecache.clips.clip_list import Clip, ClipList, load_clips
from featurecache.clips.corrections import adjust
from featurecache.clips.writing import write_clips
from featurecache.files.lease import sole_writer
from featurecache.files.publish import make_folder, replace_bytes
from featurecache.interrupt import Interrupted
from featurecache.terminal import show_progress
from fusion_train import checkpoint
from fusion_train.config import Config, validate
from fusion_train.data.answers import answer_of
from fusion_train.data.feature_reader import FeatureReader
from fusion_train.data.pool import list_hashes
from fusion_train.documents import read_document, write_document
from fusion_train.errors import ConfigError, DataError
from fusion_train.evaluation.append_only import read_lines, sealed_lines
from fusion_train.evaluation.benchmark_runs import ask_benchmark
from fusion_train.evaluation.benchmarks import Benchmark, BenchmarkSet
from fusion_train.evaluation.linear_rows import BaselineInputs
from fusion_train.folds.checks import refuse_unlearnable
from fusion_train.folds.division import HELD_OUT, INNER, TRAIN, Division, divide, fold_clips
from fusion_train.processes import this_process
from fusion_train.prompts.prompt import Task, find_task
from fusion_train.run import LOCK, Run, relative
from fusion_train.run_context import load_context
from fusion_train.training.callbacks import Callback
from fusion_train.training.trainer import train

ABOUT = "folds.json"
LINEAR = "linear"
LIST, PREDICTIONS = "clips.jsonl", "predictions.jsonl"


@dataclass(frozen=True)
class FoldRequest:
    """What to cross-validate."""

    config: Config
    store: str
    clips: str
    out: Path
    by: str
    """Column of the clip list, or number of folds."""
    num_seeds: int = 1
    """Runs per fold, with the seeds from `config.seed` on; their answers are also averaged."""
    initial: Path | None = None
    """Run that every fold starts from, or a folder of folds: then each fold starts from its own run there."""

    @property
    def seeds(self) -> list[int]:
        return [self.config.seed + number for number in range(self.num_seeds)]

    @property
    def task(self) -> Task:
        """The first configured task with one label a clip.

        Raises:
            ConfigError: there is none.
        """
        tasks = [find_task(name) for name in self.config.data.tasks]
        task = next((task for task in tasks if task.answer == "label"), None)
        if task is None:
            raise ConfigError(
                "data.tasks",
                expected="a task with one label a clip, by which folds are scored",
                got=", ".join(self.config.data.tasks),
                next_step="Set data.tasks=[emotion].",
            )
        return task


def is_folds(folder: Path) -> bool:
    """Whether a folder holds folds."""
    return (folder / ABOUT).is_file()


def run_folder(out: Path, fold: str, seed: int) -> Path:
    """Return the folder of the run of one fold and seed."""
    return out / f"fold-{quote(fold, safe=' ')}" / f"seed-{seed}"


def pooled_file(out: Path, name: str) -> Path:
    """Return the file with the answers of `seed-S` or of the `LINEAR` baseline about all clips."""
    return out / f"predictions-{name}.jsonl"


def run_folds(
    request: FoldRequest,
    *,
    say: Callable[[str], None] = print,
    stop: Callable[[], bool] = lambda: False,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Train and ask every fold, then write the pooled answers; a folder that is finished is left as it is.

    Raises:
        ConfigError, DataError, StoreError: before the first fold trains: unusable settings, clips or features, or a
            folder with other folds.
        Interrupted: the same command continues.
        Others as `training.trainer.train`.
    """
    listed = _clips(request)
    reader = FeatureReader.open(request.store, request.config.features.used)
    division = divide(_readable(listed, request, reader), request.by, request.task, request.config.seed)
    notes = [*division.notes, *refuse_unlearnable(division)]
    inner = request.config.data.eval_split is not None
    lists = {}
    for fold in division.folds:
        for seed in request.seeds:
            lists[fold, seed], of_fold = fold_clips(division, fold, seed, inner=inner)
            notes += of_fold if seed == request.seeds[0] else []
    about = _about(request, division, reader)
    _refuse_other_folds(request.out, about)
    inputs = BaselineInputs.read(reader, division.labels, division.clusters)
    for line in notes:
        say(line)
    leads = this_process().is_main_process
    if leads:
        make_folder(request.out)
    with sole_writer(request.out / LOCK, str(request.out)) if leads else nullcontext():
        if leads:
            write_document(request.out / ABOUT, about)
            _write_baseline(request.out, division, inputs)
        del inputs
        say(
            f"{request.out}: {len(division.folds)} folds by {division.by}, {len(division.clips)} clips, "
            f"{len(request.seeds)} run{'s' if len(request.seeds) > 1 else ''} each"
        )
        for place, ((fold, seed), clips) in enumerate(lists.items()):
            _run_fold(request, fold, seed, clips, say if place == 0 else _say_nothing, stop, callbacks)
            say(f"fold {fold}, seed {seed}: done ({place + 1} of {len(lists)})")
        if leads:
            for seed in request.seeds:
                rows = [
                    row | {"fold": fold}
                    for fold in division.folds
                    for row in read_lines(run_folder(request.out, fold, seed) / PREDICTIONS)
                ]
                _publish(pooled_file(request.out, f"seed-{seed}"), rows)
    this_process().wait_for_everyone()


def _run_fold(
    request: FoldRequest,
    fold: str,
    seed: int,
    clips: Sequence[Clip],
    say: Callable[[str], None],
    stop: Callable[[], bool],
    callbacks: Sequence[Callback],
) -> None:
    """Train and ask the run of one fold and seed, unless both are done."""
    run = Run(run_folder(request.out, fold, seed))
    path = run.folder / LIST
    if this_process().is_main_process and not path.is_file():
        make_folder(run.folder)
        write_clips(clips, path, media_root=Path(request.clips).parent)  # media are not read in training
    this_process().wait_for_everyone()
    held_out = {clip.id for clip in clips if clip.split == HELD_OUT}
    if run.exists and run.finished and _answered(run, held_out):
        return
    config = _fold_config(request, seed)
    try:
        train(
            config,
            store=request.store,
            clips=str(path),
            run=run,
            initial=_initial(request, fold, seed),
            say=say,
            stop=stop,
            callbacks=callbacks,
        )
        context = load_context(run, store=request.store, clips=str(path))
        task = request.task.name
        benchmark = Benchmark(title=f"fold {fold}", sets={task: BenchmarkSet(split=HELD_OUT, task=task)})
        ask_benchmark(benchmark, context, {task: run.folder / PREDICTIONS}, say=_say_nothing)
    except Interrupted as interrupted:
        raise Interrupted(f"{request.out}: stopped in fold {fold}. Go on with the same command.") from interrupted


def _answered(run: Run, held_out: set[str]) -> bool:
    """Whether the best weights of a run have answered all questions about the held-out clips."""
    path = run.folder / PREDICTIONS
    if not path.is_file():
        return False
    folder = checkpoint.choose(run.checkpoints, "best")
    weights = checkpoint.read_state(folder).sha256[checkpoint.best_weights(folder)]
    rows = read_lines(path)
    return {row["id"] for row in rows} == held_out and all(row["by"]["model"] == weights for row in rows)


def _fold_config(request: FoldRequest, seed: int) -> Config:
    """Return the configuration of a run: the clip list of a fold has its splits, and no exclusions or corrections."""
    config = request.config
    zero_image = config.features.zero_image
    if zero_image is not None and not Path(zero_image).is_file():
        zero_image = os.path.relpath(Path(request.clips).parent / zero_image)
    return config.model_copy(
        update={
            "seed": seed,
            "features": config.features.model_copy(update={"zero_image": zero_image}),
            "data": config.data.model_copy(
                update={
                    "train_split": TRAIN,
                    "eval_split": None if config.data.eval_split is None else INNER,
                    "exclude": (),
                    "corrections": (),
                }
            ),
        }
    )


def _initial(request: FoldRequest, fold: str, seed: int) -> Run | None:
    if request.initial is None:
        return None
    if not is_folds(request.initial):
        return Run(request.initial)
    own = run_folder(request.initial, fold, seed)
    first = sorted(own.parent.glob("seed-*/finished.json"))
    return Run(own if own.is_dir() or not first else first[0].parent)


def _clips(request: FoldRequest) -> ClipList:
    data = request.config.data
    return adjust(load_clips(request.clips), Path(request.clips).parent, data.corrections, data.exclude)


def _readable(listed: ClipList, request: FoldRequest, reader: FeatureReader) -> list[Clip]:
    """Return the clips without those that have a label and failed; clips without a label need no features."""
    labelled = ClipList(clip for clip in listed if answer_of(clip, request.task))
    if not len(labelled):
        return list(listed)
    usable = {clip.id for clip in reader.usable(labelled, request.config.data.failed_clips)}
    unusable = {clip.id for clip in labelled} - usable
    return [clip for clip in listed if clip.id not in unusable]


def _about(request: FoldRequest, division: Division, reader: FeatureReader) -> dict[str, Any]:
    initial = request.initial
    return {
        "by": division.by,
        "task": division.task.name,
        "group": division.group,
        "folds": division.folds,
        "seeds": request.seeds,
        "clips": relative(request.clips, request.out),
        "store": relative(request.store, request.out),
        "lists": list_hashes(request.config, request.clips),
        "features": reader.fingerprints,
        "initial": None if initial is None else relative(str(initial), request.out),
        "config": request.config.model_dump(mode="json"),
        "clusters": division.clusters,
    }


def read_about(folder: Path) -> dict[str, Any]:
    """Read what the folds of a folder are.

    Raises:
        DataError: no such file, or a damaged one.
    """
    return read_document(folder / ABOUT, DataError, "the description of folds", "Run fusion-train --folds there again.")


def _refuse_other_folds(out: Path, about: Mapping[str, Any]) -> None:
    """Raise DataError if the folder holds other folds, or something else."""
    if not is_folds(out):
        if (out / "run.json").is_file() or (out / "sweep.json").is_file():
            raise DataError(
                str(out), expected="a new folder, or one of folds", got="another", next_step="Name one: --out."
            )
        return
    there = read_about(out)
    config, config_there = (validate(values["config"], str(out)) for values in (about, there))
    problems = [f"setting {line}" for line in config.differences(config_there)]
    names = {"by": "--folds", "task": "task", "lists": "the clip list", "features": "the features", "initial": "--init"}
    problems += [name for key, name in names.items() if about[key] != there[key]]
    problems += ["the folds of clips"] if about["clusters"] != there["clusters"] else []
    if problems:
        raise DataError(
            str(out),
            expected="no folds, or folds of these clips, features and settings",
            got="others",
            next_step="Choose another folder with --out. Differing (asked != there):",
            problems=problems,
        )


def _write_baseline(out: Path, division: Division, inputs: BaselineInputs) -> None:
    """Write the answers of the linear baseline, fold by fold and pooled, unless they are there."""
    if pooled_file(out, LINEAR).is_file():
        return
    pooled = []
    with show_progress("linear baseline", "folds") as progress:
        for place, fold in enumerate(division.folds):
            progress(place, len(division.folds), "")
            path = run_folder(out, fold, 0).parent / f"{LINEAR}.jsonl"
            if not path.is_file():
                make_folder(path.parent)
                held_out = {clip.id for clip in division.held_out(fold)}
                _publish(path, inputs.answers(held_out, division.task))
            pooled += [row | {"fold": fold} for row in read_lines(path)]
        progress(len(division.folds), len(division.folds), "")
    _publish(pooled_file(out, LINEAR), pooled)


def _publish(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    replace_bytes(path, sealed_lines(sorted(rows, key=lambda row: row["id"])))


def _say_nothing(text: str) -> None:
    """No-op in place of `say` for all runs but the first."""
