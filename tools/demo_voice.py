"""Speech-like sound: a glottal source through moving formants, said by many speakers in four voices.

Shapes: S audio samples at SAMPLING_RATE, P analysis frames of 10 ms. Levels in dB relative to a full-scale sine.
Pitch, tempo, loudness, spectral tilt, breath and tremor belong to the voice; base pitch, vocal tract length, gain and
room noise to the speaker, so that no single one of them tells the voice on its own. Source: the source-filter model
(Fant 1960), Klatt's vowel formants. This module knows no emotion and no file.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

SAMPLING_RATE = 24_000
HOP = SAMPLING_RATE // 100  # 10 ms
WINDOW = 2 * HOP  # Hann windows of 20 ms at 50 % overlap sum to one

FORMANTS_HZ = np.array(
    [(730, 1090, 2440), (530, 1840, 2480), (270, 2290, 3010), (570, 840, 2410), (300, 870, 2240), (490, 1350, 1690)],
    dtype=np.float64,
)
"""Vowels of father, bet, beet, bought, boot, bird."""
BANDWIDTHS_HZ = np.array((80.0, 100.0, 140.0))


@dataclass(frozen=True)
class Voice:
    """A way of speaking, independent of who speaks."""

    pitch: float
    """Factor on the speaker's base pitch."""
    swing: float
    """Depth of the melody over the utterance, in octaves."""
    fall: float
    """Fall of pitch inside each syllable, in octaves."""
    syllables_per_s: float
    level_db: float
    tilt_db: float
    """Slope of the source's spectrum per octave above 500 Hz; less negative is sharper."""
    breath: float
    """Share of noise in the source."""
    tremor: float
    """Depth of a 7 Hz tremor in pitch and loudness."""

    def weakened(self, strength: float) -> Voice:
        """Return a voice between the mean of all (strength 0) and this one (strength 1)."""
        means = {
            each.name: float(np.mean([getattr(voice, each.name) for voice in VOICES.values()])) for each in fields(self)
        }
        return Voice(**{name: mean + strength * (getattr(self, name) - mean) for name, mean in means.items()})


VOICES = {
    "flat": Voice(0.92, 0.03, 0.02, 2.7, -30.0, -13.0, 0.02, 0.0),
    "sharp": Voice(1.35, 0.12, 0.35, 5.6, -14.0, -4.0, 0.03, 0.0),
    "lilting": Voice(1.25, 0.55, 0.05, 4.0, -20.0, -7.5, 0.02, 0.0),
    "trembling": Voice(1.15, 0.08, 0.03, 4.6, -27.0, -8.0, 0.45, 0.5),
}


@dataclass(frozen=True)
class Speaker:
    """A nuisance: what differs between people and rooms."""

    base_hz: float
    tract: float
    """Factor on all formants; above one is a shorter vocal tract."""
    gain_db: float
    noise_db: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Speaker:
        base_hz = float(np.exp(rng.uniform(np.log(95.0), np.log(215.0))))
        # Higher voices tend to have shorter tracts.
        tract = 1.0 + 0.16 * np.log2(base_hz / 143.0) + rng.normal(0.0, 0.03)
        return cls(base_hz, float(tract), float(rng.uniform(-2.0, 2.0)), float(rng.uniform(-66.0, -58.0)))


def speak(voice: Voice, speaker: Speaker, duration_s: float, rng: np.random.Generator) -> np.ndarray:
    """Return one utterance, (S,) float32 in [-1, 1], S = duration_s · SAMPLING_RATE."""
    num_samples = round(duration_s * SAMPLING_RATE)
    num_frames = num_samples // HOP + 2
    loudness, octaves, formants_hz = _articulate(voice, num_frames, rng)
    seconds = np.arange(num_samples) / SAMPLING_RATE
    frame_s = np.arange(num_frames) * HOP / SAMPLING_RATE
    shake = voice.tremor * np.sin(2 * np.pi * 7.0 * frame_s + rng.uniform(0, 2 * np.pi))
    pitch_hz = speaker.base_hz * voice.pitch * 2.0 ** (octaves + 0.12 * shake)
    source = _source(np.interp(seconds, frame_s, pitch_hz), voice.breath, rng)
    sound = _filter(source, formants_hz * speaker.tract, voice.tilt_db)[:num_samples]
    sound *= np.interp(seconds, frame_s, loudness * (1.0 + 0.6 * shake))
    level = np.sqrt(np.mean(sound**2)) + 1e-9
    sound *= 10 ** ((voice.level_db + speaker.gain_db) / 20) / level
    sound += 10 ** (speaker.noise_db / 20) * rng.standard_normal(num_samples)
    over = np.maximum(np.abs(sound) - 0.7, 0.0)  # a soft limiter, as in any recorder
    return (np.sign(sound) * (np.minimum(np.abs(sound), 0.7) + 0.29 * np.tanh(over / 0.29))).astype(np.float32)


