"""Publish files: a file appears under its name complete and on the disk, or not at all.

Publishing takes four steps: write a temporary file, fsync it, link it to its final name without replacing, fsync the
folder. A second writer of the same name is told so and changes nothing. A derived file may be written again and
replaces the older one by rename. A killed process leaves at most temporary files. Each temporary file is locked (flock)
by its writer, so `sweep` removes only those of dead processes, without process ids, host names or clocks.

Stores and checkpoints are published with this module; the module knows neither.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import os
import re
import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from featurecache.errors import WriteError
from featurecache.machine import sync

TEMPORARY_PREFIX = ".tmp-"
_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{16}")
"""The full pattern of temporary names, so that no other program's file is taken for one."""
BLOCK_BYTES = 2 << 20
SEND_BYTES = 8 << 20
"""The kernel is asked to start writing after this many bytes, so that the final fsync is short."""
SYNC_FILE_RANGE_WRITE = 2
UNSUPPORTED = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.ENOLCK)

_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)  # Linux only
if _sync_file_range is not None:
    _sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


_AGAIN = "and run the same command again: what was committed is untouched."
_ELSEWHERE = "Name another place."
_REFUSALS = {
    errno.ENOSPC: ("free space", "the disk is full", f"Free space {_AGAIN}"),
    errno.EDQUOT: ("free space", "the quota is used up", f"Free space {_AGAIN}"),
    errno.EFBIG: (
        "a file of this size to be allowed", "the file size limit was reached", f"Raise the limit (ulimit -f) {_AGAIN}"
    ),
    errno.EROFS: ("a writable disk", "it is read-only", f"Name another place, or make it writable {_AGAIN}"),
    errno.EACCES: ("permission to write", "none", f"Name another place, or grant it {_AGAIN}"),
    errno.EPERM: ("permission to write", "none", f"Name another place, or grant it {_AGAIN}"),
    errno.EIO: ("to be written", "an error of the disk", f"Mend the disk {_AGAIN}"),
    errno.ENOTDIR: ("a folder to write to", "a file where a folder should be", _ELSEWHERE),
    errno.EEXIST: ("a folder to write to", "a file where a folder should be", _ELSEWHERE),
    errno.EISDIR: ("a file to write", "a folder of that name", _ELSEWHERE),
    errno.ENAMETOOLONG: ("a name that the disk can hold", "one that is too long", _ELSEWHERE),
    errno.ELOOP: ("a place to write", "links that lead in a circle", _ELSEWHERE),
}  # fmt: skip
_SQLITE = {sqlite3.SQLITE_FULL: errno.ENOSPC, sqlite3.SQLITE_READONLY: errno.EROFS, sqlite3.SQLITE_IOERR: errno.EIO}
_RUST = re.compile(r"\(os error (\d+)\)|\bOs { code: (\d+)")  # the messages of newer and of older safetensors


def write_error(subject: str | Path, error: OSError) -> WriteError:
    """Return the WriteError for a refusal of the disk, with the next step for the user."""
    expected, got, step = _REFUSALS.get(
        error.errno or 0, ("to be written", os.strerror(error.errno or 0), f"Mend the disk {_AGAIN}")
    )
    return WriteError(str(subject), expected=expected, got=got, next_step=step)


def disk_error(error: BaseException) -> OSError | None:
    """Return the OSError behind an exception of the disk, in whatever form a library raises it; otherwise None."""
    if isinstance(error, OSError):
        return error
    if isinstance(error, sqlite3.Error):
        number = _SQLITE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
    elif rust_error := _RUST.search(str(error)):  # safetensors
        number = int(rust_error[1] or rust_error[2])
    else:  # torch's archives
        number = errno.EIO if isinstance(error, RuntimeError) and "PytorchStreamWriter" in str(error) else None
    return None if number is None else OSError(number, os.strerror(number))


def refused_write(error: BaseException, subject: str) -> WriteError | None:
    """Return the WriteError for a refusal of the disk that no module has explained; None for any other exception."""
    refusal = disk_error(error)
    if refusal is None or refusal.errno not in _REFUSALS:
        return None
    return write_error(refusal.filename if isinstance(refusal.filename, str) else subject, refusal)


@contextlib.contextmanager
def writing(subject: str | Path) -> Iterator[None]:
    """Turn an error of the disk inside the block into a WriteError about `subject`."""
    try:
        yield
    except Exception as error:
        refusal = disk_error(error)
        if refusal is None:
            raise
        raise write_error(subject, refusal) from error


