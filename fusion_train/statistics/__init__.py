"""Statistics of scores: intervals over clusters of clips, comparison of variants, correction for selection."""
