"""What is the same for every importer: check what is asked, read, look for the media, write the list, sum up.

Nothing is copied, downloaded or decoded; headers are read of clips whose table says how long they are. A clip whose
media file is not there is left out and named in the summary, unless it is to be kept (features extracted elsewhere need
no media).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from featurecache.clips.clip_list import MEDIA_KINDS, Clip, with_media_found
from featurecache.clips.writing import write_clips
from featurecache.errors import ClipListError, DatasetError, suggest
from featurecache.files.publish import require_writable
from featurecache.importers import Importer, Option, Request, plain_split
from featurecache.importers.findings import Findings
from featurecache.importers.folders import contents
from featurecache.media.durations import length_differences


@dataclass(frozen=True)
class Target:
    """Where the list goes and how its clips are named."""

    path: Path
    media_root: Path | None = None
    """Folder that media paths are relative to; by default the list's own, or the source where that lies elsewhere."""
    prefix: str = ""
    """Put before every id, so that lists of several datasets can be joined."""
    keep_missing: bool = False
    lenient: bool = False
    """Leave rows out whose label is unknown or whose clip came before, where otherwise nothing would be written."""
    overwrite: bool = False


@dataclass
class ImportSummary:
    """What came out of an import."""

    importer: Importer
    path: Path
    media_root: Path | None
    """None where paths are relative to the list itself."""
    by_split: Counter[str] = field(default_factory=Counter)
    """Clips written."""
    by_dataset: dict[str, Counter[str]] = field(default_factory=dict)
    """Dataset -> clips written by split."""
    read: Counter[str] = field(default_factory=Counter)
    """Clips that the tables name, missing media included."""
    by_label: dict[str, dict[str, Counter[str]]] = field(default_factory=dict)
    """Label task -> label -> clips by split; scores are not counted."""
    missing: list[str] = field(default_factory=list)
    """Media that are not there, one a clip."""
    kept_missing: bool = False
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    lengths: Mapping[str, str] = field(default_factory=dict)
    """How the length of a clip's file differs from what its table says, by clip id."""
    published: Mapping[str, int] = field(default_factory=dict)
    published_labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def splits(self) -> list[str]:
        """Splits of the tables, in the importer's order."""
        order = {split: place for place, split in enumerate(self.importer.splits)}
        return sorted(self.read, key=lambda split: (order.get(split, len(order)), split))

    def against_published(self) -> list[tuple[str, int, int]]:
        """(split or label, clips read, clips published), for every published count whose splits were read."""
        rows = []
        for name, count in self.published.items():
            parts = name.split("+")
            if all(part in self.read for part in parts):
                rows.append((name, sum(self.read[part] for part in parts), count))
        for name, labels in self.published_labels.items():
            parts = name.split("+")
            if (self.missing and not self.kept_missing) or not all(part in self.by_split for part in parts):
                continue
            for label, count in labels.items():
                found = [each[label] for each in self.by_label.values() if label in each]
                rows.append((f"{name} {label}", sum(one[part] for one in found for part in parts), count))
        return rows


def import_dataset(importer: Importer, request: Request, target: Target) -> ImportSummary:
    """Read a dataset and write its clip list.

    Raises:
        DatasetError: an option, split or fold that the importer does not have, a folder in another layout, a label
            outside the vocabulary, no clip at all, or no media file of any clip.
        ClipListError: the list is there already, or would not be valid.
        WriteError: it cannot be written.
    """
    require_writable(target.path)
    request = _checked(importer, request)
    findings = Findings()
    clips = [clip for clip in importer.read(request, findings) if not clip.split or request.wants(clip.split)]
    if findings.unknown and not target.lenient:
        raise DatasetError(
            str(request.source),
            expected="labels of the dataset's vocabulary",
            got=f"{len(findings.unknown)} others",
            next_step="If they are to be left out: --lenient.",
            problems=findings.unknown,
        )
    if not clips:
        reasons = [f"{len(rows)} rows: {reason}" for reason, rows in findings.left_out.items()]
        asked = f" of split {', '.join(request.splits)}" if request.splits else ""
        raise DatasetError(str(request.source), expected=f"clips{asked}", got="none", problems=reasons)
    clips = _each_once(clips, request.source, findings, lenient=target.lenient)
    listed = with_media_found(clips)
    clips = list(listed)
    present, missing = _look_for_media(clips)
    if not present and not target.keep_missing:
        raise DatasetError(
            str(request.source),
            expected=f"media of {len(clips)} clips",
            got="none of them",
            next_step="If the features were extracted elsewhere: --keep-missing. Looked for, among others:",
            problems=missing[:3],
        )
    kept = clips if target.keep_missing else present
    named = [replace(clip, id=target.prefix + clip.id) for clip in kept]
    media_root = _media_root(target, request.source)
    _write(named, target, media_root)
    summary = ImportSummary(importer, target.path, media_root, missing=missing, kept_missing=target.keep_missing)
    summary.read.update(clip.split or "" for clip in clips)
    summary.left_out, summary.notes = findings.left_out, [*findings.notes, *listed.notices]
    summary.lengths = length_differences(named)
    summary.published = dict(importer.published) | findings.published
    summary.published_labels = dict(importer.published_labels) | findings.published_labels
    _count(summary, named)
    return summary


