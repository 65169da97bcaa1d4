"""Synthetic datasets in the real layouts: invented rows and media of a few bytes, written anew for every test."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featurecache.importers import Request, find_importer
from featurecache.importers.importing import ImportSummary, Target, import_dataset

Rows = Sequence[Sequence[object]]
Content = str | Rows | Mapping[str, Any]
"""Text; rows of a table (csv or xlsx, by the name's ending); a document for a .json (`{"": [...]}` is a list)."""


@dataclass(frozen=True)
class DatasetFixture:
    """One dataset of few clips, and what must come out of it."""

    importer: str
    files: Mapping[str, Content]
    media: Sequence[str]
    """Every file of media that a clip has."""
    num_clips: int
    expected: Mapping[str, Mapping[str, object]]
    """Clip id -> parts of its line in the clip list, paths relative to the dataset."""
    needed: str
    """A file without which nothing can be read."""
    bad_label: tuple[str, str, str] | None = None
    """(file, text, other text): with it, a label is outside the vocabulary."""
    twice: str = ""
    """A file whose last row, doubled, names a clip twice."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Reason -> rows."""
    options: Mapping[str, str] = field(default_factory=dict)
    fold: int = 0
    without_needed: int | None = None
    """How many clips are left without the needed file; None where that is an error."""
    lost_with_first: int = 1
    """How many clips need the first of the media."""
    clips_are_files: bool = False
    """Whether the importer lists the media files themselves, so that no clip can lack its media."""

    def build(self, root: Path, files: Mapping[str, Content] | None = None) -> Path:
        """Write it below `root`; return what an importer is given."""
        for name, content in (self.files if files is None else files).items():
            write(root / name, content)
        for name in self.media:
            write(root / name, f"media of {name}")
        return root / self.needed if self.importer == "csv" else root

    def edited(self, name: str, old: str, new: str) -> dict[str, Content]:
        """The files with a text replaced in one of them, first found."""
        content = self.files[name]
        if isinstance(content, str):
            assert old in content
            changed: Content = content.replace(old, new, 1)
        elif isinstance(content, Mapping):
            dumped = json.dumps(content)
            assert old in dumped
            changed = json.loads(dumped.replace(old, new, 1))
        else:
            assert any(old == cell for row in content for cell in row), old
            changed = [[new if cell == old else cell for cell in row] for row in content]
        return {**self.files, name: changed}

    def doubled(self) -> dict[str, Content]:
        """The files with the last row of `twice` written again."""
        content = self.files[self.twice]
        if isinstance(content, str):
            return {**self.files, self.twice: content + content.rstrip("\n").rsplit("\n", 1)[-1] + "\n"}
        return {**self.files, self.twice: [*content, content[-1]]}


def write(path: Path, content: Content) -> None:
    """Write one file in the form that its ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif isinstance(content, Mapping):
        path.write_text(json.dumps(content.get("", content)), encoding="utf-8")
    elif path.suffix == ".xlsx":
        from openpyxl import Workbook

        book = Workbook()
        for row in content:
            book.active.append(list(row))
        book.save(path)
    else:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(content)
        path.write_text(text.getvalue(), encoding="utf-8")


def run(
    fixture: DatasetFixture, source: Path, out: Path, splits: tuple[str, ...] = (), **target: object
) -> ImportSummary:
    """Import a synthetic dataset as the command line does."""
    request = Request(source, splits, fixture.fold, dict(fixture.options))
    return import_dataset(find_importer(fixture.importer), request, Target(out, **target))  # type: ignore[arg-type]


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of a clip list by id."""
    return {row["id"]: row for row in map(json.loads, path.read_text("utf-8").splitlines())}
