"""Verify a store: every byte against its checksum, every file against the plan and the commit records.

The quick check covers plan, records, file sizes and shard indices; the full check covers every row too. Problems are
flipped bits, missing, torn, foreign and swapped shards, NaN and infinity, rows of zeros, clips recorded twice, and
files without a record. Nothing is changed; `repair` mends the damage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featurecache.errors import StoreError
from featurecache.explore.index_files import index_faults, index_files
from featurecache.files.publish import TEMPORARY_PREFIX
from featurecache.store.feature import feature_not_found
from featurecache.store.inspection import Inspection, Problem, inspect_feature, inspect_shard
from featurecache.store.layout import FEATURE_NAME, SCALES_ENDING, FeatureFolder
from featurecache.store.local import LocalStore
from featurecache.store.protocols import Status

MAX_LISTED = 5

Progress = Callable[[int, int], None]
"""Receives (shards done, shards in all)."""


@dataclass
class VerifyReport:
    """What was checked, and every problem of the store."""

    location: str
    quick: bool
    num_shards: int = 0
    num_rows: int = 0
    num_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def damage(self) -> list[Problem]:
        """Problems that make stored tokens wrong or unreadable."""
        return [problem for problem in self.problems if problem.damage]

    @property
    def notices(self) -> list[Problem]:
        """Problems that are no damage: unfinished work, leftovers, unusual content."""
        return [problem for problem in self.problems if not problem.damage]

    @property
    def exit_code(self) -> int:
        return 1 if self.damage else 0

    @property
    def verdict(self) -> str:
        """`sound` or the damage, and the notices, counted by kind."""
        counts = [
            f"{len(problems)} {title} ({_by_kind(problems)})"
            for title, problems in (("damaged", self.damage), ("to notice", self.notices))
            if problems
        ]
        return "; ".join([*([] if self.damage else ["sound"]), *counts])

    def __str__(self) -> str:
        checked = f"{self.num_shards} shards, {self.num_rows} rows"
        return f"{self.location}: {'quick check of ' if self.quick else ''}{checked}: {self.verdict}"


def _by_kind(problems: Sequence[Problem]) -> str:
    kinds = Counter(problem.kind for problem in problems)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


def verify_store(
    store: LocalStore,
    names: Sequence[str] | None = None,
    *,
    quick: bool = False,
    progress: Progress | None = None,
    index: Path | None = None,
) -> VerifyReport:
    """Verify the named features, by default all, and unless `quick` their similarity indices too.

    The indices lie beside the store, or in the folder `index`.

    Raises:
        StoreNotFoundError: no such feature.
        StoreError: the store lies behind a URL.
    """
    if store.is_mirror:
        raise StoreError(
            store.location,
            expected="a store in a folder to verify",
            got="a URL",
            next_step="Run `fcache verify` where it lies; reading checks every row as it comes.",
        )
    report = VerifyReport(store.location, quick)
    report.problems += root_problems(store)
    inspections = inspect_store(store, names)
    total = sum(len(inspection.records) for inspection in inspections)
    if progress:
        progress(0, total)
    for inspection in inspections:
        report.problems += inspection.problems
        for shard, record in sorted(inspection.records.items()):
            report.problems += inspect_shard(inspection, shard, quick=quick)
            report.num_shards += 1
            report.num_rows += int((record.columns["status"] == Status.OK).sum())
            report.num_bytes += sum(record.file_bytes)
            if progress:
                progress(report.num_shards, total)
        report.problems += _equal_tokens(inspection)
    if not quick:
        report.problems += index_problems(store, [inspection.name for inspection in inspections], index)
    return report


def index_problems(store: LocalStore, names: Sequence[str], index: Path | None = None) -> list[Problem]:
    """Return the problems of the similarity indices of some features; an index is derived from the store."""
    return [
        Problem("similarity", fault.feature, fault.message, path=fault.path, damage=fault.damage)
        for fault in index_faults(index_files(store.location, index), names)
    ]


def inspect_store(store: LocalStore, names: Sequence[str] | None = None) -> list[Inspection]:
    """Inspect the files of the named features, by default all, damaged or not.

    Raises:
        StoreNotFoundError: no such feature.
    """
    existing = feature_folders(store)
    for name in names or ():
        if name not in existing:
            raise feature_not_found(store.location, name, existing)
    return [inspect_feature(store.folder(name), name, store.format) for name in names or existing]


def feature_folders(store: LocalStore) -> list[str]:
    """Return the names of all features, including features whose spec is lost."""
    if not store.root.is_dir():
        return []
    names = (path.name for path in store.root.iterdir() if FEATURE_NAME.fullmatch(path.name))
    return sorted(name for name in names if FeatureFolder(store.root, name).side.is_dir())


def root_problems(store: LocalStore) -> list[Problem]:
    """Return the problems at the root of a store, outside its features."""
    problems = []
    expected = store.format.root_files()
    for file, data in expected.items():
        path = store.root / file
        if not path.is_file() or path.read_bytes() != data:
            created = path.is_file() or store.names  # otherwise the creation of the store was interrupted
            message = f"{file} is not that of a store of this format"
            problems.append(Problem("root", "", message, path=path, damage=bool(created)))
    features = set(feature_folders(store))
    for path in sorted(store.root.iterdir()):
        if path.name not in expected and path.name.removesuffix(SCALES_ENDING) not in features:
            kind = "temporary" if path.name.startswith(TEMPORARY_PREFIX) else "foreign"
            problems.append(Problem(kind, "", f"{path.name} is not of this store", path=path, damage=False))
    return problems


def _equal_tokens(inspection: Inspection) -> list[Problem]:
    """Report clips with equal tokens and different media: usually the encoder received empty input."""
    records = [record for _, record in sorted(inspection.records.items())]
    if not records:
        return []
    ok = np.concatenate([record.columns["status"] for record in records]) == Status.OK
    crc = np.concatenate([record.columns["crc32c"] for record in records]).astype(np.uint64)
    absmax = np.concatenate([record.columns["absmax"] for record in records]).view(np.uint32).astype(np.uint64)
    shards = np.concatenate([np.full(len(record), index) for index, record in enumerate(records)])
    slots = np.concatenate([np.arange(len(record)) for record in records])
    keys = (crc << np.uint64(32)) | absmax
    order = np.argsort(keys, kind="stable")
    order = order[ok[order]]
    if not order.size:
        return []
    problems = []
    starts = np.flatnonzero(np.concatenate([[True], np.diff(keys[order]) != 0]))
    ends = np.append(starts[1:], order.size)
    for begin, end in zip(starts[ends - starts > 1].tolist(), ends[ends - starts > 1].tolist(), strict=True):
        group = order[begin:end]
        clips = [records[shards[entry]].clip(int(slots[entry])) for entry in group.tolist()]
        ids = sorted({clip.id for clip in clips})
        if len({clip.source for clip in clips}) > 1 and len(ids) > 1:
            listed = ", ".join(ids[:MAX_LISTED]) + (", …" if len(ids) > MAX_LISTED else "")
            message = f"{len(ids)} clips have the same tokens though their media differ: {listed}"
            problems.append(Problem("twins", inspection.name, message, damage=False))
    return problems
