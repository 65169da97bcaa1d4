"""Agreement of two recordings in time: sound is correlated with sound, and picture with picture.

Token summaries cannot tell a copy from another recording of the same sentence. Therefore pieces of half a second of the
shorter clip are searched in the longer one: pieces of the spectrogram, fine enough to resolve the harmonics of a voice,
or of the film as thumbnails. The mean over time is subtracted from each piece, so loudness, steady noise and a common
background do not count. The pieces must lie in order and at nearly one speed. A copy has an agreement of about 0.9;
another recording of the same sentence by the same speaker has about 0.5 (docs/guides/similarity.md).

Shapes: F steps in time, C channels; the agreement of two clips is a number, −1 to 1. Media are decoded, so this is only
for pairs with similar summaries. This module knows no store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from featurecache.clips.clip_list import Clip
from featurecache.media.decode import Absent, decode_each
from featurecache.media.durations import stated_duration_s
from featurecache.views import AudioView, FramesView, View

SAMPLING_RATE = 8000
MAX_SOUND_S = 60.0
WINDOW, HOP = 512, 128  # 64 and 16 ms
FIRST_BIN, LAST_BIN = 7, 230  # 110 Hz to 3.6 kHz
LOUDNESS_POWER = 0.6
QUIETEST = 1e-4
"""Largest root mean square of silence."""
STEADIEST = 0.1
"""Largest ratio of deviation over time to mean of a steady sound."""
SOUND_PIECE = 32
"""Steps of 16 ms."""

FRAMES_PER_S, MAX_FRAMES = 10.0, 64
THUMBNAIL, COMPARED = 40, 12
"""Pixels per side of a thumbnail, and of the averaged picture that is compared."""
CROPS = (1.0, 0.9, 0.8)
"""Shares of each side of one picture that are compared with the whole other picture."""
PICTURE_PIECE = 10
"""Steps of 100 ms."""
STILLEST = 0.6
"""Largest deviation over time, of 255, of a still."""

MAX_PIECES = 12
SMALLEST_PIECE = 6
MIN_STRENGTH = 0.5
"""Smallest norm of a piece, relative to the strongest piece; weaker pieces are not compared."""
MAX_SPEED_CHANGE, SLACK = 0.12, 4
"""Largest change of speed of a copy, and steps that a piece may lie beside its expected position."""
CACHE_CLIPS = 256
DECODE_LIMIT_S = 120.0
UNDECIDED = -1.0


@dataclass(frozen=True)
class TimeSeries:
    """Sound and picture of one clip over time. A part is None if the clip lacks it or if it is constant."""

    sound: np.ndarray | None
    """(F, C) float32 spectrogram."""
    picture: np.ndarray | None
    """(F, THUMBNAIL, THUMBNAIL) float32 of a moving picture."""
    still: np.ndarray | None
    """(THUMBNAIL, THUMBNAIL) float32 of a picture without motion."""
    readable: bool = True
    """False if sound or picture could not be decoded."""


def time_series(clip: Clip) -> TimeSeries:
    """Decode a clip; a part that cannot be decoded is None."""
    duration_s = stated_duration_s(clip)
    count = round(min(MAX_FRAMES, max(2.0, FRAMES_PER_S * (duration_s or 2.0))))
    sound_view, film_view = AudioView(SAMPLING_RATE, MAX_SOUND_S), FramesView(count, "uniform", still=False)
    views: list[View] = [sound_view, film_view if clip.video else FramesView(1, "middle", still=True)]
    sound, frames = decode_each(clip, views, DECODE_LIMIT_S)
    spectrogram = _spectrogram(sound) if isinstance(sound, np.ndarray) else None
    film = still = None
    if isinstance(frames, np.ndarray):
        thumbnails = _thumbnails(frames)
        if clip.video and duration_s and thumbnails.std(0).mean() > STILLEST:
            film = _resampled(thumbnails, max(2, round(FRAMES_PER_S * duration_s)))
        else:
            still = thumbnails.mean(0)
    problems = [part for part in (sound, frames) if not isinstance(part, np.ndarray | Absent)]
    return TimeSeries(spectrogram, film, still, readable=not problems)


class TimeAgreement:
    """Agreement of pairs of clips by id, with a cache of decoded clips."""

    def __init__(self, clip_of: Callable[[str], Clip]) -> None:
        self._time_series = lru_cache(CACHE_CLIPS)(lambda clip_id: time_series(clip_of(clip_id)))

    def __call__(self, a: str, b: str) -> float | None:
        """Return the lower agreement of sound and picture; None if the clips' media cannot be compared."""
        return agreement(self._time_series(a), self._time_series(b))


