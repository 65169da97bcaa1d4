"""One recorded file: which frames it shows, and one decode pass that gives those asked for, and its sound.

A file is demultiplexed twice and decoded once. The first pass reads packets only and so knows every frame exactly,
since counts in headers are often absent or wrong; the second decodes all streams asked for together and stops after the
last frame and the last sample needed. A frame is known by its time. Where times are missing or double it is known by
its number, and where the decoder gives earlier times after later ones, by its number among all frames decoded. Times of
a clip count from the file's first moment. Of several streams libav's best is taken; cover art is none.
This module knows no encoder, network or store.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from featurecache.clips.clip_list import Clip
from featurecache.errors import MediaError
from featurecache.media.channels import LABELLING_FORMATS, without_labels
from featurecache.media.container import opened
from featurecache.media.extent import Extent, extent_of
from featurecache.media.frame_memory import MAX_CLIP_BYTES, Reservation
from featurecache.media.frames import FramePicker, frame_indices
from featurecache.media.track import Track, count_missing, note_pictures
from featurecache.media.waveform import WaveformCollector
from featurecache.views import AudioView, FramesView, View

MAX_PACKETS = 5_000_000  # 46 hours of 30 frames/s; a hostile index may promise any number
AUDIO_SLACK_S = 1.0  # packets may be out of order, and decoders swallow the first ones
BEYOND_S = 0.5  # an end_s so much beyond the file is said
SEEK_FROM_S = 8.0  # a clip that starts later in its file is sought
PREROLL_S = 2.0  # sound decoders need some packets before the first one wanted
CODEC_THREADS = 1  # decode workers fill the cores; a second thread costs a tenth more processor time a clip
MAX_PIXEL_ASPECT = 100  # a hostile header may state any
NO_FRAME = -1  # the number of none
SKIPPING_CODECS = frozenset({"h264", "mpeg2video"})
"""Codecs whose decoders leave out exactly the frames that no other frame is predicted from, when told to."""


TAGS = (b"ID3", b"TAG", b"APETAGEX")
"""How what is no frame of MPEG audio, and harms none, begins."""


@dataclass(frozen=True)
class Absent:
    """The clip does not have what the view asks for; the reason is for a person."""

    reason: str


Decoded = np.ndarray | Absent


def media_error(clip: Clip, expected: str, got: str) -> MediaError:
    """Return the error of one clip's media."""
    return MediaError(f'clip "{clip.id}"', expected=expected, got=got)


