"""Drawn faces that move from rest to an expression and back, before many backgrounds.

Shapes: frames (F, HEIGHT, WIDTH, 3) uint8 RGB. Drawn at twice the size and averaged down, which smooths the edges.
Four looks (still, tense, open, downcast) belong to the expression; skin, hair, clothes, size, place, light and
background, blinking and the motion of the lips are drawn without regard to the look. Lips move as in speech but not in
step with the sound: the pictures must not tell the voice. This module knows no emotion and no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

WIDTH, HEIGHT = 320, 240
FPS = 25
SCALE = 2  # drawn at twice the size
STRENGTH = (0.3, 0.75)
"""The weakest and the strongest expression at its peak, between rest (0) and those of `LOOKS` (1)."""
MARGIN = 12  # pixels by which the camera may sway

Colour = tuple[int, int, int]
SKINS: tuple[Colour, ...] = ((246, 214, 190), (232, 190, 160), (206, 156, 120), (168, 118, 84), (122, 82, 58))
HAIRS: tuple[Colour, ...] = (
    (38, 30, 28),
    (82, 60, 42),
    (140, 110, 66),
    (180, 152, 104),
    (120, 120, 120),
    (104, 72, 50),
)
CLOTHES: tuple[Colour, ...] = ((66, 82, 104), (108, 96, 84), (70, 96, 78), (90, 90, 94), (150, 130, 86), (92, 80, 104))
BACKGROUNDS: tuple[Colour, ...] = ((158, 166, 170), (172, 164, 150), (138, 152, 146), (118, 126, 136), (166, 154, 158))
# The signs of an expression keep their colour in any light, and nothing else in a picture has it.
WHITE, RED, BLUE, FLUSH = (255, 255, 255), (150, 8, 22), (64, 150, 255), (232, 72, 84)


@dataclass(frozen=True)
class Look:
    """An expression at its peak; every part is zero at rest."""

    brow_up: float = 0.0
    brow_knot: float = 0.0
    """Inner ends down when positive, up when negative."""
    eyes: float = 0.0
    """Opening beyond rest: -1 is shut."""
    mouth_open: float = 0.0
    mouth_wide: float = 0.0
    mouth_curve: float = 0.0
    """Corners up when positive."""
    teeth: float = 0.0
    """Clenched and bared."""
    flush: float = 0.0
    """Red cheeks."""
    tear: float = 0.0
    nod: float = 0.0
    """Parts of the face sink with the head."""


LOOKS = {
    "still": Look(),
    "tense": Look(brow_up=-1.0, brow_knot=1.0, eyes=-0.5, mouth_wide=0.1, mouth_curve=-0.3, teeth=1.0, flush=1.0),
    "open": Look(brow_up=1.1, eyes=0.6, mouth_open=1.0, mouth_wide=0.15, mouth_curve=0.35),
    "downcast": Look(brow_up=0.1, brow_knot=-0.9, eyes=-0.7, mouth_curve=-1.0, mouth_wide=0.1, tear=1.0, nod=0.8),
}


@dataclass(frozen=True)
class Person:
    """A nuisance: who is seen, before what, in what light."""

    skin: Colour
    hair: Colour
    clothes: Colour
    background: Colour
    hair_style: int
    width: float
    size: float
    x: float
    y: float
    light: float
    warmth: float
    glasses: bool

    @classmethod
    def draw(cls, who: np.random.Generator, scene: np.random.Generator) -> Person:
        """Draw the body from `who`, so that one person may be met again, and the setting from `scene`."""
        return cls(
            skin=_vary(SKINS, who),
            hair=_vary(HAIRS, who),
            hair_style=int(who.integers(3)),
            width=float(who.uniform(0.92, 1.06)),
            glasses=bool(who.random() < 0.2),
            clothes=_vary(CLOTHES, scene),
            background=_vary(BACKGROUNDS, scene),
            size=float(scene.uniform(0.92, 1.06)),
            x=float(scene.uniform(-12, 12)),
            y=float(scene.uniform(-5, 5)),
            light=float(scene.uniform(0.85, 1.12)),
            warmth=float(scene.uniform(-0.05, 0.05)),
        )


def film(look: Look, person: Person, num_frames: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Return the frames, (F, HEIGHT, WIDTH, 3) uint8, and the index of the strongest one."""
    stage = _stage(person, rng)
    peak = int(num_frames * rng.uniform(0.4, 0.6))
    time = np.arange(num_frames)
    strength = np.exp(-(((time - peak) / (0.36 * num_frames)) ** 4)) * rng.uniform(*STRENGTH)
    lips = 0.22 * np.maximum(0.0, np.sin(2 * np.pi * rng.uniform(3.5, 5.0) * time / FPS + rng.uniform(0, 6.28)))
    blink = np.zeros(num_frames)
    at = int(rng.integers(2, num_frames - 2))
    if abs(at - peak) > 4:
        blink[at : at + 3] = (0.6, 1.0, 0.6)[: len(blink[at : at + 3])]
    sway = 2 * np.pi * time / FPS
    sway_x = rng.uniform(1, 4) * np.sin(rng.uniform(0.3, 0.7) * sway + rng.uniform(0, 6.28))
    sway_y = rng.uniform(1, 3) * np.sin(rng.uniform(0.3, 0.7) * sway + rng.uniform(0, 6.28))
    turn = rng.uniform(1, 4) * np.sin(rng.uniform(0.2, 0.5) * sway + rng.uniform(0, 6.28))
    frames = np.empty((num_frames, HEIGHT, WIDTH, 3), np.uint8)
    for i in range(num_frames):
        left, top = round(SCALE * (MARGIN + sway_x[i])), round(SCALE * (MARGIN + sway_y[i]))
        picture = stage.crop((left, top, left + SCALE * WIDTH, top + SCALE * HEIGHT))
        centre = (SCALE * (MARGIN + WIDTH / 2 + person.x + turn[i]) - left, SCALE * (MARGIN + 112 + person.y) - top)
        _draw_expression(ImageDraw.Draw(picture), person, look, float(strength[i]), lips[i], blink[i], centre)
        frames[i] = np.asarray(picture.reduce(SCALE))
    return frames, peak