def agreement(a: TimeSeries, b: TimeSeries) -> float | None:
    """Return the lower agreement of sound and picture, of those that both clips have; None if there is none."""
    if not (a.readable and b.readable):
        return None
    values = []
    if a.sound is not None and b.sound is not None:
        values.append(in_time(a.sound, b.sound, SOUND_PIECE))
    if a.picture is not None and b.picture is not None:
        values.append(
            max(
                in_time(_flat(first), _flat(second), PICTURE_PIECE) for first, second in _framings(a.picture, b.picture)
            )
        )
    if a.still is not None and b.still is not None:
        values.append(
            max(_correlation(_detail(first), _detail(second)) for first, second in _framings(a.still, b.still))
        )
    decided = [value for value in values if value > UNDECIDED]
    return min(decided) if decided else None


def in_time(a: np.ndarray, b: np.ndarray, piece: int) -> float:
    """Correlate (F, C) and (F', C): search the pieces of the shorter sequence in the longer one.

    Returns the mean correlation of the pieces that lie in order; −1 if the shorter sequence is too short.
    """
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    piece = min(piece, len(shorter))
    if piece < SMALLEST_PIECE:
        return UNDECIDED
    begins, pieces = _pieces(shorter, piece)
    correlations, lags = _best_places(longer, begins, pieces)
    # Row i: the pieces that lie in order with piece i. The best row decides.
    in_order = np.abs(lags[:, None] - lags) <= MAX_SPEED_CHANGE * np.abs(begins[:, None] - begins) + SLACK
    return float((in_order * correlations).mean(1).max())


