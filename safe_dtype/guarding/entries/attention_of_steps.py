"""Steps compute attention in the quickest form that there is for it, in models that were planned for a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import AttentionInterface

from ...decoding import Attention, attention_by_rows, can_be_in_chunks, is_quicker_by_rows, stack_layers
from ...facts import BFLOAT16, FLOAT16
from ...kernels.attention_rows import attend_rows
from ...models.wrapped_methods import wrap_method
from ..state import Guard, here

_ASKED = "get_interface"  # the first releases of transformers 5 have none: there attention stays theirs


def quicken_attention(guard: Guard, model: nn.Module) -> None:
    """Have attention computed in the steps of a model that was planned for a CPU as its plan says.

    One row in 16 bit by `attention_by_rows`, where the plan has routes, chosen by their measured speed; a prompt in chunks,
    where these were. A result is within one rounding of torch's own. Decoder layers that are computed in one go each are
    computed together where attention is by rows. `transformers.AttentionInterface` is asked as ever, and
    hands out another function inside these steps.
    """
    plan = guard.plan
    if plan is None or plan.routes is None or plan.device != "cpu":
        return
    guard.attends_by_rows = plan.storage in (BFLOAT16, FLOAT16)
    guard.attends_in_chunks = plan.routes.chunks
    if _is_quickened(guard) and hasattr(AttentionInterface, _ASKED):
        wrap_method(AttentionInterface, _ASKED, _quickened, guard)
    if guard.attends_by_rows:
        stack_layers(model, Attention(_attention, _is_by_rows))


def _quickened(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_interface(self: Any, *args: Any, **kwargs: Any) -> Any:
        function, steps = original(self, *args, **kwargs), here.running
        # Somebody else's function stays theirs.
        is_ours = function is sdpa_attention_forward and bool(steps) and _is_quickened(steps[-1][0])
        return _attention if is_ours else function

    return get_interface


def _is_quickened(guard: Guard) -> bool:
    return guard.attends_by_rows or guard.attends_in_chunks


def _is_by_rows() -> bool:
    """Whether the step that runs now computes attention of one row by `attention_by_rows`."""
    steps = here.running
    return bool(steps) and steps[-1][0].attends_by_rows


def _attention(  # noqa: PLR0913  (the arguments are transformers')
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, dropout: float = 0.0,
    scaling: float | None = None, is_causal: bool | None = None, **kwargs: Any,  # noqa: FBT001
) -> tuple[Any, Any]:  # fmt: skip
    """Compute attention as `sdpa_attention_forward` would, whose arguments it has."""
    steps = here.running
    if (
        steps
        and not dropout
        and kwargs.get("position_bias") is None
        and kwargs.get("cache") is None
        and kwargs.get("softcap") is None
        and not kwargs.get("output_attentions")
    ):
        guard = steps[-1][0]
        if guard.attends_by_rows and is_quicker_by_rows(query, key, value, attention_mask):
            return attention_by_rows(query, key, value, attention_mask, scaling), None
        if guard.attends_in_chunks and can_be_in_chunks(query, key, value, attention_mask):
            causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
            return attend_rows(query, key, value, attention_mask, is_causal=causal, scale=scaling), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs)  # type: ignore[no-any-return]
