"""The wrong answers of a scored set, and their clips as cards of a page: a frame, the sound, and both labels."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from featurecache.clips.clip_list import Clip, ClipList
from featurecache.errors import MediaError
from featurecache.media.decode import decode_each
from featurecache.outside_text import one_line
from featurecache.views import AudioView, FramesView
from fusion_train.metrics.metric_result import MetricResult
from fusion_train.report.page import Card

SHOWN = 20
"""Wrong clips on a page."""
THUMBNAIL = (320, 240)
VIEWS = (FramesView(1, "middle", still=True), AudioView(8_000))
DECODE_LIMIT_S = 20.0
MAX_CHARACTERS = 160


@dataclass(frozen=True)
class WrongAnswer:
    """A clip whose answer is not its reference."""

    clip_id: str
    reference: str
    answer: str
    probability: float | None
    """Of the answer, where it was chosen among labels."""


def wrong_answers(rows: Sequence[Mapping[str, Any]], scored: MetricResult) -> list[WrongAnswer]:
    """Return the wrong answers, most frequent confusion first, one clip per confusion in turn.

    In this order the first few answers show many kinds of error. A metric that judges no single clip has none.
    """
    if scored.outcomes is not None:
        is_wrong = scored.outcomes[:, 0] != scored.outcomes[:, 1]
    elif scored.per_clip is not None and scored.is_share:
        is_wrong = scored.per_clip == 0
    else:
        return []
    wrong_ids = {clip_id for clip_id, wrong in zip(scored.clip_ids, is_wrong.tolist(), strict=True) if wrong}
    by_confusion: dict[tuple[str, str], list[WrongAnswer]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["id"]):
        if row["id"] in wrong_ids:
            answer = WrongAnswer(
                row["id"],
                _text(row.get("reference")),
                _text(row["prediction"]),
                (row.get("probabilities") or {}).get(row["prediction"]),
            )
            by_confusion[answer.reference, answer.answer].append(answer)
    confusions = sorted(by_confusion.values(), key=lambda answers: -len(answers))
    longest = max(map(len, confusions), default=0)
    return [answers[turn] for turn in range(longest) for answers in confusions if turn < len(answers)]


def cards(answers: Sequence[WrongAnswer], clips: ClipList) -> list[Card]:
    """Return a card per answer; a clip that is not in the list, or cannot be decoded, has a reason for a picture."""
    by_id = {clip.id: clip for clip in clips}
    return [_card(answer, by_id.get(answer.clip_id)) for answer in answers]


def _card(answer: WrongAnswer, clip: Clip | None) -> Card:
    probability = "" if answer.probability is None else f", p = {answer.probability:.2f}"
    lines = [f"{answer.reference} → {answer.answer}{probability}"]
    if clip is None:
        return Card(answer.clip_id, lines, reason="not in the clip list")
    if clip.text:
        lines.append(f"“{_text(clip.text)}”")
    frames, sound = decode_each(clip, VIEWS, limit_s=DECODE_LIMIT_S)
    heard = sound if isinstance(sound, np.ndarray) else None
    if not isinstance(frames, np.ndarray):
        reason = "cannot be read" if isinstance(frames, MediaError) else "" if heard is not None else "no picture"
        return Card(answer.clip_id, lines, reason=reason, sound=heard)
    picture = Image.fromarray(frames[0])
    picture.thumbnail(THUMBNAIL)
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=80)
    return Card(answer.clip_id, lines, picture=jpeg.getvalue(), sound=heard)


def _text(value: Any) -> str:
    """Return a label, a list of labels or an answer on one line, shortened."""
    text = one_line(", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"
