"""The clips that training draws from, kept in the run so that a resumed run is ready at once, and draws from the same.

Finding them takes the whole clip list and every commit record: which clips have features, which can answer a task.
That is done once; a run keeps the outcome, and going on reads no more of it than the clips that are drawn. The clips
that are scored are kept beside it, so that a changed list can be told by its clips.

    runs/perception/pool/
        clips.jsonl     what training needs of each clip
        held_out.jsonl  the same of each clip of the evaluation split
        index.npy       (2, N) int64: where each line begins, number of its dataset
        pool.json       tasks of each dataset, what is said at every start, sha256 of the other files; written last
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from featurecache.clips.clip_list import Clip, Question
from featurecache.files.jsonl import dump_lines, parse_object, require_objects
from featurecache.files.publish import make_folder, writing
from fusion_train.documents import read_document, write_document
from fusion_train.errors import CheckpointError

CLIPS, HELD_OUT, INDEX, ABOUT = "clips.jsonl", "held_out.jsonl", "index.npy", "pool.json"


@dataclass(frozen=True)
class Pool:
    """Clips, and by dataset: places in `clips` (ascending) and names of the tasks that some clip of it can answer."""

    clips: Sequence[Clip]
    places: Mapping[str, np.ndarray]
    tasks: Mapping[str, Sequence[str]]
    summary: Sequence[str] = field(default=(), compare=False)
    """Lines about the clips that are said at every start; of a pool that was kept."""

    @cached_property
    def sha256(self) -> str:
        """Of what training needs of each clip, in the order of the clips."""
        digest = hashlib.sha256()
        for clip in self.clips:
            digest.update(_line(clip))
        return digest.hexdigest()

    def save(self, folder: Path, held_out: Iterable[Clip] = (), summary: Sequence[str] = ()) -> None:
        """Write the pool; a reader sees all of it or none.

        Raises:
            WriteError: the disk is full or refuses.
        """
        make_folder(folder)
        with writing(folder):
            (folder / ABOUT).unlink(missing_ok=True)
            index = np.zeros((2, len(self.clips)), np.int64)
            for number, places in enumerate(self.places.values()):
                index[1, places] = number
            with (folder / CLIPS).open("wb") as file:
                for number, clip in enumerate(self.clips):
                    index[0, number] = file.tell()
                    file.write(_line(clip))
            with (folder / HELD_OUT).open("wb") as file:
                file.writelines(map(_line, held_out))
            np.save(folder / INDEX, index)
        digests = {name: _sha256(folder / name) for name in (CLIPS, HELD_OUT, INDEX)}
        tasks = {name: list(self.tasks[name]) for name in self.places}
        write_document(folder / ABOUT, {"tasks": tasks, "summary": list(summary), "sha256": digests})

    @classmethod
    def load(cls, folder: Path) -> Pool | None:
        """Read the pool of a folder, None where there is none; one of an earlier release counts as none.

        Raises:
            CheckpointError: damaged files.
        """
        if not (folder / ABOUT).is_file():
            return None
        next_step = f"Delete {folder}; it is made again from the clip list."
        about = read_document(folder / ABOUT, CheckpointError, "the pool of a run", next_step)
        if "sha256" not in about:
            return None
        for name, digest in about["sha256"].items():
            path = folder / name
            if not path.is_file() or _sha256(path) != digest:
                raise CheckpointError(
                    str(path),
                    expected=f"sha256 {digest[:12]}…",
                    got="other bytes" if path.is_file() else "no file",
                    next_step=next_step,
                )
        begins, datasets = np.load(folder / INDEX)
        places = {name: np.flatnonzero(datasets == number) for number, name in enumerate(about["tasks"])}
        pool = cls(KeptClips(folder / CLIPS, begins), places, about["tasks"], about["summary"])
        pool.__dict__["sha256"] = about["sha256"][CLIPS]
        return pool


def kept_rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """What a pool keeps of each clip that is drawn (`CLIPS`) or scored (`HELD_OUT`)."""
    return require_objects(folder / name, CheckpointError)


def rows_of(clips: Iterable[Clip]) -> Iterator[dict[str, Any]]:
    """What a pool would keep of each of these clips, as it would be read back."""
    return (parse_object(_line(clip)) for clip in clips)


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


def _line(clip: Clip) -> bytes:
    return dump_lines([_row(clip)])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _row(clip: Clip) -> dict[str, Any]:
    questions = [[one.task, one.answer, one.question] for one in clip.questions]
    row = {
        "id": clip.id,
        "text": clip.text,
        "split": clip.split,
        "dataset": clip.dataset,
        "person": clip.person,
        "labels": clip.labels,
        "responses": clip.responses,
        "questions": questions,
    }
    return {name: value for name, value in row.items() if value}


def _clip(row: dict[str, Any]) -> Clip:
    questions = tuple(Question(*one) for one in row.pop("questions", ()))
    return Clip(**row, questions=questions)
