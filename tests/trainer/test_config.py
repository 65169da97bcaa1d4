"""Configurations: every shipped one, every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fusion_train.errors import ConfigError
from fusion_train.presets import load_config, stage_names
from fusion_train.sweeps.sweep_file import load_sweep

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
SWEEPS = sorted(CONFIGS.glob("sweeps/*.yaml"))


def test_there_are_presets_stages_and_sweeps():
    assert "emotion_llama_v2" in PRESETS
    assert {"perception", "cognition", "joint"} <= set(stage_names())
    assert {path.stem for path in SWEEPS} >= {"curriculum", "encoders", "lora", "modalities", "pre_fusion", "tokens"}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("stage", stage_names())
def test_every_shipped_configuration_is_valid_in_every_stage(preset, stage):
    assert load_config(preset, stage).stage == stage


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda path: path.stem)
def test_every_shipped_sweep_builds_every_variant(sweep):
    loaded = load_sweep(str(sweep), None, ())
    assert len({trial.key for trial in loaded.trials}) == 3 * len(loaded.variants), "three seeds of each"
    assert loaded.reference in loaded.variants


def test_the_published_recipe_is_the_default():
    optim = load_config().optim
    assert (optim.steps, optim.batch_size, optim.lr, optim.warmup_lr, optim.min_lr) == (50_000, 4, 1e-4, 1e-6, 1e-6)
    assert (optim.weight_decay, optim.betas, optim.max_grad_norm) == (0.05, (0.9, 0.999), None)


def test_every_unknown_key_is_named_with_the_near_one(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("model: {lora: {rank: 8}}\noptimiser: {}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert "model.lora.rank: unknown key" in str(caught.value)
    assert 'optimiser: unknown key. Did you mean "optim"?' in str(caught.value)


def test_a_wrong_value_names_its_key():
    with pytest.raises(ConfigError, match=r"optim\.steps: input should be greater than or equal to 1, got 0"):
        load_config(overrides=["optim.steps=0"])


def test_a_number_without_a_dot_is_a_number():
    assert load_config(overrides=["optim.lr=3e-4"]).optim.lr == 3e-4


def test_an_override_needs_a_value():
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        load_config(overrides=["optim.steps"])


def test_an_unknown_stage_is_refused():
    with pytest.raises(ConfigError, match='Did you mean "perception"'):
        load_config(stage="perceptoin")


def test_a_configuration_survives_yaml(tmp_path):
    config = load_config(stage="cognition", overrides=["data.mixture={a: 1.5}"])
    (tmp_path / "back.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "back.yaml") == config
    assert yaml.safe_load(config.to_yaml())["stage"] == "cognition"


def test_a_sweep_with_a_wrong_variant_is_refused_whole(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("variants: {a: {model: {fusion: {nam: conv}}}, b: {optim: {step: 3}}}\n")
    with pytest.raises(ConfigError) as caught:
        load_sweep(str(file), None, ())
    assert 'variant "a"' in str(caught.value)
    assert 'variant "b"' in str(caught.value)


def test_a_file_is_laid_over_what_it_extends(tmp_path):
    (tmp_path / "below.yaml").write_text("extends: demo\noptim: {steps: 7}\n")
    (tmp_path / "mine.yaml").write_text("extends: below.yaml\noptim: {batch_size: 2}\nmodel: {llm: x}\n")
    config = load_config(tmp_path / "mine.yaml")
    assert (config.optim.steps, config.optim.batch_size, config.model.llm) == (7, 2, "x")
    assert config.model.llm_dtype == "float32", "from demo.yaml"


def test_files_that_extend_each_other_in_a_circle_are_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: mine.yaml\n")
    with pytest.raises(ConfigError, match="a circle"):
        load_config(tmp_path / "mine.yaml")


def test_settings_for_one_stage_are_laid_over_the_stage(tmp_path):
    (tmp_path / "mine.yaml").write_text("stages: {cognition: {data: {tasks: [think]}}}\n")
    assert load_config(tmp_path / "mine.yaml", "cognition").data.tasks == ("think",)
    assert "think" not in load_config(tmp_path / "mine.yaml", "perception").data.tasks


def test_a_mistyped_sweep_is_answered_with_the_shipped_sweeps():
    with pytest.raises(ConfigError, match=r'one of .*lora, .*Did you mean "pre_fusion"'):
        load_sweep("pre_fusoin", None, [])


def test_a_mapping_that_only_one_configuration_has_is_one_difference():
    without = load_config(overrides=["data.mixture=null", "optim.batch_size=7"])
    differing = load_config(overrides=["data.mixture={a: 1, b: 2}"]).differences(without)
    assert differing == ["data.mixture: {a, b} != None", "optim.batch_size: 4 != 7"]


def test_a_mixture_can_be_switched_off():
    assert load_config(None, "perception", ["data.mixture=null"]).data.mixture is None


ALIASES = "\n".join(
    [
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]",
        *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)),
    ]
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"extends: [a]", r"extends: expected the name of one file or shipped preset, got \['a'\]"),
        (b"extends: ''", "expected the name of one file"),
        (b"extends: " + b"a" * 5000, "no such file"),
        (b"stages: 5", "stages: expected a mapping of settings, got 5"),
        (b"stages: {perception: 5}", r"stages\.perception: expected a mapping of settings, got 5"),
        (b"stages: {percption: {}}", 'Did you mean "perception"'),
        (b"optim:\n\tlr: 1", "on line 2. Indent with spaces, not with tabs"),
        (b"seed: 1\noptim: {lr: 1, lr: 2}", 'the key "lr" a second time on line 2'),
        (b"seed: 1\nseed: 2", 'the key "seed" a second time on line 2'),
        (b"yes: 1", "a key that is no text: 'yes'"),
        (b"? [a]\n: 2", "a key that is no text"),
        (b"data: &x {mixture: *x}", "an alias that holds itself on line 1"),
        (ALIASES.encode(), "more than 100,000 values"),
        ("seed: é".encode("latin-1"), "can't decode byte 0xe9"),
        ("seed: 1".encode("utf-16"), "can't decode byte 0xff"),
        (b"seed: " + b"9" * 5000, "expected YAML"),
        (b"seed: !!bool x", "expected YAML"),
        (b"seed: !!timestamp x", "expected YAML"),
        (b"[" * 5000, "recursion"),
        (b"optim: {lr: .nan}", r"optim\.lr: input should be a finite number, got nan"),
        (b"optim: {lr: .inf}", r"optim\.lr: input should be a finite number, got inf"),
    ],
)
def test_what_yaml_reads_oddly_is_refused_with_its_place(tmp_path, content, said):
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        load_config(path, "perception")


def test_aliases_merges_and_a_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "fine.yaml"
    path.write_bytes(b"\xef\xbb\xbfoptim: &o {lr: 1e-3}\nseed: 3\nstages: {perception: {optim: {<<: *o, steps: 7}}}\n")
    config = load_config(path, "perception")
    assert (config.seed, config.optim.lr, config.optim.steps) == (3, 1e-3, 7)


@pytest.mark.parametrize("text", ["seed=&x [*x]", "optim.lr=1e999", "seed=\udcff", "seed={a: 1, a: 2}"])
def test_odd_overrides_are_refused(text):
    with pytest.raises(ConfigError):
        load_config(None, "perception", [text])
