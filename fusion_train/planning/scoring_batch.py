"""Choose how many held-out clips are answered at once: as many as fit a GPU by the memory model, 8 elsewhere.

Labels are scored in rows and pieces of a bounded size (`models.answering`), so that only generated answers, whose keys
and values stay in memory until the last of a batch is finished, decide the number. A prompt is assumed to have the soft
tokens of a clip with all modalities and `TEXT_TOKENS` of text.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from fusion_train.config import Config
from fusion_train.models.answering import ROW_TOKENS
from fusion_train.models.emotion_llama import EmotionLlama
from fusion_train.models.parts import learning_parameters, trained_parameters
from fusion_train.planning.costs import ScoringMemory, scoring_memory
from fusion_train.planning.memory_budget import SAFETY
from fusion_train.planning.sizes import llm_shape
from fusion_train.prompts.limits import MAX_NEW_TOKENS

CPU_CLIPS = 8
MOST_CLIPS = 64
"""More clips at once would only wait longer for the longest answer."""
TEXT_TOKENS = 200
SCORED_SHARE = 8
"""A row of T tokens is assumed to have T / 8 tokens of labels."""


def clips_at_once(config: Config, model: torch.nn.Module, device: torch.device) -> int:
    """Return how many clips are answered at once on a device."""
    if device.type != "cuda" or not isinstance(model, EmotionLlama):
        return CPU_CLIPS
    return clips_within(config, model, int(torch.cuda.get_device_properties(device).total_memory * SAFETY))


def clips_within(config: Config, model: EmotionLlama, limit: int) -> int:
    """Return how many clips, 1 to `MOST_CLIPS`, are answered at once in `limit` bytes."""
    memory_for = memory_by_clips(config, model)
    return max((clips for clips in range(1, MOST_CLIPS + 1) if memory_for(clips).total <= limit), default=1)


def memory_by_clips(config: Config, model: EmotionLlama) -> Callable[[int], ScoringMemory]:
    """Return a function from the clips that are answered at once to the memory meanwhile, while a run trains."""
    shapes = [shape for name in model.shapes.used if (shape := getattr(model.shapes, name))]
    prompt = sum(model.soft_counts.values()) + TEXT_TOKENS
    llm = llm_shape(model.llm)
    trained = sum(p.numel() for p in trained_parameters(model).values())
    learning = sum(p.numel() for p in learning_parameters(model).values())

    def memory_for(clips: int) -> ScoringMemory:
        return scoring_memory(
            llm,
            trained=trained,
            learning=learning,
            row_tokens=max(ROW_TOKENS, clips * prompt),  # generation reads all prompts in one pass
            cached_tokens=clips * (prompt + MAX_NEW_TOKENS),
            scored=ROW_TOKENS // SCORED_SHARE,
            feature_values=clips * sum(k * d for k, d in shapes),
            base=config.model.quantised or config.model.llm_dtype,
            ema=config.optim.ema_decay is not None,
        )

    return memory_for
