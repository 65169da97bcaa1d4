"""The parts of an export: vendored code, merging, bounds, the command."""

from __future__ import annotations

import ast
import importlib.util
import json
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from exporting import train_run
from toy import save_llama
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

from featurecache.encoders import ExportableEncoder, encoder_class, registered
from featurecache.spec import Spec
from featurecache.store.quantize import dequantise, quantise
from fusion_train.errors import ExportError
from fusion_train.export import folder as export_folder
from fusion_train.export import vendor
from fusion_train.export.certificate import judge
from fusion_train.export.export_run import ExportSources, export_run
from fusion_train.export.weights import merge_lora
from fusion_train.models.lora import add_lora
from fusion_train.remote.encoding import EXPORTABLE, as_stored

VARIANTS = sorted(point.name for point in entry_points(group=vendor.ENTRY_POINTS))


def test_every_registered_encoder_that_can_be_exported_is_in_the_list_of_an_exported_model():
    classes = {name: encoder_class(name) for name in registered()}
    assert {name: kind for name, kind in classes.items() if ExportableEncoder in kind.__mro__} == EXPORTABLE


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_copied_code_imports_no_package_of_ours(variant):
    files = vendor.vendored_code(variant)
    for name, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                module = node.module or ""
                if node.level:
                    assert f"{module}.py" in files, f"{name} imports .{module}"
                else:
                    assert module.partition(".")[0] not in vendor.PROJECT, name
            elif isinstance(node, ast.Import):
                assert not any(alias.name.partition(".")[0] in vendor.PROJECT for alias in node.names), name


def test_the_copied_code_is_that_of_the_modules_but_for_imports():
    source = Path(vendor.__file__).parents[1] / "models" / "emotion_llama.py"
    copied = vendor.vendored_code("conv-attention")["fusion_train_models_emotion_llama.py"].splitlines()
    own = source.read_text().splitlines()
    differing = [line for line, other in zip(own, copied, strict=True) if line != other]
    assert differing
    assert all(line.startswith("from fusion_train.") for line in differing)


def own_variant(monkeypatch, tmp_path: Path, text: str) -> None:
    """Install a variant of a user's own package."""
    (tmp_path / "my_fusion.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("mine", "my_fusion:Mine", vendor.ENTRY_POINTS)
    monkeypatch.setattr(vendor, "entry_points", lambda group: [point])


def test_a_variant_of_the_users_own_is_copied_too(monkeypatch, tmp_path):
    own_variant(monkeypatch, tmp_path, "from torch import nn\n\n\nclass Mine(nn.Module):\n    pass\n")
    files = vendor.vendored_code("mine")
    assert "class Mine" in files["my_fusion.py"]
    assert "from .my_fusion import Mine" in files["fusion_train_remote_chosen_fusion.py"]


@pytest.mark.parametrize("line", ["import scipy.signal", "from my_package.layers import Block"])
def test_a_variant_that_needs_other_packages_is_refused_with_the_line(monkeypatch, tmp_path, line):
    own_variant(monkeypatch, tmp_path, f"from torch import nn\n{line}\n")
    with pytest.raises(ExportError, match="line 2: imports"):
        vendor.vendored_code("mine")


def test_an_unknown_variant_is_refused():
    with pytest.raises(ExportError, match="an installed variant"):
        vendor.vendored_code("no-such")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_merging_rounds_once(llama, dtype):
    base = AutoModelForCausalLM.from_pretrained(llama, dtype=dtype)
    adapted = add_lora(base, r=4, alpha=8, dropout=0.0, targets=["q_proj", "v_proj"])
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    torch.manual_seed(1)
    layer.lora_B["default"].weight.data.normal_()
    whole = layer.base_layer.weight.float() + 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    merged = merge_lora(adapted)
    assert torch.equal(merged.model.layers[0].self_attn.q_proj.weight, whole.to(dtype))
    assert not any("lora" in name for name, _ in merged.named_parameters())


def test_weights_that_overflow_the_dtype_are_refused(llama):
    base = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    adapted = add_lora(base, r=4, alpha=8, dropout=0.0, targets=["q_proj"])
    adapted.base_model.model.model.layers[1].self_attn.q_proj.base_layer.weight.data[0, 0] = 1e6
    with pytest.raises(ExportError, match=r"layers\.1\.self_attn\.q_proj.*bfloat16"):
        merge_lora(adapted, torch.float16)


def measured(**changes) -> dict:
    """A row of `parity.compare` that passes."""
    feature = {"equal": True, "rms": 0.0, "max": 0.0}
    row = {
        "prompt_equal": True,
        "present_equal": True,
        "stand_ins": {},
        "features": {"audio": feature},
        "merge_kl": 0.0,
        "reload_logits": 0.0,
        "raw_kl": 0.0,
        "raw_logits": 0.0,
        "probabilities": 0.0,
        "text_margin": 0.0,
    }
    return row | changes


SPEC = Spec(
    encoder="whisper",
    implementation=1,
    weights={},
    architecture={},
    tap={},
    preprocessing={},
    pooling={},
    compute_dtype="float32",
    stored_dtype="float16",
    shape=(4, 12),
)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prompt_equal": False}, "prompt"),
        ({"present_equal": False}, "modalities"),
        ({"stand_ins": {"image": False}}, "constants for absent"),
        ({"features": {"audio": {"equal": False, "rms": 2e-3, "max": 0.1}}}, "audio features"),
        ({"merge_kl": 1e-6}, "merged"),
        ({"reload_logits": 1e-6}, "fresh process"),
        ({"raw_logits": 1e-6}, "equal features"),
        ({"raw_kl": 0.01}, "KL"),
        ({"probabilities": 0.2}, "probabilities"),
        ({"text_margin": 0.01}, "greedy text"),
        ({"raw_kl": float("nan")}, "KL"),
    ],
)
def test_each_bound_catches_its_own_breach(change, named):
    figures = judge([measured(), measured(**change)], {"audio": SPEC}, llm_dtype="float32", device="cpu")
    failed = [figure.name for figure in figures if not figure.passed]
    assert len(failed) == 1
    assert named in failed[0]
    assert all(f.passed for f in judge([measured()], {"audio": SPEC}, llm_dtype="float32", device="cpu"))


