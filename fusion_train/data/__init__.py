"""From the clip list and the store to the batches of a step.

clips ─ pool ─▶ clip_draws ─▶ samples ─ prompts, retrieval ─▶ token ids ─ packing ─▶ rows ─ batches ─▶ loader

The stage without a language model reads `pooled_features` and makes its batches in `probe_batches`.
"""
