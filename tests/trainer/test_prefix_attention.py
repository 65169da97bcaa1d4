"""Attention to a shared prefix without copies: what it computes, and what it keeps for the backward pass."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from fusion_train.models import packed_attention
from fusion_train.models.lora import add_lora
from fusion_train.models.packed_attention import Layout, RowSegment, attention_arguments, use_packed_attention
from fusion_train.models.prefix_attention import FlashKernels, Sequences, attend_in_two_ranges
from fusion_train.planning import costs
from fusion_train.planning.sizes import llm_shape, lora_shape
from fusion_train.training.devices import use_deterministic_kernels

TWO_CLIPS = Layout(
    (
        RowSegment(0, 7),
        RowSegment(7, 10, (0, 7)),
        RowSegment(10, 14, (0, 7)),
        RowSegment(14, 19),
        RowSegment(19, 24),
        RowSegment(24, 26, (19, 24)),
        RowSegment(26, 29, (19, 24)),
    )
)
"""Two questions on a clip, a sample alone, two questions on another clip."""


class FormulaKernels:
    """What flash attention promises, from its formulas; queries without keys give 0 and a log-sum of plus infinity."""

    def forward(self, q, k, v, sequences, *, causal, scale):
        outputs, log_sums = torch.zeros_like(q), q.new_full((q.shape[1], q.shape[0]), math.inf, dtype=torch.float32)
        for queries, keys in self._pieces(sequences):
            if keys.stop > keys.start:
                scores, values = self._scores(q[queries], k[keys], v[keys], causal, scale)
                outputs[queries] = (scores.softmax(dim=-1) @ values).transpose(0, 1).to(q.dtype)
                log_sums[:, queries] = scores.logsumexp(dim=-1)
        return outputs, log_sums

    def backward(self, gradient, q, k, v, output, log_sums, sequences, *, causal, scale):
        gradients = [torch.zeros(tensor.shape) for tensor in (q, k, v)]
        groups = q.shape[1] // k.shape[1]
        for queries, keys in self._pieces(sequences):
            if keys.stop == keys.start or queries.stop == queries.start:
                continue
            scores, values = self._scores(q[queries], k[keys], v[keys], causal, scale)
            probabilities = (scores - log_sums[:, queries, None]).exp()  # [a, q, k]
            of_output = gradient[queries].float().transpose(0, 1)  # [a, q, d]
            delta = (of_output * output[queries].float().transpose(0, 1)).sum(-1, keepdim=True)
            of_scores = probabilities * (of_output @ values.transpose(1, 2) - delta) * scale
            keys_of_heads = k[keys].float().transpose(0, 1).repeat_interleave(groups, 0)
            gradients[0][queries] += (of_scores @ keys_of_heads).transpose(0, 1)
            of_keys = of_scores.transpose(1, 2) @ q[queries].float().transpose(0, 1)
            of_values = probabilities.transpose(1, 2) @ of_output
            for place, heads in ((1, of_keys), (2, of_values)):
                gradients[place][keys] += heads.unflatten(0, (-1, groups)).sum(1).transpose(0, 1)
        return tuple(gradient.to(tensor.dtype) for gradient, tensor in zip(gradients, (q, k, v), strict=True))

    def _pieces(self, sequences):
        ends_q, ends_k = sequences.ends_q.tolist(), sequences.ends_k.tolist()
        assert sequences.longest_q == max(b - a for a, b in itertools.pairwise(ends_q))
        assert sequences.longest_k == max(b - a for a, b in itertools.pairwise(ends_k))
        for n in range(len(ends_q) - 1):
            yield slice(ends_q[n], ends_q[n + 1]), slice(ends_k[n], ends_k[n + 1])

    def _scores(self, q, k, v, causal, scale):
        groups = q.shape[1] // k.shape[1]
        keys, values = (tensor.float().transpose(0, 1).repeat_interleave(groups, 0) for tensor in (k, v))
        scores = q.float().transpose(0, 1) @ keys.transpose(1, 2) * scale
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), -math.inf)
        return scores, values


def attend(attention, query, key, value, weight):
    """Output and gradients of an attention function of (query, key, value)."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in (query, key, value)]
    output = attention(*inputs)
    (output.float() * weight).sum().backward()
    return [output.detach(), *(tensor.grad for tensor in inputs)]