def portraits(looks: Sequence[Look], person: Person, rng: np.random.Generator) -> np.ndarray:
    """Return one still a look, (F, HEIGHT, WIDTH, 3) uint8, the lips and the turn of the head drawn at random."""
    stage = _stage(person, rng)
    frames = np.empty((len(looks), HEIGHT, WIDTH, 3), np.uint8)
    for i, look in enumerate(looks):
        left, top = (round(SCALE * (MARGIN + rng.uniform(-4, 4))) for _ in range(2))
        picture = stage.crop((left, top, left + SCALE * WIDTH, top + SCALE * HEIGHT))
        turn = rng.uniform(-4, 4)
        centre = (SCALE * (MARGIN + WIDTH / 2 + person.x + turn) - left, SCALE * (MARGIN + 112 + person.y) - top)
        _draw_expression(ImageDraw.Draw(picture), person, look, 1.0, max(0.0, rng.uniform(-0.2, 0.22)), 0.0, centre)
        frames[i] = np.asarray(picture.reduce(SCALE))
    return frames


def _vary(colours: tuple[Colour, ...], rng: np.random.Generator) -> Colour:
    red, green, blue = np.array(colours[rng.integers(len(colours))]) + rng.integers(-8, 9, 3)
    return int(red), int(green), int(blue)


def _lit(person: Person, colour: Colour, factor: float = 1.0) -> Colour:
    tint = (1 + person.warmth, 1.0, 1 - person.warmth)
    red, green, blue = (min(255, round(c * person.light * factor * t)) for c, t in zip(colour, tint, strict=True))
    return red, green, blue


