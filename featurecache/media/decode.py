"""Decode what the encoders ask of a clip: a waveform, frames, or the fact that it has none.

Shapes: waveform (S,) float32 mono in [-1, 1] at the view's rate; frames (F, H, W, 3) uint8 RGB, as displayed (turned,
mirrored and stretched as the recording says), at the size of the recording, or of the clip's crop of it.

Each file of a clip is decoded once for all views of it (`recording`). Frames are numbered in display order from 0
within the part of the file between `start_s` and `end_s`. A "uniform" view takes frame floor((i + 0.5)·N / F) of N
frames: equal parts by frame number, also where the frame rate varies.

What a clip does not have is an `Absent` value; what it has but cannot be decoded is a MediaError, and a frame that a
damaged file no longer holds is never replaced by an earlier one. This module knows no network and no store.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from av.error import FFmpegError

from featurecache.clips.clip_list import MEDIA_KINDS, Clip
from featurecache.errors import MediaError
from featurecache.files.regular_file import NotAFileError
from featurecache.media.container import PointerError
from featurecache.media.faults import machine_at_fault, raised_here
from featurecache.media.frame_memory import Reservation
from featurecache.media.frames import frame_indices
from featurecache.media.recording import Absent, Decoded, Recording, media_error
from featurecache.media.still import check_still, read_still
from featurecache.views import AudioView, FramesView, View

__all__ = ["Absent", "Decoded", "decode", "decode_each", "frame_indices", "media_files"]

HEADER_LIMIT_S = 20.0


def decode(clip: Clip, views: Sequence[View]) -> list[Decoded]:
    """Decode every view of one clip: (S,) float32 or (F, H, W, 3) uint8 each, or `Absent`.

    Raises:
        MediaError: the media of any view cannot be decoded.
    """
    results = decode_each(clip, views)
    for result in results:
        if isinstance(result, MediaError):
            raise result
    return results  # type: ignore[return-value]


def decode_each(
    clip: Clip,
    views: Sequence[View],
    limit_s: float | None = None,
    memory: Reservation | None = None,
    notices: list[str] | None = None,
) -> list[Decoded | MediaError]:
    """As `decode`, with the error of a view in its place, so that a bad sound track leaves the frames usable.

    A file that takes longer than `limit_s` is an error. Frames take their memory from `memory`.
    What a person should know of a clip that is usable is added to `notices`.
    """
    results: dict[View, Decoded | MediaError] = {}
    from_file: dict[tuple[Path, str], list[View]] = {}
    for view in dict.fromkeys(views):
        source, kind = _source(clip, view)
        if source is None:
            results[view] = Absent(kind)
        elif kind == "image":
            results[view] = _caught(clip, source, kind, lambda path=source: read_still(clip, path))
        else:
            from_file.setdefault((source, kind), []).append(view)
    for (path, kind), wanted in from_file.items():
        recording = Recording(clip, path, kind, limit_s, memory)
        decoded = _caught(clip, path, kind, lambda recording=recording, wanted=wanted: recording.decode(wanted))
        if notices is not None and recording.notice:
            notices.append(recording.notice)
        results.update(dict.fromkeys(wanted, decoded) if isinstance(decoded, MediaError) else decoded)
    if clip.crop is not None:
        for view, result in results.items():
            if isinstance(view, FramesView) and isinstance(result, np.ndarray):
                results[view] = clip.crop.apply(result)
    return [results[view] for view in views]


def header_problem(clip: Clip) -> MediaError | None:
    """Open every file of a clip without decoding; return what is wrong with one, or None."""
    for kind in MEDIA_KINDS:
        path = getattr(clip, kind)
        if path is None:
            continue
        if kind == "image":
            found = _caught(clip, path, kind, lambda path=path: check_still(clip, path))
        else:
            found = _caught(clip, path, kind, Recording(clip, path, kind, HEADER_LIMIT_S).check_header)
        if isinstance(found, MediaError):
            return found
    return None


def media_files(clip: Clip, view: View) -> list[Path]:
    """The files that decide what `view` shows of this clip; empty where it has none."""
    source, _ = _source(clip, view)
    return [] if source is None else [source]


def _source(clip: Clip, view: View) -> tuple[Path | None, str]:
    """Return the file a view reads and its kind, or None and why there is none."""
    if isinstance(view, AudioView):
        path, kind = (clip.audio, "audio") if clip.audio else (clip.video, "video")
        return path, kind if path else "no audio or video file in the clip list"
    if view.still and clip.image:
        return clip.image, "image"
    return clip.video, "video" if clip.video else "no video file in the clip list"


def _caught(clip: Clip, path: Path, kind: str, read: Callable):  # type: ignore[no-untyped-def, type-arg]
    """Run `read`, giving back as a MediaError value whatever says that the file cannot be used.

    Messages name the file by its kind: they are kept in stores, which hold no paths, and counted by their text.
    """
    try:
        return read()
    except MediaError as error:
        return error
    except FileNotFoundError:
        return media_error(clip, f"its {kind} file", "no such file")
    except NotAFileError as error:
        return media_error(clip, f"its {kind} file", error.strerror)
    except PointerError as error:
        return media_error(clip, f"its {kind} file to be a recording itself", error.strerror)
    except FFmpegError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return media_error(clip, f"its {kind} file to be readable", _in_words(error))
    except OSError as error:
        if machine_at_fault(error):
            raise
        return media_error(clip, f"its {kind} file to be readable", _in_words(error))
    except (ValueError, ArithmeticError, LookupError, RuntimeError, MemoryError) as error:
        if raised_here(error):
            raise
        return media_error(clip, f"its {kind} file to be readable", "damage within it")


MEANINGS = {
    errno.EPERM: "a list of other files",  # libav may open no file but the one named
    errno.ENOMEM: "headers that ask for more memory than there is",
    errno.EAGAIN: "nothing that can be decoded",
    errno.EIO: "an error of reading, or an end within its headers",
    errno.EINVAL: "contradicting headers, or a format that holds neither pictures nor sound",
}


def _in_words(error: OSError) -> str:
    if isinstance(error, EOFError):
        return "an end before any content"
    if isinstance(error, FFmpegError) and error.errno in MEANINGS:
        return MEANINGS[error.errno]
    text = (error.strerror or type(error).__name__).partition(",")[0]
    return "damage within it" if text.startswith("Error number") else text[:1].lower() + text[1:]
