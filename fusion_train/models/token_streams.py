"""Names, orders and sizes of the modalities that the model reads and of its soft tokens. Imports no torch.

Source: arXiv 2601.16449 section 4: 64 audio, 64 video, 256 image and 64 fusion tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

SOFT_TOKEN = -1
IGNORED_LABEL = -100
DEFAULT_FUSION_TOKENS = 64
PATCHES_PER_TOKEN = 4
"""Raster patches of the image that become one soft token."""
MODALITIES = ("audio", "image", "video", "text")
"""In the order in which the fusion takes them. The text has no stream: a language model has its words in the prompt."""
STREAMS = ("fusion", "image", "video", "audio")
"""In the order of their soft tokens in the prompt."""


@dataclass(frozen=True)
class FeatureShapes:
    """Shapes (K, D) of the cached features that the model reads; None for a modality that is not in use."""

    audio: tuple[int, int] | None = (64, 1280)
    image: tuple[int, int] | None = (1025, 1408)
    """The CLS token, then the patches in raster order."""
    video: tuple[int, int] | None = (64, 1408)
    text: tuple[int, int] | None = None

    @property
    def used(self) -> tuple[str, ...]:
        return tuple(name for name in MODALITIES if getattr(self, name) is not None)

    def fusion_dims(self) -> tuple[int, ...]:
        return tuple(getattr(self, name)[1] for name in self.used)

    @property
    def widths(self) -> dict[str, int]:
        """Modality -> width of its tokens, for the modalities in use."""
        return dict(zip(self.used, self.fusion_dims(), strict=True))

    def soft_counts(self, *, fusion_tokens: int) -> dict[str, int]:
        """Return stream -> soft tokens of a clip that has every modality."""
        counts = {"fusion": fusion_tokens}
        for name in self.used:
            tokens = getattr(self, name)[0]
            counts[name] = (tokens - 1) // PATCHES_PER_TOKEN if name == "image" else tokens
        return {stream: counts[stream] for stream in STREAMS if counts.get(stream)}

    def projector_widths(self, *, fusion_width: int) -> dict[str, int]:
        """Return stream -> width of the tokens that its projector reads."""
        widths = {"fusion": fusion_width}
        for name in self.used:
            tokens, width = getattr(self, name)
            if name == "image":
                width = width * PATCHES_PER_TOKEN if tokens > PATCHES_PER_TOKEN else 0  # only CLS: the fusion reads it
            widths[name] = width
        return {stream: widths[stream] for stream in STREAMS if widths.get(stream)}
