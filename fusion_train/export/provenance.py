"""Which tasks an exported model offers: those of the configuration that training had samples of.

A stage's configuration names every task that some dataset may answer; the clip list of a run answers few of them. A run
that started from another one was trained on the tasks of that one too. Of a released checkpoint (step 0) nobody knows
the clips, so its configuration is believed.
"""

from __future__ import annotations

from contextlib import suppress

from fusion_train import checkpoint
from fusion_train.data.pool import Pool
from fusion_train.data.samples import SampleStream
from fusion_train.errors import CheckpointError
from fusion_train.run import Run, absolute
from fusion_train.run_context import RunContext
from fusion_train.training.sample_stream import make_stream


def trained_tasks(run: Run, context: RunContext) -> tuple[str, ...]:
    """Names of the configured tasks that the run, or a run that it started from, had samples of.

    Runs that it started from count where they are still there and whole.

    Raises:
        CheckpointError: a damaged pool of the run itself.
    """
    sampled = _sampled(run, context)
    if sampled is None:  # a run of a release that kept no pool
        sampled = set(make_stream(context, _say_nothing).sampled_tasks())
    with suppress(CheckpointError):
        while (initial := run.record().initial) is not None:
            run = Run(absolute(initial["run"], run.folder))
            sampled |= _sampled(run, context) or set()
    return tuple(name for name in context.config.data.tasks if name in sampled)


def _sampled(run: Run, context: RunContext) -> set[str] | None:
    """Tasks of a run by the clips that it kept; None where it kept none. A probe teaches the language model nothing."""
    config, pool = run.config(), Pool.load(run.pool)
    if config.model.llm is None:
        return set()
    if pool is None:
        steps = [checkpoint.read_state(folder).step for folder in checkpoint.published(run.checkpoints)]
        return set(config.data.tasks) if steps == [0] else None
    stream = SampleStream.for_training(
        config,
        pool,
        context.label_sets,
        tokenizer=context.tokenizer,
        modalities=tuple(config.features.used),
        say=_say_nothing,
    )
    return set(stream.sampled_tasks())


def _say_nothing(line: str) -> None:
    """Notices about the clips were said when the run began."""


def weights_chosen(run: Run, which: str) -> str:
    """One phrase for `best`, `last` or a step."""
    if which == "last":
        return "the last ones, which no score chose"
    if which != "best":
        return "those of a step that was named"
    split = run.config().data.eval_split
    scored = [row for row in run.metric_rows() if any(name.startswith(("accuracy/", "eval_loss")) for name in row)]
    if split is None or not scored:
        return "the last ones, since none were scored"
    figure = "mean accuracy" if any(name.startswith("accuracy/") for name in scored[0]) else "loss"
    if len(scored) == 1:
        return f"the only ones scored, by {figure} on the split {split}"
    return f"the best of {len(scored)} scorings by {figure} on the split {split}, where scores are therefore too high"
