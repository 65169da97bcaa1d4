"""From clips to the networks' inputs, on threads: hash, decode once for all encoders, preprocess.

What comes out for a clip and a feature is a `Prepared`: an input, or why there is none. Clips come out in the order
they went in, and only a bounded number is in flight, so memory does not grow with the list. It knows no store.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from featurecache.clips.clip_list import Clip
from featurecache.encoders import Encoder
from featurecache.errors import EncoderError, FeatureCacheError, MediaError
from featurecache.files.hashing import Identity, file_identity
from featurecache.media.crash_guard import CrashGuard
from featurecache.media.decode import Absent, decode_each, media_files
from featurecache.media.faults import machine_at_fault
from featurecache.media.frame_memory import FRAME_MEMORY, Reservation
from featurecache.media.source_hash import clip_source
from featurecache.views import View

CLIP_LIMIT_S = 300.0
"""A clip that takes longer to decode fails; the longest ordinary ones take seconds."""


@dataclass(frozen=True)
class Prepared:
    """One clip, ready for one encoder, or not."""

    source: str
    """Hash of what the view sees; empty where the media cannot be read."""
    input: np.ndarray | None = None
    absent: str = ""
    """Why the clip does not have what the encoder reads."""
    failed: str = ""
    """Why it has it, but it cannot be used."""
    valid: int | None = None
    """How many encoder tokens the clip fills; None for an encoder whose pooling does not ask."""


@dataclass(frozen=True)
class PreparedClip:
    """One clip for every feature that wants it."""

    clip: Clip
    by_feature: Mapping[str, Prepared]
    hash_s: float
    decode_s: float
    preprocess_s: float
    notices: Sequence[str] = ()
    """What a person should know of it although it is usable."""

    @property
    def input_bytes(self) -> int:
        """Size of all inputs; one that features share counts once."""
        inputs = {id(each.input): each.input for each in self.by_feature.values() if each.input is not None}
        return sum(array.nbytes for array in inputs.values())


def prepare(
    clip: Clip,
    encoders: Mapping[str, Encoder],
    sharing: Mapping[str, str] | None = None,
    limit_s: float | None = None,
    guard: CrashGuard | None = None,
) -> PreparedClip:
    """Hash, decode and preprocess one clip for `encoders`, by feature name; bad media are a result, no error.

    Features with an equal value in `sharing` get one and the same input. Decoding stops after `limit_s`. With a
    `guard`, a crash of the decoder costs the process once, and this clip alone after that.

    Raises:
        Exception: whatever is no fault of the clip's media, with a note that names the clip.
    """
    try:
        with FRAME_MEMORY.reserve() as memory:
            return _prepare(clip, encoders, sharing or {}, limit_s, memory, guard)
    except Exception as error:
        error.add_note(f'This happened while clip "{clip.id}" was prepared; its media are not at fault.')
        raise


def _prepare(
    clip: Clip,
    encoders: Mapping[str, Encoder],
    sharing: Mapping[str, str],
    limit_s: float | None,
    memory: Reservation,
    guard: CrashGuard | None,
) -> PreparedClip:
    began = time.perf_counter()
    views = [encoder.view for encoder in encoders.values()]
    before = _identities(clip, views)
    notices: list[str] = []
    with contextlib.nullcontext() if guard is None else guard.decoding(clip.id) as apart:
        if apart is None:
            decoded = decode_each(clip, views, limit_s, memory, notices)
        else:
            decoded = apart.decode_each(clip, views, limit_s, notices)
    decoded_at = time.perf_counter()
    sources = {view: _source_of(clip, view) for view in dict.fromkeys(views)}
    if _identities(clip, views) != before:
        sources = dict.fromkeys(views, OSError(errno.EBUSY, "a file that changes while it is read"))
    hashed_at = time.perf_counter()
    results: dict[str, Prepared] = {}
    inputs: dict[str, np.ndarray | MediaError] = {}
    for index, (name, encoder) in enumerate(encoders.items()):
        source, view = sources[encoder.view], decoded[index]
        if isinstance(source, OSError) and not isinstance(view, MediaError):
            results[name] = Prepared("", failed=reason_of(source))  # tokens of a file that is gone are of no file
        elif isinstance(view, MediaError):
            results[name] = Prepared("" if isinstance(source, OSError) else source, failed=reason_of(view))
        elif isinstance(view, Absent):
            results[name] = Prepared(source, absent=view.reason)  # type: ignore[arg-type]
        else:
            key = sharing.get(name, name)
            if key not in inputs:
                inputs[key] = _preprocessed(encoder, view)
            results[name] = _prepared(name, encoder, source, view, inputs[key])  # type: ignore[arg-type]
    ended = time.perf_counter()
    return PreparedClip(clip, results, hashed_at - decoded_at, decoded_at - began, ended - hashed_at, notices)


def _identities(clip: Clip, views: Sequence[View]) -> list[Identity | None]:
    """Tell whether files change between decoding and hashing: their tokens would be those of no file."""
    files = dict.fromkeys(path for view in views for path in media_files(clip, view))
    found: list[Identity | None] = []
    for path in files:
        try:
            found.append(file_identity(path))
        except OSError:
            found.append(None)
    return found


Job = tuple[Clip, Mapping[str, Encoder]]


def prepare_all(
    jobs: Iterable[Job],
    pool: ThreadPoolExecutor,
    in_flight: int,
    sharing: Mapping[str, str] | None = None,
    limit_s: float | None = None,
    guard: CrashGuard | None = None,
) -> Iterator[PreparedClip]:
    """Prepare clips on the pool and yield them in order; at most `in_flight` are held at once."""
    waiting: deque[Future[PreparedClip]] = deque()
    try:
        for clip, encoders in jobs:
            waiting.append(pool.submit(prepare, clip, encoders, sharing, limit_s, guard))
            if len(waiting) >= in_flight:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def current_source(clip: Clip, view: View) -> str:
    """Return the clip's source hash, or an empty string where its media are not here to be hashed."""
    try:
        return clip_source(clip, view)
    except OSError:
        return ""


def _source_of(clip: Clip, view: View) -> str | OSError:
    """Return the clip's source hash, or why its file cannot be read."""
    try:
        return clip_source(clip, view)
    except OSError as error:
        if machine_at_fault(error):
            raise
        return error


def _preprocessed(encoder: Encoder, view: np.ndarray) -> np.ndarray | MediaError:
    """Return an encoder's input, or its MediaError: it alone says that a clip is at fault and not the encoder."""
    try:
        return encoder.preprocess(view)
    except MediaError as error:
        return error


def _prepared(
    feature: str, encoder: Encoder, source: str, view: np.ndarray, given: np.ndarray | MediaError
) -> Prepared:
    if isinstance(given, MediaError):
        return Prepared(source, failed=reason_of(given))
    if not getattr(encoder, "needs_valid", False):
        return Prepared(source, input=given)
    valid = int(encoder.num_valid(view))  # type: ignore[attr-defined]
    if valid < 1:
        raise EncoderError(f"{feature}: num_valid", expected="at least 1 token of a clip", got=str(valid))
    return Prepared(source, input=given, valid=valid)


def reason_of(error: Exception) -> str:
    """Return one line for the record: no clip id, which is beside it, and no path, which no store may hold."""
    if isinstance(error, MediaError):
        text = str(error).removeprefix(error.subject + ": ")
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror
    elif isinstance(error, FeatureCacheError):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}"
    return " ".join(text.split()).rstrip(".")[:500]
