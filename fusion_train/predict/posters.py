"""Write a small picture of a clip for the page: a frame, or the envelope of its sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from featurecache.clips.clip_list import Clip
from featurecache.media.decode import decode_each
from featurecache.views import AudioView, FramesView
from fusion_train.predict.picture import COLORS

SIZE = (192, 144)
BARS = 48
LIMIT_S = 10.0
FRAME = FramesView(count=1, rule="middle", still=True)
SOUND = AudioView(sampling_rate=8_000, max_duration_s=30.0)


def write_poster(clip: Clip, path: Path) -> Path | None:
    """Write a PNG of `SIZE` and return its path; None if the clip cannot be decoded."""
    frames, waveform = decode_each(clip, [FRAME, SOUND], LIMIT_S)
    if isinstance(frames, np.ndarray):
        picture = _cropped(Image.fromarray(frames[0]))
    elif isinstance(waveform, np.ndarray) and len(waveform):
        picture = _envelope(waveform)
    else:
        return None
    picture.save(path)
    return path


def _cropped(picture: Image.Image) -> Image.Image:
    """Return the middle of a picture at `SIZE`."""
    scale = max(SIZE[0] / picture.width, SIZE[1] / picture.height)
    resized = picture.resize((max(SIZE[0], round(picture.width * scale)), max(SIZE[1], round(picture.height * scale))))
    left, top = (resized.width - SIZE[0]) // 2, (resized.height - SIZE[1]) // 2
    return resized.crop((left, top, left + SIZE[0], top + SIZE[1]))


def _envelope(waveform: np.ndarray) -> Image.Image:
    """Draw the loudest sample of each part of (S,) samples as a bar, on a transparent ground."""
    peaks = np.array([np.abs(part).max() for part in np.array_split(waveform, min(BARS, len(waveform)))])
    heights = np.maximum(peaks / max(float(peaks.max()), 1e-9) * SIZE[1] * 0.8, 2)
    picture = Image.new("RGBA", SIZE)
    pen = ImageDraw.Draw(picture)
    width = SIZE[0] / len(heights)
    for number, height in enumerate(heights):
        left, middle = number * width, SIZE[1] / 2
        pen.rectangle((left + 1, middle - height / 2, left + width - 2, middle + height / 2), fill=COLORS["audio"])
    return picture
