"""Stores behind a URL (s3, gs, http, memory, …): metadata is mirrored, shards are fetched whole when first read.

The mirror lies in the user's cache folder and is bounded: the shards used longest ago make room. Every process of a
machine shares it; a shard is fetched by one of them while the others wait. A fetch that was killed leaves a temporary
file that is swept, never half a shard. What a mirror holds of a store that changed since (another spec, a repaired
shard) is dropped when the store is opened. Transfers are fsspec's; reading is that of a local store.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.errors import CorruptStoreError, StoreError, StoreNotFoundError
from featurecache.store.feature import StoredFeature, Verify, feature_not_found
from featurecache.store.formats import ShardFormat
from featurecache.store.layout import (
    FEATURE_NAME,
    RECORD_DIGITS,
    SCALES_ENDING,
    SEGMENT_DIGITS,
    FeatureFolder,
    numbered,
)
from featurecache.store.local import LocalStore
from featurecache.store.plan import Plan
from featurecache.store.publish import TemporaryFile, make_folder, replace_bytes, sweep, writing

DEFAULT_CACHE_BYTES = 64 << 30
BLOCK_BYTES = 16 << 20


def default_cache_folder() -> Path:
    """Where shards of remote stores are kept, by the XDG convention."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "featurecache" / "stores"


