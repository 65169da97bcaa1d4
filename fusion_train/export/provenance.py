"""What a run was trained on and how its weights were chosen, for the model card and the certificate.

An exported model offers the configured tasks of which training had samples. The configuration of a stage names every
task that some dataset may answer; the clip list of a run answers few of them. A run that started from another run was
trained on the tasks of that run too. The clips of a released checkpoint (step 0) are unknown, so all its configured
tasks count.
"""

from __future__ import annotations

from contextlib import suppress

from fusion_train import checkpoint
from fusion_train.data.pool import Pool
from fusion_train.data.samples import SampleStream
from fusion_train.errors import CheckpointError
from fusion_train.prompts.prompt import find_task
from fusion_train.run import Run, absolute
from fusion_train.run_context import RunContext
from fusion_train.training.sample_stream import make_stream


def trained_tasks(run: Run, context: RunContext) -> tuple[str, ...]:
    """Return the configured tasks of which the run, or a run that it started from, had samples; of a probe, those for
    which it has classes.

    Runs that it started from are skipped if they are missing or damaged.

    Raises:
        CheckpointError: the pool of the run itself is damaged.
    """
    if context.config.model.llm is None:
        keys = {key for sets in context.label_sets.values() for key, labels in sets.items() if labels}
        return tuple(name for name in context.config.data.tasks if find_task(name).closed_key in keys)
    sampled = _sampled_tasks(run, context)
    if sampled is None:  # earlier releases wrote no pool; draw from the clip list instead
        sampled = set(make_stream(context, _ignore_notice).sampled_tasks())
    with suppress(CheckpointError):
        while (initial := run.record().initial) is not None:
            run = Run(absolute(initial["run"], run.folder))
            sampled |= _sampled_tasks(run, context) or set()
    return tuple(name for name in context.config.data.tasks if name in sampled)


def _sampled_tasks(run: Run, context: RunContext) -> set[str] | None:
    """Return the sampled tasks by the pool of a run; None without a pool. A probe trains no language model: empty."""
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
        say=_ignore_notice,
    )
    return set(stream.sampled_tasks())


def _ignore_notice(line: str) -> None:
    """Notices about the clips were printed when the run began."""


def weights_chosen(run: Run, which: str) -> str:
    """Describe in one phrase how the weights were chosen, and on which clips.

    Args:
        which: checkpoint: `best`, `last` or a step.
    """
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
