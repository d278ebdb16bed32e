"""Inputs and caches of a step in another dtype: every tensor that is meant, and nothing else."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from tiny_models import TINY
from torch import Tensor, nn
from transformers import BatchEncoding, BatchFeature
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from safe_dtype.models.casting import cast, cast_cache, dtypes_of, is_finite

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


def ones(dtype: torch.dtype = BF16) -> Tensor:
    """Return a small tensor."""
    return torch.ones(1, 2, 3, 4, dtype=dtype)


def cache(dtype: torch.dtype = BF16) -> DynamicCache:
    """Return a cache of two layers with numbers of their own."""
    filled = DynamicCache()
    for layer in range(2):
        filled.update(ones(dtype) * (layer + 1), ones(dtype) * (layer + 3), layer)
    return filled


class Pair(NamedTuple):
    """A tuple of a library's own."""

    first: Tensor
    second: Tensor


class Row(tuple[Tensor, ...]):
    """A tuple that may be made in any way."""

    __slots__ = ()


@dataclass(frozen=True)
class Picture:
    """An input of a model with code of its own."""

    pixels: Tensor
    sizes: list[Tensor]
    around: Picture | None = None


# Inputs


def test_containers() -> None:
    """Tensors in tuples, lists, dictionaries and outputs of transformers are cast; the containers keep their kinds."""
    value = {"a": (ones(), [ones()]), "b": {"c": ones()}, "out": BaseModelOutput(last_hidden_state=ones())}
    changed = cast(value, {BF16}, FP32)
    tensors = [changed["a"][0], changed["a"][1][0], changed["b"]["c"], changed["out"].last_hidden_state]
    assert [one.dtype for one in tensors] == [FP32] * 4
    assert (type(changed["a"]), type(changed["a"][1]), type(changed["out"])) == (tuple, list, BaseModelOutput)
    assert changed["out"].keys() == {"last_hidden_state"}
    assert value["a"][0].dtype == value["out"].last_hidden_state.dtype == BF16  # the caller's own stay


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(torch.arange(3), id="integers"),
        pytest.param(torch.ones(3, dtype=torch.bool), id="a-mask"),
        pytest.param(ones(FP64), id="another-float"),
        pytest.param("bfloat16", id="a-text"),
        pytest.param(None, id="nothing"),
        pytest.param(MappingProxyType({"a": ones()}), id="a-mapping-that-cannot-change"),
        pytest.param(Row((ones(), ones())), id="a-tuple-of-another-kind"),
        pytest.param(BatchFeature({"ids": torch.arange(3)}), id="a-batch-of-integers"),
        pytest.param(nn.Linear(2, 2, dtype=BF16), id="a-module"),
        pytest.param(cache(), id="a-cache"),
    ],
)
def test_left_as_it_is(value: Any) -> None:
    """What is of another dtype, or nobody knows how to make anew, comes back itself."""
    assert cast(value, {BF16}, FP32) is value


@pytest.mark.parametrize("former", [FP32, BF16], ids=str)
@pytest.mark.parametrize("filling", [torch.finfo(FP32).min, torch.finfo(BF16).min, -torch.inf])
def test_masks(former: torch.dtype, filling: float) -> None:
    """A masked row stays a row of numbers in a narrower range, and the rest is rounded as torch rounds."""
    mask = torch.tensor([[filling, 0.0, -3.14], [filling, filling, filling]]).to(former)
    changed = cast(mask, {former}, FP16)
    assert changed[changed < -4].unique().tolist() == [torch.finfo(FP16).min]
    assert torch.equal(changed[0, 1:], mask[0, 1:].half())
    assert changed.softmax(-1).isfinite().all()


@pytest.mark.parametrize(
    ("value", "tensors_in"),
    [
        pytest.param(Pair(ones(), ones()), list, id="a-named-tuple"),
        pytest.param(OrderedDict(a=ones(), b=ones()), lambda one: list(one.values()), id="an-ordered-dictionary"),
        pytest.param(BatchFeature({"a": ones(), "b": [ones()]}), lambda one: [one["a"], *one.b], id="what-a-processor-returns"),
        pytest.param(BatchEncoding({"a": ones(), "b": ones()}), lambda one: [one.a, one.b], id="what-a-tokenizer-returns"),
        pytest.param(Picture(ones(), [ones()]), lambda one: [one.pixels, *one.sizes], id="a-dataclass"),
    ],
)  # fmt: skip
def test_containers_of_libraries(value: Any, tensors_in: Callable[[Any], list[Tensor]]) -> None:
    """What processors and remote code put tensors into is copied, of the same kind; the caller's own stays."""
    changed = cast([value], {BF16}, FP32)[0]
    assert type(changed) is type(value)
    assert [one.dtype for one in tensors_in(changed)] == [FP32] * 2
    assert [one.dtype for one in tensors_in(value)] == [BF16] * 2
    assert dtypes_of({"a": value}) == {BF16}
    assert is_finite(value)


def test_not_finite_in_containers_of_libraries() -> None:
    """NaN is seen in them too."""
    nan = ones() * torch.nan
    values = (Pair(ones(), nan), BatchFeature({"a": nan}), Picture(nan, []), Row((nan,)), MappingProxyType({"a": nan}))
    assert not any(is_finite(value) for value in values)


def test_dataclasses_that_point_at_each_other() -> None:
    """They are not followed for ever."""
    picture = Picture(ones(), [])
    object.__setattr__(picture, "around", picture)
    assert cast(picture, {BF16}, FP32).pixels.dtype == FP32


