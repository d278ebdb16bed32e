"""A step of one position through all decoder layers of a model in one call of compiled code.

A product reads its weights through the caches of a core and drives out what Python works with, so that the calls of a layer
take several times as long between products as by themselves. So at the call of the first layer Python looks at all of them, as
each would at its own turn, and all are computed. A layer that is called then hands out what was computed for it, if it is
given what was computed with: the result of the layer before, as that was, and all else as the first one had it. Else it
computes as ever. Nothing is there of a layer that was not called: its keys and values lie behind the end of its cache.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import cache_utils as cu

from ..kernels.threads import room, threads_now
from ..models.forwards import layer_forward
from ..models.forwards.layer_forward import CompiledLayer
from ..models.forwards.layer_parts import Like, PartsOfLayer, parts_of_layer
from ..models.forwards.module_forward import has_forward, put_on, value_of
from ..models.forwards.plain_calls import has_own_hook
from ..models.forwards.rotary_forward import are_tables, is_unchanged
from .growing_layers import PlaceBehind, has_steps_alone, place_behind, take_place
from .one_row_attention import LEAST_POSITIONS, is_torchs_own
from .stack_program import StackProgram, StepKind, can_be_program

_MASK, _TABLES = "attention_mask", "position_embeddings"
# What a layer may be given, beside its cache and what is None or False.
_READ = frozenset({_TABLES, "position_ids", "use_cache", "cache_position"})
_MOST_MISSES = 2  # a model that does something between its layers would have them computed twice
_STEPS_UNTIL_NEXT = 256  # after which such a model is tried again: it may have left layers out for one text only
_MOST_PROGRAMS = 4  # batches of other sizes in turns, and fewer threads beside another step
_CACHE_UPDATE = cu.Cache.update


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention of one row as the kernel of a program computes it."""

    function: Callable[..., Any]  # of transformers' interface
    is_computed_so: Callable[[], bool]  # in the step that runs now


class _State(threading.local):
    """Of each thread."""

    ahead: _Step | None = None
    misses: int = 0
    alone: int = 0  # steps since the last that was computed together
    refusing: int = 0  # the layer that was the last to compute by itself: it is asked first

    def __init__(self) -> None:
        self.programs: dict[object, StackProgram] = {}


@dataclass(slots=True)
class _Step:
    """What was computed of a step, and which layer is to be called next, with what."""

    results: list[Tensor]
    # A step that fails is kept until the next: a cache dies with its last user nevertheless.
    caches: list[tuple[weakref.ref[Any], PlaceBehind]]
    cache_name: str
    cache: weakref.ref[Any]
    arguments: dict[str, Any]  # without the cache
    expected: Tensor | None = None
    copy: Tensor | None = None  # of what is expected, where torch does not count what is written to it
    version: int = 0
    number: int = 0

    def is_given(self, number: int, x: Tensor, arguments: dict[str, Any]) -> bool:
        """Whether a layer is called with what its results were computed with."""
        return (
            number == self.number
            and x is self.expected
            and (_has_bits_of(x, self.copy) if self.copy is not None else x._version == self.version)
            and arguments.keys() == {*self.arguments, self.cache_name}
            and arguments[self.cache_name] is self.cache()
            and all(arguments[name] is value for name, value in self.arguments.items())
        )

    def hand_out(self) -> Tensor | None:
        """Return the result of the next layer, whose keys and values are in its cache then; None where that has changed."""
        of_cache, place = self.caches[self.number]
        layer = of_cache()
        if layer is None or not take_place(layer, place):
            return None
        result = self.expected = self.results[self.number]
        if result.is_inference():
            self.copy = result.clone()
        else:
            self.version = result._version
        self.number += 1
        return result


