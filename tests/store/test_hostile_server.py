"""Servers that answer too much, too slowly or something else: an error in time, in little memory, and nothing kept."""

from __future__ import annotations

import contextlib
import functools
import gzip
import http.server
import resource
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_stores import build, clip_ids

import featurecache
from featurecache.errors import CorruptStoreError, StoreError
from featurecache.store import remote_files

pytest.importorskip("aiohttp")

BOMB = gzip.compress(bytes(1 << 20)) * 800  # 800 MiB in 0.8 MB: gzip members follow each other
ONE_BOMB = zlib.compress(bytes(400 << 20), 1, wbits=31)
MEMORY_BYTES = 150 << 20
RECORD, SPEC, PLAN = "/whisper/.fcache/records/00000000", "/whisper/.fcache/spec.json", "/whisper/.fcache/plan/00000"
ROOT, SHARD, LISTING = "/zarr.json", "/whisper/c/0/0/0", "/whisper/.fcache/records/"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, but answers one path in a way of its own."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        with contextlib.suppress(OSError):  # the reader hangs up
            if self.path == self.server.path or self.server.path == "*":
                self.close_connection = True
                self.server.answer(self)
            else:
                super().do_GET()

    def head(self, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()


def chunks(handler: Handler, piece: bytes, pause_s: float = 0.0) -> None:
    while not handler.server.stopping.is_set():
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.server.sent += len(piece)
        time.sleep(pause_s)


def endless(handler: Handler) -> None:
    handler.head(Transfer_Encoding="chunked")
    chunks(handler, b"x" * 65536)


def endless_404(handler: Handler) -> None:
    handler.head(404, Transfer_Encoding="chunked")
    chunks(handler, b"x" * 65536)


def endless_links(handler: Handler) -> None:
    handler.head(Transfer_Encoding="chunked", Content_Type="text/html")
    chunks(handler, b"".join(b'<a href="%08d">x</a>' % number for number in range(2000)))


def gzip_bomb(handler: Handler) -> None:
    handler.head(Content_Encoding="gzip", Content_Length=str(len(ONE_BOMB)))
    handler.wfile.write(ONE_BOMB)


def gzip_bomb_of_many(handler: Handler) -> None:
    handler.head(Content_Encoding="gzip", Content_Length=str(len(BOMB)))
    handler.wfile.write(BOMB)


def unknown_encoding(handler: Handler) -> None:
    handler.head(Content_Encoding="br", Content_Length="4")
    handler.wfile.write(b"abcd")


def large(handler: Handler) -> None:
    handler.head(Content_Length=str(1 << 40))
    chunks(handler, b"x" * 65536)


def silent(handler: Handler) -> None:
    handler.server.stopping.wait(60)


def silent_after_the_head(handler: Handler) -> None:
    handler.head(Content_Length="1000")
    handler.server.stopping.wait(60)


def dripping(handler: Handler) -> None:
    handler.head(Transfer_Encoding="chunked")
    chunks(handler, b"x", 0.02)


def page_for_everything(handler: Handler) -> None:
    body = b"<!doctype html><html><body>Welcome</body></html>"
    handler.head(Content_Length=str(len(body)), Content_Type="text/html")
    handler.wfile.write(body)


def in_a_circle(handler: Handler) -> None:
    handler.head(302, Location=handler.path, Content_Length="0")


def cut_short(handler: Handler) -> None:
    handler.head(Content_Length="100000")
    handler.wfile.write(b"x" * 10)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.path, self.answer = "", silent
        self.stopping = threading.Event()
        self.sent = 0
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Readers hang up."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves a small store at its root; patience is short."""
    monkeypatch.setattr(remote_files, "WAIT_S", 0.4)
    monkeypatch.setattr(remote_files, "PAUSE_S", 0.001)
    store = build(tmp_path / "features.zarr")
    with Server(store.root) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving
        serving.stopping.set()
        serving.shutdown()
        thread.join()


def read(server: Server, cache: Path) -> bytes:
    return featurecache.open_store(server.url, cache=cache)["whisper"].read(clip_ids(2)).tobytes()


@pytest.mark.parametrize(
    "path", [ROOT, RECORD, SHARD, *(pytest.param(path, marks=pytest.mark.slow) for path in (SPEC, PLAN, LISTING))]
)
@pytest.mark.parametrize(
    "answer", [endless, endless_links, gzip_bomb, gzip_bomb_of_many, large, silent, silent_after_the_head, dripping]
)
def test_a_hostile_answer_is_refused_in_time_and_in_little_memory(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, answer: Callable[[Handler], None]
) -> None:
    for name in ("remote.MAX_RECORD_BYTES", "remote.MAX_PLAN_BYTES", "remote_files.MAX_LISTING_BYTES"):
        monkeypatch.setattr(f"featurecache.store.{name}", 1 << 20)
    server.path, server.answer = path, answer
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises((StoreError, CorruptStoreError)) as caught:
        read(server, tmp_path / "cache")
    assert server.url in str(caught.value) or "127.0.0.1" in str(caught.value) or path.strip("/") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 30
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY_BYTES
    assert server.asked.count(path) <= remote_files.ATTEMPTS
    assert not [each for each in (tmp_path / "cache").rglob(".tmp-*") if each.is_file()]
    server.path = ""
    monkeypatch.setattr(remote_files, "WAIT_S", 60.0)
    assert read(server, tmp_path / "cache")  # nothing of it was kept


@pytest.mark.parametrize("answer", [page_for_everything, in_a_circle, unknown_encoding, cut_short, endless_404])
def test_other_strange_answers_are_one_line(server: Server, tmp_path: Path, answer: Callable[[Handler], None]) -> None:
    server.path, server.answer = "*", answer
    with pytest.raises(StoreError) as caught:
        read(server, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert len(server.asked) < 40


def test_a_record_that_cannot_be_had_is_not_taken_for_one_that_is_gone(server: Server, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    read(server, cache)
    (record,) = cache.glob("*/whisper/.fcache/records/00000000")
    server.path, server.answer = RECORD, lambda handler: handler.send_error(503)
    with pytest.raises(StoreError, match="503"):
        featurecache.open_store(server.url, cache=cache)["whisper"]
    assert record.is_file()


def test_answers_packed_by_gzip_are_read(server: Server, tmp_path: Path) -> None:
    root = tmp_path / "features.zarr"
    expected = featurecache.open_store(root)["whisper"].read(clip_ids(2)).tobytes()

    def packed(handler: Handler) -> None:
        place = root / handler.path.lstrip("/")
        if not place.is_file():
            handler.head(404, Content_Length="0")
            return
        body = gzip.compress(place.read_bytes())
        handler.head(Content_Encoding="gzip", Transfer_Encoding="chunked")
        handler.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))

    server.path, server.answer = "*", packed
    assert read(server, tmp_path / "cache") == expected


def test_a_transport_that_never_returns_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    monkeypatch.setattr(remote_files, "WAIT_S", 0.05)
    monkeypatch.setattr(remote_files, "LEAST_BYTES_PER_S", 1 << 40)
    monkeypatch.setattr(remote_files, "PAUSE_S", 0.001)
    waiting = threading.Event()
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "info", lambda *_, **__: waiting.wait(120))
    began = time.monotonic()
    with pytest.raises(StoreError, match="none in time"):
        featurecache.open_store("memory://somewhere", cache=tmp_path)
    waiting.set()
    assert time.monotonic() - began < 60
