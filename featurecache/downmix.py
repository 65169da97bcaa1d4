"""How much each channel of a layout counts in the mono sound that an encoder hears.

`mean`, the published value: every channel counts alike, also the low-frequency effects, so that speech in the centre of
5.1 sound comes 15.6 dB down. `standard`: the stereo down-mix of ITU-R BS.775, then the mean of its two sides, in which
centre and surround channels enter both sides at -3 dB and low-frequency effects enter none: speech in the centre comes
3 dB down. For mono and stereo both are the same. Shapes: C channels. This module knows no file.
"""

from __future__ import annotations

import av
import numpy as np

from featurecache.encoders import Channels

SIDE = 0.5  # of two sides, a channel in one of them alone
MINUS_3_DB = 0.5**0.5
STANDARD = {
    "FL": SIDE, "FR": SIDE, "DL": SIDE, "DR": SIDE, "FLC": SIDE, "FRC": SIDE, "WL": SIDE, "WR": SIDE,
    "FC": MINUS_3_DB, "BC": MINUS_3_DB * MINUS_3_DB,
    "BL": SIDE * MINUS_3_DB, "BR": SIDE * MINUS_3_DB, "SL": SIDE * MINUS_3_DB, "SR": SIDE * MINUS_3_DB,
    "LFE": 0.0, "LFE2": 0.0,
}  # fmt: skip
"""Weight of a channel by libav's name of it; BC is both surrounds at -3 dB."""
UNNAMED = {6: "5.1", 8: "7.1"}
"""What so many channels are taken for, as players do, where a file names none: WAV and Matroska often do not."""


def channel_weights(channels: Channels, layout: av.AudioLayout, in_order: bool = True) -> np.ndarray | None:
    """Return (C,) float32 weights of the channels of a layout; None for their mean.

    Channels without names are those of 5.1 and 7.1, unless the file may hold them in another order (`in_order` False).

    Raises:
        ValueError: the standard down-mix does not say how much some channel counts; the text names the layout.
    """
    if channels == "mean" or layout.nb_channels <= 2:
        return None
    unnamed = layout.name == f"{layout.nb_channels} channels"
    if unnamed and in_order and layout.nb_channels in UNNAMED:
        layout = av.AudioLayout(UNNAMED[layout.nb_channels])
    names = [channel.name for channel in layout.channels]
    if not STANDARD.keys() >= set(names):
        raise ValueError(f"the layout {layout.name}")
    return np.array([STANDARD[name] for name in names], np.float32)
