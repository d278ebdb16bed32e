"""Layers that are computed together have the bits of those that compute by themselves, and nobody sees them sooner."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding.stacked import by_rows, model_by_rows, steps
from models.forwards.compiled import BF16, counted
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from safe_dtype.decoding import Attention, decoder_stack, give_room, stack_layers
from safe_dtype.decoding.stack_program import StackProgram
from safe_dtype.facts import CODES, Dtype
from safe_dtype.models.forwards import layer_forward
from safe_dtype.models.forwards.module_forward import take_off

pytest.importorskip("llvmlite", reason="forwards are compiled by llvmlite, of the extra `fast`")
pytestmark = pytest.mark.usefixtures("attention")


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The layers that are computed by themselves from now on."""
    return counted(monkeypatch, layer_forward, "_computed")


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])  # no windows
def test_every_bit_is_the_layers(name: str, rows: int, programs: list[Any], layers: list[Any]) -> None:
    """Steps have the bits of the layers' own, and leave the same keys and values, one sequence or some."""
    caches: list[Any] = []
    together = steps(model_by_rows(name), rows, between=lambda _, cache: caches.append(cache))
    assert (len(programs), len(layers)) == (4, 0)
    alone = steps(model_by_rows(name, stacked=False), rows, between=lambda _, cache: caches.append(cache))
    assert torch.equal(together, alone)
    for one, other in zip(*(cache.layers for cache in caches), strict=True):
        assert one.keys.shape[2] == 44
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)


@pytest.mark.needs("pagemap")
@pytest.mark.parametrize("codes", CODES, ids=str)
def test_weights_as_codes(codes: Dtype, programs: list[Any], tmp_path: Path) -> None:
    """Layers whose weights are codes are computed together as well, with the bits of their own."""
    together = steps(model_by_rows("qwen3", held=(codes, tmp_path)))
    assert len(programs) == 4
    assert torch.equal(together, steps(model_by_rows("qwen3", stacked=False, held=(codes, tmp_path))))


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 3}, {"do_sample": True}])
@pytest.mark.parametrize("is_inference", [False, True])
def test_tokens_are_those_of_layers(options: dict[str, Any], programs: list[Any], *, is_inference: bool) -> None:
    """Generation goes on with the same tokens, in the forms that roll a cache back or reorder it as well."""
    torch.manual_seed(5)
    ids, results = torch.randint(3, 600, (1, 40)), []
    for stacked in (True, False):
        model = model_by_rows("qwen3", stacked=stacked)
        cache = DynamicCache(config=model.config)
        give_room(cache, None)
        torch.manual_seed(0)
        with torch.inference_mode(is_inference):
            output = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, min_new_tokens=12, pad_token_id=0,
                past_key_values=cache, **{"do_sample": False, **options},
            )  # fmt: skip
        results.append(output.tolist())
    assert results[0] == results[1]
    assert bool(programs) == ("num_beams" not in options)


def test_windows_are_the_layers(programs: list[Any]) -> None:
    """Layers that see a window compute by themselves."""
    assert torch.equal(steps(model_by_rows("mistral")), steps(model_by_rows("mistral", stacked=False)))
    assert not programs


def test_attention_of_another_kind(programs: list[Any]) -> None:
    """Layers whose attention is another one's, or another one's in this step, compute by themselves."""
    for attention in (Attention(sdpa_attention_forward, lambda: True), Attention(by_rows, lambda: False)):
        model = model_by_rows("qwen3", stacked=False)
        stack_layers(model, attention)
        assert torch.equal(steps(model), steps(model_by_rows("qwen3", stacked=False)))
    assert not programs


def returned(_module: Any, _args: Any, output: Tensor) -> Tensor:
    """Return another output."""
    return output * 1.5


def in_place(_module: Any, _args: Any, output: Tensor) -> None:
    """Change an output."""
    output.mul_(1.5)


def looked_at(_module: Any, _args: Any, output: Tensor) -> None:
    """Change nothing."""
    output.sum()


@pytest.mark.parametrize("is_inference", [False, True])
@pytest.mark.parametrize("hook", [returned, in_place, looked_at])
def test_what_comes_between_layers(hook: Callable[..., Any], *, is_inference: bool) -> None:
    """What a hook makes of a layer's output is what the next one gets."""
    results = []
    for stacked in (True, False):
        model = model_by_rows("qwen3", stacked=stacked)
        model.model.layers[0].register_forward_hook(hook)
        with torch.inference_mode(is_inference):
            results.append(steps(model))
    assert torch.equal(*results)


