"""Write answers as JSON Lines to a file with which a stopped prediction continues.

    {"id": "a1", "answer": "happy", "probabilities": {"happy": 0.9, …}, "shown": ["audio", "image", "video"],
     "task": "emotion", "question": null, "choices": [], "model": "0123456789abcdef"}

A clip that failed has `error` instead of an answer; the next run asks it again. A line that was cut off at the end of
the file is removed. A file of another model or question is refused. No time and no path is written.
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

DIGITS = 6  # of a probability, after the decimal point


def common_fields(opened: OpenedModel, request: PredictionRequest) -> dict[str, Any]:
    """Return the fields that all answers of one file share."""
    return {
        "task": request.task.full_name,
        "question": request.words,
        "choices": list(request.choices),
        "model": opened.identity,
    }


def row(answer: ClipAnswer, common: Mapping[str, Any]) -> dict[str, Any]:
    """Return one answer as a JSON object."""
    if answer.error is not None:
        return {"id": answer.clip.id, "error": str(answer.error), **common}
    fields: dict[str, Any] = {"id": answer.clip.id, "answer": answer.text}
    if answer.probabilities:
        fields["probabilities"] = _rounded(answer.probabilities)
    fields["shown"] = list(answer.shown)
    if answer.evidence is not None and answer.evidence.without:
        fields["without"] = {modality: _rounded(labels) for modality, labels in answer.evidence.without.items()}
    return {**fields, **common}


class AnswerFile:
    """File of answers; each answer is on the disk before the next clip is answered. Use it as a context manager."""

    def __init__(self, path: Path, common: Mapping[str, Any]) -> None:
        """Open `path`; existing answers stay, rows of failed clips are removed.

        Raises:
            DataError: the file holds answers of another model, answers to another question, or other content.
        """
        self._path, self.common = path, dict(common)
        self.done: set[str] = set()
        """Ids of clips with an answer in the file when it was opened."""
        if path.is_file():
            self._read_answers()  # refuses another file before anything is changed
        with ExitStack() as stack:
            self._lines = stack.enter_context(AppendedLines(path))
            answers, num_others = self._read_answers()
            if num_others:
                self._lines.rewrite(answers)
            stack.pop_all()

    def write(self, answer: ClipAnswer) -> None:
        """Append an answer; it is on the disk when this returns."""
        self._lines.append([row(answer, self.common)])

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.__exit__()

    def _read_answers(self) -> tuple[list[dict[str, Any]], int]:
        """Read the rows with an answer; also return the number of other rows: failures and repeated answers."""
        answers: dict[str, dict[str, Any]] = {}
        count = 0
        for number, fields in read_objects(self._path, torn=True):
            if isinstance(fields, str) or not isinstance(fields.get("id"), str):
                raise self._refused(f"line {number} that is none")
            if not take_checksum(fields):
                raise self._refused(f"line {number} that was changed since it was written")
            differing = [key for key, value in self.common.items() if fields.get(key) != value]
            if differing:
                raise self._refused(f"another {differing[0]} on line {number}")
            count += 1
            if "error" not in fields:
                answers.setdefault(fields["id"], fields)
        self.done = set(answers)
        return list(answers.values()), count - len(answers)

    def _refused(self, got: str) -> DataError:
        return DataError(
            str(self._path),
            expected="answers of this model to this question",
            got=got,
            next_step="Choose another file with --out.",
        )


def _rounded(probabilities: Mapping[str, float]) -> dict[str, float]:
    return {label: round(value, DIGITS) for label, value in probabilities.items()}
