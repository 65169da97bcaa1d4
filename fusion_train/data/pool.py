"""The clips that training draws from, kept in the folder of a run.

Finding these clips reads the whole clip list and every commit record: which clips have features, which answer a task.
This is done once per run. A resumed run reads the kept clips, so that it starts at once and draws from the same clips;
of their file it reads only the lines of the clips that are drawn. The validation clips are kept too, so that a changed
clip list can be reported clip by clip. Imports no torch.

    runs/perception/pool/
        clips.jsonl     each clip that is drawn from, with what training needs of it
        held_out.jsonl  the same for each clip of the evaluation split
        index.npy       (2, N) int64: where each line begins, number of its dataset
        pool.json       tasks of each dataset, notices for every start, sha256 of the other files; written last
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

from featurecache.clips.clip_list import Clip, Question, load_clips
from featurecache.files.hashing import file_sha256
from featurecache.files.jsonl import dump_lines, parse_object, require_objects
from featurecache.files.publish import make_folder, writing
from fusion_train.config import Config
from fusion_train.documents import read_document, write_document
from fusion_train.errors import CheckpointError

CLIPS, HELD_OUT, INDEX, ABOUT = "clips.jsonl", "held_out.jsonl", "index.npy", "pool.json"
CLIP_LIST = "clips"
"""Name of the clip list in `list_hashes`."""


@dataclass(frozen=True)
class Pool:
    """The clips to draw from, by dataset."""

    clips: Sequence[Clip]
    places: Mapping[str, np.ndarray]
    """Dataset -> places of its clips in `clips`, ascending."""
    tasks: Mapping[str, Sequence[str]]
    """Dataset -> names of the tasks that some clip of it answers."""
    summary: Sequence[str] = field(default=(), compare=False)
    """Lines about the clips that are printed at every start; only a pool that was read from a run has them."""

    @cached_property
    def sha256(self) -> str:
        """sha256 of the lines of `clips.jsonl`."""
        digest = hashlib.sha256()
        for clip in self.clips:
            digest.update(_line(clip))
        return digest.hexdigest()

    def save(self, folder: Path, held_out: Iterable[Clip] = (), summary: Sequence[str] = ()) -> None:
        """Write the pool; a reader sees either all of it or no pool.

        Args:
            held_out: the clips of the evaluation split.
            summary: lines that are printed at every start.

        Raises:
            WriteError: the disk is full, or refuses to write.
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
        """Read the pool of a folder; None if there is no pool, or one of an earlier release.

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
        line_starts, datasets = np.load(folder / INDEX)
        places = {name: np.flatnonzero(datasets == number) for number, name in enumerate(about["tasks"])}
        pool = cls(StoredClips(folder / CLIPS, line_starts), places, about["tasks"], about["summary"])
        pool.__dict__["sha256"] = about["sha256"][CLIPS]
        return pool


def kept_rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """Read the rows of a pool's file `CLIPS` or `HELD_OUT`."""
    return require_objects(folder / name, CheckpointError)


def rows_of(clips: Iterable[Clip]) -> Iterator[dict[str, Any]]:
    """Return the rows that a pool's file would hold for these clips, as `kept_rows` would read them."""
    return (parse_object(_line(clip)) for clip in clips)


class StoredClips(Sequence[Clip]):
    """The clips of a pool's file; a clip is read when it is accessed."""

    def __init__(self, file: Path, line_starts: np.ndarray) -> None:
        with file.open("rb") as stream:
            self._lines = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._line_starts = line_starts

    def __len__(self) -> int:
        return len(self._line_starts)

    @overload
    def __getitem__(self, place: int) -> Clip: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Clip]: ...
    def __getitem__(self, place: int | slice) -> Clip | Sequence[Clip]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        start = int(self._line_starts[place])
        line = self._lines[start : self._lines.find(b"\n", start)]
        return _clip(parse_object(line))


def _line(clip: Clip) -> bytes:
    return dump_lines([_row(clip)])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _row(clip: Clip) -> dict[str, Any]:
    questions = [[question.task, question.answer, question.question] for question in clip.questions]
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
    questions = tuple(Question(*fields) for fields in row.pop("questions", ()))
    return Clip(**row, questions=questions)


def list_hashes(config: Config, clips: str | Path) -> dict[str, str]:
    """Return name -> sha256 of the files that decide which clips a run trains on and is scored by.

    They are the clip list (`CLIP_LIST`) and the configuration's exclusions, corrections and zero image.

    Raises:
        ClipListError: a file is missing.
    """
    files = {CLIP_LIST: Path(clips)}
    files |= {name: Path(clips).parent / name for name in (*config.data.exclude, *config.data.corrections)}
    if (zero_image := config.features.zero_image) is not None and config.features.absent == "visible":
        files[zero_image] = Path(zero_image) if Path(zero_image).is_file() else Path(clips).parent / zero_image
    for path in files.values():
        if not path.is_file():
            load_clips(path)  # raises the error of a clip list that is missing
    return {name: file_sha256(path) for name, path in files.items()}
