"""Stores behind URLs, bounded caches, batches for training."""

from __future__ import annotations

import contextlib
import functools
import http.server
import multiprocessing
import os
import pickle
import threading
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any

import fsspec
import numpy as np
import pytest
from small_stores import build, clip_ids, contents, fill, make_spec, tokens_of

import featurecache
from featurecache.errors import CorruptStoreError, MissingFeatureError, StoreError, StoreNotFoundError
from featurecache.maintenance.convert import convert_store
from featurecache.maintenance.describe import store_info
from featurecache.maintenance.diff import compare_stores
from featurecache.maintenance.verify import verify_store
from featurecache.store import remote, remote_files
from featurecache.store.local import LocalStore
from featurecache.store.prefetching import common_ids, iterate


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def uploaded(store: LocalStore) -> str:
    """The URL of a copy in memory."""
    memory = fsspec.filesystem("memory")
    base = f"/{store.root.parent.name}-{store.root.name}"
    for path, data in contents(store.root).items():
        memory.pipe_file(f"{base}/{path}", data)
    return f"memory:/{base}"


def shards_in(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file() and (path.name == "0" or path.suffix == ".tar")]


def test_a_remote_store_reads_like_a_local_one(place: Path, kind: str, cache: Path) -> None:
    local = build(place, kind)
    remote = featurecache.open_store(uploaded(local), cache=cache)
    ids = list(local["whisper"].ids)
    assert remote.names == ["whisper"]
    assert remote["whisper"].read(ids).tobytes() == local["whisper"].read(ids).tobytes()
    assert remote["whisper"][ids[0]].tobytes() == local["whisper"][ids[0]].tobytes()
    assert remote["whisper"].record(ids[0]) == local["whisper"].record(ids[0])
    with pytest.raises(StoreNotFoundError, match="whisper"):
        remote["wisper"]
    with pytest.raises(StoreError, match="read only"):
        featurecache.open_store(remote.location, "a")
    with pytest.raises(StoreNotFoundError, match="none at this URL"):
        featurecache.open_store("memory://nothing", cache=cache)
    again = pickle.loads(pickle.dumps(remote["whisper"]))
    assert again.read(ids[:2]).shape[0] == 2


def test_shards_are_fetched_when_first_read_and_once(small_store: LocalStore, cache: Path) -> None:
    url = uploaded(small_store)
    feature = featurecache.open_store(url, cache=cache)["whisper"]
    assert not shards_in(cache)
    feature.read(clip_ids(2))
    (first,) = shards_in(cache)
    written = first.stat().st_ino
    featurecache.open_store(url, cache=cache)["whisper"].read(clip_ids(3))
    assert [path.stat().st_ino for path in shards_in(cache)] == [written]


def test_the_cache_stays_within_its_bounds(small_store: LocalStore, cache: Path) -> None:
    url = uploaded(small_store)
    one = (small_store.root / "whisper/c/0/0/0").stat().st_size
    feature = featurecache.open_store(url, cache=cache, cache_bytes=2 * one)["whisper"]
    ids = list(feature.ids)
    for _ in range(2):
        for clip_id in ids:
            assert np.array_equal(feature[clip_id], tokens_of(clip_id).astype(np.float16))
    assert sum(path.stat().st_size for path in shards_in(cache)) <= 2 * one


def test_a_store_that_changed_at_its_origin_is_fetched_anew(small_store: LocalStore, cache: Path) -> None:
    url = uploaded(small_store)
    featurecache.open_store(url, cache=cache)["whisper"].read(clip_ids(2))
    (small_store.root / "whisper").rename(small_store.root.parent / "old")
    writer = small_store.writer("whisper", make_spec(implementation=2))
    writer.plan(clip_ids(4))
    fill(writer)
    fsspec.filesystem("memory").rm(url.removeprefix("memory:/"), recursive=True)
    assert uploaded(featurecache.open_store(small_store.location)) == url
    feature = featurecache.open_store(url, cache=cache)["whisper"]
    assert feature.spec.implementation == 2
    assert np.array_equal(feature["set/clip_001"], tokens_of("set/clip_001").astype(np.float16))


