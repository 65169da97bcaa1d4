"""Any causal language model of transformers: trained, scored and resumed with its own chat format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_packing import FAMILIES, TINY
from test_train import run_training, weights
from toy import make_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusion_train.cli import main

TEMPLATES = {
    "llama tied": "[INST] <Vid>{soft}</Vid>{said} [{task}] {instruction} [/INST]",
    "qwen2": "<|im_start|>user\n<Vid>{soft}</Vid>{said} [{task}] {instruction}<|im_end|>\n<|im_start|>assistant\n",
    "mistral, window shorter than a sample": "[INST]<Vid>{soft}</Vid>{said} [{task}] {instruction}[/INST]",
    "gemma3, two kinds of layers": "<start_of_turn>user\n{soft}{said} {instruction}<end_of_turn>\n",
}


def save(folder: Path, family: str, llama: Path) -> Path:
    """A random model of a family with the toy tokenizer beside it."""
    folder.mkdir()
    for file in llama.glob("tokenizer*"):
        shutil.copy(file, folder)
    vocabulary = len(AutoTokenizer.from_pretrained(folder))
    kind = type(FAMILIES[family])
    own = {
        key: getattr(FAMILIES[family], key)
        for key in ("tie_word_embeddings", "sliding_window", "layer_types")
        if getattr(FAMILIES[family], key, None) is not None
    }
    config = kind(**TINY | {"vocab_size": vocabulary} | own)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_family_trains_and_answers_in_its_own_format(llama, material, tmp_path, family):
    folder = save(tmp_path / "llm", family, llama)
    config = make_config(folder, "optim.steps=3", "data.tasks=[emotion, reason]", "data.questions_per_clip=2")
    config = config.model_copy(update={"prompt": config.prompt.model_copy(update={"template": TEMPLATES[family]})})
    run = run_training(config, material, tmp_path / "run")
    assert {name.split(".")[-4] for name in weights(run) if ".lora_" in name} == {"q_proj", "v_proj"}
    result = CliRunner().invoke(main, ["eval", "--run", str(run.folder), "--split", "val"])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (run.folder / "predictions-val-emotion.jsonl").read_text().splitlines()]
    assert len(rows) == 12
