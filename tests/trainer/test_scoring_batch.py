"""The memory of answering held-out clips, how many are answered at once, and under which autocast."""

from __future__ import annotations

import pytest
import torch
from toy import make_config

from fusion_train.models.model_group import OneModel, evaluating
from fusion_train.models.token_streams import FeatureShapes
from fusion_train.planning.costs import scoring_memory
from fusion_train.planning.scoring_batch import CPU_CLIPS, MOST_CLIPS, clips_at_once, clips_within, memory_by_clips
from fusion_train.planning.sizes import llm_shape, model_skeleton
from fusion_train.presets import load_config
from fusion_train.run_context import build_context
from fusion_train.training.validation import Validation

GIB = 2**30


@pytest.fixture(scope="module")
def published():
    return model_skeleton(load_config(), FeatureShapes())


def test_the_cache_of_answers_is_that_of_llama(published):
    """2 · 4096 · 32 values of 2 bytes per token: 0.5 MiB."""
    memory = scoring_memory(
        llm_shape(published.llm), trained=10, learning=8, row_tokens=0, cached_tokens=1000, scored=3,
        feature_values=0, base="float16", ema=True,
    )  # fmt: skip
    assert memory.cache == 1000 * 2**19
    assert memory.base == 6_738_415_616 * 2
    assert memory.logits == 3 * 32_000 * 10
    assert (memory.trained, memory.optimizer) == (40, 96)
    assert memory.total == sum(memory.by_kind().values())


@pytest.mark.parametrize("memory_gib", [16, 24, 80, 141])
def test_as_many_clips_are_answered_at_once_as_fit(published, memory_gib):
    config, limit = load_config(), memory_gib * GIB
    clips = clips_within(config, published, limit)
    assert 1 <= clips <= MOST_CLIPS
    assert clips == 1 or memory_by_clips(config, published)(clips).total <= limit
    assert clips == MOST_CLIPS or memory_by_clips(config, published)(clips + 1).total > limit


def test_a_cpu_answers_eight_at_once(published):
    assert clips_at_once(load_config(), published, torch.device("cpu")) == CPU_CLIPS == 8


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_held_out_loss_is_computed_as_in_training(llama, material, precision):
    config = make_config(llama, f"optim.precision={precision}", "log.eval_every=6")
    context = build_context(config, str(material / "features.zarr"), str(material / "clips.jsonl"))
    validation, models = Validation(context), OneModel(context.model)
    dtypes = []
    hook = context.model.llm.get_output_embeddings().register_forward_hook(
        lambda module, args, output: dtypes.append(output.dtype)
    )
    with evaluating(models):
        (losses,) = validation._losses(models, [context.model])
        hook.remove()
        total = 0.0
        for batch in validation.batches():
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                total += float(context.model(**batch.tensors()).loss_sum)
    assert set(dtypes) == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert losses.total == total
