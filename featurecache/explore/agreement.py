"""Do two recordings agree in time? Sound against sound and picture against picture, moment by moment.

Averages of tokens cannot tell a copy from the same sentence said again, or by someone else. Here pieces of half a
second of the shorter clip are looked for in the longer one: of its spectrogram (fine enough to hold the harmonics of a
voice), or of its film in thumbnails, each less its own mean in time, so that neither loudness, a steady noise, nor a
common background counts. The pieces must be found one after another, at nearly one speed. A copy agrees by 0.9 where
another recording of the same sentence by the same speaker agrees by 0.5 (docs/guides/similarity.md).

Shapes: F steps in time, C channels; agreement of two clips is a number, −1 to 1. Media are read, so this is for pairs
that averages found; it knows no store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from featurecache.clips.clip_list import Clip
from featurecache.media.decode import Absent, decode_each
from featurecache.media.durations import stated_duration_s
from featurecache.views import AudioView, FramesView

SAMPLING_RATE = 8000
MAX_SOUND_S = 60.0
WINDOW, HOP = 512, 128  # 64 and 16 ms
FIRST_BIN, LAST_BIN = 7, 230  # 110 Hz to 3.6 kHz
LOUDNESS_POWER = 0.6
QUIETEST = 1e-4
"""Root mean square of sound that is taken for silence."""
STEADIEST = 0.1
"""Deviation in time over mean, below which nothing happens in a sound."""
SOUND_PIECE = 32
"""Steps of 16 ms."""

FRAMES_PER_S, MAX_FRAMES = 10.0, 64
THUMBNAIL, COMPARED = 40, 12
"""Pixels a side of a thumbnail, and of what is compared of it."""
CROPS = (1.0, 0.9, 0.8)
"""Parts of the one picture that the whole of the other is compared with."""
PICTURE_PIECE = 10
"""Steps of 100 ms."""
STILLEST = 0.6
"""Deviation in time, of 255, of a film that is taken for a still."""

MAX_PIECES = 12
SMALLEST_PIECE = 6
LOUD_PIECE = 0.5
"""Of the strongest piece: weaker ones say little."""
MAX_SPEED, SLACK = 0.12, 4
"""How much a copy may be slowed down or sped up, and steps by which a piece may lie beside its place."""
MAX_REMEMBERED = 256
DECODE_LIMIT_S = 120.0
UNDECIDED = -1.0


@dataclass(frozen=True)
class Moments:
    """What one clip sounds and looks like, moment by moment; None where it has no such thing, or nothing happens."""

    sound: np.ndarray | None
    """(F, C) float32 spectrogram."""
    picture: np.ndarray | None
    """(F, THUMBNAIL, THUMBNAIL) float32 of a film."""
    still: np.ndarray | None
    """(THUMBNAIL, THUMBNAIL) float32, where nothing moves."""
    readable: bool = True


def moments_of(clip: Clip) -> Moments:
    """Decode a clip; media that cannot be decoded leave it without moments."""
    duration_s = stated_duration_s(clip)
    count = round(min(MAX_FRAMES, max(2.0, FRAMES_PER_S * (duration_s or 2.0))))
    sound_view, film_view = AudioView(SAMPLING_RATE, MAX_SOUND_S), FramesView(count, "uniform", still=False)
    views = [sound_view, film_view if clip.video else FramesView(1, "middle", still=True)]
    sound, frames = decode_each(clip, views, DECODE_LIMIT_S)
    heard = _spectrogram(sound) if isinstance(sound, np.ndarray) else None
    film = still = None
    if isinstance(frames, np.ndarray):
        thumbnails = _thumbnails(frames)
        if clip.video and duration_s and thumbnails.std(0).mean() > STILLEST:
            film = _resampled(thumbnails, max(2, round(FRAMES_PER_S * duration_s)))
        else:
            still = thumbnails.mean(0)
    problems = [part for part in (sound, frames) if not isinstance(part, np.ndarray | Absent)]
    return Moments(heard, film, still, readable=not problems)


class TimeAgreement:
    """Agreement of pairs of clips, each decoded once while it is remembered."""

    def __init__(self, clip_of: Callable[[str], Clip]) -> None:
        self._moments = lru_cache(MAX_REMEMBERED)(lambda clip_id: moments_of(clip_of(clip_id)))

    def __call__(self, a: str, b: str) -> float | None:
        """How far two clips agree, the less of sound and picture; None where their media cannot be compared."""
        return agreement(self._moments(a), self._moments(b))


def agreement(a: Moments, b: Moments) -> float | None:
    """The less of the agreement in sound and in picture, over those that both have; None where there is none."""
    if not (a.readable and b.readable):
        return None
    found = []
    if a.sound is not None and b.sound is not None:
        found.append(in_time(a.sound, b.sound, SOUND_PIECE))
    if a.picture is not None and b.picture is not None:
        found.append(
            max(in_time(_flat(one), _flat(other), PICTURE_PIECE) for one, other in _framings(a.picture, b.picture))
        )
    if a.still is not None and b.still is not None:
        found.append(max(_correlation(_detail(one), _detail(other)) for one, other in _framings(a.still, b.still)))
    decided = [value for value in found if value > UNDECIDED]
    return min(decided) if decided else None


def in_time(a: np.ndarray, b: np.ndarray, piece: int) -> float:
    """(F, C) and (F', C) -> mean correlation of the pieces of the shorter one that lie in order in the longer one.

    −1 where the shorter one is too short to tell.
    """
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    piece = min(piece, len(shorter))
    if piece < SMALLEST_PIECE:
        return UNDECIDED
    begins, pieces = _pieces(shorter, piece)
    correlations, lags = _best_places(longer, begins, pieces)
    in_order = np.abs(lags[:, None] - lags) <= MAX_SPEED * np.abs(begins[:, None] - begins) + SLACK
    return float((in_order * correlations).mean(1).max())


def _pieces(sequence: np.ndarray, piece: int) -> tuple[np.ndarray, np.ndarray]:
    """(F, C) -> begins (n,) and pieces (n, piece, C), each less its mean in time and of norm 1; weak ones left out."""
    begins = np.arange(0, len(sequence) - piece + 1, max(1, piece // 2))
    pieces = np.stack([sequence[begin : begin + piece] for begin in begins])
    pieces -= pieces.mean(1, keepdims=True)
    norms = np.sqrt(np.square(pieces).sum((1, 2)))
    strong = np.flatnonzero(norms >= LOUD_PIECE * norms.max())
    chosen = strong[np.unique(np.linspace(0, len(strong) - 1, min(MAX_PIECES, len(strong))).astype(int))]
    return begins[chosen], pieces[chosen] / np.maximum(norms[chosen], 1e-9)[:, None, None]


def _best_places(sequence: np.ndarray, begins: np.ndarray, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correlation (n,) of every piece with the part of (F, C) that is most like it, and how much later (n,) it lies."""
    length = pieces.shape[1]
    places = len(sequence) - length + 1
    size = 1 << int(np.ceil(np.log2(len(sequence) + length)))
    spectrum = np.fft.rfft(sequence, size, axis=0)
    norms = _norms_without_mean(sequence, length)
    correlations, lags = np.empty(len(pieces)), np.empty(len(pieces), int)
    for n, one in enumerate(pieces):
        product = (spectrum * np.fft.rfft(one, size, axis=0).conj()).sum(1)
        values = np.fft.irfft(product, size)[:places] / norms
        best = int(values.argmax())
        correlations[n], lags[n] = values[best], best - begins[n]
    return correlations, lags


def _norms_without_mean(sequence: np.ndarray, length: int) -> np.ndarray:
    """(F, C) -> (F − length + 1,) norm of every part of that length, less its mean in time."""
    wide = sequence.astype(np.float64)
    sums = np.concatenate([np.zeros((1, wide.shape[1])), wide.cumsum(0)])
    squares = np.concatenate([[0.0], np.square(wide).sum(1).cumsum()])
    part = sums[length:] - sums[:-length]
    energy = (squares[length:] - squares[:-length]) - np.square(part).sum(1) / length
    return np.sqrt(np.maximum(energy, 1e-6 * max(1e-12, float(energy.max()))))


def _spectrogram(sound: np.ndarray) -> np.ndarray | None:
    """(S,) -> (F, C), or None for silence, a steady tone, and less than one window."""
    if len(sound) < WINDOW or np.sqrt(np.square(sound, dtype=np.float64).mean()) < QUIETEST:
        return None
    frames = np.lib.stride_tricks.sliding_window_view(sound, WINDOW)[::HOP] * np.hanning(WINDOW).astype(np.float32)
    spectrogram = (np.abs(np.fft.rfft(frames))[:, FIRST_BIN:LAST_BIN] ** LOUDNESS_POWER).astype(np.float32)
    return spectrogram if spectrogram.std(0).mean() > STEADIEST * spectrogram.mean() else None


def _thumbnails(frames: np.ndarray) -> np.ndarray:
    """(F, H, W, 3) uint8 -> (F, THUMBNAIL, THUMBNAIL) float32 grey, averaged over the pixels of each part."""
    from PIL import Image

    size = (THUMBNAIL, THUMBNAIL)
    return np.stack(
        [
            np.asarray(Image.fromarray(frame).convert("L").resize(size, Image.Resampling.BOX), np.float32)
            for frame in frames
        ]
    )


def _resampled(film: np.ndarray, count: int) -> np.ndarray:
    """(F, h, w) -> (count, h, w) at equal distances, between frames by their distance."""
    places = ((np.arange(count) + 0.5) * len(film) / count - 0.5).clip(0, len(film) - 1)
    before = places.astype(int)
    share = (places - before)[:, None, None].astype(np.float32)
    return film[before] * (1 - share) + film[np.minimum(before + 1, len(film) - 1)] * share


def _framings(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (…, COMPARED, COMPARED) of both: whole, either one cropped, and all of that with one mirrored."""
    whole_a, whole_b = _framed(a, 1.0), _framed(b, 1.0)
    for share in CROPS:
        part_a, part_b = _framed(a, share), _framed(b, share)
        for one, other in [(whole_a, part_b)] if share == 1 else [(whole_a, part_b), (part_a, whole_b)]:
            yield one, other
            yield one, other[..., ::-1]


def _framed(picture: np.ndarray, share: float) -> np.ndarray:
    """(…, h, h) -> (…, COMPARED, COMPARED), the middle `share` of each side, averaged over the pixels of each part."""
    side = picture.shape[-1]
    edges = side / 2 + side * share * (np.arange(COMPARED + 1) / COMPARED - 0.5)
    pixels = np.arange(side)
    overlap = np.minimum(pixels + 1, edges[1:, None]) - np.maximum(pixels, edges[:-1, None])
    weights = (overlap.clip(0) / np.diff(edges)[:, None]).astype(np.float32)
    return weights @ picture @ weights.T


def _flat(film: np.ndarray) -> np.ndarray:
    return film.reshape(len(film), -1)


def _detail(still: np.ndarray) -> np.ndarray:
    """What a still holds besides broad light and dark, which pictures of one room share."""
    padded = np.pad(still, 2, mode="edge")
    broad = np.lib.stride_tricks.sliding_window_view(padded, (5, 5)).mean((2, 3))
    return still - broad


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt(max(1e-12, float(np.square(a).sum() * np.square(b).sum()))))
