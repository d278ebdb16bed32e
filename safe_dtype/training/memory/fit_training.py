"""Training that fits: looked at before it starts in a dtype that nobody asked for, and before a step down in flight."""

from __future__ import annotations

import functools
import gc
import inspect
import logging
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from ...devices import memory_of
from ...devices.memory import allowance, free_at_last
from ...devices.random_states import random_states_kept
from ...errors.training import GRADIENT_BUCKETS
from ...errors.warn import warn
from ...facts import Dtype
from ...numerics.free_heap import give_back_free_heap
from ...ranks import is_first_rank
from .batch_rows import first_rows, rows_of, why_whole
from .memory_plan import MemoryPlan, TrainingWay, plan_memory
from .traced_step import Checkpointing, MakeOptimizer, TracedStep, trace_step

logger = logging.getLogger(__name__)

_ROWS_LOOKED_AT = 64  # of the data set, for the longest


def plan_step_down(
    model: nn.Module,
    batch: Mapping[Any, Any],
    dtype: Dtype,
    optimizer: Optimizer,
    *,
    accumulation: int = 1,
    max_memory: Mapping[Any, Any] | None = None,
) -> MemoryPlan:
    """Return whether the same micro-batch fits in `dtype`, in the middle of a run; if not, what makes it fit.

    Args:
        model: The model, not wrapped for several ranks.
        batch: A micro-batch, on its device: arguments by name, or by their places.
        dtype: To go on in.
        optimizer: That has made steps.
        accumulation: Micro-batches in one step of it.
        max_memory: Bytes by device, as accelerate takes them: for all that the process holds there.

    Raises:
        RuntimeError, ValueError: If the model cannot be followed.
    """
    rows = rows_of(batch)
    ordered = TrainingWay(rows, accumulation, Checkpointing() if _is_checkpointing(model) else None)
    own = {id(weight) for weight in (*model.parameters(), *model.buffers())}
    held_tensors = [*model.parameters(), *model.buffers(), *_moments(optimizer, own)]
    known = inspect.signature(type(optimizer)).parameters
    options = {name: value for name, value in optimizer.defaults.items() if name in known}
    make_optimizer = _maker(type(optimizer), options)
    plan = _plan(
        model, lambda asked: batch if asked == rows else first_rows(batch, asked), dtype, ordered, make_optimizer, held_tensors,
        max_memory=max_memory, splits=not why_whole(batch),
    )  # fmt: skip
    return plan if _is_of_torch(type(optimizer)) else replace(plan, least_bytes=0)


def fit_trainer(trainer: Any, dtype: Dtype) -> MemoryPlan | None:
    """Have a Trainer that is about to train in `dtype` fit: by activation checkpointing, then by smaller micro-batches.

    The global batch stays what it is, in the same order. What is changed is warned of. None where nobody can tell: the
    data cannot be looked at by number, or the model cannot be followed.

    Raises:
        TrainingDoesNotFitError: If nothing makes it fit.
    """
    args, model = trainer.args, trainer.model
    try:
        batches = functools.cache(functools.partial(_longest_batch, trainer))
        optimizer, options = trainer.get_optimizer_cls_and_kwargs(args, model)
        checkpointing = Checkpointing() if args.gradient_checkpointing else None
        ordered = TrainingWay(args.train_batch_size, args.gradient_accumulation_steps, checkpointing)
        held_tensors = [*model.parameters(), *model.buffers()]
        plan = _plan(model, batches, dtype, ordered, _maker(optimizer, options), held_tensors, ranks=args.world_size)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as exc:
        logger.info("whether a step in %s fits is not known: %s: %s", dtype, type(exc).__name__, exc)
        return None
    way = plan.require(ranks=args.world_size, devices=max(1, torch.accelerator.device_count()))
    logger.info("%s", plan)
    if not plan.is_as_ordered:
        _apply(way, trainer)
        if is_first_rank():
            warn(f"{plan}. Training so. Next: ask for it yourself, or train in a dtype of 16 bits")
    return plan


