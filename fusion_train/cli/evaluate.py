"""`fusion-train eval | score | contrast | rate | agreement`: ask, score and compare answers; ratings by people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import click

from featurecache.console import OutputPath, command, json_result, note, print_table, say
from featurecache.tables import Table
from fusion_train.cli.options import RUN_CLIPS, RUN_STORE

_SCORING = (
    click.option("--wheels", type=click.Path(path_type=Path), help="Folder of the emotion wheels (wheel1..5.xlsx, …)."),
    click.option("--judge", metavar="MODEL", help="Rates descriptions: http://host:port/v1#MODEL, or a local folder."),
    click.option("--labels-by", metavar="MODEL", help="Reads labels out of free text, in place of the list parser."),
    click.option("--key-file", type=click.Path(path_type=Path, exists=True), help="File with the key of a server."),
)


def scoring_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of commands that score answers."""
    for option in reversed(_SCORING):
        command = option(command)
    return command


@command("eval")
@click.option("--run", "folder", type=click.Path(path_type=Path), required=True, help="Run to score.")
@click.option(
    "--bench",
    "bench_name",
    help="mer-unibench, mer-unibench-released, mmeverse, dfew, emer or a file; else --split and --task.",
)
@click.option("--split", default="test", show_default=True, help="Split of the clip list.")
@click.option("--task", default="emotion", show_default=True, help="Task that is asked.")
@click.option("--modalities", help="Show only these, such as audio,video; or none (the token ablation).")
@click.option(
    "--without",
    "taken_out",
    multiple=True,
    metavar="STREAM[:zero]",
    help="Take fusion, image, video or audio out of the model: left out of the prompt, or zeroed. Repeatable.",
)
@click.option(
    "--feature",
    "features",
    multiple=True,
    metavar="MODALITY=NAME",
    help="Read a perturbed feature in place of the one trained on, such as audio=whisper-noise. Repeatable.",
)
@click.option("--config", help="Ask as this configuration does, such as released.  [default: the run's own]")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a setting of prompt or evaluation.")
@click.option("--answer", type=click.Choice(["choose", "generate"]), help="How one label is answered, in every set.")
@click.option("--checkpoint", default="best", show_default=True, help="best, last or a step.")
@RUN_STORE
@RUN_CLIPS
@click.option(
    "--batch-size", type=click.IntRange(1), help="Clips asked at once.  [default: as many as fit a GPU; 8 on a CPU]"
)
@click.option("--again", is_flag=True, help="Delete existing answers first.")
@scoring_options
@click.option("--out", type=OutputPath("name"), help="Predictions file, or folder of a benchmark.")
def evaluate_command(folder: Path, bench_name: str | None, split: str, task: str, **options: Any) -> None:
    """Score a run on held-out clips; every prediction is written as a JSON line, and a stopped command continues.

    \b
    fusion-train eval --run runs/cognition --split test
    fusion-train eval --run runs/cognition --bench mer-unibench --wheels emotion_wheel
    fusion-train eval --run runs/cognition --modalities audio
    fusion-train eval --run runs/released --bench mmeverse --config released
    accelerate launch --multi_gpu --num_processes 8 -m fusion_train.cli eval --run runs/cognition --bench mmeverse
    """
    from fusion_train.evaluation.benchmark_runs import ask_benchmark, score_rows
    from fusion_train.evaluation.benchmarks import Benchmark, BenchmarkSet, load_benchmark
    from fusion_train.evaluation.score_report import write_report
    from fusion_train.evaluation.wording import asking_as
    from fusion_train.processes import this_process
    from fusion_train.run import Run
    from fusion_train.run_context import ablate_streams, load_context

    streams = _streams(options["taken_out"])
    disturbed = dict(_pair(text) for text in options["features"])
    shown = [name.strip() for name in options["modalities"].split(",")] if options["modalities"] else None
    conditions = (
        shown,
        streams,
        disturbed,
        [Path(options["config"]).stem] if options["config"] else [],
        options["answer"],
    )
    if bench_name:
        benchmark = load_benchmark(bench_name)
        out = options["out"] or folder / "eval" / _name(Path(bench_name).stem, *conditions)
        files = {name: out / f"{name}.jsonl" for name in benchmark.sets}
    else:
        benchmark = Benchmark(title=f"{folder}: {task} on {split}", sets={task: BenchmarkSet(split=split, task=task)})
        of_task = task.replace(":", "-")  # some file systems allow no colon in a name
        name = _name(f"predictions-{split}-{of_task}", *conditions)
        files = {task: options["out"] or folder / f"{name}.jsonl"}
        out = files[task].parent
    asking_config = asking_as(Run(folder).config(), options["config"], options["overrides"])
    context = load_context(
        Run(folder), store=options["store"], clips=options["clips"], which=options["checkpoint"], disturbed=disturbed
    )
    context.config = context.config.model_copy(
        update={"prompt": asking_config.prompt, "evaluation": asking_config.evaluation}
    )
    ablate_streams(context, streams)
    if not bench_name:
        context.clips.in_split(split)  # raises an error that lists the splits, if this one does not exist
    is_main = this_process().is_main_process
    rows = ask_benchmark(
        benchmark,
        context,
        files,
        modalities=shown,
        batch_size=options["batch_size"],
        again=options["again"],
        answer=options["answer"],
        say=note if is_main else _ignore,
    )
    if not is_main:
        return
    if bench_name or benchmark.sets[task].chosen_metric is not None:
        scores = score_rows(benchmark, rows, _resources(options), out)
        print_scores(scores)
        if not bench_name:
            _print_baseline(context, scores.sets[task], rows[task])
    if bench_name:
        report = write_report(scores, out, context.clips)
        say(f"report: {report}")
        json_result({"report": str(report)})
    else:
        say(f"predictions: {files[task]}")
    json_result({"predictions": {name: str(file) for name, file in files.items()}})


