"""What runs in optimum-intel's environment: `python inside_openvino.py ORDER.json`. It can import nothing of safe_dtype.

The order names the model, the type of the weights, what to compute in, and batches of token ids. The folder `out` gets
the model, its cache as a state, with its tokenizer; `logits` one file a batch, of all positions.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_TASK = "text-generation-with-past"
# What weights are loaded in, and what OVConfig calls that. As bfloat16 they stay what the checkpoint holds, for which it has no
# word; without an OVConfig, those of models of a billion parameters would be rounded to 8 bits.
_FLOATS = {"FP32": ("float32", "fp32"), "BF16": ("bfloat16", None), "FP16": ("float16", "fp16")}
_BEFORE_8_BITS = "FP32"


def main(order: dict[str, Any]) -> dict[str, str]:
    """Export and run as ordered, and return what OpenVINO computed in."""
    export(order["model"], Path(order["out"]), order["kind"], order["revision"])
    return run(Path(order["out"]), order["compute"], order["batches"], Path(order["logits"]))


def export(model: str, out: Path, kind: str, revision: str | None) -> None:
    """Write `model` into the folder `out`, its weights stored as `kind`."""
    from optimum.exporters.openvino import main_export
    from optimum.intel.openvino import OVConfig

    dtype, word = _FLOATS[_BEFORE_8_BITS if kind == "INT8" else kind]
    main_export(
        model, out, task=_TASK, revision=revision or "main", ov_config=OVConfig(dtype=word),
        model_loading_kwargs={"torch_dtype": dtype}, convert_tokenizer=True, library_name="transformers",
    )  # fmt: skip
    if kind == "INT8":
        round_to_8_bits(out / "openvino_model.xml")


def round_to_8_bits(file: Path) -> None:
    """Round the weights of an exported model, in its place: `main_export` leaves a quantization_config to its callers."""
    import nncf
    import openvino

    rounded = file.with_name("rounded.xml")
    openvino.save_model(
        nncf.compress_weights(openvino.Core().read_model(str(file))), str(rounded), compress_to_fp16=False
    )
    for suffix in (".xml", ".bin"):
        rounded.with_suffix(suffix).replace(file.with_suffix(suffix))


def run(folder: Path, compute: str, batches: list[dict[str, Any]], logits: Path) -> dict[str, str]:
    """Run the model on each batch from an empty cache, and save the logits of all positions in float32."""
    import numpy
    import openvino

    hint = {} if compute == "default" else {"INFERENCE_PRECISION_HINT": compute}
    compiled = openvino.Core().compile_model(str(folder / "openvino_model.xml"), "CPU", hint)
    names = {name for port in compiled.inputs for name in port.get_names()}
    request = compiled.create_infer_request()
    logits.mkdir()
    for number, batch in enumerate(batches):
        ids = numpy.array(batch["input_ids"], dtype=numpy.int64)
        mask = numpy.array(batch.get("attention_mask", numpy.ones_like(ids)), dtype=numpy.int64)
        values = {
            "input_ids": ids, "attention_mask": mask, "position_ids": numpy.maximum(mask.cumsum(-1) - 1, 0),
            "beam_idx": numpy.arange(len(ids), dtype=numpy.int32),
        }  # fmt: skip
        request.reset_state()
        answer = request.infer({name: value for name, value in values.items() if name in names})
        numpy.save(logits / f"{number}.npy", answer["logits"].astype(numpy.float32))
    return {"computed": compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()}


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(job["answer"]).write_text(json.dumps(main(job)), encoding="utf-8")