class Recording:
    """One file with moving pictures, sound, or both, as one clip uses it."""

    def __init__(
        self, clip: Clip, path: Path, kind: str, limit_s: float | None = None, memory: Reservation | None = None
    ) -> None:
        """Describe it; decoding takes at most `limit_s` and takes the memory of its frames from `memory`."""
        self.clip, self.path, self.kind = clip, path, kind
        self._limit_s, self._memory = limit_s, memory
        self._deadline = math.inf if limit_s is None else time.monotonic() + limit_s
        self._start_s = clip.start_s or 0.0
        self._end_s = float("inf") if clip.end_s is None else clip.end_s
        self._whole = clip.start_s is None and clip.end_s is None
        self._seek = self._sought = self._start_s >= SEEK_FROM_S
        self.notice = ""
        """What a person should know of the clip beside its frames and sound."""
        self._extent: Extent | None = None
        self._num_bytes: int | None = None
        """Where the file is to end for libav."""
        self._longest_s = 0.0
        self._skipped = False

    def decode(self, views: Sequence[View]) -> dict[View, Decoded | MediaError]:
        """Decode all views of this file together.

        Raises:
            MediaError, av.error.FFmpegError: nothing of the file can be used.
        """
        frame_views = [view for view in views if isinstance(view, FramesView)]
        audio_views = [view for view in views if isinstance(view, AudioView)]
        results: dict[View, Decoded | MediaError] = {}
        self._longest_s = max((view.max_duration_s for view in audio_views), default=0.0)
        tracks = self._scan(bool(frame_views), bool(audio_views))
        if "video" not in tracks:
            results.update(dict.fromkeys(frame_views, self._none_of("video")))
        if "audio" not in tracks:
            results.update(dict.fromkeys(audio_views, self._none_of("audio")))
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
                    collectors[view] = WaveformCollector(view.sampling_rate, *limits, view.channels)
            except MediaError as error:
                results[view] = error
        too_large = self._reserve(pickers, tracks)
        if too_large is not None:
            results.update(dict.fromkeys(pickers, too_large))
            pickers = {}
        self._run(pickers, collectors, skip=True)
        results.update(self._checked(pickers, tracks["video"]) if pickers else {})
        results.update({view: self._waveform(each, tracks["audio"]) for view, each in collectors.items()})
        return results

    def check_header(self) -> None:
        """Open the file and its streams, reading no packet.

        Raises:
            MediaError, av.error.FFmpegError: it cannot be opened, or has nothing to decode.
        """
        with self._opened(want_video=self.kind == "video", want_audio=True) as (_, streams):
            if not streams:
                raise self._error("a stream of sound" + " or pictures" * (self.kind == "video"), "none")

    def _none_of(self, kind: str) -> Absent | MediaError:
        """Tell that no stream of a kind was found; where a file was cut short, there may have been one."""
        if self._extent is not None and self._extent.lacking:
            return self._error(f"a whole file, to tell whether it has {kind}", "one that is cut short before any")
        return self._error("an audio stream", "none") if kind == self.kind == "audio" else Absent(f"no {kind} stream")

    def _error(self, expected: str, got: str) -> MediaError:
        return media_error(self.clip, f"{expected} in its {self.kind} file", got)

    def _reserve(self, pickers: dict[View, FramePicker], tracks: dict[str, Track]) -> MediaError | None:
        """Wait for the memory of all frames asked for, which does not count as decoding; an error if it is too much."""
        num_frames = sum(len(picker.targets) for picker in pickers.values())
        if not num_frames:
            return None
        num_bytes = num_frames * tracks["video"].num_pixels * 3
        if num_bytes > MAX_CLIP_BYTES:
            return self._error(f"at most {MAX_CLIP_BYTES / 1e9:.1f} GB of frames", f"{num_bytes / 1e9:.1f} GB")
        if self._memory is not None:
            began = time.monotonic()
            self._memory.take(num_bytes)
            self._deadline += time.monotonic() - began
        return None

    def _in_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise self._error(f"decoding to take at most {self._limit_s:g} s", "longer")

    @contextmanager
    def _opened(self, want_video: bool, want_audio: bool):  # type: ignore[no-untyped-def]
        """Open the file while the block runs; gives it and the streams to read, by kind, sought to before the clip."""
        try:
            with opened(self.path, self._deadline, self._num_bytes) as container:
                self._in_time()
                streams = self._chosen_streams(container, want_video, want_audio)
                if self._seek:
                    self._seek_before_clip(container)
                yield container, streams
        except (FFmpegError, OSError):
            self._in_time()  # after the deadline the file seems to end, which may look like any damage
            raise
        self._in_time()

    def _seek_before_clip(self, container) -> None:  # type: ignore[no-untyped-def]
        try:
            container.seek(_origin_us(container) + int((self._start_s - PREROLL_S) * av.time_base), backward=True)
        except FFmpegError:  # this container cannot seek: `_scan` reads it from its beginning
            self._sought = False

    def _chosen_streams(self, container, want_video: bool, want_audio: bool):  # type: ignore[no-untyped-def]
        cover_art = av.stream.Disposition.attached_pic
        pictures = [stream for stream in container.streams.video if not stream.disposition & cover_art]
        best = container.streams.best("video")
        video = best if best in pictures else next(iter(pictures), None)
        audio = container.streams.best("audio", related=video) if video else container.streams.best("audio")
        streams = {"video": video if want_video else None, "audio": audio if want_audio else None}
        streams = {kind: each for kind, each in streams.items() if each is not None}
        for kind, stream in streams.items():
            if stream.codec_context is None:
                raise self._error(f"a codec for {kind} that libav has", "another")
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = CODEC_THREADS
        return streams

    def _scan(self, want_video: bool, want_audio: bool) -> dict[str, Track]:
        """Read every packet of the clip's part of the file, decoding none."""
        with self._opened(want_video, want_audio) as (container, streams):
            extent = self._measure(container.format.name)
            if not streams:
                return {}
            if self._num_bytes is not None and self._num_bytes < container.size:
                return self._scan(want_video, want_audio)
            origin_s = _origin_us(container) / av.time_base
            tracks = {kind: self._track(stream.time_base, origin_s) for kind, stream in streams.items()}
            promised = {kind: [entry.timestamp for entry in each.index_entries] for kind, each in streams.items()}
            if "video" in streams:
                note_pictures(streams["video"], tracks["video"])
            exact = self._read_packets(container, streams, tracks) and self._sought
            if self._seek and not (exact and ("video" not in tracks or tracks["video"].by_time)):
                self._seek = False  # this container cannot seek exactly: read it from its beginning
                return self._scan(want_video, want_audio)
            self.notice = self._shortened(streams, tracks, origin_s)
            for kind, track in tracks.items():
                if not track.dts or track.dts[-1] < track.end:
                    count_missing(streams[kind], track, promised[kind], extent)
            return tracks

    def _measure(self, form: str) -> Extent:
        """Find out how far the file holds sound and pictures: libav may take what follows for some."""
        if self._extent is None:
            self._extent = extent_of(self.path, form)
            self._num_bytes = self._extent.end
        return self._extent

    def _shortened(self, streams, tracks: dict[str, Track], origin_s: float) -> str:  # type: ignore[no-untyped-def]
        """Say that the file ends well before `end_s`; nothing of one whose times do not say where it ends."""
        read_through = all(track.dts and max(track.dts) < track.end for track in tracks.values())
        ends_s = [track.last_end_s(streams[kind].time_base) for kind, track in tracks.items()]
        if self.clip.end_s is None or not read_through or None in ends_s:
            return ""
        end_s = max(ends_s) - origin_s  # type: ignore[type-var]
        if self.clip.end_s - end_s <= BEYOND_S or self._start_s >= end_s:
            return ""
        return f"end_s is {self.clip.end_s:.2f} s, its {self.kind} file ends at {end_s:.2f} s"

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
        for number, packet in enumerate(self._packets(container, streams)):
            if number > MAX_PACKETS:
                raise self._error(f"at most {MAX_PACKETS:,} packets", "more")
            if packet.size == 0 and packet.dts is None:
                continue  # the flush packet at the end
            kind = kinds[packet.stream.index]
            track = tracks[kind]
            if kind not in begun:
                begun.add(kind)
                time = packet.pts if packet.pts is not None else packet.dts
                if kind == "audio" and time is not None:  # nobody listens longer
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
                    past.add(kind)
                    if len(past) == len(streams):
                        break
        return exact

    def _packets(self, container, streams) -> Iterator[av.Packet]:  # type: ignore[no-untyped-def]
        """Yield the packets of these streams, in the time that there is.

        Raises:
            MediaError: the time is over, or a stream appears that the header does not have.
        """
        try:
            for packet in container.demux(*streams.values()):
                self._in_time()
                yield packet
            self._in_time()
        except IndexError as error:  # what PyAV makes of a stream that libav found on the way
            raise self._error("the streams that its header states", "one more on the way") from error

    def _picker(self, view: FramesView, track: Track, times: list[int], missing: int) -> FramePicker:
        """Choose the frames of a view among those shown at `times`."""
        aspect = track.pixel_aspect
        if not 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT:
            stated = f"{aspect.numerator}:{aspect.denominator}"
            raise self._error(f"pixels of at most {MAX_PIXEL_ASPECT}:1 or 1:{MAX_PIXEL_ASPECT}", stated)
        if not times and track.pts and not self._whole:
            raise self._no_times(track)
        inside = [(number, time) for number, time in enumerate(times) if track.start <= time < track.end]
        if not times:
            inside = [(number, number) for number in range(len(track.pts))]
        total = len(inside) + missing
        if not total:
            raise self._error("frames" if self._whole else "frames between start_s and end_s", "none")
        try:
            indices = frame_indices(view, total, self.clip.peak_frame)
        except ValueError as error:
            raise MediaError(f'clip "{self.clip.id}"', got=str(error)) from error
        about = missing and track.missing_guessed
        if max(indices) >= len(inside) or (about and indices != frame_indices(view, len(inside), self.clip.peak_frame)):
            raise self._error(f"{'about ' * about}{total} frames", f"{len(inside)}; the file is cut short")
        if not track.by_time:
            return FramePicker([inside[index][0] for index in indices], False, aspect)
        return FramePicker([inside[index][1] for index in indices], True, aspect, track.doubtful())

    def _no_times(self, track: Track) -> MediaError:
        got = "times that go back" if len(track.dts) == len(track.pts) else "none"
        return self._error("frame times that ascend, which start_s and end_s need,", got)

    def _checked(self, pickers: dict[View, FramePicker], track: Track) -> dict[View, Decoded | MediaError]:
        """Return the frames picked; where decoding showed that packets told them wrongly, those that are right."""
        went_back = track.goes_back or any(picker.went_back for picker in pickers.values())
        if not track.by_time or not (went_back or any(picker.misled for picker in pickers.values())):
            return {view: self._frames(picker, track) for view, picker in pickers.items()}
        # Packets that show no picture (VP8 has such) were counted as frames, or times do not tell what comes first.
        counter = FramePicker([NO_FRAME], by_time=False)
        self._run({next(iter(pickers)): counter}, {})
        track.in_order = not counter.went_back
        times = sorted(counter.emitted) if len(counter.emitted) == counter.seen else []
        chosen: dict[View, FramePicker] = {}
        results: dict[View, Decoded | MediaError] = {}
        for view in pickers:
            try:
                if track.goes_back and not (track.in_order or self._whole):
                    raise self._no_times(track)
                chosen[view] = self._picker(view, track, times, 0)
            except MediaError as error:
                results[view] = error
        self._run(chosen, {})
        return results | {view: self._frames(picker, track) for view, picker in chosen.items()}

    def _run(
        self, pickers: dict[View, FramePicker], collectors: dict[View, WaveformCollector], skip: bool = False
    ) -> None:
        """Decode once, handing frames to every picker and sound to every collector until all have enough.

        With `skip`, frames that nobody asks for and no other frame is predicted from are not decoded.
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
                collector.position_s = None if self._seek else 0.0
            context = streams["video"].codec_context if "video" in streams else None
            self._skipped = skip and context is not None and context.name in SKIPPING_CODECS
            for packet in self._packets(container, streams):
                active = [sink for sink in sinks[packet.stream.index] if not sink.done]
                if active:
                    if self._skipped and packet.stream.type == "video":
                        needed = any(picker.needs(packet.pts) for picker in active)
                        context.skip_frame = "DEFAULT" if needed else "NONREF"  # type: ignore[union-attr]
                    _decode_packet(packet, active)
                elif all(sink.done for group in sinks.values() for sink in group):
                    break
            for collector in collectors.values():
                collector.finish()

    def _frames(self, picker: FramePicker, track: Track) -> np.ndarray | MediaError:
        damaged = picker.damaged + len(picker.places.keys() & track.damaged if picker.by_time else ())
        if damaged:
            return self._error("whole frames", f"{damaged} damaged among those chosen")
        if not picker.found_all:
            got = f"{picker.num_found}" + (f"; {picker.errors} packets are damaged" if picker.errors else "")
            return self._error(f"{len(picker.places)} frames chosen out of {len(track.pts)}", got)
        return picker.frames  # type: ignore[return-value]

    def _waveform(self, collector: WaveformCollector, track: Track) -> np.ndarray | MediaError:
        samples = collector.samples()
        lacking = track.missing + len(track.damaged)
        if lacking and (collector.problem or not collector.done):
            whole = len(track.pts) - len(track.damaged)
            got = f"{whole} ({len(samples) / collector.sampling_rate:.2f} s); the file is cut short"
            about = "about " * (track.missing > 0 and track.missing_guessed)
            return self._error(f"{about}{whole + lacking} audio packets", got)
        if collector.problem:
            return self._error(*collector.problem)
        if not len(samples):
            part = "sound" if self._whole else "sound in this part"
            return self._error(part, "no samples")
        if not np.isfinite(samples).all():
            return self._error("finite samples", "NaN or infinity")
        return samples


def _decode_packet(packet, sinks: list) -> None:  # type: ignore[no-untyped-def, type-arg]
    try:
        frames = packet.decode()
        if packet.stream.type == "audio":
            frames = [without_labels(frame) for frame in frames]
    except FFmpegError as error:
        if not bytes(packet)[:8].startswith(TAGS):  # files joined byte for byte have tags within
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
