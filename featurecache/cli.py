"""`fcache`: the command line of featurecache. Each command reads its options, calls the library, and prints.

Exit codes: 0 done; 1 done with failures that are listed, or stopped and resumable; 2 wrong use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

import featurecache
from featurecache import cli_store
from featurecache.cli_options import CLIPS, MEDIA_ROOT, OPTIONS, STORE, WEIGHTS, settings_of, weights_of
from featurecache.console import CommandGroup
from featurecache.errors import ClipListError, EncoderError
from featurecache.interrupt import StopRequest
from featurecache.progress import duration, show_progress
from featurecache.spec import STORED_DTYPES
from featurecache.store.protocols import Status

ENCODERS = click.option("--encoder", "encoders", multiple=True, required=True, help="Encoder name; may be repeated.")
NAME = click.option("--name", default=None, help="Feature name, for a single encoder; otherwise the encoder's name.")
DTYPE = click.option("--dtype", type=click.Choice(STORED_DTYPES), default="float16", show_default=True)


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(featurecache.__version__, prog_name="fcache")
def main() -> None:
    """Run frozen encoders once; keep their tokens in a store that is never stale and never torn."""


def _rank(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[int, int]:
    from featurecache.extract import parse_rank

    try:
        return parse_rank(value)
    except ValueError:
        raise click.BadParameter(f"expected I/N with I from 0 to N - 1, got {value}") from None


@main.command()
@ENCODERS
@CLIPS
@STORE
@WEIGHTS
@NAME
@MEDIA_ROOT
@OPTIONS
@DTYPE
@click.option("--compute-dtype", default="auto", show_default=True, help="float32, float16, bfloat16 or auto.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N or auto.")
@click.option("--workers", type=click.IntRange(1), default=None, help="Threads that decode; one a core by default.")
@click.option(
    "--batch-size", type=click.IntRange(1), default=None, help="Clips a batch; by default fit for the device."
)
@click.option("--shard-clips", type=click.IntRange(1), default=None, help="Clips a shard, for a feature not yet there.")
@click.option("--rank", callback=_rank, default="0/1", metavar="I/N", help="Do the I-th of N parts; run N at once.")
@click.option("--max-failures", type=click.IntRange(0), default=None, help="Stop when more clips than this fail.")
def extract(encoders: tuple[str, ...], **given: Any) -> None:
    """Bring every clip of the list into the store, for every encoder named.

    Running it again does what is left, and nothing twice.

    \b
    Example: fcache extract --encoder whisper --encoder eva-global --encoder eva-temporal
    """
    from featurecache.encoders import open_encoder
    from featurecache.extract import default_workers
    from featurecache.extract import extract as run

    features = _features(encoders, given["name"])
    weights, options = weights_of(encoders, given["weights"]), settings_of(encoders, given["settings"])
    clips = featurecache.load_clips(given["clips"], given["media_root"])
    opened = {}
    for feature, encoder in features.items():
        opened[feature] = open_encoder(
            encoder,
            weights=weights.get(encoder),
            device=given["device"],
            compute_dtype=given["compute_dtype"],
            options=options.get(encoder),
        )
        opened[feature].batch_size = given["batch_size"] or opened[feature].batch_size
        for notice in getattr(opened[feature], "notices", ()):
            click.echo(notice, err=True)
    store = featurecache.open_store(given["store"], mode="a")
    with StopRequest() as stop, show_progress("extract") as progress:
        summary = run(
            store,
            clips,
            opened,
            stored_dtype=given["dtype"],
            rank=given["rank"],
            workers=given["workers"] or default_workers(),
            max_failures=given["max_failures"],
            shard_clips=given["shard_clips"],
            advance=progress,
            stop=lambda: stop.requested,
        )
    _print_summary(summary)
    if summary.failed:
        raise click.exceptions.Exit(1)


@main.command()
@ENCODERS
@CLIPS
@STORE
@WEIGHTS
@NAME
@MEDIA_ROOT
@OPTIONS
@DTYPE
def plan(encoders: tuple[str, ...], **given: Any) -> None:
    """Say what an extraction would write, before it does.

    \b
    Example: fcache plan --encoder whisper --encoder eva-global
    """
    from featurecache.estimate import estimate, free_bytes, size_text, total_bytes

    features = _features(encoders, given["name"])
    clips = featurecache.load_clips(given["clips"], given["media_root"])
    estimates = estimate(
        features,
        len(clips),
        _held(given["store"], features, clips.ids),
        weights=weights_of(encoders, given["weights"]),
        options=settings_of(encoders, given["settings"]),
        stored_dtype=given["dtype"],
    )
    table = Table("feature", "tokens", "bytes a clip", "clips", "there already", "to write")
    for item in estimates:
        shape = f"{item.shape[0]} × {item.shape[1]}"
        counts = (f"{item.clip_bytes:,}", str(item.num_clips), str(item.num_held), size_text(item.bytes_to_write))
        table.add_row(item.feature, shape, *counts)
    free = free_bytes(given["store"])
    _console().print(table)
    click.echo(f"{size_text(total_bytes(estimates))} to write" + (f", {size_text(free)} free" if free else ""))


@main.command()
@STORE
def info(store: str) -> None:
    """Say what a store holds: features, clips, bytes, failures by reason.

    \b
    Example: fcache info --store features.zarr
    """
    from featurecache.estimate import size_text

    opened = featurecache.open_store(store)
    table = Table("feature", "tokens", "dtype", "ok", "failed", "absent", "bytes", "fingerprint")
    reasons: dict[str, Counter[str]] = {}
    for name in opened.names:
        feature = opened[name]
        counts: Counter[Status] = Counter()
        reasons[name] = Counter()
        for record in feature.records():
            counts[record.status] += 1
            if record.status is Status.FAILED:
                reasons[name][record.reason] += 1
        size = size_text(sum(sum(record.file_bytes) for record in feature.committed))
        decided = (str(counts[status]) for status in Status)
        shape = f"{feature.shape[0]} × {feature.shape[1]}"
        table.add_row(name, shape, feature.spec.stored_dtype, *decided, size, feature.fingerprint[:12])
    _console().print(table)
    for name, counted in reasons.items():
        for reason, count in counted.most_common():
            click.echo(f"{name}: {count} failed: {reason}")


@main.command()
@click.argument("clip_id")
@STORE
@click.option("--plot", default=None, metavar="FOLDER", help="Also draw its tokens: a PNG for each feature.")
def show(clip_id: str, store: str, plot: str | None) -> None:
    """Say what is known of one clip in every feature.

    \b
    Example: fcache show clip_001
    """
    import numpy as np

    from featurecache.describe import draw_clip

    opened = featurecache.open_store(store)
    known = False
    for name in opened.names:
        feature = opened[name]
        record = feature.record(clip_id)
        if record is None:
            continue
        known = True
        click.echo(f"{name}: {record.status.name.lower()}, shard {record.shard} slot {record.slot}")
        origin = ", ".join(f"{key} {value}" for key, value in feature.spec.provenance.items()) or "an unknown place"
        click.echo(f"  spec {feature.fingerprint}  encoder {feature.spec.encoder}, weights from {origin}")
        click.echo(f"  media {record.source or 'unreadable'}")
        if record.reason:
            click.echo(f"  {record.reason}")
        if record.status is Status.OK:
            tokens = np.asarray(feature[clip_id], np.float32)
            spread = f"mean {tokens.mean():.4f}  std {tokens.std():.4f}  absmax {np.abs(tokens).max():.4f}"
            click.echo(f"  {tokens.shape[0]} × {tokens.shape[1]} {feature.dtype}  {spread}  crc32c {record.crc32c:08x}")
            if record.errors:
                lost = "  ".join(f"{key.removeprefix('error_')} {value:.4g}" for key, value in record.errors.items())
                click.echo(f"  lost to {feature.spec.stored_dtype}: {lost}")
            if plot is not None:
                click.echo(f"  drawn in {draw_clip(feature, clip_id, plot)}")
    if not known:
        subject = f'clip "{clip_id}"'
        raise ClipListError(subject, got=f"not in {store}", next_step="`fcache info` lists its features.")


@main.command()
@click.argument("names", nargs=-1)
@STORE
@click.option("--quick", is_flag=True, help="Plan, records, sizes and indices only; rows are not read.")
def verify(names: tuple[str, ...], store: str, quick: bool) -> None:
    """Check a store, or the features named, against its own records; nothing is changed.

    \b
    Example: fcache verify --quick
    """
    from featurecache.verify import verify_store

    opened = featurecache.open_store(store)
    with show_progress("verify", "shards") as progress:
        report = verify_store(opened, names or None, quick=quick, progress=progress)
    for problem in report.problems:
        click.echo(str(problem))
    click.echo(str(report))
    raise click.exceptions.Exit(report.exit_code)


for _command in cli_store.COMMANDS:
    main.add_command(_command)


def _features(encoders: Sequence[str], name: str | None) -> dict[str, str]:
    """Return feature name -> encoder name."""
    if name is not None and len(encoders) != 1:
        raise EncoderError("--name", expected="a single --encoder", got=f"{len(encoders)}", next_step="Run each alone.")
    return {name or encoder: encoder for encoder in encoders}


def _held(location: str, features: Sequence[str] | dict[str, str], ids: Sequence[str]) -> dict[str, int]:
    """Return how many of the clips each feature has decided already; a store not yet made has none."""
    from featurecache.errors import StoreNotFoundError

    try:
        store = featurecache.open_store(location)
    except StoreNotFoundError:
        return {}
    return {name: sum(store[name].record(clip_id) is not None for clip_id in ids) for name in features if name in store}


def _print_summary(summary: Any) -> None:
    table = Table("feature", "ok", "failed", "absent", "done earlier", "of these failed")
    for name, tally in summary.by_feature.items():
        earlier = str(sum(tally.earlier.values())), str(tally.earlier[Status.FAILED])
        table.add_row(name, str(tally.ok), str(tally.failed), str(tally.absent), *earlier)
    _console().print(table)
    for name, tally in summary.by_feature.items():
        for reason, count in tally.reasons.most_common():
            click.echo(f"{name}: {count} failed: {reason}")
    if summary.num_clips:
        rate = summary.num_clips / max(summary.wall_s, 1e-9)
        click.echo(
            f"{summary.num_clips} clips in {duration(summary.wall_s)} ({rate:.2f} clips/s): decode"
            f" {summary.decode_s:.1f} s over all threads, encode {summary.encode_s:.1f} s,"
            f" write {summary.write_s:.1f} s"
        )
    else:
        click.echo("Nothing to do: every clip was decided earlier.")
    if summary.left:
        click.echo(f"{summary.left} clips are left to other ranks, or to other runs at work now.")
    if summary.failed:
        click.echo("`fcache retry` extracts failed clips again.")


def _console() -> Console:
    """A console that wraps no table when it is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=160)
