"""Prepare clips: hash the media, decode once for all encoders, preprocess.

The result per clip and feature is an `EncoderInput`: the network's input, or the reason why there is none. Clips are
yielded in the order of submission, and only a bounded number is in flight, so memory does not grow with the list.
Threads prepare clips themselves (`prepare`), or each lets a process do it (`decode_processes`). This module knows no
store.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np

from featurecache.clips.clip_list import Clip
from featurecache.encoders import Encoder
from featurecache.errors import EncoderError, FeatureCacheError, MediaError
from featurecache.files.hashing import Identity, file_identity
from featurecache.media.container import machine_at_fault
from featurecache.media.crash_guard import CrashGuard
from featurecache.media.decode import Absent, Decoded, clip_source, decode_each, media_files
from featurecache.media.frames import FRAME_MEMORY
from featurecache.views import View

DecodeIn = Literal["auto", "threads", "processes"]
CLIP_LIMIT_S = 300.0
"""A clip that takes longer to decode fails; ordinary long clips take seconds."""


@dataclass(frozen=True)
class EncoderInput:
    """One clip for one encoder: `array`, or the reason `absent`, or the reason `failed`."""

    source: str
    """Hash of what the view reads; empty where the media cannot be read."""
    array: np.ndarray | None = None
    """Output of `Encoder.preprocess`."""
    absent: str = ""
    """Why the clip lacks the modality that the encoder reads."""
    failed: str = ""
    """Why the clip's media cannot be used."""
    num_valid: int | None = None
    """Encoder tokens that the clip fills; None for an encoder whose pooling ignores it."""


@dataclass(frozen=True)
class ClipInputs:
    """One clip for all features that need it."""

    clip: Clip
    by_feature: Mapping[str, EncoderInput]
    hash_s: float
    decode_s: float
    preprocess_s: float
    notices: Sequence[str] = ()
    """Remarks about a clip that is usable."""

    @property
    def input_bytes(self) -> int:
        """Size of all inputs; an array that features share counts once."""
        arrays = {id(item.array): item.array for item in self.by_feature.values() if item.array is not None}
        return sum(array.nbytes for array in arrays.values())


def prepare(
    clip: Clip,
    encoders: Mapping[str, Encoder],
    sharing: Mapping[str, str] | None = None,
    limit_s: float | None = None,
    guard: CrashGuard | None = None,
) -> ClipInputs:
    """Hash, decode and preprocess one clip for `encoders`, by feature name. Bad media give a result, not an error.

    Features with an equal value in `sharing` get the same input array. Decoding stops after `limit_s`. With a
    `guard`, a clip that has crashed a process in its decoder is decoded in a child process.

    Raises:
        Exception: any error that the clip's media did not cause, with a note that names the clip.
    """
    with named_in_errors(clip), FRAME_MEMORY.reserve() as memory:

        def decode(views: Sequence[View], notices: list[str]) -> Sequence[Decoded | MediaError]:
            with contextlib.nullcontext() if guard is None else guard.decoding(clip.id) as isolated_decoder:
                if isolated_decoder is None:
                    return decode_each(clip, views, limit_s, memory, notices)
                return isolated_decoder.decode_each(clip, views, limit_s, notices)

        return prepare_with(decode, clip, encoders, sharing or {})


@contextlib.contextmanager
def named_in_errors(clip: Clip) -> Iterator[None]:
    """Add a note with the clip's name to an error that leaves the block."""
    try:
        yield
    except Exception as error:
        error.add_note(f'This happened while clip "{clip.id}" was prepared; its media are not at fault.')
        raise


