"""Two encoders of a few lines without a network, for what extraction does around them; they import no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featurecache.encoders import Encoder
from featurecache.spec import Spec
from featurecache.views import AudioView, FramesView


class _Array:
    """As much of a tensor as extraction asks for."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def cpu(self) -> _Array:
        return self

    def numpy(self) -> np.ndarray:
        return self._array


class StubEncoder(Encoder):
    """Gives (4, 3) tokens that depend only on the input."""

    shape = (4, 3)
    batch_size = 2

    def __init__(self, name: str, view: AudioView | FramesView) -> None:
        self.name, self.view = name, view

    def spec(self, stored_dtype: str) -> Spec:
        parts = {"weights": {}, "architecture": {}, "tap": {}, "preprocessing": {}, "pooling": {}}
        return Spec(
            encoder=self.name,
            implementation=1,
            compute_dtype="float32",
            stored_dtype=stored_dtype,
            shape=self.shape,
            **parts,
        )

    def preprocess(self, view: np.ndarray) -> np.ndarray:
        flat = view.reshape(-1).astype(np.float32)
        return flat[np.linspace(0, len(flat) - 1, 12).astype(int)] / 255

    def without_network(self) -> StubEncoder:
        return self

    def forward(self, batch: np.ndarray) -> np.ndarray:
        return batch.reshape(-1, 4, 3)

    def pool(self, tokens: np.ndarray, valid: Sequence[int] | None = None) -> _Array:
        return _Array(tokens)


def stub_encoders() -> dict[str, StubEncoder]:
    """One of sound and one of frames."""
    return {
        "loudness": StubEncoder("loudness", AudioView()),
        "colours": StubEncoder("colours", FramesView(4, "uniform", still=False)),
    }
