"""Decode what the encoders ask of a clip: a waveform, frames, or the fact that it has none.

Shapes: waveform (S,) float32 mono in [-1, 1] at the view's rate; frames (F, H, W, 3) uint8 RGB, as displayed (rotation
applied), at the size of the recording.

A file is demultiplexed twice and decoded once: the first pass reads packets only and so knows every frame exactly
(counts in headers are often absent or wrong), the second decodes all streams asked for together and stops after the
last frame and the last sample needed. Frames are numbered in display order from 0 within the part of the file between
`start_s` and `end_s`, which count from the file's first moment. A "uniform" view takes frame floor((i + 0.5)·N / F) of
N frames, equal parts by frame number also where the frame rate varies.

What a clip does not have is an `Absent` value; what it has but cannot be decoded is a MediaError, and a frame that a
damaged file no longer holds is never replaced by an earlier one. This module knows no encoder, network or store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image, ImageOps

from featurecache.clips import Clip
from featurecache.encoders import AudioView, FramesView, View
from featurecache.errors import MediaError
from featurecache.waveform import WaveformCollector

MAX_PACKETS = 5_000_000  # 46 hours of 30 frames/s; a hostile index may promise any number
SEEK_FROM_S = 8.0  # a clip that starts later in its file is sought
PREROLL_S = 2.0  # sound decoders need some packets before the first one wanted
DURATION_SLACK_S = 1.0  # a header's duration may exceed the last packet by rounding or subtitles
CODEC_THREADS = 2
MAX_STILL_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485


@dataclass(frozen=True)
class Absent:
    """The clip does not have what the view asks for; the reason is for a person."""

    reason: str


Decoded = np.ndarray | Absent


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


def decode_each(clip: Clip, views: Sequence[View]) -> list[Decoded | MediaError]:
    """As `decode`, with the error of a view in its place, so that a bad sound track leaves the frames usable."""
    results: dict[View, Decoded | MediaError] = {}
    from_file: dict[tuple[Path, str], list[View]] = {}
    for view in dict.fromkeys(views):
        source, kind = _source(clip, view)
        if source is None:
            results[view] = Absent(kind)
        elif kind == "image":
            results[view] = _caught(clip, source, kind, lambda path=source: _still(clip, path))
        else:
            from_file.setdefault((source, kind), []).append(view)
    for (path, kind), wanted in from_file.items():
        recording = _Recording(clip, path, kind)
        decoded = _caught(clip, path, kind, lambda recording=recording, wanted=wanted: recording.decode(wanted))
        results.update(dict.fromkeys(wanted, decoded) if isinstance(decoded, MediaError) else decoded)
    return [results[view] for view in views]


def media_files(clip: Clip, view: View) -> list[Path]:
    """The files that decide what `view` shows of this clip; empty where it has none."""
    source, _ = _source(clip, view)
    return [] if source is None else [source]


def frame_indices(view: FramesView, num_frames: int, peak_frame: int | None) -> list[int]:
    """Return the number of each of `view.count` frames among `num_frames`, by the view's rule.

    Raises:
        ValueError: `peak_frame` lies beyond the clip.
    """
    if view.rule == "uniform":
        if num_frames < view.count:
            return [min(i, num_frames - 1) for i in range(view.count)]
        return [(2 * i + 1) * num_frames // (2 * view.count) for i in range(view.count)]
    if view.rule == "peak" and peak_frame is not None:
        if peak_frame >= num_frames:
            raise ValueError(f"expected peak_frame below {num_frames}, the frames of the clip, got {peak_frame}")
        return [peak_frame] * view.count
    return [0 if view.rule == "first" else num_frames // 2] * view.count


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
        if not path.is_file():  # a pipe or device would be waited on for ever
            return _error(clip, f"its {kind} file", "a folder" if path.is_dir() else "no such file")
        return read()
    except MediaError as error:
        return error
    except (FFmpegError, OSError) as error:
        return _error(clip, f"its {kind} file to be readable", error.strerror or type(error).__name__)


def _error(clip: Clip, expected: str, got: str) -> MediaError:
    return MediaError(f'clip "{clip.id}"', expected=expected, got=got)


def _still(clip: Clip, path: Path) -> np.ndarray:
    """Read one picture, (1, H, W, 3) uint8, turned the way its EXIF says."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_STILL_PIXELS:
                raise _error(clip, f"its image file to have at most {MAX_STILL_PIXELS:,} pixels", "more")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))[None]
    except Image.UnidentifiedImageError as error:
        raise _error(clip, "its image file to be a picture", "an unknown format") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _error(clip, f"its image file to have at most {MAX_STILL_PIXELS:,} pixels", "more") from error
    except (SyntaxError, ValueError, EOFError) as error:
        raise _error(clip, "its image file to be a whole picture", str(error)) from error


