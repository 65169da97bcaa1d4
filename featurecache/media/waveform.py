"""Turn decoded sound into one mono waveform at a fixed rate.

Shapes: libav audio frames of any layout, rate and sample format in, (S,) float32 out.
Each channel is resampled separately (libswresample), then the channels are mixed (`channels`). Samples outside
[start_s, end_s) are cut off before resampling, so the filter never reads them. Frames without times are placed by
counting samples. Gaps in times are not filled. Decoding may stop once `done`. This module knows no file.
"""

from __future__ import annotations

import math

import av
import numpy as np
from av.error import FFmpegError

from featurecache.media.channels import channel_weights, cut_frame, resampled
from featurecache.views import Channels

MAX_JITTER_S = 0.5  # times may go back by rounding, but not start again
MAX_LEADING_ERRORS = 8  # refused packets before the first sample: tags and padding that a demuxer read as sound


class WaveformCollector:
    """Collects (S,) float32 from the frames of one stream, at most `max_duration_s`."""

    def __init__(
        self, sampling_rate: int, max_duration_s: float, start_s: float, end_s: float, channels: Channels = "mean"
    ) -> None:
        self.sampling_rate = sampling_rate
        self.position_s: float | None = 0.0
        """Start of the next frame in the file, if the frame has no time; None if unknown (after a seek)."""
        self.origin_s = 0.0
        """First moment of the file, from which times of a clip count."""
        self.problem: tuple[str, str] | None = None
        """(expected, got) once the sound cannot be used."""
        self._limit = round(max_duration_s * sampling_rate)
        self._start_s, self._end_s, self._channels = start_s, end_s, channels
        self.in_order = True
        """Whether channels without names are in the usual order."""
        self._weights: np.ndarray | None = None
        self._parts: list[np.ndarray] = []
        self._num_samples = 0
        self._ended = False
        self._num_errors = 0
        self._has_frames = False
        self._resampler: av.AudioResampler | None = None
        self._format: tuple[str, str, int] | None = None

    @property
    def done(self) -> bool:
        return self._ended or self._num_samples >= self._limit or self.problem is not None

    def refused(self, error: FFmpegError) -> None:
        """Count a packet that the decoder refuses."""
        self._num_errors += 1
        if self._has_frames or self._num_errors > MAX_LEADING_ERRORS:
            self.problem = ("every audio packet to decode", error.strerror or "a damaged one")

    def add(self, frame: av.AudioFrame) -> None:
        """Add one decoded frame of any format."""
        self._has_frames = True
        try:
            self._add(frame)
        except FFmpegError:
            self._resampler = None
            self.problem = (
                "sound that libav can resample",
                f"{frame.layout.nb_channels} channels of {frame.format.name}",
            )

    def _add(self, frame: av.AudioFrame) -> None:
        first, last = 0, frame.samples
        if self._start_s or self._end_s != math.inf:
            begin_s = self._begin_s(frame)
            if begin_s is None:
                return
            first = max(0, math.ceil((self._start_s - begin_s) * frame.sample_rate - 1e-6)) if self._start_s else 0
            if self._end_s != math.inf:
                last = min(last, math.ceil((self._end_s - begin_s) * frame.sample_rate - 1e-6))
                self._ended = last < frame.samples
        if first >= last:
            return
        if (first, last) != (0, frame.samples):
            frame = cut_frame(frame, first, last)
        self._resample(frame)

    def _begin_s(self, frame: av.AudioFrame) -> float | None:
        """Return the start of a frame, by its time or the samples before it; if unknown, set `problem`, return None."""
        begin_s, expected = self.position_s, "times of the sound that ascend, which start_s and end_s need"
        if frame.pts is not None and frame.time_base is not None:
            begin_s = float(frame.pts * frame.time_base) - self.origin_s
            if self.position_s and begin_s < self.position_s - MAX_JITTER_S:
                self.problem = (expected, "times that go back")
                return None
        if begin_s is None:
            self.problem = (expected, "none")
            return None
        self.position_s = begin_s + frame.samples / frame.sample_rate
        return begin_s

    def finish(self) -> None:
        """Add the samples that the resampler still holds."""
        self._flush()

    def samples(self) -> np.ndarray:
        """Return all collected samples, (S,) float32."""
        if not self._parts:
            return np.zeros(0, np.float32)
        return np.concatenate(self._parts)[: self._limit]

    def _resample(self, frame: av.AudioFrame) -> None:
        frame_format = (frame.format.name, frame.layout.name, frame.sample_rate)
        if frame_format != self._format:  # a stream may change its layout or rate
            self._flush()
            self._format = frame_format
            try:
                self._weights = channel_weights(self._channels, frame.layout, self.in_order)
            except ValueError as error:
                self.problem = ("channels that the standard down-mix knows (channels=mean takes any)", str(error))
                return
            self._resampler = av.AudioResampler(format="flt", layout=frame.layout, rate=self.sampling_rate)
        assert self._resampler is not None  # set when the format was
        self._append(resampled(self._resampler, frame))

    def _flush(self) -> None:
        if self._resampler is not None:
            self._append(self._resampler.resample(None))
            self._resampler = None
            self._format = None

    def _append(self, frames: list[av.AudioFrame]) -> None:
        for frame in frames:
            channels = np.ascontiguousarray(frame.to_ndarray().reshape(-1, frame.layout.nb_channels).T)  # [c, s]
            mono = channels.mean(axis=0, dtype=np.float32) if self._weights is None else self._weights @ channels
            self._parts.append(mono)
            self._num_samples += len(mono)
