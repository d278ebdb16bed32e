"""Which layers of a config a tiny version of it keeps: at least one of every kind, at least three in all."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .config_keys import LAYERS, is_count

LEAST_LAYERS = 3
MOST_LAYERS = 12

# Layers of index below the value differ from those above it.
_FIRST = re.compile(r"first_k_dense_replace|num_dense_layers|moe_layer_start_index|max_window_layers|num_hash_layers")
_LAST = re.compile(r"num_kv_shared_layers")  # the last so many layers differ
_LAST_INDEX = re.compile(r"moe_layer_end_index")
# Every so many layers one is different: as a list of the layers says as well, where there is one ...
_LISTED_PERIOD = re.compile(
    r"\w*(attn_layer_period|every_n_layers|layer_interval|window_pattern|layer_group_size|attention_interval)"
)
# ... or in the modelling code alone.
_PERIOD = re.compile(
    r"\w*(sparse_step|layer_period|layer_freq|layer_step|attention_frequency|rescale_every|attn_res_block)"
)
_INDICES = re.compile(r".*(layers|idxs|indexes|indices|layer_ids)")


@dataclass(frozen=True, slots=True)
class KeptLayers:
    """The layers that are kept, of so many, and how what a config says of layers reads afterwards."""

    indices: tuple[int, ...]  # rising
    count: int  # of the real config

    def values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what changes of a config's `values`."""
        changed: dict[str, Any] = {}
        for key, value in values.items():
            if LAYERS.fullmatch(key) and is_count(value):
                own = len(self.indices) if value == self.count else min(value, len(self.indices))
                changed[key] = own
            elif _names_layers(key, value, self.count):
                changed[key] = type(value)(new for new, old in enumerate(self.indices) if old in value)
            elif _per_layer(value, self.count):
                changed[key] = type(value)(value[index] for index in self.indices)
            elif is_count(value) and _FIRST.fullmatch(key):
                changed[key] = sum(index < value for index in self.indices)
            elif is_count(value) and _LAST.fullmatch(key):
                changed[key] = sum(index >= self.count - value for index in self.indices)
            elif is_count(value) and _LAST_INDEX.fullmatch(key):
                changed[key] = sum(index <= value for index in self.indices) - 1
        return changed


def keep_layers(values: Mapping[str, Any], overrides: Mapping[int, Any], *, of_a_kind: int = 1) -> KeptLayers:
    """Choose the layers to keep.

    Args:
        values: What the config says.
        overrides: What it says otherwise of single layers, by their index.
        of_a_kind: How many of each kind, where there are that many.
    """
    count = _count(values)
    kinds = [_kind(values, overrides, index, count) for index in range(count)]
    chosen = {index for index, kind in enumerate(kinds) if kinds[:index].count(kind) < of_a_kind}
    periods = [
        value
        for key, value in values.items()
        if is_count(value)
        and (_PERIOD.fullmatch(key) or (_LISTED_PERIOD.fullmatch(key) and not _repeats(kinds, value)))
    ]
    if max(periods, default=0) > 1:
        # What differs is counted from the first layer: only a beginning keeps it, until the periods have met. One layer
        # more, since the first may be special in another way as well.
        needed = max(LEAST_LAYERS, max(chosen) + 1, math.lcm(*periods) + 1)
        return KeptLayers(tuple(range(min(count, max(MOST_LAYERS, max(chosen) + 1), needed))), count)
    # Code may treat the first or the last layer as special: another one of their kind stays beside them.
    inside = [index for index in range(1, count - 1) if kinds[1:index].count(kinds[index]) < of_a_kind]
    chosen = {index for index in (0, *inside, count - 1) if 0 <= index < count}
    spare = (index for index in range(count) if index not in chosen)
    more = [index for index, _ in zip(spare, range(LEAST_LAYERS - len(chosen)), strict=False)]
    return KeptLayers(tuple(sorted(chosen | set(more))), count)


def _count(values: Mapping[str, Any]) -> int:
    counts = {key: value for key, value in values.items() if LAYERS.fullmatch(key) and is_count(value)}
    if not counts:  # the list of its layers is all that some configs say
        return max((len(values[key]) for key in ("layer_types", "layers_block_type") if values.get(key)), default=0)
    return counts.get("num_hidden_layers") or max(counts.values())


def _kind(values: Mapping[str, Any], overrides: Mapping[int, Any], index: int, count: int) -> Hashable:
    traits: list[Any] = [repr(overrides.get(index))]
    for key, value in values.items():
        if _names_layers(key, value, count):
            traits.append(index in value)
        elif _per_layer(value, count):
            traits.append(repr(value[index]))
        elif is_count(value):
            traits += [index < value] if _FIRST.fullmatch(key) else []
            traits += [index >= count - value] if _LAST.fullmatch(key) else []
            traits += [index > value] if _LAST_INDEX.fullmatch(key) else []
    return tuple(traits)


def _repeats(kinds: Sequence[Hashable], period: int) -> bool:
    """Whether what is said of each layer already repeats with this period."""
    same = sum(a == b for a, b in zip(kinds, kinds[period:], strict=False))
    return len(set(kinds)) > 1 and same >= len(kinds) - 2 * period


def _per_layer(value: object, count: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == count > 1


def _names_layers(key: str, value: object, count: int) -> bool:
    return (
        isinstance(value, list | tuple)
        and _INDICES.fullmatch(key) is not None
        and all(is_count(index) and 0 <= index < count for index in value)
        and list(value) == sorted(set(value))
    )
