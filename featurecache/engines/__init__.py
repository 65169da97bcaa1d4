"""Where an extraction runs: in this process (`local`) or on a Ray cluster (`ray`). Both run the same `extract`.

All processes that work on one store share its plan, and take leases on shards from each other; all are equal.
"""
