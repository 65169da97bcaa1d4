"""Draw one answer: frames and sound that were used, modality weights of the fusion, effect of each modality.

Each panel is a function on axes, so that a web page can show the panels separately. Sound is drawn in seconds with the
borders of the audio tokens; weights are drawn over the K tokens of the fusion. Fusion token k combines audio window k
(of the padded 30 s, unless the encoder pools over the clip's own duration) with the k-th cell of the frames, so the two
do not show the same moment.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from featurecache.files.publish import replace_bytes
from featurecache.outside_text import figure_text
from fusion_train.predict.evidence import Evidence
from fusion_train.predict.pipeline import ClipAnswer

DPI = 110
COLORS = {"audio": "#0072b2", "image": "#d55e00", "video": "#009e73", "text": "#cc79a7"}
"""Okabe-Ito, which colour-blind readers tell apart; the demo page has the same."""
TITLE_CHARACTERS = 110
MAX_POINTS = 4000  # of a waveform


def draw_answer(answer: ClipAnswer, path: Path) -> None:
    """Write one answer as PNG.

    Raises:
        ValueError: the answer has no evidence.
        WriteError: the disk is full or refuses.
    """
    if answer.evidence is None:
        raise ValueError(f"{answer.clip.id}: answered without evidence")
    figure = Figure(figsize=(11.0, 9.0), layout="constrained")
    frames, sound, weights, bars = np.asarray(figure.subfigures(4, 1, height_ratios=(1.5, 1.0, 1.3, 1.3)))
    frames_figure(answer.evidence, frames)
    draw_sound(sound.subplots(), answer.evidence)
    draw_weights(weights.subplots(), answer.evidence)
    left, right = bars.subplots(1, 2)
    draw_probabilities(left, answer.probabilities)
    draw_drops(right, answer)
    text = " ".join((answer.text or "").split())
    short = text if len(text) <= TITLE_CHARACTERS else text[: TITLE_CHARACTERS - 1] + "…"
    figure.suptitle(figure_text(f"{answer.clip.id}: {short}"))
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI)
    replace_bytes(path, png.getvalue())


def frames_figure(evidence: Evidence, figure: Figure) -> None:
    """Draw the one frame of the global view and the frames of the temporal view, in order."""
    pictures = [(f"image: {len(frames)} frame", frames) for name, frames in evidence.views.items() if name == "image"]
    pictures += [(f"video: {len(frames)} frames", frames) for name, frames in evidence.views.items() if name == "video"]
    if not pictures:
        axes = figure.subplots()
        axes.text(0.5, 0.5, "no pictures", ha="center", va="center")
        axes.set_axis_off()
        return
    columns = [1.0 if len(frames) == 1 else 3.0 for _, frames in pictures]
    panels = np.atleast_1d(figure.subplots(1, len(pictures), width_ratios=columns))
    for axes, (title, frames) in zip(panels, pictures, strict=True):
        axes.imshow(contact_sheet(frames))
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()


def contact_sheet(frames: np.ndarray, across: int = 8, gap: int = 4) -> np.ndarray:
    """Return one picture of the frames (F, H, W, 3) in rows, with white gaps."""
    count, height, width, _ = frames.shape
    across = min(across, count)
    down = -(-count // across)
    sheet = np.full((down * (height + gap) - gap, across * (width + gap) - gap, 3), 255, np.uint8)
    for number, frame in enumerate(frames):
        top, left = number // across * (height + gap), number % across * (width + gap)
        sheet[top : top + height, left : left + width] = frame
    return sheet


def draw_sound(axes: Axes, evidence: Evidence) -> None:
    """Draw the waveform over the clip's own time, with the borders of the audio tokens."""
    waveform, sound = evidence.views.get("audio"), evidence.sound
    if waveform is None or sound is None:
        axes.text(0.5, 0.5, "no sound", ha="center", va="center")
        axes.set_axis_off()
        return
    duration_s = len(waveform) / sound.sampling_rate
    step = max(1, len(waveform) // MAX_POINTS)
    blocks = waveform[: len(waveform) // step * step].reshape(-1, step)
    seconds = (np.arange(len(blocks)) + 0.5) * step / sound.sampling_rate
    axes.fill_between(seconds, blocks.min(axis=1), blocks.max(axis=1), color=COLORS["audio"], linewidth=0.4)
    filled = sound.num_filled(len(waveform))
    for k in range(filled + 1):
        axes.axvline(k * sound.window_s, color="0.6", linewidth=0.6)
    every = max(1, filled // 16)
    for k in range(0, filled, every):
        axes.text(
            (k + 0.5) * sound.window_s,
            0.97,
            str(k),
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="top",
            fontsize=7,
            color="0.35",
        )
    padding = f"; tokens {filled} to {sound.tokens - 1} encode padding" if filled < sound.tokens else ""
    axes.set_title(f"sound: {filled} of {sound.tokens} tokens, {sound.window_s:.3f} s each{padding}", fontsize=9)
    axes.set(xlim=(0, max(duration_s, filled * sound.window_s)), xlabel="seconds")


def draw_weights(axes: Axes, evidence: Evidence) -> None:
    """Draw the modality weights of the attention branch of the fusion, per token."""
    if not evidence.weights:
        axes.text(0.5, 0.5, "this fusion has no attention branch", ha="center", va="center")
        axes.set_axis_off()
        return
    tokens = evidence.num_tokens
    for modality, weights in evidence.weights.items():
        values = np.broadcast_to(weights, (tokens,)) if len(weights) == 1 else weights
        axes.step(np.arange(tokens + 1), [*values, values[-1]], where="post", label=modality, color=COLORS[modality])
    axes.axhline(0, color="0.7", linewidth=0.8)
    waveform = evidence.views.get("audio")
    if evidence.sound is not None and waveform is not None:
        filled = evidence.sound.num_filled(len(waveform))
        if filled < tokens:
            axes.axvspan(filled, tokens, color="0.93", zorder=0)
            axes.text(filled + 0.3, 0.03, "sound ended", transform=axes.get_xaxis_transform(), fontsize=7, color="0.4")
    axes.set(xlim=(0, tokens), xlabel="fusion token", ylabel="weight")
    axes.set_title(
        "modality weights of the fusion's attention branch (no softmax: neither positive nor summing to 1)", fontsize=9
    )
    axes.legend(loc="best", ncols=3, fontsize=8)


def draw_probabilities(axes: Axes, probabilities: Mapping[str, float]) -> None:
    """Draw one bar per label of the closed set, the most probable on top."""
    if not probabilities:
        axes.text(0.5, 0.5, "an open question: no label probabilities", ha="center", va="center")
        axes.set_axis_off()
        return
    ranked = sorted(probabilities.items(), key=lambda item: item[1])
    bars = axes.barh([figure_text(label) for label, _ in ranked], [value for _, value in ranked], color="0.45")
    axes.bar_label(bars, [f"{value:.3f}" for _, value in ranked], padding=3, fontsize=8)
    axes.set(xlim=(0, 1.15))
    axes.set_title("label probability", fontsize=9)


def draw_drops(axes: Axes, answer: ClipAnswer) -> None:
    """Draw the decrease of the answer's probability when each modality is left out."""
    if answer.evidence is None or not answer.evidence.without or answer.text is None:
        axes.set_axis_off()
        return
    drops = answer.evidence.drops(answer.probabilities, answer.text)
    bars = axes.barh(list(drops), list(drops.values()), color=[COLORS[name] for name in drops])
    axes.bar_label(bars, [f"{value:+.3f}" for value in drops.values()], padding=3, fontsize=8)
    axes.axvline(0, color="0.5", linewidth=0.8)
    axes.set(xlim=(min(-0.2, *drops.values()) - 0.15, max(0.2, *drops.values()) + 0.2))
    axes.set_title(figure_text(f'drop in the probability of "{answer.text}" without'), fontsize=9)
