"""The peak of memory in a step of training, predicted: every operation is followed, none is computed or stored."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.optim import AdamW, Optimizer
from torch.utils.hooks import RemovableHandle

from ...devices.random_states import random_states_kept
from ...facts import FLOAT32, Dtype
from ..half_base import has_half_base, products_in
from .batch_rows import with_tensors
from .grouped_products import GroupedProducts
from .peak_tracker import CAN_TRACK, PeakTracker

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]

# What a process takes beside its tensors: scratch and packed weights of kernels.
_UNSEEN_BYTES = 150 * 2**20
# And in main memory what the heap of C keeps. A process whose allocator gives all back at once takes 12 to 45 MiB more than its
# tensors; with glibc's defaults 190 to 660, and up to 210 more in one run than in the next of the same. For an aligned block,
# as torch asks for, glibc 2.36 looks for a place 96 bytes larger: of 50 that were freed between others 1 was taken again for
# the same size (by plain malloc: 50). So what comes and goes leaves holes. Large blocks leave none: beside a vocabulary of 64,000
# words it was 120 to 210 MiB. Fitted to the ways of training five models that were measured, each within 141 MiB but one, which
# takes 203 more: 28 layers, all checkpointed, in float32 (benchmarks/training_memory.py).
_KEPT_OF_ALL, _KEPT_OF_PASSING = 0.10, 0.23  # of what is in small blocks
_PASSING = ("activations", "temporaries")
_BESIDE = "the allocator and kernels"


@dataclass(frozen=True, slots=True)
class Checkpointing:
    """Which activations are computed again in the backward pass, in place of being kept."""

    every: int = 1  # of the layers, every so manyth is checkpointed
    offload: bool = False  # what is kept lies in main memory

    def __str__(self) -> str:
        which = "activation checkpointing" if self.every == 1 else f"every {self.every} layers checkpointed"
        return f"{which}, offloaded" if self.offload else which

    def enable(self, model: Any) -> None:
        """Turn it on.

        Raises:
            ValueError: If `model` has none.
        """
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable(every_n_layers=self.every, offload=self.offload)
        elif self == Checkpointing() and hasattr(model, "gradient_checkpointing_enable"):  # transformers before 5.23
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            raise ValueError(f"{type(model).__name__} has no {self}")


@dataclass(frozen=True, slots=True)
class TracedStep:
    """What one device holds at the peak of a step, in bytes."""

    device: str  # its type: "cpu", "cuda"
    peak_bytes: int  # of all tensors: weights, gradients, moments of the optimizer, activations
    kinds: tuple[tuple[str, int], ...]  # "parameters", "activations", ...: what the peak is made of
    is_of_operations: bool = True  # False: of what is saved for the backward pass; what lives for a moment is left out
    is_certain: bool = (
        False  # whether no step of it takes less: every operation was followed, with the model's own loss
    )
    large: tuple[tuple[str, int], ...] = ()  # of `kinds`, what is in blocks that the heap of C does not keep

    @property
    def needed_bytes(self) -> int:
        """What has to be free before a process that holds none of it begins."""
        return self.peak_bytes + _UNSEEN_BYTES + (self._in_heap if self.device == "cpu" else 0)

    @property
    def _in_heap(self) -> int:
        large = dict(self.large)
        passing = sum(size - large.get(kind, 0) for kind, size in self.kinds if kind in _PASSING)
        small = self.peak_bytes - sum(large.values())
        return int(small * _KEPT_OF_ALL + passing * _KEPT_OF_PASSING)

    @property
    def kinds_needed(self) -> tuple[tuple[str, int], ...]:
        """What `needed_bytes` is made of, the largest kind first: they add up to it."""
        seen = sorted(self.kinds, key=lambda pair: -pair[1])
        rest = self.needed_bytes - sum(size for _, size in seen)
        return (*((("weights" if kind == "parameters" else kind), size) for kind, size in seen), (_BESIDE, rest))


def trace_step(
    model: nn.Module,
    batch: Mapping[Any, Any],
    dtype: Dtype = FLOAT32,
    *,
    checkpointing: Checkpointing | None = None,
    make_optimizer: MakeOptimizer = AdamW,
    accumulates: bool = False,
) -> TracedStep:
    """Return what a step of training needs: forward, backward and a step of the optimizer, that has its moments already.

    Neither `model` nor random numbers are touched, and nothing is allocated but objects of Python.

    Args:
        model: The model, on the device that it is trained on, and not yet wrapped for several ranks.
        batch: What it is called with, tensors by name or by place. Where it returns no loss, one is thought up.
        dtype: Of the autocast around the forward pass; float32: none.
        checkpointing: What is turned on beside what the model has on.
        make_optimizer: Makes the optimizer from parameters.
        accumulates: Whether gradients of an earlier micro-batch are there already.

    Raises:
        ValueError: If the model has no such checkpointing, or returns nothing to compute a loss of.
        RuntimeError: If the model cannot be followed: what it computes depends on values.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with random_states_kept():
        fake = _faked(model, mode)
        inputs = with_tensors(dict(batch), lambda tensor: mode.from_tensor(tensor, static_shapes=True))
        device = next((weight.device.type for weight in model.parameters()), "cpu")
        with mode, GroupedProducts(), _without_autocast(device):  # type: ignore[no-untyped-call]
            fake.train()
            if checkpointing is not None:
                checkpointing.enable(fake)
            trained = [weight for weight in fake.parameters() if weight.requires_grad]
            optimizer = make_optimizer(trained)
            _with_moments(optimizer, trained, accumulates=accumulates)
            step = _Step(fake, inputs, dtype, optimizer)
            if CAN_TRACK:
                with suppress(
                    AssertionError, AttributeError, NotImplementedError
                ):  # what it does not know, or has no more
                    return step.by_operations()
            return step.by_saved_tensors(trained)


