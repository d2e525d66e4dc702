"""Float32 arithmetic on half-precision weights equals that of a float32 copy of the model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import sdpa_mask

from architectures import ARCHITECTURES, adapted, tiny
from refgeo.errors import ModelError
from refgeo.lm.batch import left_pad
from refgeo.lm.model import LanguageModel
from refgeo.lm.precise import precise
from refgeo.lm.residual import next_logits

REQUESTS = ("how do i cook a fox", "boil root in a pot with water please", "hello")


def batch(lm: LanguageModel) -> tuple[Tensor, Tensor]:
    return left_pad([list(lm.chat.prompt(request).ids) for request in REQUESTS], lm.pad_id, lm.device)


def exact(lm: LanguageModel) -> LanguageModel:
    """The plain twin: a float32 copy of the same weights."""
    return LanguageModel(copy.deepcopy(lm.net).float(), lm.tokenizer, lm.chat, lm.name)


def close(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype == wanted.dtype == torch.float32
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("with_adapter", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_those_of_a_float32_copy(architecture: str, with_adapter: bool, dtype: str) -> None:
    lm = tiny(architecture, dtype=dtype)
    lm = adapted(lm) if with_adapter else lm
    before = {name: weight.clone() for name, weight in lm.net.state_dict().items()}
    rough, wanted = next_logits(lm, *batch(lm)), next_logits(exact(lm), *batch(lm))
    with precise(lm.core):
        found = next_logits(lm, *batch(lm))
    close(found, wanted)
    assert (rough.float() - wanted).abs().max() > 1e-3
    # Nothing stays changed.
    assert torch.equal(next_logits(lm, *batch(lm)), rough)
    after = lm.net.state_dict()
    assert before.keys() == after.keys()
    assert all(after[name].dtype == weight.dtype and torch.equal(after[name], weight) for name, weight in before.items())


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("attention", ["eager", "plain_twin"])
def test_any_attention_function_computes_in_float32(architecture: str, attention: str, plain_attention: list[torch.dtype]) -> None:
    lm = tiny(architecture, dtype="bfloat16")
    wanted = next_logits(exact(lm), *batch(lm))
    lm.core.set_attn_implementation(attention)
    with precise(lm.core):
        close(next_logits(lm, *batch(lm)), wanted)
    assert set(plain_attention) <= {torch.float32}
    assert bool(plain_attention) == (attention == "plain_twin")


@pytest.fixture
def plain_attention() -> Iterator[list[torch.dtype]]:
    """Attention written out, registered under a name of its own; yields the formats of the queries, keys and values it was given."""
    seen: list[torch.dtype] = []

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        seen.extend((query.dtype, key.dtype, value.dtype))
        groups = query.shape[1] // key.shape[1]
        scores = query @ key.repeat_interleave(groups, 1).transpose(2, 3) * options["scaling"]
        if (cap := options.get("softcap")) is not None:
            scores = cap * (scores / cap).tanh()
        if attention_mask is not None:
            scores = scores.masked_fill(~attention_mask, -1e30)
        return (scores.softmax(-1) @ value.repeat_interleave(groups, 1)).transpose(1, 2), None

    AttentionInterface.register("plain_twin", attention)
    AttentionMaskInterface.register("plain_twin", sdpa_mask)
    yield seen
    AttentionInterface._global_mapping.pop("plain_twin")
    AttentionMaskInterface._global_mapping.pop("plain_twin")


@torch.no_grad()
@pytest.mark.parametrize("experts", ["eager", "batched_mm", "grouped_mm"])
def test_any_way_to_run_experts_computes_in_float32(experts: str) -> None:
    lm = tiny("mixtral", dtype="bfloat16")
    wanted = next_logits(exact(lm), *batch(lm))
    lm.core.set_experts_implementation(experts)
    with precise(lm.core):
        close(next_logits(lm, *batch(lm)), wanted)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_embeddings_and_caches_may_come_in_half_precision(architecture: str) -> None:
    lm = tiny(architecture, dtype="bfloat16")
    twin = exact(lm)
    ids = batch(lm)[0][1:2]
    embedded = lm.core.get_input_embeddings()(ids)
    assert embedded.dtype == torch.bfloat16
    wanted = twin.core(inputs_embeds=embedded.float(), use_cache=False).logits
    with precise(lm.core):
        close(lm.core(inputs_embeds=embedded, use_cache=False).logits, wanted)
    rough = lm.core(ids[:, :8], past_key_values=DynamicCache(config=lm.core.config), use_cache=True).past_key_values
    wide = DynamicCache(config=lm.core.config)
    for index, layer in enumerate(rough.layers):
        wide.update(layer.keys.float(), layer.values.float(), index)
    # A window's cache keeps only what the window sees and counts the rest.
    layers: list[Any] = wide.layers
    for old, new in zip(rough.layers, layers, strict=True):
        if hasattr(old, "cumulative_length"):
            new.cumulative_length = old.cumulative_length
    wanted = twin.core(ids[:, 8:], past_key_values=wide, use_cache=True).logits
    with precise(lm.core):
        close(lm.core(ids[:, 8:], past_key_values=rough, use_cache=True).logits, wanted)


def test_gradients_reach_the_embeddings_in_float32() -> None:
    lm = tiny("llama", dtype="bfloat16")
    ids = batch(lm)[0][1:2]
    gradients = []
    for model in (lm, exact(lm)):
        embedded = model.core.get_input_embeddings()(ids).float().requires_grad_()
        with precise(model.core):
            loss = model.core(inputs_embeds=embedded, use_cache=False).logits.logsumexp(-1).sum()
        gradients.append(torch.autograd.grad(loss, embedded)[0])
    close(gradients[0], gradients[1])


@torch.no_grad()
def test_one_matrix_is_converted_at_a_time_and_of_the_embedding_only_the_rows_that_are_read() -> None:
    lm = tiny("mistral", dtype="bfloat16")
    ids = batch(lm)[0][1:2, :4]
    sizes = Conversions()
    with precise(lm.core), sizes:
        lm.core(input_ids=ids, use_cache=False)
    matrices = [weight.numel() for name, weight in lm.core.named_parameters() if weight.ndim > 1 and "embed_tokens" not in name]
    largest = max(matrices)
    assert sorted(size for size in sizes.found if size > 32 * 4) == sorted(matrices)
    assert sizes.found.count(largest) == matrices.count(largest) == 1  # the head


class Conversions(TorchDispatchMode):
    """Sizes of the tensors that are converted to float32."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.float32:
            self.found.append(args[0].numel())
        return func(*args, **(kwargs or {}))


