"""A loop with accelerate, as the guard sees it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import OptState

from ..errors import TrainingLoopError
from ..facts import FLOAT16, Dtype
from .half_base import has_half_base, products_in
from .judge_numbers import forget_unscaled, has_gradients
from .loop import CLOSURE, Loop, WindowWatch
from .mistakes.check_arguments import refuse_engines, require_accelerator, require_models, require_scale
from .mistakes.torch_clipping import TorchClipping
from .switch_precision import (
    engine_of,
    follow_precision,
    precision_of,
    refuse_engine,
    remember_models,
    switch_precision,
)
from .torch_loop import TorchLoop

# Engines in whose backward and step nobody else has a say, and whose gradients nobody else sees.
_STEP_THEMSELVES = ("DEEPSPEED", "MEGATRON_LM")
_EXAMPLE = "PrecisionGuard(accelerator, model), with each model that accelerator.prepare() has returned"


def adapt_loop(loop: Any, models: Sequence[nn.Module], init_scale: float | None) -> Loop:
    """Return a `TorchLoop` as it is, and an Accelerator with the adapter around it.

    Raises:
        TypeError: If it is neither, or one of `models` is no module.
        ValueError: If `init_scale` is not above 0.
        NeedsRestart, TrainingLoopError: If it is, or has made, an engine that steps itself.
    """
    require_models(models, _EXAMPLE)
    if init_scale is not None:
        require_scale("init_scale", init_scale)
    if isinstance(loop, TorchLoop):
        return loop
    refuse_engines([loop])
    require_accelerator(loop)
    adapted = AccelerateLoop(loop, models, init_scale)
    refuse_engines(models)  # last: an Accelerator that has made the engine says so itself
    return adapted


class AccelerateLoop:
    """Models and optimizers that an `Accelerator` has prepared.

    float16 on a CPU, which accelerate takes for float32 without a word, is float16 here.
    """

    def __init__(self, accelerator: Any, models: Sequence[nn.Module], init_scale: float | None) -> None:
        engine = engine_of(accelerator)
        if engine is not None and accelerator.distributed_type.name in _STEP_THEMSELVES:
            refuse_engine(engine)
        remember_models(accelerator, models)
        self._accelerator = accelerator
        self._init_scale = init_scale
        self.models = list(models) or list(accelerator._models)
        self._has_half_base = has_half_base(self.models)
        if accelerator.mixed_precision == "fp16" and not accelerator.native_amp:
            switch_precision(accelerator, FLOAT16, init_scale=init_scale)
        follow_precision(accelerator, init_scale=init_scale)
        self.dtype = precision_of(accelerator)
        self._left_scaler: dict[str, Any] | None = None  # its state when float16 was left

    @property
    def scaler(self) -> Any:
        """The scaler of the Accelerator."""
        return self._accelerator.scaler

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers of torch inside of the prepared ones."""
        return [prepared.optimizer for prepared in self._accelerator._optimizers]

    def switch(self, dtype: Dtype) -> None:
        """Have all that is prepared compute in `dtype`."""
        before = self.scaler
        switch_precision(self._accelerator, dtype, init_scale=self._init_scale)
        if before is not None and self.scaler is None:
            if self._left_scaler is None:
                self._accelerator.register_save_state_pre_hook(self._save_left_scaler)
            self._left_scaler = before.state_dict()
        self.dtype = dtype

    def _save_left_scaler(self, _models: Any, _weights: Any, folder: str) -> None:
        """Put the scaler into a checkpoint that a run has left float16 with: `load_state` of one that begins there asks for it."""
        from accelerate.utils import SCALER_NAME

        if self.scaler is None:
            self._accelerator.save(self._left_scaler, Path(folder) / SCALER_NAME)

    @contextmanager
    def watched(self, watch: WindowWatch) -> Iterator[None]:
        """Tell `watch` of losses, norms and steps in the block, and let its windows say when gradients are reduced."""
        accelerator = self._accelerator
        if not accelerator._optimizers:
            raise TrainingLoopError(
                "the Accelerator has prepared no optimizer, and the step of another one cannot be held back",
                "`model, optimizer = accelerator.prepare(model, optimizer)`",
            )
        put: list[tuple[Any, str, Any]] = []

        def replace(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
            put.append((owner, name, owner.__dict__.get(name, _ABSENT)))
            setattr(owner, name, wrap(getattr(owner, name)))

        clipping = TorchClipping(
            self.scaler, self.optimizers, lambda: accelerator.gradient_state.sync_gradients, watch
        )
        replace(accelerator, "backward", lambda original: _backward(original, watch, clipping))
        replace(accelerator, "unscale_gradients", lambda original: _unscale(original, watch, accelerator))
        replace(accelerator, "clip_grad_norm_", lambda original: _clip(original, watch, accelerator, clipping))
        replace(accelerator, "_do_sync", lambda original: _do_sync(original, watch, accelerator.gradient_state))
        for prepared in accelerator._optimizers:
            steps_of = functools.partial(_step, watch=watch, accelerator=accelerator, optimizer=prepared.optimizer)
            replace(prepared, "step", steps_of)
        try:
            with products_in(self.dtype, has_half_base=self._has_half_base), clipping.watched():
                yield
        finally:
            for owner, name, before in reversed(put):
                if before is _ABSENT:
                    del owner.__dict__[name]
                else:
                    owner.__dict__[name] = before
            if watch.is_done and len(accelerator._optimizers) > 1:  # of one that has not stepped in the window
                forget_unscaled(accelerator.scaler, self.optimizers)

    def place(self) -> tuple[int, bool]:
        """Return how many micro-batches there were, and whether gradients are reduced."""
        return self._accelerator.step, self._accelerator.gradient_state.sync_gradients

    def return_to(self, place: tuple[int, bool]) -> None:
        """Count from there again."""
        self._accelerator.step = place[0]
        self._accelerator.gradient_state._set_sync_gradients(place[1])

    def stepped(self) -> None:
        """The prepared optimizer steps through the scaler and lets it count."""


_ABSENT = object()


def _backward(original: Callable[..., Any], watch: WindowWatch, clipping: TorchClipping) -> Callable[..., Any]:
    def backward(loss: torch.Tensor, **kwargs: Any) -> Any:
        watch.loss(loss)
        with clipping.passes():
            returned = original(loss, **kwargs)
        watch.backward_ended()
        return returned

    return backward


def _unscale(original: Callable[..., None], watch: WindowWatch, accelerator: Any) -> Callable[..., None]:
    """Take the scale from gradients that have one, and no more: torch raises where a step clips twice, in float16 alone."""

    def unscale_gradients(optimizer: Any = None) -> None:
        scaler = accelerator.scaler
        if scaler is None or watch.is_done:  # after the vote no gradient has a scale
            return
        _require_scaled_loss(scaler, watch)
        asked = optimizer if isinstance(optimizer, (list, tuple)) else [optimizer]
        original([one for one in (accelerator._optimizers if optimizer is None else asked) if _has_scale(scaler, one)])

    return unscale_gradients


def _require_scaled_loss(scaler: Any, watch: WindowWatch) -> None:
    """Vote, which raises, where the loss was not scaled: before torch refuses to unscale its gradients."""
    if scaler is not None and scaler._scale is None:
        watch.step()


def _has_scale(scaler: Any, optimizer: Any) -> bool:
    """Whether the gradients of an optimizer have one; where there are none yet, another backward pass may follow."""
    own = getattr(optimizer, "optimizer", optimizer)  # inside of accelerate's
    return has_gradients(own) and scaler._per_optimizer_states[id(own)]["stage"] is OptState.READY


def _clip(
    original: Callable[..., Any], watch: WindowWatch, accelerator: Any, clipping: TorchClipping
) -> Callable[..., Any]:
    def clip_grad_norm_(parameters: Iterable[torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        parameters = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        _require_scaled_loss(accelerator.scaler, watch)
        if accelerator.scaler is not None and not accelerator.gradient_state.sync_gradients:
            with clipping.paused():
                return _clip_scaled(original, accelerator, parameters, *args, **kwargs)
        with _unscaled_alone(accelerator, parameters):
            norm = original(parameters, *args, **kwargs)
        if isinstance(norm, torch.Tensor):
            watch.norm(norm, parameters)
        return norm

    return clip_grad_norm_


@contextmanager
def _unscaled_alone(accelerator: Any, parameters: Sequence[torch.Tensor]) -> Iterator[None]:
    """Have accelerate take the scale from gradients of the optimizers of `parameters` alone, in place of all.

    Another backward pass may add to those of the others.
    """
    unscale, clipped = accelerator.unscale_gradients, set(map(id, parameters))
    own = [
        prepared
        for prepared in accelerator._optimizers
        if any(id(weight) in clipped for group in prepared.param_groups for weight in group["params"])
    ]
    accelerator.unscale_gradients = lambda optimizer=None: unscale(own or None if optimizer is None else optimizer)
    try:
        yield
    finally:
        accelerator.unscale_gradients = unscale


def _clip_scaled(
    original: Callable[..., Any], accelerator: Any, parameters: Sequence[torch.Tensor], max_norm: float,
    norm_type: float = 2,
) -> Any:  # fmt: skip
    """Clip gradients that are not whole yet: torch takes their scale away once a step, so the limit gets it here."""
    scale, unscale = accelerator.scaler.get_scale(), accelerator.unscale_gradients
    accelerator.unscale_gradients = lambda *_: None
    try:
        return original(parameters, max_norm * scale, norm_type) / scale
    finally:
        accelerator.unscale_gradients = unscale


def _do_sync(original: Callable[..., Any], watch: WindowWatch, gradient_state: Any) -> Callable[[], None]:
    """Whoever fetches a window at once has the end of the data in it: accelerate would step with every micro-batch then."""

    def do_sync() -> None:
        is_last = watch.is_last()
        if is_last is None:
            original()
        else:
            gradient_state._set_sync_gradients(is_last)

    return do_sync


def _step(original: Callable[..., Any], watch: WindowWatch, accelerator: Any, optimizer: Any) -> Callable[..., Any]:
    def step(closure: Any = None) -> Any:
        if closure is not None:
            raise TrainingLoopError(*CLOSURE)
        if not accelerator.gradient_state.sync_gradients:
            return original(closure)
        watch.step()
        with _others_unscaled(accelerator.scaler, optimizer):
            return original(closure)

    return step


@contextmanager
def _others_unscaled(scaler: Any, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Have the scaler remember that gradients of other optimizers have no scale any more.

    A prepared optimizer has the scaler forget all of them after its own step, and the next would divide its own once more.
    """
    states = {} if scaler is None else dict(scaler._per_optimizer_states)
    yield
    for place, state in states.items():
        if place != id(optimizer) and state["stage"] is OptState.UNSCALED:
            scaler._per_optimizer_states[place] = state
