"""ONNX, in `model.onnx` and its weights beside it, run by onnxruntime."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ...dtypes import BFLOAT16, Dtype
from ..job import Dynamic
from .exported import dynamic_shapes, is_of_transformers, program_of
from .flat import flat_outputs, outputs_of
from .maker import Run

logger = logging.getLogger(__name__)

FILE = "model.onnx"
NAMES = "model.onnx.json"
NEEDED = ("onnx", "onnxscript", "onnxruntime")
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def available(dtype: Dtype, device: str) -> str:
    """It needs three packages, and a provider of onnxruntime that has the dtype."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        return f"{', '.join(missing)} not installed: pip install 'safe-dtype[onnx]' onnxscript"
    kind = device.partition(":")[0]
    if kind not in _PROVIDERS:
        return f"onnxruntime has no provider for {kind} that is known here"
    # Measured with onnxruntime 1.31: such a model exports, and then InferenceSession refuses Conv, Mul or Pad in it.
    # On a GPU its session would have them, but numpy, through which tensors go in and out, has no such dtype.
    if dtype == BFLOAT16:
        return "onnxruntime has no bfloat16 kernels on the CPU, and takes no bfloat16 from numpy"
    if _PROVIDERS[kind] not in _onnxruntime().get_available_providers():
        return f"this onnxruntime has no {_PROVIDERS[kind]}"
    return ""


def build(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], folder: Path, *, dynamic: Dynamic) -> Run:
    """Export by transformers' exporter where it can, else by torch's, and return the file in onnxruntime."""
    with torch.no_grad():
        outputs = list(outputs_of(model(**inputs)))
    if not (is_of_transformers(model) and _by_transformers(model, inputs, folder, dynamic)):
        program = torch.onnx.export(program_of(model, inputs, dynamic), (), kwargs=dict(inputs), dynamo=True)
        assert program is not None  # only the old exporter returns None
        program.save(str(folder / FILE), external_data=True)
    device = str(next(iter(inputs.values())).device)
    (folder / NAMES).write_text(json.dumps({"outputs": outputs, "device": device}), encoding="utf-8")
    return load(folder)


def load(folder: Path) -> Run:
    """Open a session. An ONNX file holds no Python code."""
    found = json.loads((folder / NAMES).read_text(encoding="utf-8"))
    outputs, device = found["outputs"], found["device"]
    provider = _PROVIDERS[device.partition(":")[0]]
    session = _onnxruntime().InferenceSession(str(folder / FILE), providers=[provider])
    wanted = [one.name for one in session.get_inputs()]

    def run(**given: torch.Tensor) -> dict[str, torch.Tensor]:
        # transformers' exporter puts a prefix before a name that an output has, too.
        feed = {name: given[name.removeprefix("input.")].detach().cpu().numpy() for name in wanted}
        answers = session.run(None, feed)
        return {name: torch.from_numpy(one).to(device) for name, one in zip(outputs, answers, strict=True)}

    return run


def _onnxruntime() -> Any:
    return import_module("onnxruntime")  # an optional package


def _by_transformers(
    model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], folder: Path, dynamic: Dynamic
) -> bool:
    from transformers.exporters import OnnxConfig, OnnxExporter

    prepared = dict(inputs)
    try:
        exporter = OnnxExporter()
        with flat_outputs(model):
            config = OnnxConfig(dynamic_shapes=dynamic_shapes(inputs, dynamic))
            program, _ = exporter.export_program(model, prepared, config)
        if prepared.keys() - inputs.keys():
            raise ValueError("the exporter made inputs of its own, which callers do not have")
        exporter.save_program(program, folder / FILE)
    except Exception as exc:  # noqa: BLE001  # torch's exporter is tried next, and its error is raised
        logger.warning("transformers' ONNX exporter failed: %s: %s", type(exc).__name__, str(exc)[:2000])
        return False
    return True
