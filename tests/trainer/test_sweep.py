"""Sweeps as a user runs them: trained together, kept, continued, judged, reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from fusion_train.cli import main
from fusion_train.errors import ConfigError, DataError
from fusion_train.run import Run
from fusion_train.sweeps import worker
from fusion_train.sweeps.early_stopping import rank_correlation, rung_steps, survivors
from fusion_train.sweeps.grouping import group_trials
from fusion_train.sweeps.job import Cost
from fusion_train.sweeps.results import read_results
from fusion_train.sweeps.sweep_file import Halving, load_sweep
from fusion_train.sweeps.trials import TrialTable


def invoke(command: list[str]):
    return CliRunner().invoke(main, command)


def rows(folder: Path) -> dict[str, dict]:
    trials = json.loads((folder / "sweep" / "results.json").read_text())["trials"]
    return {f"{row['variant']}-seed{row['seed']}": row for row in trials}


TWO = "variants:\n  conv: {model: {fusion: {name: conv}}}\n  same-size: {model: {fusion: {name: attention}}}\n"


def test_a_sweep_compares_variants_on_three_seeds_and_a_second_run_does_nothing(sweep, tmp_path):
    command = sweep(TWO)
    first = invoke(command)
    assert first.exit_code == 0, first.output
    assert "can be told from chance with 3 seeds and" in first.output, first.output
    assert list(rows(tmp_path)) == [f"{v}-seed{s}" for v in ("conv", "same-size") for s in (0, 1, 2)]
    assert all(row["together"] == 2 and row["state"] == "done" for row in rows(tmp_path).values())
    assert {path.name for path in (tmp_path / "sweep").iterdir()} >= {"report.html", "results.csv", "results.tex"}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").glob("*-seed*/**/*") if path.is_file()}
    again = invoke(command)
    assert again.exit_code == 0, again.output
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert invoke(["report", str(tmp_path / "sweep")]).exit_code == 0


def test_a_trial_that_fails_is_kept_and_taken_up_again_on_request(sweep, tmp_path):
    command = sweep("seeds: [0]\nvariants:\n  bad: {optim: {lr: 1e30, warmup_steps: 0, steps: 4}}\n  good: {}\n")
    result = invoke(command)
    assert result.exit_code == 1
    assert "expected a finite loss" in rows(tmp_path)["bad-seed0"]["error"]
    assert rows(tmp_path)["good-seed0"]["state"] == "done"
    again = invoke(command)
    assert "training step" not in again.output, "a failed trial is left alone"
    assert "bad-seed0: training step 0 of 4" in invoke([*command, "--retry"]).output


@pytest.mark.slow
def test_a_group_that_fails_is_split(sweep, tmp_path, monkeypatch):
    real = worker.train_runs

    def breaks(requests, **rest):
        if any("conv" in request.run.name for request in requests):
            raise RuntimeError("a fusion of the user's raised")
        return real(requests, **rest)

    monkeypatch.setattr(worker, "train_runs", breaks)
    result = invoke(sweep("seeds: [0]\n" + TWO))
    assert result.exit_code == 1
    found = rows(tmp_path)
    assert found["conv-seed0"]["error"] == "RuntimeError: a fusion of the user's raised"
    assert found["same-size-seed0"]["state"] == "done"


def test_killed_it_goes_on_where_it_was(sweep, tmp_path, monkeypatch):
    command = sweep("seeds: [0, 1]\n" + TWO)
    real = worker.Worker.train
    calls = []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(worker.Worker, "train", killed)
    assert invoke(command).exit_code != 0
    monkeypatch.setattr(worker.Worker, "train", real)
    done = list((tmp_path / "sweep").glob("*/finished.json"))
    assert len(done) == 2
    result = invoke(command)
    assert result.exit_code == 0, result.output
    assert result.output.count("together from step") == 1
    assert all(row["state"] == "done" for row in rows(tmp_path).values())


@pytest.mark.slow
def test_a_chain_of_stages_starts_each_from_the_one_before(sweep, tmp_path):
    result = invoke(
        sweep("seeds: [0]\nvariants:\n  labels: {stages: [perception]}\n  both: {stages: [perception, cognition]}\n")
    )
    assert result.exit_code == 0, result.output
    folder = tmp_path / "sweep"
    assert Run(folder / "both-seed0").record().initial["run"] == "../both-seed0.perception"
    assert Run(folder / "both-seed0").config().stage == "cognition"


def test_variants_that_are_behind_are_stopped(sweep, tmp_path):
    text = "seeds: [0]\nreference: a\nhalving: {at: [0.5], keep: 0.5}\nvariants:\n  a: {}\n"
    text += "".join(f"  {name}: {{optim: {{lr: {lr}}}}}\n" for name, lr in (("b", 1e-2), ("c", 1e-9), ("d", 2e-9)))
    result = invoke(sweep(text, "optim.steps=8"))
    assert result.exit_code == 0, result.output
    found = rows(tmp_path)
    states = [found[f"{name}-seed0"]["state"] for name in "abcd"]
    assert states[0] == "done"
    judged = {name: found[f"{name}-seed0"]["rungs"]["4"] for name in "abcd"}
    going_on = survivors({name: [score] for name, score in judged.items()}, "a", 0.5)
    assert [state == "done" for state in states] == [name in going_on for name in "abcd"]
    assert found["a-seed0"]["step"] == 8


def test_probes_come_first_and_their_order_is_compared_with_that_of_the_end(sweep, tmp_path):
    names = ("conv", "attention", "q-former")
    text = "seeds: [0]\nreference: whole\nprobe: {steps: 3, keep: 1}\nvariants:\n  whole: {}\n"
    command = sweep(text + "".join(f"  {name}: {{model: {{fusion: {{name: {name}}}}}}}\n" for name in names))
    first = invoke(command)
    assert first.exit_code == 0, first.output
    assert first.output.index("conv.probe-seed0") < first.output.index("together from step")
    found = read_results(tmp_path / "sweep")
    assert set(found.rungs["probe"]) == {"whole", *names}
    assert "Rank correlation of the scores in the probe" in (tmp_path / "sweep" / "report.html").read_text()
    assert "training step" not in invoke(command).output, "probes are kept"
    (tmp_path / "mine.yaml").write_text((tmp_path / "mine.yaml").read_text() + "split: train\n")
    assert invoke(command).exit_code == 0
    again = (tmp_path / "sweep/conv-seed0/predictions.jsonl").read_text().splitlines()
    assert len(again) == 36, "the same runs are asked other clips"


def test_what_cannot_run_is_refused_before_anything_starts(sweep, tmp_path):
    result = invoke(
        sweep(
            "needs: fcache extract this\nvariants:\n  a: {features: {audio: whisper-16}}\n"
            "  b: {}\n  c: {optim: {shard_base: true}}\n"
        )
    )
    assert result.exit_code == 2
    assert "whisper-16" in result.output
    assert "c: optim.shard_base" in result.output
    assert "fcache extract this" in result.output
    assert not (tmp_path / "sweep").exists()


def test_texts_are_compared_by_a_figure_of_their_overlap(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr("fusion_train.evaluation.evaluate.MAX_NEW_TOKENS", 4)
    command = sweep("seeds: [0]\ntask: reason\nmain: label\n" + TWO, "data.tasks=[emotion, reason]")
    result = invoke(command)
    assert result.exit_code == 0, result.output
    assert set(rows(tmp_path)["conv-seed0"]["figures"]) == {"clue", "label"}
    assert "comparable only with scores of the same judge" in (tmp_path / "sweep" / "report.html").read_text()


def test_a_metric_that_cannot_take_the_references_is_refused_before_anything_starts(sweep, tmp_path):
    result = invoke(sweep("metric: waf\nvariants: {a: {}}\n"))
    assert result.exit_code == 2
    assert "expected sentiment scores" in result.output
    assert not (tmp_path / "sweep" / "trials.sqlite").exists()


def test_unknown_keys_and_equal_variants_are_refused(tmp_path):
    for text, said in (
        ("variant: {a: {}}\nvariants: {a: {}}\n", "variants"),
        ("variants: {a: {}, b: {}}\n", "b-seed0 is a-seed0"),
        ("reference: convv\nvariants: {conv: {}}\n", "conv"),
        ("seeds: []\nvariants: {a: {}}\n", "seeds"),
    ):
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(ConfigError, match=said):
            load_sweep(str(tmp_path / "mine.yaml"), None, ())


def test_groups_hold_what_takes_the_same_batches_and_fits(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "seeds: [0, 1]\nvariants:\n  a: {}\n  b: {optim: {lr: 1e-3}}\n  c: {model: {lora: {r: 8}}}\n"
        "  d: {optim: {batch_size: 8}}\n"
    )
    trials = load_sweep(str(file), None, ()).trials
    cost = Cost(trained=1, soft_tokens=448, flops=1.0, shared_bytes=100, own_bytes=10)
    groups = group_trials(trials, 0, lambda trial: cost, free_bytes=1000)
    assert [[trial.name for trial in group] for group in groups] == [
        ["a-seed0", "b-seed0", "c-seed0"],
        ["a-seed1", "b-seed1", "c-seed1"],
        ["d-seed0"],
        ["d-seed1"],
    ]
    assert [len(group) for group in group_trials(trials, 0, lambda trial: cost, free_bytes=120)] == [2, 1, 2, 1, 1, 1]
    assert max(len(group) for group in group_trials(trials, 0, lambda trial: cost, free_bytes=0)) == 1


def test_a_rung_in_the_warm_up_is_told_before_the_run(sweep):
    command = sweep("halving: {at: [0.1, 0.5]}\nvariants: {a: {}}\n", "optim.steps=40", "optim.warmup_steps=10")
    assert "halving: step 4 lies in the warm-up of 10 steps" in invoke([*command, "--check"]).output


def test_halving_by_hand():
    assert rung_steps(Halving(at=(0.5, 0.25, 1.0)), 100) == [25, 50]
    assert survivors({"a": [0.1], "b": [0.9, 0.7], "c": [0.5], "d": [0.2]}, "a", 0.5) == ["a", "b", "c"]
    assert survivors({"a": [0.5], "b": [0.5], "c": [0.5]}, "a", 0.3) == ["a", "b", "c"], "ties go on"
    assert rank_correlation({"a": 1, "b": 2, "c": 3}, {"a": 10, "b": 30, "c": 20}) == pytest.approx(0.5)
    assert rank_correlation({"a": 1, "b": 2}, {"a": 1, "b": 2}) is None


def test_a_folder_without_a_sweep_is_said_to_be_none(tmp_path):
    with pytest.raises(DataError, match=r"sweep\.json"):
        read_results(tmp_path)


def test_the_table_keeps_what_was_written(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("seeds: [0]\nvariants: {a: {}}\n")
    trial = load_sweep(str(file), None, ()).trials[0]
    table = TrialTable(tmp_path)
    table.add([trial])
    table.write(trial, state="done", scores={"accuracy": 0.5})
    table.add([trial])  # again: nothing is lost
    assert TrialTable(tmp_path).outcome(trial).scores == {"accuracy": 0.5}
