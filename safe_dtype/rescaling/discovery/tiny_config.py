"""Any config of transformers -> tiny configs of the same architecture, by what its keys mean.

No model is known by name. Sizes shrink in proportion, so that what is equal (or a multiple) in the real config is so
in the tiny one; heads keep their ratio; layers of every kind are kept; all else stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from transformers import PretrainedConfig

from .config_keys import (
    AT_MOST,
    EXPERT_GROUPS,
    EXPERTS,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    LATENT,
    LAYERS,
    TOKEN,
    VOCABULARY,
    WHEN_MISSING,
    WIDTH,
    first_count,
    hidden_size,
    is_count,
)
from .tiny_heads import Sizing, Widths, tiny_heads
from .tiny_layers import KeptLayers, keep_layers

VOCABULARY_SIZE = 96
FIRST_TOKEN = 8  # no key of a tiny config names this id or one above it
_SPECIAL_TOKEN = 3  # what special tokens become whose id is above that
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_SPEC = "_heterogeneity_spec"  # where transformers keeps what a config says of single layers

# Tried in this order until one works: modelling code has demands that no key of a config tells.
_SIZINGS = (
    Sizing(),
    Sizing(most_heads=4),
    Sizing(most_heads=4, square=True),
    Sizing(of_a_kind=2),
    Sizing(complete=True),
    Sizing(complete=True, decoder=True),
)


def tiny_configs(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """Yield tiny versions of `config`, the most faithful first. `config` stays as it is."""
    for sizing in _SIZINGS:
        tiny = copy.deepcopy(config)
        hiddens: dict[int, int] = {}
        # First the hidden sizes of all parts: one of them may name that of another.
        parts = [(part, *tiny_heads(vars(part), parent, hiddens, sizing)) for part, parent in _parts(tiny, 0)]
        for part, widths, changed in parts:
            _shrink(part, widths, changed, sizing)
        yield tiny


def _parts(config: PretrainedConfig, parent: int) -> Iterator[tuple[PretrainedConfig, int]]:
    """Yield a config and those within it, each with the hidden size of the one around it."""
    yield config, parent
    values = vars(config)
    within = [key for key, value in values.items() if isinstance(value, PretrainedConfig)]
    for key in sorted(within, key=lambda key: not key.startswith(("text", "decoder"))):  # what speaks sets the sizes
        yield from _parts(values[key], hidden_size(values) or parent)


def _shrink(config: PretrainedConfig, widths: Widths, changed: dict[str, Any], sizing: Sizing) -> None:
    """Shrink one config, in place; `changed` is what has been chosen already."""
    values = dict(vars(config))
    spec = values.get(_SPEC)
    kept_layers = keep_layers(values, spec.per_layer_overrides if spec else {}, of_a_kind=sizing.of_a_kind)
    values |= kept_layers.values(values)
    dims = _rotated(values, changed, widths)
    for key, value in values.items():
        if key in changed:
            continue
        if isinstance(value, dict) and key.startswith("rope_"):
            changed[key] = _rope(value, dims)
        elif key == "rotary_dim" and is_count(value) and dims[0]:
            changed[key] = value * dims[1] // dims[0]
        elif (tiny := _tiny_value(key, value, widths)) is not None:
            changed[key] = tiny
    changed |= _depending(values, changed)
    if spec:
        changed[_SPEC] = _tiny_spec(spec, kept_layers, values, changed)
    if sizing.complete:
        changed |= _missing(values | changed, decoder=sizing.decoder)
    # Past __setattr__, which validates one key at a time: a config that is half tiny is not valid.
    config.__dict__.update(values | changed)


def _tiny_value(key: str, value: Any, widths: Widths) -> Any:
    """Return the tiny value of one key, None where it stays."""
    if isinstance(value, list | tuple):
        tiny = [_tiny_value(key, one, widths) for one in value if is_count(one)]
        return type(value)(tiny) if tiny and None not in tiny and len(tiny) == len(value) else None
    if isinstance(value, dict) and key in AT_MOST:
        return {kind: min(one, AT_MOST[key]) for kind, one in value.items()}
    if not is_count(value) or value <= 0 or LAYERS.fullmatch(key):
        return None
    limit: int | None = AT_MOST.get(key)
    if key in LATENT:
        limit = max(8, value // 8)
    elif VOCABULARY.fullmatch(key):
        limit = VOCABULARY_SIZE
    elif TOKEN.fullmatch(key) and value >= FIRST_TOKEN:
        limit = _SPECIAL_TOKEN
    if limit is not None:
        return min(value, limit)
    return widths(value) if WIDTH.fullmatch(key) else None


def _rotated(values: Mapping[str, Any], changed: Mapping[str, Any], widths: Widths) -> tuple[int, int]:
    """Return the head dimension, real and tiny, that rotary embeddings are made for; zeros without heads."""
    key = first_count(values, ("qk_rope_head_dim", "head_dim", "kv_channels"))
    if key:
        return values[key], changed.get(key) or min(values[key], max(8, values[key] // 8))
    heads = next((key for key in changed if HEADS.fullmatch(key)), None)
    return (widths.hidden // values[heads], widths.tiny_hidden // changed[heads]) if heads else (0, 0)


def _rope(rope: Mapping[str, Any], dims: tuple[int, int]) -> dict[str, Any]:
    """Shrink what depends on the head dimension and the length; `rope` may be nested by kind of layer."""
    real, tiny = dims
    changed = dict(rope)
    for key, value in rope.items():
        if isinstance(value, dict):
            changed[key] = _rope(value, dims)
        elif key == "original_max_position_embeddings" and value:
            changed[key] = min(value, AT_MOST[key])
        elif isinstance(value, list) and value and real:
            if key.endswith("section"):
                changed[key] = _split(sum(value) * tiny // real, value)
            elif key.endswith("factor"):
                changed[key] = value[: max(1, len(value) * tiny // real)]
    return changed


def _split(total: int, shares: list[int]) -> list[int]:
    """Split `total` in about these shares, none of them empty where it is large enough."""
    parts = [max(1, total * share // sum(shares)) for share in shares]
    parts[parts.index(max(parts))] += total - sum(parts)
    return parts


def _depending(values: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """Return what follows from other tiny values, as it does in the real config."""
    derived: dict[str, Any] = {}
    if any((values.get(key) or 0) > 1 for key in EXPERT_GROUPS):
        # Twice as many as else, so that there is a choice within a group as well.
        derived |= {key: min(values[key], 2 * AT_MOST[key]) for key in EXPERTS if is_count(values.get(key))}
    if is_count(values.get("image_size")):
        patch = values.get("patch_size")
        derived["image_size"] = min(values["image_size"], 2 * patch if is_count(patch) and patch > 8 else 32)
    nope, rope, value = ((values.get(key), changed.get(key)) for key in LATENT[:3])
    for key in ("qk_head_dim", "head_dim"):
        real = values.get(key)
        if rope[0] and rope[1] and is_count(real):
            sums = {(nope[0] or 0) + rope[0]: (nope[1] or 0) + rope[1], value[0]: value[1], rope[0]: rope[1]}
            derived[key] = sums.get(real) or real * rope[1] // rope[0]
    return derived


def _tiny_spec(spec: Any, kept_layers: KeptLayers, values: Mapping[str, Any], changed: Mapping[str, Any]) -> Any:
    """Shrink what is said of single layers as much as what is said of all."""

    def tiny(key: str, value: Any) -> Any:
        real, less = values.get(key), changed.get(key)
        return max(1, value * less // real) if is_count(value) and is_count(real) and is_count(less) else value

    overrides = {new: spec.per_layer_overrides.get(old) for new, old in enumerate(kept_layers.indices)}
    fewer = {new: {key: tiny(key, value) for key, value in one.items()} for new, one in overrides.items() if one}
    return replace(spec, per_layer_overrides=fewer)


def _missing(values: Mapping[str, Any], *, decoder: bool) -> dict[str, Any]:
    """Return values for what a config leaves open."""
    defaults: dict[str, Any] = {key: one for key, one in WHEN_MISSING.items() if key in values and values[key] is None}
    query = next((values[key] for key in values if HEADS.fullmatch(key) and is_count(values[key])), 1)
    defaults |= {key: query for key in values if values[key] is None and KV_HEADS.fullmatch(key)}
    defaults |= {
        key: hidden_size(values) // query for key in values if values[key] is None and HEAD_DIM.fullmatch(key)
    }
    if "pad_token_id" in values and values["pad_token_id"] is None:
        defaults["pad_token_id"] = 0
    if values.get("rope_parameters") == {}:
        defaults["rope_parameters"] = {kind: dict(_ROPE) for kind in values.get("layer_types") or ()} or dict(_ROPE)
    if values.get("rope_theta") is None:
        defaults["rope_theta"] = _ROPE["rope_theta"]
    if values.get("languages") and values.get("default_language") is None:
        defaults["default_language"] = values["languages"][0]
    if decoder and "is_decoder" in values:
        defaults["is_decoder"] = True
    return defaults
