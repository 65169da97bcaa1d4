"""Extraction: clips in, committed shards of tokens out.

    clip -> decode, preprocess (threads) -> fixed batch -> forward -> pool -> (K, D) -> shard -> commit record
            `prepare`                       `work_units`   `pipeline`: one thread per device, one that writes

All of it overlaps, also across units; queues are bounded, so memory does not grow with the list.
The work is divided into `work_units`, in which a clip is decoded once for all features. A clip's bytes depend on its
media and the spec alone, on one kind of device and at one batch size: not on its neighbours, the worker count, or a
kill and a resume in between. This module knows no media format and no store format.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from featurecache.clips.clip_list import ClipList
from featurecache.encoders import Encoder
from featurecache.errors import FeatureCacheError, MediaError, WriteError
from featurecache.extract.first_failures import FIRST_CLIPS, FirstFailures
from featurecache.extract.open_work_units import OpenUnits
from featurecache.extract.pipeline import BATCHES_WAITING, DevicePipeline, forward_key
from featurecache.extract.prepare import CLIP_LIMIT_S, PreparedClip, prepare_all
from featurecache.extract.prior_records import count_decided, refuse_changed
from featurecache.extract.stats import Summary
from featurecache.extract.work_units import OpenUnit, num_clips, plan_units
from featurecache.interrupt import Interrupted
from featurecache.machine import usable_cores
from featurecache.media.crash_guard import CrashGuard, notes_folder
from featurecache.spec import STORED_BYTES
from featurecache.store.layout import default_shard_rows
from featurecache.store.protocols import FeatureWriter, Store


def extract(
    store: Store,
    clips: ClipList,
    encoders: Mapping[str, Encoder],
    *,
    stored_dtype: str = "float16",
    rank: tuple[int, int] = (0, 1),
    take: Callable[[int], Iterable[int]] | None = None,
    workers: int = 4,
    max_failures: int | None = None,
    shard_clips: int | None = None,
    replicas: Sequence[Mapping[str, Encoder]] = (),
    clip_limit_s: float | None = CLIP_LIMIT_S,
    first_clips: int | None = FIRST_CLIPS,
    guard: CrashGuard | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Bring every clip of the list into every feature (`encoders` by feature name) that does not hold it yet.

    `rank` (i, n) does every n-th unit; or `take`, told how many units there are, gives the numbers of those to do, one
    by one as this run gets to them. Any number of runs may go on at once, with ranks or without: a unit that another
    process works on is left to it. `replicas` are the same encoders on further devices, which share the
    batches. A clip that takes longer than `clip_limit_s` to decode fails. `advance` is told clips done and to do, first
    of none done; `stop` is asked after every clip. Memory holds at most `Summary.max_clips_held` clips' inputs, and one
    clip's frames a worker. However a run ends, the clips that it has finished are committed.
    A clip that crashes this process in its decoder fails in the next one, which finds it named in the store's folder or
    where `guard` keeps its notes.

    Raises:
        FingerprintError: a feature was made by another spec, or clips in it from other media.
        MediaError: more than `max_failures` clips failed; or, without `max_failures`, the first `first_clips` of a
            feature all failed alike, and none of them is recorded.
        WriteError: the disk is full or refuses.
        Interrupted: `stop` said so; the same call goes on from there.
        Exception: whatever is raised that no clip's media are to blame for, by an encoder or by this program.
    """
    began = time.perf_counter()
    sharing = {name: forward_key(encoder) for name, encoder in encoders.items()}
    writers = open_writers(store, encoders, stored_dtype, shard_clips)
    for writer in writers.values():
        writer.plan(clips.ids)
    units = plan_units(writers, clips)
    mine = units[rank[0] :: rank[1]] if take is None else units
    summary = Summary({name: count_decided(name, writers[name], mine, clips) for name in writers})
    if take is None:
        refuse_changed(writers, encoders, mine, clips)
    chosen = mine if take is None else (units[number] for number in take(len(units)))
    total = sum(num_clips(unit) for unit in mine)
    in_flight = workers + max(workers, *(encoder.batch_size for encoder in encoders.values()))
    summary.workers, summary.lanes, summary.writers = workers, 1 + len(replicas), 1
    summary.max_clips_held = in_flight + _clips_behind(encoders, sharing, summary.lanes)
    first = FirstFailures(first_clips if max_failures is None else None)
    work = OpenUnits(chosen, lambda unit: OpenUnit(unit, writers, encoders, clips, summary, sharing, first))
    notes = [writer.work_folder for writer in writers.values()]
    watch = guard or CrashGuard([*notes, notes_folder(store.location)], workers)
    lanes = DevicePipeline([encoders, *replicas], summary)
    advance(0, total)
    try:
        with (
            ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool,
            contextlib.closing(prepare_all(work.jobs(), pool, in_flight, sharing, clip_limit_s, watch)) as all_prepared,
        ):
            for prepared in all_prepared:
                for batch in work.take(prepared):
                    lanes.submit(batch)
                _count(summary, prepared)
                advance(summary.num_clips, total)
                stop_at(max_failures, summary)
                if stop():
                    raise Interrupted
        for batch in work.rest():
            lanes.submit(batch)
        lanes.finish()
        first.finish()
        stop_at(max_failures, summary)
    except Exception as error:
        tell_kept(error, _keep_finished(work, lanes, failed=isinstance(error, Interrupted)))
        raise
    finally:
        lanes.abandon()
        work.close()
        if guard is None:
            watch.close()
    left = [unit for unit in plan_units(writers, clips) if unit.shards]
    summary.left = sum(map(num_clips, left))
    if guard is None:
        undecided = {clip_id for unit in left for name, _ in unit.shards for clip_id in unit.to_do(name)}
        watch.forget(
            lambda clip_id: (
                clip_id not in undecided and all(writer.record(clip_id) is not None for writer in writers.values())
            )
        )
    summary.wall_s = time.perf_counter() - began
    return summary


