"""Make a file visible at once, complete, or not at all.

Publish: write a temporary file, fsync it, link it to its name without replacing, fsync the folder. Whoever comes second
learns of it and changes nothing. Derived files, which may be written again, replace by rename instead. A killed process
leaves at most temporary files; each is held by a lock (flock) of its writer, so that `sweep` can tell those of the dead
from those of the living without process ids, host names or clocks.

Stores and checkpoints both publish with this module. It knows neither.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from featurecache.errors import WriteError
from featurecache.machine import sync

TEMPORARY_PREFIX = ".tmp-"
_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{16}")
"""Names of temporary files in full, so that nobody else's file is taken for one."""
BLOCK_BYTES = 2 << 20
SEND_BYTES = 8 << 20
"""After so many bytes the disk is asked to begin, so that the final fsync finds little left to do."""
SYNC_FILE_RANGE_WRITE = 2
UNSUPPORTED = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.ENOLCK)

_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)  # Linux alone has it
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
_RUST = re.compile(r"\(os error (\d+)\)|\bOs { code: (\d+)")  # as newer and as older safetensors say it


def write_error(subject: str | Path, error: OSError) -> WriteError:
    """Say what the disk refused, and what to do, in the project's form."""
    expected, got, step = _REFUSALS.get(
        error.errno or 0, ("to be written", os.strerror(error.errno or 0), f"Mend the disk {_AGAIN}")
    )
    return WriteError(str(subject), expected=expected, got=got, next_step=step)


def disk_error(error: BaseException) -> OSError | None:
    """The refusal of a disk that an exception tells of, in whatever form a library raises it; otherwise None."""
    if isinstance(error, OSError):
        return error
    if isinstance(error, sqlite3.Error):
        number = _SQLITE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
    elif found := _RUST.search(str(error)):  # safetensors
        number = int(found[1] or found[2])
    else:  # torch's archives
        number = errno.EIO if isinstance(error, RuntimeError) and "PytorchStreamWriter" in str(error) else None
    return None if number is None else OSError(number, os.strerror(number))


def refused_write(error: BaseException, subject: str) -> WriteError | None:
    """The error to show for a refusal of the disk that no module has put into words; None for any other exception."""
    refusal = disk_error(error)
    if refusal is None or refusal.errno not in _REFUSALS:
        return None
    return write_error(refusal.filename if isinstance(refusal.filename, str) else subject, refusal)


@contextlib.contextmanager
def writing(subject: str | Path) -> Iterator[None]:
    """Turn what a disk refuses inside the block into a WriteError that names `subject`."""
    try:
        yield
    except Exception as error:
        refusal = disk_error(error)
        if refusal is None:
            raise
        raise write_error(subject, refusal) from error


def require_writable(path: Path, *, folder: bool = False) -> None:
    """Refuse a place for an output before the work for it is done; nothing is left there.

    Args:
        folder: whether `path` is to be a folder.

    Raises:
        WriteError: it is a folder where a file is to be, or the other way round; or nothing can be written there.
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
    """A file nobody else sees, locked by this process, in the file system of its final name.

    Use as a context manager: leaving the block without `publish` or `replace` removes it.
    """

    def __init__(self, folder: Path, *, private: bool = False) -> None:
        """Create the file; its permissions follow the umask, or none but the owner may read it if `private`."""
        folder.mkdir(parents=True, exist_ok=True)
        self._unsent = 0
        self._block, self._filled, self._block_begin = bytearray(), 0, 0
        while True:
            self.path = folder / (TEMPORARY_PREFIX + secrets.token_hex(8))
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600 if private else 0o666)
            if _lock_now(self.fd) and os.fstat(self.fd).st_nlink == 1:
                return
            os.close(self.fd)  # a sweeper came between creation and lock

    def write(self, data: bytes | memoryview) -> None:
        """Append at the file's position."""
        view = memoryview(data).cast("B")
        while view:
            view = view[os.write(self.fd, view) :]

    def write_at(self, data: bytes | memoryview, offset: int) -> None:
        """Write at `offset`; what lies between is a hole. What follows on the write before is gathered into blocks.

        Whole aligned blocks give the page cache large pages, which are quicker to write and to map.
        """
        view = memoryview(data).cast("B")
        if not self._block:
            self._block = bytearray(BLOCK_BYTES)
        if offset != self._block_begin + self._filled:
            self.flush()
            self._block_begin = offset
        while view:
            room = BLOCK_BYTES - (self._block_begin + self._filled) % BLOCK_BYTES
            piece = view[:room]
            if len(piece) == BLOCK_BYTES:  # a whole block needs no gathering
                self._send(piece, self._block_begin)
                self._block_begin += BLOCK_BYTES
            else:
                self._block[self._filled : self._filled + len(piece)] = piece
                self._filled += len(piece)
                if len(piece) == room:
                    self.flush()
            view = view[room:]

    def flush(self) -> None:
        """Hand to the kernel what was gathered."""
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
        self.flush()
        sync(self.fd)

    def publish(self, target: Path) -> bool:
        """Give the file its name unless the name is taken; False where it is. The content is on the disk first."""
        self.sync()
        made = make_folder(target.parent, sync=False)
        try:
            _link_without_replacing(self.path, target)
        except FileExistsError:
            return False
        _sync_folders(target.parent, made)
        return True

    def replace(self, target: Path) -> None:
        """Give the file its name, in place of what had it: permissions, and owner where the system allows, stay."""
        with contextlib.suppress(FileNotFoundError):
            _copy_permissions(os.stat(target), self.fd)
        self.sync()
        made = make_folder(target.parent, sync=False)
        os.rename(self.path, target)
        _sync_folders(target.parent, made)

    def close(self) -> None:
        """Remove the temporary name and let go of the lock. Safe to call twice."""
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
    """Publish a small file; False, and nothing changed, where the name is taken.

    Raises:
        WriteError: the disk is full or refuses.
    """
    with writing(target), TemporaryFile(temporary_folder or target.parent) as file:
        file.write(data)
        return file.publish(target)


