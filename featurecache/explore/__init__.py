"""Knowing the data: which clips are alike, doubled, leaked or doubtfully labelled, from tokens that are there anyway.

    tokens (K, D) ─ summaries ─▶ (2D,) mean and spread ─ space ─▶ (R,) coordinates ─ index ─▶ neighbours, audit, map
                                                                                └▶ pairs alike ─ agreement ─▶ duplicates

An index lies beside its store, is made from it alone, and may be deleted at any time. Nothing here writes to a store.
"""