def random_inputs(heads, rows=2, dtype=torch.float32, device="cpu", width=8, length=TWO_CLIPS.length):
    made = torch.Generator().manual_seed(5)
    tensors = [torch.randn(rows, count, length, width, generator=made) for count in (heads[0], heads[1], heads[1])]
    weight = torch.randn(rows, length, heads[0], width, generator=made)
    return [tensor.to(device, dtype) for tensor in tensors], weight.to(device)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_attending_again_equals_ordinary_attention_to_the_bit(heads, window):
    inputs, weight = random_inputs(heads)

    def ordinary(*tensors):
        return packed_attention._attend_by_segment(*tensors, layout=TWO_CLIPS, scaling=0.3, window=window)

    def without_copies(*tensors):
        return packed_attention._attend(*tensors, TWO_CLIPS, 0.3, 0.0, window)

    for expected, got in zip(attend(ordinary, *inputs, weight), attend(without_copies, *inputs, weight), strict=True):
        assert torch.equal(got, expected)


def test_what_attention_keeps_of_layouts_serves_training_after_answering():
    cpu = torch.device("cpu")
    with torch.inference_mode():
        index, ranges = TWO_CLIPS.varlen(3, cpu), TWO_CLIPS.two_ranges(3, cpu)
        kept = [packed_attention._causal(3, 9, None, cpu), index.ends_q, index.keys, ranges.own.ends_q]
    assert not any(tensor.is_inference() for tensor in kept)


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, True)])
def test_attending_again_gives_gradients_only_where_they_are_needed(needed):
    inputs, weight = random_inputs((4, 2))
    tensors = [t.requires_grad_(learns) for t, learns in zip(inputs, needed, strict=True)]
    (packed_attention._attend(*tensors, TWO_CLIPS, 0.3, 0.0, None) * weight).sum().backward()
    assert [tensor.grad is not None for tensor in tensors] == list(needed)


def test_attending_again_recomputes_under_the_autocast_of_the_forward_pass():
    inputs, weight = random_inputs((4, 2))

    def under_autocast(attention):
        def run(*tensors):
            with torch.autocast("cpu", torch.bfloat16):
                return attention(*tensors)

        return run

    ordinary = under_autocast(
        lambda *t: packed_attention._attend_by_segment(*t, layout=TWO_CLIPS, scaling=0.3, window=None)
    )
    again = under_autocast(lambda *t: packed_attention._attend(*t, TWO_CLIPS, 0.3, 0.0, None))
    for expected, got in zip(attend(ordinary, *inputs, weight), attend(again, *inputs, weight), strict=True):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_two_ranges_merge_to_one_attention(heads, dtype, tolerance):
    """The merge and its gradients against attention over the whole mask, in float32."""
    inputs, weight = random_inputs(heads, dtype=dtype)
    ranges = TWO_CLIPS.two_ranges(2, torch.device("cpu"))

    def merged(query, key, value):
        q, k, v = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
        return attend_in_two_ranges(q, k, v, ranges, 0.3, FormulaKernels()).unflatten(0, (2, -1))

    def dense(query, key, value):
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=TWO_CLIPS.mask()[0, 0], scale=0.3, enable_gqa=heads[0] != heads[1]
        ).transpose(1, 2)

    expected = attend(dense, *(tensor.float() for tensor in inputs), weight)
    for reference, got in zip(expected, attend(merged, *inputs, weight), strict=True):
        assert (got.float() - reference).abs().max() <= tolerance * reference.abs().max()


