"""WebDataset shards: one tar a shard, which plain `webdataset` reads and our reader maps at known offsets.

    NAME/00000000.tar    for each slot in order: KEY.json, and where the clip has tokens KEY.NAME.npy
                         (and KEY.NAME.scales.npy, where they are quantised)

KEY is the clip id with every byte that tar or WebDataset would take for a separator escaped as %XX. Times, owners and
modes are fixed, so equal content gives equal bytes. bfloat16 is kept as uint16, float8 as uint8. The commit record
holds where each row's numbers begin in the tar; reading at random opens no tar.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import google_crc32c
import numpy as np

from featurecache.files.publish import TemporaryFile
from featurecache.store.formats import Geometry, Part, Spool, row_at
from featurecache.store.layout import STORE_FORMAT, FeatureFolder
from featurecache.store.plan import Plan
from featurecache.store.protocols import Status
from featurecache.store.records import Record, RecordBuilder

_SHARD = re.compile(r"[0-9]{8}\.tar")


class WebDatasetFormat:
    """`ShardFormat` of WebDataset tars."""

    name = "webdataset"
    codecs = ("none",)
    spec_copy = "feature.json"

    def root_files(self) -> dict[str, bytes]:
        return {"store.json": _json({"attributes": {"featurecache": {"format": STORE_FORMAT, "kind": self.name}}})}

    def folders(self, folder: FeatureFolder, parts: Sequence[Part]) -> list[Path]:
        return [folder.root]

    def columns(self, geometry: Geometry) -> list[str]:
        return [part.column("offset") for part in geometry.parts]

    def paths(self, folder: FeatureFolder, shard: int, parts: Sequence[Part]) -> list[Path]:
        return [tar_path(folder, shard)]

    def is_shard(self, relative: str) -> bool:
        return _SHARD.fullmatch(relative) is not None

    def file_of(self, part: int) -> int:
        return 0

    def sink(self, geometry: Geometry, shard: int, encoded_ids: list[bytes]) -> TarSink:
        return TarSink(geometry, tar_path(geometry.folder, shard), encoded_ids)

    def begin(self, record: Record, slot: int, part: Part) -> int | None:
        return int(record.columns[part.column("offset")][slot])

    def row(self, data: np.ndarray, record: Record, slot: int, part: Part) -> np.ndarray:
        return row_at(data, record, slot, int(record.columns[part.column("offset")][slot]), part.row_bytes)

    def derived_files(self, geometry: Geometry, spec_text: bytes, plan: Plan) -> dict[Path, bytes]:
        ours: dict[str, Any] = {
            "format": STORE_FORMAT,
            "fingerprint": geometry.spec.fingerprint,
            "stored_dtype": geometry.spec.stored_dtype,
            "shard_rows": geometry.shard_rows,
            "num_shards": plan.end_shard,
            "spec": json.loads(spec_text),
            "spec_crc32c": google_crc32c.value(spec_text),
        }
        return {geometry.folder.root / self.spec_copy: _json({"attributes": {"featurecache": ours}})}

    def file_problems(
        self, data: np.ndarray, record: Record, geometry: Geometry, number: int, quick: bool
    ) -> list[str]:
        if quick:
            return []
        end = 0
        for offset, expected in _frame(geometry, record):
            if data[offset : offset + len(expected)].tobytes() != expected:
                return [f"the tar headers at byte {offset} are not what the record gives"]
            end = offset + len(expected)
        return [] if end == data.size else [f"expected {end} bytes, got {data.size}"]


class TarSink:
    """`ShardSink` of WebDataset: rows are spooled, and the tar is written in slot order once every slot is decided."""

    def __init__(self, geometry: Geometry, path: Path, encoded_ids: list[bytes]) -> None:
        self._geometry = geometry
        self._path = path
        self._ids = encoded_ids
        self._spool = Spool(geometry.folder.temporary)
        self._file: TemporaryFile | None = None

    def put(self, slot: int, rows: Sequence[np.ndarray]) -> None:
        for part, row in zip(self._geometry.parts, rows, strict=True):
            self._spool.put((slot, part.name), row.reshape(-1).view(np.uint8).data)

    def holds(self, slot: int, checksums: Sequence[int]) -> bool:
        rows = [self._spool.read((slot, part.name)) or b"" for part in self._geometry.parts]
        return [google_crc32c.value(row) for row in rows] == list(checksums)

    def renumber(self, shard: int, encoded_ids: list[bytes], slots: Sequence[int]) -> None:
        parts = self._geometry.parts
        self._spool.rename({(old, part.name): (new, part.name) for new, old in enumerate(slots) for part in parts})
        self._path = tar_path(self._geometry.folder, shard)
        self._ids = encoded_ids

    def finish(self, builder: RecordBuilder) -> list[tuple[TemporaryFile, Path]]:
        if self._file is not None:  # of a commit that was refused
            self._file.close()
        file = self._file = TemporaryFile(self._geometry.folder.temporary)
        end = 0
        record = builder.build((1,))
        for slot, part, head in _members(self._geometry, record):
            file.write(head)
            end += len(head)
            if part is not None:
                builder.column(part.column("offset"))[slot] = end
                end += self._spool.copy((slot, part.name), file)
        return [(file, self._path)]

    def close(self) -> None:
        self._spool.close()
        if self._file is not None:
            self._file.close()


def tar_path(folder: FeatureFolder, shard: int) -> Path:
    """The file of a shard."""
    return folder.root / f"{shard:08d}.tar"


def tar_key(clip_id: str) -> str:
    """Name of a clip inside a tar: what is not a letter, digit, `_`, `-` or `/` is escaped, dots included."""
    return quote(clip_id, safe="/").replace(".", "%2E").replace("~", "%7E")


def _members(geometry: Geometry, record: Record) -> Iterator[tuple[int, Part | None, bytes]]:
    """What stands between the rows of a tar: (slot, part whose row follows, bytes); the last one ends the tar."""
    pending = b""
    for slot in range(len(record)):
        clip = record.clip(slot)
        key = tar_key(clip.id)
        told: dict[str, Any] = {"id": clip.id, "status": clip.status.name.lower(), "source": clip.source}
        if clip.status is Status.OK:
            told |= {"dtype": geometry.spec.stored_dtype, "crc32c": clip.crc32c, "absmax": clip.absmax, **clip.errors}
        else:
            told["reason"] = clip.reason
        body = json.dumps(told, sort_keys=True, ensure_ascii=True).encode("ascii")
        pending += _header(f"{key}.json", len(body)) + body + b"\0" * (-len(body) % tarfile.BLOCKSIZE)
        if clip.status is not Status.OK:
            continue
        for part in geometry.parts:
            npy = _npy_header(part)
            name = ".".join(filter(None, (key, geometry.name, part.name, "npy")))
            yield slot, part, pending + _header(name, len(npy) + part.row_bytes) + npy
            pending = b"\0" * (-(len(npy) + part.row_bytes) % tarfile.BLOCKSIZE)
    yield len(record), None, pending + b"\0" * (2 * tarfile.BLOCKSIZE)


def _frame(geometry: Geometry, record: Record) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of everything in a tar that is no row."""
    end = 0
    for _, part, head in _members(geometry, record):
        yield end, head
        end += len(head) + (part.row_bytes if part else 0)


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o644, 0
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _npy_header(part: Part) -> bytes:
    header = io.BytesIO()
    described = {"descr": part.dtype.str, "fortran_order": False, "shape": part.shape}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")