def call_first_layer_alone(model: Any, count: int) -> None:
    """Make one step without the second layer, on so many prompts."""
    ids = torch.arange(40)[None]
    for _ in range(count):
        cache = DynamicCache(config=model.config)
        give_room(cache, None)
        with torch.no_grad():
            model(ids, past_key_values=cache, use_cache=True)
            model.config.num_hidden_layers = 1
            model(ids[:, :1], past_key_values=cache, use_cache=True)
        model.config.num_hidden_layers = 2


def test_a_model_that_goes_on_otherwise(programs: list[Any], layers: list[Any]) -> None:
    """Where not all layers are called, they are computed together twice, and by themselves from then on."""
    call_first_layer_alone(model_by_rows("qwen3"), 4)
    assert (len(programs), len(layers)) == (2, 2)


def test_a_model_that_calls_all_layers_again(programs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that were left out for a while are computed together again some steps later."""
    monkeypatch.setattr(decoder_stack, "_STEPS_UNTIL_NEXT", 3)
    model = model_by_rows("qwen3")
    call_first_layer_alone(model, 2)
    programs.clear()
    steps(model, count=6)
    assert len(programs) == 4


def test_batches_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program is made once for each size of batch, also where these take turns."""
    made, model, caches = counted(monkeypatch, StackProgram, "__init__"), model_by_rows("qwen3"), []
    with torch.no_grad():
        for rows in (1, 2):
            cache = DynamicCache(config=model.config)
            give_room(cache, None)
            model(torch.arange(40).repeat(rows, 1), past_key_values=cache, use_cache=True)
            caches.append(cache)
        for _ in range(3):
            for rows, cache in enumerate(caches, 1):
                model(torch.ones(rows, 1, dtype=torch.long), past_key_values=cache, use_cache=True)
    assert len(made) == 2


def test_a_layer_that_computes_by_itself_is_asked_first(monkeypatch: pytest.MonkeyPatch, programs: list[Any]) -> None:
    """Layers before one that is to compute by itself are looked at in one step only."""
    model, asked = model_by_rows("qwen3"), counted(monkeypatch, decoder_stack, "parts_of_layer")
    model.model.layers[1].mlp.down_proj.register_forward_hook(looked_at)
    steps(model)
    assert (len(programs), len(asked)) == (0, 2 + 3)


def test_a_place_without_a_layer() -> None:
    """A list of modules with an empty place, as Informer has one, is left as it is."""
    layers: list[Any] = [nn.Linear(2, 2), None]
    assert stack_layers(nn.ModuleDict({"layers": nn.ModuleList(layers)}), Attention(by_rows, lambda: True)) == 0


def test_layers_that_are_not_called(programs: list[Any]) -> None:
    """A layer that was computed and is not called has no more keys and values than before."""
    lengths: list[list[int]] = []

    def leave_out(model: Any, cache: Any) -> None:
        model.config.num_hidden_layers = 1
        lengths.append([layer.get_seq_length() for layer in cache.layers])
        caches.append(cache)

    caches: list[Any] = []
    results = [steps(model_by_rows("qwen3", stacked=stacked), between=leave_out) for stacked in (True, False)]
    assert torch.equal(*results)
    assert programs
    assert lengths == [[42, 42]] * 2
    for one, other in zip(*(cache.layers for cache in caches), strict=True):
        assert torch.equal(one.keys, other.keys)
    assert [layer.get_seq_length() for layer in caches[0].layers] == [44, 42]


def other_numbers(model: Any, _cache: Any) -> None:
    """Write to a weight."""
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(2)


def other_memory(model: Any, _cache: Any) -> None:
    """Give a weight other numbers elsewhere."""
    weight = model.model.layers[1].self_attn.v_proj.weight
    weight.data = weight.data * 2


def other_parameter(model: Any, _cache: Any) -> None:
    """Put a parameter in the place of another."""
    module = model.model.layers[1].self_attn.o_proj
    module.weight = nn.Parameter(module.weight * 2, requires_grad=False)


def other_module(model: Any, _cache: Any) -> None:
    """Put a module in the place of another."""
    model.model.layers[1].mlp.up_proj = nn.Linear(512, 768, bias=False, dtype=BF16).requires_grad_(requires_grad=False)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.fill_(0.01)


def other_epsilon(model: Any, _cache: Any) -> None:
    """Have a norm divide by more."""
    model.model.layers[1].input_layernorm.variance_epsilon = 0.5


def other_scaling(model: Any, _cache: Any) -> None:
    """Have attention multiply its scores by less."""
    model.model.layers[1].self_attn.scaling /= 2


def hook_inside(model: Any, _cache: Any) -> None:
    """Double what a module inside of a layer returns."""
    model.model.layers[1].self_attn.v_proj.register_forward_hook(lambda *args: args[-1] * 2)


def cropped(_model: Any, cache: Any) -> None:
    """Roll a cache back."""
    cache.crop(-3)


def doubled_keys(_model: Any, cache: Any) -> None:
    """Give a layer of the cache other keys."""
    cache.layers[1].keys = cache.layers[1].keys * 2


def shorter(_model: Any, cache: Any) -> None:
    """Leave a layer of the cache shorter than the other."""
    layer = cache.layers[1]
    layer.keys, layer.values = layer.keys[:, :, :-3], layer.values[:, :, :-3]


@pytest.mark.parametrize(
    "change",
    [
        other_numbers, other_memory, other_parameter, other_module, other_epsilon, other_scaling, hook_inside, cropped,
        doubled_keys, shorter,
    ],
)  # fmt: skip
def test_what_changes_counts(change: Callable[[Any, Any], None], programs: list[Any]) -> None:
    """What is changed between two steps is computed with in the next, in a weight, a module or a cache."""
    results = [steps(model_by_rows("qwen3", stacked=stacked), between=change) for stacked in (True, False)]
    assert torch.equal(*results)
    assert len(programs) >= 2
    assert not torch.equal(results[0], steps(model_by_rows("qwen3")))


def test_outputs_of_layers_are_captured() -> None:
    """Who asks for the output of each layer gets it."""
    results = []
    for stacked in (True, False):
        model = model_by_rows("qwen3", stacked=stacked)
        cache, ids = DynamicCache(config=model.config), torch.arange(40)[None]
        give_room(cache, None)
        with torch.no_grad():
            model(ids, past_key_values=cache, use_cache=True)
            for _ in range(3):
                output = model(ids[:, :1], past_key_values=cache, use_cache=True, output_hidden_states=True)
        results.append(output.hidden_states)
    assert len(results[0]) == 3
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_results_stay(programs: list[Any]) -> None:
    """What a layer has returned is not written over by a later step."""
    model, seen = model_by_rows("qwen3"), []
    model.model.norm.register_forward_pre_hook(lambda _, args: seen.append((args[0], args[0].clone())))
    steps(model)
    assert len(programs) == 4
    assert all(torch.equal(kept, then) for kept, then in seen)


def test_copies_are_plain(programs: list[Any]) -> None:
    """A copy of a model computes without programs, and has the same results within the rounding of bfloat16."""
    model = model_by_rows("qwen3")
    result = steps(model)
    programs.clear()
    of_copy = steps(copy.deepcopy(model))
    assert not programs
    assert (of_copy - result).abs().max() <= 0.05 * result.abs().max()


def test_taken_off(programs: list[Any]) -> None:
    """Layers that are taken back are called as ever."""
    model = model_by_rows("qwen3")
    result = steps(model)
    programs.clear()
    take_off(model.model.layers[1])
    assert torch.equal(steps(model), result)
    assert not programs


def test_a_model_dies_with_its_last_user() -> None:
    """Layers hold each other weakly: their memory is free without a search for cycles."""
    model = model_by_rows("qwen3")
    steps(model)
    layer = weakref.ref(model.model.layers[1])
    gc.collect()
    gc.disable()
    try:
        del model
        assert layer() is None
    finally:
        gc.enable()


def test_two_threads_at_once() -> None:
    """Two threads that use one model have the results of one."""
    model = model_by_rows("qwen3")
    expected = steps(model, count=16)
    results: list[Tensor] = []
    threads = [threading.Thread(target=lambda: results.append(steps_of_own(model))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert all(torch.equal(result, expected) for result in results)


def steps_of_own(model: Any) -> Tensor:
    """Return the logits of steps after the prompt of `steps`, without seeds that threads share."""
    generator = torch.Generator().manual_seed(3)
    ids, cache = torch.randint(0, 600, (1, 40), generator=generator), DynamicCache(config=model.config)
    give_room(cache, None)
    with torch.no_grad():
        model(ids, past_key_values=cache, use_cache=True)
        logits = [model(ids[:, :1], past_key_values=cache, use_cache=True).logits for _ in range(16)]
    return torch.cat(logits, 1)
