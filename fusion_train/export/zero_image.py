"""Run an image encoder once on an all-zero image, as the released code does at every step for a clip without one.

"All zero" is after normalisation: a picture of the mean colour. Shapes: K tokens, D encoder width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

import featurecache
from featurecache.encoders import open_encoder
from featurecache.encoders.eva import EvaGlobalEncoder
from fusion_train.data.absent import write_zero_image
from fusion_train.errors import ConfigError
from fusion_train.export.encoders import known_weights
from fusion_train.remote.encoding import as_stored, refuse_other_encoder


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
