"""Stills of any depth and mode come as 8 bits a channel, or are refused in words."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import recordings as rec
from PIL import Image, ImageCms

from featurecache.clips.clip_list import Clip
from featurecache.errors import MediaError
from featurecache.media.decode import decode, decode_each, header_problem
from featurecache.views import FramesView

PEAK = FramesView(1, "peak", still=True)
LEVELS = np.linspace(0, 65_535, rec.HEIGHT * rec.WIDTH).round().astype(np.uint16).reshape(rec.HEIGHT, rec.WIDTH)
"""(H, W) of 16 bits, from black to white."""
GREY = np.round(LEVELS / 65_535 * 255)
PICTURE = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=2).astype(np.uint8)


def shown(path: Path) -> np.ndarray:
    """(H, W, 3); any warning is an error."""
    return decode(Clip("a", image=path), [PEAK])[0][0]


def refusal(path: Path) -> str:
    result = decode_each(Clip("a", image=path), [PEAK])[0]
    assert isinstance(result, MediaError), result
    return str(result)


def write_png(path: Path, samples: np.ndarray, color_type: int) -> Path:
    """Write (H, W, C) of 16 bits, which Pillow cannot write in colour."""
    height, width, _ = samples.shape

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">2I5B", width, height, 16, color_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_grey_of_16_bits_is_scaled_from_its_whole_range(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 %d %d 65535\n" % (rec.WIDTH, rec.HEIGHT) + LEVELS.astype(">u2").tobytes())
    else:
        Image.fromarray(LEVELS).save(path)
    picture = shown(path)
    assert picture.shape == (rec.HEIGHT, rec.WIDTH, 3)
    assert np.abs(picture - GREY[..., None]).max() <= 1
    assert (picture.min(), picture.max()) == (0, 255)


@pytest.mark.parametrize(("byte_order", "white_is_zero"), [("<", False), ("<", True), (">", False)])
def test_tiff_of_16_bits_is_read_in_its_byte_order_and_polarity(
    tmp_path: Path, byte_order: str, white_is_zero: bool
) -> None:
    tags = [
        (256, 4, rec.WIDTH),
        (257, 4, rec.HEIGHT),
        (258, 3, 16),
        (259, 3, 1),
        (262, 3, int(not white_is_zero)),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, rec.HEIGHT),
        (279, 4, LEVELS.nbytes),
    ]
    data = LEVELS.astype(f"{byte_order}u2").tobytes()
    directory = struct.pack(f"{byte_order}H", len(tags))
    for number, kind, value in tags:
        directory += struct.pack(f"{byte_order}2HI" + ("I" if kind == 4 else "H2x"), number, kind, 1, value)
    head = struct.pack(f"{byte_order}2sHI", b"II" if byte_order == "<" else b"MM", 42, 8 + len(data))
    (tmp_path / "a.tif").write_bytes(head + data + directory + bytes(4))
    wanted = 255 - GREY if white_is_zero else GREY
    assert np.abs(shown(tmp_path / "a.tif") - wanted[..., None]).max() <= 1


@pytest.mark.parametrize(("color_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_png_of_16_bits_is_read_in_every_colour_type(tmp_path: Path, color_type: int, channels: int) -> None:
    colours = np.stack([LEVELS, LEVELS[::-1], LEVELS[:, ::-1]], axis=2)
    opaque = np.full((*LEVELS.shape, 1), 65_535, np.uint16)
    samples = colours if channels >= 3 else colours[..., :1]
    if channels in (2, 4):
        samples = np.concatenate([samples, opaque], axis=2)
    wanted = PICTURE if channels >= 3 else PICTURE[..., :1]
    picture = shown(write_png(tmp_path / "a.png", samples, color_type))
    assert np.abs(picture.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize(("mode", "message"), [("I", "32-bit numbers"), ("F", "floating-point numbers")])
def test_numbers_whose_white_is_not_stated_are_refused(tmp_path: Path, mode: str, message: str) -> None:
    Image.fromarray(LEVELS.astype(np.int32 if mode == "I" else np.float32)).save(tmp_path / "a.tif")
    reason = refusal(tmp_path / "a.tif")
    assert "expected 8 or 16 bits a channel in its image file, got " + message in reason
    assert "save it with 8 bits a channel" in reason


def test_cielab_is_refused_in_words(tmp_path: Path) -> None:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    ImageCms.profileToProfile(Image.fromarray(PICTURE), srgb, lab, outputMode="LAB").save(tmp_path / "a.tif")
    assert "got CIELAB; save it as RGB" in refusal(tmp_path / "a.tif")


@pytest.mark.parametrize("transparency", [bytes([0, 128] + [255] * 254), 3])
def test_a_palette_with_transparency_gives_its_colours_without_a_warning(
    tmp_path: Path, transparency: bytes | int
) -> None:
    palette = Image.fromarray(PICTURE).quantize(256)
    palette.save(tmp_path / "a.png", transparency=transparency)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = shown(tmp_path / "a.png")
    assert np.array_equal(picture, np.asarray(palette.convert("RGB")))


# Without YCbCr in TIFF: Pillow 12.3 cannot read what it writes there.
@pytest.mark.parametrize(("mode", "suffix", "tolerance"), [
    ("1", "png", 0), ("L", "png", 0), ("LA", "png", 0), ("RGBA", "png", 0), ("RGBA", "tif", 0), ("CMYK", "tif", 1),
    ("CMYK", "jpg", 6), ("YCbCr", "jpg", 6), ("RGB", "bmp", 0), ("P", "gif", 0),
])  # fmt: skip
def test_every_mode_gives_what_was_drawn(tmp_path: Path, mode: str, suffix: str, tolerance: int) -> None:
    smooth = Image.fromarray(PICTURE)
    image = smooth.convert(mode) if mode != "P" else smooth.quantize(256)
    image.save(tmp_path / f"a.{suffix}", **({"quality": 98, "subsampling": 0} if suffix == "jpg" else {}))
    drawn = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(shown(tmp_path / f"a.{suffix}") - drawn).max() <= tolerance
    if mode not in ("1", "L", "LA", "P"):
        assert np.abs(drawn - PICTURE).max() <= 3  # and that is the picture


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_an_animation_gives_its_first_picture(tmp_path: Path, suffix: str) -> None:
    first, second = (Image.fromarray(picture) for picture in (PICTURE, PICTURE[::-1]))
    options = {"lossless": True} if suffix == "webp" else {}
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second], **options)
    unlike = np.abs(shown(tmp_path / f"a.{suffix}").astype(int) - PICTURE).mean()
    assert unlike < (20 if suffix == "gif" else 0.01)  # a gif has 256 colours


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    stored = np.zeros((rec.HEIGHT, rec.WIDTH, 3), np.uint8)
    stored[:24, :32], stored[:24, 32:], stored[24:, :32] = (220, 30, 30), (30, 220, 30), (30, 30, 220)
    upright = {
        1: stored,
        2: np.fliplr(stored),
        3: np.rot90(stored, 2),
        4: np.flipud(stored),
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: np.rot90(stored.transpose(1, 0, 2), 2),
        8: np.rot90(stored),
    }[orientation]
    image = Image.fromarray(stored)
    exif = image.getexif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 98, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
    image.save(tmp_path / f"a.{suffix}", exif=exif, **options)
    picture = shown(tmp_path / f"a.{suffix}")
    assert picture.shape == upright.shape
    assert np.abs(picture.astype(int) - upright).mean() < 3


def test_grey_of_16_bits_is_turned_upright_too(tmp_path: Path) -> None:
    image = Image.fromarray(LEVELS)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    assert np.abs(shown(tmp_path / "a.png") - np.rot90(GREY, -1)[..., None]).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "bmp", "gif", "ppm"])
def test_a_still_cut_short_is_refused_in_words(tmp_path: Path, suffix: str) -> None:
    noise = np.random.RandomState(0).randint(0, 256, (200, 300, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{suffix}")
    data = (tmp_path / f"whole.{suffix}").read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(data[: len(data) // 2])
    reason = refusal(tmp_path / f"cut.{suffix}")
    if suffix != "webp":  # Pillow decodes none of it, and calls it no picture
        assert "expected its image file to be a whole picture, got an end within it; the file is cut short" in reason
    assert "oSError" not in reason


@pytest.mark.parametrize("error", [RuntimeError("Failed to decode frame 0"), IndexError(), OverflowError("x" * 9)])
def test_whatever_pillow_raises_of_a_damaged_still_is_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load(self: Image.Image) -> None:
        raise error

    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    assert "expected its image file to be a whole picture, got damage within it" in refusal(tmp_path / "a.png")
    assert header_problem(Clip("a", image=tmp_path / "a.png")) is None
