"""PyTorch's own files: the tensors they hold, without reading them and without running what they carry."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

from ..errors import CorruptCheckpointError, UnsafeCheckpointError
from ..facts import TensorFacts


def read_pickled(path: Path) -> tuple[TensorFacts, ...]:
    """Return the tensors of one `.bin` file.

    Raises:
        UnsafeCheckpointError: If unpickling it would run code.
        CorruptCheckpointError: If it is no file of torch's.
    """
    import torch

    try:
        with warnings.catch_warnings():  # torch's doubts about old protocols; it reads or refuses them
            warnings.simplefilter("ignore")
            # On the meta device no bytes of the tensors are read; weights_only refuses everything but tensors.
            loaded = torch.load(path, map_location="meta", weights_only=True)
    except pickle.UnpicklingError as exc:
        if "Unsupported" not in str(exc) and "WeightsUnpickler" not in str(exc) and "Weights only" not in str(exc):
            raise _corrupt(path, exc) from exc
        if not _is_archive(path):
            raise _corrupt(path, exc) from exc
        problem = f"{path.name} holds more than tensors, and loading it would run code"
        raise UnsafeCheckpointError(str(path.parent), problem, "ask its author for safetensors") from exc
    except (RuntimeError, EOFError, ValueError, OSError) as exc:
        raise _corrupt(path, exc) from exc
    return tuple(
        TensorFacts(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), path.name)
        for name, tensor in table_of(loaded).items()
    )


def _is_archive(path: Path) -> bool:
    return zipfile.is_zipfile(path) or path.read_bytes()[:2] == b"\x80\x02"


def table_of(loaded: Any) -> dict[str, Any]:
    """Return the tensors in what `torch.load` returned, by name."""
    import torch

    table = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    return {str(name): tensor for name, tensor in table.items() if isinstance(tensor, torch.Tensor)}


def _corrupt(path: Path, exc: Exception) -> CorruptCheckpointError:
    problem = f"{path.name} is no file of torch's ({str(exc).splitlines()[0][:120]})"
    return CorruptCheckpointError(str(path.parent), problem, "download it again")
