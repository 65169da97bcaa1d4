"""Commands that look for clips that are alike: index, similar, duplicates, leaks. Each calls the library and prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

import featurecache
from featurecache.cli_options import CLIPS, MEDIA_ROOT, OPTIONS, STORE, WEIGHTS
from featurecache.cli_store import encoder_opener
from featurecache.console import say, tables
from featurecache.encoders.perturbed import undisturbed
from featurecache.errors import ClipListError, StoreError
from featurecache.jsonl import dump_lines
from featurecache.outside_text import json_text
from featurecache.progress import show_progress

if TYPE_CHECKING:
    from featurecache.clips import ClipList
    from featurecache.similarity.doubles import Doubles
    from featurecache.similarity.search import Neighbourhood
    from featurecache.store.local import LocalStore

DEVICE = click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N or auto.")
FEATURES = click.option(
    "--feature", "features", multiple=True, metavar="NAME[=WEIGHT]", help="Compare by these; by default by all, alike."
)
NUM_SHOWN = 20


@click.command()
@STORE
@FEATURES
def index(store: str, features: tuple[str, ...]) -> None:
    """Bring the similarity index beside a store up to date; the other commands do it by themselves.

    \b
    Example: fcache index
    """
    from featurecache.similarity.index import index_folder
    from featurecache.similarity.search import approximate_index, open_neighbourhood

    opened = featurecache.open_store(store)
    weights = feature_weights(features, opened)
    count = _update(opened, list(weights))
    neighbourhood = open_neighbourhood(opened, weights)
    kept = approximate_index(opened, neighbourhood)
    how = "exact search" if kept is None else f"approximate search, {kept.nprobe} of {kept.nlist} lists read"
    place = index_folder(opened.location, "")
    say(f"{count} vectors computed; {len(neighbourhood)} clips, {', '.join(weights)}: {how}; {place}")


@click.command()
@click.argument("query")
@STORE
@CLIPS
@FEATURES
@WEIGHTS
@OPTIONS
@MEDIA_ROOT
@DEVICE
@click.option("-k", "count", type=click.IntRange(1), default=10, show_default=True, help="How many neighbours.")
@click.option("--sheet", type=click.Path(path_type=Path), default=None, help="Draw them into this PNG.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a neighbour.")
def similar(query: str, store: str, clips: str, features: tuple[str, ...], **given: Any) -> None:
    """List the clips nearest to a clip of the list, or to a media file.

    \b
    Example: fcache similar clip_001 -k 10 --sheet near.png
             fcache similar film.mp4 --feature whisper=2 --feature eva-temporal
    """
    from featurecache.clips import Clip
    from featurecache.similarity.contact_sheet import contact_sheet
    from featurecache.similarity.search import approximate_index

    opened, neighbourhood, listed = _opened(store, clips, features, given)
    if query in neighbourhood or not Path(query).is_file():
        vector = neighbourhood.vectors[neighbourhood.place(query)][None]
        asked = listed.by_id(query)
    else:
        from featurecache.similarity.media_vectors import media_vectors

        asked = _file_clip(Path(query), Clip)
        open_for = encoder_opener(given)
        encoders = {name: open_for(opened.spec(name)) for name in neighbourhood.names}
        _, vector, _ = media_vectors(opened, neighbourhood, [asked], encoders)
    wanted = given["count"] + 1
    kept = approximate_index(opened, neighbourhood)
    similarities, places = neighbourhood.search(vector, wanted, kept)
    parts, by_id = neighbourhood.split(vector), {clip.id: clip for clip in listed}
    rows, shown = [], [(asked, ["query", asked.id])]
    for similarity, place in zip(similarities[0].tolist(), places[0].tolist(), strict=True):
        clip_id = neighbourhood.ids[place]
        if clip_id == asked.id or len(rows) == given["count"]:
            continue
        clip = by_id.get(clip_id) or Clip(id=clip_id)
        own = neighbourhood.parts([place])
        by_feature = {name: round(float((parts[name] * own[name]).sum()), 4) for name in neighbourhood.names}
        known = {"dataset": clip.dataset, "split": clip.split, "labels": dict(clip.labels), "text": clip.text}
        rows.append({"id": clip_id, "similarity": round(similarity, 4), "features": by_feature, **known})
        said = ", ".join(f"{task}: {value}" for task, value in clip.labels.items())
        shown.append((clip, [f"{similarity:.3f}  {clip_id}", said, clip.text or ""]))
    if given["as_json"]:
        for row in rows:
            say(json_text(row))
    else:
        _print_neighbours(rows, neighbourhood.names)
    if given["sheet"] is not None:
        contact_sheet(shown, given["sheet"], first_is_query=True)
        say(f"contact sheet: {given['sheet']}", err=given["as_json"])


PAIR_OPTIONS = [
    STORE,
    CLIPS,
    FEATURES,
    WEIGHTS,
    OPTIONS,
    MEDIA_ROOT,
    DEVICE,
    click.option("--calibrate", is_flag=True, help="Measure the threshold on altered copies of some clips first."),
    click.option("--calibration-clips", type=click.IntRange(4), default=40, show_default=True),
    click.option(
        "--max-false-positives", type=click.FloatRange(0, 0.5), default=1e-3, show_default=True,
        help="Share of pairs of different clips that a calibration lets pass.",
    ),
    click.option(
        "--out", type=click.Path(path_type=Path), default=None, help="Clip list of what to leave out, beside --clips."
    ),
]  # fmt: skip


def _compares_pairs(command: Any) -> Any:
    for option in reversed(PAIR_OPTIONS):
        command = option(command)
    return command


@click.command()
@_compares_pairs
def duplicates(store: str, clips: str, features: tuple[str, ...], **given: Any) -> None:
    """Find clips that are the same: exact copies, and near ones (encoded again, cropped, cut, mirrored, sped up).

    What --out writes is a clip list; `--set data.exclude=[FILE]` leaves its clips out of training and evaluation.

    \b
    Example: fcache duplicates --calibrate --out duplicates.jsonl
    """
    from featurecache.similarity.doubles import find_duplicates

    _check_out(given, clips)
    opened, neighbourhood, listed = _opened(store, clips, features, given)
    rule = _rule(opened, neighbourhood, listed, given)
    with show_progress("compare") as progress:
        found = find_duplicates(opened, neighbourhood, listed, rule, advance=progress)
    _print_doubles(found, listed, given, "duplicates.jsonl")


@click.command()
@_compares_pairs
@click.option("--train", required=True, metavar="[DATASET:]SPLIT", help="Training clips; their side is left out.")
@click.option("--test", required=True, metavar="[DATASET:]SPLIT", help="Clips that are scored.")
def leaks(store: str, clips: str, features: tuple[str, ...], train: str, test: str, **given: Any) -> None:
    """Find training clips that are test clips, exactly or nearly; also across datasets.

    \b
    Example: fcache leaks --train train --test test --out leaks.jsonl
             fcache leaks --train caer:train --test meld:test
    """
    from featurecache.similarity.doubles import find_leaks

    _check_out(given, clips)
    opened, neighbourhood, listed = _opened(store, clips, features, given)
    sides = [_split(listed, side) for side in (train, test)]
    rule = _rule(opened, neighbourhood, listed, given)
    with show_progress("compare") as progress:
        found = find_leaks(opened, neighbourhood, *sides, rule, advance=progress)
    _print_doubles(found, listed, given, "leaks.jsonl")


COMMANDS = [index, similar, duplicates, leaks]


def feature_weights(given: Sequence[str], store: LocalStore) -> dict[str, float]:
    """`NAME` or `NAME=WEIGHT` -> weight by feature; every undisturbed feature alike where none is named."""
    weights = {}
    for text in given:
        name, equals, value = text.partition("=")
        try:
            weights[name] = float(value) if equals else 1.0
        except ValueError:
            raise StoreError(f"--feature {text}", expected="NAME or NAME=WEIGHT", got=repr(value)) from None
        store[name]  # an unknown name is an error that suggests the near one
    if not weights and not store.names:
        raise StoreError(store.location, expected="a feature", got="an empty store", next_step="Run `fcache extract`.")
    plain = [name for name in store.names if undisturbed(store.spec(name)) == store.spec(name)]
    return weights or dict.fromkeys(plain or store.names, 1.0)


def ready(store: LocalStore, features: Sequence[str]) -> Neighbourhood:
    """Clips to compare, once the indices of the features asked for are up to date."""
    from featurecache.similarity.search import open_neighbourhood

    weights = feature_weights(features, store)
    _update(store, list(weights))
    return open_neighbourhood(store, weights)


def _opened(
    store: str, clips: str, features: Sequence[str], given: Mapping[str, Any]
) -> tuple[LocalStore, Neighbourhood, ClipList]:
    opened = featurecache.open_store(store)
    return opened, ready(opened, features), featurecache.load_clips(clips, given["media_root"])


def _update(store: LocalStore, names: Sequence[str]) -> int:
    from featurecache.similarity.search import update_indices

    with show_progress("index") as progress:
        return update_indices(store, names, progress)


def _rule(store: LocalStore, neighbourhood: Neighbourhood, clips: ClipList, given: Mapping[str, Any]) -> Any:
    from featurecache.similarity.doubles import calibrate, known_calibration

    if given["calibrate"]:
        with show_progress("alter", "copies") as progress:
            rule = calibrate(
                store, neighbourhood, clips, encoder_opener(given),
                num_clips=given["calibration_clips"], max_false_positive_rate=given["max_false_positives"],
                advance=progress,
            )  # fmt: skip
    else:
        rule = known_calibration(store, neighbourhood)
    say(rule.describe())
    return rule


def _file_clip(path: Path, clip: Any) -> Any:
    endings = {".wav": "audio", ".flac": "audio", ".mp3": "audio", ".m4a": "audio", ".ogg": "audio", ".opus": "audio",
               ".png": "image", ".jpg": "image", ".jpeg": "image", ".webp": "image"}  # fmt: skip
    return clip(id=path.name, **{endings.get(path.suffix.lower(), "video"): path})


def _split(clips: ClipList, side: str) -> list[str]:
    dataset, colon, split = side.rpartition(":")
    chosen = [clip.id for clip in clips.in_split(split) if not colon or clip.dataset == dataset]
    if not chosen:
        known = sorted({clip.dataset for clip in clips.in_split(split) if clip.dataset})
        raise ClipListError(side, expected="a dataset of this split: " + ", ".join(known), got=dataset)
    return chosen


def _print_neighbours(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    table = Table("clip", "similarity", *names, "dataset", "split", "labels", "text")
    for row in rows:
        labels = ", ".join(f"{task} {value}" for task, value in row["labels"].items())
        shares = [f"{row['features'][name]:.3f}" for name in names]
        texts = (row["dataset"] or "", row["split"] or "", labels, row["text"] or "")
        table.add_row(row["id"], f"{row['similarity']:.3f}", *shares, *texts)
    tables().print(table)


def _check_out(given: Mapping[str, Any], clips: str) -> None:
    """An exclusion is a clip list, and the trainer looks for it beside the list that it is laid over."""
    out, folder = given["out"], Path(clips).parent
    if out is not None and out.resolve().parent != folder.resolve():
        raise ClipListError(
            f"--out {out}",
            expected=f"a file beside {clips}",
            got="another folder",
            next_step=f"Use {folder / out.name}.",
        )


def _print_doubles(found: Doubles, clips: ClipList, given: Mapping[str, Any], default: str) -> None:
    from featurecache.clip_writing import write_clips

    table = Table("clip", "is", "as", "similarity", "less alike of the two", "confidence")
    for pair in found.pairs[:NUM_SHOWN]:
        numbers = (f"{pair.similarity:.3f}", f"{pair.agreement:.3f}", f"{pair.confidence:.2f}")
        table.add_row(pair.a, pair.kind, pair.b, *numbers)
    if found.pairs:
        tables().print(table)
    more = len(found.pairs) - NUM_SHOWN
    if more > 0:
        say(f"… and {more} more pairs")
    kinds = {kind: sum(pair.kind == kind for pair in found.pairs) for kind in ("same media", "same content", "near")}
    said = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count) or "none"
    say(f"pairs: {said}; {len(found.groups)} groups; {len(found.exclusion)} clips to leave out")
    out = given["out"]
    if out is None:
        if found.exclusion:
            say(f"--out {default} writes them as a clip list, with the pairs beside it.")
        return
    if found.exclusion:
        root = Path(given["media_root"]) if given["media_root"] else None
        write_clips((clips.by_id(clip_id) for clip_id in found.exclusion), out, root)
        say(f"{out}: leave them out with --set 'data.exclude=[{out.name}]'")
    pairs = out.with_suffix(".pairs.jsonl")
    pairs.parent.mkdir(parents=True, exist_ok=True)
    pairs.write_bytes(dump_lines(map(asdict, found.pairs)))
    say(f"{pairs}: every pair and its evidence")
