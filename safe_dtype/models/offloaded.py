"""Weights that accelerate keeps in main memory or on disk and brings in for every call of their module."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..hub.headers import read_local_header
from .undo_log import UndoLog, way_back


def tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield every weight kept in main memory, tied ones once."""
    seen: set[int] = set()
    for store in _stores(model):
        for tensor in _tensors_of(store).values():
            if tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                yield tensor


def recast(
    model: nn.Module,
    former: Collection[torch.dtype],
    new: torch.dtype,
    in_float32: Callable[[str], bool],
    original: Callable[[str, torch.Tensor], torch.Tensor | None],
    log: UndoLog,
) -> tuple[int, int]:
    """Cast what is kept in main memory, or what `original` returns for it, and have what lies on disk read in `new`.

    The way back is noted in `log`.


    Returns how many weights changed, and by how many bytes main memory grew.
    """
    count = grown = 0
    replaced: dict[int, torch.Tensor] = {}
    backs: dict[int, Callable[[], torch.Tensor]] = {}
    log.add(lambda: _forget_copies(model, {}))
    for store in _stores(model):
        tensors = _tensors_of(store)
        for name, tensor in list(tensors.items()):
            if tensor.dtype not in former:
                continue
            if tensor.data_ptr() not in replaced:
                stored = original(name, tensor)
                values = tensor if stored is None else stored
                changed = replaced[tensor.data_ptr()] = values.to(torch.float32 if in_float32(name) else new)
                if not log.forgets:
                    backs[tensor.data_ptr()] = _once(way_back(tensor, changed), changed)
                grown += tensor.numel() * (new.itemsize - tensor.dtype.itemsize)
            if tensor.data_ptr() in backs:
                log.add(functools.partial(_put_back, tensors, name, backs[tensor.data_ptr()]))
            tensors[name] = replaced[tensor.data_ptr()]
            count += 1
        for name, entry in getattr(store, "index", {}).items():
            # A safetensors file is cast to this dtype when read; beside it only raw files have one, and theirs is
            # how they were written.
            if "safetensors_file" in entry and _torch_dtype(entry.get("dtype")) in former:
                log.add(functools.partial(entry.__setitem__, "dtype", entry["dtype"]))
                entry["dtype"] = str(torch.float32 if in_float32(name) else new).removeprefix("torch.")
                count += 1
    _forget_copies(model, replaced)
    return count, grown


def on_disk(model: nn.Module) -> Iterator[tuple[str, torch.dtype]]:
    """Yield every weight that lies on disk, with the dtype that it has there.

    That is not always the checkpoint's: transformers writes anew, as it loaded it, what it joins of several tensors.
    """
    headers: dict[str, dict[str, torch.dtype]] = {}
    for store in _stores(model):
        for name, entry in getattr(store, "index", {}).items():
            file = entry.get("safetensors_file")
            if file is not None and file not in headers:
                headers[file] = _dtypes_in(file)
            dtype = headers[file].get(entry.get("weight_name", name)) if file else _torch_dtype(entry.get("dtype"))
            if dtype is not None:
                yield name, dtype


def _dtypes_in(file: str) -> dict[str, torch.dtype]:
    try:
        return {one.name: getattr(torch, one.dtype) for one in read_local_header(Path(file))}
    except OSError:  # accelerate raises it again, when it reads the file
        return {}


def _once(back: Callable[[torch.Tensor], torch.Tensor], changed: torch.Tensor) -> Callable[[], torch.Tensor]:
    return functools.cache(lambda: back(changed))  # tied weights are one tensor again


def _put_back(tensors: MutableMapping[str, torch.Tensor], name: str, back: Callable[[], torch.Tensor]) -> None:
    tensors[name] = back()


def execution_devices(model: nn.Module) -> Iterator[torch.device]:
    """Yield the devices that accelerate's hooks bring weights to."""
    for hook in _hooks(model):
        if (where := getattr(hook, "execution_device", None)) is not None:
            yield torch.device(where)


def is_offloaded(model: nn.Module) -> bool:
    """Whether accelerate brings in any weight of `model` at run time."""
    return next(_stores(model), None) is not None


def _hooks(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        yield from getattr(hook, "hooks", (hook,) if hook is not None else ())


def _stores(model: nn.Module) -> Iterator[Any]:
    """Yield every place where hooks find offloaded weights, each once: a loader of accelerate, or a plain dict."""
    seen: set[int] = set()
    for hook in _hooks(model):
        store: Any = getattr(hook, "weights_map", None) if getattr(hook, "offload", False) else None
        while hasattr(store, "dataset"):  # a view under a prefix
            store = store.dataset
        if store is not None and id(store) not in seen:
            seen.add(id(store))
            yield store


def _tensors_of(store: Any) -> MutableMapping[str, torch.Tensor]:
    tensors = getattr(store, "state_dict", store)
    return tensors if isinstance(tensors, MutableMapping) else {}


def _forget_copies(model: nn.Module, replaced: dict[int, torch.Tensor]) -> None:
    """Tied weights are found by address, and their copies on a device are handed out as they are."""
    for shared in {
        id(pointers): pointers for hook in _hooks(model) if (pointers := getattr(hook, "tied_params_map", None))
    }.values():
        for address in list(shared):
            shared[address].clear()
            if address in replaced:
                shared[replaced[address].data_ptr()] = shared.pop(address)


def _torch_dtype(name: str | None) -> torch.dtype | None:
    return getattr(torch, name, None) if name else None