def _keep_finished(work: OpenUnits, lanes: DevicePipeline, *, failed: bool) -> int:
    """Commit what a run that ends early has finished; return how many clips of this run are committed in all."""
    with contextlib.suppress(Exception):  # the run ends for a reason of its own, and that is the one to be told
        for batch in work.begun():
            lanes.submit(batch)
        lanes.finish()
    lanes.abandon()
    with contextlib.suppress(WriteError):
        work.keep(failed=failed)
    return work.num_kept


def tell_kept(error: Exception, kept: int) -> None:
    """Say in an error that ended an extraction how many clips are kept."""
    said = f"{kept} clip{' that is' if kept == 1 else 's that are'} finished {'is' if kept == 1 else 'are'} kept."
    if isinstance(error, Interrupted):
        error.kept, error.args = kept, (f"Stopped; {said} Run the same command to go on.",)
    elif isinstance(error, FeatureCacheError) and kept:
        error.next_step = " ".join(filter(None, (error.next_step, said)))
    elif kept:
        error.add_note(said)


def open_writers(
    store: Store,
    encoders: Mapping[str, Encoder],
    stored_dtype: str,
    shard_clips: int | None,
) -> dict[str, FeatureWriter]:
    """Open every feature; new ones that share a forward get shards of the same clips, so their batches coincide."""
    sharing = {name: forward_key(encoder) for name, encoder in encoders.items()}
    writers = {}
    for name, encoder in encoders.items():
        alike = [each for other, each in encoders.items() if sharing[other] == sharing[name]]
        rows = shard_clips
        if rows is None and len(alike) > 1:
            largest = max(each.shape[0] * each.shape[1] for each in alike)
            rows = default_shard_rows(round(largest * STORED_BYTES[stored_dtype]))
        sizing = {} if rows is None else {"shard_rows": rows}
        writers[name] = store.writer(name, encoder.spec(stored_dtype), **sizing)
    return writers


def _clips_behind(encoders: Mapping[str, Encoder], sharing: Mapping[str, str], lanes: int) -> int:
    """Return how many clips batches that fill, wait, run and are written hold at most."""
    distinct = {sharing[name]: encoder.batch_size for name, encoder in encoders.items()}
    return sum(distinct.values()) + max(distinct.values()) * (BATCHES_WAITING * (lanes + 1) + lanes + 1)


def _count(summary: Summary, prepared: PreparedClip) -> None:
    summary.num_clips += 1
    if prepared.notices:
        summary.notices[prepared.clip.id] = "; ".join(prepared.notices)
    summary.hash_s += prepared.hash_s
    summary.decode_s += prepared.decode_s
    summary.preprocess_s += prepared.preprocess_s
    summary.input_bytes = max(summary.input_bytes, prepared.input_bytes)


def stop_at(max_failures: int | None, summary: Summary) -> None:
    """Raise MediaError with all reasons where more clips failed."""
    failed = sum(tally.failed for tally in summary.by_feature.values())
    if max_failures is not None and failed > max_failures:
        reasons = sum((tally.reasons for tally in summary.by_feature.values()), Counter())
        raise MediaError(
            "extraction",
            expected=f"at most {max_failures} failed clips (--max-failures)",
            got=f"{failed}",
            next_step="Mend the media or raise the limit, then run the same command.",
            problems=[f"{count} × {reason}" for reason, count in reasons.most_common()],
        )


def default_workers() -> int:
    """Return how many threads decode: one a core, at most 16."""
    return min(16, usable_cores())


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
