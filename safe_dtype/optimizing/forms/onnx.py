"""ONNX, in `model.onnx` and its weights beside it, run by onnxruntime."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...facts import BFLOAT16
from ..graphs.flat import flat_outputs, outputs_of
from ..graphs.program import dynamic_shapes, is_of_transformers, program_of
from ..nouns.form import BuildRequest, FileKind, Form, FormTarget, GraphNeed, Run
from ..nouns.job import Dynamic

if TYPE_CHECKING:
    from torch.export import ExportedProgram

logger = logging.getLogger(__name__)

FILE = "model.onnx"
NAMES = "model.onnx.json"
# An environment variable: the folder of a `model.onnx` that another tool made of the same model. It is verified, and
# none is made.
GIVEN = "SAFE_DTYPE_GIVEN_ONNX"

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# What a model uses for an input that is not passed, by name: the input that has the same shape, and the values. Files
# of other tools always need these inputs.
_Default = tuple[str, Callable[[torch.Tensor], torch.Tensor]]
_DEFAULTS: Mapping[str, _Default] = {
    "attention_mask": ("input_ids", torch.ones_like),
    "decoder_attention_mask": ("decoder_input_ids", torch.ones_like),
    "token_type_ids": ("input_ids", torch.zeros_like),
    "position_ids": ("input_ids", lambda ids: torch.arange(ids.shape[-1], device=ids.device).expand_as(ids)),
}


def build(request: BuildRequest) -> Run:
    """Export by transformers' exporter where it can, else by torch's, and return the file in onnxruntime."""
    model, inputs, folder, dynamic = request.model, request.inputs, request.folder, request.dynamic
    with torch.no_grad():
        outputs = list(outputs_of(model(**inputs)))
    device = str(next(iter(inputs.values())).device)
    defaults: list[str] = []
    if adopted := os.environ.get(GIVEN):
        defaults = _adopt(Path(adopted), folder, inputs, outputs)
    elif not (is_of_transformers(model) and _by_transformers(model, inputs, folder, dynamic)):
        _by_torch(program_of(model, inputs, dynamic), inputs, folder)
    about = {"outputs": outputs, "device": device, "defaults": defaults}
    (folder / NAMES).write_text(json.dumps(about), encoding="utf-8")
    return load(folder)


def load(folder: Path) -> Run:
    """Open a session with as many threads as torch has. An ONNX file holds no Python code."""
    about = json.loads((folder / NAMES).read_text(encoding="utf-8"))
    outputs, device, defaults = about["outputs"], about["device"], about.get("defaults", [])
    session = session_of(folder / FILE, device)
    wanted = [one.name for one in session.get_inputs()]
    # Files of other tools name their outputs; ours hold them in the model's order, and rename those that collide.
    asked = outputs if {one.name for one in session.get_outputs()} >= set(outputs) else None

    def run(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        complete = {name: _default(name, inputs) for name in defaults if name not in inputs} | inputs
        names = {name: name if name in complete else _own_name(name) for name in wanted}
        if missing := [name for name in names.values() if name not in complete]:
            raise ValueError(f"{FILE} needs {', '.join(missing)}; the call has {', '.join(inputs)}")
        feed = {name: complete[ours].detach().cpu().numpy() for name, ours in names.items()}
        answers = session.run(asked, feed)
        return {name: torch.from_numpy(one).to(device) for name, one in zip(outputs, answers, strict=True)}

    return run


def _own_name(name: str) -> str:
    """Return the name that an input had before an exporter changed it, because an output has it, too."""
    return name.removeprefix("input.").removesuffix("_orig")  # transformers' exporter, and torch's


def session_of(file: Path, device: str) -> Any:
    """Return an onnxruntime session of an ONNX file on `device`, with as many threads as torch has."""
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # else all cores, against the caller's wish
    provider = _PROVIDERS[device.partition(":")[0]]
    return onnxruntime.InferenceSession(str(file), options, providers=[provider])


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
            raise ValueError("the exporter added inputs, which callers do not have")
        exporter.save_program(program, folder / FILE)
    except Exception as exc:  # noqa: BLE001  # torch's exporter is tried next, and its error is raised
        logger.warning("transformers' ONNX exporter failed: %s: %s", type(exc).__name__, str(exc)[:2000])
        return False
    return True


def _by_torch(program: ExportedProgram, inputs: Mapping[str, torch.Tensor], folder: Path) -> None:
    try:
        exported = torch.onnx.export(program, (), kwargs=dict(inputs), dynamo=True)
    except torch.onnx.OnnxExporterError as exc:
        # It says "Failed to convert", and in which step; only its first cause names the operator.
        first: BaseException = exc
        while first.__cause__ is not None:
            first = first.__cause__
        raise RuntimeError(str(first)) from exc
    assert exported is not None  # only the old exporter returns None
    exported.save(str(folder / FILE), external_data=True)


def _adopt(source: Path, folder: Path, inputs: Mapping[str, torch.Tensor], outputs: list[str]) -> list[str]:
    """Copy what another tool made of the model, and return the inputs it asks for that are filled with defaults.

    Raises:
        ValueError: If it asks for more than `inputs` and known defaults, or answers with less than `outputs`.
    """
    for file in source.glob(f"{FILE}*"):  # the weights are beside it
        shutil.copy2(file, folder / file.name)
    session = session_of(folder / FILE, "cpu")
    if absent := [name for name in outputs if name not in {one.name for one in session.get_outputs()}]:
        raise ValueError(f"{FILE} has no output {', '.join(absent)}, which the model returns")
    unknown = [one.name for one in session.get_inputs() if one.name not in inputs]
    defaults = [name for name in unknown if name in _DEFAULTS and _DEFAULTS[name][0] in inputs]
    if missing := [name for name in unknown if name not in defaults]:
        raise ValueError(f"{FILE} asks for {', '.join(missing)}; the inputs are {', '.join(inputs)}")
    if defaults:
        logger.info("%s asks for %s: filled with the values that the model uses", FILE, ", ".join(defaults))
    return defaults


def _default(name: str, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    source, values = _DEFAULTS[name]
    return values(inputs[source])


def _missing_to_load(target: FormTarget) -> str:
    """Return what running needs: onnxruntime, with a provider for the device, and a dtype that it takes."""
    if absent := target.without("onnxruntime"):
        return absent
    kind = target.device.partition(":")[0]
    if kind not in _PROVIDERS:
        return f"another device than {kind}: no provider of onnxruntime for it is known"
    # Measured with onnxruntime 1.32: such a model exports, and then InferenceSession refuses Conv, Mul or Pad in it.
    # On a GPU its session would have them, but tensors go in and out through numpy, which has no such dtype.
    if target.dtype == BFLOAT16:
        return "another dtype: onnxruntime has no bfloat16 kernels on the CPU, and numpy has no such dtype to pass"
    # Every onnxruntime has the CPU's provider: it is imported only to look for another one.
    if not target.on_cpu and _PROVIDERS[kind] not in _onnxruntime().get_available_providers():
        return f"an onnxruntime with {_PROVIDERS[kind]}"
    return ""


def _missing_to_build(target: FormTarget) -> str:
    return target.without("onnx", "onnxscript", "onnxruntime") or _missing_to_load(target)


_ENDINGS = (".onnx", ".onnx.data", ".onnx_data")  # the graph, and weights beside it as torch and others name them

FORM = Form(
    name="onnx",
    rank=30,
    about="for onnxruntime, on any machine",
    build=build,
    load=load,
    files=tuple(FileKind(ending, "an ONNX file, which holds no code", runs_code=False) for ending in _ENDINGS),
    graph=GraphNeed.EXPORTED,
    missing_to_build=_missing_to_build,
    missing_to_load=_missing_to_load,
)
