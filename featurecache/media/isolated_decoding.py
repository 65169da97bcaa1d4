"""Decode clips in a child process, where a crash of a native library costs that clip and nothing else.

    parent: one line of JSON (clip, views, limit) -> child: one line of JSON a view, and the array's bytes after it
    without views the child opens the clip's files, as `media.header_problem` does

The child has one clip at a time. One that dies of a fault (SIGSEGV, SIGBUS, SIGABRT, SIGILL, SIGFPE) was crashed by its
clip; one that was killed is asked again once. Where several views crash it together, each is tried alone, so that a bad
sound track leaves the frames usable. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from featurecache.clips.clip_list import MEDIA_KINDS, Clip
from featurecache.clips.crop import parse_crop
from featurecache.errors import MediaError
from featurecache.media.decode import Absent, Decoded, decode_each, header_problem
from featurecache.views import AudioView, FramesView, View

FAULTS = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE})
PROGRAM = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from featurecache.media.isolated_decoding import serve
serve()"""
_VIEWS = {kind.__name__: kind for kind in (AudioView, FramesView)}

Result = Decoded | MediaError


class DecodingApart:
    """The parent's side. The child starts with the first clip; threads take turns."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()

    def decode_each(
        self, clip: Clip, views: Sequence[View], limit_s: float | None = None, notices: list[str] | None = None
    ) -> list[Result]:
        """As `media.decode_each`; a view that crashes the decoder is a MediaError.

        Raises:
            RuntimeError: the child ended with an error of its own, which it has printed.
        """
        distinct = list(dict.fromkeys(views))
        with self._turn:
            found = self._ask(clip, distinct, limit_s, notices)
            if isinstance(found, MediaError):
                alone = (
                    [self._ask(clip, [view], limit_s, notices) for view in distinct] if len(distinct) > 1 else [found]
                )
                found = [result if isinstance(result, MediaError) else result[0] for result in alone]
        by_view = dict(zip(distinct, found, strict=True))
        return [by_view[view] for view in views]

    def header_problem(self, clip: Clip) -> MediaError | None:
        """As `media.header_problem`; a header that crashes the decoder is a problem too."""
        with self._turn:
            found = self._ask(clip, [], None, None)
        return found if isinstance(found, MediaError) else found[0]  # type: ignore[return-value]

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._ended()

    def _ask(
        self, clip: Clip, views: Sequence[View], limit_s: float | None, notices: list[str] | None
    ) -> list[Result | None] | MediaError:
        """Decode in the child; the error is that of a child that the clip has killed."""
        request = _request(clip, views, limit_s)
        for _ in range(2):
            child = self._child = self._child or _start()
            try:
                child.stdin.write(request)  # type: ignore[union-attr]
                child.stdin.flush()  # type: ignore[union-attr]
                return _reply(child.stdout, clip, notices)  # type: ignore[arg-type]
            except (EOFError, BrokenPipeError):
                code = self._ended()
            if code >= 0:
                raise RuntimeError(f"the process that decodes apart ended with {code}")
            name = signal.Signals(-code).name
            if -code in FAULTS:
                return MediaError(f'clip "{clip.id}"', got=f"the decoder crashed ({name})")
        return MediaError(f'clip "{clip.id}"', got=f"the decoder was killed twice ({name}), perhaps for want of memory")

    def _ended(self) -> int:
        child, self._child = self._child, None
        assert child is not None
        for stream in (child.stdin, child.stdout):
            with _ignoring_broken_pipes(), stream:  # type: ignore[union-attr]
                pass
        return child.wait()


def _start() -> subprocess.Popen[bytes]:
    # In a session of its own: Ctrl-C and a closed terminal are for the parent, which ends it.
    arguments = [sys.executable, "-c", PROGRAM, json.dumps(sys.path)]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)


class _ignoring_broken_pipes:  # noqa: N801
    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> bool:
        return kind is not None and issubclass(kind, BrokenPipeError)


def _request(clip: Clip, views: Sequence[View], limit_s: float | None) -> bytes:
    described = {name: getattr(clip, name) for name in ("id", "peak_frame", "start_s", "end_s")}
    described |= {kind: str(path) for kind in MEDIA_KINDS if (path := getattr(clip, kind)) is not None}
    if clip.crop is not None:
        described["crop"] = clip.crop.as_json()
    # By name: the views of an exported model are of its own copy of this package.
    request = {"clip": described, "views": [[type(view).__name__, asdict(view)] for view in views], "limit_s": limit_s}
    return json.dumps(request).encode() + b"\n"


def _reply(stream: BinaryIO, clip: Clip, notices: list[str] | None) -> list[Result | None]:
    head = _line(stream)
    results: list[Result | None] = []
    for _ in range(head["results"]):
        told = _line(stream)
        if "absent" in told:
            results.append(Absent(told["absent"]))
        elif "error" in told:
            results.append(MediaError(f'clip "{clip.id}"', **told["error"]))
        elif not told:
            results.append(None)
        else:
            array = np.empty(told["shape"], told["dtype"])
            if stream.readinto(array.reshape(-1).view(np.uint8)) != array.nbytes:  # type: ignore[attr-defined]
                raise EOFError
            results.append(array)
    if notices is not None:
        notices += head["notices"]
    return results


def _line(stream: BinaryIO) -> dict[str, Any]:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    return json.loads(line)


def serve() -> None:
    """Run in the child: answer requests until there are none."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no reply
    for line in sys.stdin.buffer:
        request = json.loads(line)
        described = request["clip"]
        media: dict[str, Any] = {kind: Path(described.pop(kind)) for kind in MEDIA_KINDS if kind in described}
        crop = parse_crop(described.pop("crop"))[1] if "crop" in described else None
        clip = Clip(**described, **media, crop=crop)
        views = [_VIEWS[kind](**values) for kind, values in request["views"]]
        notices: list[str] = []
        results: Sequence[Result | None] = (
            decode_each(clip, views, request["limit_s"], None, notices) if views else [header_problem(clip)]
        )
        _write_line(replies, {"notices": notices, "results": len(results)})
        for result in results:
            if result is None:
                _write_line(replies, {})
            elif isinstance(result, Absent):
                _write_line(replies, {"absent": result.reason})
            elif isinstance(result, MediaError):
                error = {"expected": result.expected, "got": result.got, "next_step": result.next_step}
                _write_line(replies, {"error": error})
            else:
                _write_line(replies, {"shape": result.shape, "dtype": result.dtype.str})
                replies.write(np.ascontiguousarray(result).reshape(-1).view(np.uint8).data)
        replies.flush()


def _write_line(stream: BinaryIO, value: Any) -> None:
    stream.write(json.dumps(value).encode() + b"\n")
