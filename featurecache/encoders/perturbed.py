"""An encoder that is shown a disturbed clip: all else is the encoder's own, and its spec names the disturbance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from featurecache.perturbations import Perturbation
from featurecache.spec import Spec

SPEC_KEY = "perturbation"
"""Where the spec names it, in `preprocessing`."""


class PerturbedEncoder:
    """Wraps an encoder; what is not defined here is the encoder's."""

    def __init__(self, encoder: Any, perturbation: Perturbation) -> None:
        self._encoder, self._perturbation = encoder, perturbation

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # while this is copied or unpickled there is no encoder yet to ask
            raise AttributeError(name)
        return getattr(self._encoder, name)

    @property
    def batch_size(self) -> int:
        return self._encoder.batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        self._encoder.batch_size = size

    def spec(self, stored_dtype: str) -> Spec:
        """The encoder's spec, with the perturbation in its preprocessing."""
        own = self._encoder.spec(stored_dtype)
        return replace(own, preprocessing={**own.preprocessing, SPEC_KEY: self._perturbation.as_json()})

    def preprocess(self, view: np.ndarray) -> np.ndarray:
        """Disturb, then preprocess as the encoder does."""
        return self._encoder.preprocess(self._perturbation.apply(view))


def undisturbed(spec: Spec) -> Spec:
    """The spec without its perturbation; the same one where it has none."""
    return replace(spec, preprocessing={k: v for k, v in spec.preprocessing.items() if k != SPEC_KEY})