@dataclass
class _Packets:
    """What the first pass learnt of one stream; times in units of its time base."""

    pts: list[int | None]
    dts: list[int]
    corrupt: int = 0
    complete: bool = True
    missing: int = 0
    """Packets that the container promises after the last one it holds."""

    def shown(self) -> tuple[list[int], bool]:
        """Return the times of the frames in display order, and whether frames can be told by them."""
        known = [pts for pts in self.pts if pts is not None]
        if len(known) == len(self.pts) == len(set(known)):
            return sorted(known), True
        return sorted(self.dts) if len(self.dts) == len(self.pts) else [], False


class _Recording:
    """One file with moving pictures, sound, or both."""

    def __init__(self, clip: Clip, path: Path, kind: str) -> None:
        self.clip, self.path, self.kind = clip, path, kind
        self.seek = (clip.start_s or 0.0) >= SEEK_FROM_S

    def decode(self, views: Sequence[View]) -> dict[View, Decoded | MediaError]:
        """Decode all views of this file together."""
        frame_views = [view for view in views if isinstance(view, FramesView)]
        audio_views = [view for view in views if isinstance(view, AudioView)]
        results: dict[View, Decoded | MediaError] = {}
        packets = self._scan(bool(frame_views), bool(audio_views))
        if frame_views and "video" not in packets:
            results.update(dict.fromkeys(frame_views, Absent("no video stream")))
        if audio_views and "audio" not in packets:
            missing: Decoded | MediaError = Absent("no audio stream")
            if self.clip.audio:  # named as this clip's sound, so its absence is a mistake
                missing = self._error("an audio stream", "none")
            results.update(dict.fromkeys(audio_views, missing))
        pickers: dict[View, _FramePicker] = {}
        for view in frame_views if "video" in packets else ():
            try:
                pickers[view] = self._picker(view, packets["video"])
            except MediaError as error:
                results[view] = error
        collectors = {
            view: WaveformCollector(view.sampling_rate, view.max_duration_s, *self._range())
            for view in (audio_views if "audio" in packets else ())
        }
        self._run(pickers, collectors)
        again = {view: picker for view, picker in pickers.items() if self._retarget(view, picker)}
        if again:
            self._run(again, {})
        for view, picker in pickers.items():
            results[view] = self._frames(picker, packets["video"])
        for view, collector in collectors.items():
            results[view] = self._waveform(collector, packets["audio"])
        return results

    def _error(self, expected: str, got: str) -> MediaError:
        return _error(self.clip, f"{expected} in its {self.kind} file", got)

    def _range(self) -> tuple[float, float]:
        """Return start and end in seconds from the file's first moment; infinity where the list names no end."""
        return self.clip.start_s or 0.0, float("inf") if self.clip.end_s is None else self.clip.end_s

    def _open(self, want_video: bool, want_audio: bool):  # type: ignore[no-untyped-def]
        """Open the file; return it with the streams to read, by kind, sought to just before the clip."""
        # Only local files: a playlist must not make us read the network.
        container = av.open(f"file:{self.path}", options={"protocol_whitelist": "file"}, metadata_errors="ignore")
        streams = {}
        pictures = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        best = container.streams.best("video")
        video = best if best in pictures else next(iter(pictures), None)
        if want_video and video is not None and video.codec_context is not None:
            streams["video"] = video
        audio = container.streams.best("audio", related=video) if video else container.streams.best("audio")
        if want_audio and audio is not None and audio.codec_context is not None:
            streams["audio"] = audio
        for stream in streams.values():
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = CODEC_THREADS
        if self.seek:
            container.seek(_origin_us(container) + int((self._range()[0] - PREROLL_S) * av.time_base), backward=True)
        return container, streams

    def _scan(self, want_video: bool, want_audio: bool) -> dict[str, _Packets]:
        """Read every packet of the clip's part of the file, decoding none."""
        container, streams = self._open(want_video, want_audio)
        with container:
            if not streams:
                return {}
            start, end = _limits(container, streams, *self._range())
            promised = {kind: [entry.timestamp for entry in s.index_entries] for kind, s in streams.items()}
            found = {kind: _Packets([], []) for kind in streams}
            kinds = {stream.index: kind for kind, stream in streams.items()}
            begun: set[str] = set()
            past: set[str] = set()
            for number, packet in enumerate(container.demux(*streams.values())):
                if number > MAX_PACKETS:
                    raise self._error(f"at most {MAX_PACKETS:,} packets", "more")
                if packet.size == 0 and packet.dts is None:
                    continue  # the flush packet at the end
                kind = kinds[packet.stream.index]
                time = packet.pts if packet.pts is not None else packet.dts
                if kind not in begun:
                    begun.add(kind)
                    sound = time is not None and time <= start[kind] and (kind == "audio" or packet.is_keyframe)
                    if self.seek and not sound:  # this container cannot seek exactly: read it from the beginning
                        self.seek = False
                        return self._scan(want_video, want_audio)
                held = found[kind]
                held.corrupt += packet.is_corrupt
                if not packet.is_discard:
                    held.pts.append(packet.pts)
                if packet.dts is not None:
                    if not packet.is_discard:
                        held.dts.append(packet.dts)
                    if packet.dts >= end[kind]:
                        past.add(kind)
                        if len(past) == len(streams):
                            break
            for kind in streams.keys() - past:
                _count_missing(streams[kind], found[kind], promised[kind])
            return found

    def _picker(self, view: FramesView, packets: _Packets) -> _FramePicker:
        times, by_time = packets.shown()
        if not by_time and self.seek:
            self.seek = False  # frames without times are told by their number from the file's beginning
            packets.__dict__.update(self._scan(True, False)["video"].__dict__)
            times, by_time = packets.shown()
        container, streams = self._open(True, False)
        with container:
            start, end = _limits(container, streams, *self._range())
        if not times:  # neither pts nor dts: every frame, provided that no part of the file is asked for
            times = list(range(len(packets.pts)))
            if self.clip.start_s is not None or self.clip.end_s is not None:
                raise self._error("frame times, which start_s and end_s need", "none")
            start, end = {"video": 0.0}, {"video": float("inf")}
        return self._choose(view, times, start["video"], end["video"], packets.missing, by_time)

    def _choose(
        self, view: FramesView, times: list[int], start: float, end: float, missing: int, by_time: bool
    ) -> _FramePicker:
        inside = [(number, time) for number, time in enumerate(times) if start <= time < end]
        total = len(inside) + missing
        if not total:
            raise self._error("frames" + (" between start_s and end_s" if times else ""), "none")
        try:
            indices = frame_indices(view, total, self.clip.peak_frame)
        except ValueError as error:
            raise MediaError(f'clip "{self.clip.id}"', got=str(error)) from error
        if max(indices) >= len(inside):
            raise self._error(f"{total} frames", f"{len(inside)}; the file is cut short")
        return _FramePicker([inside[i][1] if by_time else inside[i][0] for i in indices], by_time, (start, end))

    def _run(self, pickers: dict[View, _FramePicker], collectors: dict[View, WaveformCollector]) -> None:
        """Decode once, handing frames to every picker and samples to every collector until all have enough."""
        if not pickers and not collectors:
            return
        container, streams = self._open(bool(pickers), bool(collectors))
        with container:
            origin_s = _origin_us(container) / av.time_base
            sinks = {
                stream.index: list(pickers.values() if kind == "video" else collectors.values())
                for kind, stream in streams.items()
            }
            for collector in collectors.values():
                collector.origin_s = origin_s
            for packet in container.demux(*streams.values()):
                active = [sink for sink in sinks[packet.stream.index] if not sink.done]
                if active:
                    try:
                        frames = packet.decode()
                    except FFmpegError as error:
                        frames = []
                        for sink in active:
                            sink.refused(error)
                    for frame in frames:
                        for sink in active:
                            if not sink.done:
                                sink.add(frame)
                elif all(sink.done for group in sinks.values() for sink in group):
                    break
            for collector in collectors.values():
                collector.finish()

    def _retarget(self, view: View, picker: _FramePicker) -> bool:
        """Where sound packets showed no picture (VP8's hidden frames), count the frames that did appear instead."""
        if picker.done or picker.errors or not picker.by_time or not picker.emitted:
            return False
        fresh = self._choose(view, sorted(picker.emitted), *picker.span, missing=0, by_time=True)  # type: ignore[arg-type]
        picker.__dict__.update(fresh.__dict__)
        return True

    def _frames(self, picker: _FramePicker, packets: _Packets) -> np.ndarray | MediaError:
        if not picker.done:
            got = f"{len(picker.pictures)}" + (f"; {picker.errors} packets are damaged" if picker.errors else "")
            return self._error(f"{len(picker.needed)} chosen frames out of {len(packets.pts)}", got)
        if picker.corrupt:
            return self._error("whole frames", f"{picker.corrupt} damaged ones among those chosen")
        return np.stack([picker.pictures[target] for target in picker.targets])

    def _waveform(self, collector: WaveformCollector, packets: _Packets) -> np.ndarray | MediaError:
        if collector.problem:
            return self._error(*collector.problem)
        samples = collector.samples()
        if not collector.done and packets.missing:
            return self._error(
                f"{len(packets.pts) + packets.missing} audio packets",
                f"{len(packets.pts)} ({len(samples) / collector.sampling_rate:.2f} s); the file is cut short",
            )
        if not len(samples):
            return self._error("sound between start_s and end_s" if self.clip.start_s else "sound", "no samples")
        if not np.isfinite(samples).all():
            return self._error("finite samples", "NaN or infinity")
        return samples


