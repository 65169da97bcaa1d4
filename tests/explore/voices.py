"""Sentences said by several speakers, as sound and as tokens whose averages tell the sentence and little else.

It is what acted speech looks like to an encoder: the same sentence by two speakers is as much alike, on average, as a
recording and its copy. Only the course of the sound tells a copy.
"""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import planted

import featurecache
from featurecache.clips.clip_list import ClipList
from featurecache.store.local import LocalStore

RATE = 16_000
SENTENCES, SPEAKERS = 10, 6
NUM_SYLLABLES, FORMANTS = 6, 3
EMOTIONS = ("angry", "sad")
OF_RECORDING, OF_FILE = 0.05, 0.01


def speak(sentence: int, speaker: int, take: int = 0) -> np.ndarray:
    """(S,) float32: syllables of the sentence, with the pitch and the pace of speaker and take."""
    of_sentence = np.random.default_rng([1, sentence])
    own = np.random.default_rng([2, sentence, speaker, take])
    pitch = 90 + 25 * speaker
    parts = []
    for _ in range(NUM_SYLLABLES):
        formants = of_sentence.uniform(300, 3200, FORMANTS)
        length = int(RATE * own.uniform(0.14, 0.32))
        time = np.arange(length) / RATE
        course = pitch * (1 + own.uniform(-0.25, 0.25) + own.uniform(-0.4, 0.4) * time)
        phase = 2 * np.pi * np.cumsum(course) / RATE
        sound = np.zeros(length)
        for harmonic in range(1, 25):
            frequency = harmonic * pitch
            strength = np.exp(-np.square((frequency - formants) / 250)).sum() + 0.02
            sound += strength * np.sin(harmonic * phase)
        parts += [sound * np.hanning(length), np.zeros(int(RATE * own.uniform(0.0, 0.06)))]
    sound = np.concatenate(parts)
    return (0.3 * sound / np.abs(sound).max()).astype(np.float32)


def altered(sound: np.ndarray, way: str) -> np.ndarray:
    """A copy of a recording, as copies turn up."""
    random = np.random.default_rng(3)
    return {
        "louder": lambda: sound * 1.8,
        "noisy": lambda: sound + 0.02 * random.standard_normal(len(sound)),
        "cut": lambda: sound[int(0.23 * RATE) :],
        "coarse": lambda: np.round(sound * 64) / 64,
    }[way]().astype(np.float32)


COPIES = {"louder": (0, 1), "noisy": (2, 3), "cut": (4, 0), "coarse": (5, 5)}
"""Way -> sentence and speaker of the recording that is copied so."""


def write_sound(path: Path, sound: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())


def emotion_of(sentence: int, speaker: int) -> str:
    return EMOTIONS[(sentence + speaker) % 2]


def tokens_of(sentence: int, speaker: int, emotion: str, name: str) -> np.ndarray:
    """(K, D): much of the sentence in many channels, a strong emotion in a few, a little of recording and file."""
    count, width = planted.SHAPES["voice"]
    sentences = np.random.default_rng([4, sentence]).standard_normal((count, width))
    emotions = np.zeros(width)
    emotions[:4] = 3.0 if emotion == EMOTIONS[0] else -3.0
    own = OF_RECORDING * np.random.default_rng([5, sentence, speaker]).standard_normal((count, width))
    file = OF_FILE * np.random.default_rng([6, *name.encode()]).standard_normal((count, width))
    return (sentences + emotions + own + file).astype(np.float32)


def write_voices(folder: Path) -> tuple[LocalStore, ClipList]:
    """All sentences by all speakers, and the copies, as sound, clip list and store; returns both opened."""
    (folder / "sound").mkdir(parents=True)
    rows, made = [], {}
    for sentence in range(SENTENCES):
        for speaker in range(SPEAKERS):
            clip_id = f"s{sentence}p{speaker}"
            write_sound(folder / "sound" / f"{clip_id}.wav", speak(sentence, speaker))
            made[clip_id] = (sentence, speaker)
    for way, (sentence, speaker) in COPIES.items():
        write_sound(folder / "sound" / f"{way}.wav", altered(speak(sentence, speaker), way))
        made[way] = (sentence, speaker)
    for clip_id, (sentence, speaker) in made.items():
        rows.append(
            {
                "id": clip_id,
                "audio": f"sound/{clip_id}.wav",
                "text": f"sentence {sentence}",
                "speaker": f"p{speaker}",
                "split": "train" if speaker % 2 else "test",
                "labels": {"emotion": emotion_of(sentence, speaker)},
            }
        )
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = featurecache.open_store(folder / "features.zarr", mode="a")
    writer = store.writer("voice", planted.spec_of("voice"), shard_rows=64)
    writer.plan(list(made))
    with writer.begin(writer.pending()[0]) as shard:
        for slot, (clip_id, (sentence, speaker)) in enumerate(made.items()):
            tokens = tokens_of(sentence, speaker, emotion_of(sentence, speaker), clip_id)
            shard.put(slot, tokens, f"{slot + 1:064x}")
        shard.commit()
    return featurecache.open_store(folder / "features.zarr"), featurecache.load_clips(folder / "clips.jsonl")
