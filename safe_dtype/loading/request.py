"""What a call of `from_pretrained` asks for, read from its arguments without changing them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..checkpoints.config import DTYPE_NAMES, first
from ..devices import default_device
from ..devices.memory import allowance
from ..facts import FLOAT32, Dtype, Where, dtype_named

_OFFLOAD = ("cpu", "disk")
_SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")  # transformers' and accelerate's words


@dataclass(frozen=True)
class Request:
    """One call of `from_pretrained`: the checkpoint, and everything in the arguments that concerns the plan.

    Attributes:
        moved_to: Torch's name of the device that the whole model is moved to once it is loaded, where the caller has said so.
    """

    source: str | os.PathLike[str] | None
    arguments: Mapping[str, Any] = field(repr=False)  # may hold a token
    moved_to: str | None = None

    @property
    def where(self) -> Where:
        """Where the checkpoint's files are looked for, as transformers would look."""
        names = ("subfolder", "revision", "variant", "token", "cache_dir", "use_safetensors", "gguf_file")
        places = {name: self.arguments[name] for name in names if self.arguments.get(name) is not None}
        local_only = bool(self.arguments.get("local_files_only", False))
        return Where(os.fspath(self.source or ""), local_files_only=local_only, **places)

    def in_folder(self) -> Request:
        """Return the same request as `from_pretrained` takes it: of the path of a GGUF file its folder, and `gguf_file`."""
        if not isinstance(self.source, str | os.PathLike):
            return self
        where = self.where.in_folder()
        if where.name == os.fspath(self.source):
            return self
        return replace(self, source=where.source, arguments={**self.arguments, "gguf_file": where.gguf_file})

    @property
    def ordered(self) -> Dtype | None:
        """The dtype the caller passed: `dtype` wins over `torch_dtype`, None and "auto" mean none, as in transformers.

        Raises:
            UnknownDtypeError: If it is no dtype that safe_dtype knows.
        """
        dtype = self._dtype
        if isinstance(dtype, Mapping):
            # transformers 5 reads only the "" key of a dict, and loads everything in float32 where it is missing.
            dtype = dtype.get("", FLOAT32.name)
        return None if dtype is None or dtype == "auto" else dtype_named(str(dtype))

    @property
    def leaves_dtype(self) -> bool:
        """Whether the arguments name no dtype, so that transformers reads one from the config."""
        return self._dtype is None or (isinstance(self._dtype, str) and self._dtype == "auto")

    @property
    def _dtype(self) -> Any:
        return first(self.arguments, *DTYPE_NAMES)

    @property
    def quantizer(self) -> str | None:
        """The method of a `quantization_config` argument."""
        config = self.arguments.get("quantization_config")
        if config is None:
            return None
        method = config.get("quant_method") if isinstance(config, Mapping) else getattr(config, "quant_method", None)
        return str(getattr(method, "value", method) or type(config).__name__)

    @property
    def dequantizes(self) -> bool:
        """Whether a `quantization_config` argument has the weights dequantized; it comes before that of the files."""
        config = self.arguments.get("quantization_config")
        return (
            config.get("dequantize") if isinstance(config, Mapping) else getattr(config, "dequantize", None)
        ) is True

    @property
    def devices(self) -> tuple[str, ...]:
        """Every device that will compute, torch's names.

        Without `device_map` that is the device that the model is known to be moved to, else torch's default device where
        somebody set one, else the accelerator that the caller will move the model to, else the CPU.
        """
        device_map = self.arguments.get("device_map")
        if device_map is None:
            if self.moved_to is not None:
                return (self.moved_to,)
            default = where_tensors_are_made()
            return (default_device() if default.type == "cpu" else str(default),)
        if isinstance(device_map, Mapping):
            named = dict.fromkeys(device_name(one) for one in device_map.values())
            computing = tuple(one for one in named if one not in _OFFLOAD)
            return computing or ("cpu",)
        if device_map in _SPREAD:
            return tuple(device for device in all_accelerators() if self._has_room(device)) or ("cpu",)
        return (device_name(device_map),)

    def _has_room(self, device: str) -> bool:
        """Whether `max_memory` leaves anything to a device: accelerate fills those alone that it names."""
        max_memory = self.arguments.get("max_memory")
        return not isinstance(max_memory, Mapping) or bool(allowance(torch.device(device), max_memory))

    @property
    def spreads(self) -> bool:
        """Whether the caller lets the model be spread over several places."""
        device_map = self.arguments.get("device_map")
        return isinstance(device_map, str) and device_map in _SPREAD


def without_dtype(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of `from_pretrained` without the dtype that they order."""
    return {name: value for name, value in arguments.items() if name not in DTYPE_NAMES}


def device_name(device: Any) -> str:
    """Return torch's name of a device, which `device_map` may also give as an object or a number."""
    if not isinstance(device, int):
        return str(device)
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return f"{kind or 'cuda'}:{device}"


def where_tensors_are_made() -> torch.device:
    """Return torch's default device: the one that was set, or that of a `with torch.device(...)` around the call."""
    return torch.empty(0).device  # get_default_device of torch 2.6 knows nothing of the second


def all_accelerators() -> tuple[str, ...]:
    """Return torch's name of every accelerator that is here."""
    if not torch.accelerator.is_available():
        return ()
    kind = torch.accelerator.current_accelerator()
    return tuple(f"{kind}:{index}" for index in range(torch.accelerator.device_count()))