class _FramePicker:
    """Takes the frames with certain times, or certain numbers, out of a decoded stream."""

    def __init__(self, targets: list[int], by_time: bool, span: tuple[float, float]) -> None:
        self.targets, self.by_time, self.span = targets, by_time, span
        self.needed = set(targets)
        self.pictures: dict[int, np.ndarray] = {}
        self.emitted: list[int] = []
        self.seen = self.errors = self.corrupt = 0

    @property
    def done(self) -> bool:
        return len(self.pictures) == len(self.needed)

    def refused(self, error: FFmpegError) -> None:
        self.errors += 1

    def add(self, frame: av.VideoFrame) -> None:
        key = frame.pts if self.by_time else self.seen
        self.seen += 1
        if frame.pts is not None:
            self.emitted.append(frame.pts)
        if key not in self.needed or key in self.pictures:
            return
        self.corrupt += frame.is_corrupt
        size = {}
        if self.pictures:  # a stream may change its size midway; the first chosen frame decides
            height, width = next(iter(self.pictures.values())).shape[:2]
            turned = frame.rotation % 180 != 0
            size = {"width": height, "height": width} if turned else {"width": width, "height": height}
        # libav gives the angle by which the picture is to be turned counterclockwise, as rot90 turns.
        picture = np.rot90(frame.to_ndarray(format="rgb24", **size), round(frame.rotation / 90) % 4)
        self.pictures[key] = np.ascontiguousarray(picture)


