"""One recorded file: which frames it shows, and one decode pass that gives those asked for, and its sound.

A file is demultiplexed twice and decoded once. The first pass reads packets only and so knows every frame exactly,
since counts in headers are often absent or wrong; the second decodes all streams asked for together and stops after the
last frame and the last sample needed. A frame is known by its time, or, where times are missing or double, by its
number. Times of a clip count from the file's first moment. Of several streams libav's best is taken; cover art is none.
This module knows no encoder, network or store.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from featurecache.clips import Clip
from featurecache.encoders import AudioView, FramesView, View
from featurecache.errors import MediaError
from featurecache.frames import FramePicker, frame_indices
from featurecache.waveform import WaveformCollector

MAX_PACKETS = 5_000_000  # 46 hours of 30 frames/s; a hostile index may promise any number
SEEK_FROM_S = 8.0  # a clip that starts later in its file is sought
PREROLL_S = 2.0  # sound decoders need some packets before the first one wanted
DURATION_SLACK_S = 1.0  # a header's duration may exceed the last packet by rounding
CODEC_THREADS = 2
STREAMED_RIFF_BYTES = (8, 0xFFFFFFFF + 8)  # what a WAV header states when the length was not known


@dataclass(frozen=True)
class Absent:
    """The clip does not have what the view asks for; the reason is for a person."""

    reason: str


Decoded = np.ndarray | Absent


def media_error(clip: Clip, expected: str, got: str) -> MediaError:
    """Return the error of one clip's media."""
    return MediaError(f'clip "{clip.id}"', expected=expected, got=got)


@dataclass
class Track:
    """What the packets of one stream say; times in units of its time base."""

    start: float
    """The clip's part of the stream: start <= time < end."""
    end: float
    pts: list[int | None] = field(default_factory=list)
    dts: list[int] = field(default_factory=list)
    damaged: set[int | None] = field(default_factory=set)
    """Times of packets that the file holds in part only."""
    missing: int = 0
    """Packets that the file promises after its last one."""

    @property
    def by_time(self) -> bool:
        """Whether every frame has a time of its own."""
        return None not in self.pts and len(set(self.pts)) == len(self.pts)

    def shown(self) -> list[int]:
        """Return the times of all frames in display order; empty where the file has none."""
        if self.by_time:
            return sorted(self.pts)  # type: ignore[type-var, arg-type]
        # Decoding order is as good for cutting where display times are missing: only the delay of B-frames differs.
        return sorted(self.dts) if len(self.dts) == len(self.pts) else []


