"""Answers as JSON lines, in a file that a stopped prediction goes on with.

    {"id": "a1", "answer": "happy", "probabilities": {"happy": 0.9, …}, "shown": ["audio", "image", "video"],
     "task": "emotion", "question": null, "choices": [], "model": "0123456789abcdef"}

A clip that failed has `error` in place of an answer and is asked again by the next run, as are clips after a line that
was cut off. A file of another model or question is refused. No time and no path is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featurecache.errors import WriteError
from featurecache.store.publish import replace_bytes
from fusion_train.errors import DataError
from fusion_train.predict.opening import OpenedModel
from fusion_train.predict.pipeline import Answer
from fusion_train.predict.question import Question

PLACES = 6  # digits of a probability


def asked(opened: OpenedModel, question: Question) -> dict[str, Any]:
    """What all answers of one file have in common."""
    return {"task": question.task.name, "question": question.words, "choices": list(question.choices),
            "model": opened.identity}  # fmt: skip


def row(answer: Answer, common: Mapping[str, Any]) -> dict[str, Any]:
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
        kept = self._kept()
        before = path.read_bytes() if path.is_file() else b""
        after = "".join(kept).encode()
        if before != after:
            replace_bytes(path, after)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
        except OSError as error:
            raise WriteError(
                str(path), expected="a file that can be written", got=error.strerror or str(error)
            ) from error

    def write(self, answer: Answer) -> None:
        """Append one answer."""
        line = json.dumps(row(answer, self.common), ensure_ascii=False) + "\n"
        try:
            self._file.write(line.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise WriteError(
                str(self._path), expected="room for an answer", got=error.strerror or str(error),
                next_step="Free space and run the same command again; it goes on where it was.",
            ) from error  # fmt: skip

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _kept(self) -> list[str]:
        if not self._path.is_file():
            return []
        kept = []
        lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            try:
                found = json.loads(line)
                clip_id = found["id"]
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines) and not line.endswith("\n"):
                    continue  # cut off while it was written
                raise self._refused(f"line {number} that is none") from error
            differing = [key for key, value in self.common.items() if found.get(key) != value]
            if differing:
                raise self._refused(f"another {differing[0]} on line {number}")
            if "error" not in found and clip_id not in self.done:
                self.done.add(clip_id)
                kept.append(line if line.endswith("\n") else line + "\n")
        return kept

    def _refused(self, got: str) -> DataError:
        return DataError(str(self._path), expected="answers of this model to this question", got=got,
                         next_step="Choose another file with --out.")  # fmt: skip


def _rounded(probabilities: Mapping[str, float]) -> dict[str, float]:
    return {label: round(value, PLACES) for label, value in probabilities.items()}
