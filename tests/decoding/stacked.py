"""Small models whose decoder layers are computed together, and steps of theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from models.forwards.compiled import BF16, compile_all, model_of
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from safe_dtype.decoding import Attention, attention_by_rows, give_room, is_quicker_by_rows, stack_layers
from safe_dtype.facts import Dtype
from safe_dtype.models.block_layout import lay_out_in_codes
from safe_dtype.models.forwards.layer_forward import compile_layers

NAME = "by_rows_in_tests"


@contextmanager
def attention_registered() -> Iterator[None]:
    """Let models of these tests find their attention in transformers."""
    AttentionInterface.register(NAME, by_rows)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    yield
    ALL_ATTENTION_FUNCTIONS._global_mapping.pop(NAME)
    ALL_MASK_ATTENTION_FUNCTIONS._global_mapping.pop(NAME)


def by_rows(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, *args: Any, scaling: Any = None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Compute attention of one row as steps of a planned model do."""
    if is_quicker_by_rows(query, key, value, mask):
        return attention_by_rows(query, key, value, mask, scaling), None
    output, _ = sdpa_attention_forward(module, query, key, value, mask, *args, scaling=scaling, **kwargs)
    return output, None


def model_by_rows(name: str, *, stacked: bool = True, held: tuple[Dtype, Path] | None = None) -> Any:
    """Return a model whose layers are compiled, and computed together; its weights are `held` as codes, and lie in a folder."""
    model = model_of(name)
    if held is not None:  # only what lies in files is held as codes
        codes, folder = held
        model.save_pretrained(folder)
        model = type(model).from_pretrained(folder, dtype="auto").eval().requires_grad_(False)
        assert lay_out_in_codes(model, codes, wide=BF16).modules > 0
    model.config._attn_implementation = NAME
    compile_all(model)
    assert compile_layers(model, 8) == 2
    if stacked:
        assert stack_layers(model, Attention(by_rows, lambda: True)) == 2
    return model


def steps(
    model: Any, rows: int = 1, count: int = 4, *, between: Callable[[Any, Any], None] | None = None, **options: Any
) -> Tensor:
    """Return the logits of steps of `rows` sequences after a prompt; `between` gets the model and the cache in the middle."""
    torch.manual_seed(3)
    cache, ids = DynamicCache(config=model.config), torch.randint(0, 600, (rows, 40))
    give_room(cache, None)
    logits = []
    with torch.no_grad():
        model(ids, past_key_values=cache, use_cache=True)
        for number in range(count):
            if between is not None and number == count // 2:
                between(model, cache)
            logits.append(model(ids[:, :1], past_key_values=cache, use_cache=True, **options).logits)
    return torch.cat(logits, 1)
