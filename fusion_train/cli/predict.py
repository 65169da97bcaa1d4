"""`fusion-train predict` and `fusion-train demo`: ask an exported model about your own clips."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurecache.console import OutputPath, command, note, print_table, report_error, say
from featurecache.outside_text import file_name, json_text
from featurecache.tables import Table
from fusion_train.cli.options import MEDIA_ROOT

if TYPE_CHECKING:
    from fusion_train.predict.opening import OpenedModel
    from fusion_train.predict.pipeline import ClipAnswer, PredictionLimits
    from fusion_train.predict.request import PredictionRequest
    from fusion_train.predict.timing import Timings

MODEL = click.option(
    "--model", "folder", type=click.Path(path_type=Path), required=True, help="Folder written by `fusion-train export`."
)
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
BASE = click.option("--base", help="Base model of an adapter-only folder.  [default: its hub name]")
WEIGHTS = click.option(
    "--weights",
    multiple=True,
    metavar="NAME=PATH_OR_ID",
    help="Encoder of an adapter-only folder: whisper=models/whisper; repeatable.",
)
MAX_SECONDS = click.option(
    "--max-seconds", default=600.0, show_default=True, type=click.FloatRange(min=0.1), help="Longest clip."
)
SHOWN_LABELS = 3
"""Labels per clip in the table, the most probable ones."""


@command()
@MODEL
@click.argument("clips", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="CLIP…")
@click.option("--task", help="emotion, sentiment, reason, think, …  [default: the model's first]")
@click.option("--question", help="Question instead of the task's own instruction.")
@click.option("--choices", help="Answers to choose among, such as yes,no.")
@click.option("--text", help="Transcript of the clips, if no clip list has one.")
@click.option("--split", help="Only this split of a clip list.")
@click.option("--dataset", help="Dataset of training whose labels are meant, for clips whose list names none.")
@MEDIA_ROOT
@click.option("--out", type=OutputPath("file"), help="File of JSON lines; the same command continues it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines instead of a table.")
@click.option("--look", type=OutputPath("folder"), help="Folder for one PNG per clip with the evidence for its answer.")
@click.option("--batch-size", default=8, show_default=True, type=click.IntRange(1))
@click.option(
    "--workers",
    default=0,
    type=click.IntRange(0),
    help="Decoding threads.  [default: one per core; half as many on a CPU]",
)
@click.option(
    "--max-new-tokens", default=200, show_default=True, type=click.IntRange(1), help="Length of a generated answer."
)
@MAX_SECONDS
@BASE
@WEIGHTS
@DEVICE
def predict(folder: Path, clips: tuple[Path, ...], device: str, **options: Any) -> None:
    """Ask an exported model about clips: files, folders or clip lists.

    \b
    fusion-train predict --model my-model clip.mp4
    fusion-train predict --model my-model clips/ --task reason --out answers.jsonl
    fusion-train predict --model my-model clips.jsonl --split test --look pictures/
    """
    from fusion_train.predict.opening import open_model
    from fusion_train.predict.pipeline import PredictionLimits
    from fusion_train.predict.request import collect_clips, make_request
    from fusion_train.predict.timing import Timings

    chosen = collect_clips(clips, **{name: options[name] for name in ("split", "text", "dataset", "media_root")})
    opened = open_model(folder, device, options["base"], encoder_places(options["weights"]))
    choices = [choice.strip() for choice in (options["choices"] or "").split(",") if choice.strip()]
    request = make_request(opened.processor, options["task"], options["question"], choices, options["max_new_tokens"])
    _note_untrained(opened, request)
    limits = PredictionLimits(options["batch_size"], options["workers"], options["max_seconds"])
    timings = Timings()
    answers = _ask(opened, chosen, request, limits, timings, options["out"], options["look"])
    if options["as_json"]:
        from fusion_train.predict.answer_file import common_fields, row

        for answer in answers:
            say(json_text(row(answer, common_fields(opened, request))))
    elif options["out"] is None:
        print_table(_table(answers, request))
    failures = [answer for answer in answers if answer.error is not None]
    for answer in failures:
        report_error(f"error: {answer.error}")
    note(timings.line())
    for place, kind in ((options["out"], "answers"), (options["look"], "pictures")):
        if place is not None:
            note(f"{kind}: {place}")
    raise SystemExit(1 if failures else 0)


@command()
@MODEL
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve on; 0.0.0.0 is every network.")
@click.option("--port", type=click.IntRange(1, 65535), help="[default: the first free one from 7860]")
@click.option("--examples", type=click.Path(path_type=Path), help="Clip list or folder of clips to offer.")
@click.option("--max-seconds", default=60.0, show_default=True, type=click.FloatRange(min=0.1), help="Longest clip.")
@click.option("--max-megabytes", default=100, show_default=True, type=click.IntRange(1), help="Largest upload.")
@BASE
@WEIGHTS
@DEVICE
def demo(
    folder: Path,
    host: str,
    port: int | None,
    examples: Path | None,
    max_seconds: float,
    max_megabytes: int,
    base: str | None,
    weights: tuple[str, ...],
    device: str,
) -> None:
    """Serve a web page that asks an exported model about uploaded clips.

    \b
    fusion-train demo --model my-model
    fusion-train demo --model my-model --examples clips.jsonl --port 8000
    """
    import threading

    from fusion_train.predict.opening import open_model
    from fusion_train.predict.page import PageLimits, serving
    from fusion_train.predict.request import collect_clips

    offered = list(collect_clips([examples])) if examples else []
    opened = open_model(folder, device, base, encoder_places(weights))
    limits = PageLimits(clip_s=max_seconds, megabytes=max_megabytes)
    try:
        with serving(opened, host=host, port=port, limits=limits, examples=offered) as address:
            say(f"{address} shows {opened.name}; Ctrl-C ends it")
            threading.Event().wait()
    except KeyboardInterrupt:
        say("ended; uploads are deleted")


def encoder_places(weights: tuple[str, ...]) -> dict[str, str]:
    """Parse repeated `--weights NAME=PATH_OR_ID`; return name -> path or id."""
    named = dict(text.split("=", 1) for text in weights if "=" in text)
    if len(named) != len(weights):
        raise click.UsageError("--weights: expected NAME=PATH_OR_ID, each name once, such as whisper=models/whisper")
    return named


def _ask(
    opened: OpenedModel,
    clips: Any,
    request: PredictionRequest,
    limits: PredictionLimits,
    timings: Timings,
    out: Path | None,
    look: Path | None,
) -> list[ClipAnswer]:
    """Answer clips, write the answers and draw pictures; return the new answers in the order of the clips."""
    from contextlib import ExitStack
    from dataclasses import replace

    from featurecache.clips.clip_list import ClipList
    from featurecache.interrupt import Interrupted, StopRequest
    from featurecache.terminal import show_progress
    from fusion_train.predict.answer_file import AnswerFile, common_fields
    from fusion_train.predict.pipeline import predict as answer_clips

    answers: list[ClipAnswer] = []
    total = len(clips)
    with ExitStack() as stack:
        file = stack.enter_context(AnswerFile(out, common_fields(opened, request))) if out else None
        done = file.done if file else set()
        clips = ClipList(clip for clip in clips if clip.id not in done)
        already = total - len(clips)
        if already:
            note(f"{already} of {total} clips were answered before")
        stop = stack.enter_context(StopRequest())
        report = stack.enter_context(show_progress("predict", already=already))
        report(already, total)
        for answer in answer_clips(opened, clips, request, limits=limits, timings=timings, look=look is not None):
            written = answer
            if look and answer.evidence is not None:
                from fusion_train.predict.picture import draw_answer

                draw_answer(answer, look / file_name(answer.clip.id, ".png"))
                # Drop the frames: the list of answers would otherwise hold those of every clip.
                answer = replace(answer, evidence=replace(answer.evidence, views={}))
            if file:
                file.write(written)  # after its picture, because a clip with an answer is not asked again
            answers.append(answer)
            report(already + len(answers), total)
            if stop.requested:
                next_step = "run the same command again to go on" if out else "use --out FILE to be able to go on"
                raise Interrupted(f"stopped after {already + len(answers)} of {total} clips; {next_step}.")
    place = {clip_id: number for number, clip_id in enumerate(clips.ids)}
    return sorted(answers, key=lambda answer: place[answer.clip.id])


def _note_untrained(opened: OpenedModel, request: PredictionRequest) -> None:
    if notice := opened.processor.untrained_notice(request.task.name):
        note(f"note: {notice}")


def _table(answers: list[ClipAnswer], request: PredictionRequest) -> Table:
    closed = any(answer.probabilities for answer in answers)
    has_evidence = any(answer.evidence is not None and answer.evidence.without for answer in answers)
    optional = ["probabilities"] * closed + ["drop without"] * has_evidence
    table = Table(["clip", "answer", *optional, "shown"], caption=request.words or request.task.name)
    for answer in answers:
        if answer.error is not None:
            table.add([answer.clip.id, "not answered", *[""] * (len(optional) + 1)])
            continue
        ranked = sorted(answer.probabilities.items(), key=lambda item: -item[1])[:SHOWN_LABELS]
        cells = [answer.clip.id, answer.text or ""]
        if closed:
            cells.append(", ".join(f"{label} {value:.3f}" for label, value in ranked))
        if has_evidence:
            drops = answer.evidence.drops(answer.probabilities, answer.text or "") if answer.evidence else {}
            cells.append(", ".join(f"{modality} {value:+.3f}" for modality, value in drops.items()))
        table.add([*cells, ", ".join(answer.shown)])
    return table
