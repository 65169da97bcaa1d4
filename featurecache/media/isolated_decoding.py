"""Decode clips in a child process, in which a crash of a native library affects only the clip that is being decoded.

    parent: one line of JSON (clip, views, limit) -> child: one line of JSON per view, each followed by an array's bytes
    a request without views opens the clip's files, as `decode.header_problem` does

The child decodes one clip at a time. If it dies of a fault (SIGSEGV, SIGBUS, SIGABRT, SIGILL, SIGFPE), the clip crashed
it. If it is killed by another signal, the request is repeated once. If several views crash it together, each view is
decoded separately, so that a bad sound track leaves the frames usable. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from featurecache.clips.clip_list import MEDIA_KINDS, Clip
from featurecache.clips.crop import parse_crop
from featurecache.errors import MediaError
from featurecache.media.decode import Absent, Decoded, decode_each, header_problem
from featurecache.views import AudioView, FramesView, TextView, View

FAULTS = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE})
PROGRAM = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from featurecache.media.isolated_decoding import serve
serve()"""
_VIEWS = {kind.__name__: kind for kind in (AudioView, FramesView, TextView)}

Result = Decoded | MediaError


class IsolatedDecoder:
    """The parent's side. The child starts with the first request; threads use it in turn."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def decode_each(
        self, clip: Clip, views: Sequence[View], limit_s: float | None = None, notices: list[str] | None = None
    ) -> list[Result]:
        """Decode as `decode.decode_each`; a view that crashes the decoder is a MediaError.

        Raises:
            RuntimeError: the child ended with an error of its own, which it has printed.
        """
        distinct = list(dict.fromkeys(views))
        with self._lock:
            results = self._request(clip, distinct, limit_s, notices)
            if isinstance(results, MediaError):
                if len(distinct) > 1:
                    replies = [self._request(clip, [view], limit_s, notices) for view in distinct]
                    results = [reply if isinstance(reply, MediaError) else reply[0] for reply in replies]
                else:
                    results = [results]
        by_view = dict(zip(distinct, results, strict=True))
        return [result for view in views if (result := by_view[view]) is not None]

    def header_problem(self, clip: Clip) -> MediaError | None:
        """Open the files as `decode.header_problem`; a header that crashes the decoder is a problem too."""
        with self._lock:
            results = self._request(clip, [], None, None)
        problem = results if isinstance(results, MediaError) else results[0]
        return problem if isinstance(problem, MediaError) else None

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._wait()

    def _request(
        self, clip: Clip, views: Sequence[View], limit_s: float | None, notices: list[str] | None
    ) -> list[Result | None] | MediaError:
        """Decode in the child; return the results, or one error if the clip killed the child."""
        request = _encoded_request(clip, views, limit_s)
        for _ in range(2):
            child = self._child = self._child or _start()
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                child.stdin.write(request)
                child.stdin.flush()
                return _reply(child.stdout, clip, notices)
            except (EOFError, BrokenPipeError):
                code = self._wait()
            if code >= 0:
                raise RuntimeError(f"the process that decodes apart ended with {code}")
            if -code in FAULTS:
                break
        return crash_error(clip, code)

    def _wait(self) -> int:
        """Close the pipes of the child that has ended or was killed, and return its exit code."""
        child, self._child = self._child, None
        assert child is not None
        for stream in (child.stdin, child.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):  # a flush of unsent bytes
                stream.close()
        return child.wait()


def crash_error(clip: Clip, code: int, what: str = "the decoder") -> MediaError:
    """Return the error of a clip that ended a process with the exit code `code`, minus the number of a signal.

    A fault is the clip's at once; another signal only if it ended two processes.
    """
    name = signal.Signals(-code).name
    killed = f"{what} was killed twice ({name}), perhaps for want of memory"
    return MediaError(f'clip "{clip.id}"', got=f"{what} crashed ({name})" if -code in FAULTS else killed)


def _start() -> subprocess.Popen[bytes]:
    # In a separate session: Ctrl-C and a closed terminal signal the parent only, which then ends the child.
    arguments = [sys.executable, "-c", PROGRAM, json.dumps(sys.path)]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)


def _encoded_request(clip: Clip, views: Sequence[View], limit_s: float | None) -> bytes:
    fields = {name: getattr(clip, name) for name in ("id", "text", "peak_frame", "start_s", "end_s", "mute")}
    fields |= {kind: str(path) for kind in MEDIA_KINDS if (path := getattr(clip, kind)) is not None}
    if clip.crop is not None:
        fields["crop"] = clip.crop.as_json()
    # Classes by name: the views of an exported model belong to its own copy of this package.
    request = {"clip": fields, "views": [[type(view).__name__, asdict(view)] for view in views], "limit_s": limit_s}
    return json.dumps(request).encode() + b"\n"


def _reply(stream: IO[bytes], clip: Clip, notices: list[str] | None) -> list[Result | None]:
    head = _line(stream)
    results: list[Result | None] = []
    for _ in range(head["results"]):
        result = _line(stream)
        if "absent" in result:
            results.append(Absent(result["absent"]))
        elif "error" in result:
            results.append(MediaError(f'clip "{clip.id}"', **result["error"]))
        elif not result:
            results.append(None)
        else:
            array = np.empty(result["shape"], result["dtype"])
            # `readinto` fills the array without a copy.
            num_bytes = stream.readinto(array.reshape(-1).view(np.uint8))  # type: ignore[attr-defined]  # not in IO
            if num_bytes != array.nbytes:
                raise EOFError
            results.append(array)
    if notices is not None:
        notices += head["notices"]
    return results


def _line(stream: IO[bytes]) -> dict[str, Any]:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    return json.loads(line)


def serve() -> None:
    """Answer requests until the parent closes the pipe; runs in the child."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries that print to stdout print to stderr instead of into the replies
    for line in sys.stdin.buffer:
        request = json.loads(line)
        fields = request["clip"]
        media: dict[str, Any] = {kind: Path(fields.pop(kind)) for kind in MEDIA_KINDS if kind in fields}
        crop = parse_crop(fields.pop("crop"))[1] if "crop" in fields else None
        clip = Clip(**fields, **media, crop=crop)
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
