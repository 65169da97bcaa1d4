"""The Ray engine: the same bytes as a local run, also when workers die; the work queue assigns every unit once."""

from __future__ import annotations

import json
import os
import signal
import sys
import types
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import recordings as rec
from click.testing import CliRunner
from stored_rows import file_hashes

from featurecache import open_store
from featurecache.cli import main
from featurecache.encoders import Encoder
from featurecache.engines import local as local_engine
from featurecache.errors import FeatureCacheError, WeightsError
from featurecache.extract.job import EncoderSettings, ExtractionJob
from featurecache.store.protocols import Status

NUM_CLIPS = 12


def test_the_work_queue_assigns_every_unit_once_and_the_units_of_a_dead_worker_again() -> None:
    from featurecache.engines.ray import WorkQueue

    queue = WorkQueue()
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


class InProcessRay(types.ModuleType):
    """The part of Ray's interface that the engine uses; actors live in this process and answer at once."""

    class exceptions:  # noqa: N801 -- the name in Ray
        RayActorError = RayTaskError = type("RayError", (Exception,), {})

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, **resources: object) -> Callable[[type], types.SimpleNamespace]:
        return lambda actor: types.SimpleNamespace(remote=lambda *values: InProcessActor(actor(*values)))

    def get(self, future: Callable[[], object]) -> object:
        return future()

    def wait(self, futures: list[object], **limits: object) -> tuple[list[object], list[object]]:
        return futures[:1], futures[1:]


class InProcessActor:
    """An actor whose methods run when they are called."""

    def __init__(self, actor: object) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> types.SimpleNamespace:
        def remote(*values: object) -> Callable[[], object]:
            result = getattr(self._actor, name)(*values)
            return lambda: result

        return types.SimpleNamespace(remote=remote)


def test_the_ray_engine_shows_every_notice_once_and_gives_the_bytes_of_a_local_run(
    work: ExtractionJob, whisper_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = InProcessRay("ray")
    ray.__spec__ = ModuleSpec("ray", None)
    monkeypatch.setitem(sys.modules, "ray", ray)
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


@pytest.mark.slow
@pytest.mark.extra
@pytest.mark.filterwarnings("ignore")
def test_a_ray_cluster_gives_the_bytes_of_a_local_run_though_its_workers_are_killed(work: ExtractionJob) -> None:
    ray = pytest.importorskip("ray")
    from dataclasses import replace

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