def test_two_ranges_say_which_queries_see_which_keys():
    ranges = TWO_CLIPS.two_ranges(2, torch.device("cpu"))
    seen = torch.zeros(2 * TWO_CLIPS.length, 2 * TWO_CLIPS.length, dtype=torch.bool)
    for sequences, causal in ((ranges.own, True), (ranges.prefix, False)):
        for queries, keys in FormulaKernels()._pieces(sequences):
            block = torch.ones(queries.stop - queries.start, keys.stop - keys.start, dtype=torch.bool)
            assert not (causal and queries != keys)
            assert not seen[queries, keys].any()
            seen[queries, keys] = block.tril() if causal else block
    one = TWO_CLIPS.mask()[0, 0]
    assert torch.equal(seen, torch.block_diag(one, one).bool())
    assert torch.equal(ranges.sees_prefix[:29].nonzero().flatten(), torch.tensor([*range(7, 14), *range(24, 29)]))


def test_a_prefix_that_its_questions_do_not_follow_has_no_two_ranges():
    apart = Layout((RowSegment(0, 3), RowSegment(3, 6), RowSegment(6, 8, (0, 3))))
    assert apart.two_ranges(1, torch.device("cpu")) is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("questions", [1, 4])
def test_gradients_have_the_same_bits_in_every_pass_with_deterministic_kernels(questions, dtype):
    """Rows of several blocks of keys: flash attention adds up one block's gradients in any order."""
    layout = row_of_questions(questions, prefix=900, tokens=300)
    inputs, weight = random_inputs((8, 8), rows=1, dtype=dtype, device="cuda", width=64, length=layout.length)

    def attention(*tensors):
        return packed_attention._attend(*tensors, layout, 0.125, 0.0, None)

    before = torch.are_deterministic_algorithms_enabled()
    use_deterministic_kernels()
    try:
        first = attend(attention, *inputs, weight)
        for _ in range(5):
            assert all(map(torch.equal, attend(attention, *inputs, weight), first))
    finally:
        torch.use_deterministic_algorithms(before)


def row_of_questions(questions: int, prefix: int = 448, tokens: int = 64) -> Layout:
    if questions == 1:
        return Layout((RowSegment(0, prefix + tokens),))
    starts = range(prefix, prefix + questions * tokens, tokens)
    return Layout((RowSegment(0, prefix), *(RowSegment(start, start + tokens, (0, prefix)) for start in starts)))


def small_llm(key_heads: int, dtype: torch.dtype):
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=key_heads,
    )
    llm = AutoModelForCausalLM.from_config(config, dtype=dtype)
    use_packed_attention(llm)
    return add_lora(llm, r=4, alpha=16, dropout=0.0, targets=["q_proj", "v_proj"]).train()


