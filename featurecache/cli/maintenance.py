"""Commands that change an existing store: retry, repair, gc, convert, import-npy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import featurecache
from featurecache.cli.options import (
    CLIPS,
    DEVICE,
    MEDIA_ROOT,
    NAMES,
    OPTIONS,
    STORE,
    WEIGHTS,
    encoder_opener,
    with_options,
)
from featurecache.console import command, counted, note, say, size_text
from featurecache.errors import StoreError, StoreNotFoundError
from featurecache.interrupt import StopRequest
from featurecache.outside_text import first_ids
from featurecache.spec import STORED_DTYPES
from featurecache.store.formats import FORMATS
from featurecache.terminal import show_progress

if TYPE_CHECKING:
    from featurecache.maintenance.repair import Recompute
    from featurecache.store.local import LocalStore

ENCODER_OPTIONS = with_options(STORE, CLIPS, NAMES, WEIGHTS, OPTIONS, MEDIA_ROOT, DEVICE)
"""Options of commands that compute features of a store again."""
FORMAT = click.option(
    "--format",
    "store_format",
    type=click.Choice(list(FORMATS)),
    default=None,
    help="Of the store that is written; by default that of its name (.wds: webdataset).",
)


@command()
@ENCODER_OPTIONS
@click.option("--id", "ids", multiple=True, help="Retry these clips, whatever became of them.")
def retry(store: str, clips: str, names: tuple[str, ...], ids: tuple[str, ...], **values: Any) -> None:
    """Extract clips again that failed, or whose media have changed.

    \b
    Example: fcache retry --name whisper
    """
    from featurecache.maintenance.retry import retry as retry_clips

    opened = _to_change(store)
    chosen = _with_encoder(opened, names)
    open_for = encoder_opener(values)
    listed = featurecache.load_clips(clips, values["media_root"])
    with StopRequest() as stop, show_progress("retry") as progress:
        how = {"advance": progress, "stop": lambda: stop.requested}
        stats = retry_clips(opened, listed, chosen, open_for, ids or None, **how)
    for name, counts in stats.by_feature.items():
        say(f"{name}: {counts.ok} ok, {counts.failed} failed, {counts.absent} absent")
        for reason, failed in counts.most_common():
            say(f"  {len(failed)} failed: {reason} ({first_ids(failed)})")
    raise click.exceptions.Exit(1 if any(counts.failed for counts in stats.by_feature.values()) else 0)


@command()
@ENCODER_OPTIONS
@click.option("--recompute/--no-recompute", default=True, show_default=True, help="Compute lost rows anew.")
@click.option(
    "--from", "place", default=None, help="Take lost rows from a copy of the store, or from the .npy files it is of."
)
def repair(store: str, clips: str, names: tuple[str, ...], recompute: bool, place: str | None, **values: Any) -> None:
    """Mend what `fcache verify` finds; only rows that are lost are computed anew, or taken from a copy.

    \b
    Example: fcache repair --from backup.wds
    """
    from featurecache.maintenance.repair import repair_store
    from featurecache.maintenance.retry import recompute_by_extraction

    opened = _to_change(store)
    how = None
    if place is not None:
        how = _recompute_from(place, opened)
    elif recompute and Path(clips).is_file():
        listed = featurecache.load_clips(clips, values["media_root"])
        how = recompute_by_extraction(opened, listed, encoder_opener(values))
    report = repair_store(opened, how, names or None)
    for line in report.mended:
        say(f"mended: {line}")
    for line in report.left:
        say(f"left: {line}")
    for name, shard in report.pending:
        say(f"left: {name}, shard {shard}: `fcache extract` computes it anew")
    made = counted(len(report.recomputed), "row") + (" computed anew" if place is None else f" taken from {place}")
    say(f"{len(report.mended)} mended, {made}, {len(report.left) + len(report.pending)} left")
    raise click.exceptions.Exit(1 if report.left or report.pending else 0)


@command()
@STORE
@click.option("--delete", is_flag=True, help="Remove it; without this it is only listed.")
def gc(store: str, delete: bool) -> None:
    """List leftovers of killed writers and shards without a record, and remove them with --delete.

    \b
    Example: fcache gc --delete
    """
    from featurecache.maintenance.gc import find_leftovers, remove_leftovers

    opened = _to_change(store)
    leftovers = remove_leftovers(opened) if delete else find_leftovers(opened)
    for path in [*leftovers.temporary, *(path for _, path in leftovers.orphans)]:
        say(f"{'removed' if delete else 'would remove'}: {path.relative_to(opened.root)}")
    for path in leftovers.foreign:
        say(f"left alone, not of this store: {path.relative_to(opened.root)}")
    if leftovers.superseded_bytes:
        size = size_text(leftovers.superseded_bytes)
        say(f"{size} of rows were superseded by retries; `fcache convert --compact` copies without them")
    if not (leftovers.temporary or leftovers.orphans):
        say("nothing to remove")
    else:
        say(f"{size_text(leftovers.num_bytes)} {'freed' if delete else 'to free; --delete frees them'}")


@command()
@click.argument("source")
@click.argument("target")
@NAMES
@FORMAT
@click.option("--compress", is_flag=True, help="Pack rows (Zarr only): smaller by a tenth or so, and slower to read.")
@click.option("--compact", is_flag=True, help="Leave out what retries superseded; shards are divided anew.")
def convert(
    source: str, target: str, names: tuple[str, ...], store_format: str | None, compress: bool, compact: bool
) -> None:
    """Copy a store into another format, without loss. Stopped, it goes on where it was.

    \b
    Example: fcache convert features.zarr features.wds
    """
    from featurecache.maintenance.convert import convert_store
    from featurecache.store.zarr_store import ARCHIVE_CODEC

    opened = featurecache.open_store(target, mode="a", format=store_format)
    with show_progress("convert", "shards") as progress:
        done = convert_store(
            featurecache.open_store(source),
            opened,
            names or None,
            codec=ARCHIVE_CODEC if compress else "none",
            compact=compact,
            progress=progress,
        )
    for copy in done:
        there = f"{counted(copy.num_shards, 'shard')}, {size_text(copy.num_bytes)} in {target}"
        say(f"{copy.name}: {counted(copy.num_clips, 'clip')} copied; {there}")


@command("import-npy")
@click.argument("folder")
@STORE
@click.option("--name", default=None, help="Feature name; by default the folder's.")
@click.option("--dtype", type=click.Choice(STORED_DTYPES), default="float16", show_default=True)
@click.option("--prefix", default="", help="Put before every id, as `fcache import --prefix` does.")
@click.option("--retry", is_flag=True, help="Read again what failed before, and files that have changed.")
def import_npy(folder: str, store: str, name: str | None, dtype: str, prefix: str, retry: bool) -> None:
    """Bring a folder of one .npy a clip, (1, K, D), into a store; its spec says that the origin is unverified.

    \b
    Example: fcache import-npy features/whisper-large-v3 --name whisper
    """
    from featurecache.importers.npy import import_npy as run

    opened = featurecache.open_store(store, mode="a")
    with show_progress("import") as progress:
        done = run(Path(folder), opened, name, prefix=prefix, stored_dtype=dtype, retry=retry, progress=progress)
    for feature in done:
        earlier = f", {feature.num_earlier} read earlier" if feature.num_earlier else ""
        say(f"{feature.name}: {counted(feature.num_ok, 'clip')} imported, {len(feature.failures)} failed{earlier}")
        for clip_id, reason in feature.failures.items():
            say(f"  {clip_id}: {reason}")
    raise click.exceptions.Exit(1 if any(feature.failures for feature in done) else 0)


COMMANDS = [retry, repair, gc, convert, import_npy]


def _with_encoder(store: LocalStore, names: Sequence[str]) -> list[str]:
    """Return the named features; by default all features whose encoders are installed.

    Raises:
        StoreError: the encoder of a named feature is not installed, or no encoder is.
    """
    from featurecache.encoders import registered

    installed = registered()
    encoders = {name: store.spec(name).encoder for name in names or store.names}
    available = [name for name, encoder in encoders.items() if encoder in installed]
    without = ", ".join(f"{name} ({encoder})" for name, encoder in encoders.items() if encoder not in installed)
    if without and (names or not available):
        raise StoreError(
            "--name",
            expected="features of encoders that are installed",
            got=without,
            next_step="Name others with --name, or install the encoder.",
        )
    if without:
        note(f"left out, as their encoders are not installed: {without}")
    return available


def _to_change(store: str) -> LocalStore:
    """Open an existing store for writing; a location without a store is refused."""
    featurecache.open_store(store)
    return featurecache.open_store(store, mode="a")


def _recompute_from(place: str, store: LocalStore) -> Recompute:
    """Return the function that reads lost rows from a copy of the store, or from the files of its import."""
    from featurecache.importers.npy import recompute_from_files
    from featurecache.maintenance.repair import recompute_from_copy

    try:
        copy = featurecache.open_store(place)
    except StoreNotFoundError:
        copy = None
    if Path(place).is_dir() and (copy is None or not copy.names):
        return recompute_from_files(Path(place), store)
    return recompute_from_copy(copy or featurecache.open_store(place), store)