class Recording:
    """One file with moving pictures, sound, or both, as one clip uses it."""

    def __init__(self, clip: Clip, path: Path, kind: str, limit_s: float | None = None) -> None:
        self.clip, self.path, self.kind = clip, path, kind
        self._limit_s = limit_s
        self._deadline = math.inf if limit_s is None else time.monotonic() + limit_s
        self._start_s = clip.start_s or 0.0
        self._end_s = float("inf") if clip.end_s is None else clip.end_s
        self._seek = self._start_s >= SEEK_FROM_S

    def decode(self, views: Sequence[View]) -> dict[View, Decoded | MediaError]:
        """Decode all views of this file together.

        Raises:
            MediaError, av.error.FFmpegError: nothing of the file can be used.
        """
        frame_views = [view for view in views if isinstance(view, FramesView)]
        audio_views = [view for view in views if isinstance(view, AudioView)]
        results: dict[View, Decoded | MediaError] = {}
        tracks = self._scan(bool(frame_views), bool(audio_views))
        if "video" not in tracks:
            results.update(dict.fromkeys(frame_views, Absent("no video stream")))
        if "audio" not in tracks:
            missing = self._error("an audio stream", "none") if self.kind == "audio" else Absent("no audio stream")
            results.update(dict.fromkeys(audio_views, missing))
        pickers: dict[View, FramePicker] = {}
        collectors: dict[View, WaveformCollector] = {}
        for view in views:
            try:
                if view in results:
                    continue
                if isinstance(view, FramesView):
                    track = tracks["video"]
                    pickers[view] = self._picker(view, track, track.shown(), track.missing)
                else:
                    limits = (view.max_duration_s, self._start_s, self._end_s)
                    collectors[view] = WaveformCollector(view.sampling_rate, *limits)
            except MediaError as error:
                results[view] = error
        self._run(pickers, collectors)
        if any(picker.misled for picker in pickers.values()):
            # Packets that show no picture (VP8 has such) were counted as frames: count those that did appear.
            emitted = sorted(next(picker for picker in pickers.values() if picker.misled).emitted)
            pickers = {view: self._picker(view, tracks["video"], emitted, 0) for view in pickers}  # type: ignore[arg-type]
            self._run(pickers, {})
        results.update({view: self._frames(picker, tracks["video"]) for view, picker in pickers.items()})
        results.update({view: self._waveform(each, tracks["audio"]) for view, each in collectors.items()})
        return results

    def check_header(self) -> None:
        """Open the file and its streams, reading no packet.

        Raises:
            MediaError, av.error.FFmpegError: it cannot be opened, or has nothing to decode.
        """
        container, streams = self._open(want_video=self.kind == "video", want_audio=True)
        with container:
            if not streams:
                raise self._error("a stream of sound" + " or pictures" * (self.kind == "video"), "none")

    def _error(self, expected: str, got: str) -> MediaError:
        return media_error(self.clip, f"{expected} in its {self.kind} file", got)

    def _in_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise self._error(f"decoding to take at most {self._limit_s:g} s", "longer")

    def _open(self, want_video: bool, want_audio: bool):  # type: ignore[no-untyped-def]
        """Open the file; return it with the streams to read, by kind, sought to just before the clip."""
        # Only local files: a playlist must not make us read the network.
        container = av.open(f"file:{self.path}", options={"protocol_whitelist": "file"}, metadata_errors="ignore")
        cover_art = av.stream.Disposition.attached_pic
        pictures = [stream for stream in container.streams.video if not stream.disposition & cover_art]
        best = container.streams.best("video")
        video = best if best in pictures else next(iter(pictures), None)
        audio = container.streams.best("audio", related=video) if video else container.streams.best("audio")
        streams = {"video": video if want_video else None, "audio": audio if want_audio else None}
        streams = {kind: each for kind, each in streams.items() if each is not None}
        for kind, stream in streams.items():
            if stream.codec_context is None:
                container.close()
                raise self._error(f"its {kind} stream to be of a codec that libav decodes", "another")
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = CODEC_THREADS
        if self._seek:
            container.seek(_origin_us(container) + int((self._start_s - PREROLL_S) * av.time_base), backward=True)
        return container, streams

    def _scan(self, want_video: bool, want_audio: bool) -> dict[str, Track]:
        """Read every packet of the clip's part of the file, decoding none."""
        container, streams = self._open(want_video, want_audio)
        with container:
            if not streams:
                return {}
            origin_s = _origin_us(container) / av.time_base
            tracks = {kind: self._track(stream.time_base, origin_s) for kind, stream in streams.items()}
            promised = {kind: [entry.timestamp for entry in each.index_entries] for kind, each in streams.items()}
            exact = self._read_packets(container, streams, tracks)
            if self._seek and not (exact and ("video" not in tracks or tracks["video"].by_time)):
                self._seek = False  # this container cannot seek exactly: read it from its beginning
                return self._scan(want_video, want_audio)
            for kind, track in tracks.items():
                if not track.dts or track.dts[-1] < track.end:
                    _count_missing(streams[kind], track, promised[kind], self.path)
            return tracks

    def _track(self, time_base, origin_s: float) -> Track:  # type: ignore[no-untyped-def]
        # Without a start every frame counts, also one before the container's stated beginning.
        start = (self._start_s + origin_s) / time_base - 1e-6 if self._start_s else float("-inf")
        end = (self._end_s + origin_s) / time_base - 1e-6 if self._end_s != float("inf") else self._end_s
        return Track(start, end)

    def _read_packets(self, container, streams, tracks: dict[str, Track]) -> bool:  # type: ignore[no-untyped-def]
        """Fill in the tracks; return whether every stream began with a packet it can be decoded from, in time."""
        kinds = {stream.index: kind for kind, stream in streams.items()}
        begun: set[str] = set()
        past: set[str] = set()
        exact = True
        for number, packet in enumerate(container.demux(*streams.values())):
            self._in_time()
            if number > MAX_PACKETS:
                raise self._error(f"at most {MAX_PACKETS:,} packets", "more")
            if packet.size == 0 and packet.dts is None:
                continue  # the flush packet at the end
            kind = kinds[packet.stream.index]
            track = tracks[kind]
            if kind not in begun:
                begun.add(kind)
                time = packet.pts if packet.pts is not None else packet.dts
                exact &= time is not None and time <= track.start and (kind == "audio" or packet.is_keyframe)
            if packet.is_corrupt:
                track.damaged.add(packet.pts)
            if not packet.is_discard:
                track.pts.append(packet.pts)
            if packet.dts is not None:
                if not packet.is_discard:
                    track.dts.append(packet.dts)
                if packet.dts >= track.end:
                    past.add(kind)
                    if len(past) == len(streams):
                        break
        return exact

    def _picker(self, view: FramesView, track: Track, times: list[int], missing: int) -> FramePicker:
        """Choose the frames of a view among those shown at `times`."""
        whole = self.clip.start_s is None and self.clip.end_s is None
        if not times and track.pts and not whole:
            raise self._error("frame times, which start_s and end_s need,", "none")
        inside = [(number, time) for number, time in enumerate(times) if track.start <= time < track.end]
        if not times:
            inside = [(number, number) for number in range(len(track.pts))]
        total = len(inside) + missing
        if not total:
            raise self._error("frames" if whole else "frames between start_s and end_s", "none")
        try:
            indices = frame_indices(view, total, self.clip.peak_frame)
        except ValueError as error:
            raise MediaError(f'clip "{self.clip.id}"', got=str(error)) from error
        if max(indices) >= len(inside):
            raise self._error(f"{total} frames", f"{len(inside)}; the file is cut short")
        return FramePicker([inside[index][1 if track.by_time else 0] for index in indices], track.by_time)

    def _run(self, pickers: dict[View, FramePicker], collectors: dict[View, WaveformCollector]) -> None:
        """Decode once, handing frames to every picker and sound to every collector until all have enough."""
        if not pickers and not collectors:
            return
        container, streams = self._open(bool(pickers), bool(collectors))
        with container:
            sinks: dict[int, list[FramePicker | WaveformCollector]] = {}
            for kind, stream in streams.items():
                sinks[stream.index] = list(pickers.values() if kind == "video" else collectors.values())
            for collector in collectors.values():
                collector.origin_s = _origin_us(container) / av.time_base
            for packet in container.demux(*streams.values()):
                self._in_time()
                active = [sink for sink in sinks[packet.stream.index] if not sink.done]
                if active:
                    _decode_packet(packet, active)
                elif all(sink.done for group in sinks.values() for sink in group):
                    break
            for collector in collectors.values():
                collector.finish()

    def _frames(self, picker: FramePicker, track: Track) -> np.ndarray | MediaError:
        damaged = picker.damaged + len(picker.needed & track.damaged if picker.by_time else ())
        if damaged:
            return self._error("whole frames", f"{damaged} damaged among those chosen")
        if not picker.done:
            got = f"{len(picker.pictures)}" + (f"; {picker.errors} packets are damaged" if picker.errors else "")
            return self._error(f"{len(picker.needed)} frames chosen out of {len(track.pts)}", got)
        return np.stack([picker.pictures[target] for target in picker.targets])

    def _waveform(self, collector: WaveformCollector, track: Track) -> np.ndarray | MediaError:
        samples = collector.samples()
        lacking = track.missing + len(track.damaged)
        if lacking and (collector.problem or not collector.done):
            whole = len(track.pts) - len(track.damaged)
            got = f"{whole} ({len(samples) / collector.sampling_rate:.2f} s); the file is cut short"
            return self._error(f"{whole + lacking} audio packets", got)
        if collector.problem:
            return self._error(*collector.problem)
        if not len(samples):
            part = "sound" if self.clip.start_s is None and self.clip.end_s is None else "sound in this part"
            return self._error(part, "no samples")
        if not np.isfinite(samples).all():
            return self._error("finite samples", "NaN or infinity")
        return samples