def _pieces(sequence: np.ndarray, piece: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut (F, C) into begins (n,) and pieces (n, piece, C) of norm 1 without their mean over time; skip weak pieces."""
    begins = np.arange(0, len(sequence) - piece + 1, max(1, piece // 2))
    pieces = np.stack([sequence[begin : begin + piece] for begin in begins])
    pieces -= pieces.mean(1, keepdims=True)
    norms = np.sqrt(np.square(pieces).sum((1, 2)))
    strong = np.flatnonzero(norms >= MIN_STRENGTH * norms.max())
    chosen = strong[np.unique(np.linspace(0, len(strong) - 1, min(MAX_PIECES, len(strong))).astype(int))]
    return begins[chosen], pieces[chosen] / np.maximum(norms[chosen], 1e-9)[:, None, None]


def _best_places(sequence: np.ndarray, begins: np.ndarray, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the best position of every piece in (F, C): its correlation (n,) and its lag (n,) behind `begins`."""
    length = pieces.shape[1]
    num_positions = len(sequence) - length + 1
    size = 1 << int(np.ceil(np.log2(len(sequence) + length)))
    spectrum = np.fft.rfft(sequence, size, axis=0)
    norms = _norms_without_mean(sequence, length)
    correlations, lags = np.empty(len(pieces)), np.empty(len(pieces), int)
    for n, piece in enumerate(pieces):  # cross-correlation by the fast Fourier transform
        product = (spectrum * np.fft.rfft(piece, size, axis=0).conj()).sum(1)
        values = np.fft.irfft(product, size)[:num_positions] / norms
        best = int(values.argmax())
        correlations[n], lags[n] = values[best], best - begins[n]
    return correlations, lags


def _norms_without_mean(sequence: np.ndarray, length: int) -> np.ndarray:
    """Return the norms (F − length + 1,) of all parts of (F, C) with this length, without their mean over time."""
    exact = sequence.astype(np.float64)
    sums = np.concatenate([np.zeros((1, exact.shape[1])), exact.cumsum(0)])
    squares = np.concatenate([[0.0], np.square(exact).sum(1).cumsum()])
    part = sums[length:] - sums[:-length]
    energy = (squares[length:] - squares[:-length]) - np.square(part).sum(1) / length
    return np.sqrt(np.maximum(energy, 1e-6 * max(1e-12, float(energy.max()))))


def _spectrogram(sound: np.ndarray) -> np.ndarray | None:
    """Compute the spectrogram (F, C) of (S,) samples; None for silence, a steady tone, or less than one window."""
    if len(sound) < WINDOW or np.sqrt(np.square(sound, dtype=np.float64).mean()) < QUIETEST:
        return None
    frames = np.lib.stride_tricks.sliding_window_view(sound, WINDOW)[::HOP] * np.hanning(WINDOW).astype(np.float32)
    spectrogram = (np.abs(np.fft.rfft(frames))[:, FIRST_BIN:LAST_BIN] ** LOUDNESS_POWER).astype(np.float32)
    return spectrogram if spectrogram.std(0).mean() > STEADIEST * spectrogram.mean() else None


def _thumbnails(frames: np.ndarray) -> np.ndarray:
    """Average (F, H, W, 3) uint8 frames to (F, THUMBNAIL, THUMBNAIL) float32 grey values."""
    from PIL import Image

    size = (THUMBNAIL, THUMBNAIL)
    return np.stack(
        [
            np.asarray(Image.fromarray(frame).convert("L").resize(size, Image.Resampling.BOX), np.float32)
            for frame in frames
        ]
    )


def _resampled(film: np.ndarray, count: int) -> np.ndarray:
    """Resample a film (F, h, w) to (count, h, w) by linear interpolation in time."""
    positions = ((np.arange(count) + 0.5) * len(film) / count - 0.5).clip(0, len(film) - 1)
    before = positions.astype(int)
    share = (positions - before)[:, None, None].astype(np.float32)
    return film[before] * (1 - share) + film[np.minimum(before + 1, len(film) - 1)] * share


def _framings(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield both pictures as (…, COMPARED, COMPARED): whole, and either one cropped; each also with one mirrored."""
    whole_a, whole_b = _framed(a, 1.0), _framed(b, 1.0)
    for share in CROPS:
        part_a, part_b = _framed(a, share), _framed(b, share)
        for first, second in [(whole_a, part_b)] if share == 1 else [(whole_a, part_b), (part_a, whole_b)]:
            yield first, second
            yield first, second[..., ::-1]


def _framed(picture: np.ndarray, share: float) -> np.ndarray:
    """Crop (…, h, h) to the middle `share` of each side and average it to (…, COMPARED, COMPARED)."""
    side = picture.shape[-1]
    edges = side / 2 + side * share * (np.arange(COMPARED + 1) / COMPARED - 0.5)
    pixels = np.arange(side)
    overlap = np.minimum(pixels + 1, edges[1:, None]) - np.maximum(pixels, edges[:-1, None])
    weights = (overlap.clip(0) / np.diff(edges)[:, None]).astype(np.float32)
    return weights @ picture @ weights.T


def _flat(film: np.ndarray) -> np.ndarray:
    return film.reshape(len(film), -1)


def _detail(still: np.ndarray) -> np.ndarray:
    """Subtract the local mean of a still: coarse light and dark are common to pictures of one room."""
    padded = np.pad(still, 2, mode="edge")
    broad = np.lib.stride_tricks.sliding_window_view(padded, (5, 5)).mean((2, 3))
    return still - broad


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt(max(1e-12, float(np.square(a).sum() * np.square(b).sum()))))