class DecoderStack:
    """The layers of a model, one behind the other, which hold what makes them one."""

    def __init__(self, modules: nn.ModuleList, attention: Attention, cache_name: str) -> None:
        self._modules = weakref.ref(modules)
        self._layers = [weakref.ref(layer) for layer in modules]
        self._cache_name = cache_name
        self._attention = attention
        self._state = _State()

    def computed(self, number: int, _layer: nn.Module, x: Tensor, arguments: dict[str, Any]) -> Tensor | None:
        """Return what layer `number` makes of x; None where it is to compute that itself: it is what `ahead` of it is."""
        state = self._state
        if number == 0:
            if state.ahead is not None:  # the model has not called all layers with what the ones before returned
                state.misses += 1
            is_tried = state.misses < _MOST_MISSES or state.alone >= _STEPS_UNTIL_NEXT
            state.ahead = self._begun(x, arguments) if is_tried else None
            state.alone = state.alone + 1 if state.ahead is None else 0
        step = state.ahead
        if step is None:
            return None
        result = step.hand_out() if not number or step.is_given(number, x, arguments) else None
        if result is None:
            if number:
                state.misses += 1
            state.ahead = None
        elif step.number == len(self._layers):
            state.ahead, state.misses = None, 0
        return result

    def _begun(self, x: Tensor, arguments: dict[str, Any]) -> _Step | None:
        """Compute all layers; None where one of them is to do it by itself."""
        if not _is_plain_step(x, arguments, self._cache_name) or not self._attends(self._layers[0]()):
            return None
        layers, cache = self._layers_now(), arguments[self._cache_name]
        of_cache = None if layers is None else _layers_of_cache(cache, layers)
        parts = None if layers is None or of_cache is None else self._parts(layers, x)
        if layers is None or of_cache is None or parts is None:
            return None
        batch, _, width = x.shape
        cos, sin = arguments[_TABLES]
        if not are_tables(cos, sin, x.dtype, (batch, 1, parts[0].head_dim)):
            return None
        places = _places(of_cache, parts, (batch, x.dtype))
        if places is None:
            return None
        strides = (*_strides(cos), *_strides(sin))
        program = self._program(parts, StepKind(x.dtype, batch, threads_now(), width, strides))
        results = [torch.empty_like(x) for _ in layers]
        program.run(_begins(program, x, (cos, sin), places, results))
        caches = [(weakref.ref(layer), place) for layer, place in zip(of_cache, places, strict=True)]
        others = {name: value for name, value in arguments.items() if name != self._cache_name}
        return _Step(results, caches, self._cache_name, weakref.ref(cache), others)

    def _layers_now(self) -> list[Any] | None:
        """Return the layers; None where a hook, or another module among them, may change what the later ones compute with."""
        modules = self._modules()
        layers: list[Any] = [layer() for layer in self._layers]
        if modules is None or len(modules._modules) != len(layers):
            return None
        are_there = all(one is layer for one, layer in zip(modules._modules.values(), layers, strict=True))
        return layers if are_there and not any(map(has_own_hook, layers)) else None

    def _parts(self, layers: Sequence[Any], x: Tensor) -> list[PartsOfLayer] | None:
        """Return the parts of all layers; None where they do not all compute as they did when they were known."""
        state, like, first = self._state, Like(x), layers[0].self_attn
        if state.refusing and self._part(layers[state.refusing], first, x, like) is None:
            return None
        parts: list[PartsOfLayer] = []
        for number, layer in enumerate(layers):
            part = self._part(layer, first, x, like)
            if part is None or part.head_dim != (parts or [part])[0].head_dim:
                state.refusing = number
                return None
            parts.append(part)
        state.refusing = 0
        return parts

    def _part(self, layer: Any, first: Any, x: Tensor, like: Like) -> PartsOfLayer | None:
        """Return the parts of a layer whose attention is of the same kind as `first`; None where it computes by itself."""
        value = value_of(layer)
        if (
            not isinstance(value, CompiledLayer)
            or getattr(value.ahead, "func", None) != self.computed
            or not has_forward(layer, layer_forward.forward_of_layer)
            or type(layer.self_attn) is not type(first)
            or layer.self_attn.config is not first.config
        ):
            return None
        part = parts_of_layer(value, layer, x, like)
        return part if part is not None and can_be_program(part, x.dtype) else None

    def _attends(self, layer: Any) -> bool:
        """Whether attention of a layer is what the kernel computes, and turned by what is known."""
        if layer is None:
            return False
        value, module = value_of(layer), layer._modules.get(layer_forward.ATTENTION)
        if not isinstance(value, CompiledLayer) or module is None or type(module).forward is not value.attention:
            return False
        source = value.attends.__globals__
        function = source["ALL_ATTENTION_FUNCTIONS"].get_interface(
            module.config._attn_implementation, source["eager_attention_forward"]
        )
        return (
            function is self._attention.function
            and self._attention.is_computed_so()
            and is_torchs_own()
            and is_unchanged(source, (value.turn, value.half))
        )

    def _program(self, parts: Sequence[PartsOfLayer], kind: StepKind) -> StackProgram:
        key = (kind, *(part.key() for part in parts))
        programs = self._state.programs
        program = programs.pop(key, None) or StackProgram(parts, kind)
        programs[key] = program  # behind those that were used before
        if len(programs) > _MOST_PROGRAMS:
            del programs[next(iter(programs))]
        return program


