"""Importer of a folder of recordings and pictures, with labels from a table or from the names of folders.

    fcache import folder clips/                          labels are the names of the folders: clips/happy/a.mp4
    fcache import folder clips/ --labels labels.csv      a table: file,label and, where known, speaker,text,split,…

A clip is one file; its id is the path below the folder without the ending. A table names files by this path or by the
file name, with or without the ending. The headers of all files are read, so that files without sound or picture are
named before an extraction; nothing is decoded.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from featurecache.clips.clip_list import Clip
from featurecache.clips.clip_rows import SCORE_SUFFIX
from featurecache.clips.media_files import MEDIA_SUFFIXES, file_clip, media_files
from featurecache.clips.splitting import DEFAULT_SHARES
from featurecache.errors import DatasetError, suggest
from featurecache.importers import SPLITS, Importer, Option, Request, plain_split
from featurecache.importers.findings import EMPTY_CELLS, Findings, score
from featurecache.importers.folders import contents
from featurecache.importers.tables import Row, header_of, read_table
from featurecache.media.streams import NO_STREAMS, Streams, streams_of

FILE_COLUMNS = ("file", "filename", "file_name", "path", "video", "audio", "image", "clip", "name", "id")
LABEL_COLUMNS = ("label", "class", "category", "emotion")
CLIP_COLUMNS = ("speaker", "dialogue", "session", "person", "dataset", "text", "split")
LABEL_PREFIX = "labels."
HEADER_LIMIT_S = 20.0
THREADS = 8
MAX_NAMED = 3


def read(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield one clip per media file, in the order of their paths.

    Raises:
        DatasetError: no folder or no media in it, two files of one name, or a table without the needed columns, with
            two rows for one file, or of other files.
    """
    folder, table = request.source, _table_path(request)
    files = media_files(folder) if folder.is_dir() else []
    if not files:
        got = contents(folder)
        raise DatasetError(str(folder), expected="media files (" + " ".join(MEDIA_SUFFIXES) + ")", got=got)
    files_by_id = _by_id(folder, files)
    keys = _keys_of_table(table, request, files_by_id, findings) if table else _keys_of_folders(files_by_id)
    if not table and not any("labels" in values for values in keys.values()):
        findings.note("no labels: name a table with --labels, or put the clips of each class in a folder of its own")
    clips = [replace(file_clip(path, clip_id), **keys.get(clip_id, {})) for clip_id, path in files_by_id.items()]
    yield from _with_streams(clips, findings)


def _by_id(folder: Path, files: Sequence[Path]) -> dict[str, Path]:
    """Return the files by clip id.

    Raises:
        DatasetError: two files differ by their ending only.
    """
    by_id: dict[str, list[Path]] = {}
    for path in files:
        by_id.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    repeated = [" and ".join(path.name for path in paths) for paths in by_id.values() if len(paths) > 1]
    if repeated:
        raise DatasetError(
            str(folder),
            expected="one file of each name",
            got=f"{len(repeated)} name{'s' * (len(repeated) > 1)} with several",
            next_step="Move the others away. If two files are sound and picture of one clip: `fcache import csv`.",
            problems=repeated,
        )
    return {clip_id: paths[0] for clip_id, paths in by_id.items()}


# Labels from folders


