"""Run an importer: check the request, read the clips, look for their media, write the clip list, summarise.

Nothing is copied, downloaded or decoded. The headers of media files are read for clips whose table states a length. A
clip without its media file is left out and listed in the summary, unless the user keeps such clips (features that were
extracted elsewhere need no media).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from featurecache.clips.class_counts import class_notes, count_clips
from featurecache.clips.clip_list import MEDIA_KINDS, Clip, with_media_found
from featurecache.clips.splitting import Splitting, parse_shares, split_clips, split_notes
from featurecache.clips.writing import write_clips
from featurecache.errors import ClipListError, DatasetError, suggest
from featurecache.files.publish import require_writable
from featurecache.importers import Importer, Option, Request, plain_split
from featurecache.importers.findings import Findings
from featurecache.importers.folders import contents
from featurecache.media.durations import length_differences


@dataclass(frozen=True)
class Target:
    """Where to write the clip list, and how to name its clips."""

    path: Path
    media_root: Path | None = None
    """Root of the media paths; by default the folder of the list, or the source if it lies outside that folder."""
    prefix: str = ""
    """Text before every id, so that lists of several datasets can be joined."""
    keep_missing: bool = False
    """Keep clips whose media files do not exist."""
    lenient: bool = False
    """Leave out rows with an unknown label or a repeated id; otherwise such a row is an error."""
    overwrite: bool = False
    splitting: Splitting | None = None
    """How to divide the clips anew, whatever splits the dataset has."""


@dataclass
class ImportSummary:
    """Result of an import, in numbers."""

    importer: Importer
    path: Path
    media_root: Path | None
    """None if the paths are relative to the folder of the list."""
    by_split: Counter[str] = field(default_factory=Counter)
    """Clips written, by split."""
    by_dataset: dict[str, Counter[str]] = field(default_factory=dict)
    """Dataset -> clips written by split."""
    read: Counter[str] = field(default_factory=Counter)
    """Clips in the tables, by split, including those without media."""
    by_label: dict[str, dict[str, Counter[str]]] = field(default_factory=dict)
    """Label task -> label -> clips by split; scores are not counted."""
    missing: list[str] = field(default_factory=list)
    """One absent media file per clip that lacks any."""
    kept_missing: bool = False
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Reason -> rows that gave no clip."""
    notes: list[str] = field(default_factory=list)
    lengths: Mapping[str, str] = field(default_factory=dict)
    """Clip id -> how the length of its file differs from the length in the table."""
    published: Mapping[str, int] = field(default_factory=dict)
    published_labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def splits(self) -> list[str]:
        """Splits of the tables, in the importer's order."""
        order = {split: index for index, split in enumerate(self.importer.splits)}
        return sorted(self.read, key=lambda split: (order.get(split, len(order)), split))

    def against_published(self) -> list[tuple[str, int, int]]:
        """Return (split or label, clips read, clips published) for every published number whose splits were read."""
        rows = []
        for name, count in self.published.items():
            splits = name.split("+")
            if all(split in self.read for split in splits):
                rows.append((name, sum(self.read[split] for split in splits), count))
        for name, labels in self.published_labels.items():
            splits = name.split("+")
            # Labels are counted over written clips only, so the numbers compare only if no clip was left out.
            if (self.missing and not self.kept_missing) or not all(split in self.by_split for split in splits):
                continue
            for label, count in labels.items():
                by_split = [task_labels[label] for task_labels in self.by_label.values() if label in task_labels]
                rows.append((f"{name} {label}", sum(counts[split] for counts in by_split for split in splits), count))
        return rows


