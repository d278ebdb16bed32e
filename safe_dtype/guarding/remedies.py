"""What may cure a failure, in the order in which it is tried, and how each is done."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from ..devices import memory_of
from ..errors import RescaleError
from ..facts import FLOAT16, FLOAT32, Dtype
from ..facts import Rescale as Moved
from ..models.block_layout import take_back
from ..models.casting import dtypes_of
from ..models.islands import CastInputs, Island, can_be_island
from ..models.offloaded import is_offloaded
from ..models.recast import bytes_of_copy, growth, left_over, main_dtype, recast, refusal
from ..models.shift_hooks import settle_norms
from ..rescaling import Fold, fold_in, gauges_for, keep_rescaled, rescaled_of
from ..rescaling.folding.save import save_models_as_they_were
from .failure import FailureKind
from .incident import Incident
from .state import Guard, dtype_of, torch_dtype

logger = logging.getLogger(__name__)

_MARGIN = 1.02  # allocators round up
_FIRST_BITS = 6  # of a rescale that nobody planned: the error is the same from 4 to 11 bits (measured)
_BITS_MORE = 3  # of one that was not enough


class NotPossible(Exception):  # noqa: N818  (no error: an answer, with its reason)
    """This remedy cannot be applied, or it changed nothing."""


class Remedy(Protocol):
    """One change of a model. `apply` returns by how many bytes it grew, and raises NotPossible."""

    def apply(self, incident: Incident) -> int:
        """Change the model, and prove that it changed."""


def remedies(incident: Incident) -> Iterator[Remedy]:
    """Yield what may cure the failure, best first."""
    kind, blamed = incident.failure.kind, incident.blamed
    if kind is FailureKind.EXPORT_GRAPH:
        yield RunEagerly()
    if kind is FailureKind.KERNEL_ARCH:
        yield from _other_attention(incident.model)
    if kind is FailureKind.DTYPE_MISMATCH:
        if dtypes_of(incident.arguments) - {main_dtype(incident.model)}:
            yield AlignInputs()
        if len(_outsiders(incident.model)) > 1:
            yield UseAutocast()
        if blamed is not None and blamed is not incident.model:
            yield AlignModule(blamed)
    if kind is FailureKind.NONFINITE and main_dtype(incident.model) == torch.float16:
        yield from _rescales(incident)
    if incident.guard.policy.islands and blamed is not None and kind in _BY_MODULE:
        yield MakeIsland(blamed)
    for dtype in _next_dtypes(incident):
        yield ChangeDtype(dtype)


_BY_MODULE = (FailureKind.OP_UNSUPPORTED, FailureKind.KERNEL_ARCH, FailureKind.NONFINITE)


def _rescales(incident: Incident) -> Iterator[Remedy]:
    rescaled = rescaled_of(incident.model)
    if rescaled is None:
        yield RescaleExactly()
        return
    # What was cached by a step before has the size that it had then.
    if rescaled.effect.keeps_cache or incident.restarts or not incident.failure.step:
        yield RaiseScale(rescaled.raised + _BITS_MORE)


def _next_dtypes(incident: Incident) -> Iterator[Dtype]:
    """Yield the dtypes below the model's own on the ladder that this failure leaves open."""
    model, failure = incident.model, incident.failure
    main = main_dtype(model)
    now = dtype_of(main) if main is not None else None
    mixed = any(one.dtype in (torch.bfloat16, torch.float16) for one in model.parameters())
    for dtype in incident.guard.ladder():
        if torch_dtype(dtype) in incident.guard.left or dtype == failure.dtype:
            continue
        if failure.allowed and dtype not in failure.allowed:
            continue
        if failure.kind is FailureKind.NONFINITE and now is not None and dtype.largest < now.largest:
            continue
        # float32 for a model in float32 that has parts in other dtypes brings them together.
        if dtype != now or (dtype == FLOAT32 and mixed):
            yield dtype


def _other_attention(model: nn.Module) -> Iterator[Remedy]:
    now = str(getattr(getattr(model, "config", None), "_attn_implementation", None))
    if now in ("sdpa", "None"):
        yield from (ChangeAttention("eager"),) if now == "sdpa" else ()
    elif now != "eager":
        yield from (ChangeAttention("sdpa"), ChangeAttention("eager"))


