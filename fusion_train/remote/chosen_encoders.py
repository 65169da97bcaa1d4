"""The encoders of a model. The exporter replaces this module by one that imports only those of the run."""

from __future__ import annotations

from featurecache.encoders import ExportableEncoder, exportable_class


def chosen_encoder(name: str) -> type[ExportableEncoder]:
    """Return the class of a registered encoder.

    Raises:
        EncoderError: no such encoder is installed, or it cannot be exported.
    """
    return exportable_class(name)
