"""Sweeps: variants of one recipe on the same clips, trained together where they share a frozen base, and compared.

sweep_file        variants, seeds, budget and metric of a sweep
check             whether every variant can run, and its cost
budget            which seeds fit into the budget
expected_power    the least difference that the sweep can find
running           a sweep from its start to its end, round by round; hands groups to the workers of an executor
early_stopping    the rounds, and the rules that stop variants early: probes, halving
grouping          which trials train together; engines: where their workers run
worker            trains and scores one group
job               messages between the driver and its workers
trials            states and scores, in one SQLite table
compared_metric   the figure that variants are compared by; scored_weights: which weights of a trial are scored
results           figures and differences, read from the folder; report: tables, curves, intervals, verdicts
"""
