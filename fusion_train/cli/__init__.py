"""`fusion-train`: train from a feature store, sweep variants, score runs.

    fusion-train quick clips/                  from a folder of clips to a report, by the commands below
    fusion-train plan --gpu h200               parameters, memory and hours, before anything is loaded
    fusion-train --stage probe                 fusion and a linear head, no language model: a first look in minutes
    fusion-train --stage perception            train (or resume) runs/perception
    fusion-train --stage cognition             from the latest perception run
    fusion-train --stage probe --folds speaker leave one speaker out: a run per speaker, scored together
    fusion-train eval --run runs/cognition     score held-out clips, keep every prediction
    fusion-train sweep pre_fusion              compare variants
    fusion-train search search.yaml            thousands of small heads on averaged features, honestly selected
    fusion-train export --run RUN --out DIR    one model that answers on raw clips
    fusion-train predict --model DIR clip.mp4  ask an exported model
    fusion-train demo --model DIR              the same on a web page
    fusion-train resume runs/cognition         continue a stopped run

Commands parse, call the library, print. torch is imported by the library, not here, so that --help is quick.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from featurecache.console import HELP, CommandGroup, OutputPath, json_result, note, say
from fusion_train.cli.evaluate import agreement, contrast_command, evaluate_command, floor_command, rate, score_command
from fusion_train.cli.export import export
from fusion_train.cli.options import CALLBACK, CLIPS, CONFIG, INIT, RUN_CLIPS, RUN_STORE, SET, STORE, project_model
from fusion_train.cli.plan import plan, zero_image
from fusion_train.cli.predict import demo, predict
from fusion_train.cli.quick import quick
from fusion_train.cli.runs import replay, report, verify_resume_command
from fusion_train.cli.search import search
from fusion_train.cli.sweep import sweep

RUNS = Path("runs")


class TrainerCommands(CommandGroup):
    """All commands of the trainer."""

    extra = "train"


@click.group(
    cls=TrainerCommands,
    invoke_without_command=True,
    context_settings={"max_content_width": 100, "help_option_names": HELP},
)
@click.option("--stage", help="perception | cognition | joint | probe: a file under configs/stages.")
@CONFIG
@STORE
@CLIPS
@INIT
@click.option("--out", type=OutputPath("folder"), help="Folder of the run.  [default: runs/STAGE]")
@click.option(
    "--folds",
    metavar="COLUMN|K",
    help="Cross-validate: a run per speaker, dialogue, session, person, dataset or split, or K runs; scored together.",
)
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Runs of each fold, with --folds.")
@SET
@CALLBACK
@click.version_option(package_name="featurecache")
@click.pass_context
def main(
    ctx: click.Context,
    stage: str | None,
    config: str | None,
    store: str,
    clips: str,
    init: Path | None,
    out: Path | None,
    folds: str | None,
    seeds: int,
    overrides: tuple[str, ...],
    callbacks: tuple[str, ...],
) -> None:
    """Train fusion adapter and LoRA from cached features.

    \b
    fusion-train --stage perception --store features.zarr --clips clips.jsonl
    fusion-train --stage cognition
    fusion-train --stage probe --folds speaker
    """
    # Rows of many lengths fragment GPU memory less with segments that grow. torch reads this when it is imported.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if ctx.invoked_subcommand is not None:
        for parameter in ctx.command.params:
            if ctx.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE:
                raise click.UsageError(f"write {parameter.opts[0]} after {ctx.invoked_subcommand}")
        return
    if stage is None:
        say(ctx.get_help())
        ctx.exit(2)
    from fusion_train.llm.reach import refuse_unreachable
    from fusion_train.presets import load_config, replaced_settings
    from fusion_train.run import Run, latest_finished

    settings = load_config(config, stage, overrides, project_model())
    for line in replaced_settings(config, stage, overrides):
        note(line)
    if folds is not None:
        from fusion_train.cli.folds import cross_validate

        folder = out or RUNS / f"{stage}-folds-{folds}"
        from fusion_train.training.callbacks import load_callbacks

        cross_validate(settings, store, clips, folder, folds, seeds, init, load_callbacks(callbacks))
        return
    if seeds > 1:
        raise click.UsageError("--seeds needs --folds; train one run with --set seed=N")
    run = Run(out or RUNS / stage)
    initial = Run(init) if init else None
    if initial is None and settings.init_stage is not None and not run.exists:
        initial = latest_finished(run.folder.parent, settings.init_stage)
        note(f"starting from {initial.folder}, the latest finished run of stage {settings.init_stage}")
    if not run.finished:
        refuse_unreachable(settings.model.llm)
    from fusion_train.training.callbacks import load_callbacks
    from fusion_train.training.trainer import train

    _print_result(
        run.folder,
        train(
            settings,
            store=store,
            clips=clips,
            run=run,
            initial=initial,
            say=note,
            callbacks=load_callbacks(callbacks),
        ),
    )


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@RUN_STORE
@RUN_CLIPS
@click.option("--clips-changed", is_flag=True, help="Continue although the clip list changed; the run records it.")
@CALLBACK
def resume(run: Path, store: str | None, clips: str | None, clips_changed: bool, callbacks: tuple[str, ...]) -> None:
    """Continue a stopped run; the result equals that of an uninterrupted run to the bit.

    \b
    fusion-train resume runs/cognition
    """
    from fusion_train.llm.reach import refuse_unreachable
    from fusion_train.run import Run, absolute

    stopped = Run(run)
    record = stopped.record()
    if not stopped.finished:
        refuse_unreachable(stopped.config().model.llm)
    from fusion_train.training.callbacks import load_callbacks
    from fusion_train.training.trainer import train

    _print_result(
        run,
        train(
            stopped.config(),
            store=store or absolute(record.store, run),
            clips=clips or absolute(record.clips, run),
            run=stopped,
            say=note,
            clips_changed=clips_changed,
            callbacks=load_callbacks(callbacks),
        ),
    )


@main.command("import-released")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=OutputPath("folder"), required=True, help="Folder of the run.")
@click.option("--stage", default="cognition", show_default=True, help="Stage of the checkpoint.")
@click.option("--config", default="released", show_default=True, help="YAML file or shipped preset.")
@STORE
@CLIPS
@SET
def import_released_command(
    file: Path,
    out: Path,
    stage: str,
    config: str,
    store: str,
    clips: str,
    overrides: tuple[str, ...],
) -> None:
    """Make a run from a checkpoint of the released code or of MiniGPT-v2; no code in its file is run.

    \b
    fusion-train import-released emotion_llama_v2.pth --out runs/released
    """
    from fusion_train.presets import load_config
    from fusion_train.released import import_released
    from fusion_train.run import Run

    settings = load_config(config, stage, overrides)
    import_released(file, settings, store=store, clips=clips, run=Run(out), say=note)
    note(f"score it: fusion-train eval --run {out}; start from it: fusion-train --stage {stage} --init {out}")


COMMANDS = (
    agreement,
    contrast_command,
    demo,
    evaluate_command,
    export,
    floor_command,
    plan,
    predict,
    quick,
    rate,
    replay,
    report,
    score_command,
    search,
    sweep,
    verify_resume_command,
    zero_image,
)
for command in COMMANDS:
    main.add_command(command)


def _print_result(folder: Path, result: dict[str, Any]) -> None:
    from fusion_train.processes import this_process

    if not this_process().is_main_process:
        return
    scores = "".join(f", {name} {value:.4f}" for name, value in result["scores"].items())
    say(f"{folder}: finished at step {result['step']}{scores}")
    json_result({"run": str(folder), "step": result["step"], "scores": dict(result["scores"])})
