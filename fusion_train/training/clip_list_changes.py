"""Compare the clip list of a resumed run with the list that the run began with, clip by clip where they differ.

A run records the sha256 of every file that decides its training and validation clips: the clip list, exclusions,
corrections, the tokens of an all-zero image. Where one of them changed, the clips saved with the run are compared with
the clips that it would use now. Another list is refused unless --clips-changed accepts it; the run then records it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fusion_train import checkpoint
from fusion_train.config import Config
from fusion_train.data.halves import split_halves
from fusion_train.data.pool import ABOUT, CLIP_LIST, CLIPS, HELD_OUT, Pool, kept_rows, list_hashes, rows_of
from fusion_train.documents import read_document
from fusion_train.errors import CheckpointError, ListChangedError
from fusion_train.run import Run, RunRecord
from fusion_train.run_context import RunContext
from fusion_train.training.sample_stream import make_stream


def check_lists(
    run: Run, known: RunRecord, context: RunContext, *, accept: bool = False, say: Callable[[str], None] = print
) -> RunRecord | None:
    """Compare the lists of a run that goes on with those it began with.

    Args:
        accept: go on with other clips.

    Returns:
        The record to keep, with the change in it, where other clips are accepted; else None.

    Raises:
        ListChangedError: what this run trains on or is scored by changed; every clip that differs is named.
    """
    now = list_hashes(context.config, context.clips_file)
    before = known.lists or _of_earlier_release(run, context.config)
    names = [name for name, digest in before.items() if now.get(name) != digest]
    if not names:
        return None
    changed = ", ".join(context.clips_file if name == CLIP_LIST else name for name in names)
    differing = differing_clips(run, known, context)
    if not differing:
        say(f"{changed}: changed since {run.folder} began, but not in the clips that it trains on and is scored by")
        return None
    if not accept:
        raise ListChangedError(
            changed,
            expected=f"the clips that {run.folder} began with",
            got=_counted(differing),
            next_step=f"Take the file from a copy, start another run with --out, or accept it: fusion-train resume "
            f"{run.folder} --clips-changed, for a trial the sweep's command with --clips-changed.",
            problems=differing,
        )
    folders = checkpoint.published(run.checkpoints)
    step = checkpoint.read_state(folders[-1]).step if folders else 0
    say(f"{changed}: {_counted(differing)} to what {run.folder} began with; accepted from step {step} on")
    change = {"step": step, "before": dict(before), "differences": len(differing)}
    halves = known.halves and split_halves(context.clips.in_split(context.config.data.eval_split or ""), known.halves)
    return replace(known, lists=now, pool_sha256=None, list_changes=[*known.list_changes, change], halves=halves)


def _of_earlier_release(run: Run, config: Config) -> dict[str, str]:
    """Hashes that an earlier release wrote into the pool of a run; empty without them."""
    if not (run.pool / ABOUT).is_file():
        return {}
    files = read_document(run.pool / ABOUT, CheckpointError, "the pool of a run").get("key", {}).get("files", [])
    return dict(zip((CLIP_LIST, *config.data.exclude, *config.data.corrections), files, strict=False))


def _counted(differing: Sequence[str]) -> str:
    return f"{len(differing)} difference" + ("s" if len(differing) > 1 else "")


def differing_clips(run: Run, known: RunRecord, context: RunContext) -> list[str]:
    """One line per clip that is trained on or scored differently than when the run began."""
    data = context.config.data
    pool = Pool.load(run.pool)
    if pool is None or pool.sha256 != known.pool_sha256:
        return [f"{data.train_split}: cannot be compared clip by clip, since the run kept no clips"]
    drawn = make_stream(context, lambda text: None).pool.clips
    lines = _differences(data.train_split, kept_rows(run.pool, CLIPS), rows_of(drawn))
    if data.eval_split is not None:
        scored = rows_of(context.clips.in_split(data.eval_split))
        lines += _differences(data.eval_split, kept_rows(run.pool, HELD_OUT), scored)
    return lines


def _differences(split: str, before: Sequence[dict[str, Any]], after: Iterable[dict[str, Any]]) -> list[str]:
    old, new = ({row["id"]: row for row in rows} for rows in (before, after))
    lines = [f"{split}: {clip_id} is gone" for clip_id in old if clip_id not in new]
    lines += [f"{split}: {clip_id} is new" for clip_id in new if clip_id not in old]
    for clip_id in old.keys() & new.keys():
        was, now = _flat(old[clip_id]), _flat(new[clip_id])
        lines += [
            f"{split}: {clip_id}: {key} is {now.get(key)!r}, was {was.get(key)!r}"
            for key in sorted(was.keys() | now.keys())
            if was.get(key) != now.get(key)
        ]
    if not lines and list(old) != list(new):
        lines.append(f"{split}: the clips stand in another order")
    return sorted(lines)


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            flat[key] = value
    return flat
