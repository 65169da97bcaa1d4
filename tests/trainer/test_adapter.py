"""The adapter-only form: trained parts alone, base and encoders by reference, refused where they are others."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from checkpoints import save_whisper
from click.testing import CliRunner
from exporting import Trained
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toy import save_llama
from transformers import AutoModelForCausalLM, LlamaConfig

from featurecache.encoders.network import ALIGNMENT_BYTES
from featurecache.errors import FingerprintError, WeightsError
from fusion_train.cli import main
from fusion_train.errors import ExportError
from fusion_train.export.export_run import ExportSources, export_run, verify_export
from fusion_train.export.weights import align_file
from fusion_train.remote.adapter import TRAINED_WEIGHTS
from fusion_train.remote.modeling_emotion_llama import EmotionLlamaForCausalLM
from fusion_train.run_context import load_context


@dataclass(frozen=True)
class Adapter:
    folder: Path
    figures: list
    base: str
    weights: dict[str, str]

    def open(self, **changes: object) -> EmotionLlamaForCausalLM:
        return EmotionLlamaForCausalLM.from_pretrained(
            self.folder, **{"base": self.base, "encoder_weights": self.weights, **changes}
        )


@pytest.fixture(scope="module")
def adapter(trained: Trained, llama: Path) -> Adapter:
    out = trained.folder / "adapter"
    figures = export_run(trained.run, out, trained.weights, ExportSources(adapter=True), say=lambda _: None)
    return Adapter(out, figures, str(llama), trained.weights)


def test_beside_its_base_it_computes_what_was_trained_to_the_last_bit(adapter):
    names = [figure.name for figure in adapter.figures]
    assert not any("merged against unmerged" in name for name in names)
    reload = next(figure for figure in adapter.figures if "fresh process" in figure.name)
    assert reload.measured == reload.bound == 0
    certificate = json.loads((adapter.folder / "certificate.json").read_text())
    assert certificate["form"] == "adapter"
    assert all(row["total_kl"] == 0 and row["text_equal"] for row in certificate["clips"])


def test_it_holds_the_trained_parts_and_no_others(adapter, trained):
    held = 0
    for path in adapter.folder.glob("*.safetensors"):
        held += sum(tensor.numel() for tensor in load_file(path).values())
    assert held == sum(
        parameter.numel() for parameter in load_context(trained.run).model.parameters() if parameter.requires_grad
    )
    reference = json.loads((adapter.folder / "config.json").read_text())["base_reference"]
    assert list(reference["files"]) == ["model.safetensors"]
    assert "/" not in reference["name"]
    for path in adapter.folder.iterdir():
        if path.suffix in (".json", ".md", ".py"):
            assert str(trained.folder.parent) not in path.read_text(), path.name


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_peft_opens_its_language_part(adapter, trained):
    opened = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(adapter.base), adapter.folder)
    trained_llm = load_context(trained.run).model.llm.eval()
    ids = torch.tensor([[1, 5, 9, 12]])
    with torch.inference_mode():
        assert torch.equal(opened.eval()(ids).logits, trained_llm(ids).logits)


def test_another_base_is_refused(adapter, tmp_path, llama):
    other = shutil.copytree(llama, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] += 1e-3
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FingerprintError, match="others of the same size"):
        adapter.open(base=str(other))


def test_a_base_of_another_size_is_one_clear_line(adapter, tmp_path):
    larger = save_llama(
        tmp_path / "larger",
        LlamaConfig(
            vocab_size=400,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
        ),
    )
    with pytest.raises(
        WeightsError, match=r"expected hidden_size 32, num_hidden_layers 2.*got hidden_size 48"
    ) as error:
        adapter.open(base=str(larger))
    assert "\n" not in str(error.value)


def test_encoders_that_did_not_make_the_features_are_refused(adapter, tmp_path):
    other = save_whisper(tmp_path / "other", seed=1)
    with pytest.raises(FingerprintError, match=r"weights\.model\.safetensors"):
        adapter.open(encoder_weights={**adapter.weights, "whisper": str(other)})
    with pytest.raises(WeightsError, match="--weights"):
        adapter.open(encoder_weights={})
    with pytest.raises(WeightsError, match='Did you mean "whisper"'):
        adapter.open(encoder_weights={"wisper": "x"})


def test_missing_trained_weights_are_named(adapter, tmp_path):
    copy = shutil.copytree(adapter.folder, tmp_path / "copy")
    tensors = load_file(copy / TRAINED_WEIGHTS)
    name = sorted(tensors)[0]
    del tensors[name]
    save_file(tensors, copy / TRAINED_WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=f"missing: {name}"):
        EmotionLlamaForCausalLM.from_pretrained(copy, base=adapter.base, encoder_weights=adapter.weights)


def test_predict_takes_it_with_base_and_weights(adapter, exported, trained):
    places = ["--base", adapter.base]
    for name, path in adapter.weights.items():
        places += ["--weights", f"{name}={path}"]
    answers = []
    for folder, more in ((adapter.folder, places), (exported, [])):
        command = ["predict", "--model", str(folder), trained.video("v0"), "--json", *more]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
        answers.append(json.loads(result.stdout.splitlines()[0])["probabilities"])
    assert answers[0] == pytest.approx(answers[1], abs=1e-5)
    unnamed = CliRunner().invoke(main, ["predict", "--model", str(adapter.folder), trained.video("v0")])
    assert unnamed.exit_code == 2
    assert "--base" in unnamed.stderr
    assert "Traceback" not in unnamed.output


def test_another_dtype_is_for_merged_exports(trained, tmp_path):
    with pytest.raises(ExportError, match="--merge"):
        export_run(
            trained.run,
            tmp_path / "out",
            trained.weights,
            ExportSources(adapter=True, dtype="bfloat16"),
            lambda _: None,
        )


@pytest.mark.slow
def test_verify_finds_base_and_encoders_where_they_were(adapter, tmp_path):
    figures = verify_export(adapter.folder, say=lambda _: None)
    assert all(figure.passed for figure in figures)


@pytest.mark.slow
def test_clips_of_a_list_of_ones_own_are_checked_and_verified(trained):
    lines = (trained.folder / "clips.jsonl").read_text().splitlines()
    chosen = [line for line in lines if json.loads(line)["id"] in ("t1", "v3")]
    (trained.folder / "chosen.jsonl").write_text("\n".join(chosen) + "\n")
    out = trained.folder / "checked"
    sources = ExportSources(check_list=str(trained.folder / "chosen.jsonl"), dtype="bfloat16")
    export_run(trained.run, out, trained.weights, sources, say=lambda _: None)
    certificate = json.loads((out / "certificate.json").read_text())
    assert [row["id"] for row in certificate["clips"] if not row["withheld"]] == ["t1", "v3"]
    assert certificate["dtype"] == "bfloat16"
    assert all(figure.passed for figure in verify_export(out, say=lambda _: None))


def test_weights_lie_where_they_can_be_used_without_a_copy(exported, tmp_path):
    copy = tmp_path / "model.safetensors"
    shutil.copy(exported / "model.safetensors", copy)
    length = int.from_bytes(copy.read_bytes()[:8], "little")
    header = json.loads(copy.read_bytes()[8 : 8 + length])
    header.pop("__metadata__")
    assert (8 + length) % ALIGNMENT_BYTES == 0
    whole = [
        entry
        for entry in header.values()
        if (entry["data_offsets"][1] - entry["data_offsets"][0]) % ALIGNMENT_BYTES == 0
    ]
    assert whole
    assert all(entry["data_offsets"][0] % ALIGNMENT_BYTES == 0 for entry in whole)


def test_laying_out_changes_no_tensor_and_no_name(tmp_path):
    path = tmp_path / "odd.safetensors"
    tensors = {"b": torch.randn(3), "a": torch.randn(64, 2).half(), "c": torch.arange(16.0), "empty": torch.zeros(0)}
    save_file(tensors, path, metadata={"format": "pt"})
    align_file(path)
    found = load_file(path)
    assert set(found) == set(tensors)
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["odd.safetensors"]
