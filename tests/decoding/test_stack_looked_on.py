"""Who does something amid a step, or to what the layers of a step are, sees and gets what layers by themselves would make."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from decoding.stacked import model_by_rows, steps
from torch import Tensor, nn
from transformers import DynamicCache

from safe_dtype.decoding import give_room

pytest.importorskip("llvmlite", reason="forwards are compiled by llvmlite, of the extra `fast`")
pytestmark = pytest.mark.usefixtures("attention")


def weight_written(model: Any, _cache: Any) -> None:
    """Write to a weight of a layer as it is called."""
    weight = model.model.layers[1].mlp.down_proj.weight

    def write(*_: Any) -> None:
        weight.data.mul_(1.5)

    model.model.layers[1].register_forward_pre_hook(write)


def scaling_set(model: Any, _cache: Any) -> None:
    """Set a number of a layer as the one before returns."""
    attention = model.model.layers[1].self_attn

    def halve(*_: Any) -> None:
        attention.scaling /= 2

    model.model.layers[0].register_forward_hook(halve)


def output_written(model: Any, _cache: Any) -> None:
    """Write to a layer's output where torch does not count it."""

    def write(_module: Any, _args: Any, output: Tensor) -> None:
        output.data.mul_(1.5)

    model.model.layers[0].register_forward_hook(write)


def keys_written(model: Any, cache: Any) -> None:
    """Write to the keys of a layer as it is called."""

    def write(*_: Any) -> None:
        cache.layers[1].keys.mul_(1.5)

    model.model.layers[1].register_forward_pre_hook(write)


def tables_written(model: Any, _cache: Any) -> None:
    """Write to the cosines as a layer is called."""

    def write(_module: Any, _args: Any, kwargs: Any) -> None:
        kwargs["position_embeddings"][0].mul_(1.5)

    model.model.layers[1].register_forward_pre_hook(write, with_kwargs=True)


class Around(nn.Module):
    """A layer with another weight at each call."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer: Any = layer

    def forward(self, x: Tensor, **kwargs: Any) -> Any:
        """Return the layer's result."""
        self.layer.mlp.down_proj.weight.data.mul_(1.5)
        return self.layer(x, **kwargs)


def put_around(model: Any, _cache: Any) -> None:
    """Put a module around a layer."""
    model.model.layers[1] = Around(model.model.layers[1])


class Nothing(nn.Module):
    """In the place of attention."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        """Return zeros."""
        return torch.zeros_like(hidden_states), None


def attention_left_out(model: Any, _cache: Any) -> None:
    """Put a module without keys in the place of attention."""
    model.model.layers[1].self_attn = Nothing()


def attention_numbered(model: Any, _cache: Any) -> None:
    """Put a module without keys, but with the number of its layer, in the place of attention."""
    model.model.layers[1].self_attn = Nothing()
    model.model.layers[1].self_attn.layer_idx = 1


@pytest.mark.parametrize(
    "change",
    [
        weight_written, scaling_set, output_written, keys_written, tables_written, put_around, attention_left_out,
        attention_numbered,
    ],
)  # fmt: skip
def test_what_is_done_amid_a_step(change: Callable[[Any, Any], None], programs: list[Any]) -> None:
    """What is done between two layers of a step is what the later one computes with."""
    results = [steps(model_by_rows("qwen3", stacked=stacked), between=change) for stacked in (True, False)]
    assert torch.equal(*results)
    assert len(programs) == 2  # of the steps before


def test_after_a_step_that_returned_all_states(programs: list[Any]) -> None:
    """What transformers leaves on a model that has returned all hidden states keeps later steps from nothing."""
    model = model_by_rows("qwen3")
    expected = steps(model)
    programs.clear()
    steps(model, output_hidden_states=True, output_attentions=False)
    assert model.model.layers[0]._forward_hooks
    assert not programs
    assert torch.equal(steps(model), expected)
    assert len(programs) == 4


def step_after(model: Any, cache: Any, ids: Tensor) -> Tensor:
    """Return the logits of two steps on what `cache` has."""
    with torch.no_grad():
        return torch.cat([model(ids[:, :1], past_key_values=cache, use_cache=True).logits for _ in range(2)], 1)


def test_a_cache_without_layers() -> None:
    """One token can be the first that a cache gets, which has no layers until then."""
    ids = torch.arange(40)[None]
    results = [step_after(model_by_rows("qwen3", stacked=stacked), DynamicCache(), ids) for stacked in (True, False)]
    assert torch.equal(*results)


def test_a_cache_of_fewer_layers() -> None:
    """A model that is to call fewer layers makes its cache of as many."""
    results = []
    for stacked in (True, False):
        model = model_by_rows("qwen3", stacked=stacked)
        model.config.num_hidden_layers = 1
        results.append(steps(model))
    assert torch.equal(*results)


def test_two_layers_with_one_place_in_the_cache() -> None:
    """Where two layers write to the same layer of the cache, each has its own keys there."""
    results, caches = [], []
    for stacked in (True, False):
        model = model_by_rows("qwen3", stacked=stacked)
        model.model.layers[1].self_attn.layer_idx = 0
        cache, ids = DynamicCache(config=model.config), torch.arange(40)[None]
        give_room(cache, None)
        with torch.no_grad():
            model(ids, past_key_values=cache, use_cache=True)
        results.append(step_after(model, cache, ids))
        caches.append(cache)
    assert torch.equal(*results)
    assert torch.equal(caches[0].layers[0].keys, caches[1].layers[0].keys)


def test_a_step_that_ends_early_keeps_no_cache(programs: list[Any]) -> None:
    """The cache of a step that has not called all layers is free with its last user."""
    model, ids = model_by_rows("qwen3"), torch.arange(40)[None]
    cache = DynamicCache(config=model.config)
    give_room(cache, None)
    with torch.no_grad():
        model(ids, past_key_values=cache, use_cache=True)
        model.config.num_hidden_layers = 1
        model(ids[:, :1], past_key_values=cache, use_cache=True)
    assert len(programs) == 1
    keys = weakref.ref(cache.layers[1].keys)
    del cache
    gc.collect()
    assert keys() is None
