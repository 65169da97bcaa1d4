"""The sample stream of a run; its usable clips are determined once per run and saved with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fusion_train.data.answers import answer_limits
from fusion_train.data.pool import Pool
from fusion_train.data.samples import SampleStream, near_classes
from fusion_train.data.too_long import fitting_clips
from fusion_train.run_context import RunContext


def make_stream(context: RunContext, say: Callable[[str], None] = print, kept: Path | None = None) -> SampleStream:
    """Samples of the training split, as the configuration draws them.

    Args:
        kept: folder of a pool that is used if it is there.

    Raises:
        CheckpointError: a damaged pool.
    """
    data = context.config.data
    for notice in near_classes(context.label_sets):
        say(notice)
    pool = Pool.load(kept) if kept is not None else None
    limits = answer_limits(data, context.tokenizer)
    if pool is None:
        usable = context.reader.usable(context.clips.in_split(data.train_split), data.failed_clips)
        usable = fitting_clips(
            usable, data.tasks, context.collator, context.label_sets, limits, split=data.train_split, say=say
        )
    return SampleStream.for_training(
        context.config,
        pool or usable,
        context.label_sets,
        tokenizer=context.tokenizer,
        modalities=context.reader.modalities,
        say=say,
    )
