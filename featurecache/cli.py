"""`fcache`: the command line of featurecache. Each command reads its options, calls the library, and prints.

Exit codes: 0 done; 1 done with failures that are listed, or stopped and resumable; 2 wrong use.
"""

from __future__ import annotations

from collections import Counter

import click
from rich.table import Table

import featurecache
from featurecache import cli_extract, cli_import, cli_store
from featurecache.cli_options import STORE
from featurecache.console import CommandGroup, tables
from featurecache.errors import ClipListError
from featurecache.progress import show_progress
from featurecache.store.protocols import Status


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(featurecache.__version__, prog_name="fcache")
def main() -> None:
    """Run frozen encoders once; keep their tokens in a store that is never stale and never torn."""


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
    tables().print(table)
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


for _command in (*cli_extract.COMMANDS, *cli_import.COMMANDS, *cli_store.COMMANDS):
    main.add_command(_command)
