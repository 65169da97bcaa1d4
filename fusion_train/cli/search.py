"""`fusion-train search`: features, heads and hyperparameters, drawn, trained stacked, selected honestly."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from featurecache.console import OutputPath, command, json_result, note, print_table, say
from fusion_train.cli.options import CLIPS, SET, STORE


@command()
@click.argument("file")
@STORE
@CLIPS
@click.option("--out", type=OutputPath("folder"), help="Folder of the search.  [default: searches/NAME]")
@click.option(
    "--submission", type=OutputPath("file"), help="Write the predictions of the first trial, trained on all clips."
)
@click.option("--threads", type=click.IntRange(1), help="Stacks that train at the same time.  [default: one per core]")
@SET
def search(
    file: str,
    store: str,
    clips: str,
    out: Path | None,
    submission: Path | None,
    threads: int | None,
    overrides: tuple[str, ...],
) -> None:
    """Search features, heads and hyperparameters of a file; report the winner's score without flattering it.

    Features are averaged to one vector per clip and read once. Trials of one shape train in one stack. Stopped? The
    same command goes on.

    \b
    fusion-train search search.yaml --store features.zarr --clips clips.jsonl
    fusion-train search search.yaml --set draws=200 --set budget.minutes=10 --submission answers.csv
    """
    from fusion_train.errors import ConfigError
    from fusion_train.search.refit import write_submission
    from fusion_train.search.report import leaderboard, short_board, summary, write_report
    from fusion_train.search.running import run_search
    from fusion_train.search.search_file import load_search

    settings = load_search(file, overrides)
    if submission is not None and settings.submission is None:
        raise ConfigError(
            "--submission",
            expected="a search file that names the split without labels",
            got="no submission: in it",
            next_step="Add submission: SPLIT to the file, or --set submission=SPLIT.",
        )
    folder = out or Path("searches") / Path(file).stem
    searching, selected = run_search(settings, store=store, clips=clips, out=folder, say=note, threads=threads)
    page = write_report(searching, selected)
    lines = summary(searching, selected)
    print_table(short_board(leaderboard(searching, selected)), f"{folder.name}: {settings.main}, per cent")
    json_result({**asdict(selected), "report": str(page)})
    for line in lines:
        say(line)
    say(f"report: {page}; leaderboard.csv and leaderboard.tex beside it")
    if submission is not None:
        write_submission(searching, searching.trials[selected.board[0].trial], submission)
        say(f"submission: {submission}, {len(searching.data.candidates)} clips")
