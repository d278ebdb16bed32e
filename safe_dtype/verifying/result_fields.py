"""Which tensors in what a model returns are its results, and which are only returned beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from ..facts.cache_names import CACHE_NAMES

# What a later part of the same call was given, or auxiliary heads say in training: legally infinite (proposals outside
# an image), and on its way into the results where it matters.
_PARTS = ("encoder_", "enc_", "init_", "initial_reference", "intermediate_", "aux_", "auxiliary_", "denoising_")
_STATES = ("past_buckets_states", "shared_kv_states", "mems", "state")
_LAYERS = ("hidden_states", "attentions", "_states", "activations")
_WITH_NUMBERS, _STRIDED = (Tensor, nn.Parameter), torch.strided
_DEEPEST = 4  # containers in containers

Named = list[tuple[str, Tensor]]


class Role(Enum):
    """What a field of an output is to its reader."""

    RESULT = "what the model was asked for"
    LAYERS = "a result where it is one tensor; in a tuple it is one a layer, collected because a flag asked for them"
    PART = "what a part of the model gave to the next; a result only where there is nothing else"
    ASIDE = "a loss, or a state for the next call"


_ASIDE, _PART, _RESULT = Role.ASIDE, Role.PART, Role.RESULT  # asking the class takes longer than the rest of a look


class _Roles(dict[object, Role]):
    """What a field of each name is that was asked for: asked at every step, where a call takes longer."""

    def __missing__(self, field_name: object) -> Role:
        self[field_name] = role = _role(str(field_name))
        return role


_roles = _Roles()


def role_of(field_name: object) -> Role:
    """Return what a field of this name is, from the names that transformers' outputs have. A number names nothing."""
    return _roles[field_name]


def _role(name: str) -> Role:
    if "loss" in name.split("_") or name in _STATES or name.endswith(CACHE_NAMES):
        return Role.ASIDE
    if name.endswith("attentions") or "router" in name.split("_"):
        return Role.ASIDE
    if name.startswith(_PARTS):
        return Role.PART
    return Role.LAYERS if name.endswith(_LAYERS) or name.startswith("all_") else Role.RESULT


def results_of(output: Any) -> Named:
    """Return the floating and complex tensors that a caller uses in `output`, by dotted name, in its order.

    Looks into mappings, tuples and lists, dataclasses, and objects with tensors as attributes; a tensor alone is called
    "output", and what has no name is numbered. Left out are losses (the mean over no labels is NaN), caches and other
    states, attentions, routers' logits, tuples with one tensor a layer, and what a part of the model gave to the next
    (an encoder to its decoder); the last only where there is anything else.
    """
    results: Named = []
    parts: Named = []
    if isinstance(output, ModelOutput):
        # At every step: the method that an OrderedDict has of its own takes twice as long.
        _collect("", dict.items(output), results, parts, 0)
    elif not isinstance(output, dict) and isinstance(output, Tensor):
        return [("output", output)] if output.is_floating_point() or output.is_complex() else []
    else:
        _collect("", _items(output, 0), results, parts, 0)
    return results or parts


def _collect(path: str, items: Iterable[tuple[Any, Any]], results: Named, parts: Named, depth: int) -> None:
    for name, item in items:
        role = _roles[name]
        if role is _ASIDE or item is None:
            continue
        if isinstance(item, Tensor):
            if (dtype := item.dtype).is_floating_point or dtype.is_complex:
                (parts if role is _PART else results).append((path + str(name), item))
        elif role is _RESULT and depth < _DEEPEST and (inner := _items(item, depth + 1)):
            _collect(f"{path}{name}.", inner, results, parts, depth + 1)


def _items(value: Any, depth: int) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, (dict, Mapping)):  # what is a dict is told at once
        return value.items()
    if isinstance(value, (tuple, list)):
        return zip(getattr(value, "_fields", range(len(value))), value, strict=False)
    if isinstance(value, (str, bytes, int, float, nn.Module, type)) or "Cache" in type(value).__name__:
        return ()
    if is_dataclass(value):
        return [(field.name, getattr(value, field.name, None)) for field in fields(value)]
    # A distribution, say, or an output class of a library's own; deeper lies what is no output any more.
    own = getattr(value, "__dict__", None) if depth < 2 and not callable(value) else None
    return [(name, item) for name, item in own.items() if not name.startswith("_")] if own else ()


def is_hidden_state(name: str) -> bool:
    """Whether a result is a state that heads read, or one that a part of the model returns in an output of its own."""
    *around, last = name.split(".")
    is_of_a_part = any(part.endswith(("_output", "_outputs")) for part in around)
    return "hidden_state" in last or (is_of_a_part and (last == "pooler_output" or last.isdigit()))


def is_looked_at(tensor: Tensor) -> bool:
    """Whether there are numbers in `tensor` to look at: not in fake, meta, nested, sparse, float8 or empty ones."""
    return (
        type(tensor) in _WITH_NUMBERS
        and tensor.layout is _STRIDED
        and not tensor.is_nested
        and not tensor.is_meta
        and tensor.numel() > 0
        and tensor.itemsize > 1
    )
