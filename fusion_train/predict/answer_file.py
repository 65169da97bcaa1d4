"""Answers as JSON lines, in a file that a stopped prediction goes on with.

    {"id": "a1", "answer": "happy", "probabilities": {"happy": 0.9, …}, "shown": ["audio", "image", "video"],
     "task": "emotion", "question": null, "choices": [], "model": "0123456789abcdef"}

A clip that failed has `error` in place of an answer and is asked again by the next run, as are clips after a line that
was cut off. A file of another model or question is refused. No time and no path is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from featurecache.files.jsonl import read_objects
from fusion_train.errors import DataError
from fusion_train.evaluation.append_only import AppendedLines, take_checksum
from fusion_train.predict.opening import OpenedModel
from fusion_train.predict.pipeline import ClipAnswer
from fusion_train.predict.request import PredictionRequest

PLACES = 6  # digits of a probability


def asked(opened: OpenedModel, question: PredictionRequest) -> dict[str, Any]:
    """What all answers of one file have in common."""
    return {
        "task": question.task.full_name,
        "question": question.words,
        "choices": list(question.choices),
        "model": opened.identity,
    }


def row(answer: ClipAnswer, common: Mapping[str, Any]) -> dict[str, Any]:
    """One answer as a JSON object."""
    if answer.error is not None:
        return {"id": answer.clip.id, "error": str(answer.error), **common}
    said: dict[str, Any] = {"id": answer.clip.id, "answer": answer.text}
    if answer.probabilities:
        said["probabilities"] = _rounded(answer.probabilities)
    said["shown"] = list(answer.shown)
    if answer.evidence is not None and answer.evidence.without:
        said["without"] = {modality: _rounded(labels) for modality, labels in answer.evidence.without.items()}
    return {**said, **common}


class AnswerFile:
    """Rows written one by one; each is on the disk before the next is asked for."""

    def __init__(self, path: Path, common: Mapping[str, Any]) -> None:
        """Open `path`, keeping the answers that it holds.

        Raises:
            DataError: it holds answers of another model or to another question, or something else.
        """
        self._path, self.common = path, dict(common)
        self.done: set[str] = set()
        if path.is_file():
            self._kept()  # refuses before anything is touched
        with ExitStack() as opened:
            self._lines = opened.enter_context(AppendedLines(path))
            kept, dropped = self._kept()
            if dropped:
                self._lines.rewrite(kept)
            opened.pop_all()

    def write(self, answer: ClipAnswer) -> None:
        """Add an answer; it is on the disk when this returns."""
        self._lines.append([row(answer, self.common)])

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.__exit__()

    def _kept(self) -> tuple[list[dict[str, Any]], int]:
        """Rows with an answer, and how many others there are."""
        kept: dict[str, dict[str, Any]] = {}
        count = 0
        for number, found in read_objects(self._path, torn=True):
            if isinstance(found, str) or not isinstance(found.get("id"), str):
                raise self._refused(f"line {number} that is none")
            if not take_checksum(found):
                raise self._refused(f"line {number} that was changed since it was written")
            differing = [key for key, value in self.common.items() if found.get(key) != value]
            if differing:
                raise self._refused(f"another {differing[0]} on line {number}")
            count += 1
            if "error" not in found:
                kept.setdefault(found["id"], found)
        self.done = set(kept)
        return list(kept.values()), count - len(kept)

    def _refused(self, got: str) -> DataError:
        return DataError(
            str(self._path),
            expected="answers of this model to this question",
            got=got,
            next_step="Choose another file with --out.",
        )


def _rounded(probabilities: Mapping[str, float]) -> dict[str, float]:
    return {label: round(value, PLACES) for label, value in probabilities.items()}
