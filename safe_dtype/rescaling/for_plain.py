"""A rescale that plain transformers computes too: in weights and config keys alone, with nothing of ours around them."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import RescaleError
from ..facts import Gauge, Move, Part, Rescale
from ..models.blocks import block_names
from ..models.load_lock import one_at_a_time
from . import fold_in, gauges_for
from .lost_bits import require_bits_kept

Numbers = dict[str, float]  # by the path of the module and the name of the attribute


@dataclass(frozen=True, slots=True)
class Folded:
    """What was folded into a model's weights and config."""

    rescale: Rescale
    config: Mapping[str, float]  # the keys that changed, dotted where they are in a part of the config
    untied: bool  # the head has a weight of its own now


def fold_for_plain(
    model: PreTrainedModel,
    rescale: Rescale,
    *,
    islands: Collection[str] = (),
    computing: AbstractContextManager[object] | None = None,
) -> Folded:
    """Fold `rescale` into `model` so that its weights and its config carry all of it; prove that nothing else changed.

    What a hook would do is done by a weight: the first block's input is what the embedding gives. An eps that a module
    keeps has to come from the config, where all the modules that one key feeds share it; those that the rescale leaves
    alone are moved along, where that is exact as well.

    Args:
        model: In bfloat16 or float32, as it was saved. It is of no use after a `RescaleError`.
        rescale: What the plan says.
        islands: Modules that go to float32.
        computing: A context for the proof: where the device cannot multiply in the model's dtype.

    Raises:
        RescaleError: If it cannot be said in weights and a config, a weight that is moved for that would lose too much in
            float16, or it is not exact in this model.
    """
    untied = False
    moved = _without_hooks(model, rescale)
    if moved is not rescale and (untied := _untie(model)):
        model.tie_weights()  # a model that ties whatever its config says is refused by the proof
    moved, config, changed = _through_the_config(model, moved)
    require_bits_kept(model, moved, islands)
    fold_in(model, moved, computing=computing)
    for (part, name), value in changed.items():
        setattr(dict(_parts(model.config))[part], name, value)
    return Folded(moved, config, untied)


def _without_hooks(model: PreTrainedModel, rescale: Rescale) -> Rescale:
    """Return `rescale` with the embedding multiplied in place of what the first blocks are given."""
    blocks = set(block_names(model))
    rescale = replace(rescale, shifts=tuple(one for one in rescale.shifts if not _begins_before(one[0], blocks)))
    hooks = {
        (part, target): exponent
        for (part, target, _), exponent in rescale.exponents().items()
        if part in (Part.INPUT, Part.OUTPUT)
    }
    if not hooks:
        return rescale
    if stray := [target for part, target in hooks if part is Part.OUTPUT or target not in blocks]:
        raise RescaleError(f"{stray[0]} would need a hook, which no checkpoint holds")
    if len(set(hooks.values())) > 1:
        raise RescaleError("what the first blocks are given moves by different powers")
    names = {id(module): name for name, module in model.named_modules()}
    embedding = f"{names[id(model.get_input_embeddings())]}.weight"
    without_inputs = tuple(
        (Gauge(gauge.name, tuple(move for move in gauge.moves if move.part is not Part.INPUT)), bits)
        for gauge, bits in rescale.shifts
    )
    into = Gauge("embedding", (Move(Part.WEIGHT, embedding, -1),))
    return Rescale((*without_inputs, (into, -next(iter(hooks.values())))), rescale.unproven)


def _begins_before(gauge: Gauge, blocks: set[str]) -> bool:
    """Whether a gauge makes embeddings smaller up to the first block: once their weight is, there is no need for it."""
    return any(move.part is Part.INPUT and move.power > 0 and move.target in blocks for move in gauge.moves)


def _untie(model: PreTrainedModel) -> bool:
    """Give the head a weight of its own where it shares the embedding's; return whether it did."""
    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    own: Any = getattr(head, "weight", None)
    if own is None or own is not embedding.weight:
        return False
    head.weight = nn.Parameter(own.detach().clone(), requires_grad=own.requires_grad)
    for _, config in _parts(model.config):
        if hasattr(config, "tie_word_embeddings"):
            config.tie_word_embeddings = False
    return True


def _through_the_config(
    model: PreTrainedModel, rescale: Rescale
) -> tuple[Rescale, dict[str, float], dict[tuple[str, str], float]]:
    """Return `rescale`, with what it takes that a config can say it, and the keys that say so."""
    exponents = {
        target: exponent for (part, target, _), exponent in rescale.exponents().items() if part is Part.NUMBER
    }
    now, missing = _numbers(model), set(exponents)
    lagging: dict[str, int] = {}
    changed: dict[tuple[str, str], float] = {}
    for part, name, value, fed in _keys(model, {now[target] for target in exponents}):
        wanted = {exponents[target] for target in fed if target in exponents}
        if not wanted:
            continue
        if len(wanted) > 1:
            raise RescaleError(f"{name} feeds numbers that move by different powers")
        (exponent,) = wanted
        changed[part, name] = value * 2.0**exponent
        lagging |= {target: exponent for target in fed if target not in exponents}
        missing -= fed
    if missing:
        raise RescaleError(f"{min(missing)} and {len(missing) - 1} others come from no key of the config")
    rescale = Rescale((*rescale.shifts, *_moving_along(model, lagging)), rescale.unproven)
    return rescale, {f"{part}.{name}".lstrip("."): value for (part, name), value in changed.items()}, changed


def _moving_along(model: PreTrainedModel, lagging: dict[str, int]) -> Iterator[tuple[Gauge, int]]:
    """Yield exact gauges that move the numbers in `lagging` by their exponents, and what stands before them."""
    for gauge in gauges_for(model).gauges if lagging else ():
        powers = {one.target: one.power for one in gauge.moves if one.part is Part.NUMBER}
        if not powers or not powers.keys() <= lagging.keys():
            continue
        if any(one.part in (Part.INPUT, Part.OUTPUT) for one in gauge.moves):
            continue
        bits = {lagging[target] / power for target, power in powers.items()}
        if len(bits) == 1 and (bit := bits.pop()).is_integer():
            yield gauge, int(bit)
            lagging = {target: one for target, one in lagging.items() if target not in powers}
    if lagging:
        raise RescaleError(f"{min(lagging)} shares a key of the config with numbers that move, and cannot move along")


def _keys(model: PreTrainedModel, values: set[float]) -> Iterator[tuple[str, str, float, set[str]]]:
    """Yield every key of the config with one of these values, and the numbers of the model that it feeds.

    They are found by making the model without weights from a config where the key is twice as large.
    """
    before = _numbers_of(model, model.config)
    for part, config in _parts(model.config):
        for name, value in vars(config).items():
            if isinstance(value, float) and value in values:
                other = copy.deepcopy(model.config)
                setattr(dict(_parts(other))[part], name, 2 * value)
                after = _numbers_of(model, other)
                fed = {target for target, one in before.items() if one and after.get(target) == 2 * one}
                if fed:
                    yield part, name, value, fed


def _numbers_of(model: PreTrainedModel, config: PreTrainedConfig) -> Numbers:
    with one_at_a_time(), torch.device("meta"):
        return _numbers(type(model)(copy.deepcopy(config)))


def _numbers(model: nn.Module) -> Numbers:
    return {
        f"{path}.{name}": value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, float)
    }


def _parts(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a config and the configs in it, each with its dotted path."""
    yield path, config
    for name in getattr(config, "sub_configs", None) or ():
        if isinstance(inner := getattr(config, name, None), PreTrainedConfig):
            yield from _parts(inner, f"{path}.{name}".lstrip("."))
