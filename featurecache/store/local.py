"""A store in a folder: features by name, in one shard format."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from featurecache.errors import FingerprintError, StoreError, StoreNotFoundError
from featurecache.files.publish import publish_bytes, sweep, writing
from featurecache.spec import Spec
from featurecache.store.feature import StoredFeature, Verify, feature_not_found
from featurecache.store.formats import ShardFormat
from featurecache.store.layout import FEATURE_NAME, FeatureFolder, check_feature_name
from featurecache.store.writer import StoredFeatureWriter


class LocalStore:
    """Features by name; implements `Store`. Nothing is created before the first `writer`."""

    is_mirror = False
    """Whether `root` holds only what was read so far of a store that lies elsewhere."""

    def __init__(self, location: str, form: ShardFormat, mode: str = "r", verify: Verify = "first-touch") -> None:
        self.location = location
        self.format = form
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
        found = (path.name for path in self.root.iterdir() if FEATURE_NAME.fullmatch(path.name))
        return sorted(name for name in found if FeatureFolder(self.root, name).spec.is_file())

    def __contains__(self, name: str) -> bool:
        return isinstance(name, str) and name in self.names

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def folder(self, name: str) -> FeatureFolder:
        return FeatureFolder(self.root, check_feature_name(name))

    def __getitem__(self, name: str) -> StoredFeature:
        """One feature, for reading.

        Raises:
            StoreNotFoundError: no such feature; the near name is suggested.
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
        """The spec of one feature, read from its file.

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
        unread: Container[int] = (),
    ) -> StoredFeatureWriter:
        """Open a feature for extraction, creating it where there is none.

        `shard_rows` and `codec` count at creation only. Commit records of the shards `unread` are not looked at; repair
        names those that are damaged.

        Raises:
            FingerprintError: the feature exists under another spec; every differing field is named.
            StoreError: the store is open for reading, or the name could not be a folder.
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
            self.location, folder, name, self.format, stored, self.verify, shard_rows, codec, unread
        )


def refuse_other_spec(subject: str, stored: Spec, spec: Spec) -> None:
    """Raise FingerprintError where a feature was made by another spec than the one asked for; every field is named."""
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
