"""Upkeep commands that die at a chosen change of the disk, each in a child process of its own.

`JOBS` names the commands; `prepare` makes what one works on, `run` runs it. A child counts the calls that change
something on the disk and kills itself before the one with the number it was told, so that every state of the disk that
a kill can leave can be reached, and the same one again.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from extracting import _context, make_clips
from small_stores import KINDS, clip_ids, fill, make_spec, source_of, tokens_of

import featurecache
from featurecache.explore.search import update_indices
from featurecache.importers.npy import import_npy
from featurecache.maintenance.convert import convert_store
from featurecache.maintenance.gc import remove_leftovers
from featurecache.maintenance.repair import RecomputedClip, repair_store
from featurecache.maintenance.retry import retry
from featurecache.store.formats import FORMATS
from featurecache.store.protocols import Status

CHANGES = ("link", "rename", "replace", "unlink", "remove", "rmdir", "mkdir", "write", "pwrite", "ftruncate")
RETRIED, FAILED, ABSENT = clip_ids(10)[3], clip_ids(10)[5], clip_ids(10)[4]


def new_tokens(clip_id: str) -> np.ndarray:
    """What a clip's changed media give."""
    return tokens_of(clip_id + " changed")


def prepare_store(place: Path, kind: str) -> None:
    """A store of ten clips, one failed, one absent, one retried with other media; four rows per shard."""
    writer = featurecache.open_store(place, mode="a").writer("whisper", make_spec(), shard_rows=4, codec=KINDS[kind][1])
    writer.plan(clip_ids(10))
    fill(writer, failed=[FAILED], absent=[ABSENT])
    writer.retry([RETRIED])
    (shard,) = writer.pending()
    with writer.begin(shard) as shard_writer:
        shard_writer.put(0, new_tokens(RETRIED), source_of("changed"))
        shard_writer.commit()


def shard_file(place: Path, shard: int) -> Path:
    """The file of a shard, in either format."""
    tar = place / "whisper" / f"{shard:08d}.tar"
    return tar if tar.exists() else place / "whisper/c" / str(shard) / "0/0"


