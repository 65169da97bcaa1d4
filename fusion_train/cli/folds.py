"""`fusion-train --folds`, and the report and the comparison of folds: call the library, print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featurecache.console import json_result, note, print_table, say

if TYPE_CHECKING:
    from fusion_train.config import Config
    from fusion_train.training.callbacks import Callback


def cross_validate(
    config: Config,
    store: str,
    clips: str,
    out: Path,
    by: str,
    num_seeds: int,
    init: Path | None,
    callbacks: Sequence[Callback],
) -> None:
    """Train, ask and score all folds.

    Raises:
        ConfigError: the stage starts from another one, and no run or folds of it are named.
    """
    from fusion_train.errors import ConfigError
    from fusion_train.folds.running import FoldRequest, is_folds, run_folds
    from fusion_train.processes import this_process

    if init is None and config.init_stage is not None:
        init = out.parent / f"{config.init_stage}-folds-{by}"
        if not is_folds(init):
            raise ConfigError(
                "--init",
                expected=f"folds of stage {config.init_stage}, whose runs did not train on the held-out clips",
                got="none",
                next_step=f"Train them: fusion-train --stage {config.init_stage} --folds {by}. "
                "Or start afresh: --set init_stage=null.",
            )
        note(f"each fold starts from its run in {init}")
    elif init is not None and not is_folds(init):
        note(f"every fold starts from {init}: if that was trained on these clips, the scores are too high")
    run_folds(FoldRequest(config, store, clips, out, by, num_seeds, init), say=note, callbacks=callbacks)
    if this_process().is_main_process:
        print_report(out)


def print_report(folder: Path) -> None:
    """Write the report of folds and print its tables."""
    from fusion_train.folds.report import (
        as_json,
        baseline_difference,
        fold_table,
        remark,
        score_table,
        write_report,
    )
    from fusion_train.folds.results import read_results

    results = read_results(folder)
    page = write_report(results)
    print_table(fold_table(results))
    say()
    print_table(score_table(results))
    say()
    say(f"{results.main.name} against the {results.linear.name}: {baseline_difference(results).verdict}")
    say(remark(results))
    say(f"report: {page}; folds.csv, folds.tex and scores.json beside it")
    json_result({**as_json(results), "report": str(page)})


def print_comparison(folders: Sequence[Path], out: Path) -> None:
    """Compare folders of folds with the first; write and print the table."""
    from featurecache.files.publish import replace_bytes
    from fusion_train.folds.report import comparison_lines, comparison_table, remark
    from fusion_train.folds.results import read_results
    from fusion_train.report.page import Page

    results = [read_results(folder) for folder in folders]
    table = comparison_table(results)
    replace_bytes(out / "contrast.csv", table.csv().encode())
    replace_bytes(out / "contrast.tex", table.latex().encode())
    page = Page(f"{len(folders)} cross-validated variants", remark(results[0]))
    page.table(table)
    print_table(table, "all clips, each answered by a run that did not train on it; per cent")
    for line in comparison_lines(results):
        page.text(line)
        say(line)
    say(f"report: {page.write(out / 'contrast.html')}")
    json_result({"contrast": table.records()})
