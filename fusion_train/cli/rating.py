"""`fusion-train rate | agreement`: human ratings of reasoning answers."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from featurecache.console import OutputPath, say, tables


@click.command()
@click.argument("answers", nargs=-1, required=True, metavar="NAME=FILE…")
@click.option("--out", type=OutputPath("folder"), default=Path("rating"), show_default=True, help="Folder.")
@click.option("--clips", type=click.IntRange(1), default=50, show_default=True, help="Clips on the sheet.")
@click.option(
    "--media", default="", metavar="PREFIX", help="Prefix of ID.mp4 in the address of a video, as seen from the sheet."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the chosen clips and their order.")
def rate(answers: tuple[str, ...], out: Path, clips: int, media: str, seed: int) -> None:
    """Make a blinded rating sheet of several systems' answers: a page that opens from disk.

    \b
    fusion-train rate ours=runs/cognition/eval/emer/reasoning.jsonl theirs=theirs.jsonl --media ../clips/
    """
    from fusion_train.evaluation.prediction_rows import read_predictions
    from fusion_train.evaluation.rating import write_sheet

    named = [text.partition("=") for text in answers]
    wrong = [name + equals + file for name, equals, file in named if not (name and file)]
    if wrong or len({name for name, _, _ in named}) < len(named):
        raise click.UsageError(f"{wrong[0]}: expected NAME=FILE" if wrong else "every NAME once")
    sheet = write_sheet(
        {name: read_predictions(file) for name, _, file in named}, out, clips=clips, seed=seed, media=media
    )
    say(f"for the raters: {sheet}")
    say(f"not for them:   {out / 'key.json'}; then: fusion-train agreement {out} ratings-*.json")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("ratings", nargs=-1, required=True, type=click.Path(path_type=Path))
def agreement(folder: Path, ratings: tuple[Path, ...]) -> None:
    """Import ratings: means by system, and how far the raters agree (Krippendorff's alpha, ordinal).

    \b
    fusion-train agreement rating ratings-ann.json ratings-ben.json
    """
    from fusion_train.evaluation.rating import agreement as import_ratings

    result = import_ratings(folder / "key.json", ratings)
    table = Table(title=f"{result.num_ratings} ratings by {result.num_raters} raters, 1 to 5")
    table.add_column("system")
    for question in result.alpha:
        table.add_column(question, justify="right")
    for system, means in result.means.items():
        table.add_row(system, *(f"{means[question]:.2f}" if question in means else "–" for question in result.alpha))
    alphas = ("–" if alpha is None else f"{alpha:.3f}" for alpha in result.alpha.values())
    table.add_row("alpha", *alphas, style="bold")
    tables().print(table)
