"""Statistics of scores: intervals over clusters of clips, comparisons over clips and seeds, selection."""
