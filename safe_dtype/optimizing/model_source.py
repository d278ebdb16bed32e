"""The model to optimize, as a folder or a file that other processes can load: from a path, from the Hub, from memory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from pickle import PicklingError

import torch

from ..checkpoints import read_checkpoint
from ..errors import CheckpointError, NotOptimizableError, SafeDtypeError
from ..facts import FLOAT32, Dtype, Where, dtype_named
from ..hub.repository import HubRepository
from ..models.saving.saved_dtype import saved_as_it_is
from .attempts.load_model import save_module, settings_of

MODULE_FILE = "model.pt"
# Weights that are never loaded here: those of other frameworks, and second copies.
_NOT_NEEDED = ("*.h5", "*.msgpack", "*.ot", "*.onnx*", "onnx/*", "openvino/*", "coreml/*", "*.gguf", "original/*")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model on the disk."""

    name: str  # as the user wrote it; of a path its last part, of an object its class
    path: Path  # a folder for `from_pretrained`, or a file of `save_module`
    model_class: str  # transformers' name of the class, empty for a module of the user's own
    saved: Dtype  # the dtype that holds most weights
    parameters: int
    loaded_with: tuple[str, ...] = ()  # settings of a model in memory that saving loses, as remedies


def source_of(model: str | PathLike[str] | torch.nn.Module, work: Path, *, revision: str | None = None) -> ModelSource:
    """Return where `model` is on the disk. A model in memory is written into `work` first.

    Raises:
        CheckpointError: If there is no such model.
        NotOptimizableError: If no other process could load it.
    """
    if isinstance(model, torch.nn.Module):
        return _of_object(model, work)
    path = Path(model)
    return _of_folder(str(model) if not path.exists() else path.resolve().name, _folder(str(model), revision))


def _of_object(model: torch.nn.Module, work: Path) -> ModelSource:
    parameters = list(model.parameters())
    floats = [one.dtype for one in parameters if one.is_floating_point()]
    saved = _own_dtype(max(set(floats), key=floats.count)) if floats else FLOAT32
    count, name = sum(one.numel() for one in parameters), type(model).__name__
    if _is_of_transformers(model):
        folder = work / "model"
        with saved_as_it_is():
            model.save_pretrained(folder)  # type: ignore[operator]  # it is a PreTrainedModel
        return ModelSource(name, folder, name, saved, count, settings_of(model))
    try:
        save_module(model, work / MODULE_FILE)
    except (ValueError, AttributeError, TypeError, PicklingError) as exc:  # pickle raises any of these
        raise NotOptimizableError(
            f"{name} cannot be written to a file that another process reads ({exc})",
            "define its classes in a module that can be imported, without lambdas and local classes",
        ) from exc
    return ModelSource(name, work / MODULE_FILE, "", saved, count)


def _of_folder(name: str, folder: Path) -> ModelSource:
    checkpoint = read_checkpoint(Where(str(folder)))
    model_class = checkpoint.architecture or _architecture(folder)
    import transformers

    if not model_class or getattr(transformers, model_class, None) is None:
        raise NotOptimizableError(
            f"{name} is a {model_class or 'model without a class in its config.json'}, which this transformers does not have",
            "load it in Python, with the code that it brings, and pass the model to safe_dtype.optimize",
        )
    if checkpoint.quantization:
        raise NotOptimizableError(
            f"{name} is quantized with {checkpoint.quantization}, so there is no float32 to compare it with",
            "optimize the model that it was quantized from",
        )
    return ModelSource(name, folder, model_class, checkpoint.saved, checkpoint.parameters)


def _folder(model: str, revision: str | None) -> Path:
    if Path(model).is_dir():
        return Path(model).resolve()
    if Path(model).is_file():
        raise NotOptimizableError(f"{model} is a file", "pass the folder that it lies in, with its config.json")
    where = Where(model, revision=revision)
    read_checkpoint(where)  # raises a clear error where the Hub has no such model
    try:
        return HubRepository(where).snapshot(without=list(_NOT_NEEDED))
    except CheckpointError as exc:
        raise NotOptimizableError(f"{model} {exc.problem}", "download it, and pass the folder") from exc


def _architecture(folder: Path) -> str:
    try:
        named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    except (OSError, ValueError):
        return ""
    return str(named[0])


def _own_dtype(dtype: torch.dtype) -> Dtype:
    try:
        return dtype_named(str(dtype).removeprefix("torch."))
    except SafeDtypeError as exc:
        raise NotOptimizableError(f"its weights are in {dtype}", "cast it to float32 first") from exc


def _is_of_transformers(model: torch.nn.Module) -> bool:
    import transformers

    name = type(model).__name__
    return isinstance(model, transformers.PreTrainedModel) and getattr(transformers, name, None) is type(model)