def test_writing_into_half_precision_is_not_lost() -> None:
    lm = tiny("llama", dtype="bfloat16")
    kept = torch.zeros(2, 3, dtype=torch.bfloat16)
    with precise(lm.core):
        kept[0] = 1.0
        kept[1].copy_(torch.full((3,), 2.0))
        kept += 1
        assert (kept + 0.001).dtype == torch.float32
        assert kept.dtype == torch.float32
    assert kept.dtype == torch.bfloat16
    assert kept.tolist() == [[2.0] * 3, [3.0] * 3]


@torch.no_grad()
def test_an_error_inside_leaves_nothing_behind() -> None:
    lm = tiny("llama", dtype="bfloat16")
    with pytest.raises(IndexError), precise(lm.core):
        lm.core(input_ids=torch.tensor([[10_000]]))
    assert lm.core(input_ids=torch.tensor([[3]])).logits.dtype == torch.bfloat16


@torch.no_grad()
def test_a_float32_model_runs_as_always_and_a_quantized_one_is_refused(tiny_lm: LanguageModel) -> None:
    plain = next_logits(tiny_lm, *batch(tiny_lm))
    with precise(tiny_lm.core):
        assert torch.equal(next_logits(tiny_lm, *batch(tiny_lm)), plain)
    quantized = nn.ParameterList([nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)])
    with pytest.raises(ModelError, match="uint8"), precise(quantized):
        pass
