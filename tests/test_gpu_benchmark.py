"""`bench.py gpu`: figures are kept as soon as they are known, whatever happens to a case; and every case runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import bounds
from benchmarks.gpu.cases import CASES, Case
from benchmarks.gpu.conclusions import CONCLUSIONS, conclusions, figures_of
from benchmarks.gpu.runner import environment, run_cases

ROOT = Path(__file__).parents[1]
TELL = """
import json, os, sys, time
def tell(**message): print(json.dumps(message), flush=True)
given = sys.stdin.readline()
if not given: sys.exit()
tell(state="begun", device="card")
"""
BEHAVIOUR = {
    "good": 'tell(state="measured", part="a", figures={"x": 1}); tell(state="measured", part="b", figures={"x": 2})',
    "crashes": 'tell(state="measured", part="a", figures={"x": 3}); print("bad\\nworse", file=sys.stderr); os.abort()',
    "raises": 'raise ValueError("no such shape")',
    "hangs": 'tell(state="measured", part="a", figures={"x": 4}); open(sys.argv[1], "w").close(); time.sleep(600)',
    "skips": 'tell(state="skipped", reason="no bitsandbytes")',
    "packed": 'tell(state="measured", figures={"samples_per_s": 9.0})',
    "released": 'tell(state="measured", figures={"samples_per_s": 2.0})',
}


def run(out: Path, *names: str, seconds: float = 60.0, limit_s: float = 30.0, tiny: bool = True) -> list[dict]:
    """Run stand-ins for cases, processes that behave as their names say; returns the lines of the file."""

    def command(name: str, root: Path, tiny: bool) -> list[str]:
        return [sys.executable, "-c", f'{TELL}\n{BEHAVIOUR[name]}\ntell(state="done")', str(out / "begun")]

    cases = dict.fromkeys(names, Case("", limit_s=limit_s, least_s=1.0))
    run_cases(list(names), out, seconds, tiny=tiny, cases=cases, command=command)
    return lines_of(out)


def lines_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "gpu.jsonl").read_text().splitlines()]


def told(lines: list[dict]) -> list[tuple]:
    return [(line["case"], line.get("part"), line["state"], line.get("figures")) for line in lines if "case" in line]


def test_a_case_that_crashes_raises_or_skips_leaves_a_line_and_the_others_run(tmp_path):
    lines = run(tmp_path, "crashes", "raises", "skips", "good")
    assert told(lines) == [
        ("crashes", "a", "measured", {"x": 3}),
        ("crashes", None, "failed", None),
        ("raises", None, "failed", None),
        ("skips", None, "skipped", None),
        ("good", "a", "measured", {"x": 1}),
        ("good", "b", "measured", {"x": 2}),
    ]
    reasons = [line["reason"] for line in lines if "reason" in line]
    assert reasons == ["ended by SIGABRT: worse", "exit code 1: ValueError: no such shape", "no bitsandbytes"]
    assert {line["device"] for line in lines} == {"card"}
    log = (tmp_path / "gpu.log").read_text()
    assert "== crashes\nbad\nworse\n" in log
    assert "no such shape" in log


def test_a_case_over_its_limit_is_ended_and_keeps_what_it_told(tmp_path):
    began = time.monotonic()
    lines = run(tmp_path, "hangs", "good", limit_s=0.5)  # a tiny run has four times as long
    assert told(lines)[:2] == [("hangs", "a", "measured", {"x": 4}), ("hangs", None, "timed out", None)]
    assert lines[1]["reason"] == "took longer than 2 s"
    assert [line["case"] for line in lines[2:]] == ["good", "good"]
    assert time.monotonic() - began < 30


def test_cases_for_which_no_time_is_left_are_skipped(tmp_path):
    lines = run(tmp_path, "hangs", "good", "packed", seconds=3.0)
    assert [(line["case"], line["state"]) for line in lines[1:]] == [
        ("hangs", "timed out"),
        ("good", "skipped"),
        ("packed", "skipped"),
    ]
    assert lines[2]["reason"] == "0 s left of --minutes"


def test_a_run_that_is_cut_keeps_its_lines_and_leaves_no_process_of_a_case(tmp_path):
    program = (
        f"import sys; sys.path[:0] = [{str(ROOT / 'tests')!r}]\n"
        f"from pathlib import Path\nimport test_gpu_benchmark as t\n"
        f"t.run(Path({str(tmp_path)!r}), 'good', 'hangs', 'packed')"
    )
    process = subprocess.Popen([sys.executable, "-c", program], env=environment(tiny=True))
    written = tmp_path / "gpu.jsonl"
    while not (written.exists() and "hangs" in written.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait(30) != 0
    assert [(line["case"], line["state"]) for line in lines_of(tmp_path)] == [
        ("good", "measured"),
        ("good", "measured"),
        ("hangs", "measured"),
    ]
    held = subprocess.run(["pgrep", "-f", str(tmp_path / "begun")], capture_output=True, text=True).stdout
    assert held == ""


def test_ratios_are_written_once_both_figures_are_known_and_across_runs_of_one_device(tmp_path):
    def ratios(lines: list[dict]) -> list[tuple]:
        chosen = [line for line in lines if line.get("conclusion") == "packed_over_released"]
        return [(line["device"], line["value"], line["goal"], line["met"]) for line in chosen]

    assert ratios(run(tmp_path, "packed")) == []
    with (tmp_path / "gpu.jsonl").open("a") as file:
        file.write(json.dumps({"case": "released", "device": "other", "figures": {"samples_per_s": 4.0}}) + "\n")
    assert ratios(run(tmp_path, "packed")) == []
    assert ratios(run(tmp_path, "released")) == [("card", 4.5, "at least 3", True)]


def test_a_line_torn_by_a_cut_is_left_out_and_the_next_one_stands_apart(tmp_path):
    whole = json.dumps({"case": "released", "device": "card", "figures": {"samples_per_s": 3.0}})
    (tmp_path / "gpu.jsonl").write_text(whole + '\n{"ca')
    with pytest.raises(json.JSONDecodeError):
        run(tmp_path, "packed")
    lines = (tmp_path / "gpu.jsonl").read_text().splitlines()
    assert lines[:2] == [whole, '{"ca']
    values = {line["conclusion"]: line["value"] for line in map(json.loads, lines[2:]) if "conclusion" in line}
    assert values["packed_over_released"] == 3.0


def test_without_a_gpu_the_command_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(BEHAVIOUR, "good", 'tell(state="measured", figures={})')
    monkeypatch.setattr(sys.modules[__name__], "TELL", TELL.replace('"card"', '"cpu"'))
    with pytest.raises(click.ClickException, match=r"expected a CUDA device, got none\. Use --tiny"):
        run(tmp_path, "good", tiny=False)


def test_the_figures_of_the_newest_line_count():
    lines = [
        {"case": "packed", "device": "card", "figures": {"samples_per_s": 5.0}},
        {"case": "trials", "part": "8k", "device": "card", "figures": {"stacked_over_in_turn": 1.4}},
        {"conclusion": "packed_over_released", "device": "card", "value": 7},
        {"case": "packed", "device": "card", "state": "failed", "reason": "…"},
        {"case": "packed", "device": "card", "figures": {"samples_per_s": 6.0}},
    ]
    assert figures_of(lines, "card") == {"packed.samples_per_s": 6.0, "trials.8k.stacked_over_in_turn": 1.4}


def test_conclusions_are_ratios_predictions_and_hours():
    figures = {
        "packed.samples_per_s": 40.0,
        "packed.tokens_per_sample": 600.0,
        "packed.utilisation": 0.5,
        "shared_by_4.samples_per_s": 108.0,
        "shared_by_4.tokens_per_sample": 200.0,
        "released.samples_per_s": 8.0,
        "encoders.whisper.clips_per_s": 100.0,
        "encoders.eva-global.clips_per_s": 100.0,
        "encoders.eva-temporal.clips_per_s": 50.0,
        "pipeline.processes.clips_per_s": 24.0,
        "trials.0.5k.stacked_over_in_turn": 2.5,
        "trials.8k.stacked_over_in_turn": 1.1,
    }
    found = {name: (value["value"], value.get("met")) for name, value in conclusions(figures).items()}
    assert found == {
        "packed_utilisation": (0.5, False),
        "packed_over_released": (5.0, True),
        "shared_by_4_over_released": (13.5, True),
        "shared_by_4_over_packed": (2.7, None),
        "sharing_over_its_prediction": (0.9, True),
        "hours_of_400k_draws": (2.778, True),
        "hours_of_400k_draws_4_questions_per_clip": (1.029, True),
        "trials_0.5k_stacked_over_in_turn": (2.5, None),
        "trials_8k_stacked_over_in_turn": (1.1, None),
        "trials_best_stacked_over_in_turn": (2.5, True),
        "pipeline_over_bare_encoders": (0.96, True),
        "hours_of_130k_clips_three_views": (1.505, False),
    }
    assert set(found) <= set(CONCLUSIONS)


def bench(out: Path, *options: str) -> list[dict]:
    """The command as a user starts it, on a CPU; returns its lines."""
    command = [sys.executable, str(ROOT / "tools" / "bench.py"), "gpu", "--tiny", "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment(tiny=True))
    assert done.returncode == 0, done.stderr
    return lines_of(out)


def test_a_case_runs_as_a_process_and_tells_its_figures(tmp_path):
    (line,) = [line for line in bench(tmp_path, "--only", "packed") if "case" in line]
    assert (line["case"], line["state"], line["device"]) == ("packed", "measured", "cpu")
    figures = line["figures"]
    assert figures["steps"] >= 1
    assert figures["row_tokens"] == 1024
    assert figures["tokens_per_s"] == pytest.approx(figures["samples_per_s"] * figures["tokens_per_sample"], rel=1e-3)


@pytest.mark.slow
def test_every_case_runs_on_a_cpu(tmp_path):
    lines = [line for line in bench(tmp_path, "--minutes", "60") if "case" in line]
    assert list(dict.fromkeys(line["case"] for line in lines)) == list(CASES)
    states = {line["case"]: line["state"] for line in lines}
    assert states.pop("four_bit") in ("measured", "skipped")  # with bitsandbytes, and without
    assert set(states.values()) == {"measured"}, [line for line in lines if line["state"] != "measured"]
    (resume,) = [line["figures"] for line in lines if line["case"] == "resume"]
    assert resume["tensors"] > 0
    assert (resume["differing"], resume["first_differing"]) == (0, "")
    values = [value for line in lines for value in line["figures"].values() if isinstance(value, float)]
    assert all(value == value and value >= 0 for value in values)


def pinned() -> dict[str, str]:
    """Package -> version of constraints-gpu.txt."""
    lines = [line for line in (ROOT / "constraints-gpu.txt").read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines}


def test_the_versions_of_gpu_machines_are_within_the_bounds_of_the_project():
    versions, required = pinned(), [Requirement(line) for line in bounds.requirements(ROOT)]
    outside = [
        f"{requirement}: {versions[canonicalize_name(requirement.name)]}"
        for requirement in required
        if versions.get(canonicalize_name(requirement.name), "")
        and versions[canonicalize_name(requirement.name)] not in requirement.specifier
    ]
    assert outside == []
    assert (versions["torch"], versions["transformers"], versions["accelerate"]) == ("2.11.0", "5.17.0", "1.15.0")


def test_what_travels_to_a_gpu_machine_is_pinned_and_documented():
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (names,) = re.findall(r"^GPU_WHEELS = (.*)$", makefile, re.MULTILINE)
    assert set(names.split()) - pinned().keys() == set()
    document = (ROOT / "docs" / "internals" / "gpu.md").read_text()
    (sentence,) = re.findall(r"These are (.*?)\. The checkout", document, re.DOTALL)
    assert set(re.findall(r"`([^`]+)`", sentence)) == set(names.split())
    assert f"{len(names.split())} packages" in document


def test_every_case_is_documented_in_its_order():
    document = (ROOT / "docs" / "internals" / "gpu.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", document, re.MULTILINE) == list(CASES)
