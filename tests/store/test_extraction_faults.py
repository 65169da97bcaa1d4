"""Whole extractions killed, stopped, crowded and starved of disk: nothing torn, lost or doubled, and the same bytes.

The long versions are those of docs/benchmarks.md; with `-s` they print their counts.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from extracting import NUM_CLIPS, NUM_SHARDS, committed, extract_all, extraction, make_clips
from small_stores import contents
from stored_rows import rows_of

import featurecache
from featurecache.errors import WriteError
from featurecache.maintenance.verify import verify_store
from featurecache.store import writer
from featurecache.store.formats import FORMATS

STORES = {name: f"features{known.endings[0]}" for name, known in FORMATS.items()}


@pytest.fixture(scope="module")
def clip_list(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(params=list(STORES))
def name(request: pytest.FixtureRequest) -> str:
    """Name of a store in each format."""
    return STORES[request.param]


@pytest.fixture
def whole(clip_list: Path, tmp_path: Path, name: str) -> dict[str, bytes]:
    """Every file of a store extracted at one go."""
    extract_all(clip_list, tmp_path / "whole" / name)
    return contents(tmp_path / "whole" / name)


def lasting_s(clip_list: Path, location: Path) -> float:
    """How long a child takes for everything, once the fork server is up."""
    seconds = []
    for number in range(3):
        began = time.monotonic()
        with extraction(clip_list, location.with_name(f"timed-{number}-{location.name}")):
            pass
        seconds.append(time.monotonic() - began)
    return min(seconds)


def undamaged(location: Path) -> bool:
    return not location.exists() or not verify_store(featurecache.open_store(location)).damage


def some_or(count: int, few: int) -> pytest.MarkDecorator:
    """Parametrise by how often: a few times by default, `count` times in the long version."""
    return pytest.mark.parametrize(
        "times", [pytest.param(few, id="few"), pytest.param(count, marks=pytest.mark.slow, id=str(count))]
    )


@some_or(100, few=3)
def test_killed_at_a_random_instant_and_resumed_equals_uninterrupted(
    clip_list: Path, tmp_path: Path, name: str, whole: dict[str, bytes], times: int
) -> None:
    randomness = np.random.default_rng(0)
    whole_s = lasting_s(clip_list, tmp_path / name)
    killed = midway = ended = 0
    while killed < times:
        location = tmp_path / str(killed + ended) / name
        with extraction(clip_list, location) as (process, _):
            time.sleep(whole_s * randomness.uniform(0.0, 1.0))
            process.kill()
            process.join()
            was_killed = process.exitcode == -signal.SIGKILL
        killed, ended = killed + was_killed, ended + (not was_killed)
        midway += 0 < committed(location) < NUM_SHARDS
        assert undamaged(location)
        assert extract_all(clip_list, location) <= NUM_CLIPS
        assert contents(location) == whole
        assert extract_all(clip_list, location) == 0
        shutil.rmtree(location.parent)
        assert ended < 4 * times + 20, "the instants miss the work"
    print(f"{name}: {killed} kills, {midway} with some shards committed; {ended} instants came too late")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_what_is_finished_kept_and_said(
    clip_list: Path, tmp_path: Path, name: str, whole: dict[str, bytes], number: signal.Signals
) -> None:
    location = tmp_path / name
    program = [sys.executable, "-c", SLOW_PROGRAM, str(clip_list), str(location)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        for line in child.stdout:
            if line.strip() == "5":
                child.send_signal(number)
                if number == signal.SIGHUP:  # shell and kernel both send one
                    child.send_signal(number)
                break
        message = child.stderr.read()
    assert child.returncode == 1
    num_finished = int(re.search(r"Stopped; (\d+) clips that are finished are kept", message)[1])
    assert 5 <= num_finished < NUM_CLIPS
    assert [len(rows) for rows in rows_of(location).values()] == [num_finished, num_finished]
    assert undamaged(location)
    assert extract_all(clip_list, location) == NUM_CLIPS - num_finished
    assert rows_of(location) == rows_of(tmp_path / "whole" / name)


SLOW_PROGRAM = """
import sys, time
from featurecache import load_clips, open_store
from featurecache.extract.run import extract
from featurecache.interrupt import Interrupted, StopRequest
from stub_encoders import stub_encoders

clips, store = load_clips(sys.argv[1]), open_store(sys.argv[2], "a")
def advance(done, total):
    print(done, flush=True)
    time.sleep(0.1)
try:
    with StopRequest() as stop:
        extract(store, clips, stub_encoders(), shard_clips=100, workers=1, advance=advance, stop=lambda: stop.requested)
except Interrupted as stopped:
    sys.exit(str(stopped))
