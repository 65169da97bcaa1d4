"""Sweeps: variants of one recipe on the same clips, trained together where they share a frozen base, and compared.

sweep_file       variants, seeds, budget and metric of a sweep     check            whether every variant can run; costs
scheduling       stages and rungs, in their order                  grouping         which trials train together
budget           which seeds fit into the budget                   dispatch         groups to the workers of an executor
worker           trains and scores one group                       final_scores     scores of finished trials
probe_tier       probes before any language model                  halving          the rule of stopping early
trials           states and scores, in one SQLite table            running          all of this in order
compared_metric  the figure that variants are compared by          results          figures and differences, read back
report           tables, curves, intervals, verdicts               expected_power   the difference that a sweep can find
"""
