"""Exploration of a data set by its stored tokens: similar clips, duplicates, leaks, doubtful labels, maps.

    tokens (K, D) ─ summary ─▶ (2D,) mean and deviation ─ projection ─▶ (R,) coordinates ─ index ─▶ neighbours, audit,
    map
                                                                       similar pairs ─ time agreement ─▶ duplicates,
                                                                       leaks

An index lies beside its store, is derived from the store only, and may be deleted at any time. Nothing here writes to a
store.
"""
