"""A config of a model of stages, as convolutional backbones are: every width an eighth, so that all of them still fit each other."""

from __future__ import annotations

import copy
import re
from typing import Any

from transformers import PreTrainedConfig

from safe_dtype.rescaling.discovery.config_keys import HIDDEN, LAYERS, TOKEN, VOCABULARY, WIDTH, is_count
from safe_dtype.rescaling.discovery.tiny_config import VOCABULARY_SIZE
from safe_dtype.rescaling.discovery.twin import configs_in

_DIVISOR = 8
_LEAST = 24  # what is narrower stays: colours, points, groups of channels
_OF_STAGES = re.compile(
    r"\w*(hidden_sizes|embed_dims|embed_dim_per_stage|channel_list|channels|embedding_size|dims|num_filters|filters|hidden_dim)"
)
_COUNTS_OF_STAGES = re.compile(
    r"depths|blocks_per_stage|stage_num_blocks|stage_numb_of_layers|num_block_repeats|layers_per_stage"
)
_MOST_LAYERS = 4


def uniform(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return `config` with every width an eighth of what it is, and few layers."""
    tiny = copy.deepcopy(config)
    for part in configs_in(tiny):
        values = vars(part)
        for key, value in values.items():
            if VOCABULARY.fullmatch(key) and is_count(value):
                values[key] = min(value, VOCABULARY_SIZE)
            elif TOKEN.fullmatch(key) and is_count(value):
                values[key] = min(value, VOCABULARY_SIZE - 1)
            elif key in HIDDEN or WIDTH.fullmatch(key) or _OF_STAGES.fullmatch(key):
                values[key] = _narrow(value)
            elif _COUNTS_OF_STAGES.fullmatch(key) and isinstance(value, list | tuple):
                values[key] = type(value)(min(count, 1) for count in value)
            elif LAYERS.fullmatch(key) and is_count(value) and "_out_indices" not in values:
                values[key] = min(value, _MOST_LAYERS)
    return tiny


def _narrow(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_narrow(one) for one in value)
    if not is_count(value) or value < _LEAST or value % _DIVISOR:
        return value
    return value // _DIVISOR
