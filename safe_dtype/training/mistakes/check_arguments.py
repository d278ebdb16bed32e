"""What training is called with, looked at where it comes in: an error says what to pass, and not where it failed inside."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ...errors import TrainingLoopError
from ...facts import Dtype

_LADDER = "write dtypes of safe_dtype, best first, as in ladder=(safe_dtype.BFLOAT16, safe_dtype.FLOAT32)"
_PLAIN = (type(None), bool, int, float, str, torch.dtype, Dtype)  # whose value says more than its class


def refuse_engines(values: Iterable[Any]) -> None:
    """Raise TrainingLoopError for an engine of DeepSpeed, or an optimizer of one: its passes and steps are its own.

    So too for one inside of another module: compiled, or in a wrapper.
    """
    for value in values:
        engine = _engine_in(value)
        if engine is not None:
            raise TrainingLoopError(
                f"{type(engine).__name__} of DeepSpeed{_inside_of(value, engine)} has backward, step and loss scale of its own, "
                "and nobody else sees its gradients before it steps",
                "train it as it is (in float16 it skips a step that overflows), in a dtype that `failed_dtypes` leaves and "
                "within `safe_dtype.ranks.restarting()`; or by DDP or FSDP2, which are guarded",
            )


def _engine_in(value: Any) -> Any:
    if _is_of_deepspeed(value):
        return value
    # What is inside may be a layer of DeepSpeed in a model like any other: engines alone step themselves.
    modules = value.modules() if isinstance(value, nn.Module) else ()
    engines = (module for module in modules if _is_of_deepspeed(module) and hasattr(module, "allreduce_gradients"))
    return next(engines, None)


def _is_of_deepspeed(value: Any) -> bool:
    return any(kind.__module__.partition(".")[0] == "deepspeed" for kind in type(value).__mro__)


def _inside_of(value: Any, engine: Any) -> str:
    return "" if engine is value else f", inside of a {type(value).__name__},"


def require_trainer(trainer: Any) -> None:
    """Raise TypeError for what is no `transformers.Trainer`."""
    from transformers import Trainer

    if not isinstance(trainer, Trainer):
        raise TypeError(
            f"attach takes a Trainer of transformers, or of a subclass, not {_named(trainer)}. Next: "
            "attach(Trainer(model=model, args=arguments, train_dataset=data)); for a loop of your own "
            "PrecisionGuard(accelerator, model) or PrecisionGuard(TorchLoop(model, optimizer))"
        )


def require_accelerator(loop: Any) -> None:
    """Raise TypeError for what is no `accelerate.Accelerator`."""
    from transformers import Trainer

    try:
        from accelerate import Accelerator
    except ImportError:  # then it is none
        is_accelerator = False
    else:
        is_accelerator = isinstance(loop, Accelerator)
    if is_accelerator:
        return
    advice = "PrecisionGuard(accelerator, model), or PrecisionGuard(TorchLoop(model, optimizer)) in plain torch"
    if isinstance(loop, Trainer):
        advice = "safe_dtype.attach(trainer)"
    raise TypeError(f"PrecisionGuard takes an Accelerator or a TorchLoop, not {_named(loop)}. Next: {advice}")


def require_models(models: Iterable[Any], example: str, *, what: str = "models") -> None:
    """Raise TypeError for what is no module among `models`."""
    for model in models:
        if not isinstance(model, nn.Module):
            raise TypeError(f"{what} are of torch.nn.Module, not {_named(model)}. Next: {example}")


def require_optimizers(optimizers: Iterable[Any], example: str) -> None:
    """Raise TypeError for what is no optimizer of torch."""
    for optimizer in optimizers:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"an optimizer is of torch.optim.Optimizer, not {_named(optimizer)}. Next: {example}")


def require_ladder(ladder: Any) -> None:
    """Raise TypeError for what is no sequence of dtypes."""
    wrong = ladder
    if isinstance(ladder, Sequence) and not isinstance(ladder, str):
        wrong = next((dtype for dtype in ladder if not isinstance(dtype, Dtype)), None)
        if wrong is None:
            return
    raise TypeError(f"a ladder is made of dtypes, not {_named(wrong)}. Next: {_LADDER}")


def require_dtype(dtype: Any) -> None:
    """Raise TypeError for what is neither a dtype nor the name of one."""
    if not isinstance(dtype, str | Dtype):
        raise TypeError(
            f"dtype is one of safe_dtype or its name, not {_named(dtype)}. Next: 'bfloat16', 'float16' or 'float32'"
        )


def require_scale(name: str, scale: Any) -> None:
    """Raise TypeError for what is no number, ValueError for one that no loss can be multiplied by."""
    text = f"{name} is a number above 0, not {_named(scale)}. Next: 2.0**16 to begin with, 1.0 at the least"
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise TypeError(text)
    if not 0 < scale < math.inf:
        raise ValueError(text)


def require_batches(batches: Any, size: Any) -> None:
    """Raise TypeError for what cannot be cut into windows of `size`."""
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches are a data loader or a list, not {_named(batches)}. Next: guard.windows(loader, 4)")
    if not isinstance(size, int):
        raise TypeError(f"a window has so many micro-batches, not {_named(size)}. Next: guard.windows(loader, 4)")


def require_names(names: Any) -> None:
    """Raise TypeError for what are no names of layers: one alone, above all."""
    wrong = names
    if isinstance(names, Collection) and not isinstance(names, str):
        wrong = next((name for name in names if not isinstance(name, str)), None)
        if wrong is None:
            return
    raise TypeError(f"layers are a list of names, not {_named(wrong)}. Next: guard.rescale(['lm_head'])")


def require_state(state: Any) -> None:
    """Raise TypeError for what is no state of a guard."""
    if not isinstance(state, Mapping):
        raise TypeError(f"a state is what guard.state_dict() has returned, not {_named(state)}. Next: pass that")
    require_names(state.get("rescaled", ()))


def _named(value: Any) -> str:
    """Return what was passed, as a person says it."""
    return repr(value) if isinstance(value, _PLAIN) else f"a {type(value).__name__}"
