"""Import .npy files of features into a store: `features/<encoder>/<id>.npy`, (1, K, D) or (K, D), any float dtype.

The files do not say how they were computed, so the spec says `origin: unverified` and names no weights; its fingerprint
can never equal that of an extraction. The source of a clip is the sha256 of its file. A clip whose file cannot be used
is recorded as failed, with the reason. Nothing is unpickled.
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
from featurecache.maintenance.repair import Recompute, RecomputedClip
from featurecache.spec import Spec
from featurecache.store.layout import id_problem
from featurecache.store.local import LocalStore
from featurecache.store.protocols import Shard, Status
from featurecache.store.quantize import encode_tokens
from featurecache.store.records import clean_reason
from featurecache.store.writer import StoredFeatureWriter

NUM_SHAPE_FILES = 32
"""Number of readable files that decide the shape of a feature."""


@dataclass(frozen=True)
class ImportedFeature:
    """Result of importing one folder."""

    name: str
    num_ok: int
    failures: dict[str, str]
    """Clip id -> reason."""
    num_earlier: int
    """Files that an earlier import read already."""


def import_npy(
    folder: Path,
    store: LocalStore,
    name: str | None = None,
    *,
    prefix: str = "",
    stored_dtype: str = "float16",
    retry: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[ImportedFeature]:
    """Import `folder` as the feature `name`; if it holds only folders, import each of them under its own name.

    The id of a clip is `prefix` plus the file name without its ending. A second import adds new files and changes
    nothing else; with `retry` it also reads files again that failed or have changed.

    Raises:
        StoreNotFoundError: the folder holds no .npy files.
        StoreError: a file name is no valid clip id, or `name` is given for several folders.
        FingerprintError: the store has a feature of this name with another spec, or a file has changed since its
            import.
    """
    groups = _groups(folder, prefix)
    if name is not None and len(groups) > 1:
        raise StoreError(str(folder), expected="one folder of .npy files for --name", got=", ".join(sorted(groups)))
    return [
        _import_folder(files, store, name or group, stored_dtype, retry, progress)
        for group, files in sorted(groups.items())
    ]


def recompute_from_files(folder: Path, store: LocalStore) -> Recompute:
    """Return a function for repair that reads clips of `store` from the files they were imported from.

    The file of clip `set/a1`, imported with the prefix `set/`, is `a1.npy`; repair checks that its bytes are the same.

    Raises:
        StoreNotFoundError: the folder holds no .npy files.
    """
    groups = _groups(folder, "")

    def read_again(feature: str, ids: Sequence[str]) -> Iterator[RecomputedClip]:
        files = next(iter(groups.values())) if len(groups) == 1 else groups.get(feature, {})
        spec = store.spec(feature)
        for clip_id in ids:
            source = ""
            try:
                data = _file_of(clip_id, files).read_bytes()
                source = hashlib.sha256(data).hexdigest()
                rows, stated = encode_tokens(_tokens(data, spec.shape), spec)
            except (OSError, ValueError, KeyError, EOFError) as error:
                file_exists = not isinstance(error, KeyError)
                yield RecomputedClip(clip_id, Status.FAILED, source, reason=_reason(error), tried=file_exists)
            else:
                yield RecomputedClip(clip_id, Status.OK, source, rows=rows, statistics=stated)

    return read_again


def _file_of(clip_id: str, files: Mapping[str, Path]) -> Path:
    """Return the file of a clip, whose id may begin with prefixes that end in a slash.

    Raises:
        KeyError: the clip has no file.
    """
    name = clip_id
    while name not in files and "/" in name:
        name = name.partition("/")[2]
    return files[name]


def unverified_spec(name: str, shape: tuple[int, int], stored_dtype: str) -> Spec:
    """Return a spec that states only the name, shape and dtype."""
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
    """Return feature name -> clip id -> file.

    Raises:
        StoreNotFoundError: the folder holds no .npy files.
        StoreError: a file name is no valid clip id.
    """
    if not folder.is_dir():
        raise StoreNotFoundError(str(folder), expected="a folder of .npy files", got="no such folder")
    direct = {prefix + path.stem: path for path in sorted(folder.glob("*.npy"))}
    groups = {folder.name: direct} if direct else {}
    if not direct:
        for subfolder in sorted(path for path in folder.iterdir() if path.is_dir()):
            paths = sorted(subfolder.rglob("*.npy"))
            files = {prefix + path.relative_to(subfolder).as_posix().removesuffix(".npy"): path for path in paths}
            groups |= {subfolder.name: files} if files else {}
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
) -> ImportedFeature:
    shape = _usual_shape(files)
    writer = store.writer(name, unverified_spec(name, shape, stored_dtype))
    writer.plan(list(files))
    failed, changed = _stale(writer, files)
    same_failures: dict[str, str] = {}
    if retry:
        # A file that fails for the same reason again keeps its record: retrying it would only write a new shard.
        same_failures = {
            clip_id: reason for clip_id in failed if (reason := _repeated_failure(writer, clip_id, files[clip_id]))
        }
        writer.retry([*(clip_id for clip_id in failed if clip_id not in same_failures), *changed])
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
    failures = {clip_id: reason for clip_id, reason in same_failures.items() if clip_id not in pending_ids}
    total += len(failures)
    done = len(failures)
    for shard in pending:
        if progress:
            progress(done, total)
        done += _import_shard(writer, shard, files, failures)
    if progress:
        progress(done, total)
    return ImportedFeature(name, total - len(failures), failures, len(files) - total)


def _stale(writer: StoredFeatureWriter, files: dict[str, Path]) -> tuple[list[str], list[str]]:
    """Return the clips that failed, and the clips whose files have changed since their import."""
    failed, changed = [], []
    for clip_id, path in files.items():
        record = writer.record(clip_id)
        if record is not None and record.status is Status.FAILED:
            failed.append(clip_id)
        elif record is not None and file_sha256(path) != record.source:
            changed.append(clip_id)
    return failed, changed


def _repeated_failure(writer: StoredFeatureWriter, clip_id: str, path: Path) -> str:
    """Return why a file fails again if its record has the same reason for the same bytes, else an empty text."""
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
    """Write one shard from its files, add its failures to `failures`, and return its number of clips."""
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
    """Return why a file cannot be used, without its path: a store holds reasons, and no absolute paths."""
    if isinstance(error, KeyError):
        return "not in the folder any more"
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)


def _tokens(data: bytes, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Return the (K, D) float32 tokens of one file.

    Raises:
        ValueError: the data are no .npy file of floating-point numbers in that shape.
    """
    array = np.load(io.BytesIO(data), allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        raise ValueError("expected an array of floating-point numbers")
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 2 or (shape is not None and array.shape != shape):
        raise ValueError(f"expected shape {shape or '(K, D)'}, got {array.shape}")
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, which the writer refuses
        return np.ascontiguousarray(array, np.float32)


def _usual_shape(files: dict[str, Path]) -> tuple[int, int]:
    """Return the most frequent shape (K, D) of the first readable files."""
    shapes: Counter[tuple[int, int]] = Counter()
    for path in files.values():
        try:
            tokens = _tokens(path.read_bytes())
        except (OSError, ValueError, EOFError):
            continue
        shapes[tokens.shape[0], tokens.shape[1]] += 1
        if shapes.total() == NUM_SHAPE_FILES:
            break
    if not shapes:
        folder = next(iter(files.values())).parent
        raise StoreError(str(folder), expected="at least one readable (1, K, D) array", got="none")
    return shapes.most_common(1)[0][0]
