"""Stores of every released format version stay readable, and the current version stays the same bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from small_stores import KINDS, build, contents

import featurecache
from featurecache.maintenance.verify import verify_store
from featurecache.spec import STORED_DTYPES
from featurecache.store.local import LocalStore

GOLDEN = Path(__file__).parents[1] / "golden"
PLACES = {"zarr": "v1.zarr", "archive": "v1-archive.zarr", "webdataset": "v1.wds"}


def made(root: Path, kind: str) -> LocalStore:
    """What the current release writes."""
    for stored_dtype in STORED_DTYPES:
        build(root / PLACES[kind], kind, stored_dtype, name=f"tokens-{stored_dtype}")
    return featurecache.open_store(root / PLACES[kind])


def described(store: LocalStore) -> dict:
    """What reading a store gives, in numbers that do not depend on the format."""
    result = {}
    for name in store.names:
        feature = store[name]
        digest = hashlib.sha256()
        for clip_id in feature.ids:
            for row in feature.disk_rows(clip_id)[0]:
                digest.update(np.ascontiguousarray(row).tobytes())
        result[name] = {
            "fingerprint": feature.fingerprint,
            "shape": list(feature.shape),
            "ids": list(feature.ids),
            "records": [
                [record.id, record.status.name, record.source, record.reason, record.crc32c, record.absmax]
                for record in feature.records()
            ],
            "sha256": digest.hexdigest(),
            "read_sha256": hashlib.sha256(feature.read(list(feature.ids)).tobytes()).hexdigest(),
        }
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_golden_stores_of_version_1_stay_readable(kind: str) -> None:
    store = featurecache.open_store(GOLDEN / PLACES[kind])
    assert store.names == sorted(f"tokens-{stored_dtype}" for stored_dtype in STORED_DTYPES)
    assert described(store) == json.loads((GOLDEN / "expected.json").read_text())
    assert not verify_store(store).problems


@pytest.mark.parametrize("kind", [kind for kind, store in KINDS.items() if store.codec == "none"])
def test_this_release_writes_version_1_byte_for_byte(tmp_path: Path, kind: str) -> None:
    assert contents(made(tmp_path, kind).root) == contents(GOLDEN / PLACES[kind])