def require_writable(path: Path, *, folder: bool = False) -> None:
    """Check that an output can be written, before the work for it is done. Nothing is left on the disk.

    Args:
        folder: whether the output is a folder.

    Raises:
        WriteError: the path is a folder and the output is a file, or the reverse; or the place is not writable.
    """
    with writing(path):
        if not folder and path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        place = path if folder else Path(os.path.realpath(path)).parent
        while not os.path.lexists(place):
            place = place.parent
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if folder or not _is_special(path):
            TemporaryFile(place).close()


class TemporaryFile:
    """A temporary file, locked by this process, in the file system of its final name.

    Use it as a context manager: leaving the block without `publish` or `replace` removes the file.
    """

    def __init__(self, folder: Path, *, private: bool = False) -> None:
        """Create the file. Its permissions follow the umask; if `private`, only the owner may read it."""
        folder.mkdir(parents=True, exist_ok=True)
        self._unsent = 0
        self._block, self._filled, self._block_begin = bytearray(), 0, 0
        while True:
            self.path = folder / (TEMPORARY_PREFIX + secrets.token_hex(8))
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600 if private else 0o666)
            if lock_now(self.fd) and os.fstat(self.fd).st_nlink == 1:
                return
            os.close(self.fd)  # `sweep` of another process removed the file between its creation and the lock

    def write(self, data: bytes | memoryview) -> None:
        """Append at the file's position."""
        view = memoryview(data).cast("B")
        while view:
            view = view[os.write(self.fd, view) :]

    def write_at(self, data: bytes | memoryview, offset: int) -> None:
        """Write at `offset`; a gap before it becomes a hole. Consecutive writes are collected into aligned blocks.

        The page cache holds whole aligned blocks in large pages, which are faster to write and to map.
        """
        view = memoryview(data).cast("B")
        if not self._block:
            self._block = bytearray(BLOCK_BYTES)
        if offset != self._block_begin + self._filled:
            self.flush()
            self._block_begin = offset
        while view:
            left_in_block = BLOCK_BYTES - (self._block_begin + self._filled) % BLOCK_BYTES
            piece = view[:left_in_block]
            if len(piece) == BLOCK_BYTES:  # a whole block needs no copy
                self._send(piece, self._block_begin)
                self._block_begin += BLOCK_BYTES
            else:
                self._block[self._filled : self._filled + len(piece)] = piece
                self._filled += len(piece)
                if len(piece) == left_in_block:
                    self.flush()
            view = view[left_in_block:]

    def flush(self) -> None:
        """Write the collected bytes."""
        filled, self._filled = self._filled, 0
        self._send(memoryview(self._block)[:filled], self._block_begin)
        self._block_begin += filled

    def _send(self, view: memoryview, offset: int) -> None:
        self._unsent += len(view)
        while view:
            written = os.pwrite(self.fd, view, offset)
            view, offset = view[written:], offset + written
        if self._unsent >= SEND_BYTES:
            self._unsent = 0
            _start_writing(self.fd)

    def sync(self) -> None:
        """Put everything that was written on the disk."""
        self.flush()
        sync(self.fd)

    def publish(self, target: Path) -> bool:
        """Give the file its name, with its content on the disk first. Return False if the name is taken."""
        self.sync()
        created = make_folder(target.parent, sync=False)
        try:
            _link_without_replacing(self.path, target)
        except FileExistsError:
            return False
        _sync_folders(target.parent, created)
        return True

    def replace(self, target: Path) -> None:
        """Give the file its name and replace an older file. Its permissions stay, and its owner where possible."""
        with contextlib.suppress(FileNotFoundError):
            _copy_permissions(os.stat(target), self.fd)
        self.sync()
        created = make_folder(target.parent, sync=False)
        os.rename(self.path, target)
        _sync_folders(target.parent, created)

    def close(self) -> None:
        """Remove the temporary name and release the lock. Safe to call twice."""
        if self.fd >= 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> TemporaryFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def publish_bytes(target: Path, data: bytes, temporary_folder: Path | None = None) -> bool:
    """Publish a small file. Return False, and change nothing, if the name is taken.

    Raises:
        WriteError: the disk is full or refuses.
    """
    with writing(target), TemporaryFile(temporary_folder or target.parent) as file:
        file.write(data)
        return file.publish(target)


