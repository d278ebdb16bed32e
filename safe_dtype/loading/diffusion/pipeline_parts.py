"""The models that a pipeline of diffusers is made of, and the call that loads each of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...checkpoints.config import DTYPE_NAMES, first
from ...checkpoints.model_files import Files, files_of
from ...errors import CorruptCheckpointError
from ...facts import Where
from ...store import parse_json
from ..request import Request

_INDEX = "model_index.json"
_PLACES = ("revision", "variant", "token", "cache_dir", "local_files_only", "use_safetensors")


@dataclass(frozen=True, slots=True)
class PipelinePart:
    """One model of a pipeline, by the line of `model_index.json` that names it."""

    name: str  # "unet", "text_encoder_2"
    library: str  # "diffusers", "transformers", or the module of the pipeline itself
    class_name: str


def parts_of(source: str | os.PathLike[str], arguments: Mapping[str, Any]) -> tuple[PipelinePart, ...]:
    """Return the models among the parts that `source`, a folder or a repository, lists: those with a config.

    Raises:
        CheckpointError: If there is no such pipeline, or its list cannot be read.
    """
    where = _where(source, arguments)
    files = files_of(where)
    listed = _read_index(where, files)
    return tuple(
        PipelinePart(name, *entry)
        for name, entry in listed.items()
        if _names_a_class(entry) and files.has(f"{name}/config.json")
    )


def request_of(
    part: PipelinePart, source: str | os.PathLike[str], arguments: Mapping[str, Any], moved_to: str | None = None
) -> Request:
    """Return the call that loads one part, where the pipeline is loaded with `arguments`; its dtype is the order for it."""
    own = {name: arguments[name] for name in _PLACES if arguments.get(name) is not None}
    own["dtype"] = order_for(part.name, arguments)
    device_map = arguments.get("device_map")
    if isinstance(device_map, str) and device_map not in ("auto", "balanced"):
        own["device_map"] = device_map
    if Path(source).is_dir():
        request = Request(str(Path(source) / part.name), own, moved_to)
    else:
        request = Request(os.fspath(source), {**own, "subfolder": part.name}, moved_to)
    if "variant" not in own or _has_weights_of(request):
        return request
    # As diffusers does: a part without that variant is loaded without it.
    return replace(request, arguments={name: value for name, value in request.arguments.items() if name != "variant"})


def order_for(name: str, arguments: Mapping[str, Any]) -> Any:
    """Return the dtype that a call of a pipeline's `from_pretrained` orders for a part; None where it leaves that open."""
    ordered = first(arguments, *DTYPE_NAMES)
    if isinstance(ordered, Mapping):
        ordered = ordered.get(name, ordered.get("default"))
    return None if ordered == "auto" else ordered


def _where(source: str | os.PathLike[str], arguments: Mapping[str, Any]) -> Where:
    return replace(Request(source, arguments).where, subfolder="", variant=None, gguf_file=None)


def _has_weights_of(request: Request) -> bool:
    variant = str(request.arguments["variant"])
    files = files_of(request.where)
    return any(
        files.has(f"{stem}.{variant}.{ending}") or files.has(f"{stem}.{ending}.index.{variant}.json")
        for stem in ("model", "diffusion_pytorch_model")
        for ending in ("safetensors", "bin")
    )


def _read_index(where: Where, files: Files) -> dict[str, Any]:
    if not files.has(_INDEX):
        raise CorruptCheckpointError(where.name, f"has no {_INDEX}", "pass the folder of a whole pipeline")
    try:
        listed = parse_json(files.local(_INDEX).read_text(encoding="utf-8"))
    except ValueError as exc:
        raise CorruptCheckpointError(where.name, f"{_INDEX} is no JSON ({exc})", "download it again") from exc
    if not isinstance(listed, dict):
        raise CorruptCheckpointError(where.name, f"{_INDEX} is no table", "download it again")
    return listed


def _names_a_class(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)
