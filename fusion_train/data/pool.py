"""The clips that training draws from, kept in the run so that a resumed run is ready at once.

Finding them takes the whole clip list and every commit record: which clips have features, which can answer a task.
That is done once; a run keeps the outcome, and going on reads no more of it than the clips that are drawn. What the
pool was made from (clip list, settings, fingerprints) is its key: with another key it is made anew.

    runs/perception/pool/
        clips.jsonl    what training needs of each clip
        index.npy      (2, N) int64: where each line begins, number of its dataset
        pool.json      key, datasets and the tasks of each; written last
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from featurecache.clips import Clip, Question
from featurecache.jsonl import dump_lines, parse_object
from featurecache.store.publish import make_folder, replace_bytes


@dataclass(frozen=True)
class Pool:
    """Clips, and by dataset: places in `clips` (ascending) and names of the tasks that some clip of it can answer."""

    clips: Sequence[Clip]
    places: Mapping[str, np.ndarray]
    tasks: Mapping[str, Sequence[str]]

    def save(self, folder: Path, key: Mapping[str, Any]) -> None:
        """Write the pool; a reader sees all of it or none."""
        make_folder(folder)
        (folder / "pool.json").unlink(missing_ok=True)
        index = np.zeros((2, len(self.clips)), np.int64)
        for number, places in enumerate(self.places.values()):
            index[1, places] = number
        with (folder / "clips.jsonl").open("wb") as file:
            for number, clip in enumerate(self.clips):
                index[0, number] = file.tell()
                file.write(dump_lines([_row(clip)]))
        np.save(folder / "index.npy", index)
        said = {"key": key, "tasks": {name: list(self.tasks[name]) for name in self.places}}
        replace_bytes(folder / "pool.json", (json.dumps(said, indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: Path, key: Mapping[str, Any]) -> Pool | None:
        """The pool of a folder, or None where there is none of this key."""
        if not (folder / "pool.json").is_file():
            return None
        said = json.loads((folder / "pool.json").read_text())
        if said["key"] != json.loads(json.dumps(key)):
            return None
        begins, datasets = np.load(folder / "index.npy")
        places = {name: np.flatnonzero(datasets == number) for number, name in enumerate(said["tasks"])}
        return cls(KeptClips(folder / "clips.jsonl", begins), places, said["tasks"])


class KeptClips(Sequence[Clip]):
    """Clips of a pool's file, read when asked for."""

    def __init__(self, file: Path, begins: np.ndarray) -> None:
        with file.open("rb") as opened:
            self._lines = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        self._begins = begins

    def __len__(self) -> int:
        return len(self._begins)

    @overload
    def __getitem__(self, place: int) -> Clip: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Clip]: ...
    def __getitem__(self, place: int | slice) -> Clip | Sequence[Clip]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        begin = int(self._begins[place])
        line = self._lines[begin : self._lines.find(b"\n", begin)]
        return _clip(parse_object(line))


def _row(clip: Clip) -> dict[str, Any]:
    questions = [[one.task, one.answer, one.question] for one in clip.questions]
    row = {"id": clip.id, "text": clip.text, "split": clip.split, "dataset": clip.dataset, "labels": clip.labels,
           "responses": clip.responses, "questions": questions}  # fmt: skip
    return {name: value for name, value in row.items() if value}


def _clip(row: dict[str, Any]) -> Clip:
    questions = tuple(Question(*one) for one in row.pop("questions", ()))
    return Clip(**row, questions=questions)
