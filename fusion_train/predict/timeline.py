"""Draw the evidence of one answer under one axis of time, as HTML: frames, waveform, windows, modality weights.

A window is the part of the sound that a fusion token reads: with Whisper 30 s / 64 = 0.469 s, padding included. Windows
whose middle lies within the clip stand at their own time. The others encode padding; they share a narrow block after
the clip, so that all K windows are visible. Without sound the windows divide the clip evenly, as the frames do; a still
picture has no times. Frames stand at the times that their file states.

Shapes: F frames, K windows (fusion tokens), M modalities, S audio samples. Places are per cent of the width.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from featurecache.outside_text import html_text
from fusion_train.predict.evidence import Evidence

CLIP_WIDTH = 84.0
"""Width of the clip's own time if windows lie after it."""
AFTER = 86.0
"""Place where the block of windows after the clip begins."""
MAX_TICKS = 8
ENVELOPE_BINS = 480
THUMBNAIL_HEIGHT = 96
JPEG_QUALITY = 80
VIEW_HEIGHT = 100
"""Height of the drawing of weights and of the waveform, in units of their own."""


@dataclass(frozen=True)
class TimeAxis:
    """Places of seconds and of windows on the width of the page."""

    duration_s: float | None
    """Duration of what the encoders received; None if nothing of it has a time."""
    window_s: float | None
    """Seconds from one window to the next."""
    num_windows: int
    num_inside: int
    """Number of windows whose middle lies within the clip, at least one."""

    @property
    def inside(self) -> float:
        """Width of the clip's own time."""
        return 100.0 if self.num_inside == self.num_windows else CLIP_WIDTH

    def place(self, seconds: float) -> float:
        """Return the place of a moment of the clip."""
        if not self.duration_s:
            return 0.0
        return min(max(seconds, 0.0) / self.duration_s, 1.0) * self.inside

    def window(self, number: int) -> tuple[float, float]:
        """Return (left, right) of a window."""
        if self.window_s is None:
            return number * 100 / self.num_windows, (number + 1) * 100 / self.num_windows
        if number < self.num_inside:
            return self.place(number * self.window_s), self.place((number + 1) * self.window_s)
        width = (100 - AFTER) / (self.num_windows - self.num_inside)
        return AFTER + (number - self.num_inside) * width, AFTER + (number + 1 - self.num_inside) * width

    def ticks_s(self) -> list[float]:
        """Return the moments of the labels: at most `MAX_TICKS` round numbers."""
        if not self.duration_s:
            return []
        steps = (digit * 10.0**power for power in range(-2, 5) for digit in (1, 2, 5))
        step = next(step for step in steps if self.duration_s / step < MAX_TICKS)
        return [number * step for number in range(math.floor(self.duration_s / step + 1e-9) + 1)]


def time_axis(evidence: Evidence, frame_times: Mapping[str, Sequence[float]]) -> TimeAxis:
    """Return the axis of one answer.

    Args:
        frame_times: modality -> (F,) seconds from the start of the clip; without those that have no times.
    """
    ends = [end_of_frames(times) for times in frame_times.values()]
    waveform, sound, count = evidence.views.get("audio"), evidence.sound, evidence.num_tokens
    if waveform is not None and sound is not None:
        ends.append(len(waveform) / sound.sampling_rate)
    duration_s = max(ends, default=0.0) or None
    if sound is not None:
        window_s: float | None = sound.window_s * sound.tokens / count
    else:
        window_s = duration_s / count if duration_s else None
    inside = count
    if duration_s and window_s:
        inside = min(count, max(1, math.floor(duration_s / window_s + 0.5)))
    return TimeAxis(duration_s, window_s, count, inside)


def end_of_frames(times: Sequence[float]) -> float:
    """Return when the last of evenly chosen frames ends: half a distance after it, as the first begins before it."""
    distinct = sorted(set(times))
    gap = (distinct[-1] - distinct[0]) / (len(distinct) - 1) if len(distinct) > 1 else 0.0
    return distinct[-1] + gap / 2


def timeline_html(
    evidence: Evidence, frame_times: Mapping[str, Sequence[float]], *, frames_in_order: bool = False
) -> str:
    """Return the tracks of one answer, from frames to weights, and the axis below them.

    Args:
        frame_times: as of `time_axis`.
        frames_in_order: whether the tokens of the video are ordered by frame, so that a window reads certain frames.
    """
    axis = time_axis(evidence, frame_times)
    tracks = [
        _frames_track(evidence, frame_times, axis),
        _sound_track(evidence, axis),
        _windows_track(evidence, axis),
        _weights_track(evidence, axis),
    ]
    readings = [_reading(evidence, axis, k, frame_times, frames_in_order) for k in range(axis.num_windows)]
    cells = "".join(
        f'<i class="cell" style="{_span(*axis.window(k))}" data-reading="{html_text(reading)}"></i>'
        for k, reading in enumerate(readings)
    )
    image = frame_times.get("image") or ()
    pin = f'<i class="pin" style="left:{axis.place(image[0]):.2f}%"></i>' if image and axis.duration_s else ""
    duration = f' data-duration="{axis.duration_s:.3f}" data-inside="{axis.inside:g}"' if axis.duration_s else ""
    return (
        f'<div class="tracks"{duration}>{"".join(tracks)}{_axis(axis)}'
        f'<div class="cells">{pin}{cells}<i class="playhead" hidden></i></div></div>'
        f'<p class="reading" aria-live="polite">Point at a window to read it.</p>'
        f'<p class="note">{html_text(_note(evidence, axis))}</p>{_numbers(evidence, readings)}'
    )