def _plan(  # noqa: PLR0913  (all but five by name)
    model: nn.Module,
    batch_of: Callable[[int], Mapping[Any, Any]],
    dtype: Dtype,
    ordered: TrainingWay,
    make_optimizer: MakeOptimizer,
    held_tensors: Iterable[torch.Tensor],
    *,
    ranks: int = 1,
    max_memory: Mapping[Any, Any] | None = None,
    splits: bool = True,
) -> MemoryPlan:
    """Return what makes a step fit; `batch_of` returns a micro-batch of so many rows, `splits`: also of fewer than ordered."""
    trained = sum(weight.numel() * weight.itemsize for weight in model.parameters() if weight.requires_grad)
    device = next(weight.device for weight in model.parameters())

    steps: dict[TrainingWay, TracedStep] = {}
    reduced = trained if ranks > 1 else 0  # DDP reduces gradients in buckets of its own

    def needs(way: TrainingWay) -> int:
        more = way.checkpointing if way.checkpointing != ordered.checkpointing else None
        step = steps[way] = trace_step(
            model, batch_of(way.rows), dtype, checkpointing=more, make_optimizer=make_optimizer,
            accumulates=way.accumulation > 1,
        )  # fmt: skip
        return step.needed_bytes + reduced

    gc.collect()  # what only refers to one another
    give_back_free_heap()
    memory = memory_of(str(device))
    held_bytes = _bytes(held_tensors)
    last = free_at_last() if device.type == "cpu" and not max_memory else None
    present = 0 if last is None else last + held_bytes
    if device.type == "cpu":  # ranks of one machine have one memory
        memory = replace(memory, free_bytes=memory.free_bytes // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    plan = plan_memory(
        dtype, ordered, needs, memory, held_bytes=held_bytes, offloads=device.type != "cpu", splits=splits,
        allowed_bytes=allowance(device, max_memory or {}),
    )  # fmt: skip
    buckets = ((GRADIENT_BUCKETS, reduced),) if reduced else ()
    as_ordered = steps[ordered]
    return replace(
        plan,
        kinds=tuple((*steps[way].kinds_needed, *buckets) for way, _ in plan.tried),
        least_bytes=as_ordered.peak_bytes if as_ordered.is_certain else 0,
        present_bytes=present,
    )


def _apply(way: TrainingWay, trainer: Any) -> None:
    args = trainer.args
    if way.checkpointing is not None and not args.gradient_checkpointing:
        options = {"every_n_layers": way.checkpointing.every, "offload": way.checkpointing.offload}
        name = "activation_checkpointing" if hasattr(args, "activation_checkpointing") else "gradient_checkpointing"
        setattr(args, name, True)
        if name == "activation_checkpointing":
            args.activation_checkpointing_kwargs = {"use_reentrant": False, **options}
            args.gradient_checkpointing = True
        else:
            args.gradient_checkpointing_kwargs = {"use_reentrant": False}
    parts = args.train_batch_size // way.rows
    args.per_device_train_batch_size //= parts
    args.gradient_accumulation_steps = way.accumulation
    trainer._train_batch_size = args.train_batch_size


def _longest_batch(trainer: Any, rows: int) -> dict[str, Any]:
    """Return a batch of the longest of the first rows of the data set, as the Trainer would call its model with it."""
    data = trainer.train_dataset
    with nothing_drawn():
        first = [data[number] for number in range(min(len(data), _ROWS_LOOKED_AT))]
        longest = max(first, key=_length)
        collate = trainer._get_collator_with_removed_columns(trainer.data_collator, "training")
        batch = collate([dict(longest) if isinstance(longest, Mapping) else longest for _ in range(rows)])
    return dict(trainer._prepare_input(batch))  # not `_prepare_inputs`: in subclasses it generates


@contextmanager
def nothing_drawn() -> Iterator[None]:
    """Leave no trace of the block in any random numbers: data sets and collators draw some."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with random_states_kept():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _length(row: Any) -> int:
    values = row.values() if isinstance(row, Mapping) else (row,)
    return max((int(np.prod(np.shape(value))) for value in values if not isinstance(value, str)), default=0)


def _is_checkpointing(model: Any) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) is True for module in model.modules())


def _maker(kind: type[Optimizer], options: Mapping[str, Any]) -> MakeOptimizer:
    """Return what makes optimizers of a class; one from elsewhere than torch is taken to have the moments of AdamW."""
    return (lambda weights: kind(weights, **options)) if _is_of_torch(kind) else AdamW


def _is_of_torch(kind: type[Optimizer]) -> bool:
    return kind.__module__.startswith("torch.optim")


def _moments(optimizer: Optimizer, of: set[int]) -> list[torch.Tensor]:
    states = [state for weight, state in optimizer.state.items() if id(weight) in of]
    return [part for state in states for part in state.values() if isinstance(part, torch.Tensor)]


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum({tensor.data_ptr(): tensor.numel() * tensor.itemsize for tensor in tensors}.values())