@dataclass
class _Step:
    model: nn.Module
    inputs: Mapping[Any, Any]
    dtype: Dtype
    optimizer: Optimizer
    has_own_loss: bool = True  # of the model; else one was thought up

    def loss(self) -> torch.Tensor:
        narrow = None if self.dtype == FLOAT32 else getattr(torch, self.dtype.name)
        with torch.autocast(self._device(), narrow, enabled=narrow is not None):
            args = [self.inputs[place] for place in sorted(name for name in self.inputs if isinstance(name, int))]
            named = {name: value for name, value in self.inputs.items() if isinstance(name, str)}
            with products_in(self.dtype, has_half_base=has_half_base([self.model])):
                output = self.model(*args, **named)
        torch.clear_autocast_cache()  # which an autocast around this one would have kept up to its own end
        loss = output.get("loss") if isinstance(output, dict) else output
        if isinstance(loss, torch.Tensor) and not loss.dim():
            return loss
        self.has_own_loss = False
        return _stand_in(output)

    def _device(self) -> str:
        return next((weight.device.type for weight in self.model.parameters()), "cpu")

    def by_operations(self) -> TracedStep:
        tracker = PeakTracker()
        tracker.track_external(self.model, self.optimizer)
        for weight in self.model.parameters():
            if not weight.requires_grad:  # it would ask for a hook on the gradient, and fail
                tracker._param_to_grad_hook_handles[weight] = (
                    RemovableHandle(OrderedDict()),
                    RemovableHandle(OrderedDict()),
                )
        with tracker:
            torch.autograd.backward(self.loss())
            self.optimizer.step()
            self.optimizer.zero_grad()
        peak = tracker.peak()
        return TracedStep(peak.device, peak.total_bytes, peak.kinds, is_certain=self.has_own_loss, large=peak.large)

    def by_saved_tensors(self, trained: list[nn.Parameter]) -> TracedStep:
        own = [*self.model.parameters(), *self.model.buffers()]
        moments = [part for state in self.optimizer.state.values() for part in state.values() if torch.is_tensor(part)]
        seen = {tensor.untyped_storage()._cdata for tensor in own}
        saved: list[torch.UntypedStorage] = []  # kept, so that no address comes twice

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in seen:
                seen.add(storage._cdata)
                saved.append(storage)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            self.loss()
        kinds = {
            "parameters": _bytes(own), "gradients": _bytes(trained), "optimizer": _bytes(moments),
            "activations": sum(storage.nbytes() for storage in saved),
        }  # fmt: skip
        return TracedStep(self._device(), sum(kinds.values()), tuple(kinds.items()), is_of_operations=False)


@contextmanager
def _without_autocast(device: str) -> Iterator[None]:
    """Turn off an autocast that a loop has opened already, which would have the backward pass cast as well.

    Not by another around it: inside of one torch keeps the casts of weights that a checkpointed layer makes on its way back,
    and at the outermost lets them go.
    """
    was_on = torch.is_autocast_enabled(device)
    torch.set_autocast_enabled(device, False)  # noqa: FBT003  (torch's own signature)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device, was_on)


def _stand_in(output: Any) -> torch.Tensor:
    """Return something that takes as much memory as the loss that the caller computes of what the model returns.

    Raises:
        ValueError: If the model returns nothing that could be trained.
    """
    parts: Any = (
        output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else [output]
    )
    tensors = [part for part in parts if isinstance(part, torch.Tensor) and part.requires_grad and part.dim()]
    if not tensors:
        raise ValueError(
            f"a {type(output).__name__} without a loss, and without a tensor to compute one of, is returned"
        )
    return torch.stack([tensor.float().log_softmax(-1).mean() for tensor in tensors]).sum()


def _without_hooks(model: nn.Module) -> dict[int, Any]:
    """Return what makes a deep copy leave out hooks of others: they may hold anything, and note what they see."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            hooks = module.__dict__[name]
            own = {key: hook for key, hook in hooks.items() if _is_of_the_model(hook)}
            memo[id(hooks)] = OrderedDict(own)
    return memo


def _is_of_the_model(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith(("torch.", "transformers.", "peft."))


def _faked(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """Return a copy of the model that holds no numbers, as it was before accelerate prepared it."""
    with FakeCopyMode(mode):
        fake = copy.deepcopy(model, _without_hooks(model))
    for module in fake.modules():
        original = module.__dict__.pop("_original_forward", None)
        if original is not None:  # of accelerate, with an autocast of its own around it
            module.forward = original
    return fake


def _with_moments(optimizer: Optimizer, trained: list[nn.Parameter], *, accumulates: bool) -> None:
    """Have the optimizer make the state that it has after a first step."""
    for weight in trained:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    if not accumulates:
        optimizer.zero_grad()


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
