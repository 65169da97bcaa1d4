"""Files of the similarity indices of one store: layout, reading, writing, checksums.

    ROOT/whisper/space                  the projection of tokens (`projection`)
    ROOT/whisper/vectors/00000012-5f3a… coordinates of shard 12's clips; the name holds the crc32c of its commit record
    ROOT/calibration.json               the calibrated rule of `duplicates` and `leaks`; its last field is a crc32c
    ROOT/approximate/….faiss, ….stated  an approximate faiss index; its measured recall and its crc32c

ROOT is `STORE.similar` beside a local store, a folder in the user's cache for a remote store, or a folder that the user
names. `space`, vectors and `.stated` have the layout of plans and records (`store/columns`): magic, header, columns,
crc32c. Every file is derived from the store, so a process that cannot write a file keeps it in memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from featurecache.errors import CorruptStoreError, WriteError
from featurecache.files.lease import sole_writer
from featurecache.files.publish import make_folder, replace_bytes, sweep, writing
from featurecache.spec import canonical_json
from featurecache.store import columns

ENDING, LOCK = ".similar", ".writer"
PROJECTION, VECTORS, APPROXIMATE, CALIBRATION = "space", "vectors", "approximate", "calibration.json"
MAGIC = b"FCSIMIL2"
"""The last character is the format's version."""
MAX_BYTES = 1 << 32
CHECKSUM = "crc32c"
PIECE_BYTES = 8 << 20
NEXT_STEP = "Run `fcache index`: it makes damaged files of the index anew."