@dataclass(frozen=True)
class ChangeDtype:
    """Bring the whole model into another dtype."""

    dtype: Dtype

    def __str__(self) -> str:
        return self.dtype.name

    def apply(self, incident: Incident) -> int:
        """Recast in place; weights that lost bits when loaded are read again where that is possible."""
        guard, model = incident.guard, incident.model
        now, new = main_dtype(model), torch_dtype(self.dtype)
        former = {torch.bfloat16, torch.float16} if self.dtype == FLOAT32 else {now} - {None}
        former = {one for one in former if one is not None and one != new}
        if reason := refusal(model):
            raise NotPossible(reason)
        if reason := _too_wide(model, former, self.dtype):
            raise NotPossible(reason)
        _check_memory(growth(model, former, new))
        if self.dtype == FLOAT32:
            _leave_flash_attention(model)
        done = recast(model, former, new, source=_read_again(guard, model, new))
        remaining = left_over(model, former, new)
        if not done.tensors or remaining:
            raise NotPossible(f"it changed {done.tensors} tensors and left {remaining} as they were")
        for hooks in list(_island_hooks(model)):
            hooks.outside_is_now(new)
        guard.cast_from = guard.autocast = None
        take_back(model)
        guard.left |= former
        guard.left.discard(new)
        return done.grown_bytes


@dataclass(frozen=True)
class ChangeAttention:
    """Use another implementation of attention, from the next step on."""

    implementation: str

    def __str__(self) -> str:
        return f"{self.implementation} attention"

    def apply(self, incident: Incident) -> int:
        """Switch every attention of the model."""
        model: Any = incident.model
        if not hasattr(model, "set_attn_implementation"):
            raise NotPossible(f"{type(model).__name__} has no choice of attention")
        try:
            model.set_attn_implementation(self.implementation)
        except (ValueError, ImportError) as exc:
            raise NotPossible(str(exc)) from exc
        if model.config._attn_implementation != self.implementation:
            raise NotPossible("transformers kept the old one")
        return 0


@dataclass(frozen=True)
class AlignInputs:
    """Cast the floating inputs of every call to the dtype of the model."""

    def __str__(self) -> str:
        return "inputs cast to the model's dtype"

    def apply(self, incident: Incident) -> int:
        """From now on. Whether this changes anything for the failing call is up to its inputs."""
        if incident.guard.aligns_inputs:
            raise NotPossible("they already are")
        incident.guard.aligns_inputs = True
        return 0


@dataclass(frozen=True)
class AlignModule:
    """Cast what one module is given to the dtype of its weights."""

    module: nn.Module

    def __str__(self) -> str:
        return "inputs of the module cast to its weights' dtype"

    def apply(self, _incident: Incident) -> int:
        """Put a hook on the module."""
        own = {one.dtype for one in self.module.parameters() if one.is_floating_point()}
        if len(own) != 1:
            raise NotPossible(f"the module has weights of {len(own)} dtypes")
        if any(isinstance(hook, CastInputs) for hook in self.module._forward_pre_hooks.values()):
            raise NotPossible("they already are")
        self.module.register_forward_pre_hook(CastInputs(), with_kwargs=True)
        return 0

    def undo(self) -> None:
        """Take the hook off again."""
        hooks = self.module._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if isinstance(hook, CastInputs)]:
            del hooks[key]
            self.module._forward_pre_hooks_with_kwargs.pop(key, None)


@dataclass(frozen=True)
class UseAutocast:
    """Run every step under `torch.autocast` in the model's 16-bit dtype: for adapters in float32, and the like."""

    def __str__(self) -> str:
        return "torch.autocast"

    def apply(self, incident: Incident) -> int:
        """From now on. Weights stay in their dtypes; those in float32 are cast at every step."""
        main = main_dtype(incident.model)
        devices = {one.device.type for one in incident.model.parameters()}
        if incident.guard.autocast is not None:
            raise NotPossible("it is on already")
        # In float32 it would do nothing, and on CUDA switch itself off.
        if main not in (torch.bfloat16, torch.float16) or len(devices) != 1:
            raise NotPossible(f"the model is in {main}, on {', '.join(sorted(devices))}")
        incident.guard.autocast = (devices.pop(), main)
        return 0


@dataclass(frozen=True)
class MakeIsland:
    """Compute one module in float32 inside a model in 16 bit."""

    module: nn.Module

    def __str__(self) -> str:
        return "the module in float32"

    def apply(self, incident: Incident) -> int:
        """Recast the module, cast what goes in and what comes out."""
        outside = main_dtype(incident.model)
        if outside is None or (reason := can_be_island(incident.model, self.module)):
            raise NotPossible(reason or "the model has no weights")
        _check_memory(growth(self.module, {outside}, torch.float32))
        done = recast(self.module, {outside}, torch.float32)
        Island(outside).attach(self.module)
        return done.grown_bytes