def test_a_fetch_that_was_damaged_is_refused_and_tried_again(small_store: LocalStore, cache: Path) -> None:
    url = uploaded(small_store)
    featurecache.open_store(url, cache=cache)["whisper"].read(clip_ids(1))
    (shard,) = shards_in(cache)
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    shard.write_bytes(data)
    feature = featurecache.open_store(url, cache=cache)["whisper"]
    with pytest.raises(CorruptStoreError):
        feature.read(clip_ids(1))
    feature = featurecache.open_store(url, cache=cache)["whisper"]
    assert np.array_equal(feature["set/clip_000"], tokens_of("set/clip_000").astype(np.float16))


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; counts how often the first shard is asked for, stalls in the middle of it, or fails, as told."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.server.failures > 0:
            self.server.failures -= 1
            self.send_error(503)
            return
        super().do_GET()

    def copyfile(self, source: IO[bytes], outputfile: IO[bytes]) -> None:
        data = source.read()
        if not self.path.endswith("/c/0/0/0"):
            outputfile.write(data)
            return
        self.server.asked += 1
        outputfile.write(data[: len(data) // 2])
        outputfile.flush()
        self.server.halfway.set()
        with contextlib.suppress(OSError):  # who was killed does not listen
            if self.server.go_on.wait(30):
                outputfile.write(data[len(data) // 2 :])


class Server(http.server.ThreadingHTTPServer):
    """A web server on this machine."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.asked = self.failures = 0
        self.halfway, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def server(small_store: LocalStore) -> Iterator[Server]:
    """Serves the small store."""
    pytest.importorskip("aiohttp")
    with Server(small_store.root.parent) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        serving.url += f"/{small_store.root.name}"
        yield serving
        serving.go_on.set()
        serving.shutdown()
        thread.join()


def test_a_store_is_read_over_http(small_store: LocalStore, server: Server, cache: Path) -> None:
    feature = featurecache.open_store(server.url, cache=cache)["whisper"]
    assert list(feature.ids) == list(small_store["whisper"].ids)
    assert feature.read(clip_ids(2)).tobytes() == small_store["whisper"].read(clip_ids(2)).tobytes()


def test_a_server_that_fails_for_a_while_is_asked_again(
    small_store: LocalStore, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_files, "PAUSE_S", 0.001)
    store = featurecache.open_store(server.url, cache=cache)
    server.failures = 2
    assert np.array_equal(store["whisper"]["set/clip_000"], small_store["whisper"]["set/clip_000"])
    server.failures = 1000
    with pytest.raises(StoreError, match="expected an answer, got ClientResponseError: 503"):
        featurecache.open_store(server.url, cache=cache)
    with pytest.raises(StoreError, match="503"):
        store["whisper"][store["whisper"].ids[-1]]


def _read_all(url: str, cache: Path, ids: list[str], cache_bytes: int, connection: Any) -> None:
    for _ in range(5):
        feature = featurecache.open_store(url, cache=cache, cache_bytes=cache_bytes)["whisper"]
        connection.send(b"".join(feature.read([clip_id]).tobytes() for clip_id in ids))


@contextlib.contextmanager
def reading(url: str, cache: Path, ids: list[str], cache_bytes: int = 1 << 30) -> Iterator[tuple[BaseProcess, Any]]:
    """A child that reads a store behind a URL again and again."""
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_read_all, args=(url, cache, ids, cache_bytes, sender))
    process.start()
    sender.close()
    yield process, receiver
    process.join()
    process.close()
    receiver.close()


def test_a_fetch_that_is_killed_leaves_no_half_shard_and_others_fetch_it_once(
    small_store: LocalStore, server: Server, cache: Path
) -> None:
    ids = clip_ids(2)
    server.go_on.clear()
    with reading(server.url, cache, ids) as (process, _):
        assert server.halfway.wait(60)
        process.kill()
    server.go_on.set()
    assert not shards_in(cache)
    assert list((cache / "tmp").iterdir())
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(reading(server.url, cache, ids)) for _ in range(3)]
        expected = small_store["whisper"].read(ids).tobytes()
        assert all(receiver.recv() == expected for _, receiver in children for _ in range(5))
    assert server.asked == 2  # the killed one, and one of the three
    assert not list((cache / "tmp").iterdir())


def test_processes_that_take_each_others_room_still_read_what_is_right(
    small_store: LocalStore, server: Server, cache: Path
) -> None:
    ids = list(small_store["whisper"].ids)
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(reading(server.url, cache, ids, cache_bytes=1)) for _ in range(3)]
        expected = small_store["whisper"].read(ids).tobytes()
        assert all(receiver.recv() == expected for _, receiver in children for _ in range(5))


def test_what_is_too_large_is_refused_before_it_is_read(
    small_store: LocalStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = uploaded(small_store)
    monkeypatch.setattr(remote, "MAX_RECORD_BYTES", 100)
    with pytest.raises(CorruptStoreError, match="at most 100 bytes"):
        featurecache.open_store(url, cache=cache)["whisper"]


def test_a_shard_that_is_longer_than_its_record_says_is_not_fetched_whole(small_store: LocalStore, cache: Path) -> None:
    url = uploaded(small_store)
    memory = fsspec.filesystem("memory")
    memory.pipe_file(url.removeprefix("memory:/") + "/whisper/c/0/0/0", bytes(50 << 20))
    feature = featurecache.open_store(url, cache=cache)["whisper"]
    with pytest.raises(CorruptStoreError, match="got more"):
        feature.read(clip_ids(1))
    assert not shards_in(cache)


def test_a_remote_store_is_looked_at_compared_and_copied_but_not_verified(
    small_store: LocalStore, cache: Path, tmp_path: Path
) -> None:
    remote_store = featurecache.open_store(uploaded(small_store), cache=cache)
    assert store_info(remote_store) == store_info(small_store)
    copy = featurecache.open_store(tmp_path / "copy.zarr", "a")
    convert_store(remote_store, copy)
    assert contents(copy.root) == contents(small_store.root)
    assert all(difference.same for difference in compare_stores(remote_store, small_store))
    with pytest.raises(StoreError, match="where it lies"):
        verify_store(remote_store)


def test_a_missing_library_names_the_extra(cache: Path) -> None:
    with pytest.raises(StoreError, match=r"featurecache\[remote\]"):
        featurecache.open_store("oci://somewhere/s.zarr", cache=cache)
    with pytest.raises(StoreError, match="fsspec can open"):
        featurecache.open_store("nonsense://somewhere/s.zarr", cache=cache)


def _child(feature, ids, queue) -> None:  # type: ignore[no-untyped-def]
    queue.put(feature.read(ids).tobytes())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_reading_goes_on_in_child_processes(tmp_path: Path, method: str) -> None:
    feature = build(tmp_path / "s.zarr")["whisper"]
    ids = list(feature.ids)
    expected = feature.read(ids).tobytes()
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    process = context.Process(target=_child, args=(feature, ids, queue))
    process.start()
    assert queue.get() == expected
    process.join()


def test_a_store_of_many_shards_keeps_few_files_open(tmp_path: Path) -> None:
    writer = featurecache.open_store(tmp_path / "s.zarr", "a").writer("whisper", make_spec(), shard_rows=1)
    writer.plan(clip_ids(120))
    fill(writer)
    feature = featurecache.open_store(tmp_path / "s.zarr")["whisper"]
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for clip_id in feature.ids:
            feature.read([clip_id])
    assert len(os.listdir("/proc/self/fd")) - before <= 66


def test_batches_come_in_order_and_whole(small_store: LocalStore) -> None:
    other = small_store.writer("eva", make_spec("bfloat16", (2, 3)))
    other.plan(clip_ids(6))
    fill(other, failed=clip_ids(1))
    ids = common_ids(small_store, ["eva", "whisper"])
    assert ids == [clip_ids(6)[1], clip_ids(6)[2], clip_ids(6)[3]]
    for prefetch in (0, 2):
        batches = list(iterate(small_store, ["eva", "whisper"], batch_size=2, prefetch=prefetch))
        assert [batch["ids"] for batch in batches] == [ids[:2], ids[2:]]
        assert batches[0]["whisper"].tobytes() == small_store["whisper"].read(ids[:2]).tobytes()
    with pytest.raises(MissingFeatureError):
        list(iterate(small_store, ["eva"], clip_ids(1)))
    assert [len(batch["ids"]) for batch in iterate(small_store, ["eva"], ids[:2] * 5)] == [8, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_reads_a_store(small_store: LocalStore, workers: int) -> None:
    torch = pytest.importorskip("torch")
    from featurecache.store.torch_dataset import FeatureDataset

    other = small_store.writer("eva", make_spec("bfloat16", (2, 3)))
    other.plan(clip_ids(12))
    fill(other)
    dataset = FeatureDataset(small_store)
    small_store["whisper"].read(dataset.ids[:3])
    context = "fork" if workers else None
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=workers, multiprocessing_context=context)
    seen = [clip_id for batch in loader for clip_id in batch["id"]]
    assert seen == dataset.ids
    first = next(iter(loader))
    assert first["eva"].dtype == torch.bfloat16
    assert first["whisper"].shape == (4, 5, 6)
    assert first["whisper"][0].numpy().tobytes() == small_store["whisper"][first["id"][0]].tobytes()


def test_clips_committed_to_a_remote_store_since_it_was_opened_are_told_from_new_ones(
    small_store: LocalStore, cache: Path
) -> None:
    url = uploaded(small_store)
    feature = featurecache.open_store(url, cache=cache)["whisper"]
    writer = small_store.writer("whisper", make_spec())
    writer.plan(clip_ids(13))
    fill(writer)
    assert uploaded(small_store) == url
    with pytest.raises(MissingFeatureError, match="Open the store again"):
        feature.read(clip_ids(13))
    feature.refresh()
    assert np.array_equal(feature[clip_ids(13)[12]], tokens_of(clip_ids(13)[12]).astype(np.float16))