def _keys_of_folders(files_by_id: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Return the keys of clips that their folders name: `clips/train/happy/a.mp4` is a happy clip of split train.

    Folders are classes only if there are several: in `clips/wav/` the name says nothing.
    """
    keys: dict[str, dict[str, Any]] = {}
    for clip_id in files_by_id:
        *folders, _ = clip_id.split("/")
        split = plain_split(folders[0]) if folders else ""
        if split in SPLITS:
            folders = folders[1:]
            keys.setdefault(clip_id, {})["split"] = split
        if folders:
            keys.setdefault(clip_id, {})["labels"] = {"emotion": folders[-1]}
    classes = {values["labels"]["emotion"] for values in keys.values() if "labels" in values}
    if len(classes) == 1 and all("labels" in keys.get(clip_id, {}) for clip_id in files_by_id):
        for values in keys.values():
            del values["labels"]
    return keys


# Labels from a table


def _table_path(request: Request) -> Path | None:
    """Return the path of the table: as it was given, or inside the folder where only that one exists."""
    if not request.options["labels"]:
        return None
    path = Path(request.options["labels"])
    inside = request.source / path
    return inside if inside.is_file() and not path.is_file() else path


def _keys_of_table(
    path: Path, request: Request, files_by_id: Mapping[str, Path], findings: Findings
) -> dict[str, dict[str, Any]]:
    """Return the keys of clips that the rows of a table give, by clip id."""
    header = header_of(path, request.encoding)
    task = request.options["task"]
    file_column = request.options["file"] or _first(header, FILE_COLUMNS)
    label_column = request.options["label"] or _first(header, (task, *LABEL_COLUMNS))
    tasks = {name: name.removeprefix(LABEL_PREFIX) for name in header if name.startswith(LABEL_PREFIX)}
    tasks |= {label_column: task} if label_column else {}
    _require_columns(path, header, file_column, tasks)
    others = {name: name.strip().lower() for name in header if name.strip().lower() in CLIP_COLUMNS}
    unread = [name for name in header if name.strip() and name not in (file_column, *tasks, *others)]
    if unread:
        findings.note(f"{path.name}: columns that are not read: {', '.join(unread)}")
    rows = read_table(path, {name: (name,) for name in (file_column, *tasks, *others)}, encoding=request.encoding)
    clip_ids = _ids_by_name(files_by_id)
    keys: dict[str, dict[str, Any]] = {}
    problems = []
    for row in rows:
        candidates = clip_ids.get(row[file_column].removeprefix("./").replace("\\", "/"), [])
        if not candidates:
            findings.leave_out(f"no file of this name in {request.source.name}", row[file_column] or row.place)
        elif len(candidates) > 1:
            problems.append(f"{row.place}: {row[file_column]} may be {' or '.join(candidates[:MAX_NAMED])}")
        elif candidates[0] in keys:
            problems.append(f"{row.place}: a second row for {row[file_column]}")
        else:
            keys[candidates[0]] = _keys_of_row(row, tasks, others)
    if problems:
        raise DatasetError(str(path), expected="one row per file", got=f"{len(problems)} others", problems=problems)
    if not keys:
        there, named = next(iter(files_by_id.values())).name, rows[0][file_column] if rows else "no row"
        raise DatasetError(
            str(path),
            expected=f"names of files in {request.source}, such as {there}",
            got=named,
            next_step="If another column has them: --option file=COLUMN.",
        )
    return keys


def _require_columns(path: Path, header: Sequence[str], file_column: str, tasks: Mapping[str, str]) -> None:
    """Raise DatasetError unless the table has the columns of files and labels."""
    for option, column, known in (
        ("file", file_column, FILE_COLUMNS),
        *(("label", name, LABEL_COLUMNS) for name in tasks or [""]),
    ):
        if column not in header or not column:
            near = suggest(column, header).strip() if column else ""
            step = f"Name it: --option {option}=COLUMN, or add a header line, such as file,label."
            raise DatasetError(
                str(path),
                expected=f"a column {column or ' or '.join(known)}",
                got="columns " + (", ".join(header) or "none"),
                next_step=f"{near} {step}".strip(),
            )


def _first(header: Sequence[str], names: Sequence[str]) -> str:
    """Return the column of the header whose name is the first of `names` that it has; empty if it has none."""
    by_name = {column.strip().lower(): column for column in reversed(header)}
    return next((by_name[name] for name in names if name in by_name), "")


def _ids_by_name(files_by_id: Mapping[str, Path]) -> dict[str, list[str]]:
    """Return the clip ids by every name that a table may use for their file."""
    by_name: dict[str, list[str]] = {}
    for clip_id, path in files_by_id.items():
        for name in dict.fromkeys((clip_id + path.suffix, clip_id, path.name, path.stem)):
            by_name.setdefault(name, []).append(clip_id)
    # A whole path names one file, even if it is also the name of a file in a deeper folder.
    return by_name | {
        name: [clip_id] for clip_id, path in files_by_id.items() for name in (clip_id, clip_id + path.suffix)
    }


def _keys_of_row(row: Row, tasks: Mapping[str, str], others: Mapping[str, str]) -> dict[str, Any]:
    labels: dict[str, Any] = {}
    for column, task in tasks.items():
        value: Any = score(row[column]) if task.endswith(SCORE_SUFFIX) else row[column]
        if value is not None and str(value).lower() not in EMPTY_CELLS:
            labels[task] = value
    keys: dict[str, Any] = {name: row[column] for column, name in others.items() if row[column]}
    if "split" in keys:
        keys["split"] = plain_split(keys["split"])
    return keys | ({"labels": labels} if labels else {})


# What is in the files


def _with_streams(clips: Sequence[Clip], findings: Findings) -> Iterator[Clip]:
    """Yield the clips; a video file without a picture becomes the sound of its clip. Notes name what files lack."""
    lacking: dict[str, list[str]] = {"sound": [], "picture": []}
    unreadable = []
    with ThreadPoolExecutor(THREADS, thread_name_prefix="header") as pool:
        for number, (clip, streams) in enumerate(zip(clips, pool.map(_streams, clips), strict=True), start=1):
            findings.advance(number, len(clips))
            if streams == NO_STREAMS:
                unreadable.append(clip.id)
            elif clip.video is not None and not streams.picture:
                lacking["picture"].append(clip.id)
                clip = replace(clip, video=None, audio=clip.video)
            elif clip.video is not None and not streams.sound:
                lacking["sound"].append(clip.id)
            yield clip
    if unreadable:
        findings.note(f"{_named(unreadable)} no sound and no picture that can be read; extraction will record them")
    for what, ids in lacking.items():
        if ids:
            findings.note(f"{_named(ids)} no {what}")
    kinds = Counter(suffix for clip in clips for suffix in [_path(clip).suffix.lower()])
    findings.note("files: " + ", ".join(f"{count} {suffix}" for suffix, count in kinds.most_common()))


def _streams(clip: Clip) -> Streams:
    return Streams(False, True) if clip.image else streams_of(_path(clip), time.monotonic() + HEADER_LIMIT_S)


def _path(clip: Clip) -> Path:
    return clip.video or clip.audio or clip.image or Path()


def _named(ids: Sequence[str]) -> str:
    more = ", …" if len(ids) > MAX_NAMED else ""
    noun, verb = ("file", "has") if len(ids) == 1 else ("files", "have")
    return f"{len(ids)} {noun} ({', '.join(ids[:MAX_NAMED])}{more}) {verb}"


IMPORTER = Importer(
    name="folder",
    title="a folder of your own clips",
    read=read,
    layout=(
        "every video, audio file and picture in the folder and below it; a clip is one file",
        "--labels TABLE: csv, tsv or xlsx with a header: file,label and, where known, speaker,text,split,…",
        "without a table the names of the folders are the classes: clips/happy/a.mp4",
        "without splits (a column, or folders train/ val/ test/) they are made: --split 70/15/15",
    ),
    licence="as the clips' owner says.",
    splits=SPLITS,
    options={
        "labels": Option("table of the labels, one row per file"),
        "file": Option("its column of file names; by default " + ", ".join(FILE_COLUMNS[:5]) + ", …"),
        "label": Option("its column of labels; by default the task's name, " + ", ".join(LABEL_COLUMNS)),
        "task": Option("label task of that column", default="emotion"),
    },
    default_shares=DEFAULT_SHARES,
)
