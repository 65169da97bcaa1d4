"""A store in a local folder: features by name, all in one shard format."""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path

from featurecache.errors import FingerprintError, StoreError, StoreNotFoundError
from featurecache.files.publish import publish_bytes, sweep, writing
from featurecache.spec import Spec
from featurecache.store.feature import StoredFeature, Verify, feature_not_found
from featurecache.store.layout import FEATURE_NAME, FeatureFolder, check_feature_name
from featurecache.store.shard_format import ShardFormat
from featurecache.store.writer import StoredFeatureWriter


class LocalStore:
    """A store in a folder; implements `Store`. The first call of `writer` creates the files of a new store."""

    is_mirror = False
    """Whether `root` is a partial local copy of a remote store."""

    def __init__(
        self, location: str, shard_format: ShardFormat, mode: str = "r", verify: Verify = "first-touch"
    ) -> None:
        self.location = location
        self.format = shard_format
        self.mode = mode
        self.verify: Verify = verify
        self.root = Path(location)
        self._features: dict[str, StoredFeature] = {}
        if mode == "r" and not self.root.is_dir():
            raise StoreNotFoundError(
                location,
                expected="a store",
                got="no such folder",
                next_step="Run `fcache extract` to make it, or name another.",
            )

    def __reduce__(self) -> tuple[object, ...]:
        return LocalStore, (self.location, self.format, self.mode, self.verify)

    @property
    def names(self) -> list[str]:
        """Feature names, sorted."""
        if not self.root.is_dir():
            return []
        candidates = (path.name for path in self.root.iterdir() if FEATURE_NAME.fullmatch(path.name))
        return sorted(name for name in candidates if FeatureFolder(self.root, name).spec.is_file())

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def folder(self, name: str) -> FeatureFolder:
        return FeatureFolder(self.root, check_feature_name(name))

    def __getitem__(self, name: str) -> StoredFeature:
        """Open one feature for reading.

        Raises:
            StoreNotFoundError: no such feature; the nearest name is suggested.
            CorruptStoreError: a commit record is damaged.
            SpecError: the spec is damaged.
        """
        if name not in self._features:
            if not FEATURE_NAME.fullmatch(name) or not FeatureFolder(self.root, name).spec.is_file():
                raise feature_not_found(self.location, name, self.names)
            self._features[name] = StoredFeature(
                self.location, self.folder(name), name, self.format, self.spec(name), self.verify
            )
        return self._features[name]

    def spec(self, name: str) -> Spec:
        """Return the spec of one feature.

        Raises:
            StoreNotFoundError: no such feature.
            SpecError: the file is damaged.
        """
        if not self.folder(name).spec.is_file():
            raise feature_not_found(self.location, name, self.names)
        path = self.folder(name).spec
        return Spec.from_json(
            path.read_text("utf-8", "replace"), f"{self.location}/{name}/{path.parent.name}/{path.name}"
        )

    def writer(
        self,
        name: str,
        spec: Spec,
        *,
        shard_rows: int | None = None,
        codec: str = "none",
        skipped_shards: Container[int] = (),
    ) -> StoredFeatureWriter:
        """Open a feature for extraction; create it if the store does not have it.

        `shard_rows` and `codec` are used only at creation. Commit records of `skipped_shards` are not read; a repair
        passes the shards whose records are damaged.

        Raises:
            FingerprintError: the feature exists under another spec; every differing field is named.
            StoreError: the store is open for reading, or the name is not a valid feature name.
            WriteError: the disk is full or refuses.
        """
        folder = self.folder(name)
        if self.mode != "a":
            raise StoreError(
                self.location,
                expected='mode "a" to write',
                got=f'"{self.mode}"',
                next_step='Use open_store(…, mode="a").',
            )
        if codec not in self.format.codecs:
            raise StoreError("codec", expected=" | ".join(self.format.codecs), got=repr(codec))
        with writing(self.location):
            sweep(self.root)
        if not folder.spec.is_file():
            with writing(self.location):
                for file, data in self.format.root_files().items():
                    publish_bytes(self.root / file, data)
            publish_bytes(folder.spec, spec.to_json().encode(), folder.temporary)
        stored = self.spec(name)
        refuse_other_spec(f"{self.location}/{name}", stored, spec)
        self._features.pop(name, None)
        return StoredFeatureWriter(
            self.location, folder, name, self.format, stored, self.verify, shard_rows, codec, skipped_shards
        )


def refuse_other_spec(subject: str, stored: Spec, spec: Spec) -> None:
    """Raise FingerprintError, naming every differing field, if the stored spec is not the requested one."""
    if stored.fingerprint == spec.fingerprint:
        return
    differences = stored.differences(spec)
    raise FingerprintError(
        subject,
        expected=f"the spec it was made with ({stored.fingerprint[:12]}…)",
        got=f"another in {len(differences)} fields ({spec.fingerprint[:12]}…), stored != asked for",
        next_step="Use --name for a second feature, or ask for what is stored.",
        problems=differences,
    )