def _decode_packet(packet, sinks: list) -> None:  # type: ignore[no-untyped-def, type-arg]
    try:
        frames = packet.decode()
    except FFmpegError as error:
        for sink in sinks:
            sink.refused(error)
        return
    for frame in frames:
        for sink in sinks:
            if not sink.done:
                sink.add(frame)


def _origin_us(container) -> int:  # type: ignore[no-untyped-def]
    """Return the file's first moment in microseconds; transport streams do not begin at 0."""
    return container.start_time or 0


def _count_missing(stream, track: Track, promised: list[int], path: Path) -> None:  # type: ignore[no-untyped-def]
    """Fill in how many packets the file's index, or else the stream's own duration, promises beyond the last one."""
    if not track.dts:
        track.missing = len(promised)
        return
    last = max(track.dts)
    track.missing = sum(1 for dts in promised if last < dts < track.end)
    duration_s = _stated_duration_s(stream, path)
    if track.missing or duration_s is None or len(track.dts) < 2:
        return
    first = stream.start_time if stream.start_time is not None else track.dts[0]
    packet_s = float((last - track.dts[0]) * stream.time_base) / (len(track.dts) - 1)
    stated_end_s = min(duration_s, float((track.end - first) * stream.time_base))
    lacking_s = stated_end_s - (float((last - first) * stream.time_base) + packet_s)
    if lacking_s > DURATION_SLACK_S and packet_s > 0:
        track.missing = round(lacking_s / packet_s)


def _stated_duration_s(stream, path: Path) -> float | None:  # type: ignore[no-untyped-def]
    """Return the duration that the stream's header states; None where the container only estimates one."""
    form = stream.container.format.name
    if form == "flac" and stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if form == "wav" and stream.duration is not None:  # libav shortens it to what the file holds
        with path.open("rb") as file:
            riff_bytes = int.from_bytes(file.read(8)[4:], "little") + 8
        held_bytes = path.stat().st_size
        whole = riff_bytes in STREAMED_RIFF_BYTES or riff_bytes <= held_bytes
        return float(stream.duration * stream.time_base) * (1 if whole else riff_bytes / held_bytes)
    if "matroska" in form:
        stated = stream.metadata.get("DURATION", "").split(":")
        if len(stated) == 3 and all(part.replace(".", "", 1).isdigit() for part in stated):
            return int(stated[0]) * 3600 + int(stated[1]) * 60 + float(stated[2])
    return None
