"""The dtype of a config that the caller passes: an order, where the checkpoint's own config says something else."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoints.config import DTYPE_NAMES, first, read_config
from ..checkpoints.gguf import gguf_config
from ..checkpoints.model_files import LocalFiles, files_of
from ..checkpoints.read import base_of, is_adapter
from ..errors import CheckpointError
from ..facts import Where
from .request import Request


def with_order_of_config(request: Request) -> Request:
    """Return the request with the dtype of its config as its `dtype`, where transformers would obey that one.

    A config that says what the checkpoint's own says, or nothing, orders nothing: that is how Auto classes hand on
    what they read. A concrete `dtype=` comes before any config.

    Raises:
        CheckpointError: If the config that was passed is a file that cannot be read.
    """
    config = request.arguments.get("config")
    if config is None or not request.leaves_dtype:
        return request
    passed = passed_config(request)
    dtype = _dtype_of(passed)
    if dtype is None or dtype == _own_dtype(request, passed):
        return request
    return replace(request, arguments={**request.arguments, "dtype": dtype})


def passed_config(request: Request) -> Any:
    """Return the `config` argument; where it is a path, the content of that file.

    Raises:
        CheckpointError: If that file cannot be read.
    """
    config = request.arguments.get("config")
    if not isinstance(config, str | os.PathLike):
        return config
    path = Path(config)
    where = replace(request.where, source=os.fspath(config))
    return read_config(where, LocalFiles(path.parent) if path.is_file() else files_of(where))


def _own_dtype(request: Request, passed: Any) -> str | None:
    """Return the dtype in the checkpoint's own config: in that part of it which `passed` stands for."""
    weights = request.arguments.get("state_dict")
    if request.source is None:
        return next((_name(one.dtype) for one in (weights or {}).values() if one.is_floating_point()), None)
    own: Mapping[str, Any] = {}
    with suppress(CheckpointError):  # loading raises its own error
        own = _own_config(request.where)
    model_type = passed.get("model_type") if isinstance(passed, Mapping) else getattr(passed, "model_type", None)
    parts = [part for part in _parts(own) if part.get("model_type") == model_type]
    return _dtype_of((parts or [own])[0])


def _own_config(where: Where) -> Mapping[str, Any]:
    """Return the config in the checkpoint's own files, of an adapter that of its base; empty where there is none.

    Raises:
        CheckpointError: If it cannot be read.
    """
    path = Path(where.source)
    if where.gguf_file:
        return gguf_config(files_of(where).local(where.gguf_file))
    if path.is_file():
        return gguf_config(path) if path.suffix == ".gguf" else read_config(where, LocalFiles(path.parent))
    files = files_of(where)
    if is_adapter(files):
        return _own_config(base_of(where, files))
    return read_config(where, files)


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a config and those inside it, from the outside in."""
    yield config
    for part in config.values():
        if isinstance(part, Mapping):
            yield from _parts(part)


def _dtype_of(config: Any) -> str | None:
    """Return the dtype that a config object or table names itself, by torch's name; None for "auto" and for none."""
    dtype = first(config, *DTYPE_NAMES) if isinstance(config, Mapping) else getattr(config, "dtype", None)
    if isinstance(dtype, Mapping):
        dtype = dtype.get("")
    return None if dtype is None or dtype == "auto" else _name(dtype)


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
