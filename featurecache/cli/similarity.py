"""Commands that find similar clips: index, similar, duplicates, leaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import featurecache
from featurecache.cli.options import (
    CLIPS,
    DEVICE,
    INDEX,
    MEDIA_ROOT,
    OPTIONS,
    STORE,
    WEIGHTS,
    encoder_opener,
    with_options,
)
from featurecache.console import OutputPath, command, counted, note, print_table, say
from featurecache.encoders.perturbation import unperturbed
from featurecache.errors import ClipListError, StoreError
from featurecache.files.jsonl import dump_lines
from featurecache.files.publish import replace_bytes
from featurecache.outside_text import json_text
from featurecache.tables import Table
from featurecache.terminal import show_progress

if TYPE_CHECKING:
    import numpy as np

    from featurecache.clips.clip_list import ClipList
    from featurecache.explore.calibration import Calibration
    from featurecache.explore.duplicates import Duplicates
    from featurecache.explore.index_files import IndexFiles
    from featurecache.explore.search import Neighbourhood
    from featurecache.store.local import LocalStore

FEATURES = click.option(
    "--feature", "features", multiple=True, metavar="NAME[=WEIGHT]", help="Compare by these; by default by all, alike."
)
COMPARE = click.option(
    "--compare",
    default="overall",
    show_default=True,
    metavar="overall|content|label:TASK",
    help="How clips sound and look as a whole; what is said or shown; or what a probe of a label tells apart.",
)
NUM_SHOWN = 20


@command()
@STORE
@FEATURES
@INDEX
def index(store: str, features: tuple[str, ...], index_at: Path | None) -> None:
    """Bring the similarity index beside a store up to date; the other commands do it by themselves.

    \b
    Example: fcache index
    """
    from featurecache.explore.search import approximate_index, open_neighbourhood

    opened = featurecache.open_store(store)
    files = files_of_index(opened, index_at)
    weights = feature_weights(features, opened)
    count = _update(opened, list(weights), files)
    neighbourhood = open_neighbourhood(opened, weights, files=files)
    approximate = approximate_index(opened, neighbourhood, files)
    files.require_written()
    how = "exact search"
    if approximate is not None:
        how = f"approximate search, {approximate.nprobe} of {approximate.nlist} lists read"
    say(f"{count} vectors computed; {len(neighbourhood)} clips, {', '.join(weights)}: {how}; {files.root}")


@command()
@click.argument("query")
@STORE
@CLIPS
@FEATURES
@WEIGHTS
@OPTIONS
@MEDIA_ROOT
@DEVICE
@INDEX
@COMPARE
@click.option("-k", "count", type=click.IntRange(1), default=10, show_default=True, help="How many neighbours.")
@click.option("--sheet", type=OutputPath("file"), default=None, help="Draw them into this PNG.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a neighbour.")
def similar(query: str, store: str, clips: str, features: tuple[str, ...], **values: Any) -> None:
    """List the clips nearest to a clip of the list, or to a media file.

    \b
    Example: fcache similar clip_001 -k 10 --sheet near.png
             fcache similar clip_001 --compare label:emotion
             fcache similar film.mp4 --feature whisper=2 --feature eva-temporal
    """
    from featurecache.clips.clip_list import Clip
    from featurecache.explore.contact_sheet import contact_sheet
    from featurecache.explore.search import approximate_index

    opened = featurecache.open_store(store)
    files = files_of_index(opened, values["index_at"])
    listed = featurecache.load_clips(clips, values["media_root"])
    compared = compared_clips(opened, features, files, values["compare"], listed)
    neighbourhood = compared.neighbourhood
    if query in neighbourhood or not Path(query).is_file():
        vector = neighbourhood.vectors[neighbourhood.row_of(query)][None]
        query_clip = listed.by_id(query)
    else:
        from featurecache.clips.media_files import file_clip
        from featurecache.explore.media_vectors import media_vectors

        query_clip = file_clip(Path(query), Path(query).name)
        open_for = encoder_opener(values)
        encoders = {name: open_for(opened.spec(name)) for name in compared.source.names}
        _, vector, _ = media_vectors(opened, compared.source, [query_clip], encoders, files)
        vector = compared.project(vector)
    approximate = approximate_index(opened, neighbourhood, files) if neighbourhood is compared.source else None
    similarities, indices = neighbourhood.search(vector, values["count"] + 1, approximate)
    parts, by_id = neighbourhood.split(vector), {clip.id: clip for clip in listed}
    rows: list[dict[str, Any]] = []
    shown = [(query_clip, ["query", query_clip.id])]
    for similarity, index in zip(similarities[0].tolist(), indices[0].tolist(), strict=True):
        clip_id = neighbourhood.ids[index]
        if clip_id == query_clip.id or len(rows) == values["count"]:
            continue
        clip = by_id.get(clip_id) or Clip(id=clip_id)
        own = neighbourhood.by_feature([index])
        by_feature = {name: round(float((parts[name] * own[name]).sum()), 4) for name in neighbourhood.names}
        attributes = {"dataset": clip.dataset, "split": clip.split, "labels": dict(clip.labels), "text": clip.text}
        rows.append({"id": clip_id, "similarity": round(similarity, 4), "features": by_feature, **attributes})
        labels = ", ".join(f"{task}: {value}" for task, value in clip.labels.items())
        shown.append((clip, [f"{similarity:.3f}  {clip_id}", labels, clip.text or ""]))
    if values["as_json"]:
        for row in rows:
            say(json_text(row))
    else:
        _print_neighbours(rows, neighbourhood.names)
    if values["sheet"] is not None:
        contact_sheet(shown, values["sheet"], first_is_query=True)
        (note if values["as_json"] else say)(f"contact sheet: {values['sheet']}")


PAIR_OPTIONS = with_options(
    STORE,
    CLIPS,
    FEATURES,
    WEIGHTS,
    OPTIONS,
    MEDIA_ROOT,
    DEVICE,
    INDEX,
    click.option("--calibrate", is_flag=True, help="Measure on altered copies of some clips first."),
    click.option("--calibration-clips", type=click.IntRange(4), default=40, show_default=True),
    click.option(
        "--max-false-positives",
        type=click.FloatRange(0, 0.5),
        default=1e-3,
        show_default=True,
        help="Share of pairs that matter (same text, other speaker; nearest clips) that a calibration lets pass.",
    ),
    click.option(
        "--out", type=OutputPath("file"), default=None, help="Clip list of what to leave out, beside --clips."
    ),
)
"""Options of commands that compare pairs of clips."""


@command()
@PAIR_OPTIONS
def duplicates(store: str, clips: str, features: tuple[str, ...], **values: Any) -> None:
    """Find clips that are the same: exact copies, and near ones (encoded again, cropped, cut, mirrored, sped up).

    What --out writes is a clip list; `--set data.exclude=[FILE]` leaves its clips out of training and evaluation.

    \b
    Example: fcache duplicates --calibrate --out duplicates.jsonl
    """
    from featurecache.explore.duplicates import find_duplicates

    _check_out(values, clips)
    opened, neighbourhood, listed, rule = _calibrated(store, clips, features, values)
    with show_progress("compare", "pairs") as progress:
        result = find_duplicates(opened, neighbourhood, listed, rule, advance=progress)
    _print_duplicates(result, listed, values, "duplicates.jsonl")


@command()
@PAIR_OPTIONS
@click.option("--train", required=True, metavar="[DATASET:]SPLIT", help="Training clips; their side is left out.")
@click.option("--test", required=True, metavar="[DATASET:]SPLIT", help="Clips that are scored.")
def leaks(store: str, clips: str, features: tuple[str, ...], train: str, test: str, **values: Any) -> None:
    """Find training clips that are test clips, exactly or nearly; also across datasets.

    \b
    Example: fcache leaks --train train --test test --out leaks.jsonl
             fcache leaks --train caer:train --test meld:test
    """
    from featurecache.explore.duplicates import find_leaks

    _check_out(values, clips)
    listed = featurecache.load_clips(clips, values["media_root"])
    train_ids, test_ids = (_clips_of_side(listed, side) for side in (train, test))
    opened, neighbourhood, listed, rule = _calibrated(store, clips, features, values)
    with show_progress("compare", "pairs") as progress:
        result = find_leaks(opened, neighbourhood, listed, train_ids, test_ids, rule, advance=progress)
    _print_duplicates(result, listed, values, "leaks.jsonl")


COMMANDS = [index, similar, duplicates, leaks]


def feature_weights(values: Sequence[str], store: LocalStore) -> dict[str, float]:
    """Return feature -> weight from `NAME` or `NAME=WEIGHT`; by default 1 for every unperturbed feature.

    Raises:
        StoreError: a weight is no number, or the store holds no feature.
    """
    weights = {}
    for text in values:
        name, equals, value = text.partition("=")
        try:
            weights[name] = float(value) if equals else 1.0
        except ValueError:
            raise StoreError(f"--feature {text}", expected="NAME or NAME=WEIGHT", got=repr(value)) from None
        store[name]  # an unknown name is an error that suggests the near one
    if not weights and not store.names:
        raise StoreError(store.location, expected="a feature", got="an empty store", next_step="Run `fcache extract`.")
    plain = [name for name in store.names if unperturbed(store.spec(name)) == store.spec(name)]
    return weights or dict.fromkeys(plain or store.names, 1.0)


def ready(store: LocalStore, features: Sequence[str], files: IndexFiles, comparison: str) -> Neighbourhood:
    """Bring the indices of the features up to date, and return the clips to compare."""
    from featurecache.explore.search import open_neighbourhood

    weights = feature_weights(features, store)
    _update(store, list(weights), files)
    return open_neighbourhood(store, weights, comparison, files)


@dataclass(frozen=True)
class Compared:
    """Clips to compare, and the projection that makes vectors of other media comparable with them."""

    source: Neighbourhood
    """Clips with the vectors of the index."""
    neighbourhood: Neighbourhood
    """Clips with the vectors that are compared."""
    project: Callable[[np.ndarray], np.ndarray]
    """(Q, R) vectors as in `source` -> (Q, R') as in `neighbourhood`."""


def compared_clips(
    store: LocalStore, features: Sequence[str], files: IndexFiles, compare: str, clips: ClipList
) -> Compared:
    """Bring the indices up to date, and return the clips to compare in the way of `--compare`.

    Raises:
        StoreError: `compare` is no way of comparison.
        ClipListError: the label has fewer than two classes.
    """
    from featurecache.explore.projection import CONTENT, OVERALL

    way, colon, task = compare.partition(":")
    if compare not in (OVERALL, CONTENT) and not (way == "label" and task):
        tasks = sorted(
            {f"label:{name}" for clip in clips for name, value in clip.labels.items() if isinstance(value, str)}
        )
        raise StoreError(f"--compare {compare}", expected=" | ".join([OVERALL, CONTENT, *tasks]), got=repr(compare))
    source = ready(store, features, files, OVERALL if colon else way)
    if not colon:
        return Compared(source, source, lambda vectors: vectors)
    from featurecache.explore.labels import label_neighbourhood

    neighbourhood, project = label_neighbourhood(source, clips, task)
    return Compared(source, neighbourhood, project)


def _calibrated(
    store: str, clips: str, features: Sequence[str], values: Mapping[str, Any]
) -> tuple[LocalStore, Neighbourhood, ClipList, Calibration]:
    """Print the rule for pairs, and return the store, the clips to compare, the clip list and the rule."""
    from featurecache.explore.calibration_run import calibrate, known_calibration
    from featurecache.explore.projection import COPIES

    opened = featurecache.open_store(store)
    files = files_of_index(opened, values["index_at"])
    listed = featurecache.load_clips(clips, values["media_root"])
    neighbourhood = ready(opened, features, files, COPIES)
    if values["calibrate"]:
        with show_progress("alter", "copies") as progress:
            rule = calibrate(
                opened,
                neighbourhood,
                listed,
                encoder_opener(values),
                num_clips=values["calibration_clips"],
                max_false_positive_rate=values["max_false_positives"],
                files=files,
                advance=progress,
            )
    else:
        rule = known_calibration(opened, neighbourhood, files)
    say(rule.describe())
    return opened, neighbourhood, listed, rule


def files_of_index(store: LocalStore, folder: Path | None) -> IndexFiles:
    """Return the files of the indices of a store; `folder` is the value of `--index`."""
    from featurecache.explore.index_files import index_files

    return index_files(store.location, folder)


def _update(store: LocalStore, names: Sequence[str], files: IndexFiles) -> int:
    """Update the indices, print damaged and unwritable files, and return the number of new vectors."""
    from featurecache.explore.search import update_indices

    with show_progress("index") as progress:
        count = update_indices(store, names, progress, files)
    for error in files.damaged:
        note(f"{error.subject} was damaged and is made anew: {error.got}")
    if files.refused is not None:
        why = f"{files.root} cannot be written ({files.refused.got})"
        note(f"{why}: the index is kept in memory; --index DIR keeps it in another folder")
    return count


def _clips_of_side(clips: ClipList, side: str) -> list[str]:
    """Return the ids of the clips in `[DATASET:]SPLIT`.

    Raises:
        ClipListError: there are none.
    """
    dataset, colon, split = side.rpartition(":")
    ids = [clip.id for clip in clips.in_split(split) if not colon or clip.dataset == dataset]
    if not ids:
        datasets = sorted({clip.dataset for clip in clips.in_split(split) if clip.dataset})
        raise ClipListError(side, expected="a dataset of this split: " + ", ".join(datasets), got=dataset)
    return ids


def _print_neighbours(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    table = Table(["clip", "similarity", *names, "dataset", "split", "labels", "text"])
    for row in rows:
        labels = ", ".join(f"{task} {value}" for task, value in row["labels"].items())
        shares = [f"{row['features'][name]:.3f}" for name in names]
        texts = (row["dataset"] or "", row["split"] or "", labels, row["text"] or "")
        table.add([row["id"], f"{row['similarity']:.3f}", *shares, *texts])
    print_table(table)


def _check_out(values: Mapping[str, Any], clips: str) -> None:
    """Refuse an `--out` in another folder: the trainer looks for the exclusion beside the clip list."""
    out, folder = values["out"], Path(clips).parent
    if out is not None and out.resolve().parent != folder.resolve():
        raise ClipListError(
            f"--out {out}",
            expected=f"a file beside {clips}",
            got="another folder",
            next_step=f"Use {folder / out.name}.",
        )


def _print_duplicates(result: Duplicates, clips: ClipList, values: Mapping[str, Any], default: str) -> None:
    from featurecache.clips.writing import write_clips

    table = Table(["clip", "is", "as", "similarity", "in time", "confidence"])
    for pair in result.pairs[:NUM_SHOWN]:
        numbers = (f"{pair.similarity:.3f}", f"{pair.agreement:.3f}", f"{pair.confidence:.2f}")
        table.add([pair.a, pair.kind, pair.b, *numbers])
    if result.pairs:
        print_table(table)
    more = len(result.pairs) - NUM_SHOWN
    if more > 0:
        say(f"… and {more} more pairs")
    kinds = {kind: sum(pair.kind == kind for pair in result.pairs) for kind in ("same media", "same content", "near")}
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count) or "none"
    excluded = counted(len(result.exclusion), "clip")
    say(f"pairs: {counts}; {counted(len(result.groups), 'group')}; {excluded} to leave out")
    if result.undecided:
        undecided = f"{counted(result.undecided, 'pair')} alike by averages could not be compared in time"
        say(f"{undecided}: media that cannot be read, or in which nothing happens")
    out = values["out"]
    if out is None:
        if result.exclusion:
            say(f"--out {default} writes them as a clip list, with the pairs beside it.")
        return
    if result.exclusion:
        root = Path(values["media_root"]) if values["media_root"] else None
        write_clips((clips.by_id(clip_id) for clip_id in result.exclusion), out, root)
        say(f"{out}: leave them out with --set 'data.exclude=[{out.name}]'")
    pairs = out.with_suffix(".pairs.jsonl")
    replace_bytes(pairs, dump_lines(map(asdict, result.pairs)))
    say(f"{pairs}: every pair and its evidence")
