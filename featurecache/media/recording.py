"""Decode the frames and the sound of one recording, for all views of a clip, in one decode pass.

A file is demultiplexed twice and decoded once. The first pass reads packets only, so it knows the number and times of
all frames exactly; counts in headers are often absent or wrong. The second pass decodes all needed streams together and
stops after the last frame and the last sample that a view needs. A time identifies a frame; if times are missing or
repeated, its number does, and if the decoder returns earlier times after later ones, its number among the decoded
frames. Times of a clip count from the first moment of the file. Of several streams libav's best is taken; cover art is
not a video stream. This module knows no encoder, network or store.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError

from featurecache.clips.clip_list import Clip
from featurecache.errors import MediaError
from featurecache.media.channels import LABELLING_FORMATS, without_labels
from featurecache.media.container import open_container
from featurecache.media.extent import Extent, extent_of
from featurecache.media.frames import MAX_CLIP_BYTES, FramePicker, Reservation, frame_indices
from featurecache.media.track import Stream, Track, count_missing, set_frame_properties
from featurecache.media.waveform import WaveformCollector
from featurecache.views import AudioView, FramesView, View

MAX_PACKETS = 5_000_000  # 46 hours of 30 frames/s; a hostile index may state any number
AUDIO_SLACK_S = 1.0  # packets may be out of order, and decoders drop the first ones
MIN_BEYOND_S = 0.5  # an end_s this far beyond the end of the file gives a notice
SEEK_FROM_S = 8.0  # decoding seeks to a clip that starts later than this in its file
PREROLL_S = 2.0  # sound decoders need some packets before the first one of the clip
CODEC_THREADS = 1  # decode workers use all cores; a second thread costs a tenth more processor time per clip
MAX_PIXEL_ASPECT = 100  # a hostile header may state any aspect
NO_FRAME = -1  # a number that no frame has
SKIPPING_CODECS = frozenset({"h264", "mpeg2video"})
"""Codecs whose decoders can skip exactly the frames that no other frame is predicted from."""
TAGS = (b"ID3", b"TAG", b"APETAGEX")
"""First bytes of tags, which may lie between frames of MPEG audio and do no harm."""


@dataclass(frozen=True)
class Absent:
    """The clip has no media for a view; the reason is for the user."""

    reason: str


Decoded = np.ndarray | Absent


def media_error(clip: Clip, expected: str, got: str) -> MediaError:
    """Return the error of one clip's media."""
    return MediaError(f'clip "{clip.id}"', expected=expected, got=got)


