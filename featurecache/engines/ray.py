"""Run an extraction on a Ray cluster: worker actors hold the encoders, and a work queue assigns units one by one.

    driver -> WorkQueue (actor: assigns units, counts clips) <- ExtractionWorker actors: `extract` on the shared store

Every worker runs the ordinary `extract`, so the bytes are those of a local run. A unit is assigned to one worker at a
time. When a worker dies, with its process or its node, its units go back to the queue and a new worker replaces it.
Committed shards stay, so only its open shards are done again. Store, clip list and media must have the same paths on
every node. Needs the extra `ray`.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from featurecache.engines.cluster import cluster
from featurecache.errors import EncoderError
from featurecache.extract.job import ExtractionJob, encoder_notices
from featurecache.extract.run import add_num_committed, check_max_failures, extract, open_writers
from featurecache.extract.stats import ClipCounts, ExtractionStats, merge_stats
from featurecache.extract.work_units import WorkUnit, count_prior_records, plan_work_units, refuse_changed_media
from featurecache.files.lease import LEASE_S
from featurecache.interrupt import Interrupted
from featurecache.store import open_store
from featurecache.store.protocols import FeatureWriter

POLL_S = 0.5
RETRY_S = 10.0
"""Interval between attempts at shards of a lost node, until their leases end."""
STOP_S = 60.0
"""Longest wait for the other workers to stop after one has failed."""
MAX_DEATHS_PER_WORKER = 10
"""The run fails if workers die more often than this, on average."""


class WorkQueue:
    """Assigns units to workers, and counts the clips that they have done. One actor, called by every worker."""

    def __init__(self) -> None:
        self._waiting: deque[int] = deque()
        self._assigned: dict[int, list[int]] = {}
        """Units by worker."""
        self._num_clips: dict[int, int] = {}
        """Clips that each worker has decided in its current `run`."""
        self._num_clips_ended = 0
        self._stopped = False

    def begin(self, num_units: int) -> None:
        """Queue units 0 to num_units − 1, also those that were assigned before."""
        self._waiting = deque(range(num_units))
        self._assigned = {}

    def next(self, worker: int) -> int | None:
        """Assign the next unit to a worker; None when none is left, or after `stop`."""
        if not self._waiting or self._stopped:
            return None
        unit = self._waiting.popleft()
        self._assigned.setdefault(worker, []).append(unit)
        return unit

    def report(self, worker: int, num_clips: int) -> bool:
        """Note how many clips a worker has decided in its current `run`; return whether it must stop."""
        self._num_clips[worker] = num_clips
        return self._stopped

    def ended(self, worker: int, died: bool) -> None:
        """Close a worker's `run`. Units of a dead worker are queued again; `extract` skips their committed shards."""
        self._num_clips_ended += self._num_clips.pop(worker, 0)
        units = self._assigned.pop(worker, [])
        if died:
            self._waiting.extendleft(reversed(units))

    def stop(self) -> None:
        """Assign no more units, and let every worker stop at its next report."""
        self._stopped = True

    def num_done(self) -> int:
        """Return the clips that all workers have decided so far; clips of a lost shard count twice."""
        return self._num_clips_ended + sum(self._num_clips.values())