def _origin_us(container) -> int:  # type: ignore[no-untyped-def]
    """Return the file's first moment in microseconds; transport streams do not begin at 0."""
    return container.start_time or 0


def _limits(container, streams, start_s: float, end_s: float):  # type: ignore[no-untyped-def]
    """Return start and end of the clip for each stream in units of its time base."""
    origin_s = _origin_us(container) / av.time_base
    start, end = {}, {}
    for kind, stream in streams.items():
        # Without a start every frame counts, also one before the container's stated beginning.
        start[kind] = (start_s + origin_s) / stream.time_base - 1e-6 if start_s else float("-inf")
        end[kind] = (end_s + origin_s) / stream.time_base - 1e-6 if end_s != float("inf") else end_s
    return start, end


def _count_missing(stream, found: _Packets, promised: list[int]) -> None:  # type: ignore[no-untyped-def]
    """Fill in how many packets the file's index, or else the stream's own duration, promises beyond the last one."""
    last = max(found.dts, default=None)
    if last is None:
        found.missing = len(promised)
        return
    found.missing = sum(1 for dts in promised if dts > last)
    duration_s = _stated_duration_s(stream)
    if found.missing or duration_s is None or len(found.dts) < 2:
        return
    first = stream.start_time if stream.start_time is not None else found.dts[0]
    packet_s = float((last - found.dts[0]) * stream.time_base) / (len(found.dts) - 1)
    lacking_s = duration_s - (float((last - first) * stream.time_base) + packet_s)
    if lacking_s > DURATION_SLACK_S and packet_s > 0:
        found.missing = round(lacking_s / packet_s)


def _stated_duration_s(stream) -> float | None:  # type: ignore[no-untyped-def]
    """Return the duration that the stream's header states; None where the container only estimates one."""
    form = stream.container.format.name
    if form in ("flac", "wav"):
        return None if stream.duration is None else float(stream.duration * stream.time_base)
    if "matroska" in form:
        stated = stream.metadata.get("DURATION", "").split(":")
        if len(stated) == 3 and all(part.replace(".", "", 1).isdigit() for part in stated):
            return int(stated[0]) * 3600 + int(stated[1]) * 60 + float(stated[2])
    return None