def _articulate(voice: Voice, num_frames: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return loudness (P,), pitch in octaves about the base (P,) and formants in Hz (P, 3)."""
    place = np.arange(num_frames)
    loudness = np.zeros(num_frames)
    melody_hz, phase = rng.uniform(0.9, 1.3), rng.uniform(0, 2 * np.pi)
    octaves = voice.swing * np.sin(2 * np.pi * melody_hz * place / 100 + phase) - 0.06 * place / num_frames
    formants = np.repeat(FORMANTS_HZ[-1:], num_frames, axis=0)
    at = float(rng.uniform(4, 10))  # first sound after 40 to 100 ms
    while at < num_frames - 8:
        length = 100 / voice.syllables_per_s * rng.uniform(0.85, 1.15)
        inside = (place >= at) & (place < at + 0.82 * length)
        part = (place[inside] - at) / (0.82 * length)
        loudness[inside] = np.sin(np.pi * part) ** 0.6 * rng.uniform(0.8, 1.0)
        octaves[inside] -= voice.fall * (part - 0.5)
        formants[inside] = FORMANTS_HZ[rng.integers(len(FORMANTS_HZ))]
        at += length * (1.6 if rng.random() < 0.1 else 1.0)
    glide = np.ones(7) / 7  # 70 ms for the mouth to move
    padded = np.pad(formants, ((3, 3), (0, 0)), mode="edge")
    formants = np.stack([np.convolve(padded[:, k], glide, mode="valid") for k in range(3)], axis=1)
    return loudness, octaves, formants


def _source(pitch_hz: np.ndarray, breath: float, rng: np.random.Generator) -> np.ndarray:
    """One pulse a period: pitch (S,) in Hz to a flat-spectrum source (S,) with `breath` of noise mixed in."""
    cycles = np.cumsum(pitch_hz) / SAMPLING_RATE + rng.uniform()
    # A pulse is shared by the two samples beside its true instant, so that pitch moves smoothly.
    whole = np.floor(cycles)
    begins = np.flatnonzero(np.diff(whole) > 0) + 1
    early = (cycles[begins] - whole[begins]) * SAMPLING_RATE / pitch_hz[begins]
    pulses = np.zeros(len(cycles))
    pulses[begins] += 1.0 - early
    pulses[begins - 1] += early
    pulses *= np.sqrt(SAMPLING_RATE / pitch_hz)  # unit power at any pitch
    return (1.0 - breath) * pulses + breath * rng.standard_normal(len(cycles))


def _filter(source: np.ndarray, formants_hz: np.ndarray, tilt_db: float) -> np.ndarray:
    """Shape the source (S,) by formants (P, 3), frame by frame with overlap-add."""
    num_frames = len(formants_hz) - 1
    padded = np.zeros((num_frames + 1) * HOP)
    padded[: min(len(source), len(padded))] = source[: len(padded)]
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * np.hanning(WINDOW + 1)[:-1]
    hz = np.fft.rfftfreq(2 * WINDOW, 1 / SAMPLING_RATE)
    response = np.ones((len(frames), len(hz)))
    for k in range(3):
        centre = formants_hz[: len(frames), k, None]
        response *= centre**2 / np.sqrt((hz**2 - centre**2) ** 2 + (BANDWIDTHS_HZ[k] * hz) ** 2)
    # Three resonances alone fall by 36 dB an octave; the next formants of a real tract lift that again.
    response *= (1.0 + (hz / 2500.0) ** 2) ** 2.2
    response *= 10 ** (tilt_db / 20 * np.log2(np.maximum(hz, 500.0) / 500.0)) * (hz > 60)
    shaped = np.fft.irfft(np.fft.rfft(frames, 2 * WINDOW) * response)
    out = np.zeros(len(padded) + 2 * WINDOW)
    for k, frame in enumerate(shaped):
        out[k * HOP : k * HOP + 2 * WINDOW] += frame
    return out