def import_dataset(
    importer: Importer,
    request: Request,
    target: Target,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> ImportSummary:
    """Read a dataset and write its clip list; `advance` receives (files read, all files).

    Raises:
        DatasetError: the importer lacks the option, split or fold; the folder has another layout; a label is outside
            the vocabulary; there is no clip, or no media file of any clip.
        ClipListError: the list exists already, would be invalid, or has fewer clips or groups than splits.
        WriteError: the list cannot be written.
    """
    require_writable(target.path)
    request = _checked_request(importer, request)
    _refuse_existing(target)
    findings = Findings(advance)
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
        of_splits = f" of split {', '.join(request.splits)}" if request.splits else ""
        raise DatasetError(str(request.source), expected=f"clips{of_splits}", got="none", problems=reasons)
    _refuse_splits_without_any(clips, importer, request, target)
    clips = _without_repetitions(clips, request.source, findings, lenient=target.lenient)
    resolved = with_media_found(clips)
    clips = list(resolved)
    present, missing = _split_by_media(clips)
    if not present and not target.keep_missing:
        raise DatasetError(
            str(request.source),
            expected=f"media of {len(clips)} clips",
            got="none of them",
            next_step="If the features were extracted elsewhere: --keep-missing. Looked for, among others:",
            problems=missing[:3],
        )
    written = [replace(clip, id=target.prefix + clip.id) for clip in (clips if target.keep_missing else present)]
    written, notes = _with_splits(written, importer, target)
    written = [clip for clip in written if not clip.split or request.wants(clip.split)]
    media_root = _media_root(target, request.source)
    write_clips(written, target.path, media_root)
    summary = ImportSummary(importer, target.path, media_root, missing=missing, kept_missing=target.keep_missing)
    with_media = {clip.id for clip in present}
    lost = [] if target.keep_missing else [clip for clip in clips if clip.id not in with_media]
    summary.read.update(clip.split or "" for clip in (*written, *lost))
    if not any(clip.split for clip in written):
        by_speaker = " --group speaker" if all(clip.speaker for clip in written) else ""
        notes.append(f"the clips have no splits; --split 70/15/15{by_speaker} divides them")
    summary.left_out, summary.notes = findings.left_out, [*findings.notes, *resolved.notices, *notes]
    summary.lengths = length_differences(written)
    summary.published = dict(importer.published) | findings.published
    summary.published_labels = dict(importer.published_labels) | findings.published_labels
    summary.by_split, summary.by_dataset, summary.by_label = count_clips(written)
    return summary


def _checked_request(importer: Importer, request: Request) -> Request:
    """Return the request with an absolute source and the default options and fold.

    Raises:
        DatasetError: the folder does not exist, or the importer lacks the split, fold or option.
    """
    if not request.source.exists():
        near = contents(request.source.parent) if request.source.parent.is_dir() else "no such folder"
        raise DatasetError(
            str(request.source), expected=f"a folder that is there ({importer.title})", got=f"nothing; there is {near}"
        )
    for split in request.splits:
        if importer.splits and not {split, plain_split(split)} & set(importer.splits):
            raise DatasetError(
                f"--split {split}",
                expected=", ".join(importer.splits),
                got="another",
                next_step=suggest(split, importer.splits).strip() or None,
            )
    if request.fold and not 1 <= request.fold <= importer.folds:
        expected = (
            f"a fold from 1 to {importer.folds}" if importer.folds else f"none, since {importer.title} has no folds"
        )
        raise DatasetError(f"--fold {request.fold}", expected=expected, got=str(request.fold))
    for name, value in request.options.items():
        if importer.any_option:
            break
        if name not in importer.options:
            expected = ", ".join(importer.options) or f"none, since {importer.name} has no options"
            raise DatasetError(
                f"--option {name}",
                expected=expected,
                got=name,
                next_step=suggest(name, importer.options).strip() or None,
            )
        choices = importer.options[name].choices
        if choices and value not in choices:
            raise DatasetError(f"--option {name}", expected=" or ".join(choices), got=repr(value))
    options = {name: option.default for name, option in importer.options.items()} | dict(request.options)
    fold = request.fold or (importer.default_fold if importer.folds else 0)
    return replace(request, source=Path(os.path.abspath(request.source)), options=options, fold=fold)


def _refuse_splits_without_any(clips: Sequence[Clip], importer: Importer, request: Request, target: Target) -> None:
    """Refuse a split by name where no clip has a split and none is made.

    Raises:
        DatasetError: so it is.
    """
    makes_splits = target.splitting is not None or importer.default_shares
    if request.splits and not makes_splits and not any(clip.split for clip in clips):
        raise DatasetError(
            f"--split {request.splits[0]}",
            expected=f"shares such as 70/15/15, since {importer.title} has no splits",
            got="the name of one",
        )


def _without_repetitions(clips: Sequence[Clip], source: Path, findings: Findings, *, lenient: bool) -> list[Clip]:
    """Return the first clip of every id.

    Raises:
        DatasetError: an id is repeated and the import is not lenient.
    """
    counts = Counter(clip.id for clip in clips)
    repeated = [f'"{clip_id}" {count} times' for clip_id, count in counts.items() if count > 1]
    if repeated and not lenient:
        raise DatasetError(
            str(source),
            expected="every clip once",
            got=f"{len(repeated)} ids repeated",
            next_step="If the first of each is the right one: --lenient.",
            problems=repeated,
        )
    first: dict[str, Clip] = {}
    for clip in clips:
        if clip.id in first:
            findings.leave_out("the clip came before", clip.id)
        else:
            first[clip.id] = clip
    return list(first.values())


def _split_by_media(clips: Sequence[Clip]) -> tuple[list[Clip], list[str]]:
    """Return the clips whose media files all exist, and one absent file for each other clip."""
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
    """Return the root of the media paths; None for the folder of the list itself."""
    folder = Path(os.path.abspath(target.path)).parent
    if target.media_root is not None:
        root = Path(os.path.abspath(target.media_root))
        return None if root == folder else root
    return None if source.is_relative_to(folder) else source if source.is_dir() else source.parent


def _refuse_existing(target: Target) -> None:
    if target.path.exists() and not target.overwrite:
        raise ClipListError(
            str(target.path), expected="a new file", got="one that is there", next_step="Replace it with --overwrite."
        )


def _with_splits(clips: Sequence[Clip], importer: Importer, target: Target) -> tuple[list[Clip], list[str]]:
    """Divide the clips as the user asks; where nothing names a split, as the importer proposes.

    Returns:
        The clips, and notes about the division and its classes.
    """
    splitting, made = target.splitting, bool(target.splitting)
    if splitting is None and importer.default_shares and not any(clip.split for clip in clips):
        splitting = Splitting(parse_shares(importer.default_shares))
        made = len(clips) >= len(splitting.shares)
    if splitting is None:
        return list(clips), class_notes(clips) if importer.default_shares else []
    if not made:
        return list(clips), ["too few clips to divide into splits", *class_notes(clips)]
    divided = split_clips(clips, splitting)
    return divided, [*split_notes(divided, splitting), *class_notes(divided)]


def options_text(options: Mapping[str, Option]) -> list[str]:
    """Return one line per option, for `fcache import NAME` without a source."""
    lines = []
    for name, option in options.items():
        choices = f" ({', '.join(option.choices)})" if option.choices else ""
        default = f" [{option.default}]" if option.default else ""
        lines.append(f"--option {name}=…{choices}{default}: {option.help}")
    return lines
