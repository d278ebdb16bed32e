"""Load a folder as plain transformers does, run it, and write down what it says.

A copy of this file, in a folder without modules of ours, is run by a fresh Python with the path of an order: nothing of
safe_dtype is imported there, so that nothing of it can help.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

MAIN = ("logits", "last_hidden_state", "hidden")  # of the other outputs each is compared as what it is


def main(order: dict[str, Any]) -> dict[str, Any]:
    """Run every batch of `order`; return the dtype, the largest |number| of every block, and how many were not finite."""
    model_class = getattr(transformers, order["architecture"], transformers.AutoModel)
    model = model_class.from_pretrained(order["folder"]).to(order["device"]).eval()
    peaks: dict[str, float] = {}
    for name in order["blocks"]:
        model.get_submodule(name).register_forward_hook(lambda _, __, returned, name=name: see(peaks, name, returned))
    nonfinite = 0
    for file, more in zip(order["batches"], order["more"], strict=True):
        inputs = {name: one.to(order["device"]) for name, one in load_file(file).items()}
        with torch.inference_mode():
            returned = model(**inputs, **more)
        answers = {name: one.float().cpu().clone().contiguous() for name, one in compared(returned).items()}
        # A logit of -inf is a mask.
        nonfinite += sum(int((~(one < torch.inf)).sum()) for name, one in answers.items() if name in MAIN)
        save_file(answers, f"{file}.out")
    return {
        "dtype": str(model.dtype).removeprefix("torch."), "peaks": peaks, "nonfinite": nonfinite,
        "alone": "safe_dtype" not in sys.modules,
    }  # fmt: skip


def see(peaks: dict[str, float], name: str, returned: Any) -> None:
    """Note the largest |number| in what a block returned; infinity for NaN."""
    hidden = returned[0] if isinstance(returned, (tuple, list)) else returned
    largest = hidden.detach().abs().nan_to_num(nan=torch.inf).amax().item()
    peaks[name] = max(largest, peaks.get(name, 0.0))


def compared(returned: Any) -> dict[str, torch.Tensor]:
    """Return every floating tensor by name but the loss, and the last of all hidden states where they are there."""
    answers = {
        name: value
        for name, value in returned.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and name != "loss"
    }
    states = returned.get("decoder_hidden_states") or returned.get("hidden_states")
    return {**answers, "hidden": states[-1]} if states else answers


if __name__ == "__main__":
    where = Path(sys.argv[1])
    answer = main(json.loads(where.read_text(encoding="utf-8")))
    where.with_suffix(".answer.json").write_text(json.dumps(answer), encoding="utf-8")
