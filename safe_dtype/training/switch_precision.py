"""Another mixed precision for an `Accelerator` that is already training.

accelerate decides the precision once: in the state that all Accelerators of a process share, in a scaler, in a wrapper
around the forward of every prepared model, and in every prepared optimizer. All of them are rebuilt here as accelerate
builds them, but for one thing: float16 on a CPU, which accelerate accepts and then trains in float32, is float16 with a
scaler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.metadata import version
from types import MethodType
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import NeedsRestart, NotSwitchableError
from ..facts import BFLOAT16, FLOAT16, FLOAT32, Dtype
from ..ranks.fsdp2 import dtype_computed_in, policy_in, require_switchable, switch_policy
from .torch_loop import ScalerOfMeshes

# accelerate's names, of `mixed_precision`.
NAME_OF_DTYPE = {BFLOAT16: "bf16", FLOAT16: "fp16", FLOAT32: "no"}
DTYPE_OF_NAME = {name: dtype for dtype, name in NAME_OF_DTYPE.items()}

# By the name of accelerate's DistributedType: each has the precision in its own configuration, made at the start.
_ENGINES = {"DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM", "XLA": "XLA"}
_INSTEAD = {
    "FSDP1": (
        "shard by FSDP2, which is guarded: fsdp_version=2 in accelerate, fsdp_config={'version': 2} in TrainingArguments"
    ),
    "accelerate's regional compilation": "compile the model as a whole, with use_regional_compilation=False",
}
_COMPUTES_IN = "_safe_dtype_computes_in"  # in the __dict__ of a model whose wrapper was changed here
_OF_STEP = ("_accelerate_step_called", "_optimizer_original_step_method", "_optimizer_patched_step_method")


def precision_of(accelerator: Any) -> Dtype:
    """Return the dtype that the prepared models compute in: float32 where float16 was asked for on a CPU, and ignored.

    Raises:
        NeedsRestart: If it is none of bfloat16, float16 and float32.
    """
    name = accelerator.mixed_precision
    if name not in DTYPE_OF_NAME:
        raise NeedsRestart(f"mixed_precision={name!r}", advice="ask for 'bf16', 'fp16' or 'no', which are guarded")
    return DTYPE_OF_NAME[name] if accelerator.native_amp else FLOAT32


def engine_of(accelerator: Any) -> str | None:
    """Return the engine that has the precision built in; None where accelerate itself has it, and can change it."""
    kind = accelerator.distributed_type.name
    if kind == "FSDP" and not accelerator.is_fsdp2:
        return "FSDP1"
    if accelerator._models and accelerator.state.dynamo_plugin.use_regional_compilation:
        return "accelerate's regional compilation"  # the copy of the model that it compiles has a forward of its own
    return _ENGINES.get(kind)


def refuse_engine(engine: str) -> NoReturn:
    """Raise NeedsRestart before anything has failed, with what to train by instead: in no dtype is it guarded."""
    raise NeedsRestart(engine, advice=_INSTEAD.get(engine, ""))


def switch_precision(accelerator: Any, dtype: Dtype, *, init_scale: float | None = None) -> None:
    """Have everything that `accelerator` has prepared, and will prepare, compute in `dtype`.

    Weights and optimizer states are left as they are. Every rank has to call it at the same step.

    Args:
        accelerator: An `accelerate.Accelerator`.
        dtype: bfloat16, float16 (with a new `GradScaler`) or float32.
        init_scale: Of that scaler; else that of the Accelerator's `GradScalerKwargs`.

    Raises:
        NeedsRestart: If an engine has its precision built in.
        NotSwitchableError: If accelerate lacks what has to be rebuilt, something else was wrapped around the forward of
            a model, or parameters that are trained in float16 leave nothing for a scaler to do. Nothing was changed.
    """
    parts = _Parts(accelerator)
    engine = engine_of(accelerator)
    if engine is not None:
        raise NeedsRestart(engine, dtype.name)
    precision_of(accelerator)  # refuses float8
    models = [] if accelerator.is_fsdp2 else [_Prepared(_wrapped_in(model)) for model in accelerator._models]
    for sharded in _sharded(accelerator):
        require_switchable(sharded, dtype)
    if dtype == FLOAT16:
        _refuse_float16_parameters(accelerator)
    scaler = parts.scaler(init_scale) if dtype == FLOAT16 else None

    # ACCELERATE_MIXED_PRECISION says what the program was started with: TrainingArguments made later begin with that.
    accelerator.state._mixed_precision = NAME_OF_DTYPE[dtype]  # of all Accelerators of the process
    accelerator.native_amp = dtype != FLOAT32
    accelerator.scaler = scaler
    for model in models:
        model.unwrap()
        if accelerator.native_amp:
            model.wrap(parts.autocast(), parts.to_float32)
        model.note(dtype)
    for optimizer in accelerator._optimizers:
        parts.give_scaler(optimizer, scaler)
    for sharded in _sharded(accelerator):
        _switch_sharded(accelerator, sharded, dtype)


def follow_precision(accelerator: Any, *, init_scale: float | None = None) -> None:
    """Have models compute in the precision of `accelerator` that compute in another one since an earlier run.

    accelerate prepares no model twice: one that has come down to another precision would stay there, and its loss would
    be scaled as that of this Accelerator is.
    """
    dtype = precision_of(accelerator)
    holders = [_holder(_wrapped_in(model)) for model in accelerator._models]
    if any(vars(holder).get(_COMPUTES_IN, NAME_OF_DTYPE[dtype]) != NAME_OF_DTYPE[dtype] for holder in holders):
        switch_precision(accelerator, dtype, init_scale=init_scale)


def remember_models(accelerator: Any, models: Iterable[nn.Module]) -> None:
    """Have `accelerator` know those of `models` again that it has prepared, and that its `free_memory` made it forget.

    Without that a switch would leave them as they are. The Trainer calls it as each run begins, and hands a model in DDP, or
    a compiled one, on as it is. What is put into the list is what `prepare` puts there: the model inside of these.
    """
    known = {id(_wrapped_in(model)) for model in accelerator._models}
    for model in models:
        wrapped = _wrapped_in(model)
        if getattr(model, "_is_accelerate_prepared", False) and id(wrapped) not in known:
            accelerator._models.append(wrapped)
            known.add(id(wrapped))


def _sharded(accelerator: Any) -> list[nn.Module]:
    """Return the models that accelerate has put under FSDP2: it leaves their forward as it is."""
    return list(accelerator._models) if accelerator.is_fsdp2 else []


def _switch_sharded(accelerator: Any, model: nn.Module, dtype: Dtype) -> None:
    former, plugin = dtype_computed_in(model), accelerator.state.fsdp_plugin
    switch_policy(model, dtype)
    if plugin.mixed_precision_policy is not None and former is not None:  # of models that it prepares from now on
        plugin.mixed_precision_policy = policy_in(plugin.mixed_precision_policy, former, getattr(torch, dtype.name))


def _refuse_float16_parameters(accelerator: Any) -> None:
    for model in accelerator._models:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.dtype is torch.float16:
                raise NotSwitchableError(
                    f"{name} is trained in float16, whose gradients GradScaler refuses to unscale",
                    "load the model in float32 and leave float16 to mixed_precision='fp16'",
                )


class _Parts:
    """What accelerate builds a precision of. Much of it is private: whatever is missing is named before anything changes."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        for owner, names in (
            (accelerator, ("native_amp", "scaler", "autocast_handler", "scaler_handler", "_models", "_optimizers")),
            (accelerator.state, ("_mixed_precision",)),
            *((optimizer, ("scaler", "_is_overflow")) for optimizer in getattr(accelerator, "_optimizers", ())),
        ):
            for name in names:
                if not hasattr(owner, name):
                    raise _missing(f"{type(owner).__name__}.{name}")
        self._context = _function("accelerate.utils.modeling", "get_mixed_precision_context_manager")
        self._grad_scaler = _function("accelerate.utils.modeling", "get_grad_scaler")
        self._patch_step = _function("accelerate.optimizer", "patch_optimizer_step")
        self.to_float32 = _function("accelerate.utils", "convert_outputs_to_fp32")

    def autocast(self) -> Any:
        """Return a new autocast context of the precision that the state names now."""
        return self._context(True, self._accelerator.autocast_handler)  # noqa: FBT003  (accelerate's own signature)

    def scaler(self, init_scale: float | None) -> Any:
        """Return a new scaler for the device that the Accelerator is on."""
        handler = self._accelerator.scaler_handler
        settings = handler.to_kwargs() if handler is not None else {}
        if init_scale is not None:
            settings["init_scale"] = init_scale
        if self._accelerator.is_fsdp2:
            return ScalerOfMeshes(self._accelerator.device.type, **settings)
        if self._accelerator.device.type == "cpu":  # accelerate would make one for CUDA
            return torch.amp.GradScaler("cpu", **settings)
        return self._grad_scaler(self._accelerator.distributed_type, **settings)

    def give_scaler(self, optimizer: Any, scaler: Any) -> None:
        """Have a prepared optimizer step with `scaler`, or without one."""
        for name in _OF_STEP:
            optimizer.__dict__.pop(name, None)
        optimizer.scaler = scaler
        optimizer._is_overflow = False
        if scaler is not None:  # as in its __init__
            optimizer._accelerate_step_called = False
            optimizer._optimizer_original_step_method = optimizer.optimizer.step
            optimizer._optimizer_patched_step_method = self._patch_step(optimizer, optimizer.optimizer.step)


