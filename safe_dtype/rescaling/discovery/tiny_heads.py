"""The heads of a tiny model, their dimension and its hidden size: chosen together, in the ratios of the real one."""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .config_keys import HEAD_DIM, HEADS, KV_HEADS, MAMBA_HEAD_DIM, MAMBA_HEADS, first_count, hidden_size, is_count


@dataclass(frozen=True, slots=True)
class Sizing:
    """One way to choose the tiny sizes."""

    most_heads: int = 8
    square: bool = False  # hidden size = heads * head_dim, whatever the real config says
    of_a_kind: int = 1  # layers kept of every kind
    complete: bool = False  # fill in what the config leaves open
    decoder: bool = False  # what may be an encoder or a decoder is a decoder


@dataclass(frozen=True, slots=True)
class Widths:
    """How widths shrink: what is known to correspond, and the proportion for all else."""

    hidden: int
    tiny_hidden: int
    known: Mapping[int, int]

    def __call__(self, width: int) -> int:
        """Return a tiny width: equal to others, or a multiple, where the real one is."""
        if width in self.known:
            return self.known[width]
        if not self.hidden or width <= 8:
            return min(width, 64)
        scaled, rest = divmod(width * self.tiny_hidden, self.hidden)
        if not rest and not scaled % 4:
            return min(scaled, 8 * self.tiny_hidden)
        return max(8, min(-(-scaled // 8) * 8, 4 * self.tiny_hidden))


def tiny_heads(
    values: Mapping[str, Any], parent: int, hiddens: dict[int, int], sizing: Sizing
) -> tuple[Widths, dict[str, Any]]:
    """Choose the sizes of the attention of one config.

    Args:
        values: What the config says.
        parent: The hidden size of the config around it, for one that has none.
        hiddens: The tiny hidden size of each real one, of other parts of the same model; this part's is added.
        sizing: How to choose.

    Returns:
        How other widths of the config shrink, and the keys that change here.
    """
    hidden = hidden_size(values) or parent
    size = _tied_size(hidden, hiddens)
    changed: dict[str, Any] = {}
    inner: dict[int, int] = {}
    groups = {match[1] or "" for key, value in values.items() if is_count(value) and (match := HEADS.fullmatch(key))}
    for prefix in sorted(groups):
        query_keys, kv_keys, dim_keys = (_keys(values, meaning, prefix) for meaning in (HEADS, KV_HEADS, HEAD_DIM))
        query = values[query_keys[0]]
        kv = values[kv_keys[0]] if kv_keys else query
        dim = values[dim_keys[0]] if dim_keys else max(1, hidden // query)
        tiny_query, tiny_kv = _fewer(query, kv, sizing.most_heads)
        tiny_dim = 8 if tiny_query > 4 else 16 if tiny_query > 1 else 32
        if not prefix and is_count(values.get("v_head_dim")) and is_count(values.get("qk_rope_head_dim")):
            dim, dim_keys = values["v_head_dim"], []  # of latent attention, where head_dim means something else
            tiny_dim = max(8, dim // 8)
        square = sizing.square or abs(query * dim - hidden) < query
        if square and size:
            tiny_query, tiny_kv = (tiny_query, tiny_kv) if not size % (2 * tiny_query) else (4, 4)
            tiny_dim = size // tiny_query
        joined = tiny_query * tiny_dim
        size = size or (joined if square else _beside(joined, tiny_query, hidden / (query * dim)))
        inner |= {query * dim: joined, kv * dim: tiny_kv * tiny_dim}
        changed |= dict.fromkeys(query_keys, tiny_query) | dict.fromkeys(kv_keys, tiny_kv)
        changed |= {key: values[key] * tiny_dim // dim for key in dim_keys}
    size = size or 64
    if hidden:
        hiddens.setdefault(hidden, size)
    widths = Widths(hidden, size, ChainMap(hiddens, inner))
    return widths, changed | _mamba(values, widths) | _linear(values)


def _tied_size(hidden: int, hiddens: Mapping[int, int]) -> int:
    """Return the tiny hidden size that follows from another part of the model: equal, double or half; else 0."""
    if hidden in hiddens:
        return hiddens[hidden]
    for real, tiny in hiddens.items():
        if hidden == 2 * real:
            return 2 * tiny
        if 2 * hidden == real:
            return tiny // 2
    return 0


def _keys(values: Mapping[str, Any], meaning: re.Pattern[str], prefix: str) -> list[str]:
    """Return the keys of this meaning with this prefix, else those without any."""
    by_prefix: dict[str, list[str]] = {}
    for key, value in values.items():
        if is_count(value) and (match := meaning.fullmatch(key)):
            by_prefix.setdefault(match[1] or "", []).append(key)
    return by_prefix.get(prefix) or by_prefix.get("", [])


def _fewer(query: int, kv: int, most: int) -> tuple[int, int]:
    """Return few heads in the same ratio, where `most` query heads allow it.

    More than one key-value head where the real model has more, so that nothing is taken for multi-query attention.
    """
    if query % kv:
        return 4, 2
    ratio = query // kv
    if kv == 1:
        return min(query, 4), 1
    if ratio == 1:
        return min(query, 4), min(query, 4)
    if 2 * ratio <= most:
        return 2 * ratio, 2
    return (ratio, 1) if ratio <= most else (most, 2)


def _beside(joined: int, heads: int, ratio: float) -> int:
    """Return a hidden size of about `ratio` * `joined` and not equal to it, a multiple of the heads."""
    step = heads if heads % 2 == 0 else 2 * heads
    choices = [size for size in range(step, 65, step) if size != joined and size >= 32]
    even = [size for size in choices if size % 8 == 0] or choices or [joined]
    return min(even, key=lambda size: abs(size - ratio * joined))


def _mamba(values: Mapping[str, Any], widths: Widths) -> dict[str, Any]:
    """Choose the heads of a state space model beside attention: they share a multiple of the hidden size, or do not."""
    heads, dim = first_count(values, MAMBA_HEADS), first_count(values, MAMBA_HEAD_DIM)
    if not heads:
        return {}
    count = min(4, values[heads])
    if not dim:
        return {heads: count}
    real, expand = values[heads] * values[dim], values.get("mamba_expand") or 0
    joined = int(expand * widths.tiny_hidden) if real == expand * widths.hidden else count * 16
    same = {"mamba_d_ssm": joined} if values.get("mamba_d_ssm") == real else {}
    return {heads: count, dim: joined // count} | same


def _linear(values: Mapping[str, Any]) -> dict[str, Any]:
    """Choose the heads of linear attention: values have as many as keys, or a multiple."""
    changed: dict[str, Any] = {}
    for keys, of_values, least in (
        ("linear_num_key_heads", "linear_num_value_heads", 2),
        ("linear_key_head_dim", "linear_value_head_dim", 8),
    ):
        if is_count(values.get(keys)) and is_count(values.get(of_values)):
            changed |= {keys: least, of_values: least * min(4, max(1, values[of_values] // values[keys]))}
    return changed
