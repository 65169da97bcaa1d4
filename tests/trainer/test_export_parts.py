"""The parts of an export: vendored code, merging, bounds, the command."""

from __future__ import annotations

import ast
import importlib.util
import json
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from exporting import train_run
from toy import save_llama
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig
from transformers.dynamic_module_utils import get_relative_import_files

from featurecache.encoders import registered
from featurecache.importers.npy import unverified_spec
from featurecache.spec import Spec
from featurecache.store.quantize import dequantise, quantise
from fusion_train.errors import ExportError
from fusion_train.export import folder as export_folder
from fusion_train.export.certificate import judge
from fusion_train.export.export_run import ExportSources, export_run
from fusion_train.export.weights import merge_lora
from fusion_train.models.lora import add_lora
from fusion_train.remote import vendor
from fusion_train.remote.encoding import as_stored
from fusion_train.remote.exportability import export_notices

VARIANTS = sorted(point.name for point in entry_points(group=vendor.ENTRY_POINTS))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_copied_code_imports_no_package_of_ours(variant):
    files = vendor.vendored_code(variant, sorted(registered()))
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
    copied = vendor.vendored_code("conv-attention", ["whisper"])["fusion_train_models_emotion_llama.py"].splitlines()
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


def own_encoder(monkeypatch, tmp_path: Path, root: str, files: dict[str, str], licence: str | None = "Free.") -> None:
    """Install a package `root` with these modules, which registers its class `net:Mine` as the encoder `mine`."""
    for name, text in files.items():
        path = tmp_path / root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    information = tmp_path / f"{root}-2.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {root.replace('_', '-')}\nVersion: 2.0\n")
    (information / "entry_points.txt").write_text(f"[featurecache.encoders]\nmine = {root}.net:Mine\n")
    recorded = ["METADATA", "entry_points.txt"]
    if licence is not None:
        (information / "licenses").mkdir()
        (information / "licenses" / "LICENSE").write_text(licence)
        recorded.append("licenses/LICENSE")
    (information / "RECORD").write_text("".join(f"{information.name}/{name},,\n" for name in recorded))
    monkeypatch.syspath_prepend(tmp_path)


def test_an_encoder_of_several_modules_is_copied_whole_with_its_licence(monkeypatch, tmp_path):
    files = {
        "__init__.py": "",
        "net.py": (
            "from . import blocks, sizes as small\nfrom .blocks.deep import Deep\nfrom mine_whole.sizes import (\n"
            "    SIDE,\n)\nfrom featurecache.encoders.pooling import average_over_time\n\n\nclass Mine:\n    pass\n"
        ),
        "blocks/__init__.py": "from torch import nn\n",
        "blocks/deep.py": "from ..sizes import SIDE\n\n\nclass Deep:\n    side = SIDE\n",
        "sizes.py": "SIDE = 7\n",
        "unused.py": "import scipy\n",
    }
    own_encoder(monkeypatch, tmp_path, "mine_whole", files)
    copied = vendor.vendored_code("conv", ["mine", "whisper"])
    assert copied["mine-whole.LICENSE"] == "Free."
    assert {name for name in copied if name.startswith("mine_")} == {
        "mine_whole_net.py",
        "mine_whole_blocks.py",
        "mine_whole_blocks_deep.py",
        "mine_whole_sizes.py",
    }
    assert "featurecache_encoders_pooling.py" in copied
    folder = tmp_path / "copied_here"
    folder.mkdir()
    for name, text in copied.items():
        (folder / name).write_text(text)
    (folder / "__init__.py").write_text("")
    from copied_here import mine_whole_net as net

    assert (net.SIDE, net.small.SIDE, net.Deep.side) == (7, 7, 7)
    assert net.blocks.__name__ == "copied_here.mine_whole_blocks"
    # What transformers copies with it.
    assert {Path(file).name for file in get_relative_import_files(str(folder / "mine_whole_net.py"))} >= {
        "mine_whole_blocks.py",
        "mine_whole_blocks_deep.py",
        "mine_whole_sizes.py",
    }


def test_the_code_of_a_package_without_licence_file_is_not_copied_but_may_be_named(monkeypatch, tmp_path):
    own_encoder(monkeypatch, tmp_path, "mine_unlicensed", {"net.py": "class Mine:\n    pass\n"}, licence=None)
    with pytest.raises(ExportError, match=r"mine-unlicensed==2\.0 without one.*--require mine"):
        vendor.vendored_code("conv", ["mine"])
    copied = vendor.vendored_code("conv", ["mine"], required=["mine"])
    assert not any(name.startswith("mine") for name in copied)
    chosen = copied["fusion_train_remote_chosen_encoders.py"]
    assert "pip install mine-unlicensed==2.0" in chosen
    assert "from mine_unlicensed.net import Mine as encoder_0" in chosen


def test_an_encoder_that_needs_other_packages_is_refused_with_every_line(monkeypatch, tmp_path):
    text = "import scipy.signal\nimport mine_needy.other\n\n\nclass Mine:\n    pass\n"
    own_encoder(monkeypatch, tmp_path, "mine_needy", {"net.py": text, "other.py": ""})
    with pytest.raises(ExportError, match="or name the encoder's package with --require") as caught:
        vendor.vendored_code("conv", ["mine"])
    assert caught.value.problems == [
        "mine_needy.net, line 1: imports scipy.signal",
        "mine_needy.net, line 2: write `from mine_needy.other import …`",
    ]


def test_an_encoder_that_imports_a_module_of_the_project_with_other_packages_is_refused(monkeypatch, tmp_path):
    text = "from featurecache.store.zarr_store import ZarrStore\n\n\nclass Mine:\n    pass\n"
    own_encoder(monkeypatch, tmp_path, "mine_storing", {"net.py": text})
    with pytest.raises(ExportError, match=r"line \d+: imports (zarr|numcodecs|google).*"):
        vendor.vendored_code("conv", ["mine"])


def test_training_says_at_its_start_what_cannot_be_exported(monkeypatch, tmp_path):
    own_encoder(monkeypatch, tmp_path, "mine_trained", {"net.py": "class Mine:\n    pass\n"})
    perturbed = replace(SPEC, preprocessing={"perturbation": {"name": "noise"}})
    unknown = replace(SPEC, encoder="whispr")
    imported = unverified_spec("whisper", (4, 12), "float16")
    specs = {"audio": perturbed, "image": unknown, "video": replace(SPEC, encoder="mine")}
    notices = export_notices(specs, ["conv"])
    assert all(line.startswith("note: this run can be trained, but not exported as it is: ") for line in notices)
    for notice, words in zip(notices, ("perturbed", 'Did you mean "whisper"?', "a class with open"), strict=True):
        assert words in notice
    assert ".npy" in export_notices({"audio": imported}, ["conv"])[0]
    assert export_notices({"audio": SPEC}, ["conv-attention"]) == []


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