def prepare_with(
    decode: Callable[[Sequence[View], list[str]], Sequence[Decoded | MediaError]],
    clip: Clip,
    encoders: Mapping[str, Encoder],
    sharing: Mapping[str, str],
) -> ClipInputs:
    """Prepare a clip; `decode` receives its views and a list for notices, and returns what they show, or an error."""
    began = time.perf_counter()
    views = [encoder.view for encoder in encoders.values()]
    identities = _identities(clip, views)
    notices: list[str] = []
    decoded = decode(views, notices)
    decoded_at = time.perf_counter()
    sources = {view: source_or_error(clip, view) for view in dict.fromkeys(views)}
    if _identities(clip, views) != identities:  # the hash may not be that of the decoded bytes
        sources = dict.fromkeys(views, OSError(errno.EBUSY, "a file that changes while it is read"))
    hashed_at = time.perf_counter()
    inputs: dict[str, EncoderInput] = {}
    arrays: dict[str, np.ndarray | MediaError] = {}
    for (name, encoder), view in zip(encoders.items(), decoded, strict=True):
        source = sources[encoder.view]
        if isinstance(view, MediaError):
            inputs[name] = EncoderInput("" if isinstance(source, OSError) else source, failed=reason_of(view))
        elif isinstance(source, OSError):  # without a hash, nothing says which bytes the tokens belong to
            inputs[name] = EncoderInput("", failed=reason_of(source))
        elif isinstance(view, Absent):
            inputs[name] = EncoderInput(source, absent=view.reason)
        else:
            key = sharing.get(name, name)
            if key not in arrays:
                arrays[key] = _preprocessed(encoder, view)
            inputs[name] = _encoder_input(name, encoder, source, view, arrays[key])
    ended = time.perf_counter()
    return ClipInputs(clip, inputs, hashed_at - decoded_at, decoded_at - began, ended - hashed_at, notices)


def _identities(clip: Clip, views: Sequence[View]) -> list[Identity | None]:
    """Return the identity of each media file, None for a file that is missing; differs if a file has changed."""
    identities: list[Identity | None] = []
    for path in dict.fromkeys(path for view in views for path in media_files(clip, view)):
        try:
            identities.append(file_identity(path))
        except OSError:
            identities.append(None)
    return identities


PreparationTask = tuple[Clip, Mapping[str, Encoder]]
"""A clip and the encoders that need it, by feature name."""
PrepareClip = Callable[[Clip, Mapping[str, Encoder]], ClipInputs]


def prepare_all(
    tasks: Iterable[PreparationTask],
    pool: ThreadPoolExecutor,
    in_flight: int,
    prepare_clip: PrepareClip = prepare,
) -> Generator[ClipInputs, None, None]:
    """Prepare clips on the threads of `pool` and yield them in order; at most `in_flight` are held at once."""
    waiting: deque[Future[ClipInputs]] = deque()
    try:
        for clip, encoders in tasks:
            waiting.append(pool.submit(prepare_clip, clip, encoders))
            if len(waiting) >= in_flight:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def current_source(clip: Clip, view: View) -> str:
    """Return the clip's source hash, or an empty string where its media cannot be read."""
    try:
        return clip_source(clip, view)
    except OSError:
        return ""


def source_or_error(clip: Clip, view: View) -> str | OSError:
    """Return the clip's source hash, or the error of reading its file. An error of the machine is raised."""
    try:
        return clip_source(clip, view)
    except OSError as error:
        if machine_at_fault(error):
            raise
        return error


def _preprocessed(encoder: Encoder, view: np.ndarray) -> np.ndarray | MediaError:
    """Return the encoder's input or its MediaError, the only error that blames the clip and not the encoder."""
    try:
        return encoder.preprocess(view)
    except MediaError as error:
        return error


def _encoder_input(
    feature: str, encoder: Encoder, source: str, view: np.ndarray, array: np.ndarray | MediaError
) -> EncoderInput:
    if isinstance(array, MediaError):
        return EncoderInput(source, failed=reason_of(array))
    if not encoder.needs_valid:
        return EncoderInput(source, array)
    num_valid = int(encoder.num_valid(view))
    if num_valid < 1:
        raise EncoderError(f"{feature}: num_valid", expected="at least 1 token per clip", got=str(num_valid))
    return EncoderInput(source, array, num_valid=num_valid)


def reason_of(error: Exception) -> str:
    """Return one line for a clip's record, without the clip id and without any path: no store may hold a path."""
    if isinstance(error, MediaError):
        text = str(error).removeprefix(error.subject + ": ")
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror
    elif isinstance(error, FeatureCacheError):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}"
    return " ".join(text.split()).rstrip(".")[:500]
