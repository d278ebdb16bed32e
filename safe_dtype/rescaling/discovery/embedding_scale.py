"""Gauges of what an embedding is multiplied by, as in Gemma and Granite: that may leave the range before the first block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...facts import Gauge, Move, Part
from ..folding.scaled_numbers import numbers_of
from .knobs import is_eps_name
from .trace import first_given, unchanged
from .twin import run_twin

_ROUNDING = 1e-9  # float64's, generously


def embedding_gauges(
    model: PreTrainedModel, block: str, name: str, batches: Sequence[Mapping[str, Tensor]]
) -> Iterator[Gauge]:
    """Yield what may halve the embeddings and double what the first block is given: to be proved, the likeliest first.

    Together with a rescaling of the hidden state nothing is doubled in the end: that state is smaller where it begins,
    and not where the first block does. Nothing where the first block is given the embeddings as they are.

    Args:
        model: A twin.
        block: The first of a stack whose hidden state can be rescaled.
        name: For the gauges.
        batches: Inputs; the first one is run.
    """
    start = Move(Part.INPUT, block, 1)
    for path in _multiplied_embeddings(model, block, batches[0]):
        around = path.rpartition(".")[0]
        for owner in (path, around):
            for number in numbers_of(model.get_submodule(owner)):
                if not is_eps_name(number):
                    yield Gauge(name, (Move(Part.NUMBER, f"{owner}.{number}".lstrip("."), -1), start))
        yield Gauge(name, (Move(Part.OUTPUT, path, -1), start))


def _multiplied_embeddings(model: PreTrainedModel, block: str, batch: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield the embeddings that the first block is given a multiple of."""
    looked_up: dict[str, Tensor] = {}
    inputs: list[Tensor] = []
    with unchanged(model), _seen(model, block, looked_up, inputs), torch.no_grad():
        run_twin(model, batch)
    for path, rows in looked_up.items():
        if inputs and inputs[0].shape == rows.shape:
            factor = (inputs[0] * rows).sum() / rows.square().sum()
            error = (inputs[0] - factor * rows).abs().amax() / inputs[0].abs().amax()
            if error < _ROUNDING and abs(factor - 1) > _ROUNDING:
                yield path


@contextmanager
def _seen(model: nn.Module, block: str, looked_up: dict[str, Tensor], inputs: list[Tensor]) -> Iterator[None]:
    def begins(_module: nn.Module, args: Any, kwargs: Any) -> None:
        first = first_given(args, kwargs)
        if first is not None:
            inputs.append(first)

    handles = [model.get_submodule(block).register_forward_pre_hook(begins, with_kwargs=True)]
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding):

            def looks_up(module: Any, args: Any, _output: Any, path: str = path) -> None:
                # An embedding of positions may be given tokens to count.
                if args and _are_rows(args[0], module.num_embeddings):
                    looked_up[path] = F.embedding(args[0], module.weight)

            handles.append(module.register_forward_hook(looks_up))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _are_rows(ids: Any, count: int) -> bool:
    return isinstance(ids, Tensor) and not ids.is_floating_point() and ids.numel() > 0 and int(ids.max()) < count
