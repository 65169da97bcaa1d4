"""Decode the views that encoders read of a clip: a waveform, frames or words.

Shapes: waveform (S,) float32 mono in [-1, 1] at the view's rate; frames (F, H, W, 3) uint8 RGB, as displayed (turned,
mirrored and stretched as the recording states), at the size of the recording, or of the clip's crop of it; words
(bytes,) uint8, the UTF-8 of the clip's text, without a file.

Each file of a clip is decoded once for all its views (`recording`). Frames are numbered in display order from 0 within
the part of the file between `start_s` and `end_s`. A "uniform" view takes frame floor((i + 0.5)·N / F) of N frames:
equal parts by frame number, also if the frame rate varies.

A view that the clip has no media for is an `Absent` value. A view that cannot be decoded is a MediaError. A frame that
a damaged file no longer holds is never replaced by an earlier one. This module knows no network and no store.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from av.error import FFmpegError

from featurecache.clips.clip_list import MEDIA_KINDS, Clip
from featurecache.errors import MediaError
from featurecache.files.hashing import file_sha256
from featurecache.files.regular_file import NotAFileError
from featurecache.media.container import PointerError, machine_at_fault, raised_by_this_package
from featurecache.media.frames import Reservation, frame_indices
from featurecache.media.recording import Absent, Decoded, Recording, media_error
from featurecache.media.still import check_still, read_still
from featurecache.spec import canonical_json
from featurecache.views import AudioView, FramesView, TextView, View

__all__ = ["Absent", "Decoded", "decode", "decode_each", "frame_indices", "media_files"]

HEADER_LIMIT_S = 20.0
T = TypeVar("T")


def decode(clip: Clip, views: Sequence[View]) -> list[Decoded]:
    """Decode every view of one clip: (S,) float32, (F, H, W, 3) uint8, (bytes,) uint8, or `Absent` per view.

    Raises:
        MediaError: the media of any view cannot be decoded.
    """
    decoded: list[Decoded] = []
    for result in decode_each(clip, views):
        if isinstance(result, MediaError):
            raise result
        decoded.append(result)
    return decoded


def decode_each(
    clip: Clip,
    views: Sequence[View],
    limit_s: float | None = None,
    memory: Reservation | None = None,
    notices: list[str] | None = None,
) -> list[Decoded | MediaError]:
    """Decode as `decode`, but return the error of a view in its place: a bad sound track leaves the frames usable.

    Args:
        limit_s: a file that takes longer is an error.
        memory: reserves the memory of decoded frames.
        notices: receives lines for the user about a clip that is usable.
    """
    results: dict[View, Decoded | MediaError] = {}
    from_file: dict[tuple[Path, str], list[View]] = {}
    for view in dict.fromkeys(views):
        if isinstance(view, TextView):
            results[view] = _words(clip)
            continue
        source, kind = _source(clip, view)
        if source is None:
            results[view] = Absent(kind)
        elif kind == "image":
            results[view] = _media_error_caught(clip, source, kind, partial(read_still, clip, source))
        else:
            from_file.setdefault((source, kind), []).append(view)
    for (path, kind), views_of_file in from_file.items():
        recording = Recording(clip, path, kind, limit_s, memory)
        decoded = _media_error_caught(clip, path, kind, partial(recording.decode, views_of_file))
        if notices is not None and recording.notice:
            notices.append(recording.notice)
        results.update(dict.fromkeys(views_of_file, decoded) if isinstance(decoded, MediaError) else decoded)
    if clip.crop is not None:
        for view, result in results.items():
            if isinstance(view, FramesView) and isinstance(result, np.ndarray):
                results[view] = clip.crop.apply(result)
    return [results[view] for view in views]


def frame_times_s(clip: Clip, view: FramesView, limit_s: float | None = None) -> list[float] | None:
    """Return when each frame of a view is shown, in seconds from the start of the clip, without decoding.

    None for a still picture, and for a file without pictures, without times or with an error, which `decode` reports.
    """
    path, kind = _source(clip, view)
    if path is None or kind == "image":
        return None
    recording = Recording(clip, path, kind, limit_s)
    times = _media_error_caught(clip, path, kind, partial(recording.frame_times_s, view))
    return None if isinstance(times, MediaError) else times


def header_problem(clip: Clip) -> MediaError | None:
    """Open every file of a clip without decoding; return the error of the first that cannot be used, or None."""
    for kind in MEDIA_KINDS:
        path = getattr(clip, kind)
        if path is None:
            continue
        check: Callable[[], None] = partial(check_still, clip, path)
        if kind != "image":
            check = Recording(clip, path, kind, HEADER_LIMIT_S).check_header
        problem = _media_error_caught(clip, path, kind, check)
        if problem is not None:
            return problem
    return None


def media_files(clip: Clip, view: View) -> list[Path]:
    """Return the files that decide what `view` shows of this clip; empty if it has none."""
    if isinstance(view, TextView):
        return []
    source, _ = _source(clip, view)
    return [] if source is None else [source]


def _words(clip: Clip) -> Decoded:
    """Return the UTF-8 bytes of the clip's text; text of white space only is none."""
    if clip.text is None or not clip.text.strip():
        return Absent("no text in the clip list")
    return np.frombuffer(clip.text.encode("utf-8"), np.uint8)


