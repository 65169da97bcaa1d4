"""Sweeps: variants of one recipe on the same clips, trained together where they share a frozen base, and compared.

sweep_file   what is asked                         check     whether all of it can be, and what it costs
scheduling   what is trained until when            grouping   which trials train together
budget       what it may cost                      dispatch  groups given to the workers of an engine
worker       one group trained and scored          together  a company's training loop, scoring its questions
probe_tier   probes before anything else           final     finished trials asked
halving      the rule of stopping early            judge     the rule applied
trials       what was done, in one SQLite table    running   all of this in order
measure      the figure that is compared           results   figures, differences, read back
report       tables, curves, intervals, verdicts
"""