@command("floor")
@click.option("--run", "folder", type=click.Path(path_type=Path), required=True, help="Run to compare with.")
@click.option("--split", default="test", show_default=True, help="Split of held-out clips.")
@click.option("--task", default="emotion", show_default=True, help="Task with one label, or a number (valence_score).")
@click.option("--checkpoint", default="best", show_default=True, help="best, last or a step.")
@RUN_STORE
@RUN_CLIPS
def floor_command(folder: Path, split: str, task: str, **options: Any) -> None:
    """Compare a run with classifiers of scikit-learn on averages of the tokens that it reads.

    They are fitted on the training split of the run; every prediction is written as a JSON line.

    \b
    fusion-train floor --run runs/probe
    fusion-train floor --run runs/probe --split val --task valence_score
    """
    from featurecache.files.publish import replace_bytes
    from fusion_train.evaluation.append_only import sealed_lines
    from fusion_train.evaluation.evaluate import evaluate
    from fusion_train.evaluation.floor import floor_rows
    from fusion_train.evaluation.floor_report import THE_RUN, floor_json, floor_table, score_floor
    from fusion_train.run import Run
    from fusion_train.run_context import load_context

    context = load_context(Run(folder), store=options["store"], clips=options["clips"], which=options["checkpoint"])
    floors = floor_rows(context, split, task)
    usable = context.reader.usable(context.clips.in_split(split), context.config.data.failed_clips)
    rows = {THE_RUN: evaluate(context, usable, task).predictions, **floors}
    for name, of_method in floors.items():
        path = folder / f"floor-{split}-{task.replace(':', '-')}-{name.replace(' ', '-').lower()}.jsonl"
        replace_bytes(path, sealed_lines(of_method))
    scores = score_floor(rows, task)
    print_table(floor_table(scores), f"{folder}: {task} on {split}")
    json_result(floor_json(scores))
    say(f"predictions: {folder / f'floor-{split}-…jsonl'}")


