"""Altered copies of a clip: encoded again, cropped, cut, mirrored, louder, softer, noisy, resized, faster.

The calibration of near duplicates uses them. Each copy is a file: decoded, filtered by libavfilter and encoded as H.264
and AAC. It contains only the part of the recording that the clip uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from av.error import BlockingIOError as NothingYet
from av.error import EOFError as NothingMore

from featurecache.clips.clip_list import Clip
from featurecache.media.channels import without_labels
from featurecache.media.container import open_container

Filters = Sequence[tuple[str, str]]
FRAMES_PER_S = 25
GOOD_CRF, POOR_CRF = "20", "36"
GOOD_AUDIO_BITS, POOR_AUDIO_BITS = 128_000, 24_000
NOISE = "exprs=val(ch)+0.01*(random(ch)*2-1):c=same"
"""White noise of -45 dB of full scale."""


@dataclass(frozen=True)
class Augmentation:
    """One alteration: libavfilter filters per stream, and the encoder's quality."""

    name: str
    video: Filters = ()
    audio: Filters = ()
    crf: str = GOOD_CRF
    audio_bits: int = GOOD_AUDIO_BITS


AUGMENTATIONS = (
    Augmentation("lower bitrate", crf=POOR_CRF, audio_bits=POOR_AUDIO_BITS),
    Augmentation("cropped 10 %", video=[("crop", "iw*0.9:ih*0.9")]),
    Augmentation("cut by 0.5 s", video=[("trim", "start=0.5"), ("setpts", "PTS-STARTPTS")],
                 audio=[("atrim", "start=0.5"), ("asetpts", "PTS-STARTPTS")]),
    Augmentation("mirrored", video=[("hflip", "")]),
    Augmentation("gain −8 dB", audio=[("volume", "0.4")]),
    Augmentation("gain +6 dB", audio=[("volume", "2.0")]),
    Augmentation("noise", video=[("noise", "alls=8:allf=t")], audio=[("aeval", NOISE)]),
    Augmentation("half size", video=[("scale", "iw/2:ih/2")]),
    Augmentation("1.05× speed", video=[("setpts", "PTS/1.05")], audio=[("atempo", "1.05")]),
)  # fmt: skip


def augment(clip: Clip, augmentation: Augmentation, target: Path) -> None:
    """Write the altered copy of a clip as an mp4 file.

    Raises:
        av.FFmpegError, OSError: the clip's media cannot be read.
        ValueError: the clip has neither moving pictures nor sound.
    """
    tracks = [(clip.video, "video"), (clip.audio or clip.video, "audio")]
    with ExitStack() as files, av.open(str(target), "w") as out:
        transcoders = []
        for path, kind in tracks:
            if path:
                container = files.enter_context(open_container(path))
                streams = container.streams.video if kind == "video" else container.streams.audio
                if streams:
                    transcoders.append(_Transcoder(clip, container, streams[0], augmentation, out))
        if not transcoders:
            raise ValueError(f"{clip.id}: no moving pictures and no sound")
        for transcoder in transcoders:  # every output stream must exist before the first packet is written
            transcoder.open()
        for transcoder in transcoders:
            for packet in transcoder.packets():
                out.mux(packet)


class _Transcoder:
    """Decodes, filters and encodes one stream."""

    def __init__(self, clip: Clip, container: Any, stream: Any, augmentation: Augmentation, out: Any) -> None:
        self._container, self._stream, self._augmentation, self._out = container, stream, augmentation, out
        self._kind = stream.type
        begin, end = clip.start_s or 0.0, clip.end_s
        self._span = f"start={begin}" + (f":end={end}" if end is not None else "")

    def open(self) -> None:
        """Build the filters and the output stream."""
        graph = self._graph = av.filter.Graph()
        if self._kind == "video":
            source, sink = graph.add_buffer(template=self._stream), graph.add("buffersink")
            trim, set_times = "trim", "setpts"
            filters = [
                *self._augmentation.video,
                ("fps", str(FRAMES_PER_S)),
                ("scale", "trunc(iw/2)*2:trunc(ih/2)*2"),
                ("format", "yuv420p"),
            ]
        else:
            source, sink = graph.add_abuffer(template=self._stream), graph.add("abuffersink")
            trim, set_times, filters = "atrim", "asetpts", [*self._augmentation.audio, ("aformat", "sample_fmts=fltp")]
        last = source
        for name, arguments in [(trim, self._span), (set_times, "PTS-STARTPTS"), *filters]:
            node = graph.add(name, arguments)
            last.link_to(node)
            last = node
        last.link_to(sink)
        graph.configure()
        self._source = source
        if self._kind == "video":
            self._encoder = self._out.add_stream("libx264", rate=FRAMES_PER_S)
            self._encoder.options = {"crf": self._augmentation.crf, "preset": "veryfast"}
            self._encoder.pix_fmt = "yuv420p"
        else:
            self._encoder = self._out.add_stream("aac", rate=self._stream.rate)
            self._encoder.bit_rate = self._augmentation.audio_bits
            self._encoder.layout = "mono" if self._stream.channels == 1 else "stereo"

    def packets(self) -> Iterator[Any]:
        """Decode, filter and encode the stream; yield the packets."""
        sized = self._kind == "audio"  # the size of the pictures is known with the first filtered frame
        for frame in self._filtered():
            if not sized:
                self._encoder.width, self._encoder.height, sized = frame.width, frame.height, True
            if self._kind == "video":
                frame.pict_type = 0  # the encoder chooses the types of frames
            yield from self._encoder.encode(frame)
        if sized:
            yield from self._encoder.encode(None)

    def _filtered(self) -> Iterator[Any]:
        try:
            for frame in self._container.decode(self._stream):
                self._source.push(frame if self._kind == "video" else without_labels(frame))
                yield from self._pulled()
            self._source.push(None)
        except NothingMore:  # the trim filter has ended before the recording
            pass
        yield from self._pulled()

    def _pulled(self) -> Iterator[Any]:
        while True:
            try:
                yield self._graph.pull()
            except (NothingYet, NothingMore):
                return