class IndexFiles:
    """Reads and writes the files of the indices of one store, by their names below the root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.refused: WriteError | None = None
        """Error of the last file that could not be written and is kept in memory."""
        self.damaged: list[CorruptStoreError] = []
        """Errors of damaged files that were made again."""
        self._in_memory: dict[str, bytes] = {}

    def read(self, name: str) -> bytes:
        """Return the bytes of one file.

        Raises:
            FileNotFoundError: no such file, or no permission to read it.
        """
        if name in self._in_memory:
            return self._in_memory[name]
        try:
            return (self.root / name).read_bytes()
        except (PermissionError, NotADirectoryError, IsADirectoryError) as error:
            raise FileNotFoundError(str(self.root / name)) from error

    def has(self, name: str) -> bool:
        return name in self._in_memory or (self.root / name).is_file()

    def write(self, name: str, data: bytes) -> None:
        """Write one file in one step. If the disk refuses, keep it in memory and set `refused`."""
        try:
            with writing(self.root / name):
                make_folder((self.root / name).parent)
            replace_bytes(self.root / name, data)
            self._in_memory.pop(name, None)
        except WriteError as error:
            self.refused = error
            self._in_memory[name] = data

    @contextlib.contextmanager
    def sole_writer(self, folder: str) -> Iterator[None]:
        """Hold the lock of one folder's writer. A folder that cannot be written needs no lock.

        Raises:
            WriteError: another process is writing it.
        """
        with contextlib.ExitStack() as lock:
            try:
                lock.enter_context(sole_writer(self.root / folder / LOCK, self.root / folder))
            except WriteError as error:
                if (
                    error.__cause__ is None
                ):  # another process holds the lock; otherwise the cause is an error of the disk
                    raise
                self.refused = error
            yield

    def remove(self, name: str) -> None:
        """Remove one file, or a folder with all its files; a failure is ignored."""
        for file in [file for file in self._in_memory if file == name or file.startswith(name + "/")]:
            del self._in_memory[file]
        path = self.root / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            try:
                path.unlink(missing_ok=True)
            except OSError:
                return

    def names(self, folder: str) -> list[str]:
        """Return the names of the files directly in one folder, sorted, without temporary files."""
        try:
            entries = [path.name for path in (self.root / folder).iterdir() if path.is_file()]
        except OSError:
            entries = []
        entries += [name[len(folder) + 1 :] for name in self._in_memory if name.startswith(folder + "/")]
        return sorted({name for name in entries if not name.startswith(".")})

    def sweep(self, folder: str) -> None:
        """Remove temporary files of killed processes from one folder."""
        try:
            sweep(self.root / folder)
        except OSError:
            return

    def load(self, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the header and the columns of one file.

        Raises:
            FileNotFoundError: no such file.
            CorruptStoreError: its bytes contradict their checksum.
        """
        return columns.unpack(self.read(name), MAGIC, str(self.root / name), NEXT_STEP)

    def save(self, name: str, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Write one file with a header and columns. Equal content gives equal bytes."""
        self.write(name, columns.pack(MAGIC, header, arrays))

    def require_written(self) -> None:
        """Check that every file was written.

        Raises:
            WriteError: the disk refused a file.
        """
        if self.refused is not None:
            raise WriteError(
                str(self.root),
                expected=self.refused.expected,
                got=self.refused.got,
                next_step="Name a folder that can be written with --index DIR.",
            )


def index_files(location: str, folder: str | Path | None = None) -> IndexFiles:
    """Return the index files of a store: in `folder`, else beside a local store, or in the user's cache folder."""
    if folder is not None:
        return IndexFiles(Path(folder))
    if "://" in location:
        from featurecache.files.hashing import cache_folder

        return IndexFiles(cache_folder() / "similar" / location.replace("://", "/").strip("/"))
    return IndexFiles(Path(os.path.normpath(location) + ENDING))


def sealed_json(document: Mapping[str, Any]) -> bytes:
    """Return indented JSON with the crc32c of the document's canonical form as a field."""
    sealed = {**document, CHECKSUM: _json_crc32c(document)}
    return (json.dumps(sealed, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def open_sealed_json(data: bytes, subject: str) -> dict[str, Any]:
    """Read a document that `sealed_json` wrote.

    Raises:
        CorruptStoreError: not such a document, or the checksum differs.
    """
    try:
        document = json.loads(data)
        stated = document.pop(CHECKSUM)
        agrees = stated == _json_crc32c(document)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptStoreError(
            subject, expected=f"JSON with a {CHECKSUM}", got=type(error).__name__, next_step="Delete it."
        ) from error
    if not agrees:
        raise CorruptStoreError(
            subject,
            expected="the checksum its content gives",
            got=str(stated),
            next_step="Delete it and calibrate again.",
        )
    return document


def _json_crc32c(document: Mapping[str, Any]) -> int:
    return google_crc32c.value(canonical_json(document).encode())


def file_crc32c(path: Path) -> int:
    """Return the crc32c of a large file, read in pieces."""
    checksum = 0
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            checksum = google_crc32c.extend(checksum, piece)
    return checksum


@dataclass(frozen=True)
class IndexFault:
    """A damaged or foreign file among the index files."""

    feature: str
    """Empty for a file of several features."""
    path: Path
    message: str
    damage: bool
    """False for a foreign file."""


def index_faults(files: IndexFiles, features: Iterable[str]) -> list[IndexFault]:
    """Read every index file of some features and every file of several features; return the faults."""
    faults: list[IndexFault] = []
    named_files = [("", f"{APPROXIMATE}/{name}") for name in files.names(APPROXIMATE)]
    named_files += [("", CALIBRATION)] if files.has(CALIBRATION) else []
    for feature in features:
        for folder in (feature, f"{feature}/{VECTORS}"):
            named_files += [(feature, f"{folder}/{name}") for name in files.names(folder)]
    for feature, name in named_files:
        path = files.root / name
        try:
            if not _check(files, name):
                faults.append(IndexFault(feature, path, f"{path.name} is of no index of this format", False))
        except CorruptStoreError as error:
            command = "fcache duplicates --calibrate" if name == CALIBRATION else "fcache index"
            message = f"{path.name}: expected {error.expected}, got {error.got}; `{command}` makes it anew"
            faults.append(IndexFault(feature, path, message, True))
        except OSError as error:
            faults.append(IndexFault(feature, path, f"{path.name} cannot be read ({error})", True))
    return faults


VECTORS_NAME = re.compile(r"\d{8}-[0-9a-f]{8}")


def _check(files: IndexFiles, name: str) -> bool:
    """Read one file as the kind that its name says; return False for a name of no kind.

    Raises:
        CorruptStoreError: its bytes contradict their checksum.
    """
    folder, _, file = name.rpartition("/")
    if name == CALIBRATION:
        open_sealed_json(files.read(name), str(files.root / name))
    elif folder == APPROXIMATE and file.endswith(".faiss"):
        stated = files.load(name.removesuffix(".faiss") + ".stated")[0]
        if file_crc32c(files.root / name) != stated[CHECKSUM]:
            raise CorruptStoreError(str(files.root / name), expected="the checksum it was built with", got="another")
    elif (
        file == PROJECTION
        or file.endswith(".stated")
        or (folder.endswith("/" + VECTORS) and VECTORS_NAME.fullmatch(file))
    ):
        files.load(name)
    else:
        return False
    return True