class _Prepared:
    """A prepared model, and the wrapper that accelerate has put around its forward."""

    def __init__(self, model: nn.Module) -> None:
        self._model: Any = model
        self._holder = _holder(model)
        if "_original_forward" in self._holder.__dict__ and not _is_of_accelerate(self._model.forward):
            raise NotSwitchableError(
                f"the forward of {type(model).__name__} was wrapped or replaced after accelerate had prepared it",
                "wrap it before accelerator.prepare(), or use a forward hook",
            )

    def unwrap(self) -> None:
        """Have the model compute without autocast, as before it was prepared."""
        original = self._holder.__dict__.pop("_original_forward", None)
        if original is None:
            return
        original = _bare(original)
        method = getattr(type(self._model), "forward", None)
        if getattr(original, "__self__", None) is self._model and original.__func__ is method:
            del self._model.__dict__["forward"]  # it refers to the model itself, and cannot be pickled
        else:
            self._model.forward = original

    def note(self, dtype: Dtype) -> None:
        """Note on the model what it computes in, for whoever prepares it again."""
        self._holder.__dict__[_COMPUTES_IN] = NAME_OF_DTYPE[dtype]

    def wrap(self, autocast: Any, to_float32: Callable[[Any], Any]) -> None:
        """Put the wrapper around forward that `Accelerator.prepare_model` puts there."""
        forward = self._model.forward
        self._model._original_forward = forward
        if hasattr(forward, "__func__"):
            self._model.forward = MethodType(to_float32(autocast(forward.__func__)), self._model)
        else:
            self._model.forward = to_float32(autocast(forward))