"""


@some_or(40, few=1)
def test_a_stopped_extraction_that_wakes_after_another_took_over_does_no_harm(
    clip_list: Path,
    tmp_path: Path,
    name: str,
    whole: dict[str, bytes],
    times: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    claim = writer.StoredFeatureWriter.claim
    monkeypatch.setattr(writer.StoredFeatureWriter, "claim", functools.partialmethod(claim, lease_s=0.0))
    monkeypatch.setattr(writer, "COMMIT_PATIENCE_S", 0.1)
    randomness = np.random.default_rng(0)
    whole_s = lasting_s(clip_list, tmp_path / name)
    stopped, in_commit = 0, 0
    for instant in range(times):
        location = tmp_path / str(instant) / name
        with extraction(clip_list, location) as (process, _):
            time.sleep(whole_s * randomness.uniform(0.2, 0.9))
            send(process, signal.SIGSTOP)
            stopped += committed(location) < NUM_SHARDS
            if message := refusal(clip_list, location):  # stopped with the commit lock in hand
                assert "another process holds it" in message
                in_commit += 1
            else:
                assert kept(location) == whole
            send(process, signal.SIGCONT)
            process.join()
            assert process.exitcode == 0
        extract_all(clip_list, location)
        assert contents(location) == whole
    print(f"{name}: {times} takeovers, {stopped} in the midst of work, {in_commit} stopped while it committed")


def refusal(clip_list: Path, location: Path) -> str:
    """What an extraction says that cannot write, or an empty string."""
    try:
        extract_all(clip_list, location)
    except WriteError as error:
        return str(error)
    return ""


def send(process: BaseProcess, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        os.kill(process.pid, number)  # type: ignore[arg-type]


def kept(location: Path) -> dict[str, bytes]:
    """Every file but those of the living: leases and temporary files."""
    files = contents(location)
    return {path: data for path, data in files.items() if "/leases/" not in path and ".tmp-" not in path}


@pytest.mark.parametrize("extractors", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_extractions_at_the_same_time_do_every_clip_exactly_once(
    clip_list: Path, tmp_path: Path, name: str, whole: dict[str, bytes], extractors: int
) -> None:
    for number in range(1 if extractors < 8 else 10):
        location = tmp_path / str(number) / name
        running = [extraction(clip_list, location) for _ in range(extractors)]
        children = [context.__enter__() for context in running]
        prepared = [receiver.recv() for _, receiver in children]  # type: ignore[attr-defined]
        for context in running:
            context.__exit__(None, None, None)
        assert sum(prepared) == NUM_CLIPS
        assert contents(location) == whole


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that `resize` makes small; needs the right to mount.

    A process of its own takes it away once the pipe to it is closed: also after this process was killed, or while files
    of it are still mapped.
    """
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting needs the right to")
    taking_away = ["sh", "-c", 'read -r _; exec umount --lazy "$0"', str(folder)]
    with subprocess.Popen(taking_away, stdin=subprocess.PIPE, start_new_session=True) as process:
        yield folder
    assert process.returncode == 0
    assert not os.path.ismount(folder)


def resize(disk: Path, pages: int) -> None:
    size = pages * os.sysconf("SC_PAGE_SIZE")
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_full_after_any_page_is_a_clear_error_and_resumable(
    clip_list: Path, small_disk: Path, tmp_path: Path, name: str, whole: dict[str, bytes]
) -> None:
    refused = 0
    for pages in range(1, 400):
        location = small_disk / name
        resize(small_disk, pages)
        message = refusal(clip_list, location)
        if not message:
            break
        refused += 1
        assert "the disk is full" in message
        assert "run the same command again" in message
        resize(small_disk, 4096)
        assert undamaged(location)
        extract_all(clip_list, location)
        assert undamaged(location)
        assert rows_of(location) == rows_of(tmp_path / "whole" / name)
        shutil.rmtree(location)
    print(f"{name}: the disk was full at {refused} sizes")
    assert refused > NUM_SHARDS


@pytest.mark.slow
def test_a_limit_of_file_size_at_any_byte_is_a_clear_error_and_resumable(
    clip_list: Path, tmp_path: Path, name: str, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = max(map(len, whole.values()))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    refused = 0
    limits = [*range(1, largest, max(1, largest // 100)), largest - 1]
    for limit in limits:
        location = tmp_path / str(limit) / name
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(WriteError, match="ulimit -f"):
                extract_all(clip_list, location)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        refused += 1
        assert undamaged(location)
        extract_all(clip_list, location)
        assert undamaged(location)
        assert rows_of(location) == rows_of(tmp_path / "whole" / name)
        shutil.rmtree(location.parent)
    print(f"{name}: {refused} limits")
