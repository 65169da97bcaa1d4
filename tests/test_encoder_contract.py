"""Every registered encoder keeps the contract that a package of a user's own inherits (`featurecache.testing`).

A new encoder needs two things here: a line in `CHECKPOINTS`, which saves a small checkpoint of it, and a class that
inherits `EncoderContract`. Without them its tests fail.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from checkpoints import save_eva, save_whisper
from hf_networks import AUDIO, CROPPED, PICTURE, SPEECH, save, save_text

from featurecache.encoders import (
    ENTRY_POINTS,
    Encoder,
    RegisteredEncoder,
    encoder_class,
    exportable_class,
    open_encoder,
    registered,
)
from featurecache.encoders.perturbation import unperturbed
from featurecache.errors import EncoderError
from featurecache.spec import Spec
from featurecache.testing import EncoderContract
from featurecache.views import AudioView, TextView, View

OURS = sorted(name for name, value in registered().items() if value.startswith("featurecache."))
VIDEO = {**PICTURE, "num_frames": 4, "tubelet_size": 2, "use_mean_pooling": False}
CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "whisper": save_whisper,
    "eva-global": save_eva,
    "eva-temporal": save_eva,
    "hf-audio": lambda folder: save(folder, "Hubert", SPEECH, {"sampling_rate": 16_000, "do_normalize": True}),
    "hf-text": save_text,
    "hf-image": lambda folder: save(folder, "CLIPVision", PICTURE, CROPPED),
    "hf-video": lambda folder: save(folder, "VideoMAE", VIDEO, CROPPED),
}
"""Encoder name -> function that saves a small checkpoint of it in a folder and returns the folder."""
OPTIONS = {"hf-audio": {"seconds": 3}}  # shorter inputs than by default, for speed


def opener(name: str, weights: Path) -> Callable[..., Encoder]:
    """Return a function of options that opens a registered encoder."""
    return lambda **options: open_encoder(name, weights=str(weights), options=options)


class TestWhisper(EncoderContract):
    encoder_name = "whisper"
    changed_options: ClassVar = {
        "tokens": 8, "pooling": "valid", "layer": 1, "norm": "none", "mel": "device", "channels": "standard",
    }  # fmt: skip

    @pytest.fixture
    def open_encoder(self, whisper_folder):
        return opener("whisper", whisper_folder)


class TestEvaGlobal(EncoderContract):
    encoder_name = "eva-global"
    changed_options: ClassVar = {"frame": "middle", "layer": 1}

    @pytest.fixture
    def open_encoder(self, eva_folder):
        return opener("eva-global", eva_folder)


class TestEvaTemporal(EncoderContract):
    encoder_name = "eva-temporal"
    changed_options: ClassVar = {"frames": 4, "rule": "window", "grid": 1, "layer": 1, "norm": "none"}

    @pytest.fixture
    def open_encoder(self, eva_folder):
        return opener("eva-temporal", eva_folder)


class TestHfAudio(EncoderContract):
    encoder_name = "hf-audio"
    changed_options: ClassVar = {"tokens": 8, "pooling": "padded", "layer": 1, "norm": "none", "channels": "standard"}

    @pytest.fixture(params=["hubert", "hubert-stable"])
    def open_encoder(self, request, tmp_path):
        family, settings = AUDIO[request.param]
        preprocessor = {"do_normalize": True, "return_attention_mask": request.param == "hubert-stable"}
        folder = save(tmp_path / "network", family, settings, preprocessor)
        return lambda **options: opener("hf-audio", folder)(**{"seconds": 2, **options})


class TestHfText(EncoderContract):
    encoder_name = "hf-text"
    changed_options: ClassVar = {"tokens": 8, "special": "dropped", "length": 20, "layer": 1}

    @pytest.fixture(params=["Bert", "Roberta"])
    def open_encoder(self, request, tmp_path):
        return opener("hf-text", save_text(tmp_path / "network", request.param))


class TestHfTextVector(EncoderContract):
    """One vector per clip."""

    changed_options: ClassVar = {"pool": "cls", "length": 20}

    @pytest.fixture
    def open_encoder(self, tmp_path):
        folder = save_text(tmp_path / "network", "Electra", embedding_size=16)
        return lambda **options: opener("hf-text", folder)(**{"pool": "mean", **options})


class TestHfImage(EncoderContract):
    encoder_name = "hf-image"
    changed_options: ClassVar = {"frames": 2, "rule": "middle", "pool": "cls", "grid": 2, "layer": 1}

    @pytest.fixture
    def open_encoder(self, tmp_path):
        return opener("hf-image", save(tmp_path / "network", "ViT", PICTURE, CROPPED))


class TestHfVideo(EncoderContract):
    encoder_name = "hf-video"
    changed_options: ClassVar = {"rule": "window", "grid": 1, "layer": 1}

    @pytest.fixture
    def open_encoder(self, tmp_path):
        settings = {**PICTURE, "num_frames": 4, "tubelet_size": 2, "use_mean_pooling": False}
        return opener("hf-video", save(tmp_path / "network", "VideoMAE", settings, CROPPED))


def test_every_registered_encoder_has_a_contract_test_and_a_checkpoint() -> None:
    tested = {suite.encoder_name for suite in EncoderContract.__subclasses__() if hasattr(suite, "encoder_name")}
    assert set(OURS) == tested == set(CHECKPOINTS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp("checkpoint") / name) for name, make in CHECKPOINTS.items()}


@pytest.fixture(params=OURS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def opened(name: str, folder: Path, **settings: object) -> Encoder:
    options = {**OPTIONS.get(name, {}), **settings.pop("options", {})}  # type: ignore[dict-item]
    return open_encoder(name, weights=str(folder), options=options, **settings)  # type: ignore[arg-type]


def sample(view: View, seed: int = 0) -> np.ndarray:
    """A view of a clip: 2 s of noise, frames of noise in large blocks, or words."""
    if isinstance(view, TextView):
        return np.frombuffer(f"No! I see, she never told me {seed}.".encode(), np.uint8)
    random = np.random.default_rng(seed)
    if isinstance(view, AudioView):
        return (0.1 * random.standard_normal(2 * view.sampling_rate)).astype(np.float32)
    blocks = random.integers(0, 256, (view.count, 9, 12, 3), np.uint8)
    return blocks.repeat(10, axis=1).repeat(10, axis=2)


def pooled(encoder: Encoder, batch: np.ndarray, view: np.ndarray) -> torch.Tensor:
    valid = [encoder.num_valid(view)] * len(batch) if encoder.needs_valid else None
    tokens = encoder.forward(batch)
    return encoder.pool(tokens) if valid is None else encoder.pool(tokens, valid)


def test_an_encoder_has_every_member_of_the_protocol_and_keeps_its_shapes(name: str, folders: dict[str, Path]) -> None:
    encoder = opened(name, folders[name])
    assert encoder.name == name == encoder_class(name).name
    assert isinstance(encoder_class(name).default_weights, str)
    assert isinstance(encoder.view, View)
    assert isinstance(encoder.needs_valid, bool)
    assert all(isinstance(notice, str) for notice in encoder.notices)
    assert encoder.batch_size >= 1
    view = sample(encoder.view)
    inputs = encoder.preprocess(view)
    longer = encoder.preprocess(np.concatenate([view, view])[: None if view.ndim == 1 else encoder.view.count])
    assert (inputs.shape, inputs.dtype) == (longer.shape, longer.dtype)
    batch = np.stack([inputs] * 2)
    tokens = encoder.forward(batch)
    assert (tokens.ndim, len(tokens), tokens.shape[-1]) == (3, 2, encoder.shape[1])
    if encoder.needs_valid:
        assert 1 <= encoder.num_valid(view[:1]) <= encoder.num_valid(view) <= tokens.shape[1]
    rows = pooled(encoder, batch, view)
    assert rows.shape == (2, *encoder.shape)
    assert rows.dtype == torch.float32
    assert torch.isfinite(rows).all()


def test_planning_reads_shape_and_notices_without_weights(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    for document in folders[name].glob("*.json"):
        shutil.copy(document, tmp_path)
    encoder, options = opened(name, folders[name]), OPTIONS.get(name, {})
    assert encoder_class(name).plan_shape(str(tmp_path), options) == encoder.shape
    assert list(encoder_class(name).plan_notices(str(tmp_path), options)) == list(encoder.notices)


def test_a_spec_survives_json_and_moving_the_checkpoint(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    encoder = opened(name, folders[name])
    spec = encoder.spec("float16")
    assert Spec.from_json(spec.to_json()) == spec
    assert (spec.encoder, spec.shape, spec.stored_dtype) == (name, encoder.shape, "float16")
    assert str(folders[name].parent) not in spec.to_json()
    moved = tmp_path / "elsewhere"
    shutil.copytree(folders[name], moved)
    assert opened(name, moved).spec("float16").fingerprint == spec.fingerprint


def test_other_weights_another_dtype_and_another_batch_size_change_the_fingerprint(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(folders[name], tmp_path / "other")
    (weights,) = (tmp_path / "other").glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    encoder = opened(name, folders[name])
    fingerprints = {
        encoder.spec("float16").fingerprint,
        encoder.spec("float32").fingerprint,
        opened(name, tmp_path / "other").spec("float16").fingerprint,
        opened(name, folders[name], compute_dtype="bfloat16").spec("float16").fingerprint,
        opened(name, folders[name], options={"batch": 7}).spec("float16").fingerprint,
    }
    assert len(fingerprints) == 5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near_float32(name: str, dtype: str, folders: dict[str, Path]) -> None:
    whole, half = (opened(name, folders[name], compute_dtype=compute) for compute in ("float32", dtype))
    view = sample(whole.view)
    batch = whole.preprocess(view)[None]
    expected, got = (pooled(encoder, batch, view) for encoder in (whole, half))
    assert got.dtype == torch.float32
    assert not torch.equal(got, expected)
    assert (got - expected).norm() / expected.norm() < (0.02 if dtype == "bfloat16" else 0.004)


def test_a_perturbed_encoder_passes_on_every_member(name: str, folders: dict[str, Path]) -> None:
    encoder = opened(name, folders[name])
    if isinstance(encoder.view, TextView):
        with pytest.raises(EncoderError, match=r"hf-text\.perturb: expected none, since it reads words"):
            opened(name, folders[name], options={"perturb": "noise:5"})
        return
    text = "noise:5" if isinstance(encoder.view, AudioView) else "low-light:0.5"
    perturbed = opened(name, folders[name], options={"perturb": text})
    for member in ("name", "view", "shape", "batch_size", "needs_valid", "notices"):
        assert getattr(perturbed, member) == getattr(encoder, member), member
    assert unperturbed(perturbed.spec("float16")) == encoder.spec("float16")
    view = sample(encoder.view)
    batch = perturbed.preprocess(view)[None]
    assert not np.array_equal(batch[0], encoder.preprocess(view))
    assert torch.equal(pooled(perturbed, batch, view), pooled(encoder, batch, view))


class Minimal(RegisteredEncoder):
    """The least that an encoder of another package has to define."""

    name = "minimal"
    default_weights = ""
    view = AudioView()
    shape = (1, 1)
    batch_size = 1

    @classmethod
    def open(cls, weights: str | None, device: str, compute_dtype: str, options: object) -> Minimal:
        return cls()

    def spec(self, stored_dtype: str) -> Spec:
        raise NotImplementedError

    def preprocess(self, view: np.ndarray) -> np.ndarray:
        return view[:1]

    def forward(self, batch: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(batch)[:, None]

    def pool(self, tokens: torch.Tensor, valid: object = None) -> torch.Tensor:
        return tokens.float()


def register(monkeypatch: pytest.MonkeyPatch, kind: object) -> None:
    class Point:
        name, value, dist = "minimal", "package.module:Minimal", None

        @staticmethod
        def load() -> object:
            if isinstance(kind, Exception):
                raise kind
            return kind

    monkeypatch.setattr("featurecache.encoders.entry_points", lambda group: [Point] if group == ENTRY_POINTS else [])


@pytest.mark.parametrize("derived", [True, False], ids=["derived", "by its members alone"])
def test_an_encoder_of_another_package_may_leave_out_what_has_a_default(
    monkeypatch: pytest.MonkeyPatch, derived: bool
) -> None:
    members = {name: value for name, value in vars(Minimal).items() if not name.startswith("_")}
    register(monkeypatch, Minimal if derived else type("Foreign", (), members))
    encoder = open_encoder("minimal")
    assert (encoder.needs_valid, encoder.notices) == (False, ())
    assert encoder_class("minimal").plan_shape(None, {}) == (1, 1)
    assert encoder_class("minimal").plan_notices(None, {}) == ()


def test_a_class_without_a_method_that_it_needs_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    members = {name: value for name, value in vars(Minimal).items() if name != "pool" and not name.startswith("_")}
    for bases in ((), (RegisteredEncoder,)):
        register(monkeypatch, type("Foreign", bases, members))
        with pytest.raises(EncoderError, match=r"one without pool.*RegisteredEncoder"):
            open_encoder("minimal")


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_an_encoder_is_opened_on_a_resolved_device(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    devices = []

    class OnDevice(Minimal):
        @classmethod
        def open(cls, weights: str | None, device: str, compute_dtype: str, options: object) -> Minimal:
            devices.append(device)
            return cls()

    register(monkeypatch, OnDevice)
    open_encoder("minimal", device=device)
    assert devices == ["cuda" if device == "auto" and torch.cuda.is_available() else "cpu"]
    with pytest.raises(EncoderError, match='device "cpux"'):
        open_encoder("minimal", device="cpux")
    assert len(devices) == 1


def test_every_encoder_of_this_package_can_be_exported() -> None:
    assert [exportable_class(name).name for name in OURS] == OURS


def test_an_encoder_without_the_members_that_an_export_needs_is_refused_by_their_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register(monkeypatch, Minimal)
    with pytest.raises(EncoderError, match=r"got one without from_spec, empty_network, options_of, settings\. Derive"):
        exportable_class("minimal")


def test_two_classes_of_one_name_are_refused_with_the_packages_that_register_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points = [EntryPoint("twin", f"package_{n}:Encoder", ENTRY_POINTS) for n in range(2)]
    monkeypatch.setattr("featurecache.encoders.entry_points", lambda group: points)
    with pytest.raises(EncoderError, match="package_0:Encoder of no package and package_1:Encoder of no package"):
        open_encoder("twin")


def test_an_encoder_whose_package_cannot_be_imported_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register(monkeypatch, ImportError("No module named 'librosa'"))
    with pytest.raises(EncoderError, match=r"minimal.*No module named 'librosa'\. Install its package again"):
        open_encoder("minimal")
