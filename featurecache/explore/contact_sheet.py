"""Contact sheet: a PNG with one frame per clip side by side, each with a caption below.

A clip without a picture, or whose file cannot be read, is a grey tile with the reason.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from featurecache.clips.clip_list import Clip
from featurecache.errors import MediaError
from featurecache.files.publish import replace_bytes
from featurecache.media.decode import Absent, decode
from featurecache.outside_text import one_line
from featurecache.views import FramesView

TILE = (240, 180)
CAPTION_LINES, LINE_PIXELS, MARGIN = 3, 16, 8
MAX_COLUMNS = 5
MAX_CAPTION_CHARACTERS = 200  # more than fits into a tile's line
FONT_PIXELS = 13
INK, PAPER, EMPTY, FRAME = (24, 24, 24), (255, 255, 255), (222, 222, 222), (178, 34, 34)


def contact_sheet(clips: Sequence[tuple[Clip, Sequence[str]]], path: Path, *, first_is_query: bool = False) -> None:
    """Draw (clip, caption lines) pairs into a PNG, left to right; the query gets a red frame."""
    columns = min(MAX_COLUMNS, len(clips))
    rows = -(-len(clips) // columns)
    cell = (TILE[0] + MARGIN, TILE[1] + CAPTION_LINES * LINE_PIXELS + MARGIN)
    sheet = Image.new("RGB", (columns * cell[0] + MARGIN, rows * cell[1] + MARGIN), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_PIXELS)
    for number, (clip, lines) in enumerate(clips):
        x, y = MARGIN + number % columns * cell[0], MARGIN + number // columns * cell[1]
        picture, reason = _thumbnail(clip)
        if picture is None:
            draw.rectangle((x, y, x + TILE[0], y + TILE[1]), EMPTY)
            draw.text((x + MARGIN, y + TILE[1] // 2), _fit(draw, reason, font), INK, font)
        else:
            sheet.paste(picture, (x + (TILE[0] - picture.width) // 2, y + (TILE[1] - picture.height) // 2))
        if first_is_query and number == 0:
            draw.rectangle((x - 2, y - 2, x + TILE[0] + 1, y + TILE[1] + 1), outline=FRAME, width=3)
        for line_number, line in enumerate(lines[:CAPTION_LINES]):
            draw.text((x, y + TILE[1] + 3 + line_number * LINE_PIXELS), _fit(draw, line, font), INK, font)
    png = io.BytesIO()
    sheet.save(png, "PNG")
    replace_bytes(path, png.getvalue())


def _thumbnail(clip: Clip) -> tuple[Image.Image | None, str]:
    """Return the middle frame of a clip, or None and the reason."""
    try:
        frames = decode(clip, [FramesView(1, "middle", still=True)])[0]
    except MediaError:
        return None, "cannot be read"
    if isinstance(frames, Absent):
        return None, "no picture"
    picture = Image.fromarray(frames[0])
    picture.thumbnail(TILE)
    return picture, ""


def _fit(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Shorten a line of text to the width of a tile."""
    text = one_line(text)[:MAX_CAPTION_CHARACTERS]
    if draw.textlength(text, font=font) <= TILE[0]:
        return text
    while text and draw.textlength(text + "…", font=font) > TILE[0]:
        text = text[:-1]
    return text + "…"
