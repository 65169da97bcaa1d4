"""Views of a clip: what an encoder reads of it, the waveform, frames chosen by a rule, or its words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FrameRule = Literal["uniform", "window", "peak", "middle", "first"]
Channels = Literal["mean", "standard"]
CHANNELS: tuple[Channels, ...] = ("mean", "standard")
"""Values of `channels`; the first is the default."""


@dataclass(frozen=True)
class AudioView:
    """The clip's waveform, mono, cut to `max_duration_s`."""

    sampling_rate: int = 16_000
    max_duration_s: float = 30.0
    channels: Channels = "mean"
    """How several channels are mixed down to one (`downmix`)."""


@dataclass(frozen=True)
class FramesView:
    """`count` RGB frames of the clip.

    rule "uniform": the middle frames of `count` equal parts of the clip; a clip with fewer frames repeats its last one.
    rule "peak" | "middle" | "first": that frame. If `count` > 1, consecutive frames around it (for "first": from it),
    shifted to lie inside the clip. "peak" becomes "middle" if the clip list names no peak frame.
    rule "window": consecutive frames around the middle. The released code takes a random window instead.
    If `still` is true, a still image replaces a missing video.
    """

    count: int
    rule: FrameRule
    still: bool


@dataclass(frozen=True)
class TextView:
    """The clip's words, its `text` in the clip list."""


View = AudioView | FramesView | TextView
