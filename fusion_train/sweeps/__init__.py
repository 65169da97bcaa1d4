"""Sweeps: variants of one recipe on the same clips, trained together where they share a frozen base, and compared.

sweep_file   what is asked, checked whole          trials    what was done, kept in one SQLite table
measure      the figure that is compared           results   figures, differences, read back
companies    who trains with whom                  together  a company's training loop and scoring
running      the order of it all, stopping early   report    tables, curves, intervals, verdicts
"""
