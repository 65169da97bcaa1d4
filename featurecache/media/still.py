"""Read one still picture, upright and with 8 bits per channel.

Shapes: (1, H, W, 3) uint8 RGB, turned and mirrored as the EXIF data states. An animation gives its first picture, a
transparent picture its stored colours. Grey of 16 bits is scaled from the range that the format states. A format
without a stated range (32-bit and floating-point numbers) is refused, because the value of white is unknown. This
module knows no clip list and no encoder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from featurecache.clips.clip_list import Clip
from featurecache.files.regular_file import open_regular
from featurecache.media.container import raised_by_this_package
from featurecache.media.recording import media_error

PROGRAM_FORMATS = frozenset({"EPS", "WMF"})
"""Formats that Pillow renders with another program (Ghostscript, the system), which could read any file."""
SCALED_TO_16_BITS = frozenset({"PNG", "PPM"})
"""Formats whose grey pictures of more than 8 bits Pillow may return as 32-bit numbers from 0 to 65535."""
MAX_STILL_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_WHITE_IS_ZERO = 258, 262, 0


def read_still(clip: Clip, path: Path) -> np.ndarray:
    """Return the picture of `clip` at `path`, (1, H, W, 3) uint8.

    Raises:
        MediaError: the file is no picture, damaged, too large, or has no stated value of white.
        OSError: the file cannot be read.
    """
    with _opened(clip, path) as image:
        image.load()
        white = _white(image)
        if white is None and image.mode in ("I", "F"):
            kind = "32-bit numbers" if image.mode == "I" else "floating-point numbers"
            got = f"{kind}, of which none is stated to be white; save it with 8 bits a channel"
            raise media_error(clip, "8 or 16 bits a channel in its image file", got)
        if image.mode == "LAB":
            raise media_error(clip, "RGB, grey or CMYK colours in its image file", "CIELAB; save it as RGB")
        upright = ImageOps.exif_transpose(image)
        if white is None:
            if upright.mode == "P" and "transparency" in upright.info:
                upright = upright.convert("RGBA")  # the same colours, without a warning
            return np.asarray(upright.convert("RGB"))[None]
        grey = _grey(np.asarray(upright), white, white_is_zero=_tag(image, TIFF_PHOTOMETRIC, 1) == TIFF_WHITE_IS_ZERO)
    return np.repeat(grey[None, ..., None], 3, axis=3)


def check_still(clip: Clip, path: Path) -> None:
    """Open the picture without decoding it.

    Raises:
        MediaError, OSError: the picture cannot be opened.
    """
    with _opened(clip, path):
        pass


def _white(image: Image.Image) -> int | None:
    """Return the value of white in a grey picture of more than 8 bits; None for others, and if it is not stated."""
    if image.mode.startswith("I;16"):
        return 2 ** int(_tag(image, TIFF_BITS, 16)) - 1
    return 2**16 - 1 if image.mode == "I" and image.format in SCALED_TO_16_BITS else None


def _tag(image: Image.Image, number: int, default: int) -> int:
    value = getattr(image, "tag_v2", {}).get(number, default)
    return value[0] if isinstance(value, tuple) else value


def _grey(values: np.ndarray, white: int, white_is_zero: bool) -> np.ndarray:
    """Scale (H, W) values from 0 to `white` to (H, W) uint8."""
    levels = np.arange(white + 1, dtype=np.uint32)
    table = ((levels * 255 + white // 2) // white).astype(np.uint8)
    grey = table[np.clip(values, 0, white)]
    return 255 - grey if white_is_zero else grey


@contextlib.contextmanager
def _opened(clip: Clip, path: Path) -> Iterator[Image.Image]:
    """Open a picture; every error of Pillow about it in the block becomes a MediaError."""
    too_many = f"its image file to have at most {MAX_STILL_PIXELS:,} pixels"
    whole = "its image file to be a whole picture"
    try:
        with open_regular(path) as file, Image.open(file) as image:
            if image.format in PROGRAM_FORMATS:
                raise media_error(clip, "its image file to be a picture", f"a drawing program ({image.format})")
            if image.width * image.height > MAX_STILL_PIXELS:
                raise media_error(clip, too_many, "more")
            yield image
    except Image.UnidentifiedImageError as error:
        raise media_error(clip, "its image file to be a picture", "an unknown format") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise media_error(clip, too_many, "more") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise media_error(clip, whole, _in_words(error)) from error  # raised by Pillow itself: without an errno
    except Exception as error:
        if raised_by_this_package(error):
            raise
        # Pillow's decoders raise errors of any class on damaged bytes.
        raise media_error(clip, whole, _in_words(error)) from error


def _in_words(error: Exception) -> str:
    text = str(error)
    if isinstance(error, EOFError) or "truncated" in text.lower():
        return "an end within it; the file is cut short"
    return "damage within it"
