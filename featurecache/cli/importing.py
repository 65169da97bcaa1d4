"""`fcache import`: write the clip list of a dataset and print a summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from featurecache.console import counted, say, tables
from featurecache.errors import DatasetError

if TYPE_CHECKING:
    from featurecache.importers import Importer
    from featurecache.importers.importing import ImportSummary

SHOWN_EXAMPLES = 3
MAX_SHOWN_LABELS = 40


@click.command("import")
@click.argument("name", required=False)
@click.argument("source", required=False)
@click.option("--out", default="clips.jsonl", show_default=True, help="The clip list to write.")
@click.option("--split", "splits", multiple=True, help="Only this split; may be repeated.")
@click.option("--fold", type=click.IntRange(1), default=None, help="Cross-validation fold, where the dataset has them.")
@click.option("--option", "settings", multiple=True, metavar="KEY=VALUE", help="An option of the importer.")
@click.option("--prefix", default="", help="Put before every id: datasets of one list must not share ids.")
@click.option("--media-root", default=None, help="Folder that media paths are relative to; by default the list's own.")
@click.option("--keep-missing", is_flag=True, help="Keep clips whose media are not there.")
@click.option("--lenient", is_flag=True, help="Leave out rows whose label is not of the vocabulary.")
@click.option("--encoding", default="utf-8-sig", show_default=True, help="Encoding of tables and text files.")
@click.option("--overwrite", is_flag=True, help="Replace a list that is there.")
def import_clips(name: str | None, source: str | None, **values: Any) -> None:
    """Write the clip list of a dataset that you have; nothing is copied or downloaded.

    Without a name, lists the importers; without a source, says what an importer reads.

    \b
    Example: fcache import meld datasets/MELD --out datasets/meld.jsonl
    """
    from featurecache.importers import Request, find_importer, registered
    from featurecache.importers.importing import Target, import_dataset

    if name is None:
        _list([find_importer(importer_name) for importer_name in registered()])
        return
    importer = find_importer(name)
    if source is None:
        _describe(importer)
        return
    request = Request(
        Path(source), tuple(values["splits"]), values["fold"] or 0, _options(values["settings"]), values["encoding"]
    )
    root = Path(values["media_root"]) if values["media_root"] else None
    target = Target(
        Path(values["out"]), root, values["prefix"], values["keep_missing"], values["lenient"], values["overwrite"]
    )
    summary = import_dataset(importer, request, target)
    _print(summary)
    raise click.exceptions.Exit(1 if summary.missing and not summary.kept_missing else 0)


def _options(settings: Sequence[str]) -> dict[str, str]:
    options = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise DatasetError(f"--option {setting}", expected="KEY=VALUE", got="another form")
        options[key] = value
    return options


def _list(importers: Sequence[Importer]) -> None:
    table = Table("importer", "dataset", "splits")
    for importer in importers:
        folds = f", {importer.folds} folds" if importer.folds else ""
        table.add_row(importer.name, importer.title, ", ".join(importer.splits) + folds)
    tables().print(table)
    say("`fcache import NAME` says what an importer reads.")


def _describe(importer: Importer) -> None:
    from featurecache.importers.importing import options_text

    say(f"{importer.title}: `fcache import {importer.name} FOLDER` reads")
    for line in importer.layout:
        say(f"  {line}")
    if importer.splits:
        folds = f"; --fold 1 to {importer.folds} [{importer.default_fold}]" if importer.folds else ""
        say(f"Splits: {', '.join(importer.splits)}{folds}")
    for line in options_text(importer.options):
        say(line)
    say(f"Rights: {importer.licence}")


def _print(summary: ImportSummary) -> None:
    from featurecache.media.durations import differences_in_words

    splits = summary.splits
    table = Table("split", "clips", "media missing", "in the tables")
    for split in splits:
        written, read = summary.by_split[split], summary.read[split]
        absent = "" if summary.kept_missing else str(read - written)
        table.add_row(split or "(none)", str(written), absent, str(read))
    tables().print(table)
    if len(summary.by_dataset) > 1:
        _print_counts("dataset", summary.by_dataset, splits)
    for task, labels in sorted(summary.by_label.items()):
        _print_counts(task, labels, splits)
    for subject, read, published in summary.against_published():
        same = "as published" if read == published else f"{published} published"
        say(f"{subject}: {read} in the tables, {same}")
    for reason, rows in summary.left_out.items():
        shown = ", ".join(rows[:SHOWN_EXAMPLES]) + (", …" if len(rows) > SHOWN_EXAMPLES else "")
        say(f"left out: {counted(len(rows), 'row')}: {reason} ({shown})")
    if summary.missing:
        treatment = "kept" if summary.kept_missing else "left out"
        say(f"media missing: {counted(len(summary.missing), 'clip')}, {treatment}")
        for line in summary.missing[:SHOWN_EXAMPLES]:
            say(f"  {line}")
        if len(summary.missing) > SHOWN_EXAMPLES:
            say(f"  … and {len(summary.missing) - SHOWN_EXAMPLES} more")
    for note in summary.notes:
        say(f"note: {note}")
    for line in differences_in_words(summary.lengths):
        say(line)
    say(f"{counted(sum(summary.by_split.values()), 'clip')} in {summary.path}")
    if summary.media_root is not None:
        say(f"Media paths are relative to {summary.media_root}: name it with --media-root when you use this list.")
    say(f"Rights: {summary.importer.licence}")


def _print_counts(heading: str, counts: dict[str, Any], splits: Sequence[str]) -> None:
    """Print one row per label (or dataset), the most frequent first, and one column per split."""
    table = Table(heading, *(split or "(none)" for split in splits))
    ordered = sorted(counts, key=lambda name: (-sum(counts[name].values()), name))
    for name in ordered[:MAX_SHOWN_LABELS]:
        table.add_row(name, *(str(counts[name][split]) for split in splits))
    tables().print(table)
    if len(ordered) > MAX_SHOWN_LABELS:
        say(f"… and {len(ordered) - MAX_SHOWN_LABELS} more of {heading}")


COMMANDS = [import_clips]
