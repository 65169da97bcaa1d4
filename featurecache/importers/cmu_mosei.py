"""CMU-MOSEI: Sentences of speakers on YouTube with a sentiment from -3 to 3."""

from __future__ import annotations

from featurecache.importers.mmsa import importer

IMPORTER = importer(
    name="cmu-mosei",
    title="CMU-MOSEI",
    dataset="cmu_mosei",
    largest=3.0,
    sizes=(16326, 1871, 4659),
    licence="MultiComp Lab, Carnegie Mellon University; the videos are of their makers on YouTube:"
    " github.com/CMU-MultiComp-Lab/CMU-MultimodalSDK.",
)
