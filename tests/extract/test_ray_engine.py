"""The Ray engine: the same bytes as a local run, also when workers die; the work queue assigns every unit once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import recordings as rec
from click.testing import CliRunner
from in_process_ray import ActorDies, InProcessRay
from stored_rows import file_hashes

from featurecache import open_store
from featurecache.cli import main
from featurecache.encoders import Encoder
from featurecache.engines import local as local_engine
from featurecache.engines import ray as engine
from featurecache.engines.cluster import cluster
from featurecache.errors import EncoderError, FeatureCacheError, FingerprintError, MediaError, WeightsError
from featurecache.extract.job import EncoderSettings, ExtractionJob
from featurecache.extract.stats import ClipCounts, ExtractionStats
from featurecache.interrupt import Interrupted
from featurecache.store.protocols import Status

NUM_CLIPS = 12


def test_the_work_queue_assigns_every_unit_once_and_the_units_of_a_dead_worker_again() -> None:
    queue = engine.WorkQueue()
    queue.begin(4)
    assert [queue.next(0), queue.next(1), queue.next(0)] == [0, 1, 2]
    assert not queue.report(0, 20)
    queue.ended(0, died=True)
    assert [queue.next(1) for _ in range(4)] == [0, 2, 3, None]
    assert queue.num_done() == 20
    queue.ended(1, died=False)
    assert queue.next(2) is None
    queue.begin(2)
    queue.stop()
    assert queue.next(2) is None
    assert queue.report(2, 5)


@pytest.fixture
def work(tmp_path: Path, whisper_folder: Path, monkeypatch: pytest.MonkeyPatch) -> ExtractionJob:
    """Twelve clips, one of them bad, in shards of two, by paths relative to the working directory."""
    lines = []
    for number in range(NUM_CLIPS):
        rec.write_clip(tmp_path / f"{number}.mp4", num_frames=4, sound=rec.sine(0.4, 200 + 30 * number))
        lines.append(json.dumps({"id": f"c{number}", "video": f"{number}.mp4"}) + "\n")
    (tmp_path / "3.mp4").write_bytes(b"nonsense" * 50)
    (tmp_path / "clips.jsonl").write_text("".join(lines))
    monkeypatch.chdir(tmp_path)
    return ExtractionJob(
        "ray.zarr",
        "clips.jsonl",
        {"whisper": EncoderSettings("whisper", str(whisper_folder))},
        workers=1,
        shard_clips=2,
    )


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> InProcessRay:
    module = InProcessRay()
    monkeypatch.setitem(sys.modules, "ray", module)
    return module


def test_the_ray_engine_shows_every_notice_once_and_gives_the_bytes_of_a_local_run(
    work: ExtractionJob, whisper_folder: Path, ray: InProcessRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_encoders = ExtractionJob.open_encoders

    def with_notices(job: ExtractionJob, devices: Sequence[str]) -> list[dict[str, Encoder]]:
        opened = open_encoders(job, devices)
        for encoders in opened:
            encoders["whisper"].notices = ["whisper: trained on another language"]  # type: ignore[attr-defined]
        return opened

    monkeypatch.setattr(ExtractionJob, "open_encoders", with_notices)
    command = ["extract", "--encoder", "whisper", "--weights", str(whisper_folder), "--workers", "1"]
    command += ["--shard-clips", "2", "--device", "cpu"]
    local = CliRunner().invoke(main, [*command, "--store", "local.zarr"])
    on_ray = CliRunner().invoke(main, [*command, "--store", "ray.zarr", "--engine", "ray", "--ray-actors", "2"])
    for result in (local, on_ray):
        assert result.exit_code == 1, result.output  # one clip is bad
        assert result.stderr.count("whisper: trained on another language") == 1
    assert file_hashes(Path("ray.zarr")) == file_hashes(Path("local.zarr"))


def test_both_engines_show_the_notices_of_the_clip_list_once(work: ExtractionJob, ray: InProcessRay) -> None:
    Path("0.mp4").rename(unicodedata.normalize("NFD", "é.mp4"))
    row = {"id": "c0", "video": unicodedata.normalize("NFC", "é.mp4")}
    Path("one.jsonl").write_text(json.dumps(row) + "\n")
    one = replace(work, clips="one.jsonl")
    here: list[str] = []
    there: list[str] = []
    local_engine.run(replace(one, store="local.zarr"), ["cpu"], notify=here.append)
    engine.run(one, actors=2, notify=there.append)
    assert sum("another Unicode form" in line for line in here) == 1
    assert [line for line in here if "Unicode" in line] == there


def test_units_of_a_worker_that_dies_are_done_by_the_one_that_replaces_it(
    work: ExtractionJob, ray: InProcessRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, deaths = engine.ExtractionWorker.run, ["run", "prior_counts"]

    def run(worker: engine.ExtractionWorker) -> ExtractionStats | int:
        if "run" in deaths:
            deaths.remove("run")
            assert [engine._get(worker._queue.next.remote(worker._number)) for _ in range(2)] == [0, 1]
            raise ActorDies
        return whole(worker)

    def prior_counts(worker: engine.ExtractionWorker) -> dict[str, ClipCounts]:
        if "prior_counts" in deaths:
            deaths.remove("prior_counts")
            raise ActorDies
        return counts(worker)

    counts = engine.ExtractionWorker.prior_counts
    monkeypatch.setattr(engine.ExtractionWorker, "run", run)
    monkeypatch.setattr(engine.ExtractionWorker, "prior_counts", prior_counts)
    monkeypatch.setattr(engine, "LEASE_S", -engine.RETRY_S)  # nothing is left to wait for
    seen: list[tuple[int, int]] = []
    stats = engine.run(work, actors=1, advance=lambda done, total: seen.append((done, total)))
    assert deaths == []
    assert len(ray.actor_options) == 1 + 1 + 2  # the queue, the worker, and the two that replace it
    assert (stats.num_clips, stats.by_feature["whisper"].ok, stats.by_feature["whisper"].failed) == (12, 11, 1)
    assert seen[0] == (0, NUM_CLIPS)
    assert seen[-1] == (NUM_CLIPS, NUM_CLIPS)
    local_engine.run(replace(work, store="local.zarr"), ["cpu"])
    assert file_hashes(Path("ray.zarr")) == file_hashes(Path("local.zarr"))


def test_shards_that_a_lost_node_still_holds_are_waited_for(
    work: ExtractionJob, ray: InProcessRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that is cut off keeps its lease for a while; the driver tries again until it has ended."""
    encoders = work.open_encoders(["cpu"])[0]
    writer = engine.open_writers(open_store(work.store, "a"), encoders, work.stored_dtype, work.shard_clips)["whisper"]
    writer.plan(work.load_clips().ids)
    held = writer.claim(next(iter(writer.pending())))
    assert held is not None
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        lease.close()

    whole, deaths = engine.ExtractionWorker.run, ["run"]

    def run(worker: engine.ExtractionWorker) -> ExtractionStats | int:
        if deaths:
            deaths.pop()
            raise ActorDies
        return whole(worker)

    monkeypatch.setattr(engine.ExtractionWorker, "run", run)
    monkeypatch.setattr(engine, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    with contextlib.ExitStack() as lease:
        lease.enter_context(held)
        stats = engine.run(work, actors=1)
    assert waits == [engine.RETRY_S]
    assert stats.by_feature["whisper"].ok == NUM_CLIPS - 1
    assert stats.num_left == 0


def test_workers_that_die_again_and_again_end_the_run(
    work: ExtractionJob, ray: InProcessRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(worker: engine.ExtractionWorker) -> None:
        raise ActorDies

    monkeypatch.setattr(engine.ExtractionWorker, "open", dies)
    with pytest.raises(EncoderError, match="expected workers that live, got The actor died unexpectedly"):
        engine.run(work, actors=2)
    assert len(ray.actor_options) == 1 + engine.MAX_DEATHS_PER_WORKER * 2 + 1


@pytest.mark.parametrize("actors", [1, 2])
def test_an_error_in_a_worker_stops_the_others_and_is_raised_as_itself(
    actors: int, work: ExtractionJob, ray: InProcessRay
) -> None:
    with pytest.raises(MediaError, match="at most 0 failed clips"):
        engine.run(replace(work, max_failures=0), actors=actors)
    settings = replace(work.features["whisper"], options={"tokens": 32})
    with pytest.raises(FingerprintError, match="tokens"):
        engine.run(replace(work, features={"whisper": settings}), actors=actors)
    with pytest.raises(WeightsError):
        engine.run(replace(work, features={"whisper": EncoderSettings("whisper", "nowhere/at/all")}))


def test_a_failure_of_each_worker_counts_in_the_end(
    work: ExtractionJob, ray: InProcessRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """During the run the limit holds per worker; at the end over all of them."""
    checked: list[int] = []
    monkeypatch.setattr(
        engine, "check_max_failures", lambda limit, stats: checked.append(stats.by_feature["whisper"].failed)
    )
    engine.run(replace(work, max_failures=5), actors=1)
    assert checked == [1]


def test_a_stop_on_ray_keeps_what_is_finished_and_the_same_call_goes_on(
    work: ExtractionJob, ray: InProcessRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = engine.WorkQueue.report

    def stopping(queue: engine.WorkQueue, worker: int, num_clips: int) -> bool:
        if num_clips >= 4:
            queue.stop()
        return report(queue, worker, num_clips)

    monkeypatch.setattr(engine.WorkQueue, "report", stopping)
    with pytest.raises(Interrupted) as caught:
        engine.run(work, actors=1, stop=lambda: True)
    monkeypatch.setattr(engine.WorkQueue, "report", report)
    clips = caught.value.num_finished
    assert 3 <= clips < NUM_CLIPS
    assert str(caught.value) == f"Stopped; {clips} clips that are finished are kept. Run the same command to go on."
    stats = engine.run(work, actors=1)
    counts = stats.by_feature["whisper"]
    assert (counts.ok + counts.failed, sum(counts.prior.values())) == (NUM_CLIPS - clips, clips)


@pytest.mark.parametrize(
    ("resources", "actors", "expected"),
    [
        ({"CPU": 16.0, "GPU": 2.0}, None, [{"num_gpus": 1, "num_cpus": 6}] * 2),
        ({"CPU": 16.0}, None, [{"num_gpus": 0, "num_cpus": 6}] * 2),
        ({"CPU": 16.0}, 4, [{"num_gpus": 0, "num_cpus": 4}] * 4),
        ({"CPU": 1.0}, None, [{"num_gpus": 0, "num_cpus": 1}]),
    ],
)
def test_a_worker_per_gpu_or_as_many_as_the_cores_allow(
    resources: dict[str, float],
    actors: int | None,
    expected: list[dict[str, int]],
    work: ExtractionJob,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = InProcessRay(resources)
    driver = engine._Driver(ray, replace(work, workers=6), actors, lambda line: None)
    monkeypatch.setattr(engine.ExtractionWorker, "open", lambda worker: [])
    for number in range(driver._num_workers):
        driver._start(number)
    assert ray.actor_options[1:] == expected


def test_the_address_of_a_cluster_a_running_one_or_a_local_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = InProcessRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    with cluster(None) as connected:  # one that the caller connected to stays
        assert connected is ray
    assert (ray.connections, ray.connected) == ([], True)
    ray.connected = False
    with cluster("ray://head:10001"):
        assert ray.connected
    assert not ray.connected
    with cluster(None):
        pass
    ray.running_cluster = True
    with cluster(None):
        pass
    assert [address for address, _ in ray.connections] == [("ray://head:10001",), ("auto",), (), ("auto",)]


def test_paths_are_absolute_for_workers_in_other_folders_and_addresses_stay(
    work: ExtractionJob, tmp_path: Path
) -> None:
    features = {
        "a": EncoderSettings("whisper", "openai/whisper-large-v3"),
        "b": EncoderSettings("whisper", "clips.jsonl"),
    }
    job = engine._with_absolute_paths(replace(work, store="s3://bucket/s.zarr", features=features, media_root="."))
    assert (job.store, job.clips, job.media_root) == (
        "s3://bucket/s.zarr",
        str(tmp_path / "clips.jsonl"),
        str(tmp_path),
    )
    assert [each.weights for each in job.features.values()] == [
        "openai/whisper-large-v3",
        str(tmp_path / "clips.jsonl"),
    ]


@pytest.mark.slow
@pytest.mark.extra
@pytest.mark.filterwarnings("ignore")
def test_a_ray_cluster_gives_the_bytes_of_a_local_run_though_its_workers_are_killed(work: ExtractionJob) -> None:
    ray = pytest.importorskip("ray")
    from featurecache.engines.ray import run

    local_engine.run(replace(work, store="local.zarr"), ["cpu"])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        killed: list[int] = []

        def kill_one(done: int, total: int) -> None:
            if done >= 2 and not killed:
                for process in Path("/proc").glob("[0-9]*/cmdline"):
                    if process.read_bytes().startswith(b"ray::ExtractionWorker"):
                        killed.append(int(process.parent.name))
                        os.kill(killed[0], signal.SIGKILL)
                        return

        stats = run(work, actors=2, advance=kill_one)
        assert file_hashes(Path("ray.zarr")) == file_hashes(Path("local.zarr"))
        counts = stats.by_feature["whisper"]
        assert (counts.ok, counts.failed) == (NUM_CLIPS - 1, 1)
        assert list(map(len, counts.failed_ids.values())) == [1]
        again = run(work, actors=1)
        assert again.num_clips == 0
        assert again.by_feature["whisper"].prior[Status.OK] == NUM_CLIPS - 1
        with pytest.raises(WeightsError):
            run(
                replace(work, store="x.zarr", features={"whisper": EncoderSettings("whisper", "nowhere/at/all")}),
                actors=1,
            )
        with pytest.raises(FeatureCacheError, match="--max-failures"):
            run(replace(work, store="y.zarr", max_failures=0), actors=1)
    finally:
        ray.shutdown()
    assert open_store("ray.zarr")["whisper"].record("c3").status is Status.FAILED
