"""Run an extraction on a Ray cluster: actors hold the encoders, a desk gives them units one by one.

    driver -> WorkQueue (actor: which unit next, what was done) <- worker actors: `extract` on the shared store

Every worker runs the ordinary `extract`, so the same bytes come out. A unit is given to one worker at a time; when a
worker dies, with its process or its node, what it was given goes back to the desk and a new worker takes its place.
What it had committed stays, so only its open shards are done again. Store, clip list and media must be reachable
under the same paths from every node. Needs the extra `ray`.
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
from featurecache.extract.job import ExtractionJob
from featurecache.extract.prior_records import count_decided, refuse_changed
from featurecache.extract.run import extract, open_writers, stop_at, tell_kept
from featurecache.extract.stats import Summary, Tally, merged
from featurecache.extract.work_units import Unit, num_clips, plan_units
from featurecache.files.lease import LEASE_S
from featurecache.interrupt import Interrupted
from featurecache.store import open_store
from featurecache.store.protocols import FeatureWriter

POLL_S = 0.5
RETRY_S = 10.0
"""How often shards of a lost node are tried again until their leases end."""
STOP_S = 60.0
"""How long the others may take to stop when one has failed."""
MAX_DEATHS_A_WORKER = 10
"""A run whose workers die more often than this, on average, is given up."""


class WorkQueue:
    """Which units are to be done, who has which, and how far all are. One actor, asked by every worker."""

    def __init__(self) -> None:
        self._left: deque[int] = deque()
        self._given: dict[int, list[int]] = {}
        self._clips: dict[int, int] = {}
        self._done_before = 0
        self._stopped = False

    def begin(self, num_units: int) -> None:
        """Give out units 0 to num_units − 1, again where they were given out before."""
        self._left = deque(range(num_units))
        self._given = {}

    def next(self, worker: int) -> int | None:
        """The next unit for a worker; None when there is none left, or all are to stop."""
        if not self._left or self._stopped:
            return None
        unit = self._left.popleft()
        self._given.setdefault(worker, []).append(unit)
        return unit

    def report(self, worker: int, clips: int) -> bool:
        """Note how many clips a worker has decided in this go; return whether it is to stop."""
        self._clips[worker] = clips
        return self._stopped

    def ended(self, worker: int, died: bool) -> None:
        """End a worker's go. What a dead one was given is given out again; what it had committed is passed over."""
        self._done_before += self._clips.pop(worker, 0)
        given = self._given.pop(worker, [])
        if died:
            self._left.extendleft(reversed(given))

    def stop(self) -> None:
        """Give out nothing more, and tell every worker to stop."""
        self._stopped = True

    def done(self) -> int:
        """Clips decided by all workers so far; those of a lost shard count twice."""
        return self._done_before + sum(self._clips.values())


class Worker:
    """Holds the encoders on what Ray gave it, and extracts what the desk gives it."""

    def __init__(self, work: ExtractionJob, number: int, desk: Any) -> None:
        self._work, self._number, self._desk = work, number, desk

    def open(self) -> None:
        """Open clip list and encoders. Raises as they do."""
        import torch

        self._clips = self._work.load_clips()
        self._encoders = self._work.open_encoders(["cuda" if torch.cuda.is_available() else "cpu"])[0]

    def plan(self) -> int:
        """Plan the clips, refuse changed media, open the desk; return how many clips are to be done."""
        writers, units = self._units()
        refuse_changed(writers, self._encoders, units, self._clips)
        _get(self._desk.begin.remote(len(units)))
        return sum(num_clips(unit) for unit in units)

    def decided(self) -> dict[str, Tally]:
        """What all runs together decided so far, by feature, as earlier clips."""
        writers, units = self._units()
        return {name: count_decided(name, writer, units, self._clips) for name, writer in writers.items()}

    def run(self) -> Summary | int:
        """Extract units until the desk has none; where it was told to stop, return how many clips are kept."""
        asked: list[Any] = []

        def take(num_units: int) -> Iterator[int]:
            while (unit := _get(self._desk.next.remote(self._number))) is not None:
                yield unit

        def advance(done: int, total: int) -> None:
            if not asked or _ready(asked[0]):  # one question under way at a time: no clip waits for an answer
                asked[:1] = [self._desk.report.remote(self._number, done)]

        def stop() -> bool:
            return bool(asked) and _ready(asked[0]) and _get(asked[0])

        try:
            summary = extract(
                open_store(self._work.store, "a"),
                self._clips,
                self._encoders,
                take=take,
                max_failures=self._work.max_failures,
                advance=advance,
                stop=stop,
                **self._work.extract_options,
            )
        except Interrupted as stopped:
            return stopped.kept
        _get(self._desk.report.remote(self._number, summary.num_clips))
        return summary

    def _units(self) -> tuple[dict[str, FeatureWriter], list[Unit]]:
        options = self._work.extract_options
        store = open_store(self._work.store, "a")
        writers = open_writers(store, self._encoders, options["stored_dtype"], options["shard_clips"])
        for writer in writers.values():
            writer.plan(self._clips.ids)
        return writers, plan_units(writers, self._clips)


