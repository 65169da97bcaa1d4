"""Stores at a URL (s3, gs, http, memory, …), read-only. Metadata is mirrored; a shard is fetched at its first read.

The mirror is a folder in the user's cache. Opening a store removes mirrored files that are outdated (another spec, a
repaired shard). fsspec transfers the files (`remote_files`); the mirror is read like a local store.

The cache of shards is bounded, shared by all processes of the machine, and valid after any crash. One process fetches a
shard while the others wait. A shard gets its name when it is complete and on the disk; a killed fetch leaves a
temporary file, which the next fetch removes. If the cache is full, the least recently used shards of all stores are
removed. A process that has a removed shard open or mapped can still read it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.errors import CorruptStoreError, StoreError, StoreNotFoundError
from featurecache.files.publish import TemporaryFile, make_folder, replace_bytes, sweep, writing
from featurecache.spec import Spec
from featurecache.store.feature import StoredFeature, Verify, feature_not_found
from featurecache.store.formats import formats_present, is_shard_of_any_format
from featurecache.store.layout import (
    FEATURE_NAME,
    RECORD_DIGITS,
    SCALES_ENDING,
    SEGMENT_DIGITS,
    FeatureFolder,
    numbered,
)
from featurecache.store.local import LocalStore
from featurecache.store.plan import ShardPlan, load_segment
from featurecache.store.records import MAX_RECORD_BYTES
from featurecache.store.remote_files import RemoteFiles
from featurecache.store.shard_files import OpenFile
from featurecache.store.shard_format import ShardFormat

LOCK_ENDING = ".lock"


class ShardCache:
    """A folder of mirrored stores, with an upper bound for the total size of their shards."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def open(self, path: Path, num_bytes: int, fetch: Callable[[TemporaryFile], None]) -> OpenFile:
        """Open a mirrored shard; fetch it first if the cache does not have it.

        Raises:
            WriteError: the disk is full or refuses.
            Exception: errors of `fetch`.
        """
        if (file := _opened(path, num_bytes)) is not None:
            return file
        with writing(path):
            make_folder(path.parent)
            with _locked(path.with_name(path.name + LOCK_ENDING)):
                return _opened(path, num_bytes) or self._fetched(path, fetch)

    def _fetched(self, path: Path, fetch: Callable[[TemporaryFile], None]) -> OpenFile:
        temporary = self.folder / "tmp"
        sweep(temporary)
        with TemporaryFile(temporary) as file:
            fetch(file)
            opened = OpenFile(file.path)  # before the file has its name: then another process may evict it
            file.replace(path)
        opened.path = path
        self._evict(path, opened.size)
        return opened

    def _evict(self, newest: Path, newest_bytes: int) -> None:
        """Remove the least recently used shards, but not `newest`, until the cache is within its bound."""
        shards = []
        for path in self.folder.glob("*/**/*"):
            with contextlib.suppress(FileNotFoundError):  # another process evicts too
                mirror = self.folder / path.relative_to(self.folder).parts[0]
                if path != newest and is_mirrored_shard(path, mirror):
                    shards.append((path.stat(), path))
        total = sum(stat.st_size for stat, _ in shards) + newest_bytes
        for stat, path in sorted(shards, key=lambda entry: entry[0].st_mtime):
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= stat.st_size


def default_cache_folder() -> Path:
    """Return the folder for shards of remote stores, by the XDG convention."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "featurecache" / "stores"


def is_mirrored_shard(path: Path, mirror: Path) -> bool:
    """Return whether a path below the mirror of a store is the file of a shard."""
    inside_feature = "/".join(path.relative_to(mirror).parts[1:])
    return is_shard_of_any_format(inside_feature) and path.is_file()


def _opened(path: Path, num_bytes: int) -> OpenFile | None:
    """Open a shard if the cache has it, and mark it as used now; return None otherwise."""
    with contextlib.suppress(FileNotFoundError):
        file = OpenFile(path)
        if file.size == num_bytes:
            os.utime(path)
            return file
    return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


MAX_TEXT_BYTES = 4 << 20
"""Maximum size of a spec or a root file."""
MAX_PLAN_BYTES = 1 << 30
"""Maximum total size of a feature's plan segments; ten million clips need this much."""