def _holder(model: Any) -> Any:
    """Return where its attributes are: a compiled module hands those that it does not know on to what it was made of."""
    return getattr(model, "_orig_mod", model)


def _wrapped_in(model: Any) -> Any:
    """Return the model whose forward accelerate wraps: DDP and the compiler come around that one.

    One that was compiled before it was prepared has the wrapper itself.
    """
    while not _is_of_accelerate(model.forward):
        inner = _holder(model)
        if inner is model:
            if not isinstance(model, DistributedDataParallel):
                break
            inner = model.module
        model = inner
    return model


def _bare(forward: Any) -> Any:
    """Return the forward inside of all wrappers: under DDP every Accelerator puts one around that of the one before."""
    while _is_of_accelerate(forward):
        inner = getattr(forward, "__func__", forward).__wrapped__.model_forward.__wrapped__
        forward = MethodType(inner, forward.__self__) if hasattr(forward, "__self__") else inner
    return forward


def _is_of_accelerate(forward: Any) -> bool:
    inner = getattr(getattr(forward, "__func__", forward), "__wrapped__", None)
    return type(inner).__name__ == "ConvertOutputsToFp32"


def _function(module: str, name: str) -> Any:
    """Return a function of accelerate."""
    function = getattr(import_module(module), name, None)
    if function is None:
        raise _missing(f"{module}.{name}")
    return function


def _missing(name: str) -> NotSwitchableError:
    return NotSwitchableError(
        f"accelerate {version('accelerate')} has no {name}",
        "start again in the other precision, or install accelerate 1.15",
    )
