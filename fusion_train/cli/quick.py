"""`fusion-train quick`: from a folder of clips to a report, by the ordinary commands one after another."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurecache.clips.splitting import DEFAULT_SHARES, GROUP_KEYS
from featurecache.console import OutputPath, command, json_result, note, print_table, report_error, say
from featurecache.console_project import ProjectOption, project
from fusion_train.cli.predict import encoder_places

if TYPE_CHECKING:
    from fusion_train.quick.request import QuickRun
    from fusion_train.quick.steps import Step


@command()
@click.argument("clips", type=click.Path(path_type=Path))
@click.option("--labels", type=click.Path(path_type=Path), help="Table of file,label and, where known, speaker,split.")
@click.option("--split", default=DEFAULT_SHARES, show_default=True, help="Percents of train, val and test.")
@click.option("--group", type=click.Choice(GROUP_KEYS), help="Clips with the same value stay in one split.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of splits and training.")
@click.option("--task", default="emotion", show_default=True, help="Label task.")
@click.option(
    "--weights",
    cls=ProjectOption,
    project_key="weights",
    fills=False,
    multiple=True,
    metavar="NAME=PATH_OR_ID",
    help="Checkpoint of whisper, hf-audio, hf-image or eva-global; repeatable.  [default: what the machine carries]",
)
@click.option("--model", cls=ProjectOption, project_key="model", default=None, help="Language model to train on a GPU.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto.")
@click.option(
    "--out", type=OutputPath("folder"), default=Path("quick"), show_default=True, help="Folder of the results."
)
@click.option("--yes", is_flag=True, help="Do not ask after the plan.")
def quick(clips: Path, labels: Path | None, out: Path, yes: bool, **options: Any) -> None:
    """Import a folder of clips, extract features, compare fusions, score and export the best, write a report.

    On a GPU with a language model at hand, train that with LoRA instead. Stopped? The same command goes on. Each step
    is an ordinary command, which is shown and kept in OUT/project.yaml.

    \b
    fusion-train quick clips/ --labels labels.csv
    fusion-train quick clips/ --labels labels.csv --group speaker --weights whisper=models/whisper-base
    """
    from fusion_train.quick import steps
    from fusion_train.quick.report import agreement, time_table, write_report
    from fusion_train.quick.request import RECORD, write_project_file

    run = _opened(clips, labels, out, options)
    if run.request.model and not run.has_llm:
        note(f"{run.request.model} is not trained without a GPU: probes are compared")
    if not run.store.exists():
        _do(run, steps.plan_step(run))
        asks = sys.stdin.isatty() and sys.stdout.isatty() and not yes
        if asks and not click.confirm("\nExtract, train and score now?", default=True):
            note("The same command goes on from here.")
            return
    ran = _do(run, steps.extract_step(run), partial(steps.undecided, run))
    for make in (steps.train_step, steps.score_step):
        ran |= _do(run, make(run))
    write_project_file(run)
    if not run.answers.exists():
        write_report(run)  # the scores are there, whatever becomes of the export
    ran |= _do(run, steps.export_step(run))
    ran |= _do(run, steps.predict_step(run), partial(steps.unanswered, run))
    page = write_report(run)
    seconds = time_table(run).only(["part", "seconds"])
    print_table(seconds, "time by part")
    if not ran:
        say("Every step was done before: nothing was extracted, trained or exported again.")
    say(f"exported model: {run.model}; {agreement(run)}")
    say(f"report: {page}; each step as an ordinary command: {run.folder / RECORD}")
    following = steps.next_commands(run)
    json_result(
        {
            "report": str(page),
            "model": str(run.model),
            "record": str(run.folder / RECORD),
            "seconds": seconds.records(),
            "next": following,
        }
    )
    note("Next:")
    for line in following:
        note(f"  {line}")


def _opened(clips: Path, labels: Path | None, out: Path, options: dict[str, Any]) -> QuickRun:
    """Return the quick run of the folder `out`; a new one begins with the clip list.

    Weights are looked for before anything is written, and a list that cannot be trained on does not stay.
    """
    from featurecache.clips.media_files import media_files
    from featurecache.encoders.network import resolve_device
    from fusion_train.quick.encoder_choice import ENCODERS, check_room, choose_encoders
    from fusion_train.quick.request import QuickRequest, QuickRun, check_labels, file_hash, open_record
    from fusion_train.quick.steps import import_step

    project_file = project()
    known = {name for names in ENCODERS.values() for name in names}
    weights = {name: place for name, place in (project_file.weights if project_file else {}).items() if name in known}
    weights |= encoder_places(options.pop("weights"))
    device = resolve_device(options.pop("device")).type
    source, table = str(clips), str(labels) if labels else None
    request = QuickRequest(source, table, file_hash(labels), weights=weights, **options)
    if (before := open_record(out, request)) is not None:
        return before
    files = media_files(clips)
    run = QuickRun(out, request, choose_encoders(files, weights, device), device)
    for choice in run.encoders:
        note(f"{choice.reads}: {choice.encoder} with {choice.weights}, {choice.why}")
    check_room(run.encoders, len(files), out)
    step, usable = import_step(run, overwrite=run.clips.exists()), False
    try:
        _record(run, step, 0.0, done=False)
        seconds = _invoke(step)
        check_labels(run.load_clips(), request.task)
        usable = True
    finally:
        if not usable:
            run.discard()
    _record(run, step, seconds, done=True)
    return run


def _do(run: QuickRun, step: Step, left: Callable[[], int] = lambda: 0) -> bool:
    """Run a step and record its command and seconds; return whether it ran.

    A step that was done before and has its output is only named.

    Args:
        left: returns how many clips the step has left, if it can be stopped between clips.

    Raises:
        Exit: clips are left, or the command failed.
    """
    before = run.steps.get(step.title)
    if before is not None and before.done and step.output.exists() and not left():
        note(f"{step.title}: done before, {step.output}")
        return False
    _record(run, step, 0.0, done=False)
    seconds, num_left = _invoke(step), left()
    _record(run, step, seconds, done=not num_left)
    if num_left:
        report_error(f"{num_left} clips are left. The same command goes on.")
        raise click.exceptions.Exit(1)
    return True


def _record(run: QuickRun, step: Step, seconds: float, *, done: bool) -> None:
    from fusion_train.quick.request import StepRecord

    before = run.steps.get(step.title, StepRecord(step.command))
    run.steps[step.title] = StepRecord(before.command, round(before.seconds + seconds, 1), done)
    run.write()


def _invoke(step: Step) -> float:
    """Run the command of a step in this process; return its seconds.

    Raises:
        Exit: the command ends with another exit code than the accepted ones; it has said why.
    """
    from featurecache.cli import main as fcache

    program, *words = step.words
    group = fcache if program == "fcache" else click.get_current_context().find_root().command
    note(f"\n{step.title}\n$ {step.command}")
    began, code = time.monotonic(), 0
    try:
        with group.make_context(program, words) as context:
            group.invoke(context)
    except click.exceptions.Exit as end:
        code = end.exit_code
    except SystemExit as end:
        code = int(end.code or 0)
    if code not in step.accepted:
        raise click.exceptions.Exit(code)
    return time.monotonic() - began
