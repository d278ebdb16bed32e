"""A model as a program of torch.export, by the first way that works."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from ..nouns.job import Dynamic
from .flat import flat_outputs

if TYPE_CHECKING:
    from torch.export import ExportedProgram

logger = logging.getLogger(__name__)


def program_of(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], dynamic: Dynamic) -> ExportedProgram:
    """Export `model` with outputs as `outputs_of` gives them: by transformers' exporter where it can, else by torch's.

    Raises:
        Exception: What the first way raised, where no way works. The log has what the others raised.
    """
    shapes = dynamic_shapes(inputs, dynamic)
    failures: list[Exception] = []
    for name, export in _ways(model):
        program = _tried(name, partial(export, model, inputs, shapes), model)
        if not isinstance(program, Exception):
            return program
        failures.append(program)
    raise failures[0]


def _tried(name: str, export: Callable[[], ExportedProgram], model: torch.nn.Module) -> ExportedProgram | Exception:
    try:
        with torch.no_grad(), flat_outputs(model):
            program = export()
    except Exception as exc:  # noqa: BLE001  # the next way may work; raised where none does
        logger.warning("%s failed: %s: %s", name, type(exc).__name__, str(exc)[:2000])
        return exc
    logger.info("%s worked", name)
    return program


def dynamic_shapes(inputs: Mapping[str, torch.Tensor], dynamic: Dynamic) -> dict[str, Any] | None:
    """Return `dynamic` as torch.export takes it; None where nothing varies.

    Dimensions are hints, not named symbols: torch finds out which of them are always equal (the batch of two inputs,
    the lengths of ids and mask), and raises where one cannot vary.
    """
    if not dynamic:
        return None
    hint: Any = torch.export.Dim.DYNAMIC
    if not callable(hint):  # in torch 2.6
        text = f"torch {torch.__version__} exports no dimension that varies within bounds. Next: install torch 2.13 or newer"
        raise RuntimeError(text)
    return {
        name: {dim: hint(min=low, max=high) for dim, (low, high) in dynamic.of(name).items()} or None
        for name in inputs
    }


_Export = Callable[[torch.nn.Module, Mapping[str, torch.Tensor], "dict[str, Any] | None"], "ExportedProgram"]


def _ways(model: torch.nn.Module) -> Iterator[tuple[str, _Export]]:
    if is_of_transformers(model):
        yield "transformers' exporter", partial(_by_transformers, strict=False)
        yield "transformers' exporter, strict", partial(_by_transformers, strict=True)
    yield "torch.export", partial(_by_torch, strict=False)
    yield "torch.export, strict", partial(_by_torch, strict=True)


def is_of_transformers(model: torch.nn.Module) -> bool:
    """Whether transformers has exporters of its own, and `model` is one of its models."""
    if find_spec("transformers") is None or find_spec("transformers.exporters") is None:
        return False
    from transformers import PreTrainedModel

    return isinstance(model, PreTrainedModel)


def _by_transformers(
    model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], shapes: dict[str, Any] | None, *, strict: bool
) -> ExportedProgram:
    from transformers.exporters import DynamoConfig, DynamoExporter

    prepared = dict(inputs)
    config = DynamoConfig(strict=strict, dynamic_shapes=shapes)
    program, _ = DynamoExporter().export_program(model, prepared, config)
    if added := prepared.keys() - inputs.keys():
        raise ValueError(f"the exporter added inputs ({', '.join(sorted(added))}), which callers do not have")
    exported: ExportedProgram = program
    return exported


def _by_torch(
    model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], shapes: dict[str, Any] | None, *, strict: bool
) -> ExportedProgram:
    with _explicit_signature(model, list(inputs)):
        return torch.export.export(model, (), dict(inputs), dynamic_shapes=shapes, strict=strict)


@contextmanager
def _explicit_signature(model: torch.nn.Module, names: list[str]) -> Iterator[None]:
    """Give `forward` parameters with `names`: torch.export cannot match shapes by name through `**kwargs`."""
    forward: Any = model.forward
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD
    before = getattr(forward, "__signature__", None)
    forward.__signature__ = inspect.Signature([inspect.Parameter(name, kinds, default=None) for name in names])
    try:
        yield
    finally:
        if before is None:
            del forward.__signature__
        else:
            forward.__signature__ = before
