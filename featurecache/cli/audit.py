"""Commands about the labels of clips: audit, map."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import featurecache
from featurecache.cli.options import CLIPS, INDEX, MEDIA_ROOT, STORE
from featurecache.cli.similarity import COMPARE, FEATURES, NUM_SHOWN, compared_clips, files_of_index, ready
from featurecache.console import OutputPath, command, print_table, say
from featurecache.errors import ClipListError
from featurecache.files.jsonl import dump_lines
from featurecache.files.publish import replace_bytes
from featurecache.tables import Table

if TYPE_CHECKING:
    from featurecache.explore.labels import LabelAudit


@command()
@STORE
@CLIPS
@FEATURES
@INDEX
@MEDIA_ROOT
@click.option("--label", default="emotion", show_default=True, help="Label task to audit.")
@click.option("--out", type=OutputPath("folder"), default=None, help="Folder for review.html and doubts.jsonl.")
@click.option(
    "--decisions", type=click.Path(path_type=Path), default=None, help="What a review sheet saved: write corrections."
)
@click.option("--corrections", type=click.Path(path_type=Path), default=Path("corrections.jsonl"), show_default=True)
def audit(store: str, clips: str, features: tuple[str, ...], label: str, **values: Any) -> None:
    """Rank doubtful labels by judges that never saw the clip, and write a sheet to review them on.

    With --decisions, turn what the sheet saved into corrections; the clip list itself is never edited.

    \b
    Example: fcache audit --label emotion --out audit
             fcache audit --decisions decisions.json --corrections corrections.jsonl
    """
    listed = featurecache.load_clips(clips, values["media_root"])
    if values["decisions"] is not None:
        _corrections(values["decisions"], listed, values["corrections"])
        return
    from featurecache.explore.labels import audit as run
    from featurecache.media.durations import differences_in_words, length_differences

    opened = featurecache.open_store(store)
    files = files_of_index(opened, values["index_at"])
    result = run(ready(opened, features, files, "overall"), listed, label)
    _print_audit(result)
    for line in (*listed.notices, *differences_in_words(length_differences(listed))):
        say(line)
    if values["out"] is None:
        say("--out audit writes a sheet to review them on.")
        return
    from featurecache.explore.labels import review_sheet

    folder: Path = values["out"]
    sheet = folder / "review.html"
    replace_bytes(sheet, review_sheet(result, listed, sheet).encode("utf-8"))
    replace_bytes(folder / "doubts.jsonl", dump_lines(map(asdict, result.issues)))
    say(f"{sheet}: open it in a browser, decide, save decisions.json, then")
    say("  fcache audit --decisions decisions.json --corrections corrections.jsonl")


@command("map")
@STORE
@CLIPS
@FEATURES
@INDEX
@COMPARE
@MEDIA_ROOT
@click.option("--by", default="dataset", show_default=True, help="dataset, split, speaker or a label task.")
@click.option("--method", type=click.Choice(["pca", "umap"]), default="pca", show_default=True)
@click.option("--out", type=OutputPath("name"), default=Path("map"), show_default=True, help="NAME.png, .html")
def draw_map(store: str, clips: str, features: tuple[str, ...], by: str, method: str, out: Path, **values: Any) -> None:
    """Draw every clip as a point in two dimensions, as a picture and as a page to point at.

    \b
    Example: fcache map --by emotion --out map
             fcache map --by emotion --compare label:emotion
    """
    from featurecache.explore import store_map

    listed = featurecache.load_clips(clips, values["media_root"])
    opened = featurecache.open_store(store)
    files = files_of_index(opened, values["index_at"])
    neighbourhood = compared_clips(opened, features, files, values["compare"], listed).neighbourhood
    clip_ids = [clip.id for clip in listed if clip.id in neighbourhood]
    if not clip_ids:
        raise ClipListError(
            clips, expected="clips of this store", got="none", next_step="Name their list with --clips."
        )
    attributes = {"dataset", "split", "speaker", *(task for clip in listed for task in clip.labels)}
    if by not in attributes:
        raise ClipListError("--by", expected="one of " + ", ".join(sorted(attributes)), got=by)
    points = store_map.positions(neighbourhood.vectors[[neighbourhood.row_of(clip_id) for clip_id in clip_ids]], method)
    title = f"{len(clip_ids)} clips by {', '.join(neighbourhood.names)}, {values['compare']} ({method})"
    picture, page = out.with_suffix(".png"), out.with_suffix(".html")
    store_map.draw_map(points, store_map.groups_of(listed, clip_ids, by), by, title, picture)
    replace_bytes(page, store_map.map_page(points, listed, clip_ids, title).encode("utf-8"))
    say(f"{picture}, {page}")


COMMANDS = [audit, draw_map]


def _corrections(decisions: Path, clips: featurecache.ClipList, out: Path) -> None:
    """Write the corrections that the decisions of a review sheet imply."""
    from featurecache.clips.corrections import corrections_of_review, dump_corrections

    if not decisions.is_file():
        raise ClipListError(
            str(decisions),
            expected="what a review sheet saved",
            got="no such file",
            next_step="Open audit/review.html, decide and save it, or make the sheet with fcache audit --label NAME.",
        )
    try:
        document = json.loads(decisions.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ClipListError(str(decisions), expected="what a review sheet saved", got=str(error)) from error
    corrections = corrections_of_review(document if isinstance(document, dict) else {}, clips)
    replace_bytes(out, dump_corrections(corrections).encode())
    count = len(document.get("decisions", {}))
    say(f"{count} decided, {len(corrections)} changed: {out}; train with --set 'data.corrections=[{out.name}]'")


def _print_audit(audit: LabelAudit) -> None:
    table = Table(["clip", "listed as", "judged", "believed", "nearest"])
    for issue in audit.issues[:NUM_SHOWN]:
        near = ", ".join(f"{label} {similarity:.2f}" for _, label, similarity in issue.evidence)
        table.add([issue.id, issue.given, f"{issue.suggested} ({issue.probability:.0%})", f"{issue.quality:.0%}", near])
    print_table(table)
    noise = Table(["dataset", "class", "clips", "estimated wrong"])
    for class_noise in audit.noise:
        noise.add([class_noise.dataset, class_noise.label, class_noise.num_clips, f"{class_noise.noise:.1%}"])
    print_table(noise)
    for agreement in audit.agreement:
        total = agreement.same + agreement.other
        share = f"{agreement.same / total:.1%} of {total}" if total else "none"
        responses = f"{agreement.dataset or 'all'}: responses to {agreement.response!r}"
        say(
            f"{responses} conclude the {audit.task} label in {share}"
            + (f"; {agreement.silent} name none, or several" if agreement.silent else "")
        )
    say(
        f"{len(audit.issues)} of {audit.num_clips} {audit.task} labels are doubtful; the judges agree with "
        f"{audit.accuracy:.1%} of the labels, and see no more than these features show"
    )
