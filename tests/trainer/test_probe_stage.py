"""The stage `probe` trains no language model: one that is named for it is refused or said, never trained in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from toy import make_config

from fusion_train.cli import main
from fusion_train.errors import ConfigError
from fusion_train.presets import load_config, replaced_settings
from fusion_train.run import Run
from fusion_train.sweeps.sweep_file import load_sweep
from fusion_train.training.trainer import train

SHORT = ("optim.steps=1", "data.tasks=[emotion]", "log.peak_tflops=1", "optim.batch_size=4", "optim.micro_batch_size=4")


def command(material: Path, folder: Path, *arguments: str) -> list[str]:
    places = ["--store", str(material / "features.zarr"), "--clips", str(material / "clips.jsonl")]
    settings = [part for setting in SHORT for part in ("--set", setting)]
    return ["--stage", "probe", *places, "--out", str(folder / "run"), *settings, *arguments]


def test_a_language_model_set_for_a_probe_is_refused_before_anything_is_written(llama, material, tmp_path):
    result = CliRunner().invoke(main, command(material, tmp_path, "--set", f"model.llm={llama}"))
    assert result.exit_code == 2
    assert "model.llm: expected null, since the stage probe trains only fusion and a linear head" in result.output
    assert "--stage perception" in result.output
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine.yaml").write_text(f"stages: {{probe: {{model: {{llm: {llama}}}}}}}\n")
    with pytest.raises(ConfigError, match="stage probe"):
        load_config(tmp_path / "mine.yaml", "probe")
    assert load_config(tmp_path / "mine.yaml", "perception").model.llm != str(llama)


@pytest.mark.parametrize("text", ["model: {{llm: {llama}}}", "extends: lower.yaml"], ids=["own", "extended"])
def test_a_configuration_with_a_language_model_serves_a_probe_and_that_is_said(llama, material, tmp_path, text):
    (tmp_path / "lower.yaml").write_text(f"model: {{llm: {llama}}}\n")
    mine = tmp_path / "mine.yaml"
    mine.write_text(text.format(llama=llama) + "\n")
    result = CliRunner().invoke(main, command(material, tmp_path, "--config", str(mine)))
    assert result.exit_code == 0, result.output
    assert f"stage probe trains no language model: model.llm of {mine} ({llama}) is not used" in result.output
    assert "no language model, on " in result.output
    assert Run(tmp_path / "run").config().model.llm is None


def test_nothing_is_said_where_nobody_named_a_language_model(tmp_path):
    (tmp_path / "mine.yaml").write_text("seed: 3\n")
    assert replaced_settings(None, "probe") == []
    assert replaced_settings(tmp_path / "mine.yaml", "probe") == []
    assert replaced_settings("demo", "probe") == [
        "stage probe trains no language model: model.llm of demo (demo/models/llama) is not used"
    ]
    assert replaced_settings("demo", "probe", ["model.llm=null"]) == []


def test_settings_that_a_stage_replaces_are_named_and_those_set_for_it_are_not(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("data: {tasks: [emotion], eval_split: test}\noptim: {lr: 1e-3}\nprompt: {said: 'Says {text}'}\n")
    assert load_config(mine, "cognition").data.tasks != ("emotion",)
    assert replaced_settings(mine, "cognition") == [
        f"stage cognition has values of its own for data.tasks, prompt.said, in place of those in {mine}; name yours "
        "under stages: {cognition: …} there, or with --set"
    ]
    assert replaced_settings(mine, "cognition", ["data.tasks=[emotion]", "prompt.said=x"]) == []
    assert replaced_settings(mine, "perception") == [
        f"stage perception has values of its own for data.tasks, in place of those in {mine}; name yours "
        "under stages: {perception: …} there, or with --set"
    ]
    mine.write_text(mine.read_text() + "stages: {perception: {data: {tasks: [intent]}}}\n")
    assert replaced_settings(mine, "perception") == []


def test_a_run_of_the_stage_that_was_begun_with_a_language_model_goes_on_and_names_it(llama, material, tmp_path):
    config = make_config(llama, *SHORT, "optim.steps=2", "data.eval_split=null")
    config = config.model_copy(update={"stage": "probe"})
    places = {"store": str(material / "features.zarr"), "clips": str(material / "clips.jsonl")}
    run = Run(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(config, **places, run=run, say=lambda line: None, stop=_interrupt)
    result = CliRunner().invoke(main, ["resume", str(run.folder)])
    assert result.exit_code == 0, result.output
    assert f"language model {llama.name}, on " in result.output


def _interrupt() -> bool:
    raise KeyboardInterrupt


def test_a_sweep_of_probes_refuses_a_language_model_and_a_chain_trains_its_probe_without(sweep, llama, tmp_path):
    probes = sweep("stage: probe\nseeds: [0]\nvariants: {a: {}, b: {optim: {lr: 1e-2}}}\n")
    result = CliRunner().invoke(main, [*probes, "--check"])
    assert result.exit_code == 0, result.output
    assert "a: a probe, without a language model" in result.output
    for more in (["--set", f"model.llm={llama}"], []):
        if not more:
            text = (tmp_path / "mine.yaml").read_text()
            (tmp_path / "mine.yaml").write_text(text + f"settings: {{model: {{llm: {llama}}}}}\n")
        refused = CliRunner().invoke(main, [*probes, "--check", *more])
        assert refused.exit_code == 2
        assert "stage probe trains" in refused.output
    chain = {"stages": ["probe", "perception"], "optim": {"steps": 3}}
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump({"variants": {"both": chain}, "settings": {"seed": 1}}))
    for overrides, settings in (([f"model.llm={llama}"], {}), ([], {"model": {"llm": str(llama)}})):
        (tmp_path / "chain.yaml").write_text(yaml.safe_dump({"variants": {"both": chain}, "settings": settings}))
        trial = load_sweep(str(tmp_path / "chain.yaml"), None, overrides).trials[0]
        assert [stage.model.llm for stage in trial.stages] == [None, str(llama)]
