"""Engines: run an extraction in this process (`local`) or on a Ray cluster (`ray`). Both call the same `extract`.

All processes that work on one store share its plan and coordinate by leases on shards; no process is special.
"""
