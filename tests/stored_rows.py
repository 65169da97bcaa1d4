"""Contents of a store: records and tokens per clip, independent of shards, and file hashes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from featurecache import open_store
from featurecache.store.protocols import Status


def rows_of(location: Path) -> dict[str, dict[str, tuple[object, ...]]]:
    """Status, reason, source and the bytes of the tokens of every clip, by feature."""
    store = open_store(location)
    return {
        name: {
            record.id: (
                record.status,
                record.reason,
                record.source,
                store[name][record.id].tobytes() if record.status is Status.OK else b"",
            )
            for record in store[name].records()
        }
        for name in store.names
    }


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path, without leases: they are not part of the stored bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "leases"
    }
