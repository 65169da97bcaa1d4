"""The files of the similarity indices of one store: where they lie, and how a flipped bit in them is noticed.

    ROOT/whisper/space                  what tokens are projected with (`projection`)
    ROOT/whisper/vectors/00000012-5f3a… coordinates of shard 12's clips; the name holds the crc32c of its commit record
    ROOT/calibration.json               the rule of `duplicates` and `leaks`; its last field is a crc32c
    ROOT/approximate/….faiss, ….stated  an inverted file, and what was measured when it was built, with its crc32c

ROOT is `STORE.similar` beside a local store, a folder of the user's cache for a remote one, or any folder named.
`space`, vectors and `.stated` have the layout of plans and records (`store/columns`): magic, header, columns, crc32c.
Everything is derived, so whoever may not write there keeps it in memory for as long as the process lives.
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
SPACE, VECTORS, APPROXIMATE, CALIBRATION = "space", "vectors", "approximate", "calibration.json"
MAGIC = b"FCSIMIL2"
"""Ends in the format's number."""
MAX_BYTES = 1 << 32
CHECKSUM = "crc32c"
PIECE_BYTES = 8 << 20
NEXT_STEP = "Run `fcache index`: it makes damaged files of the index anew."


class IndexFiles:
    """Reads and writes the files of the indices below one root, by names relative to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.refused: WriteError | None = None
        """Why files are kept in memory, where they are."""
        self.damaged: list[CorruptStoreError] = []
        """What was found damaged and made anew."""
        self._in_memory: dict[str, bytes] = {}

    def read(self, name: str) -> bytes:
        """The bytes of one file.

        Raises:
            FileNotFoundError: no such file, or none that may be read.
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
        """Write one file, in one step; kept in memory, and `refused` set, where the disk refuses it."""
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
        """Be the only process that writes one folder; where nothing can be written, no other does either.

        Raises:
            WriteError: another process is writing it.
        """
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(sole_writer(self.root / folder / LOCK, self.root / folder))
            except WriteError as error:
                if error.__cause__ is None:  # held by another process, and not refused by the disk
                    raise
                self.refused = error
            yield

    def remove(self, name: str) -> None:
        """Remove one file, or a folder with all its files; no error where it is not there or stays."""
        for kept in [kept for kept in self._in_memory if kept == name or kept.startswith(name + "/")]:
            del self._in_memory[kept]
        path = self.root / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            try:
                path.unlink(missing_ok=True)
            except OSError:
                return

    def names(self, folder: str) -> list[str]:
        """Names of the files directly in one folder, sorted, without temporary ones."""
        try:
            entries = [path.name for path in (self.root / folder).iterdir() if path.is_file()]
        except OSError:
            entries = []
        entries += [name[len(folder) + 1 :] for name in self._in_memory if name.startswith(folder + "/")]
        return sorted({name for name in entries if not name.startswith(".")})

    def sweep(self, folder: str) -> None:
        """Remove what killed processes left in one folder."""
        try:
            sweep(self.root / folder)
        except OSError:
            return

    def load(self, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Header and columns of one file.

        Raises:
            FileNotFoundError: no such file.
            CorruptStoreError: its bytes contradict their checksum.
        """
        return columns.unpack(self.read(name), MAGIC, str(self.root / name), NEXT_STEP)

    def keep(self, name: str, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Write one file of a header and columns. Equal content gives equal bytes."""
        self.write(name, columns.pack(MAGIC, header, arrays))

    def require_written(self) -> None:
        """Raise where the disk refused a file.

        Raises:
            WriteError: with the folder and what to do.
        """
        if self.refused is not None:
            raise WriteError(
                str(self.root),
                expected=self.refused.expected,
                got=self.refused.got,
                next_step="Name a folder that can be written with --index DIR.",
            )


def index_files(location: str, folder: str | Path | None = None) -> IndexFiles:
    """Where the indices of a store lie: in `folder`, else beside a local store or in the user's cache folder."""
    if folder is not None:
        return IndexFiles(Path(folder))
    if "://" in location:
        from featurecache.files.hashing import cache_folder

        return IndexFiles(cache_folder() / "similar" / location.replace("://", "/").strip("/"))
    return IndexFiles(Path(os.path.normpath(location) + ENDING))


def sealed_json(document: Mapping[str, Any]) -> bytes:
    """JSON for people that holds the crc32c of its own canonical form."""
    whole = {**document, CHECKSUM: _json_crc32c(document)}
    return (json.dumps(whole, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def open_sealed_json(data: bytes, subject: str) -> dict[str, Any]:
    """Read what `sealed_json` wrote.

    Raises:
        CorruptStoreError: another form, or the checksum does not agree.
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
    """crc32c of a large file, read in pieces."""
    checksum = 0
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            checksum = google_crc32c.extend(checksum, piece)
    return checksum


@dataclass(frozen=True)
class Fault:
    """A file of the indices that cannot be used as it is."""

    feature: str
    """Empty for files of several features."""
    path: Path
    message: str
    damage: bool
    """False for a file that no index of this format has."""


def faults(files: IndexFiles, features: Iterable[str]) -> list[Fault]:
    """Read every file of the indices of some features, and of what is made of them together."""
    found: list[Fault] = []
    places = [("", f"{APPROXIMATE}/{name}") for name in files.names(APPROXIMATE)]
    places += [("", CALIBRATION)] if files.has(CALIBRATION) else []
    for feature in features:
        for folder in (feature, f"{feature}/{VECTORS}"):
            places += [(feature, f"{folder}/{name}") for name in files.names(folder)]
    for feature, name in places:
        path = files.root / name
        try:
            if not _check(files, name):
                found.append(Fault(feature, path, f"{path.name} is of no index of this format", False))
        except CorruptStoreError as error:
            command = "fcache duplicates --calibrate" if name == CALIBRATION else "fcache index"
            message = f"{path.name}: expected {error.expected}, got {error.got}; `{command}` makes it anew"
            found.append(Fault(feature, path, message, True))
        except OSError as error:
            found.append(Fault(feature, path, f"{path.name} cannot be read ({error})", True))
    return found


VECTORS_NAME = re.compile(r"\d{8}-[0-9a-f]{8}")


def _check(files: IndexFiles, name: str) -> bool:
    """Read one file in the way that its name says; False where its name says nothing.

    Raises:
        CorruptStoreError: its bytes contradict their checksum.
    """
    folder, _, last = name.rpartition("/")
    if name == CALIBRATION:
        open_sealed_json(files.read(name), str(files.root / name))
    elif folder == APPROXIMATE and last.endswith(".faiss"):
        stated = files.load(name.removesuffix(".faiss") + ".stated")[0]
        if file_crc32c(files.root / name) != stated[CHECKSUM]:
            raise CorruptStoreError(str(files.root / name), expected="the checksum it was built with", got="another")
    elif last == SPACE or last.endswith(".stated") or (folder.endswith("/" + VECTORS) and VECTORS_NAME.fullmatch(last)):
        files.load(name)
    else:
        return False
    return True