def _stage(person: Person, rng: np.random.Generator) -> Image.Image:
    """Everything that does not move: room, shoulders, head, hair, nose; MARGIN wider than a frame on every side."""
    size = (SCALE * (WIDTH + 2 * MARGIN), SCALE * (HEIGHT + 2 * MARGIN))
    picture = Image.new("RGB", size, _lit(person, person.background))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(3, 7))):
        x, y = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        w, h = rng.uniform(40, 200, 2)
        shade = _lit(person, person.background, float(rng.uniform(0.8, 1.15)))
        kind = draw.rectangle if rng.random() < 0.6 else draw.ellipse
        kind((x - w / 2, y - h / 2, x + w / 2, y + h / 2), fill=shade)
    picture = picture.filter(ImageFilter.BoxBlur(8))  # out of focus
    draw = ImageDraw.Draw(picture)
    unit = SCALE * person.size
    x = SCALE * (MARGIN + WIDTH / 2 + person.x)
    y = SCALE * (MARGIN + 112 + person.y)
    half = 66 * unit * person.width

    def oval(dx: float, dy: float, rx: float, ry: float, colour: Colour, factor: float = 1.0) -> None:
        box = (x + (dx - rx) * unit, y + (dy - ry) * unit, x + (dx + rx) * unit, y + (dy + ry) * unit)
        draw.ellipse(box, fill=_lit(person, colour, factor))

    if person.hair_style == 2:  # long
        draw.rounded_rectangle(
            (x - half - 14 * unit, y - 70 * unit, x + half + 14 * unit, y + 96 * unit),
            radius=50 * unit,
            fill=_lit(person, person.hair, 0.9),
        )
    oval(0, 168, 118, 66, person.clothes)
    oval(0, 104, 27, 34, person.skin, 0.88)
    wide = 66 * person.width
    for side in (-1, 1):
        oval(side * wide, 6, 10, 16, person.skin, 0.93)
    oval(0, -14, wide + 5, 88, person.hair)
    oval(0, 4, wide, 86, person.skin)
    if person.hair_style == 1:  # a fringe
        draw.chord((x - half, y - 84 * unit, x + half, y + 20 * unit), 190, 350, fill=_lit(person, person.hair))
    else:
        draw.chord((x - half, y - 86 * unit, x + half, y + 2 * unit), 200, 340, fill=_lit(person, person.hair))
    nose = [(x - 2 * unit, y - 6 * unit), (x - 9 * unit, y + 24 * unit), (x + 7 * unit, y + 26 * unit)]
    draw.line(nose, fill=_lit(person, person.skin, 0.78), width=round(3 * unit), joint="curve")
    return picture


def _draw_expression(
    draw: ImageDraw.ImageDraw,
    person: Person,
    look: Look,
    strength: float,
    lips: float,
    blink: float,
    centre: tuple[float, float],
) -> None:
    """Draw brows, eyes and mouth about `centre`, in pixels of the doubled picture."""
    unit = SCALE * person.size
    x, y = centre[0], centre[1] + 6 * look.nod * strength * unit
    _draw_mouth(draw, person, look, strength, lips, (x, y + 50 * unit), unit)
    for side in (-1, 1):
        red = look.flush * strength
        if red > 0.15:
            cheek = (x + side * 40 * unit * person.width, y + 21 * unit)
            wide, high = 15 * red * unit, 10 * red * unit
            draw.ellipse((cheek[0] - wide, cheek[1] - high, cheek[0] + wide, cheek[1] + high), fill=FLUSH)
        eye = (x + side * 27 * unit * person.width, y - 10 * unit)
        _draw_eye(draw, person, look, strength, blink, eye, unit)
        _draw_brow(draw, person, look, strength, side, eye, unit)
        if look.tear:
            shed = strength * look.tear
            if shed > 0.15:
                streak = (eye[0] - 4.5 * unit, eye[1] + 7 * unit, eye[0] + 4.5 * unit, eye[1] + (14 + 34 * shed) * unit)
                draw.rounded_rectangle(streak, radius=4 * unit, fill=BLUE)
    if look.brow_knot > 0:
        for dx in (-4, 4):
            begin, end = (x + dx * unit, y - 34 * unit), (x + dx * 0.7 * unit, y - (34 - 16 * strength) * unit)
            draw.line((begin, end), fill=_lit(person, person.skin, 0.62), width=round(3 * unit))