def replace_bytes(target: Path, data: bytes, temporary_folder: Path | None = None) -> None:
    """Write a file and replace an older one in one step. A symbolic link stays; its target is replaced.

    A device or pipe (/dev/stdout) is written to directly. Temporary files of dead processes in the folder are removed.

    Raises:
        WriteError: the disk is full or refuses.
    """
    with writing(target):
        if _is_special(target):
            target.write_bytes(data)
            return
        real = Path(os.path.realpath(target))
        if temporary_folder is None:
            sweep(real.parent, shared=True)
        # Private from the start, so that no user who may not read the older file can read the new one.
        with TemporaryFile(temporary_folder or real.parent, private=real.exists()) as file:
            file.write(data)
            file.replace(real)


def _is_special(path: Path) -> bool:
    """Return whether the path is a device, a pipe or a socket, which must not be replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


def make_temporary_folder(parent: Path, prefix: str) -> Path:
    """Create a folder to be filled and published by `publish_folder`. Unlike mkdtemp, it follows the umask."""
    folder = parent / (prefix + secrets.token_hex(8))
    folder.mkdir()
    return folder


def remove_temporary_folders(parent: Path, prefix: str) -> None:
    """Remove the folders that killed processes left; the caller holds the lock under which they are made."""
    for folder in parent.glob(f"{glob.escape(prefix)}*"):
        if re.fullmatch(r"[0-9a-f]{16}", folder.name.removeprefix(prefix)) and folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)


def publish_folder(temporary: Path, target: Path) -> bool:
    """Give a finished folder its name, with all its files on the disk first.

    Returns False, and changes nothing, if the name is taken; an empty folder of that name may be replaced. All users
    who may read the folder may read its files: safetensors, for example, creates files that only the owner may read.

    Raises:
        WriteError: the disk is full or refuses.
    """
    with writing(target):
        read_bits = os.stat(temporary).st_mode & 0o666
        for folder, _, names in os.walk(temporary, topdown=False):
            for path in (Path(folder) / name for name in names):
                if (mode := path.stat().st_mode) & read_bits != read_bits:
                    path.chmod(mode | read_bits)
                _sync_path(path, os.O_RDONLY)
            sync_folder(Path(folder))
        try:
            os.rename(temporary, target)  # fails if the folder of that name is not empty
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                return False
            raise
        sync_folder(target.parent)
        return True


def make_folder(folder: Path, *, sync: bool = True) -> list[Path]:
    """Create a folder and its parents, on the disk if `sync`. Return the folders that were missing."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)
    if sync:
        _sync_folders(None, missing)
    return missing


def _sync_folders(folder: Path | None, created: list[Path]) -> None:
    """Put the entry of a new file in `folder` on the disk, and the entries of the folders created for it."""
    for path in [*([folder] if folder else []), *(new.parent for new in created)]:
        sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Put the entries of a folder on the disk."""
    _sync_path(folder, os.O_RDONLY | os.O_DIRECTORY)


def sweep(folder: Path, *, dry_run: bool = False, shared: bool = False) -> list[Path]:
    """Remove the temporary files of dead processes and return them. Those of living processes stay.

    Args:
        dry_run: only return them.
        shared: the folder holds files of other programs, so only names of exactly this module's form count.
    """
    removed: list[Path] = []
    temporary: list[Path] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(TEMPORARY_PREFIX) and entry.is_file(follow_symlinks=False):
                temporary += [Path(entry)] if not shared or _TEMPORARY.fullmatch(entry.name) else []
    for path in sorted(temporary):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, PermissionError):  # a file of another user in a shared folder
            continue
        try:
            if lock_now(fd):
                removed.append(path)
                if not dry_run:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)
        finally:
            os.close(fd)
    return removed


def _copy_permissions(source: os.stat_result, fd: int) -> None:
    """Give an open file the owner, group and permissions of another file, as far as the system allows.

    If the group cannot be set, the group of this process gets only the permissions that all users had.
    """
    mode = source.st_mode & 0o777
    try:
        os.fchown(fd, source.st_uid, source.st_gid)
    except OSError:
        try:
            os.fchown(fd, -1, source.st_gid)
        except OSError:
            mode &= 0o707 | (mode & 0o007) << 3
    try:
        os.fchmod(fd, mode)
    except OSError as error:
        if error.errno not in UNSUPPORTED:  # a file system without permissions
            raise


def _link_without_replacing(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        # The file system has no hard links. O_EXCL reserves the name; the rename replaces only this empty file.
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        os.rename(source, target)


def _sync_path(path: Path, flags: int) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        sync(fd)
    finally:
        os.close(fd)


def _start_writing(fd: int) -> None:
    if _sync_file_range is not None:
        _sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE)


def lock_now(fd: int) -> bool:
    """Lock a file without waiting. Return False if another process has locked it.

    A file system without locks counts as success.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno not in UNSUPPORTED:
            raise
    return True