@command("score")
@click.argument("paths", nargs=-1, required=True, metavar="PATH…", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--bench", "bench_name", help="A shipped benchmark or a file; PATH is a folder of SET.jsonl, or a file with --set."
)
@click.option("--set", "set_name", help="Set of the benchmark that the file answers.")
@click.option(
    "--metric",
    help="hit, open-vocabulary, waf, sentiment-three-way (each also -released), classification, multi-label or"
    " overlap.",
)
@click.option("--main", "main_figure", help="Main figure of the metric.")
@click.option("--task", help="Task that was asked.  [default: as the rows record it]")
@click.option("--split", default="test", show_default=True, help="Split of the clip list, with --clips.")
@click.option("--clips", help="Clip list with the references.  [default: those of the rows]")
@click.option(
    "--selected-from",
    type=click.IntRange(1),
    metavar="N",
    help="The best of N candidates on these clips, such as epochs; PATH… are all candidates, or only the best.",
)
@click.option(
    "--correlation",
    type=click.FloatRange(0, 1),
    metavar="R",
    help="If PATH is only the best of N: assumed correlation of the errors of two candidates.  [default: 0]",
)
@scoring_options
@click.option("--out", type=OutputPath("folder"), help="Folder of the report.  [default: beside PATH]")
def score_command(paths: tuple[Path, ...], bench_name: str | None, set_name: str | None, **options: Any) -> None:
    """Score files of predictions, of any system; each line is like {"id": "a1", "prediction": "happy"}.

    \b
    fusion-train score runs/cognition/predictions-test-emotion.jsonl
    fusion-train score theirs.jsonl --metric hit --clips clips.jsonl --wheels emotion_wheel
    fusion-train score answers/ --bench mer-unibench --clips clips.jsonl --wheels emotion_wheel
    fusion-train score epoch-*.jsonl --selected-from 12 --metric hit --clips clips.jsonl
    """
    from featurecache.clips.clip_list import load_clips
    from fusion_train.evaluation.benchmark_runs import score_rows
    from fusion_train.evaluation.benchmarks import load_benchmark
    from fusion_train.evaluation.comparison import select
    from fusion_train.evaluation.score_report import write_report

    clips = load_clips(options["clips"]) if options["clips"] else None
    benchmark = load_benchmark(bench_name) if bench_name else None
    number = options["selected_from"]
    if benchmark is None or set_name:
        paths = tuple(file for path in paths for file in (_answer_files(path) if number and path.is_dir() else [path]))
    if len(paths) > 1 and number is None:
        raise click.UsageError("several candidates need --selected-from N: the best of them is reported")
    if options["correlation"] is not None and number is None:
        raise click.UsageError("--correlation needs --selected-from N")
    first = paths[0]
    out = options["out"] or (first if first.is_dir() else first.parent / f"{first.stem}-scores")
    candidates = {}
    for path in paths:
        path_benchmark, rows = _answers(path, benchmark, set_name, clips, options)
        candidates[path.stem if len({p.stem for p in paths}) == len(paths) else str(path)] = score_rows(
            path_benchmark, rows, _resources(options), out
        )
    scores = (
        candidates[next(iter(candidates))] if number is None else select(candidates, number, options["correlation"])
    )
    print_scores(scores)
    report = write_report(scores, out, clips)
    say(f"report: {report}")
    json_result({"report": str(report)})


