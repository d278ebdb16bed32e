"""Load a folder as plain transformers does, run it, and write down what it says.

A copy of this file, in a folder without modules of ours, is run by a fresh Python with the path of an order: nothing of
safe_dtype is imported there, so that nothing of it can help.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

DEEPEST = 4  # containers in containers
_CACHES = ("past_key_values", "cache_params", "cache")  # the names that a cache has, by version and architecture
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
    """Return every floating tensor by dotted name but the loss, and the last of all hidden states where they are there."""
    answers = dict(floating("", returned, depth=0))
    states = returned.get("decoder_hidden_states") or returned.get("hidden_states")
    return {**answers, "hidden": states[-1]} if states else answers


def floating(path: str, returned: Any, depth: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the floating tensors in containers of containers, but for losses and what stands once a layer."""
    named = returned.items() if isinstance(returned, Mapping) else enumerate(returned)
    for name, value in named:
        if str(name) in ("loss", *_CACHES) or str(name).endswith(("hidden_states", "attentions")):
            continue
        if isinstance(value, torch.Tensor):
            # As real numbers, side by side: a file has no complex ones.
            real = torch.view_as_real(value.resolve_conj()).flatten(-2) if value.is_complex() else value
            if real.is_floating_point():
                yield f"{path}{name}", real
        elif isinstance(value, (Mapping, tuple, list)) and depth < DEEPEST:
            yield from floating(f"{path}{name}.", value, depth + 1)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    answer = main(json.loads(where.read_text(encoding="utf-8")))
    where.with_suffix(".answer.json").write_text(json.dumps(answer), encoding="utf-8")
