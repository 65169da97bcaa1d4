"""The sample stream of a run; its usable clips are determined once per run and saved with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from featurecache.clips.clip_list import Clip
from fusion_train.data.answers import answer_limits
from fusion_train.data.pool import ABOUT, Pool
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


def keep_pool(
    stream: SampleStream,
    folder: Path,
    validation: Sequence[Clip] = (),
    summary: Sequence[str] = (),
    *,
    anew: bool = False,
) -> None:
    """Save the clips of the stream for the next start of the run, unless they are saved already.

    Args:
        held_out: clips of the evaluation split.
        summary: lines about all of them that are said at every start.
        anew: keep these in place of those that are kept there.
    """
    if anew or not (folder / ABOUT).is_file() or Pool.load(folder) is None:
        stream.pool.save(folder, validation, summary)
