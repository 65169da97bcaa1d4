"""Read files of `torch.save` without executing code in them, and explain why a file cannot be read.

Tensors, numbers, texts and containers are read, and objects of the classes in `ALLOWED`, whose fields are plain data. A
file that names another class or function is refused; the error gives the name. The zip archive and the older single
stream are both supported.
"""

from __future__ import annotations

import argparse
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

ALLOWED: tuple[type, ...] = (argparse.Namespace,)
"""Allowed classes besides those of torch. Training scripts save their command-line options beside the weights."""
_ZIP, _PICKLE = b"PK", b"\x80"
_STREAM_PICKLES = 5
"""Pickles at the beginning of the older stream: magic number, version, system, saved object, storage keys."""
_TRUNCATED = re.compile("truncated|unexpected EOF|ran out of input", re.IGNORECASE)
_FAULTS = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
)
"""Exceptions that reading a damaged file may raise."""


class UnreadableFileError(ValueError):
    """A file cannot be read; the message says why, and callers add the path."""


def read_torch_file(path: Path) -> Any:
    """Return the object that `torch.save` wrote, with its tensors on the CPU.

    Raises:
        UnreadableFileError: the file is truncated, damaged, of another kind, or names a class that is not allowed.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
    if not head.startswith((_ZIP, _PICKLE)):
        raise UnreadableFileError(_kind(head, size))
    archive = head.startswith(_ZIP)
    if archive and not zipfile.is_zipfile(path):
        raise UnreadableFileError(f"a truncated file of {size:,} bytes: the end of its archive is missing")
    try:
        with torch.serialization.safe_globals(list(ALLOWED)), warnings.catch_warnings(action="ignore"):
            document = torch.load(path, map_location="cpu", weights_only=True)
    except _FAULTS as error:
        raise UnreadableFileError(_why(path, archive, str(error), size)) from error
    if archive:  # torch does not compare the checksums
        with zipfile.ZipFile(path) as members:
            if (damaged := members.testzip()) is not None:
                raise UnreadableFileError(f"a damaged file: the checksum of its part {damaged} differs")
    return document


def _kind(head: bytes, size: int) -> str:
    if not size:
        return "an empty file"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer in place of the file"
    if head.lstrip().startswith(b"<"):
        return "a web page"
    return "a file of another kind"


def _why(path: Path, archive: bool, message: str, size: int) -> str:
    names, complete = _names_in_archive(path) if archive else _names_in_stream(path)
    if not complete or _TRUNCATED.search(message):
        return f"a truncated file of {size:,} bytes"
    if names:
        return f"a file that names {', '.join(names)}"
    return f"a damaged file: {message.strip().partition(chr(10))[0][:160] or 'its tensors cannot be found'}"


def _names_in_archive(path: Path) -> tuple[list[str], bool]:
    """Return the names of classes and functions that are not allowed, and True: an archive's pickles are whole."""
    try:
        with torch.serialization.safe_globals(list(ALLOWED)):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)), True
    except _FAULTS:
        return [], True


def _names_in_stream(path: Path) -> tuple[list[str], bool]:
    """Return the same for the older stream, and whether its pickles are whole. No code in them is executed."""
    names: set[str] = set()
    texts: list[str] = []
    with path.open("rb") as file:
        for number in range(_STREAM_PICKLES):
            try:
                for code, value, _ in pickletools.genops(file):
                    if code.name == "GLOBAL":
                        names.add(str(value).replace(" ", "."))
                    elif code.name == "STACK_GLOBAL":
                        names.add(".".join(texts[-2:]))
                    elif isinstance(value, str):
                        texts.append(value)
            except ValueError:
                single = number == 1 and bool(_foreign(names))  # a single pickle, written by another program
                return _foreign(names), single
    return _foreign(names), True


def _foreign(names: Iterable[str]) -> list[str]:
    allowed = {f"{cls.__module__}.{cls.__qualname__}" for cls in ALLOWED} | {"collections.OrderedDict"}
    return sorted(name for name in names if name not in allowed and not name.startswith("torch."))
