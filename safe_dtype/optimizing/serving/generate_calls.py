"""Which calls of `generate` a compiled step is for, and what transformers is told to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...facts.cache_names import CACHE_NAMES
from ..graphs.static_steps import compile_config, static_length
from ..nouns.job import Dynamic
from ..nouns.record import Optimization
from .compatibility import dynamic_of

# Each asks `generate` for another loop, another cache or other inputs than the step was compiled for.
_OF_ANOTHER_KIND = (
    "assistant_model", "cache_implementation", "compile_config", "custom_generate", "disable_compile",
    "inputs_embeds", "prefill_chunk_size", "prompt_lookup_num_tokens", "synced_gpus", *CACHE_NAMES,
)  # fmt: skip
_ONE_BY_DEFAULT = ("num_beams", "num_return_sequences")
_DEFAULT_NEW_TOKENS = 20  # of transformers


def settings(model: Any, record: Optimization, device: str) -> dict[str, Any]:
    """Return the arguments that have `generate` use a cache of fixed length and compile its step."""
    return {
        "cache_implementation": "static",
        "max_cache_len": static_length(model, dynamic_of(record)),
        "compile_config": compile_config(model, device),
    }


def unlike_compiled(model: Any, record: Optimization, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Return why a call of `generate` does not go by the compiled step; empty where it does.

    Args:
        model: The model.
        record: Of its optimization: the batches tell for how many rows it was verified.
        args: Of the call: the prompt, and a generation config.
        kwargs: Of the call.
    """
    wanted = _Wanted(model, args, kwargs)
    if named := next((name for name in _OF_ANOTHER_KIND if wanted.setting(name)), ""):
        return f"the call has {named}"
    if wanted.setting("use_cache") is False:
        return "the call has use_cache=False"
    if named := next((name for name in _ONE_BY_DEFAULT if (wanted.setting(name) or 1) > 1), ""):
        return f"the call has {named}={wanted.setting(named)}"
    prompt = wanted.prompt()
    if prompt is None:
        return "the call has no input_ids"
    dynamic = dynamic_of(record)
    sizes = _sizes(record, dynamic)
    if sizes and prompt.shape[0] not in sizes:
        return f"a batch of {prompt.shape[0]}; it was made for {', '.join(map(str, sorted(sizes)))}"
    length, most = wanted.length(prompt.shape[1]), static_length(model, dynamic)
    return f"up to {length} tokens; its cache holds {most}" if length > most else ""


class _Wanted:
    """What a call of `generate` asks for: by its arguments, else by its config, else by the model's."""

    def __init__(self, model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._args, self._kwargs = args, kwargs
        own = args[1] if len(args) > 1 else kwargs.get("generation_config")
        self._configs = [config for config in (own, model.generation_config) if config is not None]

    def setting(self, name: str) -> Any:
        """Return one setting; None where nobody says anything."""
        if (value := self._kwargs.get(name)) is not None:
            return value
        values = (getattr(config, name, None) for config in self._configs)
        return next((value for value in values if value is not None), None)

    def prompt(self) -> torch.Tensor | None:
        """Return the ids (batch, length) to go on from."""
        prompt = next((self._kwargs[name] for name in ("input_ids", "inputs") if name in self._kwargs), None)
        prompt = self._args[0] if self._args else prompt
        return prompt if isinstance(prompt, torch.Tensor) and prompt.dim() == 2 else None

    def length(self, prompt: int) -> int:
        """Return how long the text may become, in tokens."""
        if (new := self.setting("max_new_tokens")) is not None:
            return prompt + int(new)
        most = self.setting("max_length")
        return int(most) if most is not None else prompt + _DEFAULT_NEW_TOKENS


def _sizes(record: Optimization, dynamic: Dynamic) -> set[int]:
    """Return how many rows a batch may have; empty where the record does not say."""
    shapes = (batch.tensors.get("input_ids", {}).get("shape") for batch in record.batches)
    verified = {int(shape[0]) for shape in shapes if shape}
    if dynamic.batch is not None:
        low, high = dynamic.batch
        verified |= set(range(low, high + 1))
    return verified
