"""Names and sizes of a store on disk: paths, clip ids, dtypes, rows per shard.

    features.zarr/zarr.json                        the group
    features.zarr/NAME/zarr.json                   the array (N, K, D); derived from spec and plan
    features.zarr/NAME/c/SHARD/0/0                 a shard: slot i at byte i × row_bytes; then Zarr's index
    features.zarr/NAME/.fcache/spec.json           the spec
    features.zarr/NAME/.fcache/plan/00000          plan segments
    features.zarr/NAME/.fcache/records/00000000    commit record of a shard; a shard without it is invisible
    features.zarr/NAME/.fcache/tmp/                files that are not published yet

N planned clips, K tokens, D encoder width, S rows per shard. This module knows no encoder and opens no file but
folders.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from featurecache.clips.clip_list import MAX_ID_BYTES
from featurecache.errors import StoreError

STORE_FORMAT = 1
SIDE_FOLDER = ".fcache"
SCALES_ENDING = ".scales"
MAX_SHARD_BYTES = 256 << 20
MAX_SHARD_ROWS = 65_536
MAX_SHARDS = 10_000_000
MAX_ROW_BYTES = 1 << 30

FEATURE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

LOGICAL_DTYPES: dict[str, np.dtype] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "int8": np.dtype(np.float16),  # read dequantised
    "float8": np.dtype(np.float16),
}
"""dtype that readers return, by stored dtype."""

DISK_DTYPES: dict[str, np.dtype] = {
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "float32": np.dtype("<f4"),
    "int8": np.dtype("|i1"),
    "float8": np.dtype("|u1"),
}
"""dtype of the stored arrays, as other programs see it, by stored dtype."""


def check_feature_name(name: str) -> str:
    """Return `name` if it is a valid feature name.

    Raises:
        StoreError: it is not.
    """
    if not FEATURE_NAME.fullmatch(name) or name.endswith((SCALES_ENDING, ".", ".json")):
        raise StoreError(
            f"feature name {name!r}",
            expected=f'letters, digits, "-", "_" and ".", not ending in "{SCALES_ENDING}"',
            got="another",
            next_step="Choose one with --name.",
        )
    return name


def encode_ids(ids: Sequence[str]) -> list[bytes]:
    """Return clip ids as UTF-8.

    Raises:
        StoreError: ids that a clip list would refuse, or duplicates; all are listed.
    """
    problems = []
    encoded = []
    for clip_id in ids:
        problem = id_problem(clip_id)
        if problem:
            problems.append(problem)
        else:
            encoded.append(clip_id.encode())
    if not problems and len(set(encoded)) != len(encoded):
        seen: set[bytes] = set()
        for data in encoded:
            if data in seen:
                problems.append(f"{data.decode()}: stands twice")
            seen.add(data)
    if problems:
        raise StoreError("clip ids", expected="sound ids, each once", got=f"{len(problems)} others", problems=problems)
    return encoded


def id_problem(clip_id: object) -> str:
    """Return why a clip id cannot be stored, or an empty string. The rules are those of the clip list."""
    if not isinstance(clip_id, str) or not clip_id:
        return f"{clip_id!r}: expected a string"
    if not clip_id.isprintable() or clip_id != clip_id.strip():
        return f"{clip_id!r}: expected printable text without outer spaces"
    if len(clip_id.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        return f"{clip_id[:40]!r}…: expected at most {MAX_ID_BYTES} bytes"
    if "\\" in clip_id or any(part in ("", ".", "..") for part in clip_id.split("/")):
        return f"{clip_id!r}: expected no path escape"
    return ""


def id_hash(encoded: bytes) -> int:
    """Return the first 8 bytes of the sha256 of an id as a little-endian number."""
    return int.from_bytes(hashlib.sha256(encoded).digest()[:8], "little")


def default_shard_rows(row_bytes: int) -> int:
    """Return the largest power of two of rows that fits into `MAX_SHARD_BYTES`.

    With powers of two, a shard of one feature covers whole shards of another feature of the same clip list.
    """
    rows = max(1, MAX_SHARD_BYTES // row_bytes)
    return min(MAX_SHARD_ROWS, 1 << (rows.bit_length() - 1))


RECORD_DIGITS = 8
SEGMENT_DIGITS = 5


class FeatureFolder:
    """The paths of one feature."""

    SPEC_PATH = f"{SIDE_FOLDER}/spec.json"

    def __init__(self, root: Path, name: str) -> None:
        self.root = root / name
        self.side = self.root / SIDE_FOLDER
        self.spec = self.root / self.SPEC_PATH
        self.plan = self.side / "plan"
        self.records = self.side / "records"
        self.temporary = self.side / "tmp"
        self.leases = self.side / "leases"

    def record(self, shard: int) -> Path:
        return self.records / f"{shard:0{RECORD_DIGITS}d}"

    def segment(self, number: int) -> Path:
        return self.plan / f"{number:0{SEGMENT_DIGITS}d}"


def numbered(folder: Path, digits: int) -> list[int]:
    """Return, sorted, the numbers of the files in a folder whose names are exactly that many digits."""
    try:
        names = [entry.name for entry in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(name) for name in names if len(name) == digits and name.isascii() and name.isdigit())