class Recording:
    """One file with moving pictures, sound, or both, and the part of it that one clip uses."""

    def __init__(
        self, clip: Clip, path: Path, kind: str, limit_s: float | None = None, memory: Reservation | None = None
    ) -> None:
        """Prepare decoding, which may take at most `limit_s` and reserves the memory of its frames in `memory`."""
        self.clip, self.path, self.kind = clip, path, kind
        self._limit_s, self._memory = limit_s, memory
        self._deadline = math.inf if limit_s is None else time.monotonic() + limit_s
        self._start_s = clip.start_s or 0.0
        self._end_s = float("inf") if clip.end_s is None else clip.end_s
        self._is_whole_file = clip.start_s is None and clip.end_s is None
        self._seeks = self._can_seek = self._start_s >= SEEK_FROM_S
        self.notice = ""
        """A line about the clip for the user; empty if there is none."""
        self._extent: Extent | None = None
        self._num_bytes: int | None = None
        """Number of bytes of the file that libav may read; None before the extent is known."""
        self._longest_s = 0.0
        """Longest duration that an audio view reads."""
        self._skips_frames = False

    def decode(self, views: Sequence[View]) -> dict[View, Decoded | MediaError]:
        """Decode all views of this file together.

        Raises:
            MediaError, av.error.FFmpegError: no part of the file can be used.
        """
        frame_views = [view for view in views if isinstance(view, FramesView)]
        audio_views = [view for view in views if isinstance(view, AudioView)]
        results: dict[View, Decoded | MediaError] = {}
        self._longest_s = max((view.max_duration_s for view in audio_views), default=0.0)
        tracks = self._scan(bool(frame_views), bool(audio_views))
        if "video" not in tracks:
            results.update(dict.fromkeys(frame_views, self._no_stream("video")))
        if "audio" not in tracks:
            results.update(dict.fromkeys(audio_views, self._no_stream("audio")))
        pickers: dict[FramesView, FramePicker] = {}
        collectors: dict[AudioView, WaveformCollector] = {}
        for view in views:
            try:
                if view in results:
                    continue
                if isinstance(view, FramesView):
                    track = tracks["video"]
                    pickers[view] = self._picker(view, track, track.display_times(), track.missing)
                elif isinstance(view, AudioView):
                    limits = (view.max_duration_s, self._start_s, self._end_s)
                    collectors[view] = WaveformCollector(view.sampling_rate, *limits, view.channels)
            except MediaError as error:
                results[view] = error
        too_large = self._reserve(pickers, tracks)
        if too_large is not None:
            results.update(dict.fromkeys(pickers, too_large))
            pickers = {}
        self._decode_streams(pickers, collectors, skip=True)
        results.update(self._picked_frames(pickers, tracks["video"]) if pickers else {})
        results.update({view: self._waveform(item, tracks["audio"]) for view, item in collectors.items()})
        return results

    def check_header(self) -> None:
        """Open the file and its streams without reading a packet.

        Raises:
            MediaError, av.error.FFmpegError: the file cannot be opened, or has no stream to decode.
        """
        with self._opened(want_video=self.kind == "video", want_audio=True) as (_, streams):
            if not streams:
                raise self._error("a stream of sound" + " or pictures" * (self.kind == "video"), "none")

    def frame_times_s(self, view: FramesView) -> list[float] | None:
        """Return when each frame of a view is shown, in seconds from the start of the clip, without decoding.

        None if the file has no pictures, or no times of them.

        Raises:
            MediaError, av.error.FFmpegError: as `decode`.
        """
        tracks = self._scan(want_video=True, want_audio=False)
        if "video" not in tracks:
            return None
        track = tracks["video"]
        picker = self._picker(view, track, track.display_times(), track.missing)
        if not picker.by_time:
            return None
        with self._opened(want_video=True, want_audio=False) as (container, streams):
            begin_s = _origin_us(container) / av.time_base + self._start_s
            return [float(time * streams["video"].time_base) - begin_s for time in picker.targets]

    def _no_stream(self, kind: str) -> Absent | MediaError:
        """Return the result for a file without a stream of this kind; a file cut short may have had one."""
        if self._extent is not None and self._extent.missing_bytes:
            return self._error(f"a whole file, to tell whether it has {kind}", "one that is cut short before any")
        return self._error("an audio stream", "none") if kind == self.kind == "audio" else Absent(f"no {kind} stream")

    def _error(self, expected: str, got: str) -> MediaError:
        return media_error(self.clip, f"{expected} in its {self.kind} file", got)

    def _reserve(self, pickers: dict[FramesView, FramePicker], tracks: dict[str, Track]) -> MediaError | None:
        """Wait for the memory of all picked frames, or return an error if it is too much; waiting is not timed."""
        num_frames = sum(len(picker.targets) for picker in pickers.values())
        if not num_frames:
            return None
        num_bytes = num_frames * tracks["video"].num_pixels * 3
        if num_bytes > MAX_CLIP_BYTES:
            return self._error(f"at most {MAX_CLIP_BYTES / 1e9:.1f} GB of frames", f"{num_bytes / 1e9:.1f} GB")
        if self._memory is not None:
            start = time.monotonic()
            self._memory.take(num_bytes)
            self._deadline += time.monotonic() - start
        return None

    def _check_deadline(self) -> None:
        if time.monotonic() > self._deadline:
            raise self._error(f"decoding to take at most {self._limit_s:g} s", "longer")

    @contextmanager
    def _opened(self, want_video: bool, want_audio: bool) -> Iterator[tuple[InputContainer, dict[str, Stream]]]:
        """Open the file, seek to before the clip, and yield the container and its streams by kind."""
        try:
            with open_container(self.path, self._deadline, self._num_bytes) as container:
                self._check_deadline()
                streams = self._chosen_streams(container, want_video, want_audio)
                if self._seeks:
                    self._seek_before_clip(container)
                yield container, streams
        except (FFmpegError, OSError):
            self._check_deadline()  # after the deadline the file seems to end, so any error may follow from that
            raise
        self._check_deadline()

    def _seek_before_clip(self, container: InputContainer) -> None:
        try:
            container.seek(_origin_us(container) + int((self._start_s - PREROLL_S) * av.time_base), backward=True)
        except FFmpegError:  # this container cannot seek: `_scan` reads it from its beginning
            self._can_seek = False

    def _chosen_streams(self, container: InputContainer, want_video: bool, want_audio: bool) -> dict[str, Stream]:
        cover_art = av.stream.Disposition.attached_pic
        pictures = [stream for stream in container.streams.video if not stream.disposition & cover_art]
        best = container.streams.best("video")
        video = best if best in pictures else next(iter(pictures), None)
        audio = container.streams.best("audio", related=video) if video else container.streams.best("audio")
        streams: dict[str, Stream] = {}
        if want_video and video is not None:
            streams["video"] = video
        if want_audio and audio is not None:
            streams["audio"] = audio
        for kind, stream in streams.items():
            if stream.codec_context is None:
                raise self._error(f"a codec for {kind} that libav has", "another")
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = CODEC_THREADS
        return streams

    def _scan(self, want_video: bool, want_audio: bool) -> dict[str, Track]:
        """Read every packet of the clip's part of the file without decoding."""
        with self._opened(want_video, want_audio) as (container, streams):
            extent = self._file_extent(container.format.name)
            if not streams:
                return {}
            if self._num_bytes is not None and self._num_bytes < container.size:
                return self._scan(want_video, want_audio)  # open the file again, without the bytes after its media
            origin_s = _origin_us(container) / av.time_base
            tracks = {kind: self._track(stream.time_base, origin_s) for kind, stream in streams.items()}
            indexed = {kind: [entry.timestamp for entry in stream.index_entries] for kind, stream in streams.items()}
            if "video" in streams:
                set_frame_properties(tracks["video"], streams["video"])
            exact = self._read_packets(container, streams, tracks) and self._can_seek
            if self._seeks and not (exact and ("video" not in tracks or tracks["video"].by_time)):
                self._seeks = False  # this container cannot seek exactly: read it from its beginning
                return self._scan(want_video, want_audio)
            self.notice = self._end_notice(streams, tracks, origin_s)
            for kind, track in tracks.items():
                if not track.dts or track.dts[-1] < track.end:
                    count_missing(track, streams[kind], indexed[kind], extent)
            return tracks

    def _file_extent(self, format_names: str) -> Extent:
        """Return the extent of the media in the file; libav could read bytes after it as media."""
        if self._extent is None:
            self._extent = extent_of(self.path, format_names)
            self._num_bytes = self._extent.end
        return self._extent

    def _end_notice(self, streams: dict[str, Stream], tracks: dict[str, Track], origin_s: float) -> str:
        """Return a notice if the file ends well before `end_s`; empty also if times do not tell where it ends."""
        read_through = all(track.dts and max(track.dts) < track.end for track in tracks.values())
        ends_s = [track.last_end_s(streams[kind].time_base) for kind, track in tracks.items()]
        known_ends_s = [end_s for end_s in ends_s if end_s is not None]
        if self.clip.end_s is None or not read_through or len(known_ends_s) < len(ends_s):
            return ""
        end_s = max(known_ends_s) - origin_s
        if self.clip.end_s - end_s <= MIN_BEYOND_S or self._start_s >= end_s:
            return ""
        return f"end_s is {self.clip.end_s:.2f} s, its {self.kind} file ends at {end_s:.2f} s"

    def _track(self, time_base: Fraction, origin_s: float) -> Track:
        # Without a start every frame counts, also a frame before the stated start of the container.
        start = (self._start_s + origin_s) / time_base - 1e-6 if self._start_s else float("-inf")
        end = (self._end_s + origin_s) / time_base - 1e-6 if self._end_s != float("inf") else self._end_s
        return Track(start, end)

    def _read_packets(self, container: InputContainer, streams: dict[str, Stream], tracks: dict[str, Track]) -> bool:
        """Fill in the tracks; return whether every stream started, in time, with a packet that can be decoded."""
        kinds = {stream.index: kind for kind, stream in streams.items()}
        started: set[str] = set()
        ended: set[str] = set()
        exact = True
        for number, packet in enumerate(self._packets(container, streams)):
            if number > MAX_PACKETS:
                raise self._error(f"at most {MAX_PACKETS:,} packets", "more")
            if packet.size == 0 and packet.dts is None:
                continue  # the flush packet at the end
            kind = kinds[packet.stream.index]
            track = tracks[kind]
            if kind not in started:
                started.add(kind)
                time = packet.pts if packet.pts is not None else packet.dts
                if kind == "audio" and time is not None:  # the scan ends where the longest audio view ends
                    longest = (self._longest_s + AUDIO_SLACK_S) / packet.time_base
                    track.end = min(track.end, max(time, track.start) + longest)
                exact &= time is not None and time <= track.start and (kind == "audio" or packet.is_keyframe)
            if packet.is_corrupt:
                track.damaged.add(packet.pts)
            if not packet.is_discard:
                track.pts.append(packet.pts)
                track.keyframes.append(packet.is_keyframe)
            if packet.dts is not None:
                if not packet.is_discard:
                    track.dts.append(packet.dts)
                if packet.dts >= track.end:
                    ended.add(kind)
                    if len(ended) == len(streams):
                        break
        return exact

    def _packets(self, container: InputContainer, streams: dict[str, Stream]) -> Iterator[Any]:
        """Yield the packets of these streams until the deadline.

        Raises:
            MediaError: the deadline has passed, or a stream appears that the header does not state.
        """
        try:
            for packet in container.demux(*streams.values()):
                self._check_deadline()
                yield packet
            self._check_deadline()
        except IndexError as error:  # raised by PyAV if libav finds a new stream while it reads
            raise self._error("the streams that its header states", "one more on the way") from error

    def _picker(self, view: FramesView, track: Track, times: list[int], missing: int) -> FramePicker:
        """Choose the frames of a view; `times` are the display times of all frames, `missing` counts lost frames.

        Raises:
            MediaError: the clip has no frames, lost frames that the view needs, or no usable times.
        """
        aspect = track.pixel_aspect
        if not 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT:
            stated = f"{aspect.numerator}:{aspect.denominator}"
            raise self._error(f"pixels of at most {MAX_PIXEL_ASPECT}:1 or 1:{MAX_PIXEL_ASPECT}", stated)
        if not times and track.pts and not self._is_whole_file:
            raise self._times_error(track)
        inside = [(number, time) for number, time in enumerate(times) if track.start <= time < track.end]
        if not times:
            inside = [(number, number) for number in range(len(track.pts))]
        total = len(inside) + missing
        if not total:
            raise self._error("frames" if self._is_whole_file else "frames between start_s and end_s", "none")
        try:
            indices = frame_indices(view, total, self.clip.peak_frame)
        except ValueError as error:
            raise MediaError(f'clip "{self.clip.id}"', got=str(error)) from error
        estimated = bool(missing) and track.missing_guessed
        lost = max(indices) >= len(inside)
        if lost or (estimated and indices != frame_indices(view, len(inside), self.clip.peak_frame)):
            raise self._error(f"{'about ' * estimated}{total} frames", f"{len(inside)}; the file is cut short")
        if not track.by_time:
            return FramePicker([inside[index][0] for index in indices], False, aspect)
        return FramePicker([inside[index][1] for index in indices], True, aspect, track.uncertain_times())

    def _times_error(self, track: Track) -> MediaError:
        got = "times that go back" if len(track.dts) == len(track.pts) else "none"
        return self._error("frame times that ascend, which start_s and end_s need,", got)

    def _picked_frames(self, pickers: dict[FramesView, FramePicker], track: Track) -> dict[View, Decoded | MediaError]:
        """Return the picked frames; decode again if decoding shows that the packets gave wrong times or counts."""
        went_back = track.goes_back or any(picker.went_back for picker in pickers.values())
        if not track.by_time or not (went_back or any(picker.lacks_frames for picker in pickers.values())):
            return {view: self._frames(picker, track) for view, picker in pickers.items()}
        # Packets without a picture (VP8 has such) were counted as frames, or times contradict the display order: decode
        # all frames once to count them, then pick again among the decoded ones.
        counter = FramePicker([NO_FRAME], by_time=False)
        self._decode_streams({next(iter(pickers)): counter}, {})
        track.in_order = not counter.went_back
        times = sorted(counter.decoded_times) if len(counter.decoded_times) == counter.num_decoded else []
        new_pickers: dict[FramesView, FramePicker] = {}
        results: dict[View, Decoded | MediaError] = {}
        for view in pickers:
            try:
                if track.goes_back and not (track.in_order or self._is_whole_file):
                    raise self._times_error(track)
                new_pickers[view] = self._picker(view, track, times, 0)
            except MediaError as error:
                results[view] = error
        self._decode_streams(new_pickers, {})
        return results | {view: self._frames(picker, track) for view, picker in new_pickers.items()}

    def _decode_streams(
        self,
        pickers: dict[FramesView, FramePicker],
        collectors: dict[AudioView, WaveformCollector],
        skip: bool = False,
    ) -> None:
        """Decode once; pass frames to every picker and sound to every collector until all are done.

        With `skip`, frames that no picker needs and from which no other frame is predicted are not decoded.
        """
        if not pickers and not collectors:
            return
        with self._opened(bool(pickers), bool(collectors)) as (container, streams):
            sinks: dict[int, list[FramePicker | WaveformCollector]] = {}
            for kind, stream in streams.items():
                sinks[stream.index] = list(pickers.values() if kind == "video" else collectors.values())
            for collector in collectors.values():
                collector.origin_s = _origin_us(container) / av.time_base
                collector.in_order = LABELLING_FORMATS.isdisjoint(container.format.name.split(","))
                collector.position_s = None if self._seeks else 0.0
            context = streams["video"].codec_context if "video" in streams else None
            self._skips_frames = skip and context is not None and context.name in SKIPPING_CODECS
            for packet in self._packets(container, streams):
                active = [sink for sink in sinks[packet.stream.index] if not sink.done]
                if active:
                    if self._skips_frames and context is not None and packet.stream.type == "video":
                        needed = any(picker.needs(packet.pts) for picker in pickers.values() if not picker.done)
                        context.skip_frame = "DEFAULT" if needed else "NONREF"
                    _decode_packet(packet, active)
                elif all(sink.done for group in sinks.values() for sink in group):
                    break
            for collector in collectors.values():
                collector.finish()

    def _frames(self, picker: FramePicker, track: Track) -> np.ndarray | MediaError:
        damaged = picker.num_damaged + len(picker.positions.keys() & track.damaged if picker.by_time else ())
        if damaged:
            return self._error("whole frames", f"{damaged} damaged among those chosen")
        if picker.frames is None or not picker.all_picked:
            errors = f"; {picker.num_errors} packets are damaged" if picker.num_errors else ""
            expected = f"{len(picker.positions)} frames chosen out of {len(track.pts)}"
            return self._error(expected, f"{picker.num_picked}{errors}")
        return picker.frames

    def _waveform(self, collector: WaveformCollector, track: Track) -> np.ndarray | MediaError:
        samples = collector.samples()
        num_lost = track.missing + len(track.damaged)
        if num_lost and (collector.problem or not collector.done):
            num_whole = len(track.pts) - len(track.damaged)
            got = f"{num_whole} ({len(samples) / collector.sampling_rate:.2f} s); the file is cut short"
            about = "about " * (track.missing > 0 and track.missing_guessed)
            return self._error(f"{about}{num_whole + num_lost} audio packets", got)
        if collector.problem:
            return self._error(*collector.problem)
        if not len(samples):
            part = "sound" if self._is_whole_file else "sound in this part"
            return self._error(part, "no samples")
        if not np.isfinite(samples).all():
            return self._error("finite samples", "NaN or infinity")
        return samples


def _decode_packet(packet: Any, sinks: Sequence[Any]) -> None:
    """Decode a packet into the pickers or collectors of its stream; a refused packet is reported to them."""
    try:
        frames = packet.decode()
        if packet.stream.type == "audio":
            frames = [without_labels(frame) for frame in frames]
    except FFmpegError as error:
        if not bytes(packet)[:8].startswith(TAGS):  # files joined byte by byte have tags between their frames
            for sink in sinks:
                sink.refused(error)
        return
    for frame in frames:
        for sink in sinks:
            if not sink.done:
                sink.add(frame)


def _origin_us(container: InputContainer) -> int:
    """Return the first moment of the file in microseconds; transport streams do not start at 0."""
    return container.start_time or 0
