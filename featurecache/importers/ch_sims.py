"""CH-SIMS: Chinese clips with a sentiment from -1 to 1, of the whole and of each modality."""

from __future__ import annotations

from featurecache.importers.mmsa import importer

IMPORTER = importer(
    name="ch-sims",
    title="CH-SIMS",
    dataset="ch_sims",
    largest=1.0,
    sizes=(1368, 456, 457),
    licence="THUIAR, Tsinghua University, for research only: thuiar.github.io/sims.github.io/chsims.",
)
