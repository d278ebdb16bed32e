"""The dtype that a model is saved in: that of its checkpoint, whatever it was loaded in, unless the user says otherwise."""

from __future__ import annotations

import functools
import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ...facts import BFLOAT16, COMPUTE, Dtype
from ...planning import Plan
from ...processes.forked_lock import ForkedLock
from ..origin import known_origin
from ..original_weights import OriginalWeights
from ..wrapped_methods import wrap_method
from .late_tensor import LateTensor

logger = logging.getLogger(__name__)

_ATTRIBUTE = "_safe_dtype_saved_dtype"  # in the __dict__ of the model, and of the models in it
_CASTS = ("to", "float", "half", "bfloat16", "double", "type")
_config_changes = ForkedLock()
_AT_ONCE = 2**24  # numbers looked at in one go
_FLOATS = tuple(getattr(torch, dtype.name) for dtype in COMPUTE)


class SavedDtype:
    """What a loaded model is saved in. Copied with it; a pickled model leaves it behind, as it does its origin.

    While one exists, casts by the user are noticed: then what is in memory is what he wants to have saved.
    """

    def __init__(
        self, model: nn.Module, dtype: Dtype, *, was_rounded: bool, wrap_saves: Callable[[object], None]
    ) -> None:
        self.dtype = dtype
        self.was_rounded = was_rounded  # on loading: the files hold more than the model
        self.is_off = False
        self.cast: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # modules in it that the user has cast
        self._model = weakref.ref(model)
        self._wrap_saves = wrap_saves
        wrap_saves(self)
        for name in _CASTS:
            wrap_method(nn.Module, name, _NOTICING[name], self)
        _all.add(self)

    @property
    def model(self) -> nn.Module | None:
        """The whole model that was loaded."""
        return self._model()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def __deepcopy__(self, memo: dict[int, Any]) -> SavedDtype | None:
        copied = memo.get(id(self.model))
        if copied is None:  # a part alone, which is saved as it is
            return None
        copy = SavedDtype(copied, self.dtype, was_rounded=self.was_rounded, wrap_saves=self._wrap_saves)
        copy.is_off = self.is_off
        return copy


def keep_saved_dtype(model: nn.Module, plan: Plan, wrap_saves: Callable[[object], None]) -> None:
    """Note the dtype that `model`, loaded as planned, is to be saved in; where there is none, it is saved as it is in memory.

    Args:
        model: As it was loaded.
        plan: That it was loaded with.
        wrap_saves: Wraps the methods that save, for as long as its argument lives.
    """
    dtype = _dtype_by_plan(plan)
    if dtype is None:
        return
    was_rounded = not plan.storage.holds(plan.saved) and dtype == plan.saved
    saved = SavedDtype(model, dtype, was_rounded=was_rounded, wrap_saves=wrap_saves)
    for module in model.modules():
        if isinstance(module, PreTrainedModel) or module is model:
            module.__dict__[_ATTRIBUTE] = saved


def dtype_of_save(model: nn.Module) -> Dtype | None:
    """Return the dtype that `model`, or what it is a part of, is saved in; None: as it is in memory.

    No other function decides this. What is rescued, whatever the policy says, is no model as it is in memory: see
    `dtype_of_rescued`.
    """
    saved = _saved_dtype_of(model)
    return None if saved is None else saved.dtype


def dtype_of_rescued(model: nn.Module) -> Dtype:
    """Return the dtype that a model with a rescale or islands in force is saved in: that of its checkpoint."""
    origin = known_origin(model)
    return BFLOAT16 if origin is None else origin.plan.saved


def _dtype_by_plan(plan: Plan) -> Dtype | None:
    """Return the dtype that was ordered, else the checkpoint's own; None: that which the model is in.

    A quantizer has rules of its own, in strict mode nothing is ever changed, a ladder without the checkpoint's dtype is an
    order, and who wants memory wants small files.
    """
    policy = plan.policy
    is_left_out = bool(policy.ladder) and plan.saved not in policy.ladder
    if plan.quantization or policy.mode == "strict" or policy.save == "as-is" or is_left_out:
        return None
    if policy.prefer == "memory" and not plan.storage.holds(plan.saved):
        return None
    # Rescued weights were never rounded to what was ordered: they are written as they were.
    rescued = plan.rescale is not None or bool(plan.islands)
    dtype = plan.saved if rescued or plan.ordered is None else plan.ordered
    return dtype if dtype in COMPUTE else None


def _saved_dtype_of(model: nn.Module) -> SavedDtype | None:
    saved = model.__dict__.get(_ATTRIBUTE)
    is_ours = isinstance(saved, SavedDtype) and not saved.is_off and not _here.as_it_is
    return saved if is_ours else None


