"""CH-SIMS v2: Chinese clips with a sentiment from -1 to 1; those without a score (unsupervised) are left out."""

from __future__ import annotations

from featurecache.importers.mmsa import importer

IMPORTER = importer(
    name="ch-sims-v2",
    title="CH-SIMS v2 (supervised)",
    dataset="ch_sims_v2_s",
    largest=1.0,
    sizes=(2722, 647, 1034),
    licence="THUIAR, Tsinghua University, for research only: thuiar.github.io/sims.github.io/chsims.",
)