def _draw_eye(
    draw: ImageDraw.ImageDraw,
    person: Person,
    look: Look,
    strength: float,
    blink: float,
    eye: tuple[float, float],
    unit: float,
) -> None:
    x, y = eye
    opening = 8.5 * max(0.06, (1 + look.eyes * strength) * (1 - blink)) * unit
    half = 15 * unit
    draw.ellipse((x - half, y - opening, x + half, y + opening), fill=WHITE)
    iris = min(7.5 * unit, opening)
    sink = 2 * look.nod * strength * unit
    draw.ellipse((x - iris, y - iris + sink, x + iris, y + iris + sink), fill=(44, 34, 30))
    lid = _lit(person, person.skin, 0.55)
    draw.arc((x - half, y - opening - unit, x + half, y + opening + unit), 180, 360, fill=lid, width=round(2.5 * unit))
    if person.glasses:
        frame = (x - 21 * unit, y - 15 * unit, x + 21 * unit, y + 15 * unit)
        draw.rounded_rectangle(frame, radius=9 * unit, outline=(60, 60, 66), width=round(2 * unit))


def _draw_brow(
    draw: ImageDraw.ImageDraw,
    person: Person,
    look: Look,
    strength: float,
    side: int,
    eye: tuple[float, float],
    unit: float,
) -> None:
    lift = (22 + 12 * max(0.0, look.brow_up * strength) + 7 * min(0.0, look.brow_up * strength)) * unit
    knot = 9 * look.brow_knot * strength * unit
    inward = 4 * max(0.0, look.brow_knot) * strength * unit
    inner = (eye[0] - side * (14 * unit + inward), eye[1] - lift + knot)
    middle = (eye[0], eye[1] - lift - 3 * unit)
    outer = (eye[0] + side * 17 * unit, eye[1] - lift - 0.6 * knot + 2 * unit)
    draw.line((inner, middle, outer), fill=_lit(person, person.hair, 0.8), width=round(7 * unit), joint="curve")


def _draw_mouth(
    draw: ImageDraw.ImageDraw,
    person: Person,
    look: Look,
    strength: float,
    lips: float,
    centre: tuple[float, float],
    unit: float,
) -> None:
    x, y = centre
    half = 24 * (1 + look.mouth_wide * strength) * unit
    bend = 11 * look.mouth_curve * strength * unit
    gape = (
        20
        * max(0.0, look.mouth_open * strength + lips * (1 - 0.7 * max(look.mouth_open, look.teeth) * strength))
        * unit
    )
    along = np.linspace(-1, 1, 17)
    middle = y + bend * (1 - 2 * along**2) * 0.5
    arch = np.sqrt(1 - along**2)
    upper = list(zip(x + half * along, middle - 0.35 * gape * arch, strict=True))
    lower = list(zip(x + half * along, middle + 0.95 * gape * arch, strict=True))
    red = _lit(person, (188, 92, 92))
    if gape > 2 * unit:
        draw.polygon(upper + lower[::-1], fill=RED)
        if gape > 10 * unit:
            teeth = list(zip(x + 0.8 * half * along, middle - 0.3 * gape * arch + 0.3 * gape, strict=True))
            draw.polygon([*upper[2:-2], *teeth[::-1]], fill=WHITE)
    bared = look.teeth * strength
    if bared > 0.1:
        _draw_teeth(draw, person, (x, y + 4 * unit), (0.95 * half, 11 * bared * unit), unit)
        return
    thick = round((5 + 1.5 * min(0.0, look.mouth_open * strength)) * unit)
    for line in (upper, lower):
        draw.line(line, fill=red, width=thick, joint="curve")


def _draw_teeth(
    draw: ImageDraw.ImageDraw, person: Person, centre: tuple[float, float], half: tuple[float, float], unit: float
) -> None:
    """Two clenched rows of teeth inside `half` of the mouth's width and height."""
    (x, y), (wide, high) = centre, half
    red = _lit(person, (188, 92, 92))
    box = (x - wide, y - high, x + wide, y + high)
    draw.rounded_rectangle(box, radius=0.7 * high, fill=WHITE)
    gap = _lit(person, (170, 160, 154))
    draw.line((x - wide, y, x + wide, y), fill=gap, width=round(1.5 * unit))
    for k in range(-2, 3):
        draw.line((x + 0.36 * k * wide, y - high, x + 0.36 * k * wide, y + high), fill=gap, width=round(unit))
    draw.rounded_rectangle(box, radius=0.7 * high, outline=red, width=round(4 * unit))
