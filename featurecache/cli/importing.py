"""`fcache import` and `fcache split`: write the clip list of a dataset, divide a list, and print a summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurecache.cli.options import CLIPS, MEDIA_ROOT
from featurecache.clips.splitting import DEFAULT_SHARES, GROUP_KEYS, Splitting, is_shares, parse_shares
from featurecache.console import OutputPath, command, counted, print_table, say
from featurecache.console_project import ProjectOption
from featurecache.errors import DatasetError
from featurecache.outside_text import first_ids
from featurecache.tables import Table
from featurecache.terminal import show_progress

if TYPE_CHECKING:
    from featurecache.importers import Importer
    from featurecache.importers.importing import ImportSummary

SHOWN_EXAMPLES = 3
MAX_SHOWN_LABELS = 40
GROUP = click.option(
    "--group",
    type=click.Choice(GROUP_KEYS),
    help="Keep clips together that have the same value: no speaker in two splits.",
)
SEED = click.option("--seed", type=int, default=0, show_default=True, help="Seed of the division.")


@command("import")
@click.argument("name", required=False)
@click.argument("source", required=False)
@click.option(
    "--out",
    cls=ProjectOption,
    project_key="clips",
    default="clips.jsonl",
    show_default=True,
    help="The clip list to write.",
)
@click.option("--labels", default=None, metavar="TABLE", help="Table of labels; short for --option labels=TABLE.")
@click.option(
    "--split",
    "splits",
    multiple=True,
    metavar="NAME|SHARES",
    help="Only this split, may be repeated; or divide anew: 70/15/15 into train, val and test.",
)
@GROUP
@SEED
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
    Examples: fcache import folder clips/ --labels labels.csv --split 70/15/15 --group speaker
              fcache import meld datasets/MELD --out datasets/meld.jsonl
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
    splits = tuple(value for value in values["splits"] if not is_shares(value))
    shares = [value for value in values["splits"] if is_shares(value)]
    options = _options(values["settings"]) | ({"labels": values["labels"]} if values["labels"] else {})
    target = Target(
        Path(values["out"]),
        Path(values["media_root"]) if values["media_root"] else None,
        values["prefix"],
        values["keep_missing"],
        values["lenient"],
        values["overwrite"],
        _splitting(shares[-1] if shares else None, values["group"], values["seed"]),
    )
    request = Request(Path(source), splits, values["fold"] or 0, options, values["encoding"])
    with show_progress("read headers", "files") as progress:
        summary = import_dataset(importer, request, target, progress)
    print_import(summary)
    raise click.exceptions.Exit(1 if summary.missing and not summary.kept_missing else 0)


@command("split")
@CLIPS
@click.option(
    "--shares", default=DEFAULT_SHARES, show_default=True, help="Percents of train, val and test, or of train and test."
)
@GROUP
@SEED
@click.option("--of", "of_split", default=None, metavar="SPLIT", help="Divide the clips of this split only.")
@click.option("--out", type=OutputPath("file"), default=None, help="The list to write.  [default: the list itself]")
@click.option("--overwrite", is_flag=True, help="Replace the splits that the list has.")
@MEDIA_ROOT
def split(
    clips: str,
    shares: str,
    group: str | None,
    seed: int,
    of_split: str | None,
    out: Path | None,
    overwrite: bool,
    media_root: str | None,
) -> None:
    """Divide the clips of a list into train, val and test: each class in equal shares, groups together.

    The same list, shares and seed give the same splits. A run refuses to go on with a list that was divided anew.

    \b
    Examples: fcache split --shares 80/20 --group speaker
              fcache split --of train --shares 85/15/0     a validation set out of the training clips
    """
    from featurecache.clips.class_counts import class_notes, count_clips
    from featurecache.clips.splitting import divide_list, split_notes

    splitting = Splitting(parse_shares(shares, "--shares"), group, seed)
    target = out or Path(clips).with_suffix(".jsonl")
    divided, written = divide_list(
        Path(clips), target, splitting, of_split, None if media_root is None else Path(media_root), overwrite=overwrite
    )
    by_split, _, by_label = count_clips(written)
    splits = sorted(by_split, key=lambda name: ("train", "val", "test", name).index(name))
    table = Table(["split", "clips"])
    for name in splits:
        table.add([name or "(none)", by_split[name]])
    print_table(table)
    for task, counts in sorted(by_label.items()):
        _print_counts(task, counts, splits)
    for note in (*split_notes(divided, splitting), *class_notes(written)):
        say(f"note: {note}")
    say(f"{counted(len(written), 'clip')} in {target}")


def _splitting(shares: str | None, group: str | None, seed: int) -> Splitting | None:
    """Return the division that the options ask for; None if they ask for none."""
    if shares is None and group is None:
        return None
    return Splitting(parse_shares(shares or DEFAULT_SHARES), group, seed)


def _options(settings: Sequence[str]) -> dict[str, str]:
    options = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise DatasetError(f"--option {setting}", expected="KEY=VALUE", got="another form")
        options[key] = value
    return options


def _list(importers: Sequence[Importer]) -> None:
    table = Table(["importer", "dataset", "splits"])
    for importer in importers:
        folds = f", {importer.folds} folds" if importer.folds else ""
        table.add([importer.name, importer.title, ", ".join(importer.splits) + folds])
    print_table(table)
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


def print_import(summary: ImportSummary) -> None:
    """Print the counts of an import by split and label, what was left out, and notes."""
    from featurecache.media.durations import differences_in_words

    splits = summary.splits
    table = Table(["split", "clips", *(("media missing", "in the tables") if summary.missing else ())])
    for name in splits:
        written, read = summary.by_split[name], summary.read[name]
        absent = (None if summary.kept_missing else read - written, read) if summary.missing else ()
        table.add([name or "(none)", written, *absent])
    print_table(table)
    if len(summary.by_dataset) > 1:
        _print_counts("dataset", summary.by_dataset, splits)
    for task, labels in sorted(summary.by_label.items()):
        _print_counts(task, labels, splits)
    for subject, read, published in summary.against_published():
        same = "as published" if read == published else f"{published} published"
        say(f"{subject or 'clips'}: {read} in the tables, {same}")
    for reason, rows in summary.left_out.items():
        say(f"left out: {counted(len(rows), 'row')}: {reason} ({first_ids(rows)})")
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
    table = Table([heading, *(split or "(none)" for split in splits)])
    ordered = sorted(counts, key=lambda name: (-sum(counts[name].values()), name))
    for name in ordered[:MAX_SHOWN_LABELS]:
        table.add([name, *(counts[name][split] for split in splits)])
    print_table(table)
    if len(ordered) > MAX_SHOWN_LABELS:
        say(f"… and {len(ordered) - MAX_SHOWN_LABELS} more of {heading}")


COMMANDS = [import_clips, split]
