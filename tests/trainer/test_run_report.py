"""The page about one run."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import pytest
import recordings as rec
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
    for said in ("Run perception", "Held-out scores", "accuracy/emotion", "warmup_steps: ", "supervised tokens/s"):
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


@pytest.fixture
def answered(run, tmp_path) -> Run:
    """The run with forty answers of eight speakers, ten of them wrong, and a clip list with three kinds of media."""
    shutil.copytree(run.folder, tmp_path / "run")
    rec.write_clip(tmp_path / "seen.mp4", num_frames=6, sound=rec.sine(0.5, 200))
    (tmp_path / "broken.mp4").write_bytes(b"no media")
    rec.write_wav(tmp_path / "heard.wav", rec.sine(0.5, 300)[None])
    rows, listed = [], []
    for number in range(40):
        reference = "happy" if number % 2 else "sad"
        answer = "neutral" if number in (0, 1) else "happy" if number < 17 and reference == "sad" else reference
        probabilities = {answer: 0.6, "else": 0.4}
        clip_id, speaker = f"clip{number:02d}", f"s{number % 8}"
        row = {"id": clip_id, "task": "emotion", "prediction": answer, "reference": reference, "speaker": speaker}
        rows.append(row | {"dataset": "d", "probabilities": probabilities})
        media = {0: {"video": "seen.mp4"}, 1: {"audio": "heard.wav"}}.get(number, {"video": "broken.mp4"})
        if number != 16:
            listed.append({"id": clip_id, "text": "it [rains] <b>", "labels": {"emotion": reference}} | media)
    write = lambda rows: "".join(json.dumps(row) + "\n" for row in rows)  # noqa: E731
    (tmp_path / "run" / "predictions-test-emotion.jsonl").write_text(write(rows))
    (tmp_path / "clips.jsonl").write_text(write(listed))
    return Run(tmp_path / "run")


def test_wrong_clips_are_shown_with_their_media_and_the_most_frequent_confusions_first(answered):
    clips = answered.folder.parent / "clips.jsonl"
    result = CliRunner().invoke(main, ["report", str(answered.folder), "--clips", str(clips)])
    assert result.exit_code == 0, result.output
    page = (answered.folder / "report.html").read_text()
    cards = page.split('<figure class="card">')[1:]
    names = [card.partition('class="name">')[2].partition("<")[0] for card in cards]
    frequent = [f"clip{number:02d}" for number in range(2, 17, 2)]
    assert names == [frequent[0], "clip00", "clip01", *frequent[1:]]  # sad → happy, then one of each other confusion
    by_name = dict(zip(names, cards, strict=True))
    assert "data:image/jpeg" in by_name["clip00"]
    assert 'aria-label="sound"' in by_name["clip00"]
    assert "empty" not in by_name["clip01"]
    assert 'aria-label="sound"' in by_name["clip01"]
    assert "cannot be read" in by_name["clip02"]
    assert "sound" not in by_name["clip02"]
    assert "not in the clip list" in by_name["clip16"]
    assert "sad → neutral, p = 0.60" in by_name["clip00"]
    assert "it [rains] &lt;b&gt;" in by_name["clip00"]
    assert "10 of 10" in page


def test_the_clip_list_of_the_run_is_found_from_anywhere(answered, tmp_path, monkeypatch):
    """A run names it relative to its folder."""
    monkeypatch.chdir("/")
    shutil.copy(tmp_path / "clips.jsonl", tmp_path / "listed.jsonl")
    answered.keep(replace(answered.record(), clips="../listed.jsonl"))
    result = CliRunner().invoke(main, ["report", str(answered.folder)])
    assert result.exit_code == 0, result.output
    assert (answered.folder / "report.html").read_text().count('<figure class="card">') == 10


def test_without_the_clip_list_the_page_says_how_wrong_clips_are_shown(answered):
    page = write_report(answered)[0].read_text()
    assert "--clips" in page
    assert 'class="card"' not in page


def test_a_class_has_the_interval_of_its_recall(answered):
    page = write_report(answered)[0].read_text()
    cells = page.partition("<td>happy</td>")[2].partition("</tr>")[0].replace("</td>", "").split("<td")[1:]
    texts = [cell.partition(">")[2] for cell in cells]
    assert texts[1] == "95.00"
    assert texts[4].split(" to ") == ["–"] or float(texts[4].split(" to ")[0]) < 95 < float(texts[4].split(" to ")[1])
    assert "fewer than 5 speakers" in page  # four speakers say every happy clip


def test_answers_that_are_damaged_or_have_no_metric_are_said(answered):
    (answered.folder / "predictions-test-emotion.jsonl").write_text('{"id": "a"}\n')
    for task in ("caption", "no-such-task"):
        row = {"id": "a", "task": task, "prediction": "Rain.", "reference": "Rain."}
        (answered.folder / f"predictions-test-{task}.jsonl").write_text(json.dumps(row) + "\n")
    page = write_report(answered)[0].read_text()
    assert page.count("<h2>Answers:") == 3
    assert page.count("not scored") == 2
    assert "there is no metric" in page
