"""The cache that `generate` makes for a guarded model on a CPU keeps room ahead; whoever gets it in the end gets a plain one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers.cache_utils import Cache

from ...decoding import give_room, take_room
from ...facts.cache_names import cache_of
from ..state import guard_of


def grow_prepared(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `GenerationMixin._prepare_cache_for_generation`. A cache that the caller has passed in stays as it is."""

    def _prepare_cache_for_generation(
        self: Any, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        own = {id(value) for value in model_kwargs.values()}
        result = original(self, generation_config, model_kwargs, *args, **kwargs)
        if guard_of(self) is not None and not self.training and self.device.type == "cpu":
            limit = kwargs.get("max_cache_length", args[2] if len(args) > 2 else None)
            for value in model_kwargs.values():
                if isinstance(value, Cache) and id(value) not in own:
                    give_room(value, limit)
        return result

    return _prepare_cache_for_generation


def with_plain_cache(output: Any) -> Any:
    """Return what `generate` has returned, its cache, if any, one of transformers' own."""
    cache = cache_of(output)
    if cache is not None:
        take_room(cache)
    return output
