"""The WebDataset format: one tar file per shard. `webdataset` reads it; our reader maps it and knows the row offsets.

    NAME/00000000.tar    for each slot in order: KEY.json, and if the clip has tokens KEY.NAME.npy
                         (and KEY.NAME.scales.npy if they are quantised)

KEY is the clip id; bytes that tar or WebDataset would read as separators are escaped as %XX. Times, owners and modes
are fixed, so equal content gives equal bytes. bfloat16 is stored as uint16 and float8 as uint8. The commit record holds
the offset of each row in the tar, so random access does not parse the tar.
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
from featurecache.store.layout import STORE_FORMAT, FeatureFolder
from featurecache.store.plan import ShardPlan
from featurecache.store.protocols import Status
from featurecache.store.records import CommitRecord, RecordBuilder
from featurecache.store.shard_format import FeatureLayout, RowPart, SpillFile, json_file, row_at

_SHARD = re.compile(r"[0-9]{8}\.tar")


class WebDatasetFormat:
    """`ShardFormat` of WebDataset tars."""

    name = "webdataset"
    endings: tuple[str, ...] = (".wds", ".tar", ".webdataset")
    codecs: tuple[str, ...] = ("none",)
    spec_copy = "feature.json"

    def root_files(self) -> dict[str, bytes]:
        return {"store.json": json_file({"attributes": {"featurecache": {"format": STORE_FORMAT, "kind": self.name}}})}

    def folders(self, folder: FeatureFolder, parts: Sequence[RowPart]) -> list[Path]:
        return [folder.root]

    def columns(self, layout: FeatureLayout) -> list[str]:
        return [part.column("offset") for part in layout.parts]

    def paths(self, folder: FeatureFolder, shard: int, parts: Sequence[RowPart]) -> list[Path]:
        return [tar_path(folder, shard)]

    def is_shard(self, relative: str) -> bool:
        return _SHARD.fullmatch(relative) is not None

    def file_of(self, part: int) -> int:
        return 0

    def sink(self, layout: FeatureLayout, shard: int, encoded_ids: list[bytes]) -> TarSink:
        return TarSink(layout, tar_path(layout.folder, shard), encoded_ids)

    def begin(self, record: CommitRecord, slot: int, part: RowPart) -> int | None:
        return int(record.columns[part.column("offset")][slot])

    def row(self, data: np.ndarray, record: CommitRecord, slot: int, part: RowPart) -> np.ndarray:
        return row_at(data, record, slot, int(record.columns[part.column("offset")][slot]), part.row_bytes)

    def derived_files(self, layout: FeatureLayout, spec_text: bytes, plan: ShardPlan) -> dict[Path, bytes]:
        attributes: dict[str, Any] = {
            "format": STORE_FORMAT,
            "fingerprint": layout.spec.fingerprint,
            "stored_dtype": layout.spec.stored_dtype,
            "shard_rows": layout.shard_rows,
            "num_shards": plan.end_shard,
            "spec": json.loads(spec_text),
            "spec_crc32c": google_crc32c.value(spec_text),
        }
        return {layout.folder.root / self.spec_copy: json_file({"attributes": {"featurecache": attributes}})}

    def file_problems(
        self, data: np.ndarray, record: CommitRecord, layout: FeatureLayout, number: int, quick: bool
    ) -> list[str]:
        if quick:
            return []
        end = 0
        for offset, expected in _bytes_between_rows(layout, record):
            if data[offset : offset + len(expected)].tobytes() != expected:
                return [f"the tar headers at byte {offset} are not what the record gives"]
            end = offset + len(expected)
        return [] if end == data.size else [f"expected {end} bytes, got {data.size}"]


class TarSink:
    """`ShardSink` of WebDataset: rows are collected in a spill file; at the end the tar is written in slot order."""

    def __init__(self, layout: FeatureLayout, path: Path, encoded_ids: list[bytes]) -> None:
        self._layout = layout
        self._path = path
        self._ids = encoded_ids
        self._spill = SpillFile[tuple[int, str]](layout.folder.temporary)
        self._file: TemporaryFile | None = None

    def put(self, slot: int, rows: Sequence[np.ndarray]) -> None:
        for part, row in zip(self._layout.parts, rows, strict=True):
            self._spill.put((slot, part.name), row.reshape(-1).view(np.uint8).data)

    def holds(self, slot: int, checksums: Sequence[int]) -> bool:
        rows = [self._spill.read((slot, part.name)) or b"" for part in self._layout.parts]
        return [google_crc32c.value(row) for row in rows] == list(checksums)

    def renumber(self, shard: int, encoded_ids: list[bytes], slots: Sequence[int]) -> None:
        parts = self._layout.parts
        self._spill.rename({(old, part.name): (new, part.name) for new, old in enumerate(slots) for part in parts})
        self._path = tar_path(self._layout.folder, shard)
        self._ids = encoded_ids

    def finish(self, builder: RecordBuilder) -> list[tuple[TemporaryFile, Path]]:
        if self._file is not None:  # left by a failed commit
            self._file.close()
        file = self._file = TemporaryFile(self._layout.folder.temporary)
        end = 0
        record = builder.build((1,))
        for slot, part, head in _members(self._layout, record):
            file.write(head)
            end += len(head)
            if part is not None:
                builder.column(part.column("offset"))[slot] = end
                end += self._spill.copy((slot, part.name), file)
        return [(file, self._path)]

    def close(self) -> None:
        self._spill.close()
        if self._file is not None:
            self._file.close()


def tar_path(folder: FeatureFolder, shard: int) -> Path:
    """Return the file of a shard."""
    return folder.root / f"{shard:08d}.tar"


def tar_key(clip_id: str) -> str:
    """Return the name of a clip inside a tar; all but letters, digits, `_`, `-` and `/` are escaped, also dots."""
    return quote(clip_id, safe="/").replace(".", "%2E").replace("~", "%7E")


def _members(layout: FeatureLayout, record: CommitRecord) -> Iterator[tuple[int, RowPart | None, bytes]]:
    """Yield the bytes between the rows of a tar as (slot, part whose row follows, bytes); the last ones end the tar."""
    pending = b""
    for slot in range(len(record)):
        clip = record.clip(slot)
        key = tar_key(clip.id)
        metadata: dict[str, Any] = {"id": clip.id, "status": clip.status.name.lower(), "source": clip.source}
        if clip.status is Status.OK:
            metadata |= {"dtype": layout.spec.stored_dtype, "crc32c": clip.crc32c, "absmax": clip.absmax, **clip.errors}
        else:
            metadata["reason"] = clip.reason
        body = json.dumps(metadata, sort_keys=True, ensure_ascii=True).encode("ascii")
        pending += _header(f"{key}.json", len(body)) + body + b"\0" * (-len(body) % tarfile.BLOCKSIZE)
        if clip.status is not Status.OK:
            continue
        for part in layout.parts:
            npy = _npy_header(part)
            name = ".".join(filter(None, (key, layout.name, part.name, "npy")))
            yield slot, part, pending + _header(name, len(npy) + part.row_bytes) + npy
            pending = b"\0" * (-(len(npy) + part.row_bytes) % tarfile.BLOCKSIZE)
    yield len(record), None, pending + b"\0" * (2 * tarfile.BLOCKSIZE)


def _bytes_between_rows(layout: FeatureLayout, record: CommitRecord) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of everything in a tar except the rows."""
    end = 0
    for _, part, head in _members(layout, record):
        yield end, head
        end += len(head) + (part.row_bytes if part else 0)


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o644, 0
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _npy_header(part: RowPart) -> bytes:
    header = io.BytesIO()
    description = {"descr": part.dtype.str, "fortran_order": False, "shape": part.shape}
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()