@dataclass(frozen=True)
class RaiseScale:
    """Move the exact rescaling of the model by some bits more: its activations shrink, its results stay."""

    bits: int  # more than the plan's, in all

    def __str__(self) -> str:
        return f"the exact rescaling raised by {_BITS_MORE} bits"

    def apply(self, incident: Incident) -> int:
        """Multiply weights and eps in place. Caches stay: what is in them comes after a norm."""
        rescaled = rescaled_of(incident.model)
        if rescaled is None:
            raise NotPossible("the model is not rescaled")
        try:
            rescaled.raise_bits(self.bits - rescaled.raised)
        except RescaleError as exc:
            raise NotPossible(exc.problem) from exc
        return 0


@dataclass(frozen=True)
class RescaleExactly:
    """Rescale a model exactly that was loaded without: what its architecture allows is found out now."""

    def __str__(self) -> str:
        return "an exact rescaling"

    def apply(self, incident: Incident) -> int:
        """Find the gauges of the architecture, fold them in, and prove on the model that its results are the same."""
        model: Any = incident.model
        if not isinstance(model, PreTrainedModel):
            raise NotPossible(f"{type(model).__name__} is no model of transformers")
        if is_offloaded(model):
            raise NotPossible("its weights are offloaded")
        with torch.inference_mode(mode=False), torch.enable_grad():
            found = gauges_for(model)
        residual = [gauge for gauge in found.gauges if gauge.name.endswith("residual")]
        if not residual:
            raise NotPossible(found.problem or "its architecture allows none")
        try:
            fold, effect = fold_in(model, Moved(tuple((gauge, _FIRST_BITS) for gauge in residual), found.not_run))
        except RescaleError as exc:
            raise NotPossible(exc.problem) from exc
        if not effect.keeps_cache and not incident.restarts and incident.failure.step:
            fold.undo()
            raise NotPossible("what the steps before cached would not fit to it")
        keep_rescaled(model, fold, effect)
        save_models_as_they_were()
        settle_norms(model, torch.float16)
        incident.guard.look_anew()
        return 0


@dataclass(frozen=True)
class RunEagerly:
    """Run without the compiled form."""

    def __str__(self) -> str:
        return "without compilation"

    def apply(self, incident: Incident) -> int:
        """Only `generate` with a static cache compiles by itself; what the caller compiled stays so."""
        if incident.guard.runs_eagerly:
            raise NotPossible("it already does")
        incident.guard.runs_eagerly = True
        return 0


def _outsiders(model: nn.Module) -> list[nn.Module]:
    """Return the modules that multiply by weights in another dtype than the model's."""
    main = main_dtype(model)
    return [
        module
        for module in model.modules()
        for one in module.parameters(recurse=False)
        if one.dim() > 1 and one.is_floating_point() and one.dtype != main
    ]


def _too_wide(model: nn.Module, former: set[torch.dtype], new: Dtype) -> str | None:
    if new != FLOAT16:
        return None
    for name, one in model.named_parameters():
        if one.dtype in former and not one.is_meta and one.abs().amax().item() > FLOAT16.largest:
            return f"{name} holds numbers beyond {FLOAT16.largest:.0f}, where float16 ends"
    return None


def _check_memory(needed: dict[torch.device, int]) -> None:
    for device, more in needed.items():
        free = memory_of(str(device)).free_bytes
        if more * _MARGIN > free > 0:
            raise NotPossible(f"needs {more:,} bytes more on {device}, {free:,} are free")


def _leave_flash_attention(model: Any) -> None:
    # It has no float32 kernels.
    now = str(getattr(getattr(model, "config", None), "_attn_implementation", ""))
    if "flash" in now:
        model.set_attn_implementation("sdpa")


def _read_again(guard: Guard, model: nn.Module, new: torch.dtype) -> nn.Module | None:
    """Load the weights anew where they lost bits on loading, unless somebody has changed them since."""
    plan = guard.plan
    if guard.reread is None or plan is None or is_offloaded(model):
        return None
    if plan.storage.holds(plan.saved) and plan.rescale is None:  # what is scaled down loses bits in float16
        return None
    if not guard.weights_untouched():
        return None
    try:
        _check_memory(bytes_of_copy(model, new))
        source = guard.reread(new)
        if rescaled := rescaled_of(model):
            Fold(source).move_to(rescaled.rescale)
        return source
    except (NotPossible, RescaleError, OSError) as exc:
        logger.info(
            "%s: its weights stay rounded as they were loaded, they cannot be read again (%s)", plan.source, exc
        )
        return None


def _island_hooks(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        yield from (hook for hook in module._forward_hooks.values() if isinstance(hook, Island))
