"""Open the encoders whose features a run was trained on, and refuse any other.

An encoder is found by the spec of its feature: name, options, and origin of the weights. The opened encoder must have
the same fingerprint, so weights of another revision, another output layer or other preprocessing are refused.

`make_zero_image` runs an image encoder once on an all-zero image, which the released code does at every step for a clip
without an image. "All zero" is after normalisation: a picture of the mean colour.
Shapes: K tokens, D encoder width.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import featurecache
from featurecache.encoders.eva import EvaGlobalEncoder
from featurecache.encoders.network import required
from featurecache.spec import Spec
from featurecache.views import View
from fusion_train.data.absent import write_zero_image
from fusion_train.errors import ConfigError, ExportError
from fusion_train.remote.encoding import as_stored, open_trained, place_of, unknown_weights
from fusion_train.remote.exportability import refuse_foreign_media
from fusion_train.remote.vendor import encoder_package


@dataclass(frozen=True)
class AttachedEncoders:
    """The encoders of a run, in the form in which an exported model holds them."""

    entries: dict[str, dict[str, Any]]
    """Modality -> {"spec": …, "network": key, …}, as in EmotionLlamaConfig."""
    settings: dict[str, dict[str, Any]]
    """Network key -> settings from which the network is built."""
    networks: dict[str, nn.Module]
    """Network key -> network with its weights; encoders with the same weights share one."""
    views: dict[str, View]
    """Modality -> the view of a clip that its encoder reads."""


def attach_encoders(
    specs: Mapping[str, Spec], weights: Mapping[str, str], device: str = "cpu", uncopied: Collection[str] = ()
) -> AttachedEncoders:
    """Open the encoder of every modality's spec.

    Args:
        weights: encoder name or modality -> checkpoint folder or hub id, if it differs from the provenance in the spec.
        uncopied: encoders whose package the export names in place of its code.

    Raises:
        EncoderError: an encoder that is not installed or cannot be exported.
        ExportError: weights of unknown origin.
        FingerprintError: another encoder than the one that made the features; every differing field is listed.
        WeightsError: the weights are missing or of another architecture.
    """
    if problem := unknown_weights(weights, specs):
        name, expected, advice = problem
        raise ExportError(f"--weights {name}=…", expected=expected, got="another", next_step=advice)
    attached = AttachedEncoders({}, {}, {}, {})
    shared: dict[tuple[Any, ...], str] = {}
    for modality, spec in specs.items():
        place = place_of(weights, modality, spec)
        if place is None and spec.weights:
            place = known_weights(spec)
        encoder = open_trained(spec, place, modality, device)
        network = required(encoder.network).module
        settings = json.dumps(encoder.settings, sort_keys=True)
        same = (type(network), tuple(sorted(spec.weights.items())), spec.compute_dtype, settings)
        key = shared.setdefault(same, _network_key(spec.encoder, attached.networks))
        attached.networks.setdefault(key, network)
        attached.views[modality] = encoder.view
        attached.settings.setdefault(key, encoder.settings)
        attached.entries[modality] = {"spec": as_document(spec), "network": key}
        package = encoder_package(spec.encoder)
        if not package.is_ours:
            attached.entries[modality] |= {
                "package": package.requirement,
                "required": spec.encoder in uncopied,
            }
    return attached


def _network_key(encoder: str, networks: Mapping[str, nn.Module]) -> str:
    """Return a new key for the network of an encoder, which is part of the names of its weights."""
    family = "eva" if encoder.startswith("eva-") else re.sub(r"\W", "_", encoder)
    key, number = family, 1
    while key in networks:
        number += 1
        key = f"{family}_{number}"
    return key


def as_document(spec: Spec) -> dict[str, Any]:
    """Return the content of `Spec.to_json` as a mapping."""
    return {**spec.identity(), "provenance": dict(spec.provenance), "fingerprint": spec.fingerprint}


def known_weights(spec: Spec) -> str:
    """Return the hub id of the weights of a spec's encoder, from its provenance.

    Raises:
        ExportError: the weights were in a folder.
    """
    hub = spec.provenance.get("hub")
    if hub is None:
        folder = spec.provenance.get("folder")
        raise ExportError(
            f"weights of {spec.encoder}",
            expected="the checkpoint that made the features",
            got=f'only that its folder was called "{folder}"' if folder else "no record of where it was",
            next_step=f"Say where it is with --weights {spec.encoder}=FOLDER.",
        )
    return str(hub)


def make_zero_image(
    store: str, name: str, out: Path, *, weights: str | None, device: str, say: Callable[[str], None] = print
) -> None:
    """Write the tokens (K, D) of an all-zero image, encoded by the encoder of the feature `name`.

    Args:
        weights: checkpoint of the encoder, if it differs from the provenance of the feature.

    Raises:
        StoreNotFoundError: no such store or feature.
        ConfigError: a feature of another encoder than eva-global.
        EncoderError: an imported or perturbed feature.
        FingerprintError, WeightsError: another encoder than the one that made the feature.
    """
    spec = featurecache.open_store(store)[name].spec
    if spec.encoder != EvaGlobalEncoder.name:
        raise ConfigError(f"{store}/{name}", expected=f"a feature of {EvaGlobalEncoder.name}", got=spec.encoder)
    refuse_foreign_media(spec, name)
    encoder = open_trained(spec, weights or known_weights(spec), name, device)
    assert isinstance(encoder, EvaGlobalEncoder)
    side = encoder.pixels
    mean_colour = np.asarray(encoder.mean, np.float32) * 255
    batch = np.broadcast_to(mean_colour, (encoder.batch_size, 1, side, side, 3))
    tokens = as_stored(encoder.pool(encoder.forward(batch)), spec.stored_dtype)[0].float().cpu()
    write_zero_image(out, tokens, spec.fingerprint)
    say(f"{out}: {tuple(tokens.shape)}, mean {tokens.mean():.4f}; use it with --set features.zero_image={out}")
