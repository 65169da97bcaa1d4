"""Settings that defeat a small run are said before it begins, and follow from its length where nobody named them."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from toy import make_config

from fusion_train.cli import main
from fusion_train.planning.cautions import cautions
from fusion_train.presets import load_config
from fusion_train.sweeps.sweep_file import load_sweep


def said(config, **known) -> str:
    return "\n".join(cautions(config, **{"on_cpu": False, **known}))


@pytest.mark.parametrize(
    ("override", "known", "expected"),
    [
        ("optim.warmup_steps=6", {}, "Set optim.warmup_steps=0."),
        ("checkpoint.every=7", {}, "Set checkpoint.every=1."),
        ("log.eval_every=7", {}, "Set log.eval_every=1."),
        ("optim.steps=20000", {"num_clips": 278}, "288 epochs of 278 clips, which the model memorises. 20 epochs are "
         "optim.steps=1390"),
        ("optim.batch_size=64", {"num_clips": 20}, "more than the 20 clips of train"),
        ("seed=1", {"num_scored": 0}, "data.eval_split val: 0 clips to score"),
        ("seed=1", {"num_scored": 8}, "one answer moves the accuracy by 12 points"),
        ("optim.precision=fp16", {"on_cpu": True}, "Set optim.precision=bf16, or fp32."),
        ("model.llm_dtype=float16", {"on_cpu": True}, "Set model.llm_dtype=float32, or bfloat16."),
    ],
)  # fmt: skip
def test_each_is_said_with_what_mends_it(llama, override, known, expected):
    sound = ("log.eval_every=6",)
    assert said(make_config(llama, *sound), num_clips=400, num_scored=100, on_cpu=True) == ""
    assert expected in said(make_config(llama, *sound, override), **known)


def test_the_published_run_is_said_nothing_of():
    for stage in ("perception", "cognition", "joint", "probe"):
        assert said(load_config(None, stage), num_clips=130_000, num_scored=5_000) == ""


def test_what_a_short_run_would_never_reach_follows_from_its_length(tmp_path):
    short = load_config(None, "perception", ["optim.steps=500"])
    assert (short.optim.warmup_steps, short.checkpoint.every, short.log.eval_every) == (10, 10, 50)
    named = load_config(None, "perception", ["optim.steps=500", "optim.warmup_steps=900", "log.eval_every=501"])
    assert (named.optim.warmup_steps, named.checkpoint.every, named.log.eval_every) == (900, 10, 501)
    (tmp_path / "mine.yaml").write_text("extends: emotion_llama_v2\noptim: {steps: 500, warmup_steps: 700}\n")
    assert load_config(tmp_path / "mine.yaml", "perception").optim.warmup_steps == 700
    published = load_config(None, "perception")
    assert (published.optim.warmup_steps, published.checkpoint.every, published.log.eval_every) == (1000, 1000, 5000)


def test_trials_of_a_short_sweep_warm_up_within_it(tmp_path):
    (tmp_path / "mine.yaml").write_text("settings: {optim: {steps: 100}}\nvariants: {a: {}, b: {optim: {steps: 50}}}\n")
    warmups = {
        trial.variant: trial.config.optim.warmup_steps
        for trial in load_sweep(str(tmp_path / "mine.yaml"), None, ()).trials
    }
    assert warmups == {"a": 2, "b": 1}


def test_a_variant_that_is_longer_than_the_base_of_its_sweep_keeps_nothing_of_the_short_base(tmp_path):
    (tmp_path / "mine.yaml").write_text("variants: {short: {}, long: {optim: {steps: 20_000}}}\n")
    lengths = {
        trial.variant: (trial.config.optim.warmup_steps, trial.config.checkpoint.every, trial.config.log.eval_every)
        for trial in load_sweep(str(tmp_path / "mine.yaml"), None, ["optim.steps=500"]).trials
    }
    assert lengths == {"short": (10, 10, 50), "long": (1000, 1000, 5000)}


def test_the_check_of_a_sweep_says_cautions_with_the_variants_that_they_are_about(sweep):
    command = sweep(
        "seeds: [0]\nvariants:\n  a: {}\n  b: {optim: {warmup_steps: 9}}\n"
        "  c: {optim: {warmup_steps: 9}, model: {lora: {r: 2}}}\n",
        "optim.warmup_steps=1",
        "data.eval_split=null",
        "checkpoint.every=2",
    )
    result = CliRunner().invoke(main, [*command, "--check"])
    assert result.exit_code == 0, result.output
    assert "b, c: optim.warmup_steps 9: the run ends after 2 steps, within the warm-up" in result.output
    assert "a, b, c: " not in result.output
    shared = CliRunner().invoke(main, [*command, "--check", "--set", "optim.precision=fp16"])
    assert "\noptim.precision fp16" in shared.output, "one about every variant names none"


def test_plan_and_training_say_it_alike(llama, material, tmp_path):
    settings = [
        "--set",
        f"model.llm={llama}",
        "--set",
        "model.fusion.hidden=[16,8]",
        "--set",
        "model.fusion.out_dim=16",
        "--set",
        "optim.steps=2",
        "--set",
        "optim.warmup_steps=5",
        "--set",
        "optim.precision=fp32",
        "--set",
        "data.mixture=null",
        "--set",
        "data.tasks=[emotion]",
        "--set",
        "log.tensorboard=false",
        "--store",
        str(material / "features.zarr"),
        "--clips",
        str(material / "clips.jsonl"),
    ]
    line = "optim.warmup_steps 5: the run ends after 2 steps, within the warm-up"
    planned = CliRunner().invoke(main, ["plan", *settings])
    assert planned.exit_code == 0, planned.output
    assert line in planned.output
    trained = CliRunner().invoke(main, ["--stage", "perception", "--out", str(tmp_path / "run"), *settings])
    assert trained.exit_code == 0, trained.output
    assert trained.output.index(line) < trained.output.index("training step 0")
