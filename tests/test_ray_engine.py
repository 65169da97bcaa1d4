"""The Ray engine: the same bytes as a local run, also when workers die; the desk gives every unit out once."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path

import pytest
import recordings as rec

from featurecache import open_store
from featurecache.engines import local as local_engine
from featurecache.errors import FeatureCacheError, WeightsError
from featurecache.extract.job import EncoderSettings, ExtractionJob
from featurecache.store.protocols import Status

NUM_CLIPS = 12


def test_the_desk_gives_every_unit_out_once_and_again_what_a_dead_worker_had() -> None:
    from featurecache.engines.ray import WorkQueue

    desk = WorkQueue()
    desk.begin(4)
    assert [desk.next(0), desk.next(1), desk.next(0)] == [0, 1, 2]
    assert not desk.report(0, 20)
    desk.ended(0, died=True)
    assert [desk.next(1) for _ in range(4)] == [0, 2, 3, None]
    assert desk.done() == 20
    desk.ended(1, died=False)
    assert desk.next(2) is None
    desk.begin(2)
    desk.stop()
    assert desk.next(2) is None
    assert desk.report(2, 5)


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


def contents(folder: str) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.parent.name != "leases"
    }


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
                    if process.read_bytes().startswith(b"ray::Worker"):
                        killed.append(int(process.parent.name))
                        os.kill(killed[0], signal.SIGKILL)
                        return

        summary = run(work, actors=2, advance=kill_one)
        assert contents("ray.zarr") == contents("local.zarr")
        tally = summary.by_feature["whisper"]
        assert (tally.ok, tally.failed) == (NUM_CLIPS - 1, 1)
        assert list(tally.reasons.values()) == [1]
        again = run(work, actors=1)
        assert again.num_clips == 0
        assert again.by_feature["whisper"].earlier[Status.OK] == NUM_CLIPS - 1
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
