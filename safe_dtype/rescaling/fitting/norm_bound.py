"""How large a hidden state can become, whatever the input: from the weights alone, where norms are all that writes it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...facts import Gauge, Part

logger = logging.getLogger(__name__)

_FAR = 2.0**12  # so far out an eps is nothing beside the square of an input
_CHUNK = 1024  # rows at a time


def certified_bound(model: nn.Module, gauge: Gauge, batch: Mapping[str, Any]) -> float | None:
    """Return a bound of |hidden state| in the stack that `gauge` rescales, for every input of token ids.

    Sandwich norms (Gemma 2 and 3, GLM 4, OLMo 2) hand on what a norm returns: whatever goes in, |gain| times the root
    of the width is its end. Where linear layers write as well there is a bound, too, but 20 to 30 times too large
    (measured), so there is None here. The bound does not count the rounding of sums: one bit covers it.

    Args:
        model: In bfloat16 or float32, without the gauge.
        gauge: Of its hidden states.
        batch: Inputs of one call, which shows what runs how often.
    """
    start = next((move.target for move in gauge.moves if move.part is Part.INPUT and move.power == -1), None)
    writers = {
        move.target if move.part is Part.OUTPUT else move.target.rpartition(".")[0]
        for move in gauge.moves
        if move.power == -1 and move.part in (Part.WEIGHT, Part.OUTPUT)
    }
    there = dict(model.named_modules())
    modules = {name: there[name] for name in writers if name in there}
    if (
        start not in there
        or len(modules) < max(1, len(writers))
        or any(one.dim() > 1 for it in modules.values() for one in it.parameters())
    ):
        return None
    with _watched(model, str(start), modules) as seen, torch.inference_mode():
        model(**batch)
    embedding = _embedding(model)
    if embedding is None or not seen.starts_with_embedding or any(seen.calls[name] == 0 for name in modules):
        return None
    with torch.inference_mode():
        bound = _largest_rows(embedding)
        for name, module in modules.items():
            bound = bound + seen.calls[name] * _largest_returned(module, seen.widths[name], bound)
    largest = float(bound.max())
    logger.info("%s: no hidden state beyond %.3g, whatever the input", gauge.name, largest)
    return largest


class _Seen:
    """What one call showed."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.widths: dict[str, int] = {}
        self.embedded: Tensor | None = None
        self.starts_with_embedding = False


@contextmanager
def _watched(model: nn.Module, start: str, modules: Mapping[str, nn.Module]) -> Iterator[_Seen]:
    seen = _Seen()

    def embedded(_module: nn.Module, _args: Any, output: Tensor) -> None:
        seen.embedded = output.clone()

    def started(_module: nn.Module, args: Any, kwargs: Any) -> None:
        first = next(
            (one for one in (*args, *kwargs.values()) if isinstance(one, Tensor) and one.is_floating_point()), None
        )
        same = first is not None and seen.embedded is not None and torch.equal(first, seen.embedded)
        seen.starts_with_embedding = same

    def returned(name: str) -> Any:
        def count(_module: nn.Module, _args: Any, output: Tensor) -> None:
            seen.calls[name] += 1
            seen.widths[name] = output.shape[-1]

        return count

    handles = [model.get_submodule(start).register_forward_pre_hook(started, with_kwargs=True)]
    handles += [module.register_forward_hook(returned(name)) for name, module in modules.items()]
    embedding = _embedding(model)
    if embedding is not None:
        handles.append(embedding.register_forward_hook(embedded))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _embedding(model: Any) -> Any:
    embedding = model.get_input_embeddings()
    return embedding if isinstance(embedding, nn.Embedding) else None


def _largest_rows(embedding: Any) -> Tensor:
    """Return the largest |number| of each channel over the whole vocabulary, as the module returns it."""
    device = embedding.weight.device
    largest = torch.zeros(embedding.embedding_dim, device=device)
    for first in range(0, embedding.num_embeddings, _CHUNK):
        ids = torch.arange(first, min(first + _CHUNK, embedding.num_embeddings), device=device)
        largest = torch.maximum(largest, embedding(ids).float().abs().amax(0))
    return largest


def _largest_returned(norm: nn.Module, width: int, like: Tensor) -> Tensor:
    """Return the largest |number| of each channel that a norm can return: where the input is in that channel alone."""
    dtype = next((one.dtype for one in norm.parameters()), torch.float32)
    largest_seen = torch.zeros(width, device=like.device)
    for first in range(0, width, _CHUNK):
        rows = torch.arange(first, min(first + _CHUNK, width), device=like.device)
        inputs = torch.zeros(len(rows), width, dtype=dtype, device=like.device)
        inputs[torch.arange(len(rows)), rows] = _FAR
        for sign in (1.0, -1.0):
            largest = norm(inputs * sign).float().abs().amax(0)
            largest_seen = torch.maximum(largest_seen, largest)
    return largest_seen
