"""Bring a folder of one .npy a clip into a store: `features/<encoder>/<id>.npy`, (1, K, D) or (K, D), any float dtype.

What such files were made with is not in them, so the spec says `origin: unverified` and carries no weights: its
fingerprint can never equal that of an extraction. A clip's source is the sha256 of its file. Files that cannot be used
become failed clips with the reason. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurecache.errors import FingerprintError, StoreError, StoreNotFoundError
from featurecache.files.hashing import file_sha256
from featurecache.maintenance.recompute import Outcome, Recompute
from featurecache.spec import Spec
from featurecache.store.layout import id_problem
from featurecache.store.local import LocalStore
from featurecache.store.protocols import Shard, Status
from featurecache.store.records import clean_reason
from featurecache.store.writer import StoredFeatureWriter, encode_tokens

SHAPES_ASKED = 32
"""So many files decide what shape a feature has."""


@dataclass(frozen=True)
class Imported:
    """What was read of one folder."""

    name: str
    num_ok: int
    failures: dict[str, str]
    """Clip id: reason."""
    num_earlier: int
    """Files that an earlier import had read."""


def import_npy(
    folder: Path,
    store: LocalStore,
    name: str | None = None,
    *,
    prefix: str = "",
    stored_dtype: str = "float16",
    retry: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Imported]:
    """Import `folder` as a feature called `name`; where it holds folders only, each of them under its own name.

    A clip's id is `prefix` and its file's name without the ending.

    Run again, it adds what is new and touches nothing else. `retry` also reads again what failed or has changed.

    Raises:
        StoreNotFoundError: no .npy files there.
        StoreError: a file name that is no clip id, or several folders under one `name`.
        FingerprintError: the store has a feature of that name under another spec, or clips in it from other bytes.
    """
    groups = _groups(folder, prefix)
    if name is not None and len(groups) > 1:
        raise StoreError(str(folder), expected="one folder of .npy files for --name", got=", ".join(sorted(groups)))
    return [
        _import_folder(files, store, name or group, stored_dtype, retry, progress)
        for group, files in sorted(groups.items())
    ]


def taken_from_files(folder: Path, store: LocalStore) -> Recompute:
    """A `Recompute`, for repair, that reads clips of `store` from the files they were imported from.

    A clip `set/a1`, imported with the prefix `set/`, is found in `a1.npy`; what its bytes are is checked by repair.

    Raises:
        StoreNotFoundError: no .npy files there.
    """
    groups = _groups(folder, "")

    def take(feature: str, ids: Sequence[str]) -> Iterator[Outcome]:
        files = next(iter(groups.values())) if len(groups) == 1 else groups.get(feature, {})
        spec = store.spec(feature)
        for clip_id in ids:
            source = ""
            try:
                data = _file_of(clip_id, files).read_bytes()
                source = hashlib.sha256(data).hexdigest()
                rows, stated = encode_tokens(_tokens(data, spec.shape), spec)
            except (OSError, ValueError, KeyError, EOFError) as error:
                found = not isinstance(error, KeyError)
                yield Outcome(clip_id, Status.FAILED, source, reason=_reason(error), tried=found)
            else:
                yield Outcome(clip_id, Status.OK, source, rows=rows, stated=stated)

    return take


def _file_of(clip_id: str, files: Mapping[str, Path]) -> Path:
    """The file of a clip, whose id may begin with a prefix that ends in a slash.

    Raises:
        KeyError: there is none.
    """
    name = clip_id
    while name not in files and "/" in name:
        name = name.partition("/")[2]
    return files[name]


def unverified_spec(name: str, shape: tuple[int, int], stored_dtype: str) -> Spec:
    """A spec that claims nothing but the name, shape and dtype."""
    return Spec(
        encoder=name,
        implementation=0,
        weights={},
        architecture={},
        tap={},
        preprocessing={"origin": "unverified", "read_from": "npy"},
        pooling={},
        compute_dtype="unknown",
        stored_dtype=stored_dtype,
        shape=shape,
        provenance={"origin": "unverified: imported from .npy files"},
    )


def _groups(folder: Path, prefix: str) -> dict[str, dict[str, Path]]:
    """Files by clip id, by feature name."""
    if not folder.is_dir():
        raise StoreNotFoundError(str(folder), expected="a folder of .npy files", got="no such folder")
    direct = {prefix + path.stem: path for path in sorted(folder.glob("*.npy"))}
    groups = {folder.name: direct} if direct else {}
    if not direct:
        for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
            files = {prefix + path.relative_to(inner).as_posix()[:-4]: path for path in sorted(inner.rglob("*.npy"))}
            groups |= {inner.name: files} if files else {}
    if not groups:
        raise StoreNotFoundError(str(folder), expected=".npy files, or folders of them", got="none")
    problems = [problem for files in groups.values() for problem in map(id_problem, files) if problem]
    if problems:
        raise StoreError(str(folder), expected="file names that are clip ids", got="others", problems=problems)
    return groups


def _import_folder(
    files: dict[str, Path],
    store: LocalStore,
    name: str,
    stored_dtype: str,
    retry: bool,
    progress: Callable[[int, int], None] | None,
) -> Imported:
    shape = _usual_shape(files)
    writer = store.writer(name, unverified_spec(name, shape, stored_dtype))
    writer.plan(list(files))
    failed, changed = _stale(writer, files)
    still: dict[str, str] = {}
    if retry:
        still = {clip_id: reason for clip_id in failed if (reason := _fails_as_before(writer, clip_id, files[clip_id]))}
        writer.retry([*(clip_id for clip_id in failed if clip_id not in still), *changed])
    elif changed:
        raise FingerprintError(
            writer.subject,
            expected="the files that its tokens were read from",
            got=f"other bytes in {len(changed)}",
            next_step="`fcache import-npy --retry` reads them anew; or give the new files new names.",
            problems=changed,
        )
    pending = writer.pending()
    pending_ids = {clip_id for shard in pending for clip_id in shard.ids}
    total = len(pending_ids)
    failures = {clip_id: reason for clip_id, reason in still.items() if clip_id not in pending_ids}
    total += len(failures)
    done = len(failures)
    for shard in pending:
        if progress:
            progress(done, total)
        done += _import_shard(writer, shard, files, failures)
    if progress:
        progress(done, total)
    return Imported(name, total - len(failures), failures, len(files) - total)


def _stale(writer: StoredFeatureWriter, files: dict[str, Path]) -> tuple[list[str], list[str]]:
    """Clips that failed, and clips whose files are not those that their tokens were read from."""
    failed, changed = [], []
    for clip_id, path in files.items():
        record = writer.record(clip_id)
        if record is not None and record.status is Status.FAILED:
            failed.append(clip_id)
        elif record is not None and file_sha256(path) != record.source:
            changed.append(clip_id)
    return failed, changed


def _fails_as_before(writer: StoredFeatureWriter, clip_id: str, path: Path) -> str:
    """Why a file that failed fails again, where its record says the same; otherwise an empty string."""
    source = ""
    try:
        data = path.read_bytes()
        source = hashlib.sha256(data).hexdigest()
        encode_tokens(_tokens(data, writer.shape), writer.spec)
    except (OSError, ValueError, EOFError) as error:
        record = writer.record(clip_id)
        same = record is not None and (record.source, record.reason) == (source, clean_reason(_reason(error)))
        return _reason(error) if same else ""
    return ""


def _import_shard(writer: StoredFeatureWriter, shard: Shard, files: dict[str, Path], failures: dict[str, str]) -> int:
    with writer.begin(shard) as shard_writer:
        for slot, clip_id in enumerate(shard.ids):
            source = ""
            try:
                data = files[clip_id].read_bytes()
                source = hashlib.sha256(data).hexdigest()
                shard_writer.put(slot, _tokens(data, writer.shape), source)
            except (OSError, ValueError, KeyError, EOFError) as error:
                failures[clip_id] = _reason(error)
                shard_writer.fail(slot, failures[clip_id], source)
        shard_writer.commit()
    return len(shard.ids)


def _reason(error: Exception) -> str:
    """Why a file could not be used, without its path: reasons are kept in the store."""
    if isinstance(error, KeyError):
        return "not in the folder any more"
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)


def _tokens(data: bytes, shape: tuple[int, int] | None = None) -> np.ndarray:
    """(K, D) float32 of one file.

    Raises:
        ValueError: not a .npy file of numbers of that shape.
    """
    array = np.load(io.BytesIO(data), allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        raise ValueError("expected an array of floating-point numbers")
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 2 or (shape is not None and array.shape != shape):
        raise ValueError(f"expected shape {shape or '(K, D)'}, got {array.shape}")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, np.float32)


def _usual_shape(files: dict[str, Path]) -> tuple[int, int]:
    """The commonest shape (K, D) among the first readable files."""
    shapes: Counter[tuple[int, int]] = Counter()
    for path in files.values():
        try:
            tokens = _tokens(path.read_bytes())
        except (OSError, ValueError, EOFError):
            continue
        shapes[tokens.shape[0], tokens.shape[1]] += 1
        if shapes.total() == SHAPES_ASKED:
            break
    if not shapes:
        folder = next(iter(files.values())).parent
        raise StoreError(str(folder), expected="at least one readable (1, K, D) array", got="none")
    return shapes.most_common(1)[0][0]
