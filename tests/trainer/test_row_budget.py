"""How the samples of a step are divided into rows: what a row weighs, what fits a GPU, and what a run records."""

from __future__ import annotations

import pytest
import torch
from test_train import equal, run_training
from toy import make_config

from featurecache.interrupt import Interrupted
from fusion_train.data.loader import PrefetchingLoader, TokenBudget
from fusion_train.data.packing import Encoded, RowSize, pack, row_size
from fusion_train.models.token_streams import FeatureShapes
from fusion_train.planning.memory_budget import MOST_TOKENS, choose_budget, memory_by_row, row_cost, within
from fusion_train.planning.sizes import model_skeleton
from fusion_train.presets import load_config
from fusion_train.run import Run
from fusion_train.run_context import build_context
from fusion_train.training import trainer
from fusion_train.training.sample_stream import make_stream

GIB = 2**30


@pytest.fixture(scope="module")
def published():
    return model_skeleton(load_config(), FeatureShapes())


@pytest.mark.parametrize("share", [True, False])
def test_the_size_of_a_row_is_that_of_the_packed_row(share):
    samples = [
        Encoded([1, -1, -1, 5, 6], [7, 2], "a"),
        Encoded([1, -1, 5], [2], "b"),
        Encoded([1, -1, -1, 5, 8, 9], [7, 7, 2], "a"),
    ]
    packed = pack(samples, share=share)
    expected = RowSize(packed.layout.length, len(packed.targets), len(packed.first_of_group))
    assert row_size(samples, share=share) == expected
    assert expected.clips == (2 if share else 3)


def test_a_budget_weighs_logits_and_features_too():
    budget = TokenBudget(100, False, "auto", supervised_weight=0.5, clip_weight=3)
    assert budget.weight(RowSize(tokens=40, supervised=10, clips=2)) == 40 + 5 + 6


@pytest.mark.parametrize("memory_gib", [20, 40])
@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_the_heaviest_row_of_a_gpu_fits_its_memory_and_a_heavier_one_does_not(published, memory_gib, checkpointing):
    settings = ["model.llm_dtype=bfloat16", "optim.precision=bf16", f"optim.activation_checkpointing={checkpointing}"]
    config = load_config(overrides=settings)
    limit = memory_gib * GIB
    budget = within(config, published, limit)
    assert budget.micro_batch_size == "auto"
    assert 0 < budget.tokens < MOST_TOKENS
    memory_for = memory_by_row(config, published, checkpointing=budget.checkpointing)
    for supervised, clips in ((0, 0), (500, 3)):
        weight = budget.weight(RowSize(0, supervised, clips))
        assert memory_for(int(budget.tokens - weight), supervised, clips).total <= limit
        assert memory_for(int(budget.tokens - weight) + 2, supervised, clips).total > limit


def test_models_of_a_group_divide_the_memory_for_rows_and_each_has_its_own_moments(published):
    config = load_config(overrides=["model.llm_dtype=bfloat16", "optim.precision=bf16"])
    alone, four = (row_cost(config, published, checkpointing=False, num_models=count) for count in (1, 4))
    assert four.token == 4 * alone.token
    assert four.fixed - alone.fixed == 3 * 4 * 4 * 71_536_387  # weights, gradients and two moments in float32
    assert 4 * within(config, published, 80 * GIB, num_models=4).tokens < within(config, published, 80 * GIB).tokens


def test_a_cpu_takes_one_sample_a_row_unless_told_otherwise(published):
    assert choose_budget(load_config(), published, torch.device("cpu")).micro_batch_size == 1
    for value in ("auto", 4):
        config = load_config(overrides=[f"optim.micro_batch_size={value}", "optim.batch_size=8"])
        assert choose_budget(config, published, torch.device("cpu")).micro_batch_size == value


def batches_of_a_step(llama, material, budget, *settings):
    config = make_config(
        llama, "data.questions_per_clip=4", "optim.batch_size=24", "data.tasks=[emotion, reason, think]", *settings
    )
    context = build_context(config, str(material / "features.zarr"), str(material / "clips.jsonl"))
    stream = make_stream(context, lambda line: None)
    loader = PrefetchingLoader(config, stream, context.collator, num_processes=1, process=0, budget=budget)
    return loader.micro_batches(0)


def test_rows_with_shared_prefixes_are_filled_to_their_budget(llama, material):
    """By the shared length: rows of unshared weights would hold a fraction of it."""
    (whole,) = batches_of_a_step(llama, material, TokenBudget(10_000, False, "auto"))
    per_clip = whole.num_tokens / 6
    budget = TokenBudget(int(2.4 * per_clip), False, "auto")
    shared = batches_of_a_step(llama, material, budget)
    assert len(shared) == 3
    assert all(0.7 * budget.tokens < batch.num_tokens <= budget.tokens for batch in shared)
    assert sum(batch.num_tokens for batch in shared) == whole.num_tokens
    assert len(batches_of_a_step(llama, material, budget, "data.share_prefix=false")) == 6


def test_a_run_goes_on_with_the_rows_that_it_records(llama, material, tmp_path, monkeypatch):
    settings = ["optim.micro_batch_size=null", "optim.steps=4", "checkpoint.every=2"]
    config = make_config(llama, *settings)
    chosen = TokenBudget(200, False, "auto", supervised_weight=0.25, clip_weight=1.5)
    monkeypatch.setattr(trainer, "choose_budget", lambda *args, **options: chosen)
    whole = run_training(config, material, tmp_path / "whole")
    calls = iter([False, True])
    with pytest.raises(Interrupted):
        run_training(config, material, tmp_path / "parts", stop=lambda: next(calls))
    run = Run(tmp_path / "parts")
    assert run.config().optim.micro_batch_size is None
    assert TokenBudget(**run.record().rows) == chosen

    def another_device(*args, **options):
        raise AssertionError("chosen anew")

    monkeypatch.setattr(trainer, "choose_budget", another_device)
    assert equal(whole, run_training(config, material, run.folder))
