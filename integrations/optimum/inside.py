"""What runs in optimum's environment: `python inside.py ORDER.json`. It can import nothing of safe_dtype.

`optimum-cli export onnx` keeps only the outputs that its table has for a task: it drops the pooler's of BERT and the
encoder's of T5. A form must return what the model returns, so this calls the same function with all of them.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

_FLOATS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def main(order: dict[str, str]) -> None:
    """Export as ordered."""
    import torch
    import transformers
    from optimum.exporters.onnx import onnx_export_from_model
    from optimum.exporters.tasks import TasksManager

    logging.basicConfig(level=logging.INFO)
    model_class = getattr(transformers, order["model_class"], None)
    if model_class is None:
        raise ImportError(f"transformers {transformers.__version__}, optimum's, has no class {order['model_class']}")
    dtype = getattr(torch, order["dtype"])
    model, loaded = model_class.from_pretrained(order["model"], dtype=dtype, output_loading_info=True)
    parameters = {name for name, _ in model.named_parameters()}  # buffers are computed where they are not saved
    if absent := sorted(parameters & {*loaded["missing_keys"], *(name for name, *_ in loaded["mismatched_keys"])}):
        # An older transformers with other names for the weights initializes them at random, and only warns.
        raise ValueError(f"{len(absent)} weights are not in the file, or of another shape: {', '.join(absent[:4])}")
    config_class = TasksManager.get_exporter_config_constructor(
        model=model.eval(), exporter="onnx", task=order["task"], library_name="transformers"
    )
    config = config_class(model.config, float_dtype=_FLOATS[order["dtype"]])
    onnx_export_from_model(
        model,
        order["out"],
        task=order["task"],
        monolith=True,
        no_post_process=True,
        do_validation=False,  # the caller does it, on inputs of its own
        custom_onnx_configs={"model": with_outputs(config, _outputs_of(model, config))},
    )


def with_outputs(config: Any, outputs: dict[str, int]) -> Any:
    """Let `config` list `outputs`, numbers of dimensions by name; an output that it lists already keeps its axes."""
    known = config.outputs
    free = {name: {dim: f"{name}_{dim}" for dim in range(dims)} for name, dims in outputs.items()}
    whole = {name: known.get(name, axes) for name, axes in free.items()}
    config.__class__ = type(type(config).__name__, (type(config),), {"outputs": property(lambda _: dict(whole))})
    return config


def _outputs_of(model: Any, config: Any) -> dict[str, int]:
    """Return the names of the tensors that the model answers with, in its order, and how many dimensions each has."""
    import torch

    model.config.use_cache = False  # as in the call that is exported
    inputs = config.generate_dummy_inputs(framework="pt")
    with torch.no_grad():
        answer = model(**inputs)
    return {
        name: value.dim()
        for name, value in answer.items()
        if isinstance(value, torch.Tensor) and not value.is_complex()
    }


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