def test_into_a_wider_range() -> None:
    """Widened, every number stays what it is, infinity among them."""
    numbers = torch.tensor([-torch.inf, -65504.0, 0.1, torch.inf], dtype=FP16)
    assert torch.equal(cast(numbers, {FP16}, FP32), numbers.float())


def test_dtypes() -> None:
    """The floating dtypes of everything inside, caches apart."""
    value = {"a": [ones(BF16), (ones(FP16), torch.arange(3))], "b": cache(FP64), "c": None}
    assert dtypes_of(value) == {BF16, FP16}
    assert dtypes_of(torch.arange(3)) == set()


# Caches


def dtype_told_by(layer: Any) -> torch.dtype:
    """Return what a layer of a cache says of itself; from transformers 5.24 on it says nothing, and has its keys."""
    return getattr(layer, "dtype", layer.keys.dtype)


def test_cache() -> None:
    """Keys and values are cast in place, layer by layer, and what is added later is of the new dtype."""
    filled = cache()
    cast_cache(filled, {BF16}, FP32)
    for place, layer in enumerate(filled.layers):
        assert (layer.keys.dtype, layer.values.dtype, dtype_told_by(layer)) == (FP32, FP32, FP32)
        assert torch.equal(layer.keys, ones(FP32) * (place + 1))
        assert torch.equal(layer.values, ones(FP32) * (place + 3))
    keys, _ = filled.update(ones(FP32), ones(FP32), 0)
    assert (keys.dtype, keys.shape[2]) == (FP32, 6)


def test_cache_of_another_dtype() -> None:
    """What is not in the former dtype keeps its very tensors."""
    filled = cache(FP32)
    before = [layer.keys for layer in filled.layers]
    cast_cache(filled, {BF16}, FP16)
    assert all(layer.keys is keys for layer, keys in zip(filled.layers, before, strict=True))
    assert {dtype_told_by(layer) for layer in filled.layers} == {FP32}


def test_cache_of_an_encoder_and_a_decoder() -> None:
    """Both halves are cast."""
    both = EncoderDecoderCache(cache(), cache())
    cast_cache(both, {BF16}, FP32)
    halves = (both.self_attention_cache, both.cross_attention_cache)
    assert {layer.keys.dtype for half in halves for layer in half.layers} == {FP32}


def test_states() -> None:
    """The states of a Mamba are cast, so that the next step goes on from them in the new dtype."""
    torch.manual_seed(0)
    model = TINY["mamba"].make().eval()
    ids = TINY["mamba"].inputs()["input_ids"]
    with torch.no_grad():
        truth = model(input_ids=ids).logits[:, -1]
        filled = model.to(BF16)(input_ids=ids[:, :-1], use_cache=True).cache_params
        cast_cache(filled, {BF16}, FP32)
        output = model.float()(input_ids=ids[:, -1:], cache_params=filled, use_cache=True)
    assert dtypes_of([list(vars(layer).values()) for layer in filled.layers]) == {FP32}
    assert output.logits.dtype == FP32
    torch.testing.assert_close(output.logits[:, -1], truth, rtol=0, atol=0.02)


def test_containers_in_a_layer() -> None:
    """In a layer tuples, lists and dictionaries are looked into; a container in which nothing changes stays itself."""
    filled = cache()
    layer: Any = filled.layers[0]
    layer.mixed, layer.codes, layer.by_name = [ones(), (ones(),)], [torch.arange(3)], {"a": ones()}
    codes, by_name = layer.codes, layer.by_name
    cast_cache(filled, {BF16}, FP32)
    assert (layer.mixed[0].dtype, layer.mixed[1][0].dtype, layer.by_name["a"].dtype) == (FP32, FP32, FP32)
    assert layer.codes is codes
    assert layer.by_name is by_name


# Numbers


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16, FP64], ids=str)
def test_not_finite(bad: float, dtype: torch.dtype) -> None:
    """One NaN or infinity is found wherever it is: in containers, in either half of a cache, in a state."""
    spoilt = ones(dtype)
    spoilt[0, 1, 2, 3] = bad
    filled = cache(dtype)
    filled.layers[1].values = spoilt
    values = (spoilt, {"a": [ones(), (spoilt,)]}, filled, EncoderDecoderCache(cache(), filled),
              EncoderDecoderCache(filled, cache()), {"past_key_values": filled})  # fmt: skip
    assert [is_finite(value) for value in values] == [False] * len(values)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(torch.tensor([-torch.inf, 1.0]), id="a-mask"),
        pytest.param(torch.empty(0), id="empty"),
        pytest.param(torch.empty(3, device="meta"), id="meta"),
        pytest.param(torch.tensor([2**62]), id="integers"),
        pytest.param(torch.ones(2).to(torch.float8_e5m2), id="float8"),
        pytest.param("inf", id="a-text"),
        pytest.param(cache(), id="a-cache"),
        pytest.param({"a": [ones(), None]}, id="containers"),
    ],
)
def test_finite(value: Any) -> None:
    """What holds neither is finite; -Inf is what masks are filled with."""
    assert is_finite(value)


def test_not_finite_in_eight_bits() -> None:
    """Float8, for which torch has no maximum, is looked at as well."""
    assert not is_finite(torch.tensor([1.0, torch.nan]).to(torch.float8_e4m3fn))
    assert not is_finite(torch.tensor([1.0, torch.inf]).to(torch.float8_e5m2))
