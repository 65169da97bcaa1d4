"""Commands that keep a store: retry, repair, diff, gc, convert, import-npy. Each calls the library and prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import featurecache
from featurecache.cli_options import CLIPS, MEDIA_ROOT, OPTIONS, STORE, WEIGHTS, settings_of, weights_of
from featurecache.errors import StoreError
from featurecache.progress import show_progress
from featurecache.spec import STORED_DTYPES, Spec

if TYPE_CHECKING:
    from featurecache.again import OpenEncoder

DEVICE = click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N or auto.")
NAMES = click.option("--name", "names", multiple=True, help="A feature; may be repeated. Every feature by default.")
FORMAT = click.option("--format", "form", type=click.Choice(["zarr", "webdataset"]), default=None)


@click.command()
@STORE
@CLIPS
@NAMES
@WEIGHTS
@OPTIONS
@MEDIA_ROOT
@DEVICE
@click.option("--id", "ids", multiple=True, help="Retry these clips, whatever became of them.")
def retry(store: str, clips: str, names: tuple[str, ...], ids: tuple[str, ...], **given: Any) -> None:
    """Extract clips again that failed, or whose media have changed.

    \b
    Example: fcache retry --name whisper
    """
    from featurecache import again

    opened = featurecache.open_store(store, mode="a")
    chosen = list(names) or opened.names
    open_for = _opener([opened.spec(name) for name in chosen], given)
    listed = featurecache.load_clips(clips, given["media_root"])
    with show_progress("retry") as progress:
        summary = again.retry(opened, listed, chosen, open_for, ids or None, advance=progress)
    for name, tally in summary.by_feature.items():
        click.echo(f"{name}: {tally.ok} ok, {tally.failed} failed, {tally.absent} absent")
        for reason, count in tally.reasons.most_common():
            click.echo(f"  {count} failed: {reason}")
    raise click.exceptions.Exit(1 if any(tally.failed for tally in summary.by_feature.values()) else 0)


@click.command()
@STORE
@CLIPS
@NAMES
@WEIGHTS
@OPTIONS
@MEDIA_ROOT
@DEVICE
@click.option("--recompute/--no-recompute", default=True, show_default=True, help="Compute lost rows anew.")
def repair(store: str, clips: str, names: tuple[str, ...], recompute: bool, **given: Any) -> None:
    """Mend what `fcache verify` finds; only rows that are lost are computed anew.

    \b
    Example: fcache repair --no-recompute
    """
    from featurecache.again import recomputer
    from featurecache.repair import repair_store

    opened = featurecache.open_store(store, mode="a")
    how = None
    if recompute and Path(clips).is_file():
        listed = featurecache.load_clips(clips, given["media_root"])  # type: ignore[arg-type]
        how = recomputer(opened, listed, lambda spec: _opener([spec], given)(spec))
    report = repair_store(opened, how, names or None)
    for line in report.mended:
        click.echo(f"mended: {line}")
    for line in report.left:
        click.echo(f"left: {line}")
    for name, shard in report.pending:
        click.echo(f"left: {name}, shard {shard}: `fcache extract` computes it anew")
    click.echo(f"{len(report.mended)} mended, {len(report.recomputed)} rows computed anew, {len(report.left)} left")
    raise click.exceptions.Exit(1 if report.left or report.pending else 0)


@click.command()
@click.argument("left")
@click.argument("right")
@NAMES
def diff(left: str, right: str, names: tuple[str, ...]) -> None:
    """Say how two stores differ; exit code 1 where they do.

    \b
    Example: fcache diff features.zarr other.zarr
    """
    from featurecache.compare import compare_stores

    found = compare_stores(featurecache.open_store(left), featurecache.open_store(right), list(names) or None)
    for each in found:
        click.echo(str(each))
    raise click.exceptions.Exit(0 if all(each.same for each in found) else 1)


@click.command()
@STORE
@click.option("--delete", is_flag=True, help="Remove it; without this it is only listed.")
def gc(store: str, delete: bool) -> None:
    """List leftovers of killed writers and shards without a record, and remove them with --delete.

    \b
    Example: fcache gc --delete
    """
    from featurecache.collect import mark, sweep

    opened = featurecache.open_store(store, mode="a")
    garbage = sweep(opened) if delete else mark(opened)
    for path in [*garbage.temporary, *(path for _, path in garbage.orphans)]:
        click.echo(f"{'removed' if delete else 'would remove'}: {path.relative_to(opened.root)}")
    for path in garbage.foreign:
        click.echo(f"left alone, not of this store: {path.relative_to(opened.root)}")
    if garbage.superseded_bytes:
        freed = f"{garbage.superseded_bytes / 1e6:.1f} MB"
        click.echo(f"{freed} of rows were superseded by retries; `fcache convert --compact` copies without them")
    click.echo(f"{garbage.num_bytes / 1e6:.1f} MB {'freed' if delete else 'to free; --delete frees them'}")


@click.command()
@click.argument("source")
@click.argument("target")
@NAMES
@FORMAT
@click.option("--compress", is_flag=True, help="Pack rows (Zarr only): smaller by a tenth or so, and slower to read.")
@click.option("--compact", is_flag=True, help="Leave out what retries superseded; shards are divided anew.")
def convert(source: str, target: str, names: tuple[str, ...], form: str | None, compress: bool, compact: bool) -> None:
    """Copy a store into another format, without loss. Stopped, it goes on where it was.

    \b
    Example: fcache convert features.zarr features.wds
    """
    from featurecache.convert import convert_store
    from featurecache.store.zarr_store import ARCHIVE_CODEC

    opened = featurecache.open_store(target, mode="a", format=form)  # type: ignore[arg-type]
    with show_progress("convert", "shards") as progress:
        done = convert_store(
            featurecache.open_store(source),
            opened,
            names or None,
            codec=ARCHIVE_CODEC if compress else "none",
            compact=compact,
            progress=progress,
        )
    for each in done:
        size = f"{each.num_bytes / 1e6:.1f} MB"
        click.echo(f"{each.name}: {each.num_clips} clips copied; {each.num_shards} shards, {size} in {target}")


@click.command("import-npy")
@click.argument("folder")
@STORE
@click.option("--name", default=None, help="Feature name; by default the folder's.")
@click.option("--dtype", type=click.Choice(STORED_DTYPES), default="float16", show_default=True)
@click.option("--prefix", default="", help="Put before every id, as `fcache import --prefix` does.")
def import_npy(folder: str, store: str, name: str | None, dtype: str, prefix: str) -> None:
    """Bring a folder of one .npy a clip, (1, K, D), into a store; its spec says that the origin is unverified.

    \b
    Example: fcache import-npy features/whisper-large-v3 --name whisper
    """
    from featurecache.importers.npy import import_npy as run

    with show_progress("import") as progress:
        opened = featurecache.open_store(store, mode="a")
        done = run(Path(folder), opened, name, prefix=prefix, stored_dtype=dtype, progress=progress)
    for each in done:
        click.echo(f"{each.name}: {each.num_ok} clips imported, {len(each.failures)} failed")
        for clip_id, reason in each.failures.items():
            click.echo(f"  {clip_id}: {reason}")
    raise click.exceptions.Exit(1 if any(each.failures for each in done) else 0)


COMMANDS = [retry, repair, diff, gc, convert, import_npy]


def _opener(specs: list[Spec], given: Mapping[str, Any]) -> OpenEncoder:
    """How to open the encoders that features of these specs were made with."""
    from featurecache.again import opener
    from featurecache.encoders import registered

    encoders = sorted({spec.encoder for spec in specs})
    unknown = [encoder for encoder in encoders if encoder not in registered()]
    if unknown:
        raise StoreError(
            "--name",
            expected="features of encoders that are installed",
            got=", ".join(unknown),
            next_step="Name others with --name, or install the encoder.",
        )
    weights, options = weights_of(encoders, given["weights"]), settings_of(encoders, given["settings"])
    return opener(weights, options, given["device"])
