"""Commands that read a store and change nothing: info, show, verify, diff."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import featurecache
from featurecache.cli.options import INDEX, NAMES, STORE
from featurecache.console import OutputPath, command, counted, json_result, note, print_table, say, size_text
from featurecache.outside_text import first_ids
from featurecache.tables import Table
from featurecache.terminal import show_progress

if TYPE_CHECKING:
    from featurecache.maintenance.describe import ClipDescription, FeatureInfo
    from featurecache.store.inspection import Problem

MAX_LISTED_PER_KIND = 20


@command()
@STORE
@click.option("--failed", "list_failed", is_flag=True, help="List every failed clip with its reason.")
def info(store: str, list_failed: bool) -> None:
    """Say what a store holds: features, clips, bytes, failures by reason.

    \b
    Example: fcache info --store features.zarr
             fcache info --failed
    """
    from featurecache.maintenance.describe import store_info

    result = store_info(featurecache.open_store(store))
    table = Table(["feature", "tokens", "dtype", "ok", "failed", "absent", "pending", "shards", "bytes", "fingerprint"])
    for feature in result.features:
        counts = (feature.num_ok, feature.num_failed, feature.num_absent, feature.num_pending, feature.num_shards)
        shape = f"{feature.shape[0]} × {feature.shape[1]}"
        size = size_text(feature.num_bytes)
        table.add([feature.name, shape, feature.stored_dtype, *counts, size, feature.fingerprint[:12]])
    print_table(table)
    if list_failed:
        _print_failed(result.features)
    for feature in () if list_failed else result.features:
        for reason, ids in feature.failed_ids.items():
            say(f"{feature.name}: {len(ids)} failed: {reason} ({first_ids(ids)})")
    if any(feature.num_pending for feature in result.features):
        note("`fcache extract` does what is pending.")
    json_result({"features": [asdict(feature) for feature in result.features], "damaged": result.damaged})
    for name, problem in result.damaged.items():
        say(f"{name}: damaged: {problem}")
    raise click.exceptions.Exit(1 if result.damaged else 0)


@command()
@click.argument("clip_id")
@STORE
@click.option(
    "--plot",
    type=OutputPath("folder"),
    default=None,
    metavar="FOLDER",
    help="Also draw its tokens: a PNG for each feature.",
)
def show(clip_id: str, store: str, plot: Path | None) -> None:
    """Say what is known of one clip in every feature.

    \b
    Example: fcache show clip_001
    """
    from featurecache.maintenance.describe import describe_clip, draw_clip

    described = describe_clip(featurecache.open_store(store), clip_id)
    json_result(
        {
            "features": [
                {
                    "feature": clip.feature.name,
                    **asdict(clip.record),
                    "status": clip.record.status.name.lower(),
                    "statistics": clip.statistics,
                }
                for clip in described
            ]
        }
    )
    for clip in described:
        record = clip.record
        say(f"{clip.feature.name}: {record.status.name.lower()}, shard {record.shard} slot {record.slot}")
        for label, text in _description_lines(clip):
            say(f"  {label:<9} {text}")
        if plot is not None and clip.statistics:
            say(f"  {'drawn in':<9} {draw_clip(clip.feature, clip_id, plot)}")


def _description_lines(clip: ClipDescription) -> list[tuple[str, str]]:
    """Return (label, text) of every line about a clip in one feature."""
    record, feature, numbers = clip.record, clip.feature, clip.statistics
    origin = ", ".join(f"{key} {value}" for key, value in feature.spec.provenance.items())
    lines = [
        ("encoder", feature.spec.encoder + (f"; {origin}" if origin else "")),
        ("spec", feature.fingerprint),
        ("media", record.source or "unreadable"),
    ]
    if record.reason:
        lines.append(("reason", record.reason))
    if numbers:
        shape = f"{feature.shape[0]} × {feature.shape[1]}"
        lines += [
            ("tokens", f"{shape}, stored as {feature.spec.stored_dtype}, crc32c {record.crc32c:08x}"),
            ("values", _numbers(numbers, "mean", "std", "min", "max")),
            ("norms", _numbers(numbers, "token_norm_min", "token_norm_mean", "token_norm_max")),
            ("", _numbers(numbers, "zero_tokens", "neighbour_cosine")),
        ]
    if record.errors:
        lines.append(("lost", _numbers(record.errors, *record.errors) + f" by {feature.spec.stored_dtype}"))
    return lines


def _numbers(values: Mapping[str, float], *names: str) -> str:
    """Return the named values as text; the names lose their prefixes."""
    texts = (f"{name.removeprefix('token_norm_').removeprefix('error_')} {values[name]:.4g}" for name in names)
    return "  ".join(text.replace("_", " ") for text in texts)


@command()
@click.argument("names", nargs=-1)
@STORE
@click.option("--quick", is_flag=True, help="Plan, records, sizes and indices only; rows are not read.")
@click.option("--all", "everything", is_flag=True, help=f"List more than {MAX_LISTED_PER_KIND} problems of a kind.")
@INDEX
def verify(names: tuple[str, ...], store: str, quick: bool, everything: bool, index_at: Path | None) -> None:
    """Check a store, or the features named, against its own records, and the similarity index; nothing is changed.

    Exit code 1 where there is damage; notices are of unfinished work and oddities.

    \b
    Example: fcache verify --quick
    """
    from featurecache.maintenance.verify import verify_store

    opened = featurecache.open_store(store)
    with show_progress("verify", "shards") as progress:
        report = verify_store(opened, names or None, quick=quick, progress=progress, index=index_at)
    _list("damage", report.damage, everything)
    _list("notice", report.notices, everything)
    rows = f"{counted(report.num_shards, 'shard')}, {counted(report.num_rows, 'row')}, {size_text(report.num_bytes)}"
    say(f"{store}: {rows} {'looked at quickly' if quick else 'checked'}: {report.verdict}")
    json_result(
        {
            "verdict": report.verdict,
            "shards": report.num_shards,
            "rows": report.num_rows,
            "bytes": report.num_bytes,
            "damage": [_problem(problem) for problem in report.damage],
            "notices": [_problem(problem) for problem in report.notices],
        }
    )
    if report.damage:
        note("`fcache repair` mends it.")
    raise click.exceptions.Exit(report.exit_code)


def _print_failed(features: Sequence[FeatureInfo]) -> None:
    """Print one row per failed clip and feature."""
    failed = [
        [clip_id, feature.name, reason]
        for feature in features
        for reason, ids in feature.failed_ids.items()
        for clip_id in ids
    ]
    if failed:
        print_table(Table(["clip", "feature", "reason"], failed, "failed clips"))
    else:
        say("no clip failed")


def _problem(problem: Problem) -> dict[str, Any]:
    """Return a problem as JSON values."""
    place = {"feature": problem.feature, "shard": problem.shard, "clip": problem.clip_id}
    return {"kind": problem.kind, **place, "message": problem.message}


def _list(title: str, problems: Sequence[Problem], everything: bool) -> None:
    """Print problems, at most `MAX_LISTED_PER_KIND` of each kind unless `everything` is set."""
    counts: Counter[str] = Counter()
    for problem in problems:
        counts[problem.kind] += 1
        if everything or counts[problem.kind] <= MAX_LISTED_PER_KIND:
            say(f"{title}: {problem}")
    for kind, count in counts.items():
        if not everything and count > MAX_LISTED_PER_KIND:
            say(f"{title}: … and {count - MAX_LISTED_PER_KIND} more ({kind}); --all lists them")


@command()
@click.argument("left")
@click.argument("right")
@NAMES
def diff(left: str, right: str, names: tuple[str, ...]) -> None:
    """Say how two stores differ; exit code 1 where they do.

    \b
    Example: fcache diff features.zarr other.zarr
    """
    from featurecache.maintenance.diff import compare_stores

    differences = compare_stores(featurecache.open_store(left), featurecache.open_store(right), list(names) or None)
    for difference in differences:
        say(str(difference))
    json_result({"features": [{**asdict(difference), "same": difference.same} for difference in differences]})
    raise click.exceptions.Exit(0 if all(difference.same for difference in differences) else 1)


COMMANDS = [info, show, verify, diff]