def run(
    work: ExtractionJob,
    *,
    address: str | None = None,
    actors: int | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Extract on the cluster at `address`, on one that is found, or on a local one, with `actors` worker processes.

    Raises:
        MissingExtraError: ray is not installed.
        EncoderError: workers die again and again.
        MediaError: more than `max_failures` clips failed, in one worker while it runs or in all at the end.
        Interrupted: `stop` said so; what is committed stays.
        FeatureCacheError: whatever `extract` raises in a worker.
    """
    with cluster(address) as ray:
        return _Crew(ray, _with_absolute_paths(work), actors).run(advance, stop)


class _Crew:
    """The driver's side: workers are started, watched and replaced."""

    def __init__(self, ray: Any, work: ExtractionJob, actors: int | None) -> None:
        self._ray, self._work = ray, work
        gpus, cpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
        threads = min(work.workers, max(1, cpus // (actors or gpus or 1)))
        self._count = actors or gpus or max(1, cpus // threads)
        self._resources = {"num_gpus": 1 if gpus else 0, "num_cpus": threads}
        self._desk = ray.remote(num_cpus=0)(WorkQueue).remote()
        self._workers: dict[int, Any] = {}
        self._deaths = 0
        self._last_death_s = -math.inf

    def run(self, advance: Callable[[int, int], None], stop: Callable[[], bool]) -> Summary:
        for number in range(self._count):
            self._start(number)
        before = self._of_first("decided")
        total = self._of_first("plan")
        advance(0, total)
        summaries = self._extract(range(self._count), total, advance, stop)
        while self._awaits_lease():
            time.sleep(RETRY_S)
            self._of_first("plan")
            summaries += self._extract([0], total, advance, stop)
        summary = merged(summaries)
        summary.by_feature = {name: tally.since(before[name]) for name, tally in self._of_first("decided").items()}
        summary.num_clips = self._ray.get(self._desk.done.remote())
        stop_at(self._work.max_failures, summary)
        return summary

    def _extract(
        self, numbers: Iterable[int], total: int, advance: Callable[[int, int], None], stop: Callable[[], bool]
    ) -> list[Summary]:
        """Let these workers run until the desk has nothing more to give."""
        ray, desk = self._ray, self._desk
        running = {self._workers[number].run.remote(): number for number in numbers}
        summaries: list[Summary] = []
        stopped, kept = False, 0
        while running:
            for future in ray.wait(list(running), timeout=POLL_S)[0]:
                number = running.pop(future)
                try:
                    done = ray.get(future)
                    if isinstance(done, Summary):
                        summaries.append(done)
                    kept += done.num_clips if isinstance(done, Summary) else done
                    ray.get(desk.ended.remote(number, False))
                except ray.exceptions.RayActorError as error:
                    self._replace(number, error)
                    running[self._workers[number].run.remote()] = number
                except ray.exceptions.RayTaskError as error:
                    ray.get(desk.stop.remote())
                    ray.wait(list(running), num_returns=len(running), timeout=STOP_S) if running else None
                    raise error.cause from error
            advance(ray.get(desk.done.remote()), total)
            if stop() and not stopped:
                stopped = True
                ray.get(desk.stop.remote())
        if stopped:
            error = Interrupted()
            tell_kept(error, kept)
            raise error
        return summaries

    def _start(self, number: int) -> None:
        """Fill one worker's place, with its encoders open."""
        while True:
            self._workers[number] = self._ray.remote(**self._resources)(Worker).remote(self._work, number, self._desk)
            try:
                self._ray.get(self._workers[number].open.remote())
                return
            except self._ray.exceptions.RayActorError as error:
                self._count_death(error)
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from error

    def _of_first(self, method: str) -> Any:
        """What the first worker, or the one that takes its place, answers."""
        while True:
            try:
                return self._ray.get(getattr(self._workers[0], method).remote())
            except self._ray.exceptions.RayActorError as error:
                self._replace(0, error)
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from error

    def _replace(self, number: int, error: Exception) -> None:
        self._count_death(error)
        self._ray.get(self._desk.ended.remote(number, True))
        self._start(number)

    def _count_death(self, error: Exception) -> None:
        self._deaths += 1
        self._last_death_s = time.monotonic()
        if self._deaths > MAX_DEATHS_A_WORKER * self._count:
            first_line = str(error).strip().partition("\n")[0].rstrip(".")
            raise EncoderError("--engine ray", expected="workers that live", got=first_line) from error

    def _awaits_lease(self) -> bool:
        """Whether a lost node may still seem to hold shards: its leases end a while after it."""
        waited_s = time.monotonic() - self._last_death_s
        return waited_s < LEASE_S + RETRY_S and self._of_first("plan") > 0


def _with_absolute_paths(work: ExtractionJob) -> ExtractionJob:
    """Workers start in other folders."""

    def absolute(place: str) -> str:
        return place if "://" in place else str(Path(place).resolve())

    def weights(place: str | None) -> str | None:
        return absolute(place) if place is not None and Path(place).exists() else place

    features = {name: replace(opening, weights=weights(opening.weights)) for name, opening in work.features.items()}
    media_root = None if work.media_root is None else absolute(work.media_root)
    return replace(
        work, store=absolute(work.store), clips=absolute(work.clips), media_root=media_root, features=features
    )


def _get(future: Any) -> Any:
    import ray

    return ray.get(future)


def _ready(future: Any) -> bool:
    import ray

    return bool(ray.wait([future], timeout=0)[0])
