"""What a store holds of its clips, however its shards were divided."""

from __future__ import annotations

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