def replace_bytes(target: Path, data: bytes, temporary_folder: Path | None = None) -> None:
    """Write a derived file, replacing what was there in one step. A link stays, and what it leads to is replaced.

    A device or pipe (/dev/stdout) is written to. Temporary files of dead processes beside the target are removed.

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
        # Private from the start: who may not read the replaced file never reads what replaces it.
        with TemporaryFile(temporary_folder or real.parent, private=real.exists()) as file:
            file.write(data)
            file.replace(real)


def _is_special(path: Path) -> bool:
    """Whether a device, a pipe or a socket is there: nothing may take its place."""
    return path.exists() and not path.is_file() and not path.is_dir()


def make_temporary_folder(parent: Path, prefix: str) -> Path:
    """Create a folder to fill for `publish_folder`; its permissions follow the umask, which those of mkdtemp do not."""
    folder = parent / (prefix + secrets.token_hex(8))
    folder.mkdir()
    return folder


def publish_folder(temporary: Path, target: Path) -> bool:
    """Give a finished folder its name unless the name is taken; every file of it is on the disk first.

    An empty folder of that name counts as free. Returns False, with nothing changed, where the name is taken.
    Whoever may read the folder may read its files: safetensors, for one, writes files that only their owner may read.

    Raises:
        WriteError: the disk is full or refuses.
    """
    with writing(target):
        readers = os.stat(temporary).st_mode & 0o666
        for folder, _, names in os.walk(temporary, topdown=False):
            for path in (Path(folder) / name for name in names):
                if (mode := path.stat().st_mode) & readers != readers:
                    path.chmod(mode | readers)
                _sync_path(path, os.O_RDONLY)
            sync_folder(Path(folder))
        try:
            os.rename(temporary, target)  # never replaces a folder that holds anything
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                return False
            raise
        sync_folder(target.parent)
        return True


def make_folder(folder: Path, *, sync: bool = True) -> list[Path]:
    """Create a folder and its parents; returns those that were missing. On the disk before this returns, if `sync`."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(each)
    if sync:
        _sync_folders(None, missing)
    return missing


def _sync_folders(folder: Path | None, made: list[Path]) -> None:
    """After a file was named in `folder`, whose ancestors `made` are new: one journal commit serves all of them."""
    for each in [*([folder] if folder else []), *(each.parent for each in made)]:
        sync_folder(each)


def sync_folder(folder: Path) -> None:
    """Put a folder's entries on the disk."""
    _sync_path(folder, os.O_RDONLY | os.O_DIRECTORY)


def sweep(folder: Path, *, dry_run: bool = False, shared: bool = False) -> list[Path]:
    """Remove the temporary files of dead processes; returns them. Those of living ones are left alone.

    Args:
        shared: whether others keep files in the folder, so that only names that this module gives count.
    """
    swept: list[Path] = []
    left: list[Path] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(TEMPORARY_PREFIX) and entry.is_file(follow_symlinks=False):
                left += [Path(entry)] if not shared or _TEMPORARY.fullmatch(entry.name) else []
    for path in sorted(left):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, PermissionError):  # another user's file in a shared folder is left to that user
            continue
        try:
            if _lock_now(fd):
                swept.append(path)
                if not dry_run:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)
        finally:
            os.close(fd)
    return swept


def _copy_permissions(source: os.stat_result, fd: int) -> None:
    """Give an open file the owner, the group and the permissions of another, as far as the system allows.

    Where the group cannot be kept, the group of this process gets no more than everybody had.
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
        # A file system without hard links. O_EXCL reserves the name; the rename then replaces only our own empty file.
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


def _lock_now(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno not in UNSUPPORTED:
            raise
    return True