def stack_layers(model: nn.Module, attention: Attention) -> int:
    """Have the decoder layers of a model computed together where that can be; return of how many.

    Results have the bits of before. Layers that are not called one after the other, with nothing in between, compute by themselves.

    Args:
        model: Changed in place. Its layers are computed in one go each before: see `compile_layers`.
        attention: What attention of one row is computed by.
    """
    count = 0
    for modules in model.modules():
        if not isinstance(modules, nn.ModuleList):
            continue
        layers: list[nn.Module | None] = list(modules)  # a list of torch's may have empty places
        values = [value_of(layer) for layer in layers if layer is not None]
        if 1 < len(values) == len(modules) and all(isinstance(value, CompiledLayer) for value in values):
            stack = DecoderStack(modules, attention, values[0].cache)
            for number, (layer, value) in enumerate(zip(modules, values, strict=True)):
                put_on(layer, replace(value, ahead=partial(stack.computed, number)), layer_forward.forward_of_layer)
            count += len(values)
    return count


def _is_plain_step(x: Tensor, arguments: dict[str, Any], cache_name: str) -> bool:
    """Whether layers get one position, for which no mask says what it may see, and a cache of transformers' own."""
    cache: Any = arguments.get(cache_name)
    tables = arguments.get(_TABLES)
    return (
        type(x) is Tensor
        and x.dim() == 3
        and x.shape[1] == 1
        and x.is_contiguous()
        and arguments.get(_MASK) is None
        and type(cache) is cu.DynamicCache
        and not cache.offloading
        and "update" not in cache.__dict__
        and type(cache).update is _CACHE_UPDATE
        and type(tables) is tuple
        and len(tables) == 2
        and all(
            value is None or value is False or name in _READ or name == cache_name for name, value in arguments.items()
        )
    )


def _layers_of_cache(cache: Any, layers: Sequence[Any]) -> list[Any] | None:
    """Return the layer of a cache that each layer has for itself, of one length; None where attention is not to read these."""
    numbers = [getattr(layer._modules.get(layer_forward.ATTENTION), "layer_idx", None) for layer in layers]
    if not all(type(number) is int and 0 <= number < len(cache.layers) for number in numbers):
        return None
    of_cache = [cache.layers[number] for number in numbers]
    is_one_each = len({id(layer) for layer in of_cache}) == len(layers)
    if not is_one_each or not all(map(has_steps_alone, of_cache)):
        return None
    length, *others = {layer.keys.shape[2] for layer in of_cache}
    return None if others or length + 1 < LEAST_POSITIONS else of_cache


def _places(
    of_cache: Sequence[Any], parts: Sequence[PartsOfLayer], kind: tuple[int, torch.dtype]
) -> list[PlaceBehind] | None:
    """Return where each layer's keys and values are written; None where some can not be."""
    places: list[PlaceBehind] = []
    for layer, part in zip(of_cache, parts, strict=True):
        place = place_behind(layer, (kind[0], part.shared, part.head_dim), kind[1])
        if place is None:
            return None
        places.append(place)
    return places


def _begins(
    program: StackProgram, x: Tensor, tables: tuple[Tensor, Tensor], places: Sequence[PlaceBehind], results: Sequence[Tensor]
) -> dict[str, int]:  # fmt: skip
    positions = places[0].length + 1
    begins = {
        "scratch": room(program.bytes_for(positions)), "x": x.data_ptr(), "cos": tables[0].data_ptr(),
        "sin": tables[1].data_ptr(), "positions": positions,
    }  # fmt: skip
    for number, (place, result) in enumerate(zip(places, results, strict=True)):
        begins[f"out {number}"] = result.data_ptr()
        begins[f"keys {number}"], begins[f"values {number}"] = place.keys, place.values
        begins[f"new keys {number}"], begins[f"new values {number}"] = place.new_keys, place.new_values
        begins[f"key batch {number}"], begins[f"key head {number}"], _ = place.key_strides
        begins[f"value batch {number}"], begins[f"value head {number}"], _ = place.value_strides
    return begins


def _strides(table: Tensor) -> tuple[int, int]:
    return table.stride(0) if table.shape[0] > 1 else 0, table.stride(1)


def _has_bits_of(x: Tensor, copy: Tensor) -> bool:
    return torch.equal(x.view(torch.int16), copy.view(torch.int16))