def _checked(importer: Importer, request: Request) -> Request:
    """Fill in defaults.

    Raises:
        DatasetError: no such folder, split, fold or option.
    """
    if not request.source.exists():
        near = contents(request.source.parent) if request.source.parent.is_dir() else "no such folder"
        raise DatasetError(
            str(request.source), expected=f"the folder of {importer.title}", got=f"nothing; there is {near}"
        )
    for split in request.splits:
        if importer.splits and not {split, plain_split(split)} & set(importer.splits):
            near = suggest(split, importer.splits).strip() or None
            raise DatasetError(f"--split {split}", expected=", ".join(importer.splits), got="another", next_step=near)
    if request.fold and not 1 <= request.fold <= importer.folds:
        has = f"a fold from 1 to {importer.folds}" if importer.folds else f"none, since {importer.title} has no folds"
        raise DatasetError(f"--fold {request.fold}", expected=has, got=str(request.fold))
    for name, value in request.options.items():
        if importer.any_option:
            break
        if name not in importer.options:
            has = ", ".join(importer.options) or f"none, since {importer.name} has no options"
            near = suggest(name, importer.options).strip() or None
            raise DatasetError(f"--option {name}", expected=has, got=name, next_step=near)
        choices = importer.options[name].choices
        if choices and value not in choices:
            raise DatasetError(f"--option {name}", expected=" or ".join(choices), got=repr(value))
    options = {name: each.default for name, each in importer.options.items()} | dict(request.options)
    fold = request.fold or (importer.default_fold if importer.folds else 0)
    return replace(request, source=Path(os.path.abspath(request.source)), options=options, fold=fold)


def _each_once(clips: Sequence[Clip], source: Path, findings: Findings, *, lenient: bool) -> list[Clip]:
    """Return the first clip of every id.

    Raises:
        DatasetError: an id comes again, and rows may not be left out.
    """
    times = Counter(clip.id for clip in clips)
    twice = [f'"{clip_id}" {count} times' for clip_id, count in times.items() if count > 1]
    if twice and not lenient:
        raise DatasetError(
            str(source),
            expected="every clip once",
            got=f"{len(twice)} ids repeated",
            next_step="If the first of each is the right one: --lenient.",
            problems=twice,
        )
    first: dict[str, Clip] = {}
    for clip in clips:
        if clip.id in first:
            findings.leave_out("the clip came before", clip.id)
        else:
            first[clip.id] = clip
    return list(first.values())


def _look_for_media(clips: Sequence[Clip]) -> tuple[list[Clip], list[str]]:
    """Return the clips with all of their media, and of each other one the file that is not there."""
    present, missing = [], []
    for clip in clips:
        files = [path for kind in MEDIA_KINDS if (path := getattr(clip, kind)) is not None]
        absent = next((path for path in files if not path.is_file()), None)
        if absent is None:
            present.append(clip)
        else:
            missing.append(f"{clip.id}: {absent}")
    return present, missing


def _media_root(target: Target, source: Path) -> Path | None:
    """Return None for the list's own folder."""
    folder = Path(os.path.abspath(target.path)).parent
    if target.media_root is not None:
        root = Path(os.path.abspath(target.media_root))
        return None if root == folder else root
    return None if source.is_relative_to(folder) else source if source.is_dir() else source.parent


def _write(clips: Sequence[Clip], target: Target, media_root: Path | None) -> None:
    if target.path.exists() and not target.overwrite:
        raise ClipListError(
            str(target.path), expected="a new file", got="one that is there", next_step="Replace it with --overwrite."
        )
    write_clips(clips, target.path, media_root)


def _count(summary: ImportSummary, clips: Sequence[Clip]) -> None:
    for clip in clips:
        split = clip.split or ""
        summary.by_split[split] += 1
        summary.by_dataset.setdefault(clip.dataset or "", Counter())[split] += 1
        for task, value in clip.labels.items():
            if isinstance(value, int | float):
                continue
            for label in value if isinstance(value, list) else [value]:
                summary.by_label.setdefault(task, {}).setdefault(label, Counter())[split] += 1


def options_text(options: Mapping[str, Option]) -> list[str]:
    """One line an option, for `fcache import NAME` without a source."""
    lines = []
    for name, option in options.items():
        choices = f" ({', '.join(option.choices)})" if option.choices else ""
        default = f" [{option.default}]" if option.default else ""
        lines.append(f"--option {name}=…{choices}{default}: {option.help}")
    return lines
