"""CMU-MOSI: Monologues on YouTube with a sentiment from -3 to 3."""

from __future__ import annotations

from featurecache.importers.mmsa import importer

IMPORTER = importer(
    name="cmu-mosi",
    title="CMU-MOSI",
    dataset="cmu_mosi",
    largest=3.0,
    sizes=(1284, 229, 686),
    licence="MultiComp Lab, Carnegie Mellon University; the videos are of their makers on YouTube:"
    " github.com/CMU-MultiComp-Lab/CMU-MultimodalSDK.",
)
