"""`fusion-train report | verify-resume | replay`: curves of a run, and checks of resuming and of a diverged step."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from featurecache.console import OutputPath, command, note, report_error, say
from fusion_train.cli.options import CLIPS, CONFIG, RUN_CLIPS, RUN_STORE, SET, STORE, project_model


@command("verify-resume")
@click.option("--stage", default="perception", show_default=True, help="Stage to train.")
@CONFIG
@STORE
@CLIPS
@SET
@click.option("--steps", default=14, show_default=True, type=click.IntRange(2), help="Steps to train.")
@click.option("--kills", default=2, show_default=True, type=click.IntRange(1), help="How often to kill.")
@click.option("--seed", default=0, show_default=True, help="Seed of the moments of the kills.")
def verify_resume_command(
    stage: str,
    config: str | None,
    store: str,
    clips: str,
    overrides: tuple[str, ...],
    steps: int,
    kills: int,
    seed: int,
) -> None:
    """Train, kill and resume a run; compare every trained tensor with an uninterrupted run.

    \b
    fusion-train verify-resume --stage perception --steps 14 --kills 2
    """
    from fusion_train.presets import load_config
    from fusion_train.training.verify_resume import verify_resume

    settings = load_config(config, stage, overrides, project_model())
    with tempfile.TemporaryDirectory(prefix="verify-resume-") as folder:
        comparison = verify_resume(
            settings,
            store=store,
            clips=clips,
            folder=Path(folder),
            steps=steps,
            kills=kills,
            seed=seed,
            say=note,
        )
    for line in comparison.differing[:20]:
        report_error(f"differs: {line}")
    say(
        f"{comparison.tensors} tensors after {steps} steps and {len(comparison.kills)} kills: "
        + (f"{len(comparison.differing)} differ" if comparison.differing else "all equal to the bit")
    )
    raise SystemExit(1 if comparison.differing else 0)


@command()
@click.argument("run", type=click.Path(path_type=Path))
@RUN_STORE
@RUN_CLIPS
def replay(run: Path, store: str | None, clips: str | None) -> None:
    """Compute the samples of a diverged step one by one.

    \b
    fusion-train replay runs/perception
    """
    from fusion_train.run import Run
    from fusion_train.training.non_finite_steps import replay as replay_step

    step, samples = replay_step(Run(run), store=store, clips=clips)
    say(f"step {step}, each sample by itself and without dropout:")
    for sample in samples:
        say(
            f"  {sample.sample.clip.id:24} {sample.sample.task.name:12} loss {sample.loss:10.4g}  "
            f"gradient {sample.gradient_norm:10.4g}"
        )
    not_finite = [sample.sample.clip.id for sample in samples if not sample.finite]
    if not not_finite:
        say("all are finite by themselves: lower optim.lr, or clip with optim.max_grad_norm")
    elif len(not_finite) == len(samples):
        say("none is finite: the weights are at fault, not a clip; lower optim.lr or set optim.max_grad_norm")
    else:
        say(f"not finite by themselves: {', '.join(not_finite)}; look at their stored features: fcache show ID")


@command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=OutputPath("file"), help="The page.  [default: report.html in the run's folder]")
@click.option(
    "--clips",
    type=click.Path(path_type=Path),
    help="Clip list whose media are shown where an answer is wrong.  [default: that of the run, if it is there]",
)
def report(run: Path, out: Path | None, clips: Path | None) -> None:
    """Write a run's scores, wrong clips and curves as one HTML page that opens from disk, and its numbers as CSV.

    Of folds: scores per fold and pooled, beside a linear baseline. Of a sweep: tables, differences with intervals,
    curves and costs, and the same as CSV, LaTeX and JSON.

    \b
    fusion-train report runs/perception
    fusion-train report sweeps/pre_fusion
    fusion-train report runs/probe-folds-speaker
    """
    if (run / "folds.json").is_file():
        from fusion_train.cli.folds import print_report as print_folds

        print_folds(run)
        return
    if (run / "sweep.json").is_file():
        from fusion_train.cli.sweep import print_report
        from fusion_train.sweeps.results import read_results

        print_report(read_results(run), out)
        return
    from featurecache.clips.clip_list import load_clips
    from fusion_train.run import Run, absolute
    from fusion_train.training.run_report import damage, write_report

    if clips is None and (recorded := Path(absolute(Run(run).record().clips, run))).is_file():
        clips = recorded
    page, numbers = write_report(Run(run), out, load_clips(clips) if clips else None)
    if damaged := damage(Run(run)):
        note(f"note: {damaged}")
    say(f"{page}, {numbers}")
