"""Extraction: clips in, committed shards of tokens out.

    clip -> decode, preprocess (threads) -> fixed batch -> forward -> pool -> (K, D) -> shard -> commit record

The work is divided into units (`units`), in which a clip is decoded once for all features. A clip's bytes depend on its
media and the spec alone, on one kind of device and at one batch size: not on its neighbours, the worker count, or a
kill and a resume in between. This module knows no media format and no store format.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from featurecache.clips import ClipList
from featurecache.encoders import Encoder
from featurecache.errors import FingerprintError, MediaError
from featurecache.interrupt import Interrupted
from featurecache.preparation import current_source, prepare_all
from featurecache.store.protocols import FeatureWriter, Status, Store
from featurecache.units import OpenUnit, Summary, Tally, Unit, num_clips, plan_units


def extract(
    store: Store,
    clips: ClipList,
    encoders: Mapping[str, Encoder],
    *,
    stored_dtype: str = "float16",
    rank: tuple[int, int] = (0, 1),
    workers: int = 4,
    max_failures: int | None = None,
    shard_clips: int | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Bring every clip of the list into every feature (`encoders` by feature name) that does not hold it yet.

    `rank` (i, n) does every n-th unit. Any number of runs may go on at once, with ranks or without: a unit that
    another process works on is left to it. `advance` is told clips done and to do;
    `stop` is asked after every clip.

    Raises:
        FingerprintError: a feature was made by another spec, or clips in it from other media.
        MediaError: more than `max_failures` clips failed.
        WriteError: the disk is full or refuses.
        Interrupted: `stop` said so; what is committed stays, and the same call goes on from there.
    """
    began = time.perf_counter()
    sizing = {} if shard_clips is None else {"shard_rows": shard_clips}
    writers = {name: store.writer(name, encoder.spec(stored_dtype), **sizing) for name, encoder in encoders.items()}
    summary = Summary({name: _earlier(name, writer, encoders[name], clips) for name, writer in writers.items()})
    for writer in writers.values():
        writer.plan(clips.ids)
    mine = plan_units(writers, clips)[rank[0] :: rank[1]]
    total = sum(num_clips(unit) for unit in mine)
    in_flight = workers + max(workers, *(encoder.batch_size for encoder in encoders.values()))
    held: list[Unit] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        for number, unit in enumerate(itertools.chain(mine, held)):
            with OpenUnit(unit, writers, encoders, clips, summary) as open_unit:
                if not open_unit.claim():
                    if number < len(mine):
                        held.append(unit)  # tried once more at the end: its holder may have died
                    continue
                for prepared in prepare_all(open_unit.jobs(), pool, in_flight):
                    open_unit.take(prepared.clip.id, prepared.by_feature)
                    summary.num_clips += 1
                    summary.decode_s += prepared.seconds
                    advance(summary.num_clips, total)
                    _stop_at(max_failures, summary)
                    if stop():
                        raise Interrupted("Stopped; finished shards are kept. Run the same command to go on.")
                open_unit.finish()
    summary.left = sum(num_clips(unit) for unit in plan_units(writers, clips))
    summary.wall_s = time.perf_counter() - began
    return summary


def _earlier(name: str, writer: FeatureWriter, encoder: Encoder, clips: ClipList) -> Tally:
    """Count the clips decided before; refuse those whose media have changed since."""
    tally = Tally()
    changed = []
    pending = {clip_id for shard in writer.pending() for clip_id in shard.ids}
    for clip in clips:
        record = writer.record(clip.id)
        if record is None or clip.id in pending:  # a clip to be retried has a record, and is to be done again
            continue
        tally.earlier[record.status] += 1
        if record.status is not Status.FAILED and record.source:
            source = current_source(clip, encoder.view)
            if source and source != record.source:
                changed.append(clip.id)
    if changed:
        raise FingerprintError(
            name,
            expected="the media that its tokens were made from",
            got=f"other bytes, start_s, end_s or peak_frame for {len(changed)} clip{'s' if len(changed) > 1 else ''}",
            next_step=f"`fcache retry --name {name}` extracts them anew; or give the new media new ids.",
            problems=changed,
        )
    return tally


def _stop_at(max_failures: int | None, summary: Summary) -> None:
    failed = sum(tally.failed for tally in summary.by_feature.values())
    if max_failures is not None and failed > max_failures:
        reasons = sum((tally.reasons for tally in summary.by_feature.values()), Counter())
        raise MediaError(
            "extraction",
            expected=f"at most {max_failures} failed clips (--max-failures)",
            got=f"{failed}",
            next_step="Finished shards are kept. Mend the media or raise the limit, then run the same command.",
            problems=[f"{count} × {reason}" for reason, count in reasons.most_common()],
        )


def default_workers() -> int:
    """Return how many threads decode: one a core, at most 16."""
    return min(16, os.cpu_count() or 1)


def parse_rank(text: str) -> tuple[int, int]:
    """Read `I/N`, I from 0 to N − 1.

    Raises:
        ValueError: not of this form.
    """
    own, _, count = text.partition("/")
    rank = (int(own), int(count))
    if not 0 <= rank[0] < rank[1]:
        raise ValueError(f"expected I/N with I from 0 to N - 1, got {text}")
    return rank
