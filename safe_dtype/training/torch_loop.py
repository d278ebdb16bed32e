"""The parts of a loop in plain torch that depend on the precision: autocast, the loss scale, and clipping."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import OptState

from ..errors import TrainingLoopError
from ..facts import BFLOAT16, FLOAT16, FLOAT32, Dtype, dtype_named
from ..ranks.fsdp2 import is_sharded, switch_policy
from .half_base import has_half_base, products_in
from .ladder import rungs
from .loop import CLOSURE, WindowWatch
from .mistakes.check_arguments import refuse_engines, require_dtype, require_models, require_optimizers, require_scale
from .mistakes.torch_clipping import TorchClipping

_EXAMPLE = "TorchLoop(model, optimizer), or a list of each"


class TorchLoop:
    """What `Accelerator` is for a loop with accelerate, for one in plain torch: it computes in what the guard says.

        loop = TorchLoop(model, optimizer)
        with loop.autocast():
            loss = model(inputs).loss
        loop.backward(loss)
        loop.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    Several models, or optimizers, are passed as a list. Models under FSDP2 compute in the dtype of their
    `MixedPrecisionPolicy`, which is changed; `autocast()` is nothing there.

    Attributes:
        dtype: What the model computes in now.
        scaler: The `torch.amp.GradScaler` in float16, else None.

    Raises:
        TypeError: If it is made of something else.
        TrainingLoopError: If it is made of an engine of DeepSpeed, which steps itself.
        ValueError: If nothing is trained in `dtype`, or there is no model, or no optimizer.
    """

    def __init__(
        self,
        model: nn.Module | Sequence[nn.Module],
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        dtype: Dtype | str = BFLOAT16,
        *,
        init_scale: float = 2.0**16,
    ) -> None:
        self.models: list[nn.Module] = _listed(model)
        self.optimizers: list[torch.optim.Optimizer] = _listed(optimizer)
        refuse_engines([*self.models, *self.optimizers])
        require_models(self.models, _EXAMPLE)
        require_optimizers(self.optimizers, _EXAMPLE)
        if not (self.models and self.optimizers):
            raise ValueError(
                f"a loop trains a model, and there is no {'optimizer' if self.models else 'model'}. Next: {_EXAMPLE}"
            )
        require_dtype(dtype)
        require_scale("init_scale", init_scale)
        self._device_type = next((p.device.type for m in self.models for p in m.parameters()), "cpu")
        self._has_half_base = has_half_base(self.models)
        self._sharded = [model for model in self.models if is_sharded(model)]
        self._init_scale = init_scale
        self._watch: WindowWatch | None = None
        self._clipping: TorchClipping | None = None  # while it is watched
        self.scaler: Any = None
        self.dtype = FLOAT32
        self.switch(rungs(dtype_named(dtype) if isinstance(dtype, str) else dtype)[0])

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the `torch.autocast` of the precision now, for the forward pass and the loss."""
        if self._sharded:
            return nullcontext()
        if self.dtype == FLOAT32:
            return torch.autocast(self._device_type, enabled=False)
        return torch.autocast(self._device_type, getattr(torch, self.dtype.name))

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        """Run the backward pass of a loss, scaled in float16. `kwargs` go to `Tensor.backward`."""
        if self._watch is not None:
            self._watch.loss(loss)
        with nullcontext() if self._clipping is None else self._clipping.passes():
            (loss if self.scaler is None else self.scaler.scale(loss)).backward(**kwargs)
        if self._watch is not None:
            self._watch.backward_ended()

    def clip_grad_norm_(
        self, parameters: torch.Tensor | Iterable[torch.Tensor], max_norm: float, norm_type: float = 2.0
    ) -> torch.Tensor:
        """Clip as `torch.nn.utils.clip_grad_norm_` does, gradients without their scale; return the norm before."""
        parameters = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        if self.scaler is not None and self._clipping is None:  # outside of an attempt
            for optimizer in self.optimizers:
                if self.scaler._per_optimizer_states[id(optimizer)]["stage"] is OptState.READY:
                    self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)
        if self._watch is not None:
            self._watch.norm(norm, parameters)
        return norm

    def accumulate(self) -> AbstractContextManager[Any]:
        """Return what keeps ranks from reducing gradients before the last micro-batch of a window of the guard."""
        if self._watch is None or self._watch.is_last() in (None, True):
            return nullcontext()
        return _no_sync([model for model in self.models if hasattr(model, "no_sync") or model in self._sharded])

    def switch(self, dtype: Dtype) -> None:
        """Have the next pass compute in `dtype`, with a new scaler in float16."""
        for model in self._sharded:
            switch_policy(model, dtype)
        self.dtype = dtype
        self.scaler = ScalerOfMeshes(self._device_type, init_scale=self._init_scale) if dtype == FLOAT16 else None

    @contextmanager
    def watched(self, watch: WindowWatch) -> Iterator[None]:
        """Tell `watch` of losses, norms and steps in the block."""
        self._watch = watch
        self._clipping = TorchClipping(self.scaler, self.optimizers, lambda: watch.is_last() is not False, watch)
        hooks = [optimizer.register_step_pre_hook(_asking(watch)) for optimizer in self.optimizers]
        try:
            with products_in(self.dtype, has_half_base=self._has_half_base), self._clipping.watched():
                yield
        finally:
            self._watch = self._clipping = None
            for hook in hooks:
                hook.remove()

    def place(self) -> None:
        """Return nothing: a loop in plain torch is where its caller is."""

    def return_to(self, place: None) -> None:
        """Nothing is counted here."""

    def stepped(self) -> None:
        """Let the scaler count a step that went well."""
        if self.scaler is not None:
            self.scaler.update()


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


class ScalerOfMeshes(torch.amp.GradScaler):
    """A scaler whose gradients may be spread over several device meshes, or over none: torch's takes those of one kind."""

    def _unscale_grads_(
        self, optimizer: torch.optim.Optimizer, inv_scale: torch.Tensor, found_inf: torch.Tensor, *args: Any
    ) -> dict[torch.device, torch.Tensor]:
        kinds: dict[Any, list[torch.Tensor]] = {}  # in the same order on all ranks: to look at each is a collective
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                kind = getattr(parameter.grad, "device_mesh", None), getattr(parameter.grad, "placements", None)
                kinds.setdefault(kind, []).append(parameter)
        flags: dict[torch.device, torch.Tensor] = {}
        for parameters in kinds.values():
            part: Any = SimpleNamespace(param_groups=[{"params": parameters}])
            for device, flag in super()._unscale_grads_(part, inv_scale, found_inf, *args).items():
                flags[device] = torch.maximum(flags.get(device, flag), flag)
        return flags


def _asking(watch: WindowWatch) -> Callable[..., None]:
    def ask(_optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(callable(argument) for argument in (*args[1:], *kwargs.values())):  # the first is the optimizer
            raise TrainingLoopError(*CLOSURE)
        watch.step()

    return ask


@contextmanager
def _no_sync(models: Sequence[Any]) -> Iterator[None]:
    if not models:
        yield
        return
    with models[0].no_sync() if hasattr(models[0], "no_sync") else _summed_up(models[0]), _no_sync(models[1:]):
        yield


@contextmanager
def _summed_up(model: nn.Module) -> Iterator[None]:
    """Have the blocks under FSDP2 sum up their gradients, each rank its own."""
    roots: list[Any] = [module for module in model.modules() if hasattr(module, "set_requires_gradient_sync")]
    for root in roots:
        root.set_requires_gradient_sync(False, recurse=False)
    try:
        yield
    finally:
        for root in roots:
            root.set_requires_gradient_sync(True, recurse=False)
