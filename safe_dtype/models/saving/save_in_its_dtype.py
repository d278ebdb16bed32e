"""Save a model that is not rescued in the dtype of its checkpoint: `save_pretrained`, and accelerate's own way."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..origin import own_origin
from ..wrapped_methods import wrap_method
from .late_tensor import made
from .saved_dtype import config_saying, dtype_of_save, in_saved_dtype

logger = logging.getLogger(__name__)


def wrap_accelerate(user: object) -> None:
    """Have `Accelerator.save_model` write models in the dtype that they are saved in, for as long as `user` lives."""
    wrap_method(Accelerator, "save_model", _saving_by_accelerate, user)
    wrap_method(Accelerator, "get_state_dict", _state_for_accelerate, user)
    wrap_method(Accelerator, "save", _saving_a_shard, user)


class _Here(threading.local):
    # Where `Accelerator.save_model`, in which this thread is, writes; `save_state` saves what it resumes from.
    folder: Any = None


_here = _Here()


def _saving_by_accelerate(original: Callable[..., Any]) -> Callable[..., Any]:
    def save_model(self: Any, model: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        before, _here.folder = _here.folder, save_directory
        try:
            return original(self, model, save_directory, *args, **kwargs)
        finally:
            _here.folder = before

    return save_model


def _state_for_accelerate(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_state_dict(self: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        state = original(self, model, *args, **kwargs)
        whole = self.unwrap_model(model)
        if _here.folder is None or not state or dtype_of_save(whole) is None:
            return state
        cast = in_saved_dtype(whole, state)
        return made(cast) if writes_over(whole, _here.folder) else cast

    return get_state_dict


def _saving_a_shard(original: Callable[..., Any]) -> Callable[..., Any]:
    def save(self: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        # Made for this file, and gone with it: accelerate keeps what it was handed until the last one is written.
        return original(self, made(obj) if type(obj) is dict and _here.folder is not None else obj, *args, **kwargs)

    return save


def save_in_its_dtype(original: Callable[..., Any], model: Any, folder: Any, *args: Any, **kwargs: Any) -> Any:
    """Call `original`, which is `save_pretrained`, with weights and config in the dtype that `model` is saved in."""
    dtype = dtype_of_save(model)
    args, kwargs = by_name(original, args, kwargs)
    if dtype is None or kwargs.get("distributed_checkpoint"):
        return original(model, folder, *args, **kwargs)
    passed = kwargs.get("state_dict")
    state = model.state_dict() if passed is None else passed
    cast = in_saved_dtype(model, state)
    # Asked by dtype: what stays as it is may stand there as another of its tied tensors.
    changed = [
        tensor for name, tensor in cast.items() if isinstance(tensor, Tensor) and tensor.dtype != state[name].dtype
    ]
    if not changed or any(tensor.is_meta for tensor in changed):  # offloaded weights are written as they lie there
        return original(model, folder, *args, **kwargs)
    if writes_over(model, folder):
        cast = made(cast)
    name = type(model).__name__
    logger.info("%s is saved in %s, as its checkpoint was; in memory it is in %s", name, dtype, model.dtype)
    kwargs["state_dict"] = cast
    with config_saying(model.config, getattr(torch, dtype.name)):
        return original(model, folder, *args, **kwargs)


def writes_over(model: nn.Module, folder: Any) -> bool:
    """Whether `folder` holds a file that weights of `model` were loaded from: all are read before the first is written."""
    origins = [origin for module in model.modules() if (origin := own_origin(module)) is not None]
    files = {mark.path for origin in origins for mark in origin.files.marks}
    return bool(files) and any(file.resolve() in files for file in Path(folder).glob("*"))


def by_name(
    original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of `save_pretrained` after the folder by their names, and those positional ones that have none."""
    parameters = inspect.signature(original).parameters.values()
    names = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD][2:]
    named = dict(zip(names, args, strict=False))
    if named.keys() & kwargs.keys():  # passed twice, which `original` refuses
        return args, kwargs
    return args[len(names) :], {**named, **kwargs}