def _source(clip: Clip, view: AudioView | FramesView) -> tuple[Path | None, str]:
    """Return the file that a view reads and its kind, or None and the reason why there is none."""
    if isinstance(view, AudioView):
        if clip.mute:
            return None, "the clip is mute: its sound is not that of the person"
        path, kind = (clip.audio, "audio") if clip.audio else (clip.video, "video")
        return path, kind if path else "no audio or video file in the clip list"
    if view.still and clip.image:
        return clip.image, "image"
    return clip.video, "video" if clip.video else "no video file in the clip list"


def _media_error_caught(clip: Clip, path: Path, kind: str, read: Callable[[], T]) -> T | MediaError:
    """Return the result of `read`, or as a value the MediaError of any error that the file causes.

    Messages name the file by its kind, not by its path: stores keep them and hold no paths, and equal texts are
    counted together.
    """
    try:
        return read()
    except MediaError as error:
        return error
    except FileNotFoundError:
        return media_error(clip, f"its {kind} file", "no such file")
    except NotAFileError as error:
        return media_error(clip, f"its {kind} file", str(error.strerror))
    except PointerError as error:
        return media_error(clip, f"its {kind} file to be a recording itself", str(error.strerror))
    except FFmpegError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return media_error(clip, f"its {kind} file to be readable", _in_words(error))
    except OSError as error:
        if machine_at_fault(error):
            raise
        return media_error(clip, f"its {kind} file to be readable", _in_words(error))
    except (ValueError, ArithmeticError, LookupError, RuntimeError, MemoryError) as error:
        if raised_by_this_package(error):
            raise
        return media_error(clip, f"its {kind} file to be readable", "damage within it")


FFMPEG_ERRORS = {
    errno.EPERM: "a list of other files",  # libav may open no other file
    errno.ENOMEM: "headers that ask for more memory than there is",
    errno.EAGAIN: "nothing that can be decoded",
    errno.EIO: "an error of reading, or an end within its headers",
    errno.EINVAL: "contradicting headers, or a format that holds neither pictures nor sound",
}


def _in_words(error: OSError | FFmpegError) -> str:
    if isinstance(error, EOFError):
        return "an end before any content"
    if isinstance(error, FFmpegError) and error.errno in FFMPEG_ERRORS:
        return FFMPEG_ERRORS[error.errno]
    text = (error.strerror or type(error).__name__).partition(",")[0]
    return "damage within it" if text.startswith("Error number") else text[:1].lower() + text[1:]


def clip_source(clip: Clip, view: View) -> str:
    """Hash the media bytes of a clip, and the part of them that `view` uses, to 64 hex digits.

    A store keeps this hash with the tokens. Renaming or moving a file does not change it. The bytes of the file, the
    clip's start and end, for a view of frames its crop, and for a view of the peak frame the peak frame change it;
    text, labels and split do not. The hash of a view of words is that of the text only. A view without media has a hash
    too.

    Raises:
        OSError: a media file cannot be read.
    """
    if isinstance(view, TextView):
        return hashlib.sha256(canonical_json({"text": clip.text}).encode("ascii")).hexdigest()
    files = media_files(clip, view)
    identity: dict[str, object] = {"media": [file_sha256(path) for path in files]}
    if isinstance(view, FramesView) and files and files[0] == clip.image:
        identity["still"] = True
    elif files:
        identity |= {"start_s": clip.start_s, "end_s": clip.end_s}
        if isinstance(view, FramesView) and view.rule == "peak":
            identity["peak_frame"] = clip.peak_frame
    if isinstance(view, FramesView) and files and clip.crop is not None:  # without one, the hashes of earlier versions
        identity["crop"] = clip.crop.as_json()
    return hashlib.sha256(canonical_json(identity).encode("ascii")).hexdigest()