def _answer_files(folder: Path) -> list[Path]:
    """Return the files of predictions in a folder of candidates."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jsonl", ".csv"))
    if not files:
        raise click.UsageError(f"{folder}: expected files of predictions (.jsonl, .csv), got none")
    return files


def _answers(path: Path, benchmark: Any, set_name: str | None, clips: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    """Return the benchmark of one PATH, and its rows by set."""
    from fusion_train.evaluation.benchmark_runs import join_references, read_benchmark
    from fusion_train.evaluation.benchmarks import Benchmark, BenchmarkSet
    from fusion_train.evaluation.prediction_rows import read_predictions

    if path.is_dir():
        if benchmark is None:
            raise click.UsageError("a folder of answers needs --bench, or --selected-from N for one of candidates")
        return benchmark, read_benchmark(benchmark, path, clips)
    answers = read_predictions(path)
    if benchmark is None:
        benchmark_set = BenchmarkSet(
            split=options["split"],
            task=options["task"] or answers[0].get("task") or "emotion",
            metric=options["metric"],
            main=options["main_figure"],
        )
        number = options["selected_from"]
        title = path.name if number is None else f"best of {number} candidates"
        set_name = benchmark_set.task
        benchmark = Benchmark(title=title, sets={set_name: benchmark_set})
    elif set_name not in benchmark.sets:
        raise click.UsageError(f"--set: one of {', '.join(benchmark.sets)}")
    return benchmark, {set_name: join_references(answers, benchmark.sets[set_name], clips)}


@command("contrast")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--bench", "bench_name", help="Benchmark that all of them answer; folders of folds need none.")
@click.option("--clips", help="Clip list with the references.  [default: those of the rows]")
@scoring_options
@click.option("--out", type=OutputPath("folder"), default=Path("contrast"), show_default=True, help="Folder.")
def contrast_command(
    folders: tuple[Path, ...], bench_name: str | None, clips: str | None, out: Path, **options: Any
) -> None:
    """Compare several sets of answers to one benchmark: differences to the first, with intervals on the same clips.

    \b
    fusion-train contrast runs/r/eval/dfew runs/r/eval/dfew-audio runs/r/eval/dfew-without-fusion --bench dfew
    fusion-train contrast runs/probe-folds-speaker runs/conv-folds-speaker
    """
    if all((folder / "folds.json").is_file() for folder in folders):
        from fusion_train.cli.folds import print_comparison

        print_comparison(folders, out)
        return
    if bench_name is None:
        raise click.UsageError("folders of answers need --bench; only folders of folds need none")
    from featurecache.clips.clip_list import load_clips
    from featurecache.files.publish import replace_bytes
    from fusion_train.evaluation.benchmark_runs import read_benchmark, score_rows
    from fusion_train.evaluation.benchmarks import load_benchmark
    from fusion_train.evaluation.comparison import compare_answers, comparison_page

    benchmark = load_benchmark(bench_name)
    clip_list = load_clips(clips) if clips else None
    resources = _resources(options)
    names = {
        folder: folder.name if len({path.name for path in folders}) == len(folders) else str(folder)
        for folder in folders
    }
    scores = {
        names[folder]: score_rows(benchmark, read_benchmark(benchmark, folder, clip_list), resources, folder)
        for folder in folders
    }
    table = compare_answers(scores)
    replace_bytes(out / "contrast.csv", table.csv().encode())
    replace_bytes(out / "contrast.tex", table.latex().encode())
    page = comparison_page(table, f"{benchmark.title}: {len(folders)} sets of answers").write(out / "contrast.html")
    print_table(table, benchmark.title)
    say(f"report: {page}")


def _print_baseline(context: Any, score: Any, rows: Any) -> None:
    """Print what a linear baseline scores that was trained on the clips of a probe."""
    from fusion_train.evaluation.benchmarks import BenchmarkSet
    from fusion_train.evaluation.comparison import difference
    from fusion_train.evaluation.linear_rows import linear_rows
    from fusion_train.evaluation.scoring import score_set
    from fusion_train.metrics.metric_result import MetricSettings

    task = rows[0]["task"]
    answers = linear_rows(context, task, rows)
    if answers is None:
        return
    baseline = score_set(task, BenchmarkSet(task=task), answers, MetricSettings())
    if baseline.scored.main != score.scored.main:
        return
    figures = ", ".join(f"{name} {value * 100:.2f}" for name, value in baseline.scored.figures.items())
    gap = difference(baseline, score, task)
    interval = gap.interval
    bounds = "" if interval is None else f", 95 % interval {interval.low * 100:+.2f} to {interval.high * 100:+.2f}"
    say(f"linear baseline on the same clips, trained on the same ones: {figures}")
    say(f"probe minus baseline: {gap.value * 100:+.2f} points of {score.scored.main}{bounds}")
    json_result({"linear_baseline": dict(baseline.scored.figures)})


def print_scores(scores: Any) -> None:
    """Print the scores of a benchmark: figures of every set, means, and remarks."""
    from fusion_train.evaluation.score_report import (
        as_json,
        asked_lines,
        confusion_table,
        is_selected,
        mean_scale,
        selection_lines,
        selection_table,
        summary_table,
    )

    print_table(summary_table(scores), scores.benchmark.title)
    json_result(as_json(scores))
    for name, mean in scores.means.items():
        missing = f"not computed, without {', '.join(mean.missing)}"
        scale = mean_scale(scores, name)
        corrected = f", corrected {mean.corrected * scale:.2f}" if mean.corrected is not None else ""
        say(f"{name}: {missing if mean.value is None else f'{mean.value * scale:.2f}{corrected}'}")
    if is_selected(scores):
        print_table(selection_table(scores), "corrected for the choice among candidates")
        for line in selection_lines(scores):
            say(line)
    for line in asked_lines(scores):
        say(line)
    for score in scores.sets.values():
        for remark in (*score.notes, *score.scored.notes):
            say(f"{score.name}: {remark}")
        if score.scored.confusion is not None and len(scores.sets) == 1:
            print_table(confusion_table(score.scored), "reference by prediction")


def _resources(options: dict[str, Any]) -> Any:
    from fusion_train.evaluation.benchmark_runs import ScoringResources

    return ScoringResources(options["wheels"], options["judge"], options["labels_by"], options["key_file"])


def _pair(text: str) -> tuple[str, str]:
    """Parse `MODALITY=NAME`."""
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise click.UsageError(f"--feature {text}: expected MODALITY=NAME")
    return key, value


def _streams(texts: tuple[str, ...]) -> dict[str, Literal["zero", "omit"]]:
    """Parse `--without STREAM` and `--without STREAM:zero`; return stream -> how it is removed."""
    streams: dict[str, Literal["zero", "omit"]] = {}
    for text in texts:
        stream, _, mode = text.partition(":")
        if mode not in ("", "omit", "zero"):
            raise click.UsageError(f"--without {stream}:{mode}: expected STREAM or STREAM:zero")
        streams[stream] = "zero" if mode == "zero" else "omit"
    return streams


def _name(
    start: str,
    shown: list[str] | None,
    streams: Mapping[str, str],
    disturbed: dict[str, str],
    config: list[str],
    answer: str | None,
) -> str:
    """Return a file name that states what was hidden, removed or perturbed, and how clips were asked."""
    parts = [start]
    parts += ["+".join(shown)] if shown else []
    parts += [f"without-{name}" + ("-zeroed" if mode == "zero" else "") for name, mode in streams.items()]
    parts += [*disturbed.values(), *config, *([answer] if answer else [])]
    return "-".join(parts)


def _ignore(text: str) -> None:
    """Print nothing: only the main process prints."""


@command()
@click.argument("answers", nargs=-1, required=True, metavar="NAME=FILE…")
@click.option("--out", type=OutputPath("folder"), default=Path("rating"), show_default=True, help="Folder.")
@click.option("--clips", type=click.IntRange(1), default=50, show_default=True, help="Clips on the sheet.")
@click.option(
    "--media", default="", metavar="PREFIX", help="Prefix of ID.mp4 in the address of a video, as seen from the sheet."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the chosen clips and their order.")
def rate(answers: tuple[str, ...], out: Path, clips: int, media: str, seed: int) -> None:
    """Make a blinded rating sheet of several systems' answers: a page that opens from disk.

    \b
    fusion-train rate ours=runs/cognition/eval/emer/reasoning.jsonl theirs=theirs.jsonl --media ../clips/
    """
    from fusion_train.evaluation.prediction_rows import read_predictions
    from fusion_train.evaluation.rating import write_sheet

    named = [text.partition("=") for text in answers]
    wrong = [name + equals + file for name, equals, file in named if not (name and file)]
    if wrong or len({name for name, _, _ in named}) < len(named):
        raise click.UsageError(f"{wrong[0]}: expected NAME=FILE" if wrong else "every NAME once")
    sheet = write_sheet(
        {name: read_predictions(file) for name, _, file in named}, out, clips=clips, seed=seed, media=media
    )
    say(f"for the raters: {sheet}")
    say(f"not for them:   {out / 'key.json'}; then: fusion-train agreement {out} ratings-*.json")


@command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("ratings", nargs=-1, required=True, type=click.Path(path_type=Path))
def agreement(folder: Path, ratings: tuple[Path, ...]) -> None:
    """Import ratings: means by system, and how far the raters agree (Krippendorff's alpha, ordinal).

    \b
    fusion-train agreement rating ratings-ann.json ratings-ben.json
    """
    from fusion_train.evaluation.rating import agreement as import_ratings

    result = import_ratings(folder / "key.json", ratings)
    rows: list[list[str | float | None]] = [
        [system, *(means.get(question) for question in result.alpha)] for system, means in result.means.items()
    ]
    rows.append(["alpha", *(alpha if alpha is None else f"{alpha:.3f}" for alpha in result.alpha.values())])
    table = Table(
        ["system", *result.alpha],
        rows,
        f"{result.num_ratings} ratings by {result.num_raters} raters, 1 to 5",
        emphasised=frozenset({len(rows) - 1}),
    )
    print_table(table)