class RemoteFiles:
    """The files under a URL; safe to use after a fork."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.url = url.rstrip("/")
        self._options = options
        self._pid = 0

    def _open(self) -> tuple[Any, str]:
        if self._pid != os.getpid():  # a connection of the parent process must not be shared
            try:
                from fsspec.core import url_to_fs

                self._fs, base = url_to_fs(self.url, skip_instance_cache=self._pid != 0, **self._options)
            except ImportError as error:
                raise StoreError(
                    self.url, expected="the library for this kind of URL", got=str(error), next_step="Install it."
                ) from error
            self._base, self._pid = base.rstrip("/"), os.getpid()
        return self._fs, self._base

    def read(self, path: str) -> bytes | None:
        """A whole file, or None where there is none."""
        fs, base = self._open()
        try:
            return fs.cat_file(f"{base}/{path}")
        except FileNotFoundError:
            return None

    def read_all(self, paths: Sequence[str]) -> dict[str, bytes]:
        """Those of many files that are there."""
        fs, base = self._open()
        if not paths:
            return {}
        found = fs.cat([f"{base}/{path}" for path in paths], on_error="omit")
        if isinstance(found, bytes):  # of a single file
            return {paths[0]: found}
        by_place = {place.split("://")[-1].lstrip("/"): data for place, data in found.items()}
        wanted = {f"{base}/{path}".split("://")[-1].lstrip("/"): path for path in paths}
        return {wanted[place]: data for place, data in by_place.items() if place in wanted}

    def names(self, path: str) -> list[str] | None:
        """Names in a folder; None where the server lists none."""
        fs, base = self._open()
        try:
            listed = fs.ls(f"{base}/{path}".rstrip("/"), detail=False, refresh=True)
        except (FileNotFoundError, NotImplementedError, NotADirectoryError):
            return None
        return sorted({str(each).rstrip("/").rsplit("/", 1)[-1] for each in listed})

    def fetch(self, path: str, num_bytes: int, file: TemporaryFile) -> None:
        """Copy one file, which must have that many bytes.

        Raises:
            CorruptStoreError: it is missing, or has another size.
        """
        fs, base = self._open()
        copied = 0
        try:
            with fs.open(f"{base}/{path}", "rb", block_size=BLOCK_BYTES, cache_type="none") as source:
                while block := source.read(BLOCK_BYTES):
                    copied += len(block)
                    if copied > num_bytes:
                        break
                    file.write(block)
        except FileNotFoundError:
            copied = -1
        if copied != num_bytes:
            raise CorruptStoreError(
                f"{self.url}/{path}",
                expected=f"{num_bytes} bytes, as its record says",
                got="no file" if copied < 0 else f"{copied}",
                next_step="Run `fcache verify` where the store is written, and copy it anew.",
            )


class RemoteStore(LocalStore):
    """A store behind a URL, for reading; implements `Store`."""

    def __init__(
        self,
        location: str,
        forms: dict[str, type[ShardFormat]],
        verify: Verify,
        cache: Path | None,
        cache_bytes: int,
        options: dict[str, Any],
    ) -> None:
        self._arguments = (location, forms, verify, cache, cache_bytes, options)
        self.files = RemoteFiles(location, options)
        self.cache = cache or default_cache_folder()
        self.cache_bytes = cache_bytes
        mirror = self.cache / hashlib.sha256(self.files.url.encode()).hexdigest()[:24]
        form = self._detect(forms)
        make_folder(mirror)
        super().__init__(str(mirror), form, "r", verify)
        self.location = location

    def __reduce__(self) -> tuple[object, ...]:
        return RemoteStore, self._arguments

    def _detect(self, forms: dict[str, type[ShardFormat]]) -> ShardFormat:
        for form in forms.values():
            if any(self.files.read(file) is not None for file in form().root_files()):
                return form()
        raise StoreNotFoundError(
            self.files.url, expected="a store", got="none at this URL", next_step="Check the URL and the access to it."
        )

    @property
    def names(self) -> list[str]:
        """Feature names, sorted; those read before, where the server lists nothing."""
        listed = self.files.names("")
        if listed is None:
            return super().names
        some = [name for name in listed if FEATURE_NAME.fullmatch(name)]
        found = self.files.read_all([f"{name}/{FeatureFolder(self.root, name).spec_path}" for name in some])
        return sorted(path.split("/")[0] for path in found)

    def __getitem__(self, name: str) -> RemoteFeature:
        """One feature, for reading.

        Raises:
            StoreNotFoundError: no such feature; the near name is suggested.
            CorruptStoreError: a commit record is damaged.
        """
        if name not in self._features:
            if not FEATURE_NAME.fullmatch(name) or not self._mirror(name):
                raise feature_not_found(self.location, name, self.names)
            folder = self.folder(name)
            self._features[name] = RemoteFeature(self, folder, name, self.spec(name))
        return self._features[name]  # type: ignore[return-value]

    def _mirror(self, name: str) -> bool:
        """Bring the metadata of a feature here; False where there is no such feature."""
        folder = self.folder(name)
        spec = self.files.read(f"{name}/{folder.spec_path}")
        if spec is None:
            return False
        if folder.spec.is_file() and folder.spec.read_bytes() != spec:
            for each in (folder.root, folder.root.with_name(name + SCALES_ENDING)):
                shutil.rmtree(each, ignore_errors=True)  # another feature has taken the name
        self._keep(folder.spec, spec)
        number = 0
        while (segment := self.files.read(f"{name}/.fcache/plan/{number:0{SEGMENT_DIGITS}d}")) is not None:
            self._keep(folder.segment(number), segment)
            number += 1
        listed = self.files.names(f"{name}/.fcache/records")
        if listed is None:
            listed = [f"{shard:0{RECORD_DIGITS}d}" for _, shard, _, _ in Plan(folder).shards()]
        wanted = [f"{name}/.fcache/records/{each}" for each in listed if len(each) == RECORD_DIGITS and each.isdigit()]
        found = self.files.read_all(wanted)
        for path, data in found.items():
            self._keep(self.root / path, data)
        for shard in numbered(folder.records, RECORD_DIGITS):
            if folder.record(shard).relative_to(self.root).as_posix() not in found:
                folder.record(shard).unlink(missing_ok=True)  # dropped by a repair
        return True

    def _keep(self, path: Path, data: bytes) -> None:
        if path.is_file() and path.read_bytes() == data:
            return
        if path.is_file():  # changed at its origin: what was fetched before may be of the old state
            for shard in self._shards(path.relative_to(self.root).parts[0]):
                shard.unlink(missing_ok=True)
        replace_bytes(path, data, self.root / "tmp")

    def _shards(self, name: str) -> list[Path]:
        root = self.root / name
        return [path for path in root.parent.glob(f"{name}*/**/*") if _is_shard(path)]

    def local(self, path: Path, num_bytes: int) -> Path:
        """Where a shard can be mapped from: fetched now, unless it was before."""
        if _has(path, num_bytes):
            os.utime(path)  # used now
            return path
        with writing(path):
            make_folder(path.parent)
            with _locked(path.with_name(path.name + ".lock")):
                if not _has(path, num_bytes):
                    sweep(self.root / "tmp")
                    with TemporaryFile(self.root / "tmp") as file:
                        self.files.fetch(path.relative_to(self.root).as_posix(), num_bytes, file)
                        file.replace(path)
                    self._make_room(path)
        return path

    def _make_room(self, kept: Path) -> None:
        """Remove the shards used longest ago, of all stores, until the cache is within its bounds."""
        shards = [(path.stat(), path) for path in self.cache.glob("*/**/*") if _is_shard(path) and path != kept]
        total = sum(stat.st_size for stat, _ in shards) + kept.stat().st_size
        for stat, path in sorted(shards, key=lambda each: each[0].st_mtime):
            if total <= self.cache_bytes:
                return
            path.unlink(missing_ok=True)  # whoever has it mapped keeps it
            total -= stat.st_size


class RemoteFeature(StoredFeature):
    """A feature of a remote store; implements `Feature`."""

    def __init__(self, store: RemoteStore, folder: FeatureFolder, name: str, spec) -> None:  # type: ignore[no-untyped-def]
        self._store = store
        super().__init__(store.location, folder, name, store.format, spec, store.verify)

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self._store, self.name)

    def refresh(self) -> None:
        """See the shards committed since the feature was opened."""
        self._store._mirror(self.name)
        super().refresh()

    def _local(self, path: Path, num_bytes: int) -> Path:
        return self._store.local(path, num_bytes)

    def _check(self, place: int, slot: int, disk: Sequence[np.ndarray]) -> None:
        try:
            super()._check(place, slot, disk)
        except CorruptStoreError:  # fetch it anew next time
            for path in self.format.paths(self.folder, self._catalogue.records[place].shard, self.parts):
                path.unlink(missing_ok=True)
            raise


def _reopen(store: RemoteStore, name: str) -> RemoteFeature:
    return store[name]


def _is_shard(path: Path) -> bool:
    return path.is_file() and (path.suffix == ".tar" or (path.name == "0" and path.parent.name == "0"))


def _has(path: Path, num_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == num_bytes


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
