"""Stores behind a URL (s3, gs, http, memory, …): metadata is mirrored, shards are fetched whole when first read.

The mirror lies in the user's cache folder (`shard_cache`). What it holds of a store that changed since (another spec, a
repaired shard) is dropped when the store is opened. Transfers are fsspec's (`remote_files`); reading is that of a local
store.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.errors import CorruptStoreError, StoreError, StoreNotFoundError
from featurecache.files.publish import make_folder, replace_bytes
from featurecache.spec import Spec
from featurecache.store.direct import OpenFile
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
from featurecache.store.plan import Plan, load_segment
from featurecache.store.records import MAX_RECORD_BYTES
from featurecache.store.remote_files import RemoteFiles
from featurecache.store.shard_cache import ShardCache, default_cache_folder, is_shard

MAX_TEXT_BYTES = 4 << 20
"""Most that a spec or a root file may be."""
MAX_PLAN_BYTES = 1 << 30
"""Most that the plan segments of a feature may be together; those of ten million clips are."""


class RemoteStore(LocalStore):
    """A store behind a URL, for reading; implements `Store`."""

    is_mirror = True

    def __init__(
        self,
        location: str,
        forms: Mapping[str, type[ShardFormat]],
        verify: Verify,
        cache: Path | None,
        cache_bytes: int,
        options: Mapping[str, Any],
    ) -> None:
        self._arguments = (location, forms, verify, cache, cache_bytes, options)
        self.files = RemoteFiles(location, options)
        self.cache = ShardCache(cache or default_cache_folder(), cache_bytes)
        mirror = self.cache.folder / hashlib.sha256(self.files.url.encode()).hexdigest()[:24]
        form = self._detect(forms)
        make_folder(mirror)
        super().__init__(str(mirror), form, "r", verify)
        self.location = location

    def __reduce__(self) -> tuple[object, ...]:
        return RemoteStore, self._arguments

    def _detect(self, forms: Mapping[str, type[ShardFormat]]) -> ShardFormat:
        for form in forms.values():
            if any(self.files.read(file, MAX_TEXT_BYTES) is not None for file in form().root_files()):
                return form()
        raise StoreNotFoundError(
            self.files.url, expected="a store", got="none at this URL", next_step="Check the URL and the access to it."
        )

    @property
    def names(self) -> list[str]:
        """Feature names, sorted; those read before, where the server lists nothing."""
        listed = self.files.listing("")
        if listed is None:
            return super().names
        specs = {f"{name}/{FeatureFolder.SPEC_PATH}": None for name in listed if FEATURE_NAME.fullmatch(name)}
        return sorted(path.split("/")[0] for path in self.files.read_all(specs, MAX_TEXT_BYTES))

    def __getitem__(self, name: str) -> RemoteFeature:
        """One feature, for reading.

        Raises:
            StoreNotFoundError: no such feature; the near name is suggested.
            CorruptStoreError: a commit record is damaged.
            StoreError: the server does not answer, or refuses.
        """
        if name not in self._features:
            if not FEATURE_NAME.fullmatch(name) or not self.mirror(name):
                raise feature_not_found(self.location, name, self.names)
            self._features[name] = RemoteFeature(self, self.folder(name), name, self.spec(name))
        return self._features[name]  # type: ignore[return-value]

    def mirror(self, name: str) -> bool:
        """Bring the metadata of a feature here; False where there is no such feature."""
        folder = self.folder(name)
        spec = self.files.read(f"{name}/{FeatureFolder.SPEC_PATH}", MAX_TEXT_BYTES)
        if spec is None:
            return False
        if folder.spec.is_file() and folder.spec.read_bytes() != spec:
            for each in (folder.root, folder.root.with_name(name + SCALES_ENDING)):
                shutil.rmtree(each, ignore_errors=True)  # another feature has taken the name
        self._keep(folder.spec, spec)
        self._mirror_plan(folder)
        found = self.files.read_all(self._record_sizes(folder), MAX_RECORD_BYTES)
        for path, data in found.items():
            self._keep(self.root / path, data)
        for shard in numbered(folder.records, RECORD_DIGITS):
            if self._below(folder.record(shard)) not in found:
                folder.record(shard).unlink(missing_ok=True)  # dropped by a repair
        return True

    def mirror_new_records(self, folder: FeatureFolder) -> None:
        """Bring the commit records here that are not here yet; the others are not asked for."""
        sizes = {path: size for path, size in self._record_sizes(folder).items() if not (self.root / path).is_file()}
        for path, data in self.files.read_all(sizes, MAX_RECORD_BYTES).items():
            self._keep(self.root / path, data)

    def _mirror_plan(self, folder: FeatureFolder) -> None:
        left = MAX_PLAN_BYTES
        for number in range(10**SEGMENT_DIGITS):
            data = self.files.read(self._below(folder.segment(number)), left)
            if data is None:
                return
            self._keep(folder.segment(number), data)
            load_segment(folder.segment(number), number)  # a server that answers to every name is found out
            left -= len(data)

    def _record_sizes(self, folder: FeatureFolder) -> dict[str, int | None]:
        """Paths of the records there may be: as listed, or else as planned."""
        listed = self.files.listing(self._below(folder.records))
        if listed is None:
            listed = {f"{shard:0{RECORD_DIGITS}d}": None for _, shard, _, _ in Plan(folder).shards()}
        sound = {name: size for name, size in listed.items() if len(name) == RECORD_DIGITS and name.isdecimal()}
        return {self._below(folder.record(int(name))): size for name, size in sound.items()}

    def _below(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _keep(self, path: Path, data: bytes) -> None:
        if path.is_file() and path.read_bytes() == data:
            return
        if path.is_file():  # changed at its origin: what was fetched before may be of the old state
            for shard in self.root.glob(f"{path.relative_to(self.root).parts[0]}*/**/*"):
                if is_shard(shard):
                    shard.unlink(missing_ok=True)
        replace_bytes(path, data, self.cache.folder / "tmp")

    def open_shard(self, path: Path, num_bytes: int) -> OpenFile:
        """Open the mirror of a shard, fetched now unless it was before."""
        return self.cache.open(path, num_bytes, lambda file: self.files.fetch(self._below(path), num_bytes, file))


class RemoteFeature(StoredFeature):
    """A feature of a remote store; implements `Feature`."""

    def __init__(self, store: RemoteStore, folder: FeatureFolder, name: str, spec: Spec) -> None:
        self._store = store
        super().__init__(store.location, folder, name, store.format, spec, store.verify)

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self._store, self.name)

    def refresh(self) -> None:
        """See the shards committed since the feature was opened.

        Raises:
            CorruptStoreError: a record is damaged.
            StoreError: the server does not answer, or refuses.
        """
        self._store.mirror(self.name)
        super().refresh()

    def _shards_now(self) -> list[int]:
        with contextlib.suppress(StoreError):  # a server that is gone is no reason for another error
            self._store.mirror_new_records(self.folder)
        return super()._shards_now()

    def _open_shard(self, path: Path, num_bytes: int) -> OpenFile:
        return self._store.open_shard(path, num_bytes)

    def _check(self, place: int, slot: int, disk: Sequence[np.ndarray]) -> None:
        try:
            super()._check(place, slot, disk)
        except CorruptStoreError:  # fetch it anew next time
            for path in self.format.paths(self.folder, self._catalogue.records[place].shard, self.parts):
                path.unlink(missing_ok=True)
            raise


def _reopen(store: RemoteStore, name: str) -> RemoteFeature:
    return store[name]