def in_saved_dtype(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict of `model` with every tensor in the dtype that it is saved in.

    Floating-point tensors are cast when they are read, into main memory (see `LateTensor`). What was rounded on loading and
    not changed since comes from its file. What the file itself holds in a finer dtype, and what would become infinite, stays
    as it is.
    """
    saved = _saved_dtype_of(model)
    if saved is None:
        return dict(state)
    whole = saved.model or model  # a part may outlive it
    dtype = getattr(torch, saved.dtype.name)
    path = next((f"{name}." if name else "" for name, module in whole.named_modules() if module is model), "")
    left = [f"{name}.".removeprefix(path) for name, module in whole.named_modules() if module in saved.cast]
    casts: dict[tuple[Any, ...], Tensor] = {}  # tied weights stay tied
    cast: dict[str, Any] = {}
    with OriginalWeights(whole) as original:
        for name, tensor in state.items():
            own_dtype = isinstance(tensor, Tensor) and tensor.dtype in _FLOATS and tensor.dtype != dtype
            if not own_dtype or any(name.startswith(prefix) for prefix in left):
                cast[name] = tensor
                continue
            key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
            if tensor.is_meta or key not in casts:
                casts[key] = _in_dtype(dtype, path + name, tensor, original, was_rounded=saved.was_rounded)
            cast[name] = casts[key]
    return cast


def _in_dtype(
    dtype: torch.dtype, name: str, tensor: Tensor, original: OriginalWeights, *, was_rounded: bool
) -> Tensor:
    if tensor.is_meta or type(tensor.data) is not Tensor:  # offloaded; or sharded: it is gathered later
        return tensor.to(dtype)
    if original.loses(name, dtype) or _overflows(tensor, dtype):
        stored = original.unchanged(name, tensor) if was_rounded else None
        return tensor if stored is None else stored if _overflows(stored, dtype) else stored.to(dtype)
    if not was_rounded:
        return LateTensor.cast(tensor, dtype)

    def make() -> Tensor:
        with original:  # files are open no longer than they are read
            stored = original.unchanged(name, tensor)
        return tensor if stored is None else stored

    return LateTensor(make, tensor, dtype)


def _overflows(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether a finite number of `tensor` is infinite in `dtype`; no copy of the whole is made."""
    if dtype != torch.float16:
        return False
    pieces = torch.split(tensor.detach().reshape(-1), _AT_ONCE)
    return not all(torch.equal(piece.to(dtype).isfinite(), piece.isfinite()) for piece in pieces)


@contextmanager
def config_saying(config: Any, dtype: torch.dtype, then: Callable[[Any], object] | None = None) -> Iterator[None]:
    """Have `config`, and those in it, say `dtype` where it is saved within the block; call `then` with the folder.

    Other threads that want this wait: a config says one dtype at a time.
    """
    with _config_changes:
        parts = [config, *_configs_in(config)]
        before = [part.dtype for part in parts]
        save = config.save_pretrained

        def save_pretrained(directory: Any, **kwargs: Any) -> Any:
            config.__dict__.pop("save_pretrained", None)  # it is no part of what is saved
            for part, now in zip(parts, before, strict=True):
                part.dtype = None if now is None and part is not config else dtype
            result = save(directory, **kwargs)
            if then is not None:
                then(directory)
            return result

        config.__dict__["save_pretrained"] = save_pretrained
        try:
            yield
        finally:
            config.__dict__.pop("save_pretrained", None)
            for part, now in zip(parts, before, strict=True):
                part.dtype = now


def _configs_in(config: Any) -> list[Any]:
    inner = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return [one for part in inner for one in (part, *_configs_in(part))]


_all: weakref.WeakSet[SavedDtype] = weakref.WeakSet()


class _Here(threading.local):
    as_it_is = False


_here = _Here()


@contextmanager
def saved_as_it_is() -> Iterator[None]:
    """Have this thread save models as they are in memory while the block runs."""
    before, _here.as_it_is = _here.as_it_is, True
    try:
        yield
    finally:
        _here.as_it_is = before


def _noticing(original: Callable[..., Any]) -> Callable[..., Any]:
    def cast(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        _notice(self)
        return result

    return cast


def _noticing_a_dtype(original: Callable[..., Any]) -> Callable[..., Any]:
    def to(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if any(isinstance(value, torch.dtype | Tensor) for value in (*args, *kwargs.values())):
            _notice(self)
        return result

    return to


def _notice(module: nn.Module) -> None:
    """The user has cast `module`: it is saved in what he cast it to."""
    inside = set(module.modules())
    for saved in list(_all):
        if saved.model in inside:
            saved.is_off = True
        elif saved.model is not None and any(part is module for part in saved.model.modules()):
            saved.cast.add(module)


_NOTICING = {name: functools.partial(_noticing_a_dtype if name == "to" else _noticing) for name in _CASTS}