def _frames_track(evidence: Evidence, frame_times: Mapping[str, Sequence[float]], axis: TimeAxis) -> str:
    name = next((name for name in ("video", "image") if name in evidence.views), None)
    if name is None:
        return _track("frames", "frames", "", "no pictures in this clip")
    frames, times = evidence.views[name], list(frame_times.get(name, ()))
    total = len(frames)
    if times:  # a clip with fewer frames than the encoder takes repeats its last one
        kept = [number for number, time in enumerate(times) if number == 0 or time != times[number - 1]]
        frames, times = frames[kept], [times[number] for number in kept]
    title = f"{len(frames)} frames" if len(frames) > 1 else "one frame"
    title += f", the last repeated to fill {total}" if len(frames) < total else ""
    if "image" in evidence.views and name == "video":
        title += ', and one of its own for <b class="m-image">image</b>'
    places = [axis.place(time) for time in times] if axis.duration_s else []
    share = (axis.place(end_of_frames(times)) if places else axis.inside) / len(frames)
    even = [(number + 0.5) * share for number in range(len(frames))]
    if len(frames) == 1 or not places:
        spread, places = "single" if len(frames) == 1 else "even", places or even
    elif all(abs(place - even_place) <= share for place, even_place in zip(places, even, strict=True)):
        spread, places = "even", even  # exact times are those of whole frames, a few milliseconds beside
    else:
        # Frames of one moment: side by side around it, because at their own times they would hide each other.
        spread, title = "packed", f"{len(frames)} frames around {np.mean(times):.1f} s"
    pictures = "".join(
        f'<img style="left:{place:.2f}%;--w:{share:.3f}%" alt="" src="{jpeg(frame)}"'
        + (f' title="{times[number]:.2f} s"' if times else "")
        + ">"
        for number, (frame, place) in enumerate(zip(frames, places, strict=True))
    )
    if spread == "packed":
        pictures = f'<div class="strip" style="left:{np.mean(places):.2f}%">{pictures}</div>'
    return _track(f"frames {spread}", title, pictures)


def _sound_track(evidence: Evidence, axis: TimeAxis) -> str:
    waveform, sound = evidence.views.get("audio"), evidence.sound
    if waveform is None or sound is None or not len(waveform):
        return _track("sound", "sound", "", "no sound in this clip")
    bins = np.array_split(waveform.astype(np.float32), min(ENVELOPE_BINS, len(waveform)))
    peak = max(float(np.abs(waveform).max()), 1e-9)
    middle = VIEW_HEIGHT / 2
    top = [f"{x},{middle - float(part.max()) / peak * middle:.1f}" for x, part in enumerate(bins)]
    bottom = [f"{x},{middle - float(part.min()) / peak * middle:.1f}" for x, part in enumerate(bins)]
    width = axis.place(len(waveform) / sound.sampling_rate)
    shape = (
        f'<svg class="m-audio" style="width:{width:.2f}%" viewBox="0 0 {len(bins) - 1 or 1} {VIEW_HEIGHT}" '
        f'preserveAspectRatio="none" role="img" aria-label="waveform">'
        f'<polygon points="{" ".join(top + bottom[::-1])}"/></svg>'
    )
    return _track("sound", f"sound, {len(waveform) / sound.sampling_rate:.1f} s", shape)


def _windows_track(evidence: Evidence, axis: TimeAxis) -> str:
    heard = _num_heard(evidence, axis)
    boxes = "".join(
        f'<i class="window{"" if k < heard else " silent"}" style="{_span(*axis.window(k))}"></i>'
        for k in range(axis.num_windows)
    )
    each = f" of {axis.window_s:.2f} s" if axis.window_s is not None else ""
    title = f"{axis.num_windows} windows{each}"
    if evidence.sound is not None and heard < axis.num_windows:
        title += f"; {axis.num_windows - heard} without sound"
    return _track("windows", title, boxes)


