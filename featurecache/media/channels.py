"""Channels of sound: samples of several channels as an array, and the weights that mix channels to mono.

Shapes: libav audio frames in, (1, S·C) interleaved samples out; S samples of C channels.

`mean`, the published value, gives all channels the same weight, including low-frequency effects: speech in the centre
channel of 5.1 sound becomes 15.6 dB quieter. `standard` is the mean of the two sides of the stereo down-mix of ITU-R
BS.775, in which centre and surround channels enter both sides at -3 dB and low-frequency effects enter none: speech in
the centre becomes 3 dB quieter. Both are equal for mono and stereo.

Two defects of PyAV are avoided here. PyAV copies libav's description of a layout without the memory that it points to,
and frees that memory twice: a layout of labelled channels in a custom order (CAF, AIFF and QuickTime files of Apple's
tools) crashes the process. Such layouts are replaced by their number of channels, which suffices for the mean. PyAV
also reads planes of a planar frame beyond the eighth, which do not exist, so arrays are made from interleaved frames
only. This module knows no file.
"""

from __future__ import annotations

import ctypes

import av
import numpy as np
from av.container import InputContainer

from featurecache.views import Channels

LABELLING_FORMATS = frozenset({"mov", "caf", "aiff", "mxf", "iamf", "w64", "nut"})
"""Containers whose channel labels libav passes to the decoder."""
NUMPY_FORMATS = frozenset({"u8", "s16", "s32", "flt", "dbl"})
"""Interleaved sample formats that PyAV converts to arrays."""


def remove_channel_labels(container: InputContainer) -> None:
    """Replace layouts of labelled channels in the decoders of a container, before any decoder is opened."""
    if LABELLING_FORMATS.isdisjoint(container.format.name.split(",")):
        return
    for stream in container.streams.audio:
        context: av.AudioCodecContext | None = stream.codec_context  # None for an unknown codec
        if context is not None and context.name != "aac":  # AAC reads the layout from its own stream
            layout = _keep_alive(context.layout)
            if _is_labelled(layout):
                context.layout = _unlabelled_name(layout)


def without_labels(frame: av.AudioFrame) -> av.AudioFrame:
    """Return a decoded frame, or for labelled channels a copy whose layout is only a number of channels."""
    if not _is_labelled(frame.layout):
        return frame
    _keep_alive(frame.layout)
    sample_format = _array_format(frame)
    samples = interleaved(frame, sample_format)
    unlabelled = av.AudioFrame.from_ndarray(samples, format=sample_format, layout=_unlabelled_name(frame.layout))
    unlabelled.sample_rate, unlabelled.pts, unlabelled.time_base = frame.sample_rate, frame.pts, frame.time_base
    return unlabelled


def cut_frame(frame: av.AudioFrame, first: int, last: int) -> av.AudioFrame:
    """Return the samples from `first` up to but not including `last`, as a frame of the same format."""
    sample_format, channels = _array_format(frame), frame.layout.nb_channels
    samples = np.ascontiguousarray(interleaved(frame, sample_format)[:, first * channels : last * channels])
    part = av.AudioFrame.from_ndarray(samples, format=sample_format, layout=frame.layout)
    part.sample_rate = frame.sample_rate
    return _converted(part, frame.format.name)


def interleaved(frame: av.AudioFrame, sample_format: str) -> np.ndarray:
    """Return the (1, S·C) samples of a frame in an interleaved format."""
    return _converted(frame, sample_format).to_ndarray()


def resampled(resampler: av.AudioResampler, frame: av.AudioFrame) -> list[av.AudioFrame]:
    """Resample a frame without its time, because the resampler would fill gaps between times; restore it afterwards."""
    pts, frame.pts = frame.pts, None
    try:
        return resampler.resample(frame)
    finally:
        frame.pts = pts


def _converted(frame: av.AudioFrame, sample_format: str) -> av.AudioFrame:
    resampler = av.AudioResampler(format=sample_format, layout=frame.layout, rate=frame.sample_rate)
    (converted,) = resampled(resampler, frame)
    if converted is not frame and _is_labelled(converted.layout):
        _keep_alive(converted.layout)
    return converted


def _array_format(frame: av.AudioFrame) -> str:
    sample_format = frame.format.packed.name
    return sample_format if sample_format in NUMPY_FORMATS else "dbl"


def _is_labelled(layout: av.AudioLayout) -> bool:
    """Whether a layout may hold labels: its name lists them, or names channels beside an ambisonic order."""
    return " channels (" in layout.name or layout.name.startswith("ambisonic")  # "5.1(side)" is the name of a layout


def _unlabelled_name(layout: av.AudioLayout) -> str:
    return f"{layout.nb_channels} channels"


def _keep_alive(layout: av.AudioLayout) -> av.AudioLayout:
    """Keep PyAV from freeing a layout, whose memory belongs to the frame or decoder that it was copied from."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(layout))
    return layout


SIDE = 0.5  # a channel that enters one of the two sides only
MINUS_3_DB = 0.5**0.5
STANDARD = {
    "FL": SIDE, "FR": SIDE, "DL": SIDE, "DR": SIDE, "FLC": SIDE, "FRC": SIDE, "WL": SIDE, "WR": SIDE,
    "FC": MINUS_3_DB, "BC": MINUS_3_DB * MINUS_3_DB,
    "BL": SIDE * MINUS_3_DB, "BR": SIDE * MINUS_3_DB, "SL": SIDE * MINUS_3_DB, "SR": SIDE * MINUS_3_DB,
    "LFE": 0.0, "LFE2": 0.0,
}  # fmt: skip
"""libav's name of a channel -> weight; BC enters both surround channels at -3 dB."""
LAYOUT_BY_COUNT = {6: "5.1", 8: "7.1"}
"""Number of unnamed channels -> layout, as players assume it; WAV and Matroska often name no channels."""


def channel_weights(channels: Channels, layout: av.AudioLayout, in_order: bool = True) -> np.ndarray | None:
    """Return (C,) float32 weights of the channels of a layout; None for their mean.

    Channels without names are those of 5.1 and 7.1, unless the file may hold them in another order (`in_order` False).

    Raises:
        ValueError: the standard down-mix has no weight for some channel; the text names the layout.
    """
    if channels == "mean" or layout.nb_channels <= 2:
        return None
    unnamed = layout.name == f"{layout.nb_channels} channels"
    if unnamed and in_order and layout.nb_channels in LAYOUT_BY_COUNT:
        layout = av.AudioLayout(LAYOUT_BY_COUNT[layout.nb_channels])
    names = [channel.name for channel in layout.channels]
    if not STANDARD.keys() >= set(names):
        raise ValueError(f"the layout {layout.name}")
    return np.array([STANDARD[name] for name in names], np.float32)
