"""Open the very encoders whose tokens a run was trained on, or refuse.

An encoder is found from its feature's spec: its name, its options, and where its weights came from. The one opened must
give the same fingerprint, so weights of another revision, another tap or another preprocessing cannot slip in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import featurecache
from featurecache.encoders import open_encoder
from featurecache.encoders.eva import EvaGlobalEncoder
from featurecache.errors import suggest
from featurecache.spec import Spec
from featurecache.views import View
from fusion_train.data.absent import write_zero_image
from fusion_train.errors import ConfigError, ExportError
from fusion_train.remote.encoding import EXPORTABLE, as_stored, refuse_other_encoder


@dataclass(frozen=True)
class AttachedEncoders:
    """The encoders of a run, as an exported model holds them."""

    entries: dict[str, dict[str, Any]]
    """Modality -> {"spec": …, "network": key}, as in EmotionLlamaConfig."""
    settings: dict[str, dict[str, Any]]
    """Network key -> settings."""
    networks: dict[str, nn.Module]
    """Network key -> network with its weights; encoders of the same weights share one."""
    views: dict[str, View]
    """Modality -> what its encoder reads of a clip."""


def attach_encoders(specs: Mapping[str, Spec], weights: Mapping[str, str], device: str = "cpu") -> AttachedEncoders:
    """Open the encoder of every modality's spec.

    Args:
        weights: encoder name -> checkpoint folder or hub id, where it is not what the spec's provenance says.

    Raises:
        ExportError: an encoder that cannot be exported, or nobody knows where its weights are.
        FingerprintError: the encoder found is not the one that made the features; every differing field is named.
        WeightsError: its weights are missing or of another architecture.
    """
    names = {spec.encoder for spec in specs.values()}
    for given in weights:
        if given not in names:
            raise ExportError(
                f"--weights {given}=…",
                expected="one of the run's encoders: " + ", ".join(sorted(names)),
                got="another",
                next_step=suggest(given, names).strip() or None,
            )
    attached = AttachedEncoders({}, {}, {}, {})
    shared: dict[tuple[Any, ...], str] = {}
    for modality, spec in specs.items():
        if spec.encoder not in EXPORTABLE:
            raise ExportError(
                f"{modality} feature",
                expected="an encoder of " + ", ".join(EXPORTABLE),
                got=f'"{spec.encoder}"',
                next_step="Features of other encoders train and evaluate, but cannot be exported yet.",
            )
        encoder = open_encoder(
            spec.encoder,
            weights=weights.get(spec.encoder) or known_weights(spec),
            device=device,
            compute_dtype=spec.compute_dtype,
            options=EXPORTABLE[spec.encoder].options_of(spec),
        )
        refuse_other_encoder(encoder.spec(spec.stored_dtype), spec, modality)
        same = (type(encoder.network.module), tuple(sorted(spec.weights.items())), spec.compute_dtype)
        key = shared.setdefault(same, f"{spec.encoder.partition('-')[0]}{_number(attached.networks, spec)}")
        attached.networks.setdefault(key, encoder.network.module)
        attached.views[modality] = encoder.view
        attached.settings.setdefault(key, encoder.settings)
        attached.entries[modality] = {"spec": as_document(spec), "network": key}
    return attached


def _number(networks: Mapping[str, nn.Module], spec: Spec) -> str:
    """`_2` for a second network of a family, such as eva-temporal from another checkpoint than eva-global."""
    family = spec.encoder.partition("-")[0]
    return "" if family not in networks else f"_{1 + sum(key.startswith(family) for key in networks)}"


def as_document(spec: Spec) -> dict[str, Any]:
    """What `Spec.to_json` writes, as a mapping."""
    return {**spec.identity(), "provenance": dict(spec.provenance), "fingerprint": spec.fingerprint}


def known_weights(spec: Spec) -> str:
    """Where the weights of a spec's encoder came from, by its provenance.

    Raises:
        ExportError: they were in a folder.
    """
    hub = spec.provenance.get("hub")
    if hub is None:
        once = spec.provenance.get("folder")
        raise ExportError(
            f"weights of {spec.encoder}",
            expected="the checkpoint that made the features",
            got=f'only that its folder was called "{once}"' if once else "no record of where it was",
            next_step=f"Say where it is with --weights {spec.encoder}=FOLDER.",
        )
    return str(hub)


def make_zero_image(
    store: str, name: str, out: Path, *, weights: str | None, device: str, say: Callable[[str], None] = print
) -> None:
    """Write the tokens that the encoder of feature `name` gives for an all-zero image.

    Args:
        weights: its checkpoint, where it is not what the feature's provenance says.

    Raises:
        StoreNotFoundError: no such store or feature.
        ConfigError: a feature of another encoder than eva-global.
        FingerprintError, WeightsError: the encoder found is not the one that made the feature.
    """
    spec = featurecache.open_store(store)[name].spec
    if spec.encoder != EvaGlobalEncoder.name:
        raise ConfigError(f"{store}/{name}", expected=f"a feature of {EvaGlobalEncoder.name}", got=spec.encoder)
    encoder = open_encoder(
        spec.encoder,
        weights=weights or known_weights(spec),
        device=device,
        compute_dtype=spec.compute_dtype,
        options=EvaGlobalEncoder.options_of(spec),
    )
    refuse_other_encoder(encoder.spec(spec.stored_dtype), spec, "image")
    side = encoder.pixels  # type: ignore[attr-defined]
    mean_colour = np.asarray(encoder.mean, np.float32) * 255  # type: ignore[attr-defined]
    batch = np.broadcast_to(mean_colour, (encoder.batch_size, 1, side, side, 3))
    tokens = as_stored(encoder.pool(encoder.forward(batch)), spec.stored_dtype)[0].float().cpu()
    write_zero_image(out, tokens, spec.fingerprint)
    say(f"{out}: {tuple(tokens.shape)}, mean {tokens.mean():.4f}; use it with --set features.zero_image={out}")