def flip(path: Path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 4
    path.write_bytes(data)


def row_begin(path: Path, clip_id: str) -> int:
    """Where the row of a clip begins in a shard file; where rows are packed, somewhere in the first."""
    return max(0, path.read_bytes().find(tokens_of(clip_id).astype(np.float16).tobytes()))


def recompute(name: str, ids: Sequence[str]) -> Iterator[RecomputedClip]:
    """What the media of today give."""
    for clip_id in ids:
        if clip_id in (FAILED, ABSENT):
            status, reason = (
                (Status.FAILED, "the decoder gave up") if clip_id == FAILED else (Status.ABSENT, "no audio stream")
            )
            yield RecomputedClip(clip_id, status, source_of(clip_id), reason=reason)
        elif clip_id == RETRIED:
            yield RecomputedClip(clip_id, Status.OK, source_of("changed"), new_tokens(clip_id))
        else:
            yield RecomputedClip(clip_id, Status.OK, source_of(clip_id), tokens_of(clip_id))


def prepare_repair(folder: Path, kind: str) -> None:
    """Damaged: the records of a shard and of the retry, a row, the spec, the root file; one record is missing."""
    place = folder / KINDS[kind][0]
    prepare_store(place, kind)
    records = place / "whisper/.fcache/records"
    flip(records / "00000003", 40)
    flip(records / "00000001", 60)
    (records / "00000002").unlink()
    flip(shard_file(place, 0), row_begin(shard_file(place, 0), clip_ids(2)[1]) + 5)
    flip(place / "whisper/.fcache/spec.json", 30)
    flip(place / (next(iter(FORMATS[KINDS[kind].format].root_files()))), 8)


def run_repair(folder: Path, kind: str) -> None:
    report = repair_store(featurecache.open_store(folder / KINDS[kind][0], "a", format=KINDS[kind].format), recompute)
    assert not report.left, report.left


def prepare_gc(folder: Path, kind: str) -> None:
    """Orphans that nothing plans, and temporary files of dead writers."""
    place = folder / KINDS[kind][0]
    prepare_store(place, kind)
    for shard in (7, 8):
        feature = featurecache.open_store(place)["whisper"]
        (target,) = feature.format.paths(feature.folder, shard, feature.parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shard_file(place, 0), target)
    for number in range(3):
        (place / f"whisper/.fcache/tmp/.tmp-{number:016x}").write_bytes(b"left")


def run_gc(folder: Path, kind: str) -> None:
    remove_leftovers(featurecache.open_store(folder / KINDS[kind][0], "a"))


def prepare_convert(folder: Path, kind: str) -> None:
    prepare_store(folder / "source.zarr", "zarr")


def run_convert(folder: Path, kind: str) -> None:
    target = featurecache.open_store(folder / KINDS[kind][0], "a")
    convert_store(featurecache.open_store(folder / "source.zarr"), target, codec=KINDS[kind][1])


def run_compact(folder: Path, kind: str) -> None:
    target = featurecache.open_store(folder / KINDS[kind][0], "a")
    convert_store(featurecache.open_store(folder / "source.zarr"), target, codec=KINDS[kind][1], compact=True)


def prepare_index(folder: Path, kind: str) -> None:
    prepare_store(folder / KINDS[kind][0], kind)


def run_index(folder: Path, kind: str) -> None:
    update_indices(featurecache.open_store(folder / KINDS[kind][0]))


def prepare_import(folder: Path, kind: str) -> None:
    (folder / "npy").mkdir(parents=True)
    for number in range(6):
        np.save(folder / f"npy/{number}.npy", tokens_of(str(number)))
    (folder / "npy/broken.npy").write_bytes(b"no numbers")


def run_import(folder: Path, kind: str, retry: bool = False) -> None:
    store = featurecache.open_store(folder / KINDS[kind][0], "a")
    if not store.names:
        from featurecache.importers.npy import unverified_spec

        store.writer("npy", unverified_spec("npy", (5, 6), "float16"), shard_rows=2, codec=KINDS[kind][1])
    import_npy(folder / "npy", store, retry=retry)


def prepare_import_retry(folder: Path, kind: str) -> None:
    """Files that changed after their import, one of them to something broken, and one that fails still."""
    prepare_import(folder, kind)
    run_import(folder, kind)
    for number in (1, 2, 4):
        np.save(folder / f"npy/{number}.npy", tokens_of(f"{number} changed"))


def run_import_retry(folder: Path, kind: str) -> None:
    run_import(folder, kind, retry=True)


def prepare_retry(folder: Path, kind: str) -> None:
    """Twelve clips of which four could not be read and now can, and two whose media changed; two rows per shard."""
    from stub_encoders import stub_encoders

    from featurecache.extract.run import extract

    folder.mkdir(parents=True)
    listed = featurecache.load_clips(make_clips(folder))
    (folder / "c1.mp4").rename(folder / "away.mp4")
    store = featurecache.open_store(folder / KINDS[kind][0], "a")
    extract(store, listed, stub_encoders(), shard_clips=2, workers=1)
    (folder / "away.mp4").rename(folder / "c1.mp4")
    shutil.copy(folder / "c3.mp4", folder / "c2.mp4")


def run_retry(folder: Path, kind: str, ids: Sequence[str] | None = None) -> None:
    from stub_encoders import stub_encoders

    store = featurecache.open_store(folder / KINDS[kind][0], "a")
    encoders = stub_encoders()
    by_encoder = {encoder.spec("float16").fingerprint: encoder for encoder in encoders.values()}
    listed = featurecache.load_clips(folder / "clips.jsonl")
    retry(store, listed, store.names, lambda spec: by_encoder[spec.fingerprint], ids, workers=1)


def run_retry_of_some(folder: Path, kind: str) -> None:
    run_retry(folder, kind, ["clip_00", "clip_01", "clip_05", "clip_07"])


JOBS: dict[str, tuple[Callable[[Path, str], None], Callable[[Path, str], None]]] = {
    "repair": (prepare_repair, run_repair),
    "retry": (prepare_retry, run_retry),
    "retry-id": (prepare_retry, run_retry_of_some),
    "gc": (prepare_gc, run_gc),
    "convert": (prepare_convert, run_convert),
    "compact": (prepare_convert, run_compact),
    "index": (prepare_index, run_index),
    "import-npy": (prepare_import, run_import),
    "import-npy-retry": (prepare_import_retry, run_import_retry),
}


def _die_at(number: int) -> Callable[[], int]:
    """Have this process kill itself before its `number`-th change of the disk; returns how many there were."""
    count = 0

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def changing(*arguments: object, **named: object) -> object:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **named)

        return changing

    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))
    return lambda: count


def _child(job: str, folder: Path, kind: str, number: int, connection: object) -> None:
    changes = _die_at(number)
    JOBS[job][1](folder, kind)
    connection.send(changes())  # type: ignore[attr-defined]


def run_until(job: str, folder: Path, kind: str, number: int = 0) -> int | None:
    """Run a job in a child that dies before its `number`-th change (0: never); how many changes it made, or None."""
    receiver, sender = _context.Pipe(duplex=False)
    process = _context.Process(target=_child, args=(job, folder, kind, number, sender))
    process.start()
    sender.close()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    count = receiver.recv() if process.exitcode == 0 else None
    process.close()
    receiver.close()
    return count