class ExtractionWorker:
    """Holds the encoders on the device that Ray assigned, and extracts the units from the work queue."""

    def __init__(self, job: ExtractionJob, number: int, queue: Any) -> None:
        self._job, self._number, self._queue = job, number, queue

    def open(self) -> list[str]:
        """Open clip list and encoders; return their notices. Raises the errors of both."""
        import torch

        self._clips = self._job.load_clips()
        self._encoders = self._job.open_encoders(["cuda" if torch.cuda.is_available() else "cpu"])[0]
        return [*self._clips.notices, *encoder_notices(self._encoders)]

    def plan(self) -> int:
        """Plan the clips, refuse changed media, fill the work queue; return the number of clips to do."""
        writers, units = self._writers_and_units()
        refuse_changed_media(writers, self._encoders, units, self._clips)
        _get(self._queue.begin.remote(len(units)))
        return sum(unit.num_clips for unit in units)

    def prior_counts(self) -> dict[str, ClipCounts]:
        """Count the records of all runs so far, by feature, as prior records."""
        writers, units = self._writers_and_units()
        return {name: count_prior_records(name, writer, units, self._clips) for name, writer in writers.items()}

    def run(self) -> ExtractionStats | int:
        """Extract units until the queue is empty; if stopped, return only the number of committed clips."""
        reports: list[Any] = []
        """The report under way, if any."""

        def assign_units(num_units: int) -> Iterator[int]:
            while (unit := _get(self._queue.next.remote(self._number))) is not None:
                yield unit

        def advance(done: int, total: int) -> None:
            if not reports or _ready(reports[0]):  # one report at a time, so that no clip waits for an answer
                reports[:1] = [self._queue.report.remote(self._number, done)]

        def stop() -> bool:
            return bool(reports) and _ready(reports[0]) and _get(reports[0])

        try:
            stats = extract(
                open_store(self._job.store, "a"),
                self._clips,
                self._encoders,
                assign_units=assign_units,
                max_failures=self._job.max_failures,
                advance=advance,
                stop=stop,
                **self._job.extract_options,
            )
        except Interrupted as interrupted:
            return interrupted.num_finished
        _get(self._queue.report.remote(self._number, stats.num_clips))
        return stats

    def _writers_and_units(self) -> tuple[dict[str, FeatureWriter], list[WorkUnit]]:
        options = self._job.extract_options
        store = open_store(self._job.store, "a")
        writers = open_writers(store, self._encoders, options["stored_dtype"], options["shard_clips"])
        for writer in writers.values():
            writer.plan(self._clips.ids)
        return writers, plan_work_units(writers, self._clips)


