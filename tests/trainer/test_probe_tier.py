"""The probe tier: whom it can judge, whom it stops, and that it says how far it agrees with the whole models."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusion_train.errors import ConfigError
from fusion_train.sweeps.early_stopping import announce, distinguishable, probe_round, probes_of, stop_by_probe
from fusion_train.sweeps.job import SweepSettings
from fusion_train.sweeps.sweep_file import Sweep, load_sweep
from fusion_train.sweeps.trials import TrialTable
from fusion_train.sweeps.worker import Worker

VARIANTS = """
reference: same
seeds: [0, 1]
variants:
  conv: {model: {fusion: {name: conv}}}
  attention: {model: {fusion: {name: attention}}}
  none: {model: {fusion: {name: none}}}
  audio: {features: {image: null}}
  r8: {model: {lora: {r: 8}}}
  fast: {optim: {lr: 1e-2, weight_decay: 0.5}}
  both: {stages: [perception, cognition]}
  asked: {prompt: {said: " Heard: {text}"}}
  same: {}
"""


def load(folder: Path, text: str, *overrides: str) -> Sweep:
    (folder / "mine.yaml").write_text(text)
    return load_sweep(str(folder / "mine.yaml"), None, overrides)


def filled(folder: Path, sweep: Sweep, scores: dict[str, list[float | None]]) -> TrialTable:
    """A table whose probes have these accuracies; None for one that failed."""
    table = TrialTable(folder)
    table.add([*sweep.trials, *probe_round(sweep).trials])
    for variant, values in scores.items():
        for probe, value in zip(sweep.probes[variant], values, strict=True):
            table.write(
                probe, **({"state": "failed"} if value is None else {"state": "done", "scores": {"accuracy": value}})
            )
    return table


def test_only_what_a_probe_sees_tells_variants_apart(tmp_path):
    sweep = load(tmp_path, VARIANTS + "probe: {steps: 7}")
    assert distinguishable(sweep) == ["conv", "attention", "audio"]
    assert list(probes_of(sweep)) == ["conv", "attention", "audio", "same"]
    assert "none" not in sweep.probes
    probe = sweep.probes["conv"][1]
    assert (probe.name, probe.seed, probe.config.stage) == ("conv.probe-seed1", 1, "probe")
    assert (probe.config.model.llm, probe.config.optim.steps) == (None, 7)
    told: list[str] = []
    announce(sweep, told.append)
    assert told == [
        "probe tier: conv, attention, audio, same; 7 steps each, 50% of them go on",
        "probe tier: not judged: r8, fast, both, asked (the probe of another is the same)",
        "probe tier: not judged: none (no fusion to probe)",
    ]


def test_settings_given_for_the_whole_model_do_not_reach_the_probe(tmp_path):
    sweep = load(tmp_path, VARIANTS + "probe: {}", "optim.steps=3", "model.llm=somewhere", "features.video=null")
    probe = sweep.probes["conv"][0].config
    assert (probe.model.llm, probe.optim.steps) == (None, 1000)
    assert probe.features.video is None, "what is read is a setting of both"


def test_a_probe_starts_from_nothing_where_the_whole_models_start_from_a_run(tmp_path):
    sweep = load(tmp_path, VARIANTS + "probe: {}")
    worker = Worker(
        SweepSettings("store", "clips", tmp_path, "emotion", "val", initial="runs/before"), lambda text: None
    )
    starts = [worker._request(trial, 0).initial for trial in (sweep.probes["conv"][0], sweep.trials[0])]
    assert starts[0] is None
    assert starts[1].folder == Path("runs/before")


def test_ranks_of_lora_alone_leave_nothing_to_probe(tmp_path):
    sweep = load(tmp_path, "probe: {}\nvariants:\n  a: {model: {lora: {r: 8}}}\n  b: {model: {lora: {r: 16}}}\n")
    assert probe_round(sweep) is None


def test_a_task_that_a_probe_cannot_answer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="one label a clip"):
        load(tmp_path, "task: reason\nprobe: {}\nvariants: {a: {}}\n")


def test_the_worse_half_stops_for_good_and_what_was_not_judged_goes_on(tmp_path):
    sweep = load(tmp_path, VARIANTS + "probe: {keep: 0.5}")
    table = filled(
        tmp_path, sweep, {"conv": [0.2, 0.4], "attention": [0.9, 0.8], "audio": [0.7, 0.7], "same": [0.1, 0.1]}
    )
    told: list[str] = []
    for _ in range(2):  # as after a kill
        stop_by_probe(sweep, table, told.append)
        stopped = {trial.variant: table.outcome(trial).stopped for trial in sweep.trials}
        assert {name for name, where in stopped.items() if where} == {"conv"}
        assert stopped["conv"] == "behind in the probe"
    assert told == ["conv: behind in the probe, stopped"]


def test_a_variant_whose_probe_failed_goes_on(tmp_path):
    sweep = load(tmp_path, VARIANTS + "probe: {keep: 0.1}")
    table = filled(
        tmp_path, sweep, {"conv": [0.0, None], "attention": [0.9, 0.8], "audio": [0.7, 0.7], "same": [0.8, 0.8]}
    )
    stop_by_probe(sweep, table, lambda text: None)
    assert {trial.variant for trial in sweep.trials if table.outcome(trial).state == "stopped"} == {"audio"}


def test_keeping_all_only_measures(tmp_path):
    sweep = load(tmp_path, VARIANTS + "probe: {keep: 1}")
    table = filled(tmp_path, sweep, {name: [0.1 * n, 0.1] for n, name in enumerate(probes_of(sweep))})
    stop_by_probe(sweep, table, pytest.fail)
