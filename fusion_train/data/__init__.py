"""From the clip list and the store to the batches of a step.

    mixture, pool ─ streams ─▶ samples ─ prompts, retrieval ─▶ token ids ─ packing ─▶ rows ─ batches, staging ─▶ Batch

micro_batches   which samples go together, on which process       absent, zero_image   released checkpoints' view
feeding         the steps, prepared ahead on a thread             pooled               the same for the probe stage
"""