def saved_bytes(llm: torch.nn.Module, layout: Layout, dtype: torch.dtype) -> int:
    """Bytes that a forward pass over the layers keeps for the backward pass, weights not counted."""
    weights = {p.untyped_storage().data_ptr() for p in [*llm.parameters(), *llm.buffers()]}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in weights:
            kept[pointer] = tensor
        return tensor

    inputs = torch.randn(1, layout.length, 128, dtype=dtype, requires_grad=True)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        llm.base_model.model.model(
            inputs_embeds=inputs,
            use_cache=False,
            position_ids=layout.position_ids(),
            **attention_arguments(llm, layout, inputs),
        )
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("questions", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_the_memory_model_counts_what_rows_with_a_shared_prefix_keep(monkeypatch, key_heads, dtype, questions):
    """With the attention of a GPU, whose kernels are replaced by their formulas."""
    layout = row_of_questions(questions)
    llm = small_llm(key_heads, dtype)
    if questions > 1:
        monkeypatch.setattr(packed_attention, "_flash_runs", lambda query: True)
        monkeypatch.setattr(packed_attention, "FlashKernels", FormulaKernels)
    kept = saved_bytes(llm, layout, dtype)
    counted = costs.activation_bytes(
        llm_shape(llm),
        lora_shape(llm),
        layout.length,
        compute=str(dtype).removeprefix("torch."),
        checkpointing=False,
        dropout=False,
    )
    # Without dropout q and v keep the same input, which is counted for each.
    assert kept == pytest.approx(counted, rel=0.08)


@pytest.mark.parametrize("questions", [2, 4, 8])
def test_other_devices_keep_no_more_than_is_counted(questions):
    layout, llm = row_of_questions(questions), small_llm(4, torch.float32)
    counted = costs.activation_bytes(
        llm_shape(llm), lora_shape(llm), layout.length, compute="float32", checkpointing=False, dropout=False
    )
    assert 0.8 * counted < saved_bytes(llm, layout, torch.float32) <= counted


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("heads", [(8, 8), (8, 2)])
def test_flash_attention_of_two_ranges_equals_the_segments(heads, dtype):
    """Output and gradients on the device against float32 attention, segment after segment."""
    layout = Layout(
        (
            RowSegment(0, 300),
            RowSegment(300, 340, (0, 300)),
            RowSegment(340, 400, (0, 300)),
            RowSegment(400, 650),
            RowSegment(650, 900),
            RowSegment(900, 1100, (650, 900)),
        )
    )
    inputs, weight = random_inputs(heads, dtype=dtype, device="cuda", width=64, length=layout.length)
    ranges = layout.two_ranges(2, torch.device("cuda"))

    def merged(query, key, value):
        q, k, v = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
        return attend_in_two_ranges(q, k, v, ranges, 0.125, FlashKernels()).unflatten(0, (2, -1))

    def by_segment(*tensors):
        return packed_attention._attend_by_segment(*tensors, layout=layout, scaling=0.125, window=None)

    assert packed_attention._flash_runs(inputs[0])
    expected = attend(by_segment, *(tensor.float() for tensor in inputs), weight)
    for reference, got in zip(expected, attend(merged, *inputs, weight), strict=True):
        assert (got.float() - reference).abs().max() <= 2e-2 * reference.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("questions", [1, 2, 4, 8])
def test_the_memory_model_counts_what_a_gpu_allocates(questions):
    """Peak of forward and backward over the layers of a model of 1024 × 8, over what lies there before."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=16,
    )
    with torch.device("cuda"):
        llm = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        use_packed_attention(llm)
        llm = add_lora(llm, r=16, alpha=16, dropout=0.05, targets=["q_proj", "v_proj"]).train()
    layout = row_of_questions(questions, prefix=3584, tokens=256)

    def step():
        inputs = torch.randn(1, layout.length, 1024, dtype=torch.bfloat16, device="cuda", requires_grad=True)
        with torch.autocast("cuda", torch.bfloat16):
            hidden = llm.base_model.model.model(
                inputs_embeds=inputs,
                use_cache=False,
                position_ids=layout.position_ids().cuda(),
                **attention_arguments(llm, layout, inputs),
            ).last_hidden_state
        hidden.float().mean().backward()

    step()  # gradients and workspaces of libraries exist from now on
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    shape = llm_shape(llm)
    counted = costs.activation_bytes(
        shape, lora_shape(llm), layout.length, compute="bfloat16", checkpointing=False
    ) + costs.backward_bytes(shape, layout.length, compute="bfloat16")
    assert peak == pytest.approx(counted, rel=0.10)


def test_lengths_of_pieces_become_ends():
    sequences = Sequences.of([3, 0, 2], [0, 4, 1], torch.device("cpu"))
    assert sequences.ends_q.tolist() == [0, 3, 3, 5]
    assert sequences.ends_k.tolist() == [0, 0, 4, 5]
    assert (sequences.longest_q, sequences.longest_k) == (3, 4)
    assert sequences.ends_q.dtype == torch.int32
