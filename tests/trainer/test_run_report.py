"""The page about one run."""

from __future__ import annotations

import csv
import json

import pytest
from click.testing import CliRunner
from test_train import run_training
from toy import make_config

from fusion_train import checkpoint
from fusion_train.cli import main
from fusion_train.run import Run
from fusion_train.training.run_report import read_rows, write_report


@pytest.fixture(scope="module")
def run(llama, material, tmp_path_factory) -> Run:
    config = make_config(llama, "log.eval_every=3", "data.tasks=[emotion, reason]")
    return run_training(config, material, tmp_path_factory.mktemp("report") / "perception")


def test_the_page_holds_curves_scores_and_settings_and_fetches_nothing(run, tmp_path):
    result = CliRunner().invoke(main, ["report", str(run.folder), "--out", str(tmp_path / "page.html")])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") >= 6
    for said in ("Run perception", "Held-out scores", "accuracy/emotion", "optim.lr", "supervised tokens/s"):
        assert said in page, said
    assert not any(word in page for word in ("<script", 'src="http', "<link"))


def test_the_best_checkpoint_is_the_bold_row_of_the_scores(run, tmp_path):
    page = write_report(run, tmp_path / "page.html")[0].read_text()
    best = int(checkpoint.best(run.checkpoints).name.rpartition("-")[2])
    bold = [row.split("</td>")[0].rpartition(">")[2] for row in page.split('<tr class="strong">')[1:]]
    assert bold == [str(best)]


def test_the_same_run_gives_the_same_bytes(run, tmp_path):
    pages = [write_report(run, tmp_path / f"{name}.html")[0].read_bytes() for name in ("a", "b")]
    assert pages[0] == pages[1]


def test_the_numbers_are_those_of_the_metrics_log(run, tmp_path):
    _, numbers = write_report(run, tmp_path / "page.html")
    rows = list(csv.DictReader(numbers.read_text().splitlines()))
    logged = read_rows(run)
    assert len(rows) == len(logged)
    for row, line in zip(rows, logged, strict=True):
        assert {name: float(value) for name, value in row.items() if value} == {k: float(v) for k, v in line.items()}


def test_a_run_that_is_not_finished_and_a_torn_line_are_shown_as_they_are(run, tmp_path):
    folder = tmp_path / "open"
    folder.mkdir()
    for name in ("config.yaml", "run.json"):
        (folder / name).write_bytes((run.folder / name).read_bytes())
    lines = run.metrics.read_text().splitlines()[:2]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 3, "lo']))
    page, _ = write_report(Run(folder))
    assert "not finished" in page.read_text()
    assert json.loads(lines[1])["step"] == 2


def test_a_run_without_lines_says_what_to_do(run, tmp_path):
    for name in ("config.yaml", "run.json"):
        (tmp_path / name).write_bytes((run.folder / name).read_bytes())
    result = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert result.exit_code == 2
    assert "fusion-train resume" in result.output
