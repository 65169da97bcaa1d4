"""Channels of sound: samples of any number of channels as an array, and how channels become mono.

Shapes: libav audio frames in, (1, S·C) interleaved samples out; S samples of C channels.

`mean`, the published value: every channel has the same weight, the low-frequency effects included, so that speech in
the centre of 5.1 sound is 15.6 dB quieter. `standard`: the stereo down-mix of ITU-R BS.775, then the mean of its two
sides, in which centre and surround channels enter both sides at -3 dB and low-frequency effects enter none: speech in
the centre is 3 dB quieter. Both are equal for mono and stereo.

PyAV copies libav's description of a layout without the memory that it points to, and frees it twice: a layout of
labelled channels in an order of its own (the CAF, AIFF and QuickTime files of Apple's tools have such) ends the
process. Such layouts are replaced by their number of channels, which is all that the mean of the channels needs. PyAV
also looks for planes of a planar frame beyond the eighth, where there are none, so arrays are made from interleaved
frames only. This module knows no file.
"""

from __future__ import annotations

import ctypes

import av
import numpy as np

from featurecache.views import Channels

LABELLING_FORMATS = frozenset({"mov", "caf", "aiff", "mxf", "iamf", "w64", "nut"})
"""Containers that hand a decoder labels of channels."""
NUMPY_FORMATS = frozenset({"u8", "s16", "s32", "flt", "dbl"})
"""Interleaved sample formats that PyAV gives as arrays."""


def forget_labels(container: av.container.InputContainer) -> None:
    """Replace layouts of labelled channels in the decoders of a container, before any is opened."""
    if LABELLING_FORMATS.isdisjoint(container.format.name.split(",")):
        return
    for stream in container.streams.audio:
        context = stream.codec_context
        if context is not None and context.name != "aac":  # which reads its layout from its own stream
            layout = _held(context.layout)
            if _labelled(layout):
                context.layout = _counted(layout)


def without_labels(frame: av.AudioFrame) -> av.AudioFrame:
    """Return a decoded frame, or a copy whose layout is its number of channels where they are labelled."""
    if not _labelled(frame.layout):
        return frame
    _held(frame.layout)
    form = _array_format(frame)
    samples = interleaved(frame, form)
    plain = av.AudioFrame.from_ndarray(samples, format=form, layout=_counted(frame.layout))
    plain.sample_rate, plain.pts, plain.time_base = frame.sample_rate, frame.pts, frame.time_base
    return plain


def cut(frame: av.AudioFrame, first: int, last: int) -> av.AudioFrame:
    """Return samples `first` to `last` of a frame, as a frame of its format."""
    form, channels = _array_format(frame), frame.layout.nb_channels
    samples = np.ascontiguousarray(interleaved(frame, form)[:, first * channels : last * channels])
    part = av.AudioFrame.from_ndarray(samples, format=form, layout=frame.layout)
    part.sample_rate = frame.sample_rate
    return _converted(part, frame.format.name)


def interleaved(frame: av.AudioFrame, form: str) -> np.ndarray:
    """(1, S·C) samples of a frame in an interleaved format."""
    return _converted(frame, form).to_ndarray()


def resampled(resampler: av.AudioResampler, frame: av.AudioFrame) -> list[av.AudioFrame]:
    """Put a frame through a resampler, which would fill gaps in its times, without them; the frame keeps its own."""
    pts, frame.pts = frame.pts, None
    try:
        return resampler.resample(frame)
    finally:
        frame.pts = pts


def _converted(frame: av.AudioFrame, form: str) -> av.AudioFrame:
    resampler = av.AudioResampler(format=form, layout=frame.layout, rate=frame.sample_rate)
    (converted,) = resampled(resampler, frame)
    if converted is not frame and _labelled(converted.layout):
        _held(converted.layout)
    return converted


def _array_format(frame: av.AudioFrame) -> str:
    form = frame.format.packed.name
    return form if form in NUMPY_FORMATS else "dbl"


def _labelled(layout: av.AudioLayout) -> bool:
    """Whether a layout may hold labels: libav then lists them, or names what comes beside an ambisonic order."""
    return " channels (" in layout.name or layout.name.startswith("ambisonic")  # 5.1(side) is a layout's own name


def _counted(layout: av.AudioLayout) -> str:
    return f"{layout.nb_channels} channels"


def _held(layout: av.AudioLayout) -> av.AudioLayout:
    """Keep PyAV from freeing a layout, whose memory belongs to the frame or decoder that it was copied from."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(layout))
    return layout


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
