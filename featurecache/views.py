"""What an encoder reads of a clip: its waveform, or frames chosen by a rule. Known to decoders and encoders alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Channels = Literal["mean", "standard"]
CHANNELS: tuple[Channels, ...] = ("mean", "standard")
"""What `channels` may be; the first is the default."""


@dataclass(frozen=True)
class AudioView:
    """The clip's waveform, mono, cut to `max_duration_s`."""

    sampling_rate: int = 16_000
    max_duration_s: float = 30.0
    channels: Channels = "mean"
    """How several channels become one (`downmix`)."""


@dataclass(frozen=True)
class FramesView:
    """`count` RGB frames of the clip.

    rule "uniform": the middles of `count` equal parts of the clip; a clip with fewer frames repeats its last one.
    rule "peak" | "middle" | "first": that frame, or with `count` > 1 consecutive frames around it (from it, for
    "first"), moved to lie inside the clip; "peak" falls back to "middle" where the list names no peak frame.
    rule "window": consecutive frames around the middle, a fixed stand-in for the released code's random window.
    A still image serves where there is no video, if `still` allows.
    """

    count: int
    rule: Literal["uniform", "window", "peak", "middle", "first"]
    still: bool


View = AudioView | FramesView