@pytest.mark.parametrize("stored_dtype", ["int8", "float8"])
def test_an_exported_model_quantises_as_the_store_does(stored_dtype):
    random = np.random.default_rng(0)
    tokens = random.normal(size=(70, 24)).astype(np.float32) * np.exp(random.normal(size=24) * 4).astype(np.float32)
    tokens[:, 3], tokens[:, 4], tokens[:, 5] = 0, 1e-8, 3e4
    stored = dequantise(*quantise(tokens, stored_dtype))
    mine = as_stored(torch.from_numpy(tokens)[None], stored_dtype)[0]
    assert mine.dtype == torch.float16
    assert np.array_equal(mine.numpy(), stored)


@pytest.fixture(scope="module")
def command():
    path = Path(__file__).parents[2] / "tools" / "export_e2e.py"
    spec = importlib.util.spec_from_file_location("export_e2e", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --run RUN --out DIR, or --verify DIR"),
        (["--out", "x"], "give --run RUN --out DIR, or --verify DIR"),
        (["--run", "r", "--out", "x", "--verify", "y"], "give --run RUN --out DIR, or --verify DIR"),
        (["--run", "r", "--out", "x", "--weights", "models/whisper"], "expected NAME=PATH_OR_ID"),
        (["--run", "r", "--out", "x"], "r: expected a run, got no such folder"),
        (["--verify", "y"], "y: expected an exported folder"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_message(command, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert "Traceback" not in result.output


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty`:UserWarning")
@pytest.mark.parametrize(
    ("compute_dtype", "stored_dtype", "llm_dtype", "fusion", "tied"),
    [
        ("bfloat16", "bfloat16", "float32", "q-former", True),
        ("float32", "float32", "bfloat16", "none", False),
        ("float32", "float16", "float16", "attention", True),
        ("float32", "int8", "float32", "conv", False),
    ],
)
def test_dtypes_variants_and_tied_embeddings_export(
    tmp_path, monkeypatch, whisper_folder, eva_folder, compute_dtype, stored_dtype, llm_dtype, fusion, tied
):
    monkeypatch.setattr(export_folder, "MAX_SHARD_SIZE", "100KB")
    llama = save_llama(
        tmp_path / "llama",
        LlamaConfig(
            vocab_size=400,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=tied,
        ),
    )
    habits = GenerationConfig(do_sample=True, temperature=0.6, repetition_penalty=1.3, eos_token_id=2)
    habits.save_pretrained(llama)  # as many a base has them
    trained = train_run(
        tmp_path / "material",
        whisper_folder,
        eva_folder,
        llama,
        f"model.llm_dtype={llm_dtype}",
        f"model.fusion.name={fusion}",
        compute_dtype=compute_dtype,
        stored_dtype=stored_dtype,
    )
    out = tmp_path / "out"
    figures = export_run(trained.run, out, trained.weights, ExportSources(), say=lambda _: None)
    assert all(figure.passed for figure in figures)
    assert len(list(out.glob("model-*.safetensors"))) > 1
    clips = json.loads((out / "certificate.json").read_text())["clips"]
    assert all(row["text_equal"] for row in clips)