class RemoteStore(LocalStore):
    """A read-only store at a URL; implements `Store`."""

    is_mirror = True

    def __init__(
        self,
        location: str,
        verify: Verify,
        cache: Path | None,
        cache_bytes: int,
        options: Mapping[str, Any],
    ) -> None:
        self._arguments = (location, verify, cache, cache_bytes, options)
        self.files = RemoteFiles(location, options)
        self.cache = ShardCache(cache or default_cache_folder(), cache_bytes)
        mirror = self.cache.folder / hashlib.sha256(self.files.url.encode()).hexdigest()[:24]
        shard_format = self._detect_format()
        make_folder(mirror)
        super().__init__(str(mirror), shard_format, "r", verify)
        self.location = location
        self._remote_features: dict[str, RemoteFeature] = {}

    def __reduce__(self) -> tuple[object, ...]:
        return RemoteStore, self._arguments

    def _detect_format(self) -> ShardFormat:
        present = next(formats_present(lambda path: self.files.read(path, MAX_TEXT_BYTES) is not None), None)
        if present is not None:
            return present
        raise StoreNotFoundError(
            self.files.url, expected="a store", got="none at this URL", next_step="Check the URL and the access to it."
        )

    @property
    def names(self) -> list[str]:
        """Feature names, sorted. If the server lists no folders, only features that were opened before."""
        listed = self.files.listing("")
        if listed is None:
            return super().names
        specs = {f"{name}/{FeatureFolder.SPEC_PATH}": None for name in listed if FEATURE_NAME.fullmatch(name)}
        return sorted(path.split("/")[0] for path in self.files.read_all(specs, MAX_TEXT_BYTES))

    def __getitem__(self, name: str) -> RemoteFeature:
        """Open one feature for reading.

        Raises:
            StoreNotFoundError: no such feature; the nearest name is suggested.
            CorruptStoreError: a commit record is damaged.
            StoreError: the server does not answer, or refuses the request.
        """
        if name not in self._remote_features:
            if not FEATURE_NAME.fullmatch(name) or not self.mirror(name):
                raise feature_not_found(self.location, name, self.names)
            self._remote_features[name] = RemoteFeature(self, self.folder(name), name, self.spec(name))
        return self._remote_features[name]

    def mirror(self, name: str) -> bool:
        """Update the mirrored metadata of a feature. Return False if the store has no such feature."""
        folder = self.folder(name)
        spec = self.files.read(f"{name}/{FeatureFolder.SPEC_PATH}", MAX_TEXT_BYTES)
        if spec is None:
            return False
        if folder.spec.is_file() and folder.spec.read_bytes() != spec:
            for outdated in (folder.root, folder.root.with_name(name + SCALES_ENDING)):
                shutil.rmtree(outdated, ignore_errors=True)  # now another feature has this name
        self._mirror_file(folder.spec, spec)
        self._mirror_plan(folder)
        records = self.files.read_all(self._record_sizes(folder), MAX_RECORD_BYTES)
        for path, data in records.items():
            self._mirror_file(self.root / path, data)
        for shard in numbered(folder.records, RECORD_DIGITS):
            if self._below(folder.record(shard)) not in records:
                folder.record(shard).unlink(missing_ok=True)  # removed by a repair
        return True

    def mirror_new_records(self, folder: FeatureFolder) -> None:
        """Fetch the commit records that the mirror does not have yet."""
        sizes = {path: size for path, size in self._record_sizes(folder).items() if not (self.root / path).is_file()}
        for path, data in self.files.read_all(sizes, MAX_RECORD_BYTES).items():
            self._mirror_file(self.root / path, data)

    def _mirror_plan(self, folder: FeatureFolder) -> None:
        remaining_bytes = MAX_PLAN_BYTES
        for number in range(10**SEGMENT_DIGITS):
            data = self.files.read(self._below(folder.segment(number)), remaining_bytes)
            if data is None:
                return
            self._mirror_file(folder.segment(number), data)
            load_segment(folder.segment(number), number)  # ends the loop if a server returns something for every name
            remaining_bytes -= len(data)

    def _record_sizes(self, folder: FeatureFolder) -> dict[str, int | None]:
        """Return the paths of possible records, with sizes if known: from a listing, or else from the plan."""
        listed = self.files.listing(self._below(folder.records))
        if listed is None:
            listed = {f"{shard:0{RECORD_DIGITS}d}": None for _, shard, _, _ in ShardPlan(folder).shards()}
        valid = {name: size for name, size in listed.items() if len(name) == RECORD_DIGITS and name.isdecimal()}
        return {self._below(folder.record(int(name))): size for name, size in valid.items()}

    def _below(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _mirror_file(self, path: Path, data: bytes) -> None:
        """Write a file of the mirror. If it changed at its origin, remove the mirrored shards of the feature."""
        if path.is_file() and path.read_bytes() == data:
            return
        if path.is_file():  # mirrored shards may belong to the old state
            feature = path.relative_to(self.root).parts[0]
            for shard in self.root.glob(f"{feature}*/**/*"):
                if is_mirrored_shard(shard, self.root):
                    shard.unlink(missing_ok=True)
        replace_bytes(path, data, self.cache.folder / "tmp")

    def open_shard(self, path: Path, num_bytes: int) -> OpenFile:
        """Open the mirrored file of a shard; fetch it first if the mirror does not have it."""
        return self.cache.open(path, num_bytes, lambda file: self.files.fetch(self._below(path), num_bytes, file))


class RemoteFeature(StoredFeature):
    """A feature of a remote store; implements `Feature`."""

    def __init__(self, store: RemoteStore, folder: FeatureFolder, name: str, spec: Spec) -> None:
        self._store = store
        super().__init__(store.location, folder, name, store.format, spec, store.verify)

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self._store, self.name)

    def refresh(self) -> None:
        """Read the commit records that were added since the feature was opened.

        Raises:
            CorruptStoreError: a record is damaged.
            StoreError: the server does not answer, or refuses the request.
        """
        self._store.mirror(self.name)
        super().refresh()

    def _shards_now(self) -> list[int]:
        with contextlib.suppress(StoreError):  # the caller reports its own error, not this one
            self._store.mirror_new_records(self.folder)
        return super()._shards_now()

    def _open_shard(self, path: Path, num_bytes: int) -> OpenFile:
        return self._store.open_shard(path, num_bytes)

    def _check(self, index: int, slot: int, disk: Sequence[np.ndarray]) -> None:
        try:
            super()._check(index, slot, disk)
        except CorruptStoreError:  # remove the file, so that the next read fetches it again
            for path in self.format.paths(self.folder, self._catalogue.records[index].shard, self.parts):
                path.unlink(missing_ok=True)
            raise


def _reopen(store: RemoteStore, name: str) -> RemoteFeature:
    return store[name]
