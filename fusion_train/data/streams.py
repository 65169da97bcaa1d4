"""The samples that a run draws in training; the clips they are drawn from are found once a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from featurecache.clips import load_clips
from featurecache.hashing import file_sha256
from fusion_train.assemble import Workbench
from fusion_train.data.pool import KeptClips, Pool
from fusion_train.data.prompts import encode_answer
from fusion_train.data.samples import AnswerLimits, SampleStream, near_classes


def make_stream(bench: Workbench, say: Callable[[str], None] = print, kept: Path | None = None) -> SampleStream:
    """Samples of the training split, as the configuration draws them.

    Args:
        kept: folder of a pool that is used if it was made from the same.
    """
    data = bench.config.data
    for notice in near_classes(bench.label_sets):
        say(notice)
    pool = Pool.load(kept, _key(bench)) if kept is not None else None
    return SampleStream(
        pool or bench.reader.usable(bench.clips.in_split(data.train_split), data.failed_clips),
        data.tasks,
        bench.label_sets,
        seed=bench.config.seed,
        modalities=bench.reader.modalities,
        mixture=data.mixture,
        on_absent_dataset=data.mixture_absent,
        hide_modality_p=data.hide_modality_p,
        questions_per_clip=data.questions_per_clip,
        limits=AnswerLimits(
            data.max_answer_tokens, data.max_answer_words, lambda text: len(encode_answer(bench.tokenizer, text))
        ),
        say=say,
    )


def keep_pool(stream: SampleStream, bench: Workbench, folder: Path) -> None:
    """Keep the clips that are drawn from for the next start, unless they were kept before."""
    if not isinstance(stream.pool.clips, KeptClips):
        stream.pool.save(folder, _key(bench))


def _key(bench: Workbench) -> dict[str, Any]:
    """What decides which clips can be drawn."""
    data, file = bench.config.data, Path(bench.clips_file)
    if not file.is_file():
        load_clips(file)  # says what is wrong
    beside = [file.parent / name for name in (*data.exclude, *data.corrections)]
    return {
        "data": data.model_dump(mode="json"),
        "files": [file_sha256(path) for path in (file, *beside)],
        "fingerprints": bench.reader.fingerprints,
    }
