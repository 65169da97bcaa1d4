"""Pictures come as a player shows them: stretched, turned and mirrored as the recording says."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import recordings as rec

from featurecache.clips.clip_list import Clip
from featurecache.clips.crop import Crop
from featurecache.errors import MediaError
from featurecache.media.decode import decode, decode_each
from featurecache.views import AudioView, FramesView

FIRST = FramesView(1, "first", still=False)
EIGHT: dict[str, tuple[tuple[int, int, int, int], Callable[[np.ndarray], np.ndarray]]] = {
    "as it is": ((1, 0, 0, 1), lambda picture: picture),
    "mirrored left to right": ((-1, 0, 0, 1), np.fliplr),
    "mirrored top to bottom": ((1, 0, 0, -1), np.flipud),
    "turned by 180 degrees": ((-1, 0, 0, -1), lambda picture: np.rot90(picture, 2)),
    "turned clockwise": ((0, 1, -1, 0), lambda picture: np.rot90(picture, -1)),
    "turned counterclockwise": ((0, -1, 1, 0), np.rot90),
    "mirrored at the main diagonal": ((0, 1, 1, 0), lambda picture: picture.transpose(1, 0, 2)),
    "mirrored at the other diagonal": ((0, -1, -1, 0), lambda picture: np.rot90(picture.transpose(1, 0, 2), 2)),
}
"""(a, b, c, d) of a display matrix, by which a pixel (x, y) is shown at (a·x + c·y, b·x + d·y); what ffmpeg shows."""


def quadrants() -> np.ndarray:
    """(H, W, 3) uint8 with four corners that no turn or mirror confuses."""
    picture = np.zeros((rec.HEIGHT, rec.WIDTH, 3), np.uint8)
    half, middle = rec.HEIGHT // 2, rec.WIDTH // 2
    picture[:half, :middle], picture[:half, middle:] = (220, 30, 30), (30, 220, 30)
    picture[half:, :middle], picture[half:, middle:] = (30, 30, 220), (220, 220, 220)
    return picture


def write_pictures(path: Path, aspect: Fraction | None = None, matrix: tuple[int, int, int, int] | None = None) -> Path:
    """Write five frames of the quadrants and a second of sound, with pixels and a display matrix as told."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = rec.WIDTH, rec.HEIGHT, "yuv444p"
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        sound = container.add_stream("aac", rate=rec.RATE, layout="mono")
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(quadrants(), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 5)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        rec.write_sound(container, sound, rec.sine(1.0)[None], "mono", rec.RATE)
    if matrix is not None:
        rec.set_display_matrix(path, path, matrix)
    return path


def first_frame(path: Path, **clip: object) -> np.ndarray:
    return decode(Clip("a", video=path, **clip), [FIRST])[0][0]  # type: ignore[arg-type]


def unlike(one: np.ndarray, other: np.ndarray) -> float:
    """Mean difference of the pixels; what a codec changes is below 5."""
    assert one.shape == other.shape
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


@pytest.mark.parametrize("orientation", EIGHT)
def test_every_orientation_is_shown_as_the_display_matrix_says(tmp_path: Path, orientation: str) -> None:
    matrix, shown = EIGHT[orientation]
    frame = first_frame(write_pictures(tmp_path / "a.mp4", matrix=matrix))
    assert unlike(frame, shown(quadrants())) < 5


def test_a_matrix_that_also_scales_turns_alike(tmp_path: Path) -> None:
    path = write_pictures(tmp_path / "a.mp4", matrix=(0, 1, 1, 0))
    data = path.read_bytes()
    one, two = struct.pack(">5i", 0, 65536, 0, 65536, 0), struct.pack(">5i", 0, 131072, 0, 131072, 0)
    assert data.count(one) == 1
    path.write_bytes(data.replace(one, two))
    assert unlike(first_frame(path), quadrants().transpose(1, 0, 2)) < 5


@pytest.mark.parametrize(("aspect", "width"), [("16/15", 68), ("8/9", 57), ("2", 128), ("1", 64), ("2001/2000", 64)])
def test_pixels_that_are_not_square_are_stretched_to_the_displayed_width(
    tmp_path: Path, aspect: str, width: int
) -> None:
    frame = first_frame(write_pictures(tmp_path / "a.mp4", aspect=Fraction(aspect)))
    assert frame.shape == (rec.HEIGHT, width, 3)
    columns = np.arange(width) * rec.WIDTH // width
    assert unlike(frame, quadrants()[:, columns]) < 8
    square = first_frame(write_pictures(tmp_path / "b.mp4"))
    assert width != rec.WIDTH or np.array_equal(frame, square)


def test_pixels_are_stretched_before_the_picture_is_turned(tmp_path: Path) -> None:
    path = write_pictures(tmp_path / "a.mp4", aspect=Fraction(2), matrix=(0, 1, -1, 0))
    assert unlike(first_frame(path), np.rot90(quadrants().repeat(2, axis=1), -1)) < 8


def test_a_crop_is_of_the_displayed_picture(tmp_path: Path) -> None:
    path = write_pictures(tmp_path / "a.mp4", aspect=Fraction(2), matrix=(-1, 0, 0, 1))
    left = first_frame(path, crop=Crop(right=0.5, bottom=0.5))
    assert left.shape == (24, 64, 3)
    assert unlike(left, np.full_like(left, (30, 220, 30))) < 8  # the right half of the recording, mirrored


def test_absurd_pixels_are_refused_and_leave_the_sound(tmp_path: Path) -> None:
    path = write_pictures(tmp_path / "a.mp4", aspect=Fraction(20))
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack(">4s2I", b"pasp", 20, 1), struct.pack(">4s2I", b"pasp", 200, 1)))
    frames, sound = decode_each(Clip("a", video=path), [FIRST, AudioView()])
    assert isinstance(frames, MediaError)
    assert "expected pixels of at most 100:1 or 1:100 in its video file, got 200:1" in str(frames)
    assert isinstance(sound, np.ndarray)
