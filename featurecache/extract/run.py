"""Extraction: clips in, committed shards of tokens out.

    clip -> decode, preprocess (workers) -> batch of fixed size -> forward -> pool -> (K, D) -> shard -> commit record
            `prepare`                       `open_work_units`      `pipeline`: one thread per device, one writer thread

Decode workers are threads, or processes that as many threads wait for (`decode_processes`).

All steps overlap, also across work units; queues are bounded, so memory does not grow with the list. The work is
divided into `work_units`, in which a clip is decoded once for all features. On one kind of device and at one batch
size, a clip's bytes depend only on its media and the spec: not on its neighbours, the number of workers, or a kill
and resume. This module knows no media format and no store format.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from featurecache.clips.clip_list import ClipList
from featurecache.encoders import Encoder
from featurecache.errors import FeatureCacheError, MediaError, WriteError
from featurecache.extract.decode_processes import DecodeProcesses, can_use_processes
from featurecache.extract.first_failures import FIRST_CLIPS, FirstFailures
from featurecache.extract.open_work_units import OpenWorkUnit, OpenWorkUnits
from featurecache.extract.pipeline import BATCHES_WAITING, DevicePipeline, forward_key
from featurecache.extract.prepare import CLIP_LIMIT_S, ClipInputs, DecodeIn, PrepareClip, prepare, prepare_all
from featurecache.extract.stats import ExtractionStats
from featurecache.extract.work_units import count_prior_records, plan_work_units, refuse_changed_media
from featurecache.interrupt import Interrupted
from featurecache.machine import usable_cores
from featurecache.media.crash_guard import CrashGuard, notes_folder
from featurecache.outside_text import first_ids
from featurecache.spec import STORED_BYTES
from featurecache.store.layout import default_shard_rows
from featurecache.store.protocols import FeatureWriter, Store

MIN_CLIPS_FOR_PROCESSES = 1000
"""Shorter lists are decoded in threads: starting processes takes some seconds (docs/benchmarks.md)."""


def extract(
    store: Store,
    clips: ClipList,
    encoders: Mapping[str, Encoder],
    *,
    stored_dtype: str = "float16",
    rank: tuple[int, int] = (0, 1),
    assign_units: Callable[[int], Iterable[int]] | None = None,
    workers: int = 4,
    decode_in: DecodeIn = "auto",
    max_failures: int | None = None,
    shard_clips: int | None = None,
    replicas: Sequence[Mapping[str, Encoder]] = (),
    clip_limit_s: float | None = CLIP_LIMIT_S,
    first_clips: int | None = FIRST_CLIPS,
    guard: CrashGuard | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> ExtractionStats:
    """Extract every feature of every clip that the store does not hold yet; `encoders` by feature name.

    `rank` (i, n) does every n-th work unit from unit i on. Instead, `assign_units` receives the number of units and
    yields the numbers of the units to do, each when this run is ready for it. Any number of runs may work at once,
    with or without ranks: a unit that another process works on is left to that process. `replicas` are the same
    encoders on further devices, which share the batches. A clip whose decoding takes longer than `clip_limit_s`
    fails. `advance` receives (clips done, clips to do), first with 0 done; `stop` is called after every clip. Memory
    holds the inputs of at most `ExtractionStats.max_clips_held` clips, and one clip's frames per worker. However a
    run ends, the clips that are finished are committed.

    `decode_in` says whether the `workers` are threads or processes; "auto" takes processes for several workers and at
    least `MIN_CLIPS_FOR_PROCESSES` clips, if every encoder has a copy without its network. Stored bytes are the same.
    A clip whose decoder crashes a worker process fails. A crash in a thread ends this process, and the clip fails in
    the next one, which finds the clip's name in the store's folder, or where `guard` keeps its notes.

    Raises:
        FingerprintError: a feature was made by another spec, or clips in it from other media.
        MediaError: more than `max_failures` clips failed; or, without `max_failures`, the first `first_clips` of a
            feature all failed for the same reason, and none of them is recorded.
        WriteError: the disk is full or refuses.
        EncoderError: `decode_in` is "processes", and an encoder has no copy without its network.
        Interrupted: `stop` returned True; the same call resumes.
        Exception: any error of an encoder or of this program, which no clip's media caused.
    """
    began = time.perf_counter()
    sharing = {name: forward_key(encoder) for name, encoder in encoders.items()}
    writers = open_writers(store, encoders, stored_dtype, shard_clips)
    for writer in writers.values():
        writer.plan(clips.ids)
    all_units = plan_work_units(writers, clips)
    units = all_units[rank[0] :: rank[1]] if assign_units is None else all_units
    stats = ExtractionStats({name: count_prior_records(name, writers[name], units, clips) for name in writers})
    if assign_units is None:  # otherwise the engine has compared the media once for all workers
        refuse_changed_media(writers, encoders, units, clips)
    assigned = units if assign_units is None else (units[number] for number in assign_units(len(units)))
    total = sum(unit.num_clips for unit in units)
    in_processes = _in_processes(decode_in, workers, total, encoders)
    in_flight = workers + max(workers, *(encoder.batch_size for encoder in encoders.values()))
    stats.workers, stats.devices, stats.writers = workers, 1 + len(replicas), 1
    stats.decode_in = "processes" if in_processes else "threads"
    stats.max_clips_held = in_flight + _clips_in_pipeline(encoders, sharing, stats.devices)
    stats.max_clips_held += workers if in_processes else 0  # a process holds what it has prepared last
    first_failures = FirstFailures(first_clips if max_failures is None else None)
    work = OpenWorkUnits(
        assigned, lambda unit: OpenWorkUnit(unit, writers, encoders, clips, stats, sharing, first_failures)
    )
    note_folders = [*(writer.work_folder for writer in writers.values()), notes_folder(store.location)]
    crash_guard = guard or CrashGuard(note_folders, workers)
    pipeline = DevicePipeline([encoders, *replicas], stats)
    prepare_clip: PrepareClip = partial(prepare, sharing=sharing, limit_s=clip_limit_s, guard=crash_guard)
    advance(0, total)
    try:
        with (
            ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool,
            contextlib.ExitStack() as stack,
        ):
            if in_processes:
                processes = DecodeProcesses(encoders, workers, sharing, clip_limit_s)
                stack.callback(processes.close)  # before `pool` waits for its threads, which wait for the processes
                prepare_clip = processes.prepare
            prepared_clips = stack.enter_context(
                contextlib.closing(prepare_all(work.tasks(), pool, in_flight, prepare_clip))
            )
            for inputs in prepared_clips:
                for batch in work.decide(inputs):
                    pipeline.submit(batch)
                _count(stats, inputs)
                advance(stats.num_clips, total)
                check_max_failures(max_failures, stats)
                if stop():
                    raise Interrupted
        for batch in work.decide_unlisted():
            pipeline.submit(batch)
        pipeline.finish()
        first_failures.finish()
        check_max_failures(max_failures, stats)
    except Exception as error:
        num_committed = _commit_finished(work, pipeline, failed=isinstance(error, Interrupted))
        add_num_committed(error, num_committed)
        raise
    finally:
        pipeline.abandon()
        work.close()
        if guard is None:
            crash_guard.close()
    units_left = [unit for unit in plan_work_units(writers, clips) if unit.shards]
    stats.num_left = sum(unit.num_clips for unit in units_left)
    if guard is None:
        undecided = {clip_id for unit in units_left for name, _ in unit.shards for clip_id in unit.to_do(name)}
        crash_guard.forget(
            lambda clip_id: (
                clip_id not in undecided and all(writer.record(clip_id) is not None for writer in writers.values())
            )
        )
    stats.wall_s = time.perf_counter() - began
    return stats


def _in_processes(decode_in: DecodeIn, workers: int, num_clips: int, encoders: Mapping[str, Encoder]) -> bool:
    """Return whether decode workers are processes."""
    if decode_in != "auto":
        return decode_in == "processes" and num_clips > 0
    return workers > 1 and num_clips >= MIN_CLIPS_FOR_PROCESSES and can_use_processes(encoders)


def _commit_finished(work: OpenWorkUnits, pipeline: DevicePipeline, *, failed: bool) -> int:
    """Commit the finished clips of a run that ends early; return how many clips this run has committed in all."""
    with contextlib.suppress(Exception):  # the error that ends the run is raised, not an error of this rescue
        for batch in work.partial_batches():
            pipeline.submit(batch)
        pipeline.finish()
    pipeline.abandon()
    with contextlib.suppress(WriteError):
        work.commit_partial(failed=failed)
    return work.num_committed


def add_num_committed(error: Exception, num_committed: int) -> None:
    """Add to the error that ended an extraction how many clips are kept."""
    one = num_committed == 1
    sentence = f"{num_committed} clip{' that is' if one else 's that are'} finished {'is' if one else 'are'} kept."
    if isinstance(error, Interrupted):
        error.num_finished, error.args = num_committed, (f"Stopped; {sentence} Run the same command to go on.",)
    elif isinstance(error, FeatureCacheError) and num_committed:
        error.next_step = " ".join(filter(None, (error.next_step, sentence)))
    elif num_committed:
        error.add_note(sentence)


def open_writers(
    store: Store,
    encoders: Mapping[str, Encoder],
    stored_dtype: str,
    shard_clips: int | None,
) -> dict[str, FeatureWriter]:
    """Open every feature. New features that share a forward get shards of the same clips, so their batches coincide."""
    sharing = {name: forward_key(encoder) for name, encoder in encoders.items()}
    writers = {}
    for name, encoder in encoders.items():
        same_forward = [other for other_name, other in encoders.items() if sharing[other_name] == sharing[name]]
        shard_rows = shard_clips
        if shard_rows is None and len(same_forward) > 1:
            largest = max(other.shape[0] * other.shape[1] for other in same_forward)
            shard_rows = default_shard_rows(round(largest * STORED_BYTES[stored_dtype]))
        writers[name] = store.writer(name, encoder.spec(stored_dtype), shard_rows=shard_rows)
    return writers


def _clips_in_pipeline(encoders: Mapping[str, Encoder], sharing: Mapping[str, str], num_devices: int) -> int:
    """Return the largest number of clips in batches that fill up, wait, run or are written."""
    batch_sizes = {sharing[name]: encoder.batch_size for name, encoder in encoders.items()}
    batches_submitted = BATCHES_WAITING * (num_devices + 1) + num_devices + 1
    return sum(batch_sizes.values()) + max(batch_sizes.values()) * batches_submitted


def _count(stats: ExtractionStats, inputs: ClipInputs) -> None:
    stats.num_clips += 1
    if inputs.notices:
        stats.notices[inputs.clip.id] = "; ".join(inputs.notices)
    stats.hash_s += inputs.hash_s
    stats.decode_s += inputs.decode_s
    stats.preprocess_s += inputs.preprocess_s
    stats.input_bytes = max(stats.input_bytes, inputs.input_bytes)


def check_max_failures(max_failures: int | None, stats: ExtractionStats) -> None:
    """Raise MediaError with all reasons if more than `max_failures` clips failed in this run."""
    num_failed = sum(counts.failed for counts in stats.by_feature.values())
    if max_failures is not None and num_failed > max_failures:
        failures = [failure for counts in stats.by_feature.values() for failure in counts.most_common()]
        raise MediaError(
            "extraction",
            expected=f"at most {max_failures} failed clips (--max-failures)",
            got=f"{num_failed}",
            next_step="Mend the media or raise the limit, then run the same command.",
            problems=[f"{len(ids)} × {reason} ({first_ids(ids)})" for reason, ids in failures],
        )


def default_workers() -> int:
    """Return the default number of decode workers: one per core, at most 16."""
    return min(16, usable_cores())


def parse_rank(text: str) -> tuple[int, int]:
    """Read `I/N`, I from 0 to N − 1.

    Raises:
        ValueError: not of this form.
    """
    index, _, count = text.partition("/")
    rank = (int(index), int(count))
    if not 0 <= rank[0] < rank[1]:
        raise ValueError(f"expected I/N with I from 0 to N - 1, got {text}")
    return rank
