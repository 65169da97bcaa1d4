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
of 6 (67 %); whoever does both can be right for all.

Subtitles are drawn without regard to the emotion. This module draws no face and makes no sound.
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
    "still": ("the face stays relaxed and level", "the brows and the mouth hardly move"),
    "tense": ("the cheeks flush under knotted brows", "the eyes narrow above clenched teeth"),
    "open": ("the brows go up and the mouth opens wide", "the eyes are wide above an open mouth"),
    "downcast": ("the eyelids droop and the mouth turns down", "the gaze sinks and tears run"),
}
HEARD = {
    "flat": ("the voice is low, quiet and even", "the speech is slow and flat"),
    "sharp": ("the voice is loud, fast and sharp", "the words come out loud and hard"),
    "lilting": ("the voice is bright and swings up and down", "the speech is melodious and clear"),
    "trembling": ("the voice is thin and trembles", "the speech is breathy and shaky"),
}
CONCLUSIONS = (
    "So the person is {}.",
    "Together this says {}.",
    "The emotion is {}.",
)

SUBTITLES = (
    "I put the {thing} {place}.",
    "Did you see the {thing} {place}?",
    "They will bring the {thing} {when}.",
    "We talked about the {thing} {when}.",
    "There is a {thing} {place}.",
    "You can find it {place} {when}.",
)
THINGS = ("key", "letter", "box", "ticket", "phone", "book", "coat", "lamp")
PLACES = ("on the table", "by the door", "in the car", "at the office", "next to the window", "in the kitchen")
TIMES = ("on Monday", "this evening", "at nine", "after lunch", "next week", "in the morning")


@dataclass(frozen=True)
class Sentences:
    """The text of one clip: its subtitle and the answers to "reason" and "think"."""

    subtitle: str
    reason: str
    think: str


def subtitle(rng: np.random.Generator) -> str:
    """Draw one sentence that fits every emotion equally."""
    return str(rng.choice(SUBTITLES)).format(thing=rng.choice(THINGS), place=rng.choice(PLACES), when=rng.choice(TIMES))


def explain(look: str, voice: str, rng: np.random.Generator) -> str:
    """Say in one sentence what is seen and what is heard, in either order."""
    cues = [str(rng.choice(SEEN[look])), str(rng.choice(HEARD[voice]))]
    first, second = cues if rng.random() < 0.5 else reversed(cues)
    return f"{first[0].upper()}{first[1:]}, and {second}."


def sentences(emotion: str, rng: np.random.Generator) -> Sentences:
    """Draw the subtitle and both answers for one clip of `emotion` (one of EMOTIONS)."""
    cues = explain(LOOK_OF[emotion], VOICE_OF[emotion], rng)
    conclusion = str(rng.choice(CONCLUSIONS)).format(emotion)
    thought = explain(LOOK_OF[emotion], VOICE_OF[emotion], rng)
    return Sentences(
        subtitle=subtitle(rng),
        reason=f"{cues} {conclusion}",
        think=f"<think>{thought}</think><answer>{emotion}</answer>",
    )
