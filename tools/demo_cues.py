"""What the demo's clips mean: six emotions, each one look and one voice, and the sentences that speak of them.

    emotion    look (video)   voice (audio)
    angry      tense          sharp
    worried    tense          trembling
    happy      open           lilting
    surprise   open           sharp
    sad        downcast       flat
    neutral    still          flat

Angry and worried look alike, as do happy and surprise; angry and surprise sound alike, as do neutral and sad.
Four looks and four voices among six balanced emotions: whoever only sees, or only hears, is right for at most 4 clips
of 6 (67 %); whoever does both can be right for all that are plain enough.

Subtitles are drawn without regard to the emotion. No sentence of one split is a sentence of another, in whatever order
its parts stand: splits share the phrases, not the pairs of phrases. This module draws no face and makes no sound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EMOTIONS = ("neutral", "angry", "happy", "sad", "worried", "surprise")
"""The six of MER2023."""

LOOK_OF = {
    "neutral": "still",
    "angry": "tense",
    "happy": "open",
    "sad": "downcast",
    "worried": "tense",
    "surprise": "open",
}
VOICE_OF = {
    "neutral": "flat",
    "angry": "sharp",
    "happy": "lilting",
    "sad": "flat",
    "worried": "trembling",
    "surprise": "sharp",
}

SEEN = {
    "still": (
        "the face stays relaxed and level", "the brows and the mouth hardly move", "the eyes rest and nothing stirs",
    ),
    "tense": (
        "the cheeks flush under knotted brows", "the eyes narrow above clenched teeth", "the face is red and hard",
    ),
    "open": (
        "the brows go up and the mouth opens wide", "the eyes are wide above an open mouth", "the whole face lifts",
    ),
    "downcast": (
        "the eyelids droop and the mouth turns down", "the gaze sinks and tears run", "a tear falls from the eyes",
    ),
}  # fmt: skip
HEARD = {
    "flat": ("the voice is low, quiet and even", "the speech is slow and flat", "every word sounds the same"),
    "sharp": ("the voice is loud, fast and sharp", "the words come out loud and hard", "the speech is quick and harsh"),
    "lilting": (
        "the voice is bright and swings up and down", "the speech is melodious and clear", "the words rise and fall",
    ),
    "trembling": (
        "the voice is thin and trembles", "the speech is breathy and shaky", "the words quiver and break",
    ),
}  # fmt: skip
CONCLUSIONS = (
    "So the person is {}.",
    "Together this says {}.",
    "The emotion is {}.",
)

SUBTITLES = (
    ("I put the {} {}.", "THINGS", "PLACES"),
    ("Did you see the {} {}?", "THINGS", "PLACES"),
    ("They will bring the {} {}.", "THINGS", "TIMES"),
    ("We talked about the {} {}.", "THINGS", "TIMES"),
    ("There is a {} {}.", "THINGS", "PLACES"),
    ("You can find it {} {}.", "PLACES", "TIMES"),
)
WORDS = {
    "THINGS": ("key", "letter", "box", "ticket", "phone", "book", "coat", "lamp", "ring", "map"),
    "PLACES": ("on the table", "by the door", "in the car", "at the office", "next to the window", "in the kitchen",
               "under the bed", "on the shelf"),
    "TIMES": ("on Monday", "this evening", "at nine", "after lunch", "next week", "in the morning", "at noon",
              "on Sunday"),
}  # fmt: skip
SPLIT_OF_WORDS = ("train", "train", "val", "test")
"""Split of the pair of words a and b of a subtitle: that at (a + b) modulo 4."""


@dataclass(frozen=True)
class Sentences:
    """The text of one clip: its subtitle and the answers to "reason" and "think"."""

    subtitle: str
    reason: str
    think: str


def split_of_cues(seen: int, heard: int) -> str:
    """Split of the pair of a phrase on the look and a phrase on the voice, both from 0 to 2."""
    if (seen + heard) % 3 != 2:
        return "train"
    return "val" if seen == heard else "test"


def subtitle(split: str, rng: np.random.Generator) -> str:
    """Draw one sentence of a split that fits every emotion equally."""
    template, first, second = SUBTITLES[rng.integers(len(SUBTITLES))]
    pairs = [
        (one, other)
        for a, one in enumerate(WORDS[first])
        for b, other in enumerate(WORDS[second])
        if SPLIT_OF_WORDS[(a + b) % 4] == split
    ]
    return template.format(*pairs[rng.integers(len(pairs))])


def explain(look: str, voice: str, split: str, rng: np.random.Generator) -> str:
    """Say in one sentence of a split what is seen and what is heard, in either order."""
    pairs = [
        (one, other)
        for a, one in enumerate(SEEN[look])
        for b, other in enumerate(HEARD[voice])
        if split_of_cues(a, b) == split
    ]
    cues = pairs[rng.integers(len(pairs))]
    first, second = cues if rng.random() < 0.5 else reversed(cues)
    return f"{first[0].upper()}{first[1:]}, and {second}."


def sentences(emotion: str, split: str, rng: np.random.Generator) -> Sentences:
    """Draw the subtitle and both answers for one clip of `emotion` (one of EMOTIONS) in a split."""
    cues = explain(LOOK_OF[emotion], VOICE_OF[emotion], split, rng)
    conclusion = str(rng.choice(CONCLUSIONS)).format(emotion)
    thought = explain(LOOK_OF[emotion], VOICE_OF[emotion], split, rng)
    return Sentences(
        subtitle=subtitle(split, rng),
        reason=f"{cues} {conclusion}",
        think=f"<think>{thought}</think><answer>{emotion}</answer>",
    )