def run(
    job: ExtractionJob,
    *,
    address: str | None = None,
    actors: int | None = None,
    notify: Callable[[str], None] = lambda line: None,
    advance: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> ExtractionStats:
    """Run the job with `actors` worker processes on the cluster at `address`, or on a running or local one.

    `notify` receives the notices of the clip list and of the encoders, once.

    Raises:
        MissingExtraError: ray is not installed.
        EncoderError: workers die again and again.
        MediaError: more than `max_failures` clips failed, in one worker during the run or in all at the end.
        Interrupted: `stop` returned True; committed clips stay.
        FeatureCacheError: any error that `extract` raises in a worker.
    """
    with cluster(address) as ray:
        return _Driver(ray, _with_absolute_paths(job), actors, notify).run(advance, stop)


class _Driver:
    """Starts the workers, watches them and replaces dead ones."""

    def __init__(self, ray: Any, job: ExtractionJob, actors: int | None, notify: Callable[[str], None]) -> None:
        self._ray, self._job, self._notify = ray, job, notify
        gpus, cpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
        threads = min(job.workers, max(1, cpus // (actors or gpus or 1)))
        self._num_workers = actors or gpus or max(1, cpus // threads)
        self._resources = {"num_gpus": 1 if gpus else 0, "num_cpus": threads}
        self._queue = ray.remote(num_cpus=0)(WorkQueue).remote()
        self._workers: dict[int, Any] = {}
        self._num_deaths = 0
        self._last_death_s = -math.inf

    def run(self, advance: Callable[[int, int], None], stop: Callable[[], bool]) -> ExtractionStats:
        for number in range(self._num_workers):
            notices = self._start(number)
            for line in notices if number == 0 else ():  # every worker has the same notices
                self._notify(line)
        before = self._call_first_worker("prior_counts")
        total = self._call_first_worker("plan")
        advance(0, total)
        runs = self._extract(range(self._num_workers), total, advance, stop)
        while self._waits_for_leases():
            time.sleep(RETRY_S)
            self._call_first_worker("plan")
            runs += self._extract([0], total, advance, stop)
        stats = merge_stats(runs)
        after = self._call_first_worker("prior_counts")
        stats.by_feature = {name: counts.since(before[name]) for name, counts in after.items()}
        stats.num_clips = self._ray.get(self._queue.num_done.remote())
        check_max_failures(self._job.max_failures, stats)
        return stats

    def _extract(
        self, numbers: Iterable[int], total: int, advance: Callable[[int, int], None], stop: Callable[[], bool]
    ) -> list[ExtractionStats]:
        """Run these workers until the work queue is empty."""
        ray, queue = self._ray, self._queue
        running = {self._workers[number].run.remote(): number for number in numbers}
        runs: list[ExtractionStats] = []
        stopped, num_committed = False, 0
        while running:
            for future in ray.wait(list(running), timeout=POLL_S)[0]:
                number = running.pop(future)
                try:
                    result = ray.get(future)
                    if isinstance(result, ExtractionStats):
                        runs.append(result)
                    num_committed += result.num_clips if isinstance(result, ExtractionStats) else result
                    ray.get(queue.ended.remote(number, False))
                except ray.exceptions.RayActorError as error:
                    self._replace(number, error)
                    running[self._workers[number].run.remote()] = number
                except ray.exceptions.RayTaskError as error:
                    ray.get(queue.stop.remote())
                    if running:
                        ray.wait(list(running), num_returns=len(running), timeout=STOP_S)
                    raise error.cause from error
            advance(ray.get(queue.num_done.remote()), total)
            if stop() and not stopped:
                stopped = True
                ray.get(queue.stop.remote())
        if stopped:
            interrupted = Interrupted()
            add_num_committed(interrupted, num_committed)
            raise interrupted
        return runs

    def _start(self, number: int) -> list[str]:
        """Start a worker and open its encoders; return the notices of clip list and encoders."""
        actor_class = self._ray.remote(**self._resources)(ExtractionWorker)
        while True:
            self._workers[number] = actor_class.remote(self._job, number, self._queue)
            try:
                return self._ray.get(self._workers[number].open.remote())
            except self._ray.exceptions.RayActorError as error:
                self._count_death(error)
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from error

    def _call_first_worker(self, method: str) -> Any:
        """Call a method of the first worker, or of the worker that replaces it, and return the result."""
        while True:
            try:
                return self._ray.get(getattr(self._workers[0], method).remote())
            except self._ray.exceptions.RayActorError as error:
                self._replace(0, error)
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from error

    def _replace(self, number: int, error: Exception) -> None:
        self._count_death(error)
        self._ray.get(self._queue.ended.remote(number, True))
        self._start(number)

    def _count_death(self, error: Exception) -> None:
        self._num_deaths += 1
        self._last_death_s = time.monotonic()
        if self._num_deaths > MAX_DEATHS_PER_WORKER * self._num_workers:
            first_line = str(error).strip().partition("\n")[0].rstrip(".")
            raise EncoderError("--engine ray", expected="workers that live", got=first_line) from error

    def _waits_for_leases(self) -> bool:
        """Whether clips are left that a lost node may still hold: its leases end some time after the node."""
        since_death_s = time.monotonic() - self._last_death_s
        return since_death_s < LEASE_S + RETRY_S and self._call_first_worker("plan") > 0


def _with_absolute_paths(job: ExtractionJob) -> ExtractionJob:
    """Make paths absolute, because workers start in other folders."""

    def absolute(location: str) -> str:
        return location if "://" in location else str(Path(location).resolve())

    def weights(location: str | None) -> str | None:
        return absolute(location) if location is not None and Path(location).exists() else location

    features = {name: replace(settings, weights=weights(settings.weights)) for name, settings in job.features.items()}
    media_root = None if job.media_root is None else absolute(job.media_root)
    return replace(job, store=absolute(job.store), clips=absolute(job.clips), media_root=media_root, features=features)


def _get(future: Any) -> Any:
    import ray

    return ray.get(future)


def _ready(future: Any) -> bool:
    import ray

    return bool(ray.wait([future], timeout=0)[0])