def _weights_track(evidence: Evidence, axis: TimeAxis) -> str:
    if not evidence.weights:
        reason = "this fusion has no attention branch" if evidence.views else "nothing was fused"
        return _track("weights", "weights of the fusion", "", reason)
    rows = {name: np.broadcast_to(values, (axis.num_windows,)) for name, values in evidence.weights.items()}
    low = min(0.0, *(float(values.min()) for values in rows.values()))
    high = max(0.0, *(float(values.max()) for values in rows.values()))
    height = (high - low) or 1.0

    def level(value: float) -> float:
        return (high - value) / height * VIEW_HEIGHT

    lines = []
    for name, values in rows.items():
        path = ""
        previous: float | None = None
        for k, value in enumerate(values):
            left, right = axis.window(k)
            joined = previous is not None and abs(left - previous) < 1e-6
            path += f"{'L' if joined else 'M'}{left:.2f} {level(value):.2f}H{right:.2f}"
            previous = right
        lines.append(f'<path class="m-{name}" d="{path}"/>')
    zero = f'<line x1="0" x2="100" y1="{level(0):.2f}" y2="{level(0):.2f}"/>'
    keys = ", ".join(f'<b class="m-{name}">{name}</b>' for name in rows)
    drawing = (
        f'<svg viewBox="0 0 100 {VIEW_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="weights of the modalities by window">{zero}{"".join(lines)}</svg>'
    )
    return _track("weights", f"weights of the fusion, {_signed(low)} to {_signed(high)}: {keys}", drawing)


def _track(css_class: str, title: str, content: str, empty: str = "") -> str:
    """Return one track; `title` is HTML, `empty` is the reason why there is no content."""
    body = content or f'<span class="none">{html_text(empty)}</span>'
    return f'<div class="track {css_class}"><p>{title}</p><div class="body">{body}</div></div>'


def _axis(axis: TimeAxis) -> str:
    if not axis.duration_s:
        return '<div class="axis"><span style="left:0">a picture: no time</span></div>'
    marks = "".join(f'<span style="left:{axis.place(tick):.2f}%">{tick:g} s</span>' for tick in axis.ticks_s())
    if axis.num_inside < axis.num_windows:
        marks += '<span class="after">after the clip</span>'
    return f'<div class="axis">{marks}</div>'


def _num_heard(evidence: Evidence, axis: TimeAxis) -> int:
    """Return the number of windows with sound; all of them for a clip without sound, which divides its time."""
    waveform, sound = evidence.views.get("audio"), evidence.sound
    if waveform is None or sound is None:
        return axis.num_windows
    return min(axis.num_windows, math.ceil(sound.num_filled(len(waveform)) * axis.num_windows / sound.tokens - 1e-9))


def _reading(
    evidence: Evidence, axis: TimeAxis, k: int, frame_times: Mapping[str, Sequence[float]], frames_in_order: bool
) -> str:
    """Describe one window in a line: its sound, its frames, its weights."""
    parts = []
    if axis.window_s is not None and evidence.sound is not None:
        begin, end = k * axis.window_s, (k + 1) * axis.window_s
        parts.append(
            f"sound {begin:.2f} to {end:.2f} s" if k < _num_heard(evidence, axis) else "silence after the sound"
        )
    video = evidence.views.get("video")
    if video is not None and frames_in_order:
        first = k * len(video) // axis.num_windows
        last = max(first, -(-(k + 1) * len(video) // axis.num_windows) - 1)
        times = frame_times.get("video")
        moment = f" ({times[first]:.2f} s)" if times else ""
        parts.append(f"frame {first + 1}{moment}" if first == last else f"frames {first + 1} to {last + 1}")
    if evidence.weights:
        values = {name: row[k] if len(row) > 1 else row[0] for name, row in evidence.weights.items()}
        parts.append("weights " + ", ".join(f"{name} {_signed(value)}" for name, value in values.items()))
    return f"Window {k + 1}: " + "; ".join(parts or ["no figures"])


def _note(evidence: Evidence, axis: TimeAxis) -> str:
    """Say what must be known to read the tracks."""
    sentences = []
    if evidence.sound is not None and "video" in evidence.views and axis.num_inside < axis.num_windows:
        hears = evidence.sound.window_s * evidence.sound.tokens
        sentences.append(
            f"The audio encoder takes {hears:.3g} s while the frames divide the clip, so the sound and the frame of a "
            "window may be of different moments."
        )
    if evidence.weights:
        sentences.append("Weights have no softmax: they may be negative and do not sum to 1.")
    return " ".join(sentences)


def _numbers(evidence: Evidence, readings: Sequence[str]) -> str:
    """Return all windows as lines of text, folded, for readers without a pointer or without sight."""
    if not evidence.views:
        return ""
    lines = "".join(f"<li>{html_text(reading)}</li>" for reading in readings)
    return f"<details><summary>All {len(readings)} windows in numbers</summary><ol>{lines}</ol></details>"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _span(left: float, right: float) -> str:
    return f"left:{left:.3f}%;width:{right - left:.3f}%"


def jpeg(frame: np.ndarray, height: int = THUMBNAIL_HEIGHT) -> str:
    """Return a frame (H, W, 3) uint8 as a data URL, at most `height` pixels high."""
    picture = Image.fromarray(frame)
    picture.thumbnail((height * 3, height))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
