"""Turn decoded sound into one mono waveform at a fixed rate.

Shapes: libav audio frames of any layout, rate and sample format in, (S,) float32 out.
Every channel is resampled by itself (libswresample), then they are mixed (`downmix`). Samples outside
[start_s, end_s) are cut off before resampling, so the filter never sees them; where frames have no times, their samples
are counted. Gaps in times are not filled. Decoding may stop once `done`. This module knows no file.
"""

from __future__ import annotations

import math

import av
import numpy as np
from av.error import FFmpegError

from featurecache.media.channels import channel_weights, cut, resampled
from featurecache.views import Channels

BACK_S = 0.5  # times may jitter by rounding, not begin again
MAX_LEADING_ERRORS = 8  # packets refused before the first sample: tags and padding that a demuxer took for sound


class WaveformCollector:
    """Collects (S,) float32 from the frames of one stream, at most `max_duration_s` of it."""

    def __init__(
        self, sampling_rate: int, max_duration_s: float, start_s: float, end_s: float, channels: Channels = "mean"
    ) -> None:
        self.sampling_rate = sampling_rate
        self.position_s: float | None = 0.0
        """Where the next frame begins in the file, if it does not say so itself; None where that is not known."""
        self.origin_s = 0.0
        self.problem: tuple[str, str] | None = None
        """(expected, got) once the sound cannot be used."""
        self._limit = round(max_duration_s * sampling_rate)
        self._start_s, self._end_s, self._channels = start_s, end_s, channels
        self.in_order = True
        """Whether channels without names come in the usual order."""
        self._weights: np.ndarray | None = None
        self._parts: list[np.ndarray] = []
        self._collected = 0
        self._ended = False
        self._errors = 0
        self._heard = False
        self._resampler: av.AudioResampler | None = None
        self._format: tuple[str, str, int] | None = None

    @property
    def done(self) -> bool:
        return self._ended or self._collected >= self._limit or self.problem is not None

    def refused(self, error: FFmpegError) -> None:
        """Note a packet that the decoder refuses."""
        self._errors += 1
        if self._heard or self._errors > MAX_LEADING_ERRORS:
            self.problem = ("every audio packet to decode", error.strerror or "a damaged one")

    def add(self, frame: av.AudioFrame) -> None:
        """Take one decoded frame of any format."""
        self._heard = True
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
            frame = cut(frame, first, last)
        self._resample(frame)

    def _begin_s(self, frame: av.AudioFrame) -> float | None:
        """Return when a frame begins, by its time or by the samples before it; None with a problem noted."""
        begin_s, expected = self.position_s, "times of the sound that ascend, which start_s and end_s need"
        if frame.pts is not None and frame.time_base is not None:
            begin_s = float(frame.pts * frame.time_base) - self.origin_s
            if self.position_s and begin_s < self.position_s - BACK_S:
                self.problem = (expected, "times that go back")
                return None
        if begin_s is None:
            self.problem = (expected, "none")
            return None
        self.position_s = begin_s + frame.samples / frame.sample_rate
        return begin_s

    def finish(self) -> None:
        """Take what the resampler still holds."""
        self._flush()

    def samples(self) -> np.ndarray:
        """(S,) float32 of everything collected."""
        if not self._parts:
            return np.zeros(0, np.float32)
        return np.concatenate(self._parts)[: self._limit]

    def _resample(self, frame: av.AudioFrame) -> None:
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != self._format:  # a stream may change its layout or rate midway
            self._flush()
            self._format = kind
            try:
                self._weights = channel_weights(self._channels, frame.layout, self.in_order)
            except ValueError as error:
                self.problem = ("channels that the standard down-mix knows (channels=mean takes any)", str(error))
                return
            self._resampler = av.AudioResampler(format="flt", layout=frame.layout, rate=self.sampling_rate)
        self._keep(resampled(self._resampler, frame))  # type: ignore[arg-type]

    def _flush(self) -> None:
        if self._resampler is not None:
            self._keep(self._resampler.resample(None))
            self._resampler = None
            self._format = None

    def _keep(self, frames: list[av.AudioFrame]) -> None:
        for frame in frames:
            channels = np.ascontiguousarray(frame.to_ndarray().reshape(-1, frame.layout.nb_channels).T)  # [c, s]
            mono = channels.mean(axis=0, dtype=np.float32) if self._weights is None else self._weights @ channels
            self._parts.append(mono)
            self._collected += len(mono)
